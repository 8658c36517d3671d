"""What leaves a layer besides its output: quantities recorded in it, what its blocks add to the loss, what they count.

Nothing is stored on modules, so a forward pass means the same eager, compiled, packed with others, or run twice to save
memory. A quantity that nobody asked for is not computed, and is not part of a compiled graph.
"""

from collections.abc import Callable, Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

Scalar = Float[Tensor, ""]


class Taps:
    """Collects during one call of a layer; `wanted` are the names that somebody asked for."""

    def __init__(self, wanted: Collection[str] = ()):
        self.wanted = frozenset(wanted)
        self.seen: dict[str, Scalar] = {}
        self.losses: dict[str, Scalar] = {}
        self.counts: dict[str, Tensor] = {}

    def tap(self, names: Collection[str], look: Callable[[], Mapping[str, Scalar]]) -> None:
        """Records the quantities of these names, which `look` returns, if one of them is wanted; without gradients."""
        if self.wanted.isdisjoint(names):
            return
        with torch.no_grad():
            self.seen |= {name: value for name, value in look().items() if name in self.wanted}

    def add_loss(self, name: str, value: Scalar) -> None:
        """Adds to what is minimised besides the tokens' own loss, such as a router's balance; nats, under a name."""
        self.losses[name] = self.losses[name] + value if name in self.losses else value

    def count(self, name: str, value: Tensor) -> None:
        """Hands out what the block's `after_step` is given: a number of something in the batch, such as tokens of each expert."""
        self.counts[name] = value.detach()


class Silent(Taps):
    """Keeps nothing: for a block that is called outside a layer."""

    def add_loss(self, name: str, value: Scalar) -> None:
        """Does nothing."""

    def count(self, name: str, value: Tensor) -> None:
        """Does nothing."""


NOBODY_LOOKS = Silent()
