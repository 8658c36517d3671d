"""The kinds of number an option may hold, named once and checked wherever a configuration is read."""

import math
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Lt, MinLen

Count = Annotated[int, Ge(1)]
"""At least one of something: layers, heads, steps."""

Natural = Annotated[int, Ge(0)]
"""Zero or more of something: warm-up steps, a seed."""

Positive = Annotated[float, Gt(0), Lt(math.inf)]
"""A number above zero: a learning rate, an epsilon."""

NonNegative = Annotated[float, Ge(0), Lt(math.inf)]
"""A number that may be zero: a weight decay."""

Probability = Annotated[float, Interval(ge=0, lt=1)]
"""A share in [0, 1): dropout."""

Share = Annotated[float, Interval(gt=0, le=1)]
"""A share in (0, 1]: the rotated part of a head."""

Fraction = Annotated[float, Interval(ge=0, le=1)]
"""A share in [0, 1]."""

Counts = Annotated[list[Count], MinLen(1)]
"""A non-empty list of counts: the lengths to evaluate at."""

__all__ = ["Count", "Counts", "Fraction", "Literal", "Natural", "NonNegative", "Positive", "Probability", "Share"]
