"""The mean of paired differences, looked at as often as one likes: an e-process, its confidence sequence, and signs.

For n differences with mean `mean` and standard deviation `sd` (n - 1), and a hypothetical mean m,

    e_n(m) = (1 + n g)^(-1/2) [(1 + u) / (1 + u / (1 + n g))]^(n/2),    u = n (mean - m)^2 / ((n - 1) sd^2)

is the likelihood ratio of "mean = m + delta sigma, delta ~ N(0, g)" to "mean = m" with sigma taken out by its right Haar
measure, 1/sigma. Where m is the mean and the differences are independent and normal, whatever their variance, it is a
martingale of expectation 1, so that the chance that it ever reaches 1/alpha is at most alpha (Ville). The confidence sequence is
what is left, {m : e_n(m) < 1/alpha}: all its intervals at once hold the mean with a chance of 1 - alpha, and so does the one
at which somebody stopped for whatever reason.

Source: arXiv:2310.03722, theorem 4.9 (Gaussian mixture of scale-invariant likelihood ratios), with c^2 = 1/g there.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import betainc, betaln, ndtri

from archlab.comparison.rule import DRAWN_FLIPS, EXACT_FLIPS, FAILURE_PRIOR, MANY, POWER, PRIOR_SCALE

LARGEST = 1e100
"""E-values are cut here, so that none is infinite: more evidence makes no difference to anyone."""


def e_value(distance: float | np.ndarray, sd: float | np.ndarray, n: int, g: float = PRIOR_SCALE) -> np.ndarray:
    """e_n(m) of the module's formula for `distance` = mean - m; needs n >= 2 and sd > 0. Arrays go through element by element."""
    u = n / (n - 1) * (np.asarray(distance) / sd) ** 2
    wide = 1 + n * g
    log_e = n / 2 * (np.log1p(u) - np.log1p(u / wide)) - math.log(wide) / 2
    return np.asarray(np.exp(np.minimum(log_e, math.log(LARGEST))))


def half_width(n: int, alpha: float, g: float = PRIOR_SCALE) -> float:
    """Half the width of the confidence sequence at n differences, in units of their standard deviation.

    e_n(m) < 1/alpha solved for the distance: with K = ((1 + n g)^(1/2) / alpha)^(2/n),

        half^2 = (n - 1)/n (K - 1) / (1 - K / (1 + n g))

    Infinite where K >= 1 + n g, as with very few pairs: there no distance is far enough.
    """
    if n < 2:
        return math.inf
    wide = 1 + n * g
    log_k = 2 / n * (math.log(wide) / 2 - math.log(alpha))
    if log_k >= math.log(wide):
        return math.inf
    k = math.exp(log_k)
    return math.sqrt((n - 1) / n * (k - 1) / (1 - k / wide))


def one_sided_e(low: float, high: float, mean: float, sd: float, n: int) -> float:
    """The e-value against "the mean lies in [low, high]", either of which may be infinite: the least e_n(m) over it."""
    nearest = min(max(mean, low), high)
    return float(e_value(mean - nearest, sd, n))


def pairs_needed(distance: float, sd: float, alpha: float, above: int = 1) -> int | None:
    """Pairs, more than `above`, at which a confidence sequence likely ends on one side of a value `distance` from the mean.

    The least n with half_width(n) + z / sqrt(n) <= distance / sd, where z is the normal quantile of 0.8: the mean of n
    differences falls short of the true one by z sd / sqrt(n) in one of five studies. It takes the mean and deviation
    seen for the true ones, and is as noisy as they are. None where distance or deviation is 0, or where it would pass 10,000.
    """
    if not distance or not sd:
        return None
    z = float(ndtri(POWER))

    def enough(n: int) -> bool:
        return half_width(n, alpha) + z / math.sqrt(n) <= abs(distance) / sd

    return least(enough, above + 1)


