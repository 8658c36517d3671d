"""Two arms, the same seeds in each: is the difference real, and is it large enough to matter?"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower

from archlab.base.errors import UserError

Values = Mapping[int, float | None] | Sequence[float | None]
Verdict = Literal["a", "b", "equivalent", "within noise", "one pair"]

POWER = 0.8
"""seeds_needed is the number of pairs with this chance of a decision."""

MANY = 10_000
"""Needing more pairs than this is as good as not knowing how many."""

RESAMPLES = 100_000
"""The permutation test goes through every split where there are no more than this: up to 9 against 9 runs."""


@dataclass(frozen=True)
class Paired:
    """What `paired` found. Effects are in the unit of the values."""

    effect: float | None
    """Mean of a - b over the pairs in which both runs finished; None where there is none."""

    interval: tuple[float, float] | None
    """For the mean of a - b, at `level`; None with a diverged run or fewer than two pairs."""

    level: float
    p: float | None
    """Two-sided, of no difference at all: what `test` says; None with fewer than two pairs."""

    n: int
    """Pairs, those with a diverged run included."""

    verdict: Verdict
    seeds_needed: int | None
    """Only within noise: pairs in all at which a decision is likely; None where that cannot be known."""

    test: Literal["paired t", "worst rank"] | None
    diverged_a: int
    diverged_b: int
    differences: tuple[float | None, ...]
    """a - b of each pair, in the order of `seeds`; None where one of the two diverged."""

    seeds: tuple[int, ...]
    """The pairs' seeds, or their places where a and b are sequences."""

    unpaired: tuple[int, ...]
    """Seeds that only one of the two has; they are left out."""


def paired(
    a: Values, b: Values, *, smallest_effect: float = 0.0, alpha: float = 0.05, lower_is_better: bool = True
) -> Paired:
    """Compares two arms seed by seed.

    `a` and `b` map seed -> value, or are sequences of equal length that are paired by place. A value that is None,
    nan or inf is a run that diverged. `smallest_effect`, in the unit of the values, is the largest difference that
    would make no difference to anyone.

    Where every run finished, d = a - b over the pairs and

    - `effect` is the mean of d, `interval` the paired t interval mean(d) +- t(1 - alpha/2, n - 1) sd(d) / sqrt(n)
      and `p` the two-sided p of the paired t test of mean(d) = 0 (scipy.stats.ttest_rel);
    - the verdict is "a" or "b", the better of the two, where the whole interval lies beyond zero and beyond
      `smallest_effect`, which is to say outside [-smallest_effect, smallest_effect];
    - "equivalent" where the whole interval lies inside (-smallest_effect, smallest_effect). The interval of level
      1 - alpha is wider than the 1 - 2 alpha of two one-sided tests, so this asks for more than they do;
    - "within noise" otherwise. `seeds_needed` is then the number of pairs at which a paired t test of the distance
      between |effect| and `smallest_effect` would have a power of 0.8 (statsmodels TTestPower), if the true effect
      and spread were those observed: with that many, the interval likely ends on one side of `smallest_effect`.
      With smallest_effect=0 it is the test of the observed effect itself. It is None where the spread or that
      distance is zero, or where it would pass 10,000. It is a plan made from few runs, and as noisy as they are;
    - "one pair" where n < 2: nothing can be said of chance, and the effect stands without an interval.

    Where all differences are the same to the last few bits, the seed plays no part: the interval shrinks to the
    effect, p is 0 (1 where the effect is zero), and the same rule gives the verdict.

    Where a run diverged, its value is no number, so means and t don't exist; leaving the pair out would reward the
    arm for failing. All runs of both arms are ranked together instead, the diverged ones tied at the worst rank
    (worst-rank analysis, Source: Lachin 1999, Controlled Clinical Trials 20:408), and `p` is the two-sided
    permutation test of the difference in mean rank between two independent samples (scipy.stats.permutation_test):
    exact up to 9 pairs, 100,000 random splits, always the same, beyond. Pairs play no part in it, which costs power
    where they go together but never makes it too bold. A winner is named where the arm of the better mean rank
    still has p <= alpha after `smallest_effect` was taken off the lead of its finished runs; three against
    three cannot reach 0.05. Otherwise the verdict is "within noise", without `seeds_needed`. `interval` is None,
    and `effect` is over the pairs in which both finished, or None.

    `alpha` is the chance of naming a winner among two arms that do not differ, at smallest_effect=0; it is smaller
    above. Raises UserError where the arms have no pair, or alpha or smallest_effect is no such number.
    """
    _check(smallest_effect, alpha)
    seeds, first, second, unpaired = _pair(a, b)
    finished = np.isfinite(first) & np.isfinite(second)
    difference = np.where(finished, first - second, np.nan)
    found = Paired(
        effect=float(difference[finished].mean()) if finished.any() else None,
        interval=None,
        level=1 - alpha,
        p=None,
        n=len(seeds),
        verdict="one pair",
        seeds_needed=None,
        test=None,
        diverged_a=int((~np.isfinite(first)).sum()),
        diverged_b=int((~np.isfinite(second)).sum()),
        differences=tuple(float(d) if math.isfinite(d) else None for d in difference),
        seeds=seeds,
        unpaired=unpaired,
    )
    if found.n < 2:
        return found
    if finished.all():
        return _by_t(found, first, second, smallest_effect, alpha, lower_is_better)
    return _by_rank(found, first, second, smallest_effect, alpha, lower_is_better)


