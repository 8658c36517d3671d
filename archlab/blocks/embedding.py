"""What is done to the token embeddings before the first layer, besides positions and a norm."""

from collections.abc import Callable

from torch import nn

from archlab.blocks.contracts import Stream

EMBED_SCALES: dict[str, Callable[[int], float]] = {
    "none": lambda d_model: 1.0,
    "sqrt_d_model": lambda d_model: d_model**0.5,
}
"""What the token embeddings are multiplied by. sqrt_d_model: arXiv:1706.03762, sec. 3.4."""


def embed_factor(scale: str | float, d_model: int) -> float:
    """The factor on token embeddings of this width: one of `EMBED_SCALES`, or the number itself.

    Source: arXiv:1706.03762, sec. 3.4 (sqrt_d_model); the embedding_multiplier of Granite's published code (a number).
    """
    return EMBED_SCALES[scale](d_model) if isinstance(scale, str) else float(scale)


class TokenTypes(nn.Embedding):
    """A vector for each type of token. The first is added to every token, since all text here is of one type.

    Source: arXiv:1810.04805, fig. 2, the segment embeddings; rows beyond the first are kept and not used.
    """

    def forward(self, x: Stream) -> Stream:
        return x + self.weight[0]


def make_token_types(types: int | None, d_model: int) -> nn.Module:
    """`TokenTypes` of so many rows, or nothing where `types` is None."""
    return nn.Identity() if types is None else TokenTypes(types, d_model)


def make_projection(d_in: int, d_out: int) -> nn.Module:
    """A linear map between two widths, or nothing where they are the same."""
    return nn.Identity() if d_in == d_out else nn.Linear(d_in, d_out, bias=False)
