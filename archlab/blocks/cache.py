"""What a decoder keeps of the tokens it was given, so that only the next ones need to go through it."""

from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from archlab.blocks.token_positions import TokenPositions

New = Float[Tensor, "batch kv_heads seq _"]
Cached = Float[Tensor, "batch kv_heads key _"]


class Cache:
    """What each mixer continues from: for attention the rotated keys and the values, for each key-value head once.

    Latent attention keeps what keys and values are projected from, and a recurrent mixer its state. A part of a mixer,
    such as a convolution, keeps what it continues from under itself. Keys and values grow by the tokens of each forward
    pass; under a window those that are out of reach are kept as well. A cache belongs to one decoder and one batch of
    sequences, and cannot be used again after a forward pass that raised an error.
    """

    def __init__(self) -> None:
        self.token_positions: TokenPositions | None = None
        """Index and positions of the cached tokens; None before the first forward pass."""

        self.states: dict[nn.Module, tuple[Tensor, ...]] = {}
        """By mixer, or part of one, such as (keys, values); every tensor's first axis is the batch."""

        self.rooms: dict[tuple[nn.Module, int], Room] = defaultdict(Room)
        self.later: dict[int, Cache] = {}

    def of_visit(self, visit: int) -> "Cache":
        """Where a layer that is applied several times caches at this application, counted from 0."""
        return self if visit == 0 else self.later.setdefault(visit, Cache())

    def __len__(self) -> int:
        """Cached tokens, padding included."""
        return 0 if self.token_positions is None else self.token_positions.n_keys

    def extend(self, attention: nn.Module, k: New, v: New) -> tuple[Cached, Cached]:
        """Caches new keys and values of this attention; returns all that are cached for it."""
        if attention in self.states:
            k, v = (
                self.rooms[attention, i].after(*both)
                for i, both in enumerate(zip(self.states[attention], (k, v), strict=True))
            )
        self.states[attention] = k, v
        return k, v


class Room:
    """A tensor with room behind what is cached, so that the next keys are written there and the cached ones are not moved."""

    LEAST = 64
    """Keys that there is room for at least, where it is made."""

    def __init__(self) -> None:
        self.whole: Tensor | None = None
        self.cached: Tensor | None = None

    def after(self, cached: Cached, new: New) -> Float[Tensor, "batch kv_heads all_keys head_dim"]:
        """torch.cat((cached, new), dim=2); where gradients are kept, by that very call."""
        if torch.is_grad_enabled():
            return torch.cat((cached, new), dim=2)
        batch, heads, n_cached, head_dim = cached.shape
        n_keys = n_cached + new.shape[2]
        if self.whole is None or self.cached is not cached or n_keys > self.whole.shape[2]:
            self.whole = cached.new_empty(batch, heads, n_keys + max(self.LEAST, n_keys // 2), head_dim)
            self.whole[:, :, :n_cached] = cached
        self.whole[:, :, n_cached:n_keys] = new
        self.cached = self.whole[:, :, :n_keys]
        return self.cached
