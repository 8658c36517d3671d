"""The kinds of number an option may hold, named once and checked wherever a configuration is read."""

from typing import Annotated, Literal

from annotated_types import Interval, MinLen

# Every kind has an end, beyond which nothing could be computed or counted: a few digits too many are a mistake in typing.

Count = Annotated[int, Interval(ge=1, lt=2**31)]
"""At least one of something: steps, sequences, rows of a table."""

Width = Annotated[int, Interval(ge=1, le=2**20)]
"""A number of features or heads, such that a matrix of two of them has no more numbers than 64 bits can count."""

Depth = Annotated[int, Interval(ge=1, le=1000)]
"""A number of layers; the deepest that were published are DeepNet's 1000 (arXiv:2203.00555)."""

Tokens = Annotated[int, Interval(ge=1, lt=2**53)]
"""A budget of tokens."""

AtOnce = Annotated[int, Interval(ge=1, le=2**28)]
"""Tokens that are held together: of a sequence, or of all that is evaluated."""

Natural = Annotated[int, Interval(ge=0, lt=2**63)]
"""Zero or more of something: warm-up steps, a seed."""

Positive = Annotated[float, Interval(gt=0, le=1e30)]
"""A number above zero, with room to the end of float32: a learning rate, an epsilon."""

NonNegative = Annotated[float, Interval(ge=0, le=1e30)]
"""A number that may be zero: a weight decay."""

Probability = Annotated[float, Interval(ge=0, lt=1)]
"""A share in [0, 1): dropout."""

Share = Annotated[float, Interval(gt=0, le=1)]
"""A share in (0, 1]: the rotated part of a head."""

Fraction = Annotated[float, Interval(ge=0, le=1)]
"""A share in [0, 1]."""

Counts = Annotated[list[Count], MinLen(1)]
"""A non-empty list of counts: the lengths to evaluate at."""

__all__ = [
    "AtOnce", "Count", "Counts", "Depth", "Fraction", "Literal", "Natural", "NonNegative", "Positive", "Probability",
    "Share", "Tokens", "Width",
]  # fmt: skip
