"""Masks: which keys each query may attend to. Each is one predicate over a query's index, a key's and the prefix length."""

from collections.abc import Sequence
from functools import reduce

import torch

from archlab.base.quantities import Count
from archlab.blocks.contracts import Attendable, Keys, Mask, PrefixLen, Queries


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

    Source: arXiv:2310.06825, fig. 1 (Mistral).
    """

    def __init__(self, window: Count):
        super().__init__()
        self.window = window

    def can_attend(self, query: Queries, key: Keys, prefix_len: PrefixLen) -> Attendable:
        return (key <= query) & (key > query - self.window)

    def reach(self, queries: slice, seq_len: int) -> slice:
        return slice(max(0, queries.start - self.window + 1), queries.stop)


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

    def can_attend(self, query: Queries, key: Keys, prefix_len: PrefixLen) -> Attendable:
        return reduce(torch.logical_or, (mask.can_attend(query, key, prefix_len) for mask in self.masks))


def one_mask(masks: Sequence[Mask]) -> Mask:
    """The one mask that all layers share, or `AnyOf` the masks they have."""
    return masks[0] if len(masks) == 1 else AnyOf(masks)
