"""Attention: each position gathers, by content, from the positions it may attend to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.quantities import Literal, Positive, Probability
from archlab.blocks.activations import FLOAT32, MASK, Accounting, Term
from archlab.blocks.context import AttentionContext, QueryBlock
from archlab.blocks.contracts import Mask, Mixer, Norm, Position, Stream
from archlab.blocks.kernel import Kernel, explicit_kernel, explicit_scores
from archlab.blocks.norm import MakeWidthNorm, RMSNorm, check_width_norm, no_norm
from archlab.blocks.softcap import Softcap, leave, make_softcap
from archlab.blocks.steps import DrawnStep

Split = Callable[[Tensor], Tensor]


def norm_then_split(norm: nn.Module, split: Split, x: Tensor) -> Tensor:
    """`qk_norm=width`: norms the features of all heads together."""
    return split(norm(x))


def split_then_norm(norm: nn.Module, split: Split, x: Tensor) -> Tensor:
    """`qk_norm=head`, or none: norms the features of each head."""
    return norm(split(x))


def multiply(x: Tensor, by: float) -> Tensor:
    """by * x."""
    return by * x


class Attention(Mixer):
    """softmax(q k^T / sqrt(head_dim) + bias) v per head, over the keys each query may attend to, projected to d_model.

    Consecutive query heads share a key-value head where there are fewer key-value heads than query heads.

    Options:

    kernel      computes the attention where there is no softcap
    capped_kernel  makes the one that computes it where there is
    packed_kernel  computes it in a pack of models, where there is none
    qkv_bias    whether the query, key and value projections have a bias
    out_bias    whether the output projection has one
    qk_norm     norms queries and keys before they are rotated: `head` over the features of each head (Qwen3, Gemma 3),
                `width` over those of all heads together (OLMo 2)
    scale       the factor on q k^T, in the place of 1 / sqrt(head_dim) (Gemma 2)
    softcap     soft-caps the scores to within +-softcap, before the bias (Gemma 2)
    dropout     a probability, of the weights and of the output
    norm        makes the norms of `qk_norm`
    inner_norm  makes a norm of the input of `out_proj`, where the residual scheme asks for one

    Source: arXiv:1706.03762, eq. 1; arXiv:2302.05442, "QK Normalization" (qk_norm); arXiv:2408.00118, sec. 2 (softcap).
    """

    honours = frozenset({"rotation", "bias", "mask", "padding"})
    taps = ("attention_entropy", "max_score")
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
        qk_norm: Literal["none", "head", "width"] = "none",
        scale: Positive | None = None,
        softcap: Positive | None = None,
        dropout: Probability = 0.0,
        norm: MakeWidthNorm = RMSNorm,
        inner_norm: MakeWidthNorm = no_norm,
        capped_kernel: Callable[[Softcap], Kernel] = explicit_kernel,
        packed_kernel: Kernel | None = None,
    ):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, n_heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(n_heads * head_dim, d_model, bias=out_bias)
        self.out_dropout = nn.Dropout(dropout)
        self.inner_norm = inner_norm(d_model=n_heads * head_dim)
        make_norm, per_head = no_norm if qk_norm == "none" else norm, qk_norm == "head"
        check_width_norm(f"mixer.qk_norm={qk_norm}", make_norm(d_model=head_dim))
        self.q_norm = make_norm(d_model=head_dim if per_head else n_heads * head_dim)
        self.k_norm = make_norm(d_model=head_dim if per_head else n_kv_heads * head_dim)
        self.norm_and_split = split_then_norm if per_head else norm_then_split
        self.rescale = leave if scale is None else partial(multiply, by=scale * head_dim**0.5)
        self.scale, self.softcap = head_dim**-0.5 if scale is None else scale, softcap
        self.cap = make_softcap(softcap)
        self.kernel = capped_kernel(self.cap) if softcap else kernel
        self.packed_kernel = explicit_kernel(self.cap) if softcap or packed_kernel is None else packed_kernel

    @staticmethod
    def admits(n_heads: int, n_kv_heads: int) -> bool:
        return n_heads % n_kv_heads == 0

    def forward(self, x: Stream, context: AttentionContext) -> Stream:
        q, k = self.queries_and_keys(x, context)
        context.tap(self.taps, partial(self.look, q, k, context))
        k, v = context.with_cached(self, k, self.heads(self.v_proj(x)))
        gathered = self.kernel(q, k, v, context, self.dropout * self.training)
        joined = gathered.transpose(1, 2).flatten(
            2
        )  # batch seq (heads head_dim); as torch has it, since einops is slower
        return self.out_dropout(self.out_proj(self.inner_norm(joined)))

    def queries_and_keys(self, x: Stream, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """(batch, heads, seq, head_dim) and (batch, kv_heads, seq, head_dim), normed and rotated."""
        q = self.norm_and_split(self.q_norm, self.heads, self.q_proj(x))
        k = self.norm_and_split(self.k_norm, self.heads, self.k_proj(x))
        return self.rescale(context.rotate_queries(q)), context.rotate_keys(k)

    def scores(self, x: Stream, context: AttentionContext, block: QueryBlock) -> Float[Tensor, "batch heads query key"]:
        """The scores of a block of queries, bias included, as the softmax takes them; float32, -inf where a key is masked."""
        q, k = self.queries_and_keys(x, context)
        return explicit_scores(q, k, block, self.cap)

    def look(self, q: Tensor, k: Tensor, context: AttentionContext) -> Mapping[str, Tensor]:
        """The mean entropy of the weights, nats, and the largest score: of the first sequence's last block of queries."""
        *_, block = context.of_first().blocks()
        scores = explicit_scores(q[:1], k[:1], block, self.cap)
        entropy = torch.special.entr(scores.softmax(dim=-1)).sum(dim=-1).mean()
        return {"attention_entropy": entropy, "max_score": scores.amax()}

    def heads(self, x: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch some_heads seq head_dim"]:
        """(batch, seq, heads * head_dim) -> (batch, heads, seq, head_dim)."""
        return x.reshape(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def for_packs(self) -> None:
        """Takes a kernel with a rule for `torch.vmap`: fused, but for `kernel=dense` and soft-capped scores."""
        self.kernel = self.packed_kernel

    # ------------------------------------------------------------ what it says of itself

    @property
    def summary(self) -> str:
        sizes = f"heads {self.n_heads}, kv_heads {self.n_kv_heads}, head_dim {self.head_dim}"
        return f"{type(self).__name__}, {sizes}"

    def saved_activations(self, rules: Accounting) -> Iterator[Term]:
        """Source: arXiv:2205.05198, sec. 4.1; arXiv:2205.14135, sec. 3.1 (what FlashAttention keeps)."""
        e, d_model = rules.e, self.out_proj.out_features
        q_width, kv_width = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        yield Term("attention: input", e * d_model, needed_by=("q_proj", "k_proj", "v_proj"), branch_input=True)
        if any(isinstance(norm, Norm) for norm in (self.q_norm, self.k_norm)):
            yield Term("attention: queries and keys before their norm", e * (q_width + kv_width))
        if rules.flash:
            yield Term("attention: queries, keys, values", e * (q_width + 2 * kv_width))
            yield Term("attention: sums of exponentials", FLOAT32 * self.n_heads)
            yield Term("attention: what the heads gather", e * q_width)
        else:
            # Each head's products are made with its own copy of the keys and values that it shares with others.
            yield Term("attention: queries, keys, values", e * 3 * q_width)
            yield from self._kept_of_scores(rules)
            yield Term("attention: what the heads gather", e * q_width, needed_by=("out_proj",))
        if rules.drops(self.out_dropout.p):
            yield Term("attention: dropout mask", MASK * d_model)

    def _kept_of_scores(self, rules: Accounting) -> Iterator[Term]:
        """What unfused attention keeps for each query and key."""
        if self.softcap:
            yield Term("attention: scores under the cap", pair=rules.e * self.n_heads)
        yield Term("attention: weights", pair=rules.e * self.n_heads)
        if rules.drops(self.dropout):
            yield Term("attention: dropout mask of the weights", pair=MASK * self.n_heads)
            yield Term("attention: weights after dropout", pair=rules.e * self.n_heads)

    def steps(self, position: Position, mask: Mask) -> Sequence[DrawnStep]:
        """From the three projections to the output; what acts on queries, keys and scores stands in its order."""
        steps = [self._projected("q_proj", self.n_heads), self._projected("k_proj", self.n_kv_heads), self._projected("v_proj", self.n_kv_heads)]  # fmt: skip
        q, k, v = 1, 2, 3

        def then(step: DrawnStep) -> int:
            """Adds a step; returns its number."""
            steps.append(step)
            return len(steps)

        if isinstance(self.q_norm, Norm):
            q, k = then(DrawnStep("part", "q_norm", path="q_norm", reads=(q,))), then(DrawnStep("part", "k_norm", path="k_norm", reads=(k,)))  # fmt: skip
        if position.rotates:
            q = k = then(DrawnStep("position", f"{type(position).__name__} rotates q, k", reads=(q, k)))
        factor = f"× {self.scale:.4g}" if self.scale != self.head_dim**-0.5 else f"/ √{self.head_dim}"
        scores = then(DrawnStep("op", f"scores  q · k {factor}", reads=(q, k)))
        if self.softcap:
            scores = then(DrawnStep("op", f"softcap ±{self.softcap:g}", reads=(scores,)))
        if position.biases_scores:
            scores = then(DrawnStep("position", f"+ {type(position).__name__} bias", reads=(scores,)))
        scores = then(DrawnStep("mask", f"mask: {type(mask).__name__}", reads=(scores,)))
        weights = then(DrawnStep("op", "softmax", reads=(scores,)))
        gathered = then(DrawnStep("op", "weights · v", reads=(weights, v)))
        for part in ("inner_norm", "out_proj", "out_dropout"):
            gathered = then(DrawnStep("part", part, path=part, reads=(gathered,)))
        return steps

    def _projected(self, name: str, n_heads: int) -> DrawnStep:
        return DrawnStep("part", name, f"{n_heads}×{self.head_dim}", name)


class MultiHead(Attention):
    """A key-value head for each query head. Source: arXiv:1706.03762, sec. 3.2.2."""

    @staticmethod
    def admits(n_heads: int, n_kv_heads: int) -> bool:
        return n_kv_heads == n_heads


class GroupedQuery(Attention):
    """Groups of query heads share a key-value head; pairs, unless `n_kv_heads` is given. Source: arXiv:2305.13245, sec. 2.2."""

    @staticmethod
    def default_kv_heads(n_heads: int) -> int:
        return max(1, n_heads // 2)


class MultiQuery(Attention):
    """One key-value head for all query heads. Source: arXiv:1911.02150, sec. 3."""

    @staticmethod
    def default_kv_heads(n_heads: int) -> int:
        return 1

    @staticmethod
    def admits(n_heads: int, n_kv_heads: int) -> bool:
        return n_kv_heads == 1
