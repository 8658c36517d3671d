"""Residual schemes: how a layer's branches join the residual stream, and where the norms sit.

f is a branch, attention or the feed-forward network; N is the number of layers. In a layer without a feed-forward
network the mixer is the one branch. DeepNorm and SubNorm, whose numbers are derived for two branches a layer, and schemes
whose branches share something, have no `branches` and join two alone.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.base.quantities import Count, Literal, Positive, Share
from archlab.blocks.contracts import Norm, Residual, Stream
from archlab.blocks.factors import Factors, stream_scale
from archlab.blocks.precision import at_least_float32, without_autocast
from archlab.blocks.rms import rms_norm
from archlab.blocks.roles import Role, Weight, is_named

Branch = Callable[[Tensor], Tensor]
MakeNorm = Callable[[], Norm]
BRANCHES = 2


class OneNormPerBranch(Residual):
    """The schemes that add one branch after the other, each with a norm of its own; `join` says how."""

    def __init__(self, norm: MakeNorm, n_layers: int, branches: int = BRANCHES):
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(branches))

    def forward(self, x: Stream, branches: Sequence[Branch]) -> Stream:
        for norm, branch in zip(self.norms, branches, strict=True):
            x = self.join(x, norm, branch)
        return x

    @abstractmethod
    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        """The stream x, (batch, seq, d_model), with one branch added."""


class PreNorm(OneNormPerBranch):
    """x + scale * f(norm(x)): the stream itself is never normalised, so the model ends with a norm.

    Source: arXiv:2002.04745, table 1; `scale` as the residual_multiplier of Granite's published code.
    """

    def __init__(self, norm: MakeNorm, n_layers: int, scale: Positive = 1.0, branches: int = BRANCHES):
        super().__init__(norm, n_layers, branches)
        self.placed = norm_then_add if scale == 1 else partial(norm_then_add_share, scale=scale)

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return self.placed(x, norm, branch)


class SubNorm(OneNormPerBranch):
    """x + f(norm(x)), where f has a second norm on what it projects back to the stream (Magneto's Sub-LN).

    f's feed-forward, value and output projections are initialised sqrt(ln 2N) times as large.
    Source: arXiv:2210.06423, fig. 2 and eq. 22 for a decoder alone.
    """

    inner_norms = True
    told_apart_by_norms = True

    def __init__(self, norm: MakeNorm, n_layers: int):
        super().__init__(norm, n_layers)
        self.branch_gain = math.log(2 * n_layers) ** 0.5

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return x + branch(norm(x))


class PostNorm(OneNormPerBranch):
    """norm(x + f(x)): the original Transformer. Source: arXiv:1706.03762, sec. 3.1."""

    needs_final_norm = False
    told_apart_by_norms = True

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return norm(x + branch(x))


class DeepNorm(OneNormPerBranch):
    """norm(alpha * x + f(x)), with f's feed-forward, value and output projections initialised beta times as large.

    `gains=deepnet`: alpha = (2N)^(1/4), beta = (8N)^(-1/4). Source: arXiv:2203.00555, fig. 2, "decoder-only".
    `gains=glm`:     alpha = (2N)^(1/2), beta = (2N)^(-1/2). Source: arXiv:2210.02414, sec. 2.1.
    """

    needs_final_norm = False

    def __init__(self, norm: MakeNorm, n_layers: int, gains: Literal["deepnet", "glm"] = "deepnet"):
        super().__init__(norm, n_layers)
        self.alpha, self.branch_gain = {
            "deepnet": ((2 * n_layers) ** 0.25, (8 * n_layers) ** -0.25),
            "glm": ((2 * n_layers) ** 0.5, (2 * n_layers) ** -0.5),
        }[gains]

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return norm(self.alpha * x + branch(x))


class BranchNorm(OneNormPerBranch):
    """x + norm(f(x)): a norm on what the branch adds, none on its input.

    Source: arXiv:2501.00656, sec. 2.1 (OLMo 2).
    """

    told_apart_by_norms = True

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return x + norm(branch(x))


class NoResidual(OneNormPerBranch):
    """f(norm(x)): there is no residual stream, each branch replaces its input."""

    drops_zero_branches = True

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return branch(norm(x))


class Sandwich(Residual):
    """x + norm'(f(norm(x))): a norm before and one after each branch. Source: arXiv:2105.13290, sec. 2.4 (CogView)."""

    told_apart_by_norms = True

    def __init__(self, norm: MakeNorm, n_layers: int, branches: int = BRANCHES):
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(branches))
        self.branch_norms = nn.ModuleList(norm() for _ in range(branches))

    def forward(self, x: Stream, branches: Sequence[Branch]) -> Stream:
        for norm, branch_norm, branch in zip(self.norms, self.branch_norms, branches, strict=True):
            x = x + branch_norm(branch(norm(x)))
        return x


