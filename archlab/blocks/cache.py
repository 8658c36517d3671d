"""What a decoder keeps of the tokens it has taken in, so that the next ones alone need go through it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from archlab.blocks.token_positions import TokenPositions

New = Float[Tensor, "batch kv_heads seq head_dim"]
Held = Float[Tensor, "batch kv_heads key head_dim"]


class Cache:
    """What each mixer goes on from: for attention keys, already rotated, and values, for each key-value head once.

    A recurrent mixer keeps its state instead. What is kept for attention grows by the tokens of each forward pass. A
    cache belongs to one decoder and one batch of sequences; under a window it keeps what is out of reach as well. After
    a forward pass that was broken off it is of no use.
    """

    def __init__(self) -> None:
        self.token_positions: TokenPositions | None = None
        """Where the held tokens stand; None before the first forward pass."""

        self.held: dict[nn.Module, tuple[Tensor, ...]] = {}
        """By mixer; every tensor's first axis is the batch."""

    def __len__(self) -> int:
        """Tokens held, padding included."""
        return 0 if self.token_positions is None else self.token_positions.n_keys

    def extend(self, attention: nn.Module, k: New, v: New) -> tuple[Held, Held]:
        """Adds to what is held for this attention; returns all of it."""
        if attention in self.held:
            held_k, held_v = self.held[attention]
            k, v = torch.cat((held_k, k), dim=2), torch.cat((held_v, v), dim=2)
        self.held[attention] = k, v
        return k, v
