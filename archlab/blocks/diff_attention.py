"""Differential attention: the difference of two softmaxes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.base.quantities import Probability
from archlab.blocks.activations import FLOAT32, MASK, Accounting, Term
from archlab.blocks.attention_parts import ON_REQUEST, seen_of
from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Block, Mask, Mixer, Position, SomeHeads, Stream
from archlab.blocks.kernel import Kernel, explicit_kernel, explicit_scores, keeps_weights
from archlab.blocks.norm import MakeWidthNorm, no_norm
from archlab.blocks.precision import at_least_float32
from archlab.blocks.rms import rms_norm
from archlab.blocks.roles import Role
from archlab.blocks.softcap import leave
from archlab.blocks.steps import DrawnStep

STD = 0.1
"""Of the initial values of the four vectors that make lambda."""


class Lambda(Block):
    """lambda = exp(q1 . k1) - exp(q2 . k2) + lambda_init, of four learned vectors; a number.

    lambda_init = 0.8 - 0.6 exp(-0.3 depth), depth counted from 0. The vectors start evenly drawn with the standard
    deviation of 0.1 that `DiffLlamaAttention`'s normal ones have. Source: arXiv:2410.05258, eq. 2.
    """

    vectors = Role.SCALAR
    starts_within = dict.fromkeys(("q1", "k1", "q2", "k2"), (-STD * 3**0.5, STD * 3**0.5))

    def __init__(self, head_dim: int, depth: int):
        super().__init__()
        self.initial = 0.8 - 0.6 * math.exp(-0.3 * depth)
        self.q1, self.k1, self.q2, self.k2 = (nn.Parameter(STD * torch.randn(head_dim)) for _ in range(4))

    def forward(self) -> Float[Tensor, ""]:
        q1, k1, q2, k2 = map(at_least_float32, (self.q1, self.k1, self.q2, self.k2))
        return (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.initial


class Differential(Mixer):
    """(softmax(q1 k1^T) - lambda softmax(q2 k2^T)) v per pair of heads, normed, times 1 - lambda_init, projected to d_model.

    Scores are divided by sqrt(head_dim) and biased and masked as those of attention. Head h of the first half of the heads and
    head h of the second are a pair; its values are 2 head_dim wide: those of a key-value head of the first half, then
    those of the same of the second. The norm is RMS over these, without a gain. `Lambda` has the formula of lambda.

    Options:

    qkv_bias, out_bias
                whether the query, key and value projections, and the output projection, have a bias
    dropout     a probability, of the weights of each softmax and of the output
    kernel      computes softmax attention, here with values twice as wide
    inner_norm  makes a norm of the input of `out_proj`, where the residual scheme asks for one
    depth       which layer it is in, counted from 0

    Source: arXiv:2410.05258, sec. 2.1, eq. 1 to 3; which heads are a pair, and the norm without a gain, as
    `DiffLlamaAttention` of transformers has them.
    """

    honours = frozenset({"rotation", "bias", "mask", "padding"})
    taps = ("attention_entropy", "max_score")
    on_request = ON_REQUEST
    decodes = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        kernel: Kernel,
        qkv_bias: bool = False,
        out_bias: bool = False,
        dropout: Probability = 0.0,
        inner_norm: MakeWidthNorm = no_norm,
        depth: int = 0,
    ):
        super().__init__()
        if n_heads % 2 or n_kv_heads % 2:
            raise UserError(
                f"mixer: {type(self).__name__} takes heads in pairs, and there are {n_heads} of them and {n_kv_heads} key-value"
                " heads; use even numbers of both"
            )
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, n_heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(n_heads * head_dim, d_model, bias=out_bias)
        self.out_dropout = nn.Dropout(dropout)
        self.lambda_of = Lambda(head_dim, depth)
        self.inner_norm = inner_norm(d_model=n_heads * head_dim)
        self.kernel = kernel

    @staticmethod
    def admits(n_heads: int, n_kv_heads: int) -> bool:
        return n_heads % n_kv_heads == 0 and (n_kv_heads % 2 == 0 or n_heads == n_kv_heads)

    def forward(self, x: Stream, context: AttentionContext) -> Stream:
        q, k = context.rotate_queries(self.heads(self.q_proj(x))), context.rotate_keys(self.heads(self.k_proj(x)))
        context.tap((*self.taps, *self.on_request), partial(self.look, q, k, context))
        k, v = context.with_cached(self, k, self.heads(self.v_proj(x)))
        gathered = self.kernel(q, k, self.paired(v), context, self.dropout * self.training)
        one, other = at_least_float32(gathered).chunk(2, dim=1)
        difference = one - self.lambda_of() * other
        normed = (1 - self.lambda_of.initial) * rms_norm(difference, EPS)
        joined = rearrange(normed.type_as(gathered), "batch pairs seq width -> batch seq (pairs width)")
        return self.out_dropout(self.out_proj(self.inner_norm(joined)))

    def heads(self, x: Float[Tensor, "batch seq width"]) -> SomeHeads:
        """(batch, seq, heads * head_dim) -> (batch, heads, seq, head_dim)."""
        return rearrange(x, "batch seq (heads head_dim) -> batch heads seq head_dim", head_dim=self.head_dim)

    @staticmethod
    def paired(v: SomeHeads) -> Float[Tensor, "batch some_heads seq twice_head_dim"]:
        """The values of each key-value head of the first half beside those of the second, the same for both halves."""
        return torch.cat(v.chunk(2, dim=1), dim=-1).repeat(1, 2, 1, 1)

    def look(self, q: Tensor, k: Tensor, context: AttentionContext) -> Mapping[str, Tensor]:
        """Of both softmaxes together, what `seen_of` says."""
        *_, block = context.of_first().blocks()
        scores = explicit_scores(q[:1], k[:1], block, leave)
        return seen_of(scores, scores.softmax(dim=-1), block)

    def for_packs(self) -> None:
        """Takes the explicit kernel: `archlab.blocks.folded`, which is fused under vmap, is for values as wide as queries."""
        self.kernel = explicit_kernel(leave)

    # ------------------------------------------------------------ what it says of itself

    @property
    def summary(self) -> str:
        return f"{type(self).__name__}, heads {self.n_heads}, kv_heads {self.n_kv_heads}, head_dim {self.head_dim}"

    def saved_activations(self, rules: Accounting) -> Iterator[Term]:
        """As attention's, with values twice as wide, and what the difference and its norm keep, in float32."""
        e, d_model, width = rules.e, self.out_proj.out_features, self.n_heads * self.head_dim
        kv_width = self.n_kv_heads * self.head_dim
        yield Term("attention: input", e * d_model, needed_by=("q_proj", "k_proj", "v_proj"), branch_input=True)
        if rules.flash and not keeps_weights(self.kernel):
            yield Term("attention: queries, keys, values", e * (width + 3 * kv_width))
            yield Term("attention: sums of exponentials", FLOAT32 * self.n_heads)
            yield Term("attention: what the heads gather", e * 2 * width)
        else:
            yield Term("attention: queries, keys, values", e * 4 * width)
            yield Term("attention: weights", pair=e * self.n_heads)
            if rules.drops(self.dropout):
                yield Term("attention: dropout mask of the weights", pair=MASK * self.n_heads)
                yield Term("attention: weights after dropout", pair=e * self.n_heads)
        yield Term("attention: what lambda multiplies, and the difference", FLOAT32 * 2 * width)
        yield Term("attention: the difference, normed", e * width, needed_by=("out_proj",))
        if rules.drops(self.out_dropout.p):
            yield Term("attention: dropout mask", MASK * d_model)

    def steps(self, position: Position, mask: Mask) -> Sequence[DrawnStep]:
        """From the three projections to the output."""
        steps = [self._projected("q_proj", self.n_heads), self._projected("k_proj", self.n_kv_heads), self._projected("v_proj", self.n_kv_heads)]  # fmt: skip
        q, k, v = 1, 2, 3

        def then(kind: str, label: str, *reads: int, path: str = "") -> int:
            """Adds a step; returns its number."""
            steps.append(DrawnStep(kind, label, path=path, reads=reads))
            return len(steps)

        if position.rotates:
            q = k = then("position", f"{type(position).__name__} rotates q, k", q, k)
        scores = then("op", f"scores  q · k / √{self.head_dim}", q, k)
        if position.biases_scores:
            scores = then("position", f"+ {type(position).__name__} bias", scores)
        scores = then("mask", f"mask: {type(mask).__name__}", scores)
        weights = then("op", "softmax", scores)
        gathered = then("op", "weights · v, v of two heads", weights, v)
        gathered = then("op", "first half of the heads less λ · second half", gathered)
        gathered = then("norm", "RMS over a pair's features", gathered)
        gathered = then("scale", f"× {1 - self.lambda_of.initial:.4g}", gathered)
        for part in ("inner_norm", "out_proj", "out_dropout"):
            gathered = then("part", part, gathered, path=part)
        return steps

    def _projected(self, name: str, n_heads: int) -> DrawnStep:
        return DrawnStep("part", name, f"{n_heads}×{self.head_dim}", name)


EPS = 1e-5
"""Of the norm, as DiffLlama's configuration has it."""
