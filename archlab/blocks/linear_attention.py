"""Attention without a softmax, as a sum that each token adds to: linear attention, and retention, which decays."""

import math
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.quantities import Count, Positive, Probability
from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Position, Stream
from archlab.blocks.norm import LayerNorm, MakeWidthNorm, no_norm
from archlab.blocks.precision import at_least_float32, dtype_of_products, without_autocast
from archlab.blocks.recurrent import (
    CHUNKED,
    Recurrence,
    Recurrent,
    drawn_op,
    drawn_part,
    heads_of,
    joined,
    look_at_state,
)
from archlab.blocks.steps import DrawnStep


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1. Written out, since torch 2.13 cannot compile the gradient of elu where heads are split after it."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


class LinearAttention(Recurrent):
    """phi(q) S / (phi(q) z + eps), S and z the sums over the tokens so far of phi(k) v^T and of phi(k); phi = elu + 1.

    The weights phi(q) phi(k) are positive, and sum to 1 but for eps. Nothing is rotated: a rotated phi is not positive.
    `eps` is added to what the sums are divided by, as in the released code. The state is S and z: heads x head_dim x
    (head_dim + 1) numbers. Source: arXiv:2006.16236, eq. 7 (phi), eq. 18 to 20 (the recurrent form).
    """

    taps = ("state_rms",)

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int,
        eps: Positive = 1e-6,
        dropout: Probability = 0.0,
        inner_norm: MakeWidthNorm = no_norm,
        recurrence: Recurrence = CHUNKED,
    ):
        width = n_heads * head_dim
        super().__init__(width, d_model, False, dropout, inner_norm, recurrence)
        self.n_heads, self.eps = n_heads, eps
        self.q_proj = nn.Linear(d_model, width, bias=False)
        self.k_proj = nn.Linear(d_model, width, bias=False)
        self.v_proj = nn.Linear(d_model, width, bias=False)

    def mix(self, x: Stream, context: AttentionContext) -> Float[Tensor, "batch seq width"]:
        q, k, v = (at_least_float32(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        products = dtype_of_products(x)
        with without_autocast(x.device):
            q, k = elu_plus_one(q), context.without_padding(elu_plus_one(k))
            q, k, v = (heads_of(projected, self.n_heads) for projected in (q, k, v))
            v = F.pad(v, (0, 1), value=1.0)  # a column of ones: its sum is z
            (state,) = context.decode_state(self, k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]))
            log_decay = k.new_zeros(1, *k.shape[1:3])
            out, state = self.recurrence.gated_sum(q, k, v, log_decay, state, products)
            context.keep(self, state)
            context.tap(self.taps, partial(look_at_state, state))
            return joined(out[..., :-1] / (out[..., -1:] + self.eps))

    def drawn(self, position: Position) -> Iterator[DrawnStep]:
        yield from map(drawn_part, ("q_proj", "k_proj", "v_proj"))
        yield drawn_op("φ = elu + 1, of q and k", 1, 2)
        yield drawn_op("S += φ(k) vᵀ, z += φ(k)", 4, 3)
        yield drawn_op("φ(q) S / φ(q) z", 4, 5)


class RetNet(Recurrent):
    """Retention: silu(x W_g) * norm(q S), with S_t = gamma S_(t-1) + k_t v_t^T and a fixed decay gamma for each head.

    Head h of n decays by gamma = 1 - 2^(-5 - h), h from 0. Queries and keys are rotated as the position scheme says; the
    paper's e^(i n theta) is pos=rope, whose powers of the base are 2i/d, where the released code spaces its own evenly up to the base
    itself. Keys are divided by sqrt(head_dim), and each head's output is normed alone, without a gain: the paper's
    GroupNorm, with the mean subtracted, where the released code has since gone over to the root mean square. The
    norm takes a factor of all its input away, so the paper's three normalisations of the scores, which are such factors, are left out.

    Options:

    expand    how many times wider values are than queries and keys
    eps       in the norm

    Source: arXiv:2307.08621, eq. 3 to 6 (retention), eq. 8 (decays, GroupNorm, gate), sec. 3.1 (expand).
    """

    honours = frozenset({"rotation", "padding"})
    taps = ("state_rms",)

    log_decay: Tensor

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int,
        expand: Count = 2,
        eps: Positive = 1e-5,
        dropout: Probability = 0.0,
        inner_norm: MakeWidthNorm = no_norm,
        recurrence: Recurrence = CHUNKED,
    ):
        width = n_heads * head_dim
        super().__init__(expand * width, d_model, False, dropout, inner_norm, recurrence)
        self.n_heads, self.scale = n_heads, head_dim**-0.5
        self.q_proj = nn.Linear(d_model, width, bias=False)
        self.k_proj = nn.Linear(d_model, width, bias=False)
        self.v_proj = nn.Linear(d_model, expand * width, bias=False)
        self.g_proj = nn.Linear(d_model, expand * width, bias=False)
        self.norm = LayerNorm(expand * head_dim, eps, affine=False)
        decays = [math.log1p(-(2.0 ** (-5 - head))) for head in range(n_heads)]
        self.register_buffer("log_decay", torch.tensor(decays, dtype=torch.float64), persistent=False)

    def mix(self, x: Stream, context: AttentionContext) -> Float[Tensor, "batch seq width"]:
        q, k = context.rotate_queries(heads_of(self.q_proj(x), self.n_heads)), context.rotate_keys(heads_of(self.k_proj(x), self.n_heads))  # fmt: skip
        v, gate = heads_of(self.v_proj(x), self.n_heads), F.silu(self.g_proj(x))
        products = dtype_of_products(x)
        with without_autocast(x.device):
            q, k, v = at_least_float32(q), at_least_float32(k) * self.scale, at_least_float32(v)
            (state,) = context.decode_state(self, k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]))
            log_decay = self.log_decay.type_as(q)[None, :, None].expand(1, -1, x.shape[1])
            out, state = self.recurrence.gated_sum(q, k, v, log_decay, state, products)
            context.keep(self, state)
            context.tap(self.taps, partial(look_at_state, state))
            return gate * joined(self.norm(out))

    def drawn(self, position: Position) -> Iterator[DrawnStep]:
        yield from map(drawn_part, ("q_proj", "k_proj", "v_proj", "g_proj"))
        q, k, last = 1, 2, 4
        if position.rotates:
            yield DrawnStep("position", f"{type(position).__name__} rotates q, k", reads=(q, k))
            q = k = last = 5
        yield drawn_op("S = decay S + k vᵀ", k, 3)
        yield drawn_op("q S", q, last + 1)
        yield drawn_part("norm", last + 2)
        yield drawn_op("SiLU", 4)
        yield DrawnStep("mul", "×", reads=(last + 3, last + 4))
