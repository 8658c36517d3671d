"""Learned factors that are kept at another scale than they act at."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from archlab.blocks.contracts import Block
from archlab.blocks.precision import at_least_float32


class Factors(Block):
    """A vector of learned factors s = start / scale * stored, where `stored` is the weight, which starts at `scale`, so that s starts at `start`.

    An optimizer that moves each number of a weight by about lr, as Adam does, moves s by about lr start / scale.

    Source: arXiv:2410.01131, sec. 2.5 and 2.6, where start and scale are called init and scale.
    """

    def __init__(self, width: int, start: float, scale: float):
        super().__init__()
        self.ratio = start / scale
        self.stored = nn.Parameter(torch.full((width,), float(scale)))

    def forward(self) -> Float[Tensor, " width"]:
        """s, float32 or wider."""
        return self.ratio * at_least_float32(self.stored)


def stream_scale(scale: float | None, d_model: int) -> float:
    """The scale itself, or 1 / sqrt(d_model) where there is none, which is about the size of a number in a vector of length 1."""
    return d_model**-0.5 if scale is None else scale
