"""How many times as fast one thing is as another, from rounds in which both were timed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval
from scipy import stats

LEVEL = 0.95
FEWEST = 6
"""Rounds: five that all fall on one side of the median are a matter of chance in 1 case of 16, six in 1 of 32."""

Rounds = Annotated[int, Interval(ge=FEWEST, le=1000)]


@dataclass(frozen=True)
class SpeedRatio:
    """How many times as fast as the other it is: the median over the rounds, with an interval that holds it 95% of the time."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def verdict(self) -> Literal["faster", "slower", "within noise"]:
        """A side is named only where the whole interval lies on it."""
        return "faster" if self.low > 1 else "slower" if self.high < 1 else "within noise"

    def to_record(self) -> dict[str, float | int | str]:
        """The same as a record."""
        return {
            "ratio": self.median,
            "low": self.low,
            "high": self.high,
            "rounds": self.rounds,
            "verdict": self.verdict,
        }


def speed_ratio(seconds: Sequence[float], of_other: Sequence[float]) -> SpeedRatio:
    """How many times as fast the first is; both hold seconds a round, of the same rounds in the same order.

    The interval is that of the sign test: it reaches from one of the sorted ratios to another, so it takes no shape of
    the noise for granted, and a round in which the machine was busy elsewhere cannot move it. It holds at least 95%
    for rounds that are independent of each other.

    Source: Conover, Practical Nonparametric Statistics, 3rd ed., sec. 3.2 (scipy.stats.quantile_test). Raises ValueError
    for fewer than six rounds, which have no such interval.
    """
    if len(seconds) < FEWEST:
        raise ValueError(f"{len(seconds)} rounds have no interval at {LEVEL:.0%}; there should be at least {FEWEST}")
    ratios = np.array(of_other, dtype=float) / np.array(seconds, dtype=float)
    interval = stats.quantile_test(ratios, q=1.0, p=0.5).confidence_interval(LEVEL)
    return SpeedRatio(float(np.median(ratios)), float(interval.low), float(interval.high), len(ratios))
