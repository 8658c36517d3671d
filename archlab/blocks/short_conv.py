"""A short causal convolution along the sequence, each channel by itself."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Block
from archlab.blocks.roles import Role

Channels = Float[Tensor, "batch seq channels"]


class ShortConv(Block):
    """y_t = sum over i < width of weight_i * x_{t - i}, for each channel by itself: (batch, seq, channels) -> the same shape.

    It sees `width` tokens, the newest of which is the token itself; before a sequence, and where it is padded, there are
    zeros. It keeps its last `width` - 1 inputs to decode from. A sum of shifted inputs, for which every device and
    `torch.vmap` have operations, rather than a grouped convolution. Weights start as those of torch's `nn.Conv1d`: drawn
    evenly within +-1 / sqrt(width).

    Source: arXiv:2109.08668 (Primer's Multi-DConv-Head Attention); `causal_conv1d_fn` of transformers (Qwen3-Next).
    """

    roles = {"weight": Role.TABLE}

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-(width**-0.5), width**-0.5))
        """The oldest input's factor first, as `nn.Conv1d` has it."""

        self.starts_within = {"weight": (-(width**-0.5), width**-0.5)}

    def forward(self, x: Channels, context: AttentionContext) -> Channels:
        x = context.without_padding(x)
        (before,) = context.decode_state(self, x.new_zeros(x.shape[0], self.width - 1, x.shape[2]))
        seen = torch.cat((before, x), dim=1)
        context.keep(self, seen[:, x.shape[1] :])
        shifted = (seen[:, i : i + x.shape[1]] * factor for i, factor in enumerate(self.weight.unbind(dim=1)))
        return sum(shifted, start=torch.zeros_like(x)).type_as(x)
