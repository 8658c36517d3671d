"""A short causal convolution along the sequence, each channel by itself."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.quantities import Count
from archlab.blocks.activations import Accounting, Term
from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Block
from archlab.blocks.roles import Role

Channels = Float[Tensor, "batch seq channels"]


class CausalConv(Block):
    """y_t = sum_j weight_j x_(t - size + 1 + j) (+ bias), j < size, of each channel alone: (batch, seq, channels) -> the same shape.

    It sees `size` tokens, the newest of which is the token itself; before a sequence or a document, and where
    it is padded, there are zeros. It keeps its last size - 1 inputs to decode from. Sums of shifted inputs in the place of a grouped convolution:
    on a CPU that takes less time, most of all backwards, and `torch.vmap` has rules for it. Weights start evenly
    between -+ 1 / sqrt(size), as those of torch's convolutions do, and do not decay; the bias starts at 0.

    Source: arXiv:2405.21060, sec. 7; arXiv:2109.08668, fig. 4 (Primer's Multi-DConv-Head Attention). Their released code has
    torch.nn.Conv1d with as many groups as channels, whose names and shapes the weights have.
    """

    roles = {"weight": Role.GAIN}

    def __init__(self, channels: int, size: Count, bias: bool = False):
        super().__init__()
        within = size**-0.5
        self.weight = nn.Parameter(torch.empty(channels, 1, size).uniform_(-within, within))
        """The oldest input's factor first, as `nn.Conv1d` has it."""

        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.start: Callable[..., Tensor] = the_bias if bias else zero
        self.starts_within = {"weight": (-within, within)}

    def forward(self, x: Channels, context: AttentionContext) -> Channels:
        x, n_before = context.without_padding(x), self.weight.shape[-1] - 1
        (before,) = context.decode_state(self, x.new_zeros(x.shape[0], n_before, x.shape[2]))
        seen = torch.cat((before, x), dim=1)
        context.keep(self, seen[:, x.shape[1] :].clone())  # the rest of it need not be kept
        y = self.start(self.weight, self.bias)
        for i, factor in enumerate(self.weight[:, 0].unbind(dim=1)):
            y = torch.addcmul(y, context.within_document(seen[:, i : i + x.shape[1]], n_before - i), factor)
        return y.type_as(x)


def the_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """What the sum begins with where there is a bias."""
    return bias


def zero(weight: Tensor, bias: None) -> Tensor:
    """What it begins with where there is none; no buffer, which a model loaded without memory would have to fill."""
    return weight.new_zeros(())


class Canon(Block):
    """x + conv(x), a short causal convolution with a residual connection: (batch, seq, channels) -> the same shape.

    Source: arXiv:2512.17351, eq. 4.1 (Canon layers); no activation and no bias, as in its released code (PhysicsLM4,
    huggingface/canon_helper.py).
    """

    SIZE = 4
    """Tokens that it spans. Source: `canon_kernel` of the released LlamaCanon."""

    def __init__(self, channels: int, size: Count = SIZE):
        super().__init__()
        self.conv = CausalConv(channels, size)

    def forward(self, x: Channels, context: AttentionContext) -> Channels:
        return x + self.conv(x, context)

    def saved_activations(self, rules: Accounting) -> Iterator[Term]:
        channels, _, _ = self.conv.weight.shape
        yield Term("canon: input", rules.e * channels)
