"""Mixers that write by the delta rule: a token replaces what the state holds under its key, instead of adding to it."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.base.quantities import Count, Positive, Probability
from archlab.blocks.causal_conv import CausalConv
from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Position, Stream
from archlab.blocks.norm import MakeWidthNorm, RMSNorm, no_norm
from archlab.blocks.precision import at_least_float32, dtype_of_products, without_autocast
from archlab.blocks.recurrent import (
    CHUNKED,
    LOG_STEPS,
    OfTokens,
    Recurrence,
    Recurrent,
    bias_of_step,
    drawn_op,
    drawn_part,
    heads_of,
    joined,
    look_at_decay,
    look_at_state,
    of_heads,
    unit,
)
from archlab.blocks.roles import Role
from archlab.blocks.steps import DrawnStep


class DeltaRule(Recurrent):
    """o_t = q_t S_t with S_t = a_t (I - b_t k_t k_t^T) S_(t-1) + b_t k_t v_t^T, b_t = sigmoid(b_proj(x_t)), for each head.

    Queries, keys and values go through a causal convolution over a few tokens and a silu; then queries and keys are
    scaled to length 1, and queries by 1 / sqrt(key_dim), as flash-linear-attention does, which a norm of the output takes away
    but for its eps. Several consecutive heads share a key head where there are fewer of these.

    Source: arXiv:2412.06464, eq. 10.
    """

    def __init__(
        self,
        d_model: int,
        key_heads: int,
        heads: int,
        key_dim: int,
        value_dim: int,
        conv_size: int,
        eps: float,
        dropout: float,
        inner_norm: MakeWidthNorm,
        recurrence: Recurrence,
    ):
        super().__init__(heads * value_dim, d_model, False, dropout, inner_norm, recurrence)
        if key_dim > recurrence.most_key_dim:
            raise UserError(
                f"kernel=fla: its delta rule takes keys of at most {recurrence.most_key_dim} features, and these have"
                f" {key_dim}; use kernel=chunked or auto, or a smaller size.head_dim or mixer.key_dim"
            )
        self.key_heads, self.heads, self.key_dim, self.value_dim = key_heads, heads, key_dim, value_dim
        self.q_proj = nn.Linear(d_model, key_heads * key_dim, bias=False)
        self.k_proj = nn.Linear(d_model, key_heads * key_dim, bias=False)
        self.v_proj = nn.Linear(d_model, heads * value_dim, bias=False)
        self.b_proj = nn.Linear(d_model, heads, bias=False)
        self.conv_size = conv_size
        self.conv = CausalConv(2 * key_heads * key_dim + heads * value_dim, conv_size, bias=False)
        self.norm = RMSNorm(value_dim, eps)

    def mix(self, x: Stream, context: AttentionContext) -> Float[Tensor, "batch seq width"]:
        projected = [proj(x) for proj in (self.q_proj, self.k_proj, self.v_proj)]
        beta, log_decay, gate = of_heads(self.b_proj(x)).sigmoid(), self.log_decay(x), self.gate(x)
        to_convolve = torch.cat(projected, dim=-1)
        no_state = at_least_float32(x.new_zeros(x.shape[0], self.heads, self.key_dim, self.value_dim))
        (state,) = context.decode_state(self, no_state)
        convolved = self.conv(to_convolve, context)
        products = dtype_of_products(x)
        with without_autocast(x.device):
            parts = at_least_float32(F.silu(convolved)).split([part.shape[-1] for part in projected], dim=-1)
            q, k, v = (heads_of(part, n) for part, n in zip(parts, (self.key_heads, self.key_heads, self.heads), strict=True))  # fmt: skip
            q, k = unit(q) * self.key_dim**-0.5, unit(k)
            out, state = self.recurrence.delta_rule(q, k, v, beta, log_decay, state, products)
            context.keep(self, state)
            context.tap(self.taps, partial(self.look, state, log_decay))
            return gate(joined(self.norm(out)))

    @abstractmethod
    def log_decay(self, x: Stream) -> OfTokens:
        """The logarithms of a_t, float32."""

    @abstractmethod
    def gate(self, x: Stream) -> Callable[[Tensor], Tensor]:
        """What makes of the normed output, (batch, seq, width), what `out_proj` projects; its own products are the run's."""

    def drawn(self, position: Position) -> Iterator[DrawnStep]:
        yield from map(drawn_part, ("q_proj", "k_proj", "v_proj", "b_proj"))
        yield drawn_op(f"conv over {self.conv_size} tokens", 1, 2, 3)
        yield drawn_op("SiLU; q, k of length 1", 5)
        yield drawn_op("β = sigmoid", 4)
        yield from self.drawn_rule()

    @abstractmethod
    def drawn_rule(self) -> Iterator[DrawnStep]:
        """From the sixth step, queries, keys and values, and the seventh, β."""

    @staticmethod
    def look(state: Tensor, log_decay: Tensor) -> Mapping[str, Tensor]:
        """The root mean square of the last state."""
        return look_at_state(state)


