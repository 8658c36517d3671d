"""What a block lets be looked at, and what it adds to the loss: collected inside a layer's call, returned with its output.

Nothing is kept on the side, so a pass means the same eager, compiled, packed with others, or run twice to save memory.
What nobody asked for is not computed and is no part of a compiled graph.
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

    def tap(self, names: Collection[str], look: Callable[[], Mapping[str, Scalar]]) -> None:
        """Lets `look` say what these names are, if one of them is wanted; no gradient flows through it."""
        if self.wanted.isdisjoint(names):
            return
        with torch.no_grad():
            self.seen |= {name: value for name, value in look().items() if name in self.wanted}

    def add_loss(self, name: str, value: Scalar) -> None:
        """Adds to what is minimised beside the tokens' own loss, such as a router's balance; nats, under a name."""
        self.losses[name] = self.losses[name] + value if name in self.losses else value


class Silent(Taps):
    """Keeps nothing: for a block that is called outside a layer."""

    def add_loss(self, name: str, value: Scalar) -> None:
        pass


NOBODY_LOOKS = Silent()
