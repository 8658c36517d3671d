"""How softmax attention is computed, given a mask and the bias that is added to the scores.

All kernels return the same; they differ in what they need of an `AttentionContext`, and in speed. `KERNELS` has a layer's
kernel chosen when the model is built.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from archlab.base.errors import UserError
from archlab.blocks.context import AttentionContext, QueryBlock
from archlab.blocks.contracts import Mask, Position
from archlab.blocks.flex import LEAST_HEAD_DIM, flex_kernel
from archlab.blocks.folded import attend
from archlab.blocks.precision import WIDE, at_least_float32, without_autocast
from archlab.blocks.softcap import Softcap, leave
from archlab.blocks.weighing import Weigh, softmax

Kernel = Callable[[Tensor, Tensor, Tensor, AttentionContext, float], Tensor]
"""(queries, keys, values, context, dropout) -> weights @ values.

Queries and the result are (batch, heads, seq, head_dim), keys and values (batch, kv_heads, key, head_dim): `key` is
longer than `seq` where a cache keeps the tokens before these. `dropout` is a probability, on the weights."""


def share_heads(
    x: Float[Tensor, "batch kv_heads seq head_dim"], n_heads: int
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Repeats each key-value head for the consecutive query heads that share it."""
    if x.shape[1] == n_heads:
        return x
    return repeat(x, "batch kv_heads seq head_dim -> batch (kv_heads group) seq head_dim", group=n_heads // x.shape[1])


def shares_heads(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's fused attention takes fewer key-value heads than query heads as they are.

    On CUDA only its flash kernel does, which is for half precision; others would be computed without a fused kernel.
    Source: torch 2.13's sdp_utils.cpp.
    """
    return device.type != "cuda" or dtype in (torch.bfloat16, torch.float16)


def over_blocks(
    attend: Callable[[QueryBlock], Tensor], context: AttentionContext
) -> Float[Tensor, "batch heads seq head_dim"]:
    """What `attend` returns for each block of queries, joined along seq."""
    parts = [attend(block) for block in context.blocks()]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


Fused = Callable[..., Tensor]
"""`F.scaled_dot_product_attention`, or what is called like it."""


def torchs_own(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """`F.scaled_dot_product_attention`, in float32 where a CPU would compute its gradient in half precision.

    There the gradient takes longer than in float32: five times on a CPU with AMX (16 x 128 tokens, 8 heads of 32 features,
    torch 2.13), which made a training step in bf16 the slower one.
    """
    if q.device.type != "cpu" or q.dtype in WIDE or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, **options)
    if options.get("attn_mask") is not None:
        options["attn_mask"] = options["attn_mask"].float()
    with without_autocast(q.device):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **options).type_as(q)


def causal_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: AttentionContext,
    dropout: float,
    fused: Fused = torchs_own,
) -> Tensor:
    """For the plain causal mask and scores without a bias; without padding it needs no table for whole sequences and for one new token."""
    if not (context.whole or context.newest_alone):
        return masked_kernel(q, k, v, context, dropout, fused)
    if not shares_heads(q.device, q.dtype):
        k, v = share_heads(k, q.shape[1]), share_heads(v, q.shape[1])
    return fused(q, k, v, is_causal=context.whole, dropout_p=dropout, enable_gqa=True)


def masked_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: AttentionContext,
    dropout: float,
    fused: Fused = torchs_own,
) -> Tensor:
    """For any mask and scores without a bias."""
    k, v = share_heads(k, q.shape[1]), share_heads(v, q.shape[1])

    def attend(block: QueryBlock) -> Tensor:
        q_block, k_block, v_block = q[:, :, block.queries], k[:, :, block.keys], v[:, :, block.keys]
        return fused(q_block, k_block, v_block, attn_mask=block.added_mask(q.dtype), dropout_p=dropout)

    return over_blocks(attend, context)


def biased_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: AttentionContext,
    dropout: float,
    fused: Fused = torchs_own,
) -> Tensor:
    """For scores with a bias. In float32, since fused kernels on a GPU take no bias of a wider dtype than the queries."""
    wide_q, wide_k, wide_v = (at_least_float32(x) for x in (q, share_heads(k, q.shape[1]), share_heads(v, q.shape[1])))

    def attend(block: QueryBlock) -> Tensor:
        q_block, k_block, v_block = wide_q[:, :, block.queries], wide_k[:, :, block.keys], wide_v[:, :, block.keys]
        bias = block.bias.to(q_block.dtype)
        return fused(q_block, k_block, v_block, attn_mask=bias, dropout_p=dropout)

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


def written_out(
    q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, dropout: float, softcap: Softcap, weigh: Weigh
) -> Tensor:
    """For what no fused kernel does: scores that are soft-capped before the bias is added, weights of another kind."""
    v = share_heads(v, q.shape[1])

    def attend(block: QueryBlock) -> Tensor:
        weights = F.dropout(weigh(explicit_scores(q, k, block, softcap), block), dropout)
        return weights.type_as(v) @ v[:, :, block.keys]

    return over_blocks(attend, context)


def explicit_kernel(softcap: Softcap, weigh: Weigh = softmax) -> Kernel:
    """`written_out` of these.

    As a partial, of which a copy of a layer has a copy: with a function within a function, copies of a layer, as packs
    make, would weigh by the sinks of the original.
    """
    return partial(written_out, softcap=softcap, weigh=weigh)


def keeps_weights(kernel: Kernel) -> bool:
    """Whether it keeps the weights of every query and key for its backward pass, on whatever device."""
    return isinstance(kernel, partial) and kernel.func is written_out


def as_wide_as_queries(attend: Kernel) -> Kernel:
    """The kernel for queries and keys of a wider dtype than the values: computes in theirs, returns that of the values."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, dropout: float) -> Tensor:
        with without_autocast(q.device):
            return attend(q, k, v.type_as(q), context, dropout).type_as(v)

    return kernel


def fused_kernel(position: Position, mask: Mask) -> Kernel:
    """The cheapest kernel of torch's scaled_dot_product_attention for a layer's position scheme and mask."""
    if position.biases_scores:
        return biased_kernel
    kernel = causal_kernel if mask.causal else masked_kernel
    return as_wide_as_queries(kernel) if position.widens else kernel


def folded_kernel(position: Position, mask: Mask) -> Kernel:
    """`fused_kernel`, by operations that `torch.vmap` over stacked weights has rules for."""
    if position.biases_scores:
        return partial(biased_kernel, fused=attend)
    kernel = partial(causal_kernel if mask.causal else masked_kernel, fused=attend)
    return as_wide_as_queries(kernel) if position.widens else kernel


# ---------------------------------------------------------------- which of them a layer computes by


MakeWeighingKernel = Callable[[Softcap, Weigh, str], Kernel]
"""(what soft-caps the scores, what makes weights of them, the option that asks for it) -> a kernel."""


def explicit_whatever_asks(softcap: Softcap, weigh: Weigh, asked: str) -> Kernel:
    """The explicit kernel."""
    return explicit_kernel(softcap, weigh)


@dataclass(frozen=True)
class Kernels:
    """A layer's kernel, what makes one for scores that are soft-capped, the kernel for packs of models, and one for what no fused kernel computes."""

    plain: Kernel
    capped: Callable[[Softcap], Kernel]
    packed: Kernel
    weighing: MakeWeighingKernel = explicit_whatever_asks


def dense(position: Position, mask: Mask, head_dim: int) -> Kernels:
    """softmax(q k^T + bias) v written out: what the others are held to."""
    return Kernels(explicit_kernel(leave), explicit_kernel, explicit_kernel(leave))


def sdpa(position: Position, mask: Mask, head_dim: int) -> Kernels:
    """torch's scaled_dot_product_attention, which soft-caps no scores."""

    def refuse(softcap: Softcap) -> Kernel:
        raise UserError(
            "kernel=sdpa: torch's scaled_dot_product_attention cannot soft-cap scores, as mixer.softcap asks; use kernel=dense,"
            " flex on a CUDA device, or auto"
        )

    def refuse_weights(softcap: Softcap, weigh: Weigh, asked: str) -> Kernel:
        raise UserError(
            f"kernel=sdpa: torch's scaled_dot_product_attention does not compute what {asked} asks for; use kernel=dense or auto"
        )

    return Kernels(fused_kernel(position, mask), refuse, folded_kernel(position, mask), refuse_weights)


def flex(position: Position, mask: Mask, head_dim: int) -> Kernels:
    """torch's FlexAttention on CUDA, and what computes the same elsewhere."""

    def refuse_weights(softcap: Softcap, weigh: Weigh, asked: str) -> Kernel:
        raise UserError(f"kernel=flex: it does not compute what {asked} asks for; use kernel=dense or auto")

    plain = by_flex_on_cuda(position, mask, leave, fused_kernel(position, mask))
    return Kernels(plain, capped_by_flex(position, mask), folded_kernel(position, mask), refuse_weights)


def capped_by_flex(position: Position, mask: Mask) -> Callable[[Softcap], Kernel]:
    """FlexAttention of soft-capped scores on CUDA, and the written-out kernel elsewhere."""
    return lambda softcap: by_flex_on_cuda(position, mask, softcap, explicit_kernel(softcap))


def auto(position: Position, mask: Mask, head_dim: int) -> Kernels:
    """On CUDA FlexAttention where scores are biased, soft-capped or under a mask of its own; else the cheapest fused kernel."""
    fused, packed = fused_kernel(position, mask), folded_kernel(position, mask)
    if head_dim < LEAST_HEAD_DIM or (position.biases_scores and not position.pointwise):
        return Kernels(fused, explicit_kernel, packed)
    without_table = not position.biases_scores and (mask.causal or mask.bidirectional)
    plain = fused if without_table else by_flex_on_cuda(position, mask, leave, fused)
    return Kernels(plain, capped_by_flex(position, mask), packed)


KERNELS: dict[str, Callable[[Position, Mask, int], Kernels]] = {
    "auto": auto,
    "dense": dense,
    "sdpa": sdpa,
    "flex": flex,
    "chunked": auto,  # this and the next say what computes recurrences
    "fla": auto,
}
"""By what `kernel` says: of a layer's position scheme, mask and features of a head."""


def by_flex_on_cuda(position: Position, mask: Mask, softcap: Softcap, otherwise: Kernel) -> Kernel:
    """FlexAttention where it computes what is asked, and `otherwise` where it does not."""
    flexible = flex_kernel(position, mask, softcap)
    flexible = as_wide_as_queries(flexible) if position.widens else flexible

    def kernel(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, dropout: float) -> Tensor:
        return (flexible if takes_flex(q, context, dropout) else otherwise)(q, k, v, context, dropout)

    return kernel


def takes_flex(q: Tensor, context: AttentionContext, dropout: float) -> bool:
    """Whether FlexAttention computes these: on CUDA, of whole sequences at the scheme's own positions, no weights dropped."""
    whole = context.whole and not context.token_positions.given
    return q.device.type == "cuda" and q.dtype != torch.float64 and whole and not dropout