def _by_t(
    found: Paired, a: np.ndarray, b: np.ndarray, smallest_effect: float, alpha: float, lower_is_better: bool
) -> Paired:
    effect, spread = found.effect, float(np.std(a - b, ddof=1))
    assert effect is not None  # all pairs finished
    rounding = 4 * np.finfo(float).eps * float(np.abs([a, b]).max())
    if spread <= rounding:
        effect = 0.0 if abs(effect) <= rounding else effect
        low, high, p, spread = effect, effect, float(effect == 0), 0.0
    else:
        test = stats.ttest_rel(a, b)
        p = float(test.pvalue)
        low, high = map(float, test.confidence_interval(1 - alpha))
    found = replace(found, effect=effect, interval=(low, high), p=p, test="paired t")
    if low > smallest_effect or high < -smallest_effect:
        return replace(found, verdict="a" if (effect < 0) == lower_is_better else "b")
    if -smallest_effect < low and high < smallest_effect:
        return replace(found, verdict="equivalent")
    needed = pairs_needed(abs(abs(effect) - smallest_effect), spread, alpha)
    # As many as there are already, or fewer, were not enough.
    return replace(found, verdict="within noise", seeds_needed=needed and max(needed, found.n + 1))


def _by_rank(
    found: Paired, a: np.ndarray, b: np.ndarray, smallest_effect: float, alpha: float, lower_is_better: bool
) -> Paired:
    sign = 1 if lower_is_better else -1
    costs = [np.where(np.isfinite(values), sign * values, np.inf) for values in (a, b)]
    lead, p = _rank_test(*costs)
    better, worse = costs if lead < 0 else reversed(costs)
    lead_beyond, p_beyond = _rank_test(better + smallest_effect, worse)
    won = lead != 0 and lead_beyond < 0 and p_beyond <= alpha
    verdict: Verdict = ("a" if lead < 0 else "b") if won else "within noise"
    return replace(found, p=p, verdict=verdict, test="worst rank")


def _rank_test(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Difference in mean rank, a high rank being bad, and the two-sided p of the permutation test of it."""
    ranks = stats.rankdata([*first, *second])

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> Any:
        return x.mean(axis=axis) - y.mean(axis=axis)

    test = stats.permutation_test(
        (ranks[: len(first)], ranks[len(first) :]),
        difference,
        permutation_type="independent",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=RESAMPLES // 10,
        rng=np.random.default_rng(0),
    )
    return float(test.statistic), float(test.pvalue)


def pairs_needed(distance: float, spread: float, alpha: float) -> int | None:
    """Pairs at which a two-sided paired t test of a mean difference has a power of 0.8; None where more than MANY."""
    if not spread or not distance:
        return None
    size, power = distance / spread, TTestPower()
    if power.power(size, 2, alpha) >= POWER:
        return 2
    if power.power(size, MANY, alpha) < POWER:
        return None
    # Over whole numbers, since statsmodels' own root finder can come back with nan.
    return 2 + bisect_left(range(2, MANY + 1), POWER, key=lambda pairs: power.power(size, pairs, alpha))


def _pair(a: Values, b: Values) -> tuple[tuple[int, ...], np.ndarray, np.ndarray, tuple[int, ...]]:
    """Seeds of both in order, the two arms' values, and the seeds that only one of them has."""
    if not isinstance(a, Mapping) and not isinstance(b, Mapping):
        if len(a) != len(b):
            raise UserError(f"paired: {len(a)} values against {len(b)}; give as many of each, or map seed to value")
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        raise UserError("paired: one arm is a mapping and one a sequence; give two mappings of seed to value")
    seeds, unpaired = tuple(sorted(a.keys() & b.keys())), tuple(sorted(a.keys() ^ b.keys()))
    if not seeds:
        raise UserError("paired: the two arms share no seed, so there is no pair; run both at the same seeds")
    # As float64, where None becomes nan.
    first, second = (np.array([arm[seed] for seed in seeds], dtype=float) for arm in (a, b))
    return seeds, first, second, unpaired


def _check(smallest_effect: float, alpha: float) -> None:
    if not (smallest_effect >= 0 and math.isfinite(smallest_effect)):
        raise UserError(f"smallest_effect={smallest_effect}: should be a number, 0 or greater")
    if not 0 < alpha < 1:
        raise UserError(f"alpha={alpha}: should lie between 0 and 1, such as 0.05")
