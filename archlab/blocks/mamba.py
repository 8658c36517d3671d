"""Mamba 2: a state space model whose step, input and output depend on the token."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.base.quantities import Count, Positive, Probability
from archlab.blocks.causal_conv import CausalConv
from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Position, Stream
from archlab.blocks.norm import MakeWidthNorm, no_norm
from archlab.blocks.precision import at_least_float32, dtype_of_products, without_autocast
from archlab.blocks.recurrent import (
    CHUNKED,
    LOG_STEPS,
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
)
from archlab.blocks.rms import rms_norm
from archlab.blocks.roles import Role
from archlab.blocks.steps import DrawnStep


class GroupedGatedNorm(nn.Module):
    """gain * y / sqrt(mean(y^2) + eps) with y = x * silu(gate), the mean over the features of each group alone.

    Source: `MambaRMSNormGated` of transformers.
    """

    def __init__(self, width: int, n_groups: int, eps: float):
        super().__init__()
        self.n_groups, self.eps = n_groups, eps
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch width"], gate: Float[Tensor, "*batch width"]) -> Tensor:
        gated = rearrange(x * F.silu(gate), "... (groups each) -> ... groups each", groups=self.n_groups)
        normed = rms_norm(gated, self.eps)
        return self.gain * rearrange(normed, "... groups each -> ... (groups each)")


class Mamba2(Recurrent):
    """out_proj(norm((S_t^T C_t + D x_t) * silu(z_t))), with S_t = exp(-exp(A_log) dt_t) S_(t-1) + dt_t B_t x_t^T.

    z, x, B, C and dt are one projection, in this order. x, B and C go through a causal convolution over a few tokens and
    a silu, and dt is softplus(dt + dt_bias). A head's A_log, dt_bias and D are one number each, so that its state decays
    as a whole. It has expand * size.n_heads heads of size.head_dim features. The decay rates exp(A_log) start evenly
    between 1 and 16, the steps between 0.001 and 0.1, evenly in their logarithm, D at 1.

    Options:

    expand     how many times size.n_heads heads it has
    state_dim  features of B and C, which are the rows of a head's state
    n_groups   how many B and C there are, each shared by as many heads; the norm is over each group's features
    conv_size  tokens that the convolution spans
    eps        in the norm

    Source: arXiv:2405.21060, listing 1 (the sum), sec. 7 (the block, groups); initial values and
    the norm after the gate as in mamba_ssm's released code.
    """

    taps = ("state_rms", "mean_decay")
    roles = {"A_log": Role.SCALAR, "dt_bias": Role.SCALAR, "D": Role.SCALAR}
    starts_within = {"A_log": (1.0, 16.0), "dt_bias": LOG_STEPS}
    starts_through = {"A_log": torch.log, "dt_bias": bias_of_step}

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int,
        expand: Count = 2,
        state_dim: Count = 128,
        n_groups: Count = 1,
        conv_size: Count = 4,
        eps: Positive = 1e-5,
        dropout: Probability = 0.0,
        inner_norm: MakeWidthNorm = no_norm,
        recurrence: Recurrence = CHUNKED,
    ):
        heads = expand * n_heads
        if heads % n_groups:
            raise UserError(
                f"mixer.n_groups={n_groups}: does not divide the {heads} heads, which are mixer.expand={expand} times"
                f" size.n_heads={n_heads}; use a divisor"
            )
        width, shared = heads * head_dim, n_groups * state_dim
        super().__init__(width, d_model, False, dropout, inner_norm, recurrence)
        self.n_heads, self.n_groups = heads, n_groups
        self.widths, self.inner_widths = (width, width + 2 * shared, heads), (width, shared, shared)
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False)
        self.conv_size = conv_size
        self.conv = CausalConv(width + 2 * shared, conv_size, bias=True)
        self.A_log = nn.Parameter(torch.linspace(1.0, 16.0, heads).log())
        self.dt_bias = nn.Parameter(bias_of_step(torch.linspace(*LOG_STEPS, heads)))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GroupedGatedNorm(width, n_groups, eps)

    def mix(self, x: Stream, context: AttentionContext) -> Float[Tensor, "batch seq width"]:
        gate, to_mix, dt = self.in_proj(x).split(self.widths, dim=-1)
        (state,) = context.decode_state(self, self.no_state(x))
        mixed = context.without_padding(
            F.silu(self.conv(to_mix, context))
        )  # the convolution's bias is there at padding too
        products = dtype_of_products(x)
        with without_autocast(x.device):
            gate, mixed = at_least_float32(gate), at_least_float32(mixed)
            v, k, q = (heads_of(part, n) for part, n in zip(mixed.split(self.inner_widths, dim=-1), (self.n_heads, self.n_groups, self.n_groups), strict=True))  # fmt: skip
            dt = F.softplus(of_heads(dt) + self.dt_bias[:, None])
            log_decay = -at_least_float32(self.A_log).exp()[:, None] * dt
            out, state = self.recurrence.gated_sum(q, k, dt[..., None] * v, log_decay, state, products)
            context.keep(self, state)
            context.tap(self.taps, partial(self.look, state, log_decay))
            return self.norm(joined(out + self.D[:, None, None] * v), gate)

    def no_state(self, x: Stream) -> Float[Tensor, "batch heads state_dim head_dim"]:
        """The state before the first token."""
        width, shared, _ = self.inner_widths
        zeros = x.new_zeros(x.shape[0], self.n_heads, shared // self.n_groups, width // self.n_heads)
        return at_least_float32(zeros)

    def drawn(self, position: Position) -> Iterator[DrawnStep]:
        yield drawn_part("in_proj")
        yield drawn_op(f"conv of x, B, C over {self.conv_size} tokens", 1)
        yield drawn_op("SiLU", 2)
        yield drawn_op("Δ = softplus(dt + bias)", 1)
        yield drawn_op("S = exp(-Δ A) S + Δ B xᵀ", 3, 4)
        yield drawn_op("C S + D x", 5, 3)
        yield drawn_op("× SiLU(z), RMS norm", 6, 1)

    @staticmethod
    def look(state: Tensor, log_decay: Tensor) -> Mapping[str, Tensor]:
        """The root mean square of the last state, and the mean share of a state that a token leaves."""
        return {**look_at_state(state), **look_at_decay(log_decay)}
