"""Positions that add to the scores: a bias that is a function of the query's position, the key's, and the head.

The distance is absolute in all of them but an unidirectional T5, so that under a prefix mask,
where a position attends to what follows it, keys get no larger bias for being farther ahead.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.base.quantities import Count, Literal, Positive
from archlab.blocks.contracts import BiasOfPairs, Heads, KeyOfHeads, Position, QueryOfHeads
from archlab.blocks.precision import at_least_float32, without_autocast

QueryPositions = Int[Tensor, "#batch query 1"]
KeyPositions = Int[Tensor, "#batch 1 key"]
Bias = Float[Tensor, "#batch heads query key"]
Distances = Int[Tensor, "*pairs"]


def alibi_slopes(n_heads: int, device: torch.device) -> Float[Tensor, " heads"]:
    """One slope per head: 2^(-8h/n) for h = 1 .. n where n is a power of two; float32.

    Otherwise the slopes of the power below, then every second one of the power above. They are computed where they
    are needed: a buffer would follow the model into half precision, and copying a tensor from the CPU would wait for the
    device.
    Source: arXiv:2108.12409, sec. 3, and its published code for other numbers of heads.
    """
    below = 2 ** math.floor(math.log2(n_heads))
    head = torch.arange(1, n_heads + 1, device=device, dtype=torch.float32)
    return torch.exp2(-8 / below * torch.where(head <= below, head, head - below - 0.5))


class PointwiseBias(Position):
    """A bias whose one definition is `score`: a function of one query, one key and the head, and of a few numbers."""

    biases_scores = True
    pointwise = True

    def __init__(self, n_heads: int):
        super().__init__()
        self.n_heads = n_heads

    def bias(self, query: QueryPositions, key: KeyPositions) -> Bias:
        head = torch.arange(self.n_heads, device=query.device)[:, None, None]
        return self.score(self.bias_tables(query.device), head, query[:, None], key[:, None])


class DistanceBias(PointwiseBias):
    """A pointwise bias whose `score` is a function of the distance alone."""

    def goes_by_distance(self, seq_len: int) -> bool:
        return True


class ALiBi(DistanceBias):
    """Adds -slope * |query - key| to the scores, with a fixed slope for each head. Source: arXiv:2108.12409, sec. 3.

    Options:

    scaled  multiplies the slopes by 1 / sqrt(head_dim): Falcon's published code adds the biases to q k^T and divides the sum
    """

    def __init__(self, d_model: int, n_heads: int, head_dim: int, scaled: bool = False):
        super().__init__(n_heads)
        if scaled and head_dim == 1:
            raise UserError("pos.scaled=true: changes nothing with size.head_dim=1, whose root is 1; leave it out")
        self.factor = head_dim**-0.5 if scaled else 1.0

    def bias_tables(self, device: torch.device) -> tuple[Float[Tensor, " heads"]]:
        return (alibi_slopes(self.n_heads, device) * self.factor,)

    def score(self, tables: Sequence[Tensor], head: Heads, query: QueryOfHeads, key: KeyOfHeads) -> BiasOfPairs:
        (slopes,) = tables
        return -slopes[head] * (query - key).abs().to(slopes.dtype)  # a CPU multiplies two dtypes ten times as slowly


def log_buckets(distance: Distances, buckets: int, max_distance: int) -> Distances:
    """The bucket of each distance, from 0: half of the buckets are of one distance each, the others of longer ranges.

    Ranges are even on a logarithmic scale up to max_distance; all that is farther is in the last bucket.
    """
    exact = buckets // 2
    share = (distance.clamp(min=exact).float() / exact).log() / math.log(max_distance / exact)
    far = exact + (share * (buckets - exact)).long()
    return torch.where(distance < exact, distance, far.clamp(max=buckets - 1))


def buckets_behind(distance: Distances, buckets: int, max_distance: int) -> Distances:
    """`log_buckets` of keys behind the query; keys ahead of it are in the bucket of distance 0."""
    return log_buckets(distance.clamp(min=0), buckets, max_distance)


def buckets_both_ways(distance: Distances, buckets: int, max_distance: int) -> Distances:
    """One half of the buckets for keys behind the query, the other for keys ahead of it."""
    half = buckets // 2
    return log_buckets(distance.abs(), half, max_distance) + half * (distance < 0)


class T5Bias(DistanceBias):
    """Adds a learned number for the head and for the bucket that the distance query - key falls into.

    Options:

    buckets        rows of the one table that all layers share, (buckets, heads)
    max_distance   from here on all distances share the last bucket
    bidirectional  whether keys ahead of the query have buckets of their own

    T5 does not divide its scores by sqrt(head_dim): `mixer.scale=1`. Source: arXiv:1910.10683, sec. 2.1.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int,
        buckets: Count = 32,
        max_distance: Count = 128,
        bidirectional: bool = False,
    ):
        super().__init__(n_heads)
        halves = 4 if bidirectional else 2
        if buckets % halves:
            ways = "a half of them for each direction, and " if bidirectional else ""
            raise UserError(
                f"pos.buckets={buckets}: needs {ways}a half for single distances; use a multiple of {halves}, such as 32"
            )
        if max_distance <= buckets // halves:
            raise UserError(
                f"pos.max_distance={max_distance}: is within the {buckets // halves} distances that have a bucket each;"
                " use a larger one, such as 128"
            )
        self.buckets, self.max_distance = buckets, max_distance
        self.looks_ahead = bidirectional
        self.bucket_of = buckets_both_ways if bidirectional else buckets_behind
        self.table = nn.Embedding(buckets, n_heads)

    def bias_tables(self, device: torch.device) -> tuple[Float[Tensor, "buckets heads"]]:
        return (at_least_float32(self.table.weight),)

    def score(self, tables: Sequence[Tensor], head: Heads, query: QueryOfHeads, key: KeyOfHeads) -> BiasOfPairs:
        (table,) = tables
        return table[self.bucket_of(query - key, self.buckets, self.max_distance), head]


