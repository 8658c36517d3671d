"""Learned factors that are kept at another scale than they act at."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from archlab.blocks.contracts import Block
from archlab.blocks.precision import at_least_float32


def as_it_is(s: Tensor) -> Tensor:
    """The factors themselves."""
    return s


class Factors(Block):
    """s * x, with a learned s for each feature that is kept at another scale: s = start / scale * stored.

    The weight is `stored`, which starts at `scale`, so that s starts at `start`. An optimizer that moves each number of a
    weight by about lr, as Adam does, moves s by about lr * start / scale. `through` is applied to s before the product.

    Source: arXiv:2410.01131, sec. 2.5 and 2.6, where start and scale are called init and scale.
    """

    def __init__(self, width: int, start: float, scale: float, through: Callable[[Tensor], Tensor] = as_it_is):
        super().__init__()
        self.ratio, self.through = start / scale, through
        self.stored = nn.Parameter(torch.full((width,), float(scale)))

    def values(self) -> Float[Tensor, " width"]:
        """What x is multiplied by, float32 or wider."""
        return self.through(self.ratio * at_least_float32(self.stored))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.values().type_as(x) * x


def stream_scale(scale: float | None, d_model: int) -> float:
    """The scale itself, or 1 / sqrt(d_model) where there is none, which is about the size of a number in a vector of length 1."""
    return d_model**-0.5 if scale is None else scale
