"""Masks: which keys each query may attend to. Each is one predicate over a query's index, a key's and the prefix length."""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from archlab.base.errors import UserError
from archlab.base.quantities import Count, Natural
from archlab.blocks.contracts import Attendable, DocumentStart, Keys, Mask, PrefixLen, Queries


class Causal(Mask):
    """key <= query: a position attends to itself and to what came before. Source: arXiv:1706.03762, sec. 3.2.3."""

    causal = True

    def can_attend(self, query: Queries, key: Keys, prefix_len: PrefixLen) -> Attendable:
        return key <= query

    def reach(self, queries: slice, seq_len: int) -> slice:
        return slice(0, queries.stop)


class Prefix(Mask):
    """key <= query or key < prefix_len: the prefix attends to itself in both directions, the rest is causal.

    A position inside the prefix attends to its own target, so only what follows the prefix is scored.
    Source: arXiv:2103.10360, sec. 2.1 (GLM: part A bidirectional, part B left to right).
    """

    uses_prefix = True

    def can_attend(self, query: Queries, key: Keys, prefix_len: PrefixLen) -> Attendable:
        return (key <= query) | (key < prefix_len)


class Window(Mask):
    """query - window < key <= query: a position attends to itself and to the window - 1 before it.

    With `sinks` it attends to the first so many tokens of the sequence too. A token's position stays its place in the
    text, where StreamingLLM's published code counts places in the cache.
    Source: arXiv:2310.06825, fig. 1 (Mistral); arXiv:2309.17453, sec. 3.2 (sinks).
    """

    def __init__(self, window: Count, sinks: Natural = 0):
        super().__init__()
        self.window, self.sinks = window, sinks
        self.near = self.in_window_or_sink if sinks else self.in_window
        self.first_in_reach = first_of_all if sinks else self.first_in_window

    def can_attend(self, query: Queries, key: Keys, prefix_len: PrefixLen) -> Attendable:
        return (key <= query) & self.near(query, key)

    def in_window(self, query: Queries, key: Keys) -> Attendable:
        return key > query - self.window

    def in_window_or_sink(self, query: Queries, key: Keys) -> Attendable:
        return (key > query - self.window) | (key < self.sinks)

    def first_in_window(self, queries: slice) -> int:
        return max(0, queries.start - self.window + 1)

    def reach(self, queries: slice, seq_len: int) -> slice:
        return slice(self.first_in_reach(queries), queries.stop)


def first_of_all(queries: slice) -> int:
    """The first key, where sinks are in every query's reach."""
    return 0


class Chunked(Mask):
    """key <= query in blocks of `chunk` tokens: a position attends to itself and to what came before in its own block.

    Blocks are counted from the sequence's first token. Source: Llama 4's published code (`attention_chunk_size`).
    """

    def __init__(self, chunk: Count):
        super().__init__()
        self.chunk = chunk

    def can_attend(self, query: Queries, key: Keys, prefix_len: PrefixLen) -> Attendable:
        return (key <= query) & (key // self.chunk == query // self.chunk)

    def reach(self, queries: slice, seq_len: int) -> slice:
        # Padding shifts where blocks begin, by another number in each sequence, but makes none of them longer.
        return slice(max(0, queries.start - self.chunk + 1), queries.stop)


class Document(Mask):
    """start <= key <= query, where the query's document starts: a position attends to its own document alone.

    It is for sequences that hold several documents one after the other (`documents=true`); a sequence that is not said to
    hold several is one document. With `window` a position attends to itself and the window - 1 before it in its document,
    with `chunk` to what came before in its own block of a document cut into blocks. `reset_positions` counts positions
    from each document's start; a configuration whose positions go by distance alone, which that does not change, is refused.

    Source: arXiv:2407.21783, sec. 3.2 (Llama 3).
    """

    uses_documents = True

    def __init__(self, window: Count | None = None, chunk: Count | None = None, reset_positions: bool = False):
        super().__init__()
        if window is not None and chunk is not None:
            raise UserError(f"mask.chunk={chunk}: mask.window={window} says what is attended to; give one of the two")
        self.within = Window(window) if window is not None else Chunked(chunk) if chunk is not None else Causal()
        self.resets_positions = reset_positions
        self.count: Callable[[Tensor, Tensor], Tensor] = places_in_documents if reset_positions else indices

    def can_attend(self, query: Queries, key: Keys, prefix_len: PrefixLen) -> Attendable:
        return self.within.can_attend(query, key, prefix_len)

    def can_attend_within(
        self, query: Queries, key: Keys, prefix_len: PrefixLen, document_start: DocumentStart
    ) -> Attendable:
        in_document = self.within.can_attend(query - document_start, key - document_start, prefix_len)
        return in_document & (key >= document_start)

    def counted(self, index: Tensor, document_start: Tensor) -> Tensor:
        return self.count(index, document_start)

    def reach(self, queries: slice, seq_len: int) -> slice:
        return self.within.reach(queries, seq_len)


def indices(index: Tensor, document_start: Tensor) -> Tensor:
    """Indices in the sequence."""
    return index


def places_in_documents(index: Tensor, document_start: Tensor) -> Tensor:
    """Places in the document, from 0."""
    return index - document_start


class Full(Mask):
    """Every position attends to every position, as in an encoder.

    Only the target after the sequence's last token is scored: it is the only one that no position attends to.

    Source: arXiv:1810.04805, sec. 3.
    """

    bidirectional = True

    def can_attend(self, query: Queries, key: Keys, prefix_len: PrefixLen) -> Attendable:
        shape = torch.broadcast_shapes(query.shape, key.shape)
        return torch.ones(shape, dtype=torch.bool, device=query.device)


class AnyOf(Mask):
    """The whole model's mask where layers differ: a query attends to a key where some layer lets it.

    No layer computes with it; it decides which targets are scored.
    """

    def __init__(self, masks: Sequence[Mask]):
        super().__init__()
        self.masks = list(masks)
        self.bidirectional = any(mask.bidirectional for mask in masks)
        self.uses_prefix = any(mask.uses_prefix for mask in masks)
        self.uses_documents = any(mask.uses_documents for mask in masks)
        self.resets_positions = any(mask.resets_positions for mask in masks)

    def can_attend(self, query: Queries, key: Keys, prefix_len: PrefixLen) -> Attendable:
        return reduce(torch.logical_or, (mask.can_attend(query, key, prefix_len) for mask in self.masks))

    def can_attend_within(
        self, query: Queries, key: Keys, prefix_len: PrefixLen, document_start: DocumentStart
    ) -> Attendable:
        each = (mask.can_attend_within(query, key, prefix_len, document_start) for mask in self.masks)
        return reduce(torch.logical_or, each)

    def counted(self, index: Tensor, document_start: Tensor) -> Tensor:
        return self.masks[0].counted(index, document_start)


def one_mask(masks: Sequence[Mask]) -> Mask:
    """The one mask that all layers share, or `AnyOf` the masks they have.

    Raises UserError where some count positions from each document's start and some do not: positions are all layers'.
    """
    if len({mask.resets_positions for mask in masks}) > 1:
        raise UserError(
            "mask.reset_positions=true: positions are the same in all layers, and some layers' masks count them otherwise;"
            " set it in all of them or in none"
        )
    return masks[0] if len(masks) == 1 else AnyOf(masks)
