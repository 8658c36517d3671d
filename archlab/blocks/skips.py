"""Skip connections over layers: what the first half of the layers leaves is added to what the second half is given."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.blocks.contracts import Block
from archlab.blocks.roles import Role

Kept = dict[int, Tensor]
"""Streams that are kept in one forward pass, by the place of the layer that left them."""


class Skips:
    """Which streams skip layers: here none. A place counts the layers from 0, a layer as often as it is applied."""

    ends: Mapping[int, Sequence[int]] = {}
    """By place, the places whose streams the layer there is also given."""

    def into(self, place: int, x: Tensor, kept: Kept) -> Tensor:
        """What the layer at this place is given, where x is what the layer before it left; of one shape."""
        return x

    def out_of(self, place: int, x: Tensor, kept: Kept) -> None:
        """Keeps what the layer at this place left, if a later one is given it."""


class UNetSkips(Block, Skips):
    """What layer i leaves is added, times a learned number, to what layer N - 1 - i is given: the first's to the last's.

    x_(N-1-i) = y_(N-2-i) + w_i y_i,   0 <= i < N // 2

    N is the number of layers, each counted as often as it is applied; x is what a layer is given and y what it leaves, both
    (batch, seq, d_model); w_i starts at 1. Where N is odd, the layer in the middle has no skip. Where N is even, the
    innermost skip is y + w y, of one and the same stream.

    Raises UserError where there are fewer than two layers.
    Source: KellerJordan/modded-nanogpt, the record of 2024-11-10 (UNetDoubleLr), whose N is even.
    """

    vectors = Role.SCALAR

    def __init__(self, n_layers: int):
        super().__init__()
        if n_layers < 2:
            raise UserError(
                "skips=unet: one layer has no other whose stream it could be given; use more layers, or skips=null"
            )
        starts = range(n_layers // 2)
        self.ends = {n_layers - 1 - start: (start,) for start in starts}
        self.starts = frozenset(starts)
        self.factors = nn.Parameter(torch.ones(len(starts)))

    def into(self, place: int, x: Tensor, kept: Kept) -> Tensor:
        for start in self.ends.get(place, ()):
            x = x + self.factors[start] * kept.pop(start)
        return x

    def out_of(self, place: int, x: Tensor, kept: Kept) -> None:
        kept.update((start, x) for start in self.starts & {place})


def make_skips(name: str | None, n_layers: int) -> Skips:
    """The skips that the option `skips` names, of so many layers."""
    return SKIPS[name](n_layers)


SKIPS: Mapping[str | None, Callable[[int], Skips]] = {None: lambda n_layers: Skips(), "unet": UNetSkips}
"""By the value of the option `skips`."""
