"""What becomes of the values of one arm and seed along a swept field, which rises but for `last_over_first`.

A diverged run's value is infinite. `failed` is the loss of a run that learned nothing, where losses are reduced; infinite of
other numbers. nan is what a reduction comes to where the runs have no such number: none learned, or one that it needs diverged.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from archlab.base.metrics import Direction
from archlab.comparison import rates

Numbers = Sequence[float]


def best(xs: Numbers, values: Numbers, failed: float, better: Direction) -> float:
    """The lowest value, or the highest where more is better; nan where no run learned."""
    if better == "higher":
        return max((value for value in values if math.isfinite(value)), default=math.nan)
    return min(values) if rates.learned(values, failed) else math.nan


def best_x(xs: Numbers, values: Numbers, failed: float, better: Direction) -> float:
    """log10 of the x of the lowest value, read off the parabola through it and its neighbours; of an end, that end. nan where no run learned.

    A grid's own place would be the same at almost every seed, as if there were no doubt about it.
    """
    if not rates.learned(values, failed):
        return math.nan
    values = [min(value, failed) for value in values]
    at = int(np.argmin(values))
    if at in (0, len(values) - 1):
        return math.log10(xs[at])
    logs = np.log10(xs[at - 1 : at + 2])
    bend, tilt, _ = np.polyfit(logs - logs[1], values[at - 1 : at + 2], 2)
    return float(logs[1] - tilt / (2 * bend))


def slope(xs: Numbers, values: Numbers, failed: float, better: Direction) -> float:
    """Least-squares slope of log value against log x: the exponent of a power law. nan where a value has no logarithm."""
    if not all(0 < value < math.inf for value in values):
        return math.nan
    return float(np.polyfit(np.log(xs), np.log(values), 1)[0])


def last_over_first(xs: Numbers, values: Numbers, failed: float, better: Direction) -> float:
    """The last value as a multiple of the first; nan where either is infinite, or the first is 0."""
    first, last = values[0], values[-1]
    return last / first if first and math.isfinite(first) and math.isfinite(last) else math.nan


def largest_stable(xs: Numbers, values: Numbers, failed: float, better: Direction) -> float:
    """log10 of the rate up to which a run keeps half of its best gain, between the rates that were run; nan where none learned."""
    return math.log10(rates.stable_up_to(xs, values, failed))


def sensitivity(xs: Numbers, values: Numbers, failed: float, better: Direction) -> float:
    """Mean over x of what is lost against the best value, none counted as worse than `failed`; nan where none learned.

    Source: arXiv:2309.14322, sec. 2.2 (LR sensitivity), with the loss of a failed run in place of the initial loss.
    """
    return rates.sensitivity(values, failed, failed)


REDUCTIONS: dict[str, Callable[[Numbers, Numbers, float, Direction], float]] = {
    "best": best, "best_x": best_x, "slope": slope, "last_over_first": last_over_first, "largest_stable": largest_stable, "sensitivity": sensitivity
}  # fmt: skip

OF_LOSSES = ("best_x", "largest_stable", "sensitivity")
"""What holds losses against that of a run which learned nothing, and says nothing of other numbers."""

BESIDE = {"largest_stable": "best", "sensitivity": "best"}
"""What says nothing alone, and the reduction to be shown beside it: a model that hardly trains is insensitive and stable."""