def as_it_is(out: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq width"]:
    """The normed output, where nothing gates it."""
    return out


class DeltaNet(DeltaRule):
    """The delta rule without a decay: a_t is 1, so that S changes only under the keys that are written.

    S_t = (I - b_t k_t k_t^T) S_(t-1) + b_t k_t v_t^T, and each head's output is normed by its root mean square.

    Options:

    conv_size  tokens that the convolution spans
    eps        in the norm

    Source: arXiv:2406.06484, sec. 2 (the rule) and 3 (the block); arXiv:2102.11174, sec. 4.2.
    """

    taps = ("state_rms",)

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int,
        conv_size: Count = 4,
        eps: Positive = 1e-5,
        dropout: Probability = 0.0,
        inner_norm: MakeWidthNorm = no_norm,
        recurrence: Recurrence = CHUNKED,
    ):
        super().__init__(d_model, n_heads, n_heads, head_dim, head_dim, conv_size, eps, dropout, inner_norm, recurrence)

    def log_decay(self, x: Stream) -> OfTokens:
        return at_least_float32(x.new_zeros(1, self.heads, x.shape[1]))

    def gate(self, x: Stream) -> Callable[[Tensor], Tensor]:
        return as_it_is

    def drawn_rule(self) -> Iterator[DrawnStep]:
        yield drawn_op("S += β k (v - Sᵀ k)ᵀ", 6, 7)
        yield drawn_op("q S", 6, 8)
        yield drawn_part("norm", 9)


class GatedDeltaNet(DeltaRule):
    """The delta rule with a decay, a_t = exp(-exp(A_log) softplus(a_proj(x_t) + dt_bias)), and a gate, silu(g_proj(x_t)).

    The gate multiplies the normed output. Qwen3-Next has this block in three of four layers, with two heads to a key head.
    The paper's equations have no 1 / sqrt(key_dim), which changes nothing but the weight of the norm's eps. The decay rates exp(A_log) start evenly between 0 and 16, and the steps between 0.001 and
    0.1, evenly in their logarithm, as in flash-linear-attention; Hugging Face's Qwen3-Next starts dt_bias at 1.

    Options:

    key_heads  query and key heads; null: size.n_heads
    heads      value heads, a multiple of the key heads; null: as many
    key_dim    features of a query and of a key; null: size.head_dim
    value_dim  features of a value; null: size.head_dim, where the paper has twice the key's
    conv_size  tokens that the convolution spans
    eps        in the norm

    Source: arXiv:2412.06464, eq. 10 (the rule) and sec. 3.4 (the block); arXiv:2405.21060, sec. 7 (the decay's form).
    """

    taps = ("state_rms", "mean_decay")
    roles = {"A_log": Role.SCALAR, "dt_bias": Role.SCALAR}
    starts_within = {"A_log": (0.0, 16.0), "dt_bias": LOG_STEPS}
    starts_through = {"A_log": torch.log, "dt_bias": bias_of_step}

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int,
        key_heads: Count | None = None,
        heads: Count | None = None,
        key_dim: Count | None = None,
        value_dim: Count | None = None,
        conv_size: Count = 4,
        eps: Positive = 1e-6,
        dropout: Probability = 0.0,
        inner_norm: MakeWidthNorm = no_norm,
        recurrence: Recurrence = CHUNKED,
    ):
        key_heads = key_heads or n_heads
        heads = heads or key_heads
        if heads % key_heads:
            raise UserError(
                f"mixer.heads={heads}: is no multiple of the {key_heads} key heads, which several heads share evenly; use a"
                " multiple, or another mixer.key_heads"
            )
        key_dim, value_dim = key_dim or head_dim, value_dim or head_dim
        super().__init__(d_model, key_heads, heads, key_dim, value_dim, conv_size, eps, dropout, inner_norm, recurrence)
        self.a_proj = nn.Linear(d_model, heads, bias=False)
        self.g_proj = nn.Linear(d_model, heads * value_dim, bias=False)
        self.A_log = nn.Parameter(torch.linspace(1.0, 16.0, heads).log())
        self.dt_bias = nn.Parameter(bias_of_step(torch.linspace(*LOG_STEPS, heads)))

    def log_decay(self, x: Stream) -> OfTokens:
        rate = at_least_float32(self.A_log).exp()
        return -rate[:, None] * F.softplus(of_heads(self.a_proj(x)) + self.dt_bias[:, None])

    def gate(self, x: Stream) -> Callable[[Tensor], Tensor]:
        return partial(torch.mul, F.silu(at_least_float32(self.g_proj(x))))

    def drawn_rule(self) -> Iterator[DrawnStep]:
        yield drawn_part("a_proj")
        yield drawn_op("decay = exp(-A softplus(a + bias))", 8)
        yield drawn_op("S = decay S; S += β k (v - Sᵀ k)ᵀ", 6, 7, 9)
        yield drawn_op("q S", 6, 10)
        yield drawn_part("norm", 11)
        yield drawn_part("g_proj")
        yield drawn_op("SiLU", 13)
        yield DrawnStep("mul", "×", reads=(12, 14))

    @staticmethod
    def look(state: Tensor, log_decay: Tensor) -> Mapping[str, Tensor]:
        """The root mean square of the last state, and the mean share of a state that a token leaves."""
        return {**look_at_state(state), **look_at_decay(log_decay)}