class Parallel(Residual):
    """x + attention(norm(x)) + ffn(norm'(x)): both branches get the same stream.

    With `norms=1` norm' is norm, as in GPT-J, Falcon-7B and Phi; with `norms=2` it is another, as in GPT-NeoX and
    Falcon-40B. Source: arXiv:2204.02311, "Parallel Layers"; arXiv:2204.06745, sec. 2.1 (GPT-NeoX).
    """

    def __init__(self, norm: MakeNorm, n_layers: int, norms: Literal[1, 2] = 1):
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(norms))
        if norms == 2 and not list(self.parameters()):
            raise UserError(
                "residual.norms=2: two norms without weights give both branches the same; use residual.norms=1, or a norm with"
                " weights"
            )

    def forward(self, x: Stream, branches: Sequence[Branch]) -> Stream:
        normed = [norm(x) for norm in self.norms]
        return x + sum(branch(given) for branch, given in zip(branches, cycle(normed)))


class ScaledNorm(OneNormPerBranch):
    """x + f(norm(x) / sqrt(l)), l being the layer's number, counted from 1 (LayerNorm Scaling).

    Without it the stream's variance grows with depth, and what deep layers add counts for less and less.
    Source: arXiv:2502.05795, sec. 4.
    """

    def __init__(self, norm: MakeNorm, n_layers: int, layer: int = 0, branches: int = BRANCHES):
        super().__init__(norm, n_layers, branches)
        self.scale = (layer + 1) ** -0.5

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return x + branch(self.scale * norm(x))


class MixedNorm(OneNormPerBranch):
    """norm(x + f(x)) in the first share of the layers, x + f(norm(x)) in the others (Mix-LN).

    Source: arXiv:2412.13795, fig. 1c.
    """

    told_apart_by_norms = True

    def __init__(self, norm: MakeNorm, n_layers: int, layer: int = 0, share: Share = 0.25, branches: int = BRANCHES):
        super().__init__(norm, n_layers, branches)
        post = layer < self.n_post(share, n_layers)
        self.placed = add_then_norm if post else norm_then_add
        self.needs_final_norm, self.variant = not post, "post" if post else "pre"

    @staticmethod
    def n_post(share: float, n_layers: int) -> int:
        """How many of so many layers a share of them comes to."""
        return math.ceil(share * n_layers)

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return self.placed(x, norm, branch)


def add_then_norm(x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
    """norm(x + f(x))."""
    return norm(x + branch(x))


def norm_then_add(x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
    """x + f(norm(x))."""
    return x + branch(norm(x))


def norm_then_add_share(x: Tensor, norm: nn.Module, branch: Branch, scale: float) -> Tensor:
    """x + scale * f(norm(x))."""
    return x + scale * branch(norm(x))


class ReZero(Residual):
    """x + alpha * f(x): no norm within the layer, and one learned number for both of its branches, which starts at 0.

    So each layer starts as the identity. The decoder's own norm before the head stays; norm=none leaves it out.
    Source: arXiv:2003.04887, eq. 1, as its published code has it.
    """

    drops_zero_branches = True

    def __init__(self, norm: MakeNorm, n_layers: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Stream, branches: Sequence[Branch]) -> Stream:
        for branch in branches:
            x = x + self.alpha * branch(x)
        return x


class FeatureScale(nn.Module):
    """scale * x, with a learned number for each feature."""

    def __init__(self, d_model: int, start: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((d_model,), float(start)))

    def forward(self, x: Stream) -> Stream:
        return self.scale * x


class LayerScale(Residual):
    """x + scale * f(norm(x)), with a learned number for each feature and branch.

    `start` is what they start at: 0.1 for up to 18 layers, 1e-5 for 24, 1e-6 for more, in the paper.
    Source: arXiv:2103.17239; `LayerScale_Block` of its released cait_models.py.
    """

    def __init__(self, norm: MakeNorm, n_layers: int, d_model: int, start: Positive = 0.1, branches: int = BRANCHES):
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(branches))
        self.scales = nn.ModuleList(FeatureScale(d_model, start) for _ in range(branches))

    def forward(self, x: Stream, branches: Sequence[Branch]) -> Stream:
        for norm, scale, branch in zip(self.norms, self.scales, branches, strict=True):
            x = x + scale(branch(norm(x)))
        return x


class Interpolated(Residual):
    """norm(x + |alpha| (norm'(f(x)) - x)), with a learned alpha for each feature and branch (nGPT's eigen learning rates).

    So a branch says where the stream is to go, and alpha how far. With norm=l2 every position of the stream is a vector of
    length 1, and so is what the head is given. alpha is kept as `Factors` are.

    Options:

    start  what alpha starts at
    scale  what the weight that alpha is made of starts at; None for 1 / sqrt(d_model)

    Source: arXiv:2410.01131, sec. 2.6; |alpha| as its published code (NVIDIA/ngpt) has it.
    """

    needs_final_norm = False

    def __init__(
        self,
        norm: MakeNorm,
        n_layers: int,
        d_model: int,
        start: Positive = 0.05,
        scale: Positive | None = None,
        branches: int = BRANCHES,
    ):
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(branches))
        self.branch_norms = nn.ModuleList(norm() for _ in range(branches))
        self.alphas = nn.ModuleList(
            Factors(d_model, start, stream_scale(scale, d_model), torch.abs) for _ in range(branches)
        )

    def forward(self, x: Stream, branches: Sequence[Branch]) -> Stream:
        parts = zip(self.norms, self.branch_norms, self.alphas, branches, strict=True)
        for norm, branch_norm, alpha, branch in parts:
            x = norm(x + alpha(branch_norm(branch(x)) - x))
        return x