def least(enough: Callable[[int], bool], start: int) -> int | None:
    """The least number of pairs from `start` on that is enough, where all above it are; None where 10,000 are not."""
    if not enough(MANY):
        return None
    return start + bisect_left(range(start, MANY), True, key=enough)


# ---------------------------------------------------------------- shares

BETS = np.array([0.25, 0.5, 0.75, 1.0])
"""Of what may be staked on the next pair, mixed evenly and fixed in advance: mostly much, since shares lie far from their bounds."""


def bounded_e(differences: np.ndarray, mean: float, largest: float) -> np.ndarray:
    """The e-value against "their mean is `mean` or less", of differences that cannot be beyond `largest`; over the last axis.

        e = 1/2 mean over c of the product of 1 + c (d - mean) / (largest + mean)

    It takes nothing for granted but that bound: not that what was never seen is rare. The half is for asking both ways, as
    that of `majority_e`. Valid at any stopping time. Source: arXiv:2010.09686 (bets on bounded numbers), with a mixture of
    constant bets.
    """
    with np.errstate(divide="ignore"):  # all is lost where all was staked
        logs = np.log1p(BETS[:, *(None,) * differences.ndim] * (differences - mean) / (largest + mean)).sum(axis=-1)
    return np.exp(np.minimum(logs, math.log(LARGEST))).mean(axis=0) / 2


def bounded_interval(differences: np.ndarray, largest: float, alpha: float) -> tuple[float, float]:
    """The means that `bounded_e` rules out neither from below nor from above, at 1/alpha."""

    def low(of: np.ndarray) -> float:
        step = largest * 2.0**-20
        places = range(2**21 - 1)  # the e-value falls as the mean rises
        ruled_out = bisect_left(
            places, True, key=lambda i: bool(bounded_e(of, (i + 1) * step - largest, largest) < 1 / alpha)
        )
        return ruled_out * step - largest

    return low(differences), -low(-differences)


# ---------------------------------------------------------------- signs


def majority_e(more: float, less: float, prior: tuple[float, float] = FAILURE_PRIOR) -> float:
    """The e-value against "one of two outcomes is as likely as the other, or less", seen `more` and `less` times.

        e = 1/2 integral of (2 p)^more (2 (1 - p))^less w(p) dp over p in (1/2, 1),   w a Beta density cut to (1/2, 1)

    The half makes the two directions' e-values together one against "equally likely", so that asking both ways costs no more
    than alpha. A likelihood ratio of independent outcomes, hence valid at any stopping time.
    """
    a, b = prior
    whole = betaln(a, b) + math.log(betainc(b, a, 0.5))
    seen = betaln(more + a, less + b) + math.log(max(betainc(less + b, more + a, 0.5), 1e-300))
    log_e = (more + less - 1) * math.log(2) + seen - whole
    return math.exp(min(log_e, math.log(LARGEST)))


def flip_p(differences: Sequence[float] | np.ndarray) -> float | None:
    """One-sided p of "the differences lie symmetrically about 0 or below", by flipping their signs.

    The share of sign assignments whose sum is at least that seen: all 2^n of them up to 16 differences, else (1 + those among
    100,000 drawn ones) / 100,001, always the same ones. It holds at a number of pairs fixed in advance, and not where one looks
    again and again. None of fewer than two differences. scipy.stats.permutation_test gives the same, and takes seconds for it.
    """
    d = np.asarray(differences, dtype=float)
    n = len(d)
    if n < 2:
        return None
    tie = float(np.abs(d).sum()) * 1e-14  # sums that differ by rounding alone are equal
    if n <= EXACT_FLIPS:
        sums = np.zeros(1)
        for one in d:
            sums = np.concatenate([sums + one, sums - one])
        return float(np.mean(sums >= d.sum() - tie))
    signs = np.random.default_rng(0).integers(0, 2, (DRAWN_FLIPS, n), dtype=np.int8) * 2 - 1
    return float((1 + np.sum(signs @ d >= d.sum() - tie)) / (1 + DRAWN_FLIPS))
