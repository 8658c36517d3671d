"""A gated convolution over a few tokens, in the place of attention in most layers of a small model."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.quantities import Count, Probability
from archlab.blocks.causal_conv import CausalConv
from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Position, Stream
from archlab.blocks.norm import MakeWidthNorm, no_norm
from archlab.blocks.recurrent import Recurrent, drawn_op, drawn_part
from archlab.blocks.steps import DrawnStep


class GatedShortConv(Recurrent):
    """out_proj(C * conv(B * x)), with B, C and x one projection, in this order, and conv over a few tokens of each channel.

    A token sees conv_size - 1 tokens before it and no more, which are all that decoding keeps.

    Options:

    conv_size  tokens that the convolution spans
    bias       whether the projections and the convolution have a bias

    Source: arXiv:2511.23404 (LFM2); Hugging Face's Lfm2ShortConv.
    """

    chunk = 1

    def __init__(
        self,
        d_model: int,
        conv_size: Count = 3,
        bias: bool = False,
        dropout: Probability = 0.0,
        inner_norm: MakeWidthNorm = no_norm,
    ):
        super().__init__(d_model, d_model, bias, dropout, inner_norm)
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.conv_size = conv_size
        self.conv = CausalConv(d_model, conv_size, bias)

    def mix(self, x: Stream, context: AttentionContext) -> Float[Tensor, "batch seq width"]:
        before, after, to_convolve = self.in_proj(x).chunk(3, dim=-1)
        return after * self.conv(before * to_convolve, context)

    def drawn(self, position: Position) -> Iterator[DrawnStep]:
        yield drawn_part("in_proj")
        yield drawn_op("B × x", 1)
        yield drawn_op(f"conv over {self.conv_size} tokens", 2)
        yield drawn_op("C ×", 1, 3)
