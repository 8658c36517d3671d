"""What a decoder keeps of the tokens it was given, so that only the next ones need to go through it."""

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

    def __len__(self) -> int:
        """Cached tokens, padding included."""
        return 0 if self.token_positions is None else self.token_positions.n_keys

    def extend(self, attention: nn.Module, k: New, v: New) -> tuple[Cached, Cached]:
        """Caches new keys and values of this attention; returns all that are cached for it."""
        if attention in self.states:
            cached_k, cached_v = self.states[attention]
            k, v = torch.cat((cached_k, k), dim=2), torch.cat((cached_v, v), dim=2)
        self.states[attention] = k, v
        return k, v
