"""How softmax attention is computed, given a mask and the bias that is added to the scores.

All kernels return the same; they differ in what they need of an `AttentionContext`, and in speed. `fused_kernel` chooses
a layer's kernel when the model is built.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from archlab.blocks.context import AttentionContext, QueryBlock
from archlab.blocks.contracts import Mask, Position
from archlab.blocks.precision import at_least_float32, without_autocast
from archlab.blocks.softcap import Softcap

Kernel = Callable[[Tensor, Tensor, Tensor, AttentionContext, float], Tensor]
"""(queries, keys, values, context, dropout) -> weights @ values.

Queries and the result are (batch, heads, seq, head_dim), keys and values (batch, kv_heads, key, head_dim): `key` is
longer than `seq` where a cache keeps the tokens before these. `dropout` is a probability, on the weights."""


def share_heads(
    x: Float[Tensor, "batch kv_heads seq head_dim"], n_heads: int
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Repeats each key-value head for the consecutive query heads that share it."""
    return repeat(x, "batch kv_heads seq head_dim -> batch (kv_heads group) seq head_dim", group=n_heads // x.shape[1])


def over_blocks(
    attend: Callable[[QueryBlock], Tensor], context: AttentionContext
) -> Float[Tensor, "batch heads seq head_dim"]:
    """What `attend` returns for each block of queries, joined along seq."""
    parts = [attend(block) for block in context.blocks()]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def causal_kernel(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, dropout: float) -> Tensor:
    """For the plain causal mask and scores without a bias; without padding and cache it needs no table of the mask."""
    if not context.whole:
        return masked_kernel(q, k, v, context, dropout)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=True)


def masked_kernel(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, dropout: float) -> Tensor:
    """For any mask and scores without a bias."""
    k, v = share_heads(k, q.shape[1]), share_heads(v, q.shape[1])

    def attend(block: QueryBlock) -> Tensor:
        q_block, k_block, v_block = q[:, :, block.queries], k[:, :, block.keys], v[:, :, block.keys]
        return F.scaled_dot_product_attention(
            q_block, k_block, v_block, attn_mask=block.can_attend[:, None], dropout_p=dropout
        )

    return over_blocks(attend, context)


def biased_kernel(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, dropout: float) -> Tensor:
    """For scores with a bias. In float32, since fused kernels on a GPU take no bias of a wider dtype than the queries."""
    wide_q, wide_k, wide_v = (at_least_float32(x) for x in (q, share_heads(k, q.shape[1]), share_heads(v, q.shape[1])))

    def attend(block: QueryBlock) -> Tensor:
        q_block, k_block, v_block = wide_q[:, :, block.queries], wide_k[:, :, block.keys], wide_v[:, :, block.keys]
        bias = block.bias.to(q_block.dtype)
        return F.scaled_dot_product_attention(q_block, k_block, v_block, attn_mask=bias, dropout_p=dropout)

    with without_autocast(q.device):
        return over_blocks(attend, context).type_as(q)


def explicit_scores(
    q: Tensor, k: Tensor, block: QueryBlock, softcap: Softcap
) -> Float[Tensor, "batch heads query key"]:
    """softcap(q k^T / sqrt(head_dim)) + bias, with -inf where a key is masked; float32 or wider."""
    k = share_heads(k, q.shape[1])
    with without_autocast(q.device):
        products = at_least_float32(q[:, :, block.queries]) @ at_least_float32(k[:, :, block.keys]).mT
        return softcap(products * q.shape[-1] ** -0.5) + block.bias


def explicit_kernel(softcap: Softcap) -> Kernel:
    """For scores that are soft-capped before the bias is added, which no fused kernel does."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, dropout: float) -> Tensor:
        v = share_heads(v, q.shape[1])

        def attend(block: QueryBlock) -> Tensor:
            weights = F.dropout(explicit_scores(q, k, block, softcap).softmax(dim=-1), dropout)
            return weights.type_as(v) @ v[:, :, block.keys]

        return over_blocks(attend, context)

    return kernel


def as_wide_as_queries(attend: Kernel) -> Kernel:
    """The kernel for queries and keys of a wider dtype than the values: computes in theirs, returns that of the values."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, dropout: float) -> Tensor:
        with without_autocast(q.device):
            return attend(q, k, v.type_as(q), context, dropout).type_as(v)

    return kernel


def fused_kernel(position: Position, mask: Mask) -> Kernel:
    """The cheapest kernel that computes what a layer's position scheme and mask ask for."""
    if position.biases_scores:
        return biased_kernel
    kernel = causal_kernel if mask.causal else masked_kernel
    return as_wide_as_queries(kernel) if position.widens else kernel