Streams = Float[Tensor, "batch seq streams d_model"]
Mixing = Float[Tensor, "*batch numbers"]
"""By which numbers a branch reads the streams, streams keep each other, and the branch is written to each: n, n^2 and n."""


class ManyStreams(Residual):
    """The schemes of several streams side by side: each branch reads a mixture of them, and is added to each of them.

    H_j <- sum_i keep_ij H_i + write_j f(norm(sum_i read_i H_i))

    All start as copies of the embeddings; what leaves is their sum. `mixings` say by which numbers, a module for each branch.
    """

    def __init__(self, norm: MakeNorm, streams: int, mixings: Sequence[nn.Module]):
        super().__init__()
        if streams < 2:
            raise UserError(
                f"residual.streams={streams}: one stream is not mixed with any; use 2 or more, or residual=pre"
            )
        self.streams = streams
        self.norms = nn.ModuleList(norm() for _ in range(BRANCHES))
        self.mixings = nn.ModuleList(mixings)

    def enter(self, x: Stream) -> Streams:
        return repeat(x, "batch seq d_model -> batch seq streams d_model", streams=self.streams)

    def leave(self, x: Streams) -> Stream:
        return x.sum(dim=-2)

    def forward(self, x: Streams, branches: Sequence[Branch]) -> Streams:
        n = self.streams
        for norm, mixing, branch in zip(self.norms, self.mixings, branches, strict=True):
            with without_autocast(x.device):
                read, keep, write = mixing(x).type_as(x).split((n, n * n, n), dim=-1)
                given = (read[..., None] * x).sum(dim=-2)
                kept = keep.unflatten(-1, (n, n)).mT @ x
            x = kept + write[..., None] * branch(norm(given)).type_as(x)[:, :, None]
        return x


class LearnedMixing(nn.Module):
    """Numbers that are learned; at first `number` is the one stream that is read, each is kept, and each is written to."""

    def __init__(self, streams: int, number: int):
        super().__init__()
        self.read = nn.Parameter(torch.eye(streams)[number].clone())
        self.keep = nn.Parameter(torch.eye(streams))
        self.write = nn.Parameter(torch.ones(streams))

    def forward(self, x: Streams) -> Mixing:
        return torch.cat((self.read, self.keep.flatten(), self.write))


class DynamicMixing(LearnedMixing):
    """Those, with what each stream adds to its own: a tanh of linear maps of it, at first 0."""

    def __init__(self, streams: int, number: int, d_model: int):
        super().__init__(streams, number)
        # For each stream 1 + streams + 1 numbers: how it is read, what it is for each of them, how it is written to.
        self.maps = nn.Parameter(torch.zeros(streams + 2, d_model))
        self.read_scale = nn.Parameter(torch.full((1,), 0.01))
        self.write_scale = nn.Parameter(torch.full((1,), 0.01))

    def forward(self, x: Streams) -> Mixing:
        wide = at_least_float32(x)
        seen = torch.tanh(F.linear(F.layer_norm(wide, wide.shape[-1:]), self.maps.type_as(wide)))
        mixed = self.read_scale * seen[..., :-1]
        added = (mixed[..., 0], mixed[..., 1:].flatten(-2), self.write_scale * seen[..., -1])
        return super().forward(x) + torch.cat(added, dim=-1)


