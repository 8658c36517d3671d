"""Softmax attention by torch's FlexAttention, to which mask and bias are functions of one query and one key.

On CUDA it compiles them into its kernels: it keeps no table of pairs, forward or backward, and leaves out the blocks of pairs
that the mask leaves empty. Elsewhere it computes the same uncompiled, with tables of all pairs, and without a backward pass.
Source: arXiv:2412.05496.
"""

from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Mask, Position
from archlab.blocks.softcap import Softcap, leave

LEAST_HEAD_DIM = 16
"""Features of a head that its compiled kernels take at least."""

ScoreOf = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(score, sequence, head, query, key), one number each, the last four whole -> the score with the bias of this pair."""

OfPair = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(sequence, head, query, key), one whole number each -> whether the query can attend to the key."""


def flex_kernel(
    position: Position, mask: Mask, softcap: Softcap = leave
) -> Callable[[Tensor, Tensor, Tensor, AttentionContext, float], Tensor]:
    """softcap(q k^T / sqrt(head_dim)) + bias under the mask, as `archlab.blocks.kernel.Kernel` has it; it drops no weights.

    For whole sequences whose positions are the scheme's own: without padding and without cached keys.
    """
    biased = no_bias if not position.biases_scores else pointwise_bias if position.pointwise else tabled_bias
    by_sequence = mask.uses_prefix or mask.uses_documents
    blocks_of = no_blocks if mask.bidirectional else blocks_of_each_sequence if by_sequence else blocks_of_all

    def kernel(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, dropout: float) -> Tensor:
        with_bias = biased(context, q)

        def score(product: Tensor, sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return with_bias(softcap(product), sequence, head, query, key)

        return attention_for(q)(q, k, v, score_mod=score, block_mask=blocks_of(context, q), enable_gqa=True)

    return kernel


def attention_for(q: Tensor) -> Callable[..., Tensor]:
    """`flex_attention`, compiled on CUDA: for one length where it trains, for any length where it evaluates."""
    if q.device.type != "cuda" or torch.compiler.is_compiling():
        return flex_attention
    return compiled(any_length=not torch.is_grad_enabled())


@cache
def compiled(any_length: bool) -> Callable[..., Tensor]:
    """`flex_attention`, compiled once a process."""
    return torch.compile(flex_attention, dynamic=any_length)


# ---------------------------------------------------------------- the bias


def no_bias(context: AttentionContext, q: Tensor) -> ScoreOf:
    """Of a scheme that adds nothing to the scores."""
    return lambda score, sequence, head, query, key: score


def pointwise_bias(context: AttentionContext, q: Tensor) -> ScoreOf:
    """Of a scheme whose bias is a function of one query, one key and the head."""
    position, tables = context.position, context.position.bias_tables(q.device)
    where = context.token_positions
    if where.document_starts is None or not context.mask.resets_positions:  # positions are indices
        return lambda score, sequence, head, query, key: score + position.score(tables, head, query, key)
    at = where.positions.expand(q.shape[0], -1).contiguous()
    return lambda score, sequence, head, query, key: (
        score + position.score(tables, head, at[sequence, query], at[sequence, key])
    )


def tabled_bias(context: AttentionContext, q: Tensor) -> ScoreOf:
    """Of a scheme that is no such function: looked up in the table of all pairs, which the layers share."""
    table = context.everything.bias.expand(*q.shape[:2], -1, -1).contiguous()
    return lambda score, sequence, head, query, key: score + table[sequence, head, query, key]


# ---------------------------------------------------------------- the mask


def no_blocks(context: AttentionContext, q: Tensor) -> BlockMask | None:
    """Where every query attends to every key."""
    return None


def blocks_of_all(context: AttentionContext, q: Tensor) -> BlockMask | None:
    """Of a mask that is the same for all sequences."""
    return blocks_once(context.mask, q.shape[2], q.device)


@lru_cache(maxsize=32)
def blocks_once(mask: Mask, seq_len: int, device: torch.device) -> BlockMask:
    """The blocks of pairs that a mask leaves, found once for a length: also for training, whatever asked for them first."""
    with torch.inference_mode(False):
        nothing = torch.zeros(1, dtype=torch.long, device=device)
        # Lambdas, since torch counts a function's parameters, and sees none of one whose types are checked.
        of_pair = lambda sequence, head, query, key: mask.can_attend(query, key, nothing[0])  # noqa: E731
        return blocks_left(lambda query, key: mask.can_attend(query, key, nothing[0]), of_pair, 1, seq_len, device)


def blocks_of_each_sequence(context: AttentionContext, q: Tensor) -> BlockMask | None:
    """Of a mask that goes by each sequence's prefix or documents; found once for all layers."""
    return context.once("blocks", lambda: blocks_by_sequence(context, q.shape[0], q.shape[2]))


def blocks_by_sequence(context: AttentionContext, batch: int, seq_len: int) -> BlockMask:
    """The blocks of pairs that each sequence's prefix and documents leave."""
    mask, where = context.mask, context.token_positions
    prefix_len = where.prefix_len.expand(batch).contiguous()
    starts = where.document_start(slice(0, seq_len)).expand(batch, seq_len, 1).contiguous()
    of_pair = lambda sequence, head, query, key: mask.can_attend_within(  # noqa: E731
        query, key, prefix_len[sequence], starts[sequence, query, 0]
    )

    def can_attend(query: Tensor, key: Tensor) -> Tensor:
        return mask.can_attend_within(query, key, prefix_len.view(-1, 1, 1), starts[:, query[0, :, 0]])

    return blocks_left(can_attend, of_pair, batch, seq_len, prefix_len.device)


SIDE = 128
"""Queries, and keys, in a block."""

PAIRS = 2**24
"""That are looked at together, so that no sequence is too long for a table of its pairs."""


def blocks_left(
    can_attend: Callable[[Tensor, Tensor], Tensor], of_pair: OfPair, batch: int, seq_len: int, device: torch.device
) -> BlockMask:
    """The blocks in which some pairs can attend, and those in which all can: torch's `create_block_mask`, without its table of all pairs.

    `can_attend` takes indices of queries, (1, query, 1), and of keys, (1, 1, key); `of_pair` is the same of one pair.
    """
    n_blocks = -(-seq_len // SIDE)
    at_once = max(1, PAIRS // (batch * n_blocks * SIDE**2))
    key = torch.arange(n_blocks * SIDE, device=device).view(1, 1, -1)
    counts = []
    for first in range(0, n_blocks, at_once):
        query = torch.arange(first * SIDE, min(first + at_once, n_blocks) * SIDE, device=device).view(1, -1, 1)
        left = can_attend(query.clamp(max=seq_len - 1), key) & (query < seq_len) & (key < seq_len)
        counts.append(left.expand(batch, -1, -1).unflatten(2, (-1, SIDE)).unflatten(1, (-1, SIDE)).sum(dim=(2, 4)))
    n_left = torch.cat(counts, dim=1)[:, None]
    whole = n_left == SIDE**2
    return BlockMask.from_kv_blocks(
        *in_order((n_left > 0) & ~whole), *in_order(whole), SIDE, mask_mod=of_pair, seq_lengths=(seq_len, seq_len)
    )


def in_order(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many there are in each row, and which: their numbers first, and then the others'."""
    blocks = blocks.to(torch.int32)
    return blocks.sum(dim=-1, dtype=torch.int32), blocks.argsort(dim=-1, descending=True, stable=True).to(torch.int32)
