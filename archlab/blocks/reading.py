"""Who reads whom in one forward pass, and with what bias: what the kernels are given.

A `Reading` asks the mask and the position scheme, block of queries by block of queries, so that no kernel ever holds
a table of seq x seq entries for a long sequence.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from archlab.blocks.cache import Cache
from archlab.blocks.contracts import Mask, Position, SomeHeads, Stream
from archlab.blocks.places import Places
from archlab.blocks.taps import NOBODY_LOOKS, Taps

QUERY_BLOCK = 512
"""Queries taken at a time; a sequence no longer than this is one block."""


class kept:  # noqa: N801 (a decorator)
    """A property computed once; functools' own holds a lock before Python 3.12, which torch.compile cannot follow."""

    def __init__(self, compute: Callable[[Any], Tensor]):
        self.compute = compute

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Tensor:
        value = self.compute(instance)
        setattr(instance, self.name, value)
        return value


class Reading:
    """What one forward pass settles for all layers of the same position scheme and mask."""

    def __init__(self, position: Position, mask: Mask, places: Places, cache: Cache | None = None):
        self.position = position
        self.mask = mask
        self.places = places
        self.cache = cache
        self.taps: Taps = NOBODY_LOOKS
        self.query_block = QUERY_BLOCK
        self.rotation = position.rotation(places.query_positions)
        self.whole = not places.padded and not places.n_held
        self.everything = Rows(self, slice(0, places.n_queries), slice(0, places.n_keys))
        if position.biases_scores and places.n_keys <= QUERY_BLOCK:
            # Not by the first layer that asks: to save memory a layer may be run twice, and must compute the same twice.
            self.everything.settle_bias()

    def rotate_queries(self, q: SomeHeads) -> SomeHeads:
        return self.position.rotate_queries(q, self.rotation)

    def rotate_keys(self, k: SomeHeads) -> SomeHeads:
        return self.position.rotate_keys(k, self.rotation)

    def with_held(self, attention: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of all that may be read: what a cache holds for this attention, then the new ones."""
        return (k, v) if self.cache is None else self.cache.extend(attention, k, v)

    def watched_by(self, taps: Taps) -> "Reading":
        """The same, for one layer's call: what is to be looked at goes to these taps."""
        self.taps = taps
        return self

    def tap(self, names: Collection[str], look: Callable[[], Mapping[str, Tensor]]) -> None:
        self.taps.tap(names, look)

    def add_loss(self, name: str, value: Tensor) -> None:
        self.taps.add_loss(name, value)

    def held(self, mixer: nn.Module, *start: Tensor) -> tuple[Tensor, ...]:
        """What the mixer kept of the tokens before these; `start` where nothing came before."""
        return start if self.cache is None else self.cache.held.get(mixer, start)

    def hold(self, mixer: nn.Module, *state: Tensor) -> None:
        """Keeps what the mixer goes on from; nothing is kept where there is no cache."""
        if self.cache is not None:
            self.cache.held[mixer] = state

    def without_padding(self, x: Stream) -> Stream:
        """Zeros at the tokens that are padding."""
        return self.places.without_padding(x)

    def of_first(self) -> "Reading":
        """That of the first sequence alone."""
        return Reading(self.position, self.mask, self.places.of_first())

    def as_one_block(self) -> "Reading":
        """The same with one table for all queries and keys, however long: how costs are counted, on the meta device."""
        self.query_block = self.places.n_keys
        return self

    def blocks(self) -> Iterator["Rows"]:
        """Every query once, in order."""
        n_queries, n_keys, n_held = self.places.n_queries, self.places.n_keys, self.places.n_held
        if n_keys <= self.query_block:
            yield self.everything
            return
        for start in range(0, n_queries, self.query_block):
            stop = min(start + self.query_block, n_queries)
            reach = self.mask.reach(slice(n_held + start, n_held + stop), n_keys)
            yield Rows(self, slice(start, stop), reach)


class Rows:
    """A block of queries, a stretch of keys that holds all they may read, and what their scores are given."""

    def __init__(self, reading: Reading, queries: slice, keys: slice):
        self.reading = reading
        self.queries = queries
        self.keys = keys

    def pairs(self, of_keys: Int[Tensor, "#batch *axes key"]) -> tuple[Tensor, Tensor]:
        """What belongs to these queries and to these keys, so shaped that the two broadcast to a table."""
        of_queries = of_keys[..., self.reading.places.n_held :]
        return of_queries[..., self.queries, None], of_keys[..., None, self.keys]

    @kept
    def may_read(self) -> Bool[Tensor, "#batch query key"]:
        query, key = self.pairs(self.reading.places.index)
        may_read = self.reading.mask.may_read(query, key, self.reading.places.prefix_len.view(-1, 1, 1))
        return self.reading.places.hide_padding(may_read, query, key)

    def settle_bias(self) -> None:
        """Computes the bias now; it is kept for all layers."""
        _ = self.bias

    @kept
    def bias(self) -> Float[Tensor, "#batch #heads query key"]:
        """The position scheme's bias, and -inf where reading is forbidden; float32."""
        bias = self.reading.position.bias(*self.pairs(self.reading.places.positions))
        return torch.where(self.may_read[:, None], bias, float("-inf"))