class HyperConnections(ManyStreams):
    """Several streams, mixed by learned numbers (static), or by those and a tanh of the streams themselves (dynamic).

    dynamic: read = a + s tanh(n(H) W), and keep and write likewise, n being a LayerNorm without gain and shift. They start
    where the scheme is pre-norm: W = 0, s = 0.01, keep = 1 on the diagonal, write = 1, and a branch reads one stream alone,
    its number being that of the branch among those of all layers, modulo `streams`.

    Matrices that write to the stream start sqrt(streams) times as large, unless `scaled_outputs` is false: its published code
    leaves that to who sets the initial weights. W decays, the numbers a do not.

    Source: arXiv:2409.19606, eq. 1 to 5 and 14 (static), eq. 11 to 13 (dynamic) in the form of its published code; sec. 4,
    implementation (what decays, and how large outputs start).
    """

    def __init__(
        self,
        norm: MakeNorm,
        n_layers: int,
        d_model: int,
        layer: int = 0,
        streams: Count = 4,
        dynamic: bool = True,
        scaled_outputs: bool = True,
    ):
        numbers = [(BRANCHES * layer + which) % streams for which in range(BRANCHES)]
        mixing = partial(DynamicMixing, d_model=d_model) if dynamic else LearnedMixing
        super().__init__(norm, streams, [mixing(streams, number) for number in numbers])
        self.output_gain = streams**0.5 if scaled_outputs else 1.0
        self.starts_within = {f"mixings.{which}.maps": (0.0, 0.0) for which in range(BRANCHES)}

    def _weight(self, module: nn.Module, name: str, tensor: nn.Parameter) -> Weight:
        weight = super()._weight(module, name, tensor)
        return replace(weight, role=Role.HIDDEN) if is_named(name, ("maps",)) else weight


class DoublyStochasticMixing(nn.Module):
    """Numbers computed from all streams together, those of `keep` such that its rows and columns add up to 1."""

    EPS = 1e-6

    def __init__(self, streams: int, d_model: int, rounds: int):
        super().__init__()
        self.streams, self.rounds = streams, rounds
        self.mix = nn.Parameter(torch.empty((2 + streams) * streams, streams * d_model))
        self.base = nn.Parameter(torch.zeros((2 + streams) * streams))
        self.scale = nn.Parameter(torch.full((3,), 0.01))
        nn.init.normal_(self.mix, std=0.02)

    def forward(self, x: Streams) -> Mixing:
        n, flat = self.streams, at_least_float32(x).flatten(-2)
        seen = F.linear(rms_norm(flat, self.EPS), self.mix.type_as(flat))
        parts = zip(self.scale, seen.split((n, n, n * n), dim=-1), self.base.split((n, n, n * n)), strict=True)
        read, write, keep = (scale * one + base for scale, one, base in parts)
        keep = self.doubly_stochastic(keep.unflatten(-1, (n, n))).flatten(-2)
        return torch.cat((torch.sigmoid(read) + self.EPS, keep, 2 * torch.sigmoid(write)), dim=-1)

    def doubly_stochastic(
        self, keep: Float[Tensor, "*batch streams streams"]
    ) -> Float[Tensor, "*batch streams streams"]:
        """Positive numbers whose columns add up to 1, and whose rows nearly do."""
        keep = keep.softmax(dim=-1) + self.EPS
        keep = keep / (keep.sum(dim=-2, keepdim=True) + self.EPS)
        for _ in range(self.rounds - 1):
            keep = keep / (keep.sum(dim=-1, keepdim=True) + self.EPS)
            keep = keep / (keep.sum(dim=-2, keepdim=True) + self.EPS)
        return keep


class ManifoldHyperConnections(ManyStreams):
    """Several streams, mixed by a matrix whose rows and columns add up to 1, so that they neither grow nor shrink (mHC).

    read = sigmoid(r) + eps, write = 2 sigmoid(w), keep = Sinkhorn(k); r, w and k are scale * (n(H) W) + base, n(H) being
    all streams as one vector over its root mean square. Sinkhorn takes exp(k) and divides rows and columns in turn by their
    sums, `rounds` times. Scales start at 0.01, bases at 0; W is drawn as other matrices are.

    Source: arXiv:2512.24880, eq. 7 to 9; eps, and how rows and columns take turns, as DeepSeek-V4's published code has it.
    """

    def __init__(self, norm: MakeNorm, n_layers: int, d_model: int, streams: Count = 4, rounds: Count = 20):
        super().__init__(norm, streams, [DoublyStochasticMixing(streams, d_model, rounds) for _ in range(BRANCHES)])

    def _weight(self, module: nn.Module, name: str, tensor: nn.Parameter) -> Weight:
        """Of equal streams none would ever differ from the others, so the matrix that looks at them is drawn."""
        weight = super()._weight(module, name, tensor)
        return replace(weight, role=Role.HIDDEN) if is_named(name, ("mix",)) else weight