class Kerple(DistanceBias):
    """Adds a learned function of the distance d = |query - key| that falls from 0, with two numbers for each head.

    `fall=log`:   -r1 log(1 + r2 d), where r1 starts in (0, 2) and r2 in (0, 1).
    `fall=power`: -r1 d^r2, where r1 starts in (0, 1) and r2 in (0, 2).
    Both are taken positive, by their absolute value; all layers share them. The paper's kernel asks for r2 <= 2 in a
    power, which is where it starts and is not enforced after.

    Source: arXiv:2205.09921, eq. 5 and 6; where they start: its published code.
    """

    def __init__(self, d_model: int, n_heads: int, head_dim: int, fall: Literal["log", "power"] = "log"):
        super().__init__(n_heads)
        self.r1, self.r2 = nn.Parameter(torch.ones(n_heads)), nn.Parameter(torch.ones(n_heads))
        self.fall, self.starts_within = {
            "log": (fall_as_logarithm, {"r1": (0.0, 2.0), "r2": (0.0, 1.0)}),
            "power": (fall_as_power, {"r1": (0.0, 1.0), "r2": (0.0, 2.0)}),
        }[fall]

    def bias_tables(self, device: torch.device) -> tuple[Float[Tensor, " heads"], Float[Tensor, " heads"]]:
        return at_least_float32(self.r1).abs(), at_least_float32(self.r2).abs()

    def score(self, tables: Sequence[Tensor], head: Heads, query: QueryOfHeads, key: KeyOfHeads) -> BiasOfPairs:
        r1, r2 = tables
        return self.fall((query - key).abs().to(r2.dtype), r1[head], r2[head])


def fall_as_logarithm(distance: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    """-r1 log(1 + r2 d)."""
    return -r1 * torch.log1p(r2 * distance)


def fall_as_power(distance: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    """-r1 d^r2."""
    return -r1 * distance**r2


class FIRE(Position):
    """Adds f(psi(d) / psi(max(query, |L|))) for the distance d, where psi(x) = log(|c| x + 1) and f is a small network.

    The quotient is within 0 and 1 at any length of a causal model, so f is given no new values on longer sequences. f is
    Linear, ReLU, Linear, with one output per head; its last layer has no bias, since adding one number to all scores
    of a query does not change their softmax. All layers share c, L and f, which are learned; c starts at 0.1.

    Options:

    width      of f's hidden layer
    threshold  where L starts

    Source: arXiv:2310.04418, eq. 3 and app. E.
    """

    biases_scores = True
    inputs_grow = {"up_proj": False, "down_proj": False}
    EPS = 1e-6

    def __init__(self, d_model: int, n_heads: int, head_dim: int, width: Count = 32, threshold: Positive = 512.0):
        super().__init__()
        self.threshold = threshold
        self.c = nn.Parameter(torch.full((1,), 0.1))
        self.threshold_gain = nn.Parameter(torch.ones(1))
        self.up_proj = nn.Linear(1, width)
        self.down_proj = nn.Linear(width, n_heads, bias=False)
        # Where torch's own linear layers start, as the published code has them.
        up, down = (-1.0, 1.0), (-(width**-0.5), width**-0.5)
        self.starts_within = {"up_proj.weight": up, "up_proj.bias": up, "down_proj.weight": down}

    def bias(self, query: QueryPositions, key: KeyPositions) -> Bias:
        with without_autocast(query.device):
            c, least, up, up_bias, down = (
                at_least_float32(weight)
                for weight in (
                    self.c.abs(),
                    (self.threshold * self.threshold_gain).abs(),
                    self.up_proj.weight,
                    self.up_proj.bias,
                    self.down_proj.weight,
                )
            )
            far = torch.log1p(c * torch.maximum(query.to(least.dtype), least)) + self.EPS
            share = torch.log1p(c * (query - key).abs().to(c.dtype)) / far
            numbers = F.linear(F.relu(F.linear(share[..., None], up, up_bias)), down)
            return rearrange(numbers, "batch query key heads -> batch heads query key")
