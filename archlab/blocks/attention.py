"""Attention: each position gathers, by content, from the positions it may attend to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.base.quantities import Count, Literal, Positive, Probability
from archlab.blocks.activations import FLOAT32, MASK, Accounting, Term
from archlab.blocks.attention_parts import (
    FIRST_VALUES,
    ON_REQUEST,
    ForgetGate,
    LogLength,
    OutputGate,
    PerHeadNorm,
    QueryKeyFactors,
    Temperature,
    ValueResidual,
    as_shares,
    as_they_are,
    leave_values,
    multiply,
    seen_of,
    without_context,
    without_gate,
    without_own_bias,
)
from archlab.blocks.causal_conv import Canon, CausalConv
from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Mask, Mixer, Norm, Position, Stream
from archlab.blocks.kernel import (
    Kernel,
    MakeWeighingKernel,
    explicit_kernel,
    explicit_scores,
    explicit_whatever_asks,
    keeps_weights,
)
from archlab.blocks.norm import LayerNorm, MakeWidthNorm, RMSNorm, check_width_norm, no_norm
from archlab.blocks.softcap import Softcap, leave, make_softcap
from archlab.blocks.steps import DrawnStep
from archlab.blocks.weighing import SinkSoftmax, Weigh, sigmoid, softmax

Split = Callable[[Tensor], Tensor]


def norm_then_split(norm: nn.Module, split: Split, x: Tensor) -> Tensor:
    """`qk_norm=width`: norms the features of all heads together."""
    return split(norm(x))


def split_then_norm(norm: nn.Module, split: Split, x: Tensor) -> Tensor:
    """`qk_norm=head`, or none: norms the features of each head."""
    return norm(split(x))


QK_NORM_KINDS: dict[str, MakeWidthNorm] = {
    "rms": RMSNorm,
    "layer": LayerNorm,
    "layer_no_shift": partial(LayerNorm, shift=False),
    "rms_no_gain": partial(RMSNorm, affine=False),
}
"""Norms of queries and keys, by what `qk_norm_kind` says where they are not of the model's own kind."""


