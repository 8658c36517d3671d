"""What a sweep of the learning rate says of one seed: how far up it is stable, and how much a wrong rate costs.

Losses are in nats per token, in rising order of the rate; a diverged run's is infinite. `failed` is the loss of a run that
learned nothing but token frequencies (its unigram loss), and none counts as worse than that.
"""

import math
from collections.abc import Sequence

import numpy as np

from archlab.base.plateau import on_plateau
from archlab.comparison.rule import KEPT_GAIN

Numbers = Sequence[float]


def learned(losses: Numbers, failed: float) -> bool:
    """Whether it left the plateau at any rate."""
    return not on_plateau(min(losses), failed)


def stable_up_to(rates: Numbers, losses: Numbers, failed: float) -> float:
    """The rate up to which, from the best one on, a run keeps half of what the best one gained over `failed`; nan where none learned.

    The loss is a straight line over the logarithm of the rate between two that were run, so that the answer is not one of
    the rates swept but where the line reaches best + (failed - best) / 2. Where it never does, the largest rate that was run,
    which is then a lower bound (`at_edge`).
    """
    if not learned(losses, failed):
        return math.nan
    x, capped = np.log(np.asarray(rates, dtype=float)), np.minimum(losses, failed)
    i = first_unstable(losses, failed)
    if i is None:
        return float(rates[-1])
    limit = capped.min() + KEPT_GAIN * (failed - capped.min())
    share = (limit - capped[i - 1]) / (capped[i] - capped[i - 1])
    return float(np.exp(x[i - 1] + share * (x[i] - x[i - 1])))


def stable_within(rates: Numbers, losses: Numbers, failed: float) -> tuple[float, float]:
    """Two rates between which `stable_up_to` is known to lie.

    They are both that rate where the line it is read off is between two runs that learned. A run that learned nothing ends at
    the plateau by however little its rate is too large, so that of a step up to it no more is known than its two ends.
    """
    i, seen = first_unstable(losses, failed), stable_up_to(rates, losses, failed)
    if i is None or math.isnan(seen) or not on_plateau(losses[i], failed):
        return seen, seen
    return float(rates[i - 1]), float(rates[i])


def at_edge(losses: Numbers, failed: float) -> bool:
    """Whether the largest rate that was run is stable still, so that `stable_up_to` is a lower bound only."""
    return learned(losses, failed) and first_unstable(losses, failed) is None


def first_unstable(losses: Numbers, failed: float) -> int | None:
    """The place of the first loss, from the best one on, that has lost half of its gain; None where none has."""
    capped = np.minimum(losses, failed)
    at = int(np.argmin(capped))
    above = np.flatnonzero(capped[at:] > capped[at] + KEPT_GAIN * (failed - capped[at]))
    return at + int(above[0]) if len(above) else None


def sensitivity(losses: Numbers, cap: float, failed: float) -> float:
    """Mean over the rates of min(loss, cap) - best loss; nan where none learned.

    It is small for a model that hardly trains at any rate, so it is to be read beside the best loss alone.
    Source: arXiv:2309.14322, sec. 2.2 (learning-rate sensitivity), where the cap is the loss at initialisation.
    """
    if not learned(losses, failed):
        return math.nan
    return float(np.mean(np.minimum(losses, cap)) - min(losses))
