"""Positions that are added to the embeddings, and none at all.

Those that rotate queries and keys are in `archlab.blocks.rope`, those that add to the scores in `archlab.blocks.bias`.
"""

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor, nn

from archlab.base.quantities import Count, Literal, Natural, Positive
from archlab.blocks.contracts import Position, Stream
from archlab.blocks.two_axes import two_axes


class NoPosition(Position):
    """Adds nothing: the model gets the order of the tokens from its mask alone. Source: arXiv:2305.19466, sec. 3."""

    def __init__(self, d_model: int, n_heads: int, head_dim: int):
        super().__init__()


class LearnedPosition(Position):
    """Adds a learned vector for each position, from a table of `max_positions` rows; undefined beyond it.

    The table has `offset` further rows before that of position 0, which are not used (2 in OPT's published weights).
    Source: arXiv:1810.04805v1, sec. 3.2; GPT-2 has 1024 rows.
    """

    def __init__(self, d_model: int, n_heads: int, head_dim: int, max_positions: Count = 512, offset: Natural = 0):
        super().__init__()
        self.limit = max_positions
        self.offset = offset
        self.table = nn.Embedding(max_positions + offset, d_model)

    def embed(self, x: Stream, positions: Int[Tensor, "#batch seq"]) -> Stream:
        return x + self.table(positions + self.offset)


class LearnedPosition2D(Position):
    """Adds two learned vectors, one for each of a token's two positions, from tables of `max_positions` rows.

    `archlab.blocks.two_axes` says what the two positions are. Source: arXiv:2103.10360, sec. 2.3; GLM-10B has two tables
    of 1025 rows.
    """

    axes = 2

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int,
        max_positions: Count = 512,
        anchor: Literal["last", "next"] = "last",
    ):
        super().__init__()
        self.limit = max_positions
        self.anchor = anchor
        self.tables = nn.ModuleList(nn.Embedding(max_positions, d_model) for _ in range(self.axes))

    def default_positions(
        self, index: Int[Tensor, "#batch seq"], prefix_len: Int[Tensor, " #batch"]
    ) -> Int[Tensor, "#batch 2 seq"]:
        return two_axes(index, prefix_len, self.anchor)

    def embed(self, x: Stream, positions: Int[Tensor, "#batch 2 seq"]) -> Stream:
        return x + sum(table(of_axis) for table, of_axis in zip(self.tables, positions.unbind(dim=1), strict=True))


class SinusoidalPosition(Position):
    """Adds sin(p * base^(-2i/d_model)) at feature 2i and the cosine at 2i + 1; defined at any position.

    Source: arXiv:1706.03762, sec. 3.5.
    """

    def __init__(self, d_model: int, n_heads: int, head_dim: int, base: Positive = 10000.0):
        super().__init__()
        self.base = base
        self.d_model = d_model

    def embed(self, x: Stream, positions: Int[Tensor, "#batch seq"]) -> Stream:
        feature = torch.arange(0, self.d_model, 2, device=positions.device, dtype=torch.float32)
        angles = positions.float()[..., None] * self.base ** (-feature / self.d_model)
        waves = rearrange([angles.sin(), angles.cos()], "two batch seq pairs -> batch seq (pairs two)")
        waves = waves[..., : self.d_model]
        return x + waves.type_as(x)