class Attention(Mixer):
    """softmax(q k^T / sqrt(head_dim) + bias) v per head, over the keys each query may attend to, projected to d_model.

    Consecutive query heads share a key-value head where there are fewer key-value heads than query heads.

    Options:

    kernel      computes the attention where there is no softcap
    capped_kernel  makes the one that computes it where there is
    packed_kernel  computes it in a pack of models, where there is none
    qkv_bias    whether the query, key and value projections have a bias
    out_bias    whether the output projection has one
    qk_norm     norms queries and keys before they are rotated: `head` over the features of each head, with one gain that
                the heads share (Qwen3, Gemma 3, Phi); `each_head` the same with a gain of its own for each head (Command R+,
                StableLM 2); `width` over the features of all heads together (OLMo 2)
    qk_norm_kind
                which norm that is: the `model`'s own, or `rms`, `layer`, `layer_no_shift`, `rms_no_gain` (Llama 4)
    qk_norm_eps the eps of a norm that is not the model's own; left out it is that of its class
    qk_factors  multiplies queries and keys, when they have been normed and rotated, by a learned factor for each head and
                feature (nGPT)
    gate        multiplies what the heads gathered by a sigmoid of a projection of the input: `elementwise` a factor for each
                feature (Qwen3-Next), `head` one for each head; the projection has a bias where `qkv_bias` says so
    sinks       adds a learned sink for each head to the softmax's denominator (gpt-oss)
    weighting   makes weights of scores: `softmax`; `scalable_softmax`, of scores times s log n with a learned s for each
                head; `sigmoid`, of each score alone, less log n. n is the number of keys the query may attend to
    forget      adds to a score the sum of the log forget gates between key and query, one gate for each head
    temperature, temperature_every
                multiplies the query after p others by 1 + temperature * log(1 + floor((p + 1) / temperature_every)), so that
                far into a long sequence the weights are sharper (Llama 4's layers without positions)
    value_residual
                adds the first layer's values to those of every later layer, by two learned factors
    conv        width of a causal convolution of each channel of queries, keys and values along the sequence
    conv_residual
                adds queries, keys and values to what the convolution makes of them: a Canon layer B (arXiv:2512.17351;
                `canonB` of the released LlamaCanonAttention)
    scale       the factor on q k^T, in the place of 1 / sqrt(head_dim): a number (Gemma 2), or `sqrt_head_dim`, for queries
                and keys of length 1 (nGPT)
    clip        clamps queries, keys and values to within +-clip, after the norms of queries and keys (OLMo, MPT: clip_qkv)
    softcap     soft-caps the scores to within +-softcap, before the bias (Gemma 2)
    dropout     a probability, of the weights and of the output
    norm        makes the norms of `qk_norm`
    inner_norm  makes a norm of the input of `out_proj`, where the residual scheme asks for one
    weighing_kernel
                makes the kernel where sinks, sigmoid weights or forget gates are asked for, which no fused kernel computes
    depth       which layer it is in; of `value_residual` the first layer leaves values and the later ones add them

    Source: arXiv:1706.03762, eq. 1; arXiv:2302.05442, "QK Normalization" (qk_norm); arXiv:2408.00118, sec. 2 (softcap).
    `archlab.blocks.attention_parts` and `archlab.blocks.weighing` have the sources of the others.
    """

    honours = frozenset({"rotation", "bias", "mask", "padding"})
    taps: tuple[str, ...] = ("attention_entropy", "max_score")
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
        qk_norm: Literal["none", "head", "each_head", "width"] = "none",
        qk_factors: bool = False,
        qk_norm_kind: Literal["model", "rms", "layer", "layer_no_shift", "rms_no_gain"] = "model",
        qk_norm_eps: Positive | None = None,
        gate: Literal["none", "elementwise", "head"] = "none",
        sinks: bool = False,
        weighting: Literal["softmax", "scalable_softmax", "sigmoid"] = "softmax",
        forget: bool = False,
        temperature: Positive | None = None,
        temperature_every: Count | None = None,
        value_residual: bool = False,
        conv: Annotated[Count, Ge(2)] | None = None,
        conv_residual: bool = False,
        clip: Positive | None = None,
        scale: Positive | Literal["sqrt_head_dim"] | None = None,
        softcap: Positive | None = None,
        dropout: Probability = 0.0,
        norm: MakeWidthNorm = RMSNorm,
        inner_norm: MakeWidthNorm = no_norm,
        capped_kernel: Callable[[Softcap], Kernel] = explicit_kernel,
        packed_kernel: Kernel | None = None,
        weighing_kernel: MakeWeighingKernel = explicit_whatever_asks,
        depth: int = 0,
    ):
        super().__init__()
        check_options(qk_norm, qk_norm_kind, sinks, weighting, conv, conv_residual)
        check_eps(qk_norm_kind, qk_norm_eps)
        check_temperature(temperature, temperature_every)
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, n_heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(n_heads * head_dim, d_model, bias=out_bias)
        self.out_dropout = nn.Dropout(dropout)
        self.inner_norm = inner_norm(d_model=n_heads * head_dim)
        per_head = qk_norm in ("head", "each_head")
        make_norm = no_norm if qk_norm == "none" else make_qk_norm(norm, qk_norm_kind, qk_norm_eps)
        check_width_norm(f"mixer.qk_norm={qk_norm}", make_norm(d_model=head_dim))
        if qk_norm == "each_head":
            check_gains(make_norm(d_model=head_dim))
            self.q_norm: nn.Module = PerHeadNorm(make_norm, n_heads, head_dim)
            self.k_norm: nn.Module = PerHeadNorm(make_norm, n_kv_heads, head_dim)
        else:
            self.q_norm = make_norm(d_model=head_dim if per_head else n_heads * head_dim)
            self.k_norm = make_norm(d_model=head_dim if per_head else n_kv_heads * head_dim)
        self.norm_and_split = split_then_norm if per_head else norm_then_split
        self.scale, self.softcap, self.conv = scale_of_scores(scale, head_dim), softcap, conv
        self.rescale = leave if scale is None else partial(multiply, by=self.scale * head_dim**0.5)
        self.factors = QueryKeyFactors(n_heads, head_dim, d_model) if qk_factors else leave
        self.clip_value = clip
        self.clip = leave if clip is None else partial(torch.clamp, min=-clip, max=clip)
        widths = (n_heads * head_dim, n_kv_heads * head_dim, n_kv_heads * head_dim)
        make_conv = Canon if conv_residual else CausalConv
        self.q_conv, self.k_conv, self.v_conv = (make_conv(w, conv) if conv else without_context for w in widths)
        per_gate = {"none": 0, "elementwise": head_dim, "head": 1}[gate]
        self.gate = OutputGate(d_model, n_heads, per_gate, qkv_bias) if per_gate else without_gate
        self.own_bias = ForgetGate(d_model, n_heads) if forget else without_own_bias
        self.sharpen = LogLength(n_heads) if weighting == "scalable_softmax" else without_context
        self.tune = (
            Temperature(temperature, temperature_every) if temperature and temperature_every else without_context
        )
        self.mix_values: Callable[[Tensor, AttentionContext], Tensor] = without_context
        if value_residual:
            shared = {FIRST_VALUES: (n_kv_heads, head_dim)}
            self.gives, self.needs = ({}, shared) if depth else (shared, {})
            self.mix_values = ValueResidual() if depth else leave_values
        self.weigh: Weigh = SinkSoftmax(n_heads) if sinks else sigmoid if weighting == "sigmoid" else softmax
        self.shares = as_shares if weighting == "sigmoid" else as_they_are
        self.cap = make_softcap(softcap)
        asked = {
            "mixer.sinks=true": sinks,
            "mixer.weighting=sigmoid": weighting == "sigmoid",
            "mixer.forget=true": forget,
        }
        beyond_fused = next((option for option, there in asked.items() if there), None)
        if beyond_fused:
            self.kernel = weighing_kernel(self.cap, self.weigh, beyond_fused)
        else:
            self.kernel = capped_kernel(self.cap) if softcap else kernel
        fused = None if softcap or beyond_fused else packed_kernel
        self.packed_kernel = fused or explicit_kernel(self.cap, self.weigh)
        if weighting == "sigmoid":
            self.taps = ("max_score",)

    @staticmethod
    def admits(n_heads: int, n_kv_heads: int) -> bool:
        return n_heads % n_kv_heads == 0

    def forward(self, x: Stream, context: AttentionContext) -> Stream:
        q, k = self.queries_and_keys(x, context)
        v = self.mix_values(self.clip(self.heads(self.v_conv(self.v_proj(x), context))), context)
        biased = self.own_bias(x, context)
        context.tap((*self.taps, *self.on_request), partial(self.look, q, k, biased))
        k, v = context.with_cached(self, k, v)
        gathered = self.kernel(q, k, v, biased, self.dropout * self.training)
        # batch seq (heads head_dim); as torch has it, since einops is slower
        joined = gathered.transpose(1, 2).flatten(2)
        return self.out_dropout(self.out_proj(self.inner_norm(self.gate(joined, x))))

    def queries_and_keys(self, x: Stream, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """(batch, heads, seq, head_dim) and (batch, kv_heads, seq, head_dim), normed and rotated."""
        q = self.clip(self.norm_and_split(self.q_norm, self.heads, self.q_conv(self.q_proj(x), context)))
        k = self.clip(self.norm_and_split(self.k_norm, self.heads, self.k_conv(self.k_proj(x), context)))
        q = self.factors(self.rescale(context.rotate_queries(q)))
        return self.tune(self.sharpen(q, context), context), context.rotate_keys(k)

    def look(self, q: Tensor, k: Tensor, context: AttentionContext) -> Mapping[str, Tensor]:
        """What `seen_of` says of the first sequence's last block of queries."""
        *_, block = context.of_first().blocks()
        scores = explicit_scores(q[:1], k[:1], block, self.cap)
        return seen_of(scores, self.weigh(scores, block), block, self.shares)

    def heads(self, x: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch some_heads seq head_dim"]:
        """(batch, seq, heads * head_dim) -> (batch, heads, seq, head_dim)."""
        return x.reshape(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def for_packs(self) -> None:
        """Takes a kernel with a rule for `torch.vmap`: fused, but for `kernel=dense` and what no fused kernel computes."""
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
        if self.conv:
            yield Term("attention: queries, keys, values before their convolution", e * (q_width + 2 * kv_width))
        if any(isinstance(norm, (Norm, PerHeadNorm)) for norm in (self.q_norm, self.k_norm)):
            yield Term("attention: queries and keys before their norm", e * (q_width + kv_width))
        if isinstance(self.factors, QueryKeyFactors):
            yield Term("attention: queries before their factors", e * q_width)
        if self.clip_value:
            yield Term("attention: queries, keys, values before they are clamped", e * (q_width + 2 * kv_width))
        if isinstance(self.sharpen, LogLength):
            yield Term("attention: queries before s log n", e * q_width)
        if isinstance(self.mix_values, ValueResidual):
            yield Term("attention: values before the first layer's are added", e * kv_width)
        if isinstance(self.own_bias, ForgetGate):
            yield Term("attention: forget gates", FLOAT32 * self.n_heads)
        if rules.flash and not keeps_weights(self.kernel):
            yield Term("attention: queries, keys, values", e * (q_width + 2 * kv_width))
            yield Term("attention: sums of exponentials", FLOAT32 * self.n_heads)
            yield Term("attention: what the heads gather", e * q_width)
        else:
            # Each head's products are made with its own copy of the keys and values that it shares with others.
            yield Term("attention: queries, keys, values", e * 3 * q_width)
            yield from self._kept_of_scores(rules)
            needed_by = None if isinstance(self.gate, OutputGate) else ("out_proj",)
            yield Term("attention: what the heads gather", e * q_width, needed_by=needed_by)
        if isinstance(self.gate, OutputGate):
            yield Term("attention: output gate", e * self.gate.proj.out_features)
            yield Term("attention: what the heads gather, gated", e * q_width, needed_by=("out_proj",))
        if rules.drops(self.out_dropout.p):
            yield Term("attention: dropout mask", MASK * d_model)

    def _kept_of_scores(self, rules: Accounting) -> Iterator[Term]:
        """What unfused attention keeps for each query and key."""
        if self.softcap:
            yield Term("attention: scores under the cap", pair=rules.e * self.n_heads)
        if isinstance(self.own_bias, ForgetGate):
            yield Term("attention: sums of log forget gates", pair=FLOAT32 * self.n_heads)
        sink = rules.e * self.n_heads if isinstance(self.weigh, SinkSoftmax) else 0
        yield Term("attention: weights", token=sink, pair=rules.e * self.n_heads)
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

        if self.conv:
            label = f"+ conv {self.conv}" if isinstance(self.q_conv, Canon) else f"conv {self.conv}"
            q, k, v = (then(DrawnStep("op", label, path=f"{name}_conv", reads=(n,))) for name, n in zip("qkv", (q, k, v), strict=True))  # fmt: skip
        if self.clip_value:
            v = then(DrawnStep("op", f"clamp ±{self.clip_value:g}", reads=(v,)))
        if self.mix_values is not without_context:
            v = then(DrawnStep("op", "+ layer 0's", reads=(v,)))
        if isinstance(self.q_norm, PerHeadNorm):
            q, k = (
                then(DrawnStep("norm", "by head", path=f"{name}_norm", reads=(n,))) for name, n in (("q", q), ("k", k))
            )
        elif isinstance(self.q_norm, Norm):
            q, k = then(DrawnStep("part", "q_norm", path="q_norm", reads=(q,))), then(DrawnStep("part", "k_norm", path="k_norm", reads=(k,)))  # fmt: skip
        if self.clip_value:
            q, k = (then(DrawnStep("op", f"clamp ±{self.clip_value:g}", reads=(n,))) for n in (q, k))
        if position.rotates:
            q = k = then(DrawnStep("position", f"{type(position).__name__} rotates q, k", reads=(q, k)))
        if isinstance(self.factors, QueryKeyFactors):
            q = then(DrawnStep("op", "× s²", path="factors", reads=(q,)))
        if isinstance(self.sharpen, LogLength):
            q = then(DrawnStep("op", "× s ln n", path="sharpen", reads=(q,)))
        if isinstance(self.tune, Temperature):
            q = then(DrawnStep("op", f"× {self.tune.formula}", path="tune", reads=(q,)))
        factor = f"× {self.scale:.4g}" if self.scale != self.head_dim**-0.5 else f"/ √{self.head_dim}"
        scores = then(DrawnStep("op", f"scores  q · k {factor}", reads=(q, k)))
        if self.softcap:
            scores = then(DrawnStep("op", f"softcap ±{self.softcap:g}", reads=(scores,)))
        if position.biases_scores:
            scores = then(DrawnStep("position", f"+ {type(position).__name__} bias", reads=(scores,)))
        if isinstance(self.own_bias, ForgetGate):
            scores = then(DrawnStep("op", "+ sums of log forget gates", path="own_bias", reads=(scores, 0)))
        scores = then(DrawnStep("mask", f"mask: {type(mask).__name__}", reads=(scores,)))
        weighed = "softmax, with a sink" if isinstance(self.weigh, SinkSoftmax) else self.weigh.__name__
        weights = then(DrawnStep("op", weighed, reads=(scores,)))
        gathered = then(DrawnStep("op", "weights · v", reads=(weights, v)))
        if isinstance(self.gate, OutputGate):
            gathered = then(DrawnStep("op", "× sigmoid gate", path="gate", reads=(gathered, 0)))
        for part in ("inner_norm", "out_proj", "out_dropout"):
            gathered = then(DrawnStep("part", part, path=part, reads=(gathered,)))
        return steps

    def _projected(self, name: str, n_heads: int) -> DrawnStep:
        return DrawnStep("part", name, f"{n_heads}×{self.head_dim}", name)


def scale_of_scores(scale: float | str | None, head_dim: int) -> float:
    """The factor on q k^T: a number, sqrt(head_dim) by that name, or 1 / sqrt(head_dim) for None."""
    return scale if isinstance(scale, float | int) else head_dim ** (-0.5 if scale is None else 0.5)


def check_options(
    qk_norm: str, qk_norm_kind: str, sinks: bool, weighting: str, conv: int | None, conv_residual: bool
) -> None:
    """Raises UserError where an option asks for what another leaves out."""
    if qk_norm == "none" and qk_norm_kind != "model":
        raise UserError(
            f"mixer.qk_norm_kind={qk_norm_kind}: changes nothing under mixer.qk_norm=none, which norms no queries and keys;"
            " leave it out, or use mixer.qk_norm=head, each_head or width"
        )
    if conv_residual and conv is None:
        raise UserError(
            "mixer.conv_residual=true: changes nothing under mixer.conv=null, which convolves nothing; leave it out, or use"
            " mixer.conv=4"
        )
    if sinks and weighting == "sigmoid":
        raise UserError(
            "mixer.sinks=true: a sink is a term of a softmax's denominator, and mixer.weighting=sigmoid has none; use one of"
            " the two"
        )


def make_qk_norm(norm: MakeWidthNorm, kind: str, eps: float | None) -> MakeWidthNorm:
    """Makes norms of this kind, with this eps where it is given."""
    if kind == "model":
        return norm
    return QK_NORM_KINDS[kind] if eps is None else partial(QK_NORM_KINDS[kind], eps=eps)


def check_eps(kind: str, eps: float | None) -> None:
    """Raises UserError where the eps would change nothing."""
    if kind == "model" and eps is not None:
        raise UserError(
            f"mixer.qk_norm_eps={eps:g}: changes nothing under mixer.qk_norm_kind=model, whose eps is norm.eps; leave it out, or"
            " use another kind, such as mixer.qk_norm_kind=rms"
        )


def check_temperature(temperature: float | None, every: int | None) -> None:
    """Raises UserError where one of the two is given without the other."""
    if temperature is None and every is not None:
        raise UserError(
            f"mixer.temperature_every={every}: changes nothing under mixer.temperature=null; leave it out, or give"
            " mixer.temperature=0.1"
        )
    if temperature is not None and every is None:
        raise UserError(
            f"mixer.temperature={temperature:g}: needs mixer.temperature_every, by how many tokens queries get sharper in steps;"
            " give it, such as mixer.temperature_every=8192"
        )


def check_gains(norm: nn.Module) -> None:
    """Raises UserError where the norm has nothing that each head could have of its own."""
    if not any(True for _ in norm.parameters()):
        raise UserError(
            f"mixer.qk_norm=each_head: differs from head in the gains alone, and {type(norm).__name__} with these options has"
            " none; use mixer.qk_norm=head, or mixer.qk_norm_kind=rms"
        )


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
