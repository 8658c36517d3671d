"""A mixer without softmax scores: attention as a running sum, which decoding carries on from."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from archlab.blocks.contracts import Mixer
from archlab.blocks.precision import at_least_float32, without_autocast


def phi(u):
    """elu(u) + 1. Written out, since torch 2.13 cannot compile the gradient of elu where heads are split after it."""
    return torch.where(u > 0, u + 1, u.clamp(max=0).exp())


class LinearAttention(Mixer):
    """phi(q) S / (phi(q) z + eps), S and z the sums over the positions so far of phi(k) v^T and of phi(k); phi = elu + 1.

    A position's sums are all it needs of what came before, so a cache keeps them instead of keys and values: a state of
    heads x head_dim x (head_dim + 1) numbers, however long the sequence is. Causal by nature; it has no scores, so no
    bias acts on it, and its features are not rotated.

    Source: arXiv:2006.16236, eq. 7 (phi) and eq. 18 to 20 (the recurrent form).
    """

    honours = frozenset({"padding"})
    decodes = True

    def __init__(self, d_model: int, n_heads: int, head_dim: int, eps: float = 1e-6):
        super().__init__()
        self.n_heads, self.eps = n_heads, eps
        self.q_proj = nn.Linear(d_model, n_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(d_model, n_heads * head_dim, bias=False)
        self.out_proj = nn.Linear(n_heads * head_dim, d_model, bias=False)

    def forward(self, x, context):
        q, k = phi(self.q_proj(x)), context.without_padding(phi(self.k_proj(x)))
        q, k, v = (self.heads(at_least_float32(projected)) for projected in (q, k, self.v_proj(x)))
        v = F.pad(v, (0, 1), value=1.0)  # a column of ones: its sum is z
        with without_autocast(x.device):
            (before,) = context.decode_state(self, k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]))
            read = (q @ k.mT).tril() @ v + q @ before  # (batch, heads, seq, head_dim + 1)
            context.keep(self, before + k.mT @ v)
            read = read[..., :-1] / (read[..., -1:] + self.eps)
        return self.out_proj(rearrange(read, "batch heads seq head_dim -> batch seq (heads head_dim)").type_as(x))

    def heads(self, x):
        return rearrange(x, "batch seq (heads head_dim) -> batch heads seq head_dim", heads=self.n_heads)
