"""Two arms, the same seeds in each: which is better, do they tie, what is ruled out, or is it open?

The one rule of claims, comparisons, stability maps and reports. Nothing in it has to be fixed in advance but the margin and
alpha: seeds may be added and looked at until something is decided.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np

from archlab.base.errors import UserError
from archlab.base.metrics import Direction
from archlab.comparison.rule import ALPHA
from archlab.comparison.sequence import (
    LARGEST,
    bounded_e,
    bounded_interval,
    flip_p,
    half_width,
    least,
    majority_e,
    one_sided_e,
    pairs_needed,
)

Values = Mapping[int, float | None] | Sequence[float | None]
Reading = Literal["a", "b", "above", "below", "tie", "not a", "not b", "not above", "not below", "open"]

DECIDED = frozenset({"a", "b", "above", "below", "tie"})
"""Readings after which no more seeds are needed; the others rule something out at most."""

SIDES: Mapping[Direction | None, tuple[Reading, Reading]] = {
    "lower": ("b", "a"),
    "higher": ("a", "b"),
    None: ("above", "below"),
}
"""What it means that a - b lies above the margin, and below its negative."""

NEVER = 1e-200
"""An alpha that no e-value reaches."""

OPPOSITE: Mapping[str, Reading] = {"a": "not b", "b": "not a"}


@dataclass(frozen=True)
class Failures:
    """How often either arm failed, of the pairs. A run fails where it diverged or never left the unigram plateau."""

    a: int
    b: int
    only_a: int
    """Pairs in which a failed and b did not. The others say nothing of who fails more."""

    only_b: int
    e_a_fails_more: float
    """Against "a fails no more often than b" (`majority_e` of the two above)."""

    e_b_fails_more: float
    n: int
    """Pairs."""

    @property
    def p_boschloo(self) -> float | None:
        """Boschloo's exact test, two-sided, of equal chances (scipy.stats.boschloo_exact). None where none failed.

        Like the sign-flip p it holds at a number of seeds fixed in advance only, and decides nothing.
        """
        return boschloo(self.a, self.b, self.n) if self.a or self.b else None

    @property
    def unseen(self) -> float:
        """The chance of failing at which n runs without a failure are as rare as one in twenty: 1 - 0.05^(1/n).

        What a tie leaves possible of either arm. It holds at a number of seeds fixed in advance.
        """
        return float(1 - ALPHA ** (1 / self.n))

    @property
    def alike(self) -> bool:
        """Whether no pair has one failure alone."""
        return not self.only_a and not self.only_b


@dataclass(frozen=True)
class Judged:
    """What `judge` found. Values are in the unit of what was compared; e-values and p are against the margin."""

    n: int
    """Pairs, those with a failed run included."""

    seeds: tuple[int, ...]
    """The pairs' seeds, or their places where a and b are sequences."""

    unpaired: tuple[int, ...]
    """Seeds that only one of the two has; they are left out."""

    differences: tuple[float | None, ...]
    """a - b of each pair, in the order of `seeds`; None where one of the two failed."""

    better: Direction | None
    margin: float
    alpha: float
    effect: float | None
    """Mean of a - b over the pairs in which neither failed; None where there is none."""

    sd: float | None
    """Standard deviation of these differences; 0 where they agree to the last bits, None of fewer than two."""

    interval: tuple[float, float] | None
    """Of the confidence sequence for the mean of a - b at 1 - alpha. None where it is infinite: with few pairs, or where all
    differences are the same."""

    e_above: float
    """Against "mean <= margin"."""

    e_below: float
    """Against "mean >= -margin"."""

    e_not_above: float
    """Against "mean >= margin"."""

    e_not_below: float
    """Against "mean <= -margin"."""

    by: Literal["mean", "signs"]
    """What the e-values are of: `signs` where all differences are the same."""

    failures: Failures
    of_losses: Reading
    """What the pairs in which neither failed say, taken alone."""

    reading: Reading
    needed: int | None
    """Pairs in all at which a decision is likely; None where there is one, or where that cannot be known."""

    @cached_property
    def p_above(self) -> float | None:
        """Sign-flip p of "mean <= margin", one-sided. It holds at a number of seeds fixed in advance only, and decides nothing."""
        return flip_p([d - self.margin for d in self.differences if d is not None])

    @cached_property
    def p_below(self) -> float | None:
        """Sign-flip p of "mean >= -margin"."""
        return flip_p([-d - self.margin for d in self.differences if d is not None])

    @property
    def level(self) -> float:
        return 1 - self.alpha

    @property
    def e_inside(self) -> float:
        """Against "mean outside (-margin, margin)"."""
        return min(self.e_not_above, self.e_not_below)

    @property
    def e_outside(self) -> float:
        """Against "mean inside [-margin, margin]"."""
        return max(self.e_above, self.e_below)

    @property
    def p_flip(self) -> float | None:
        """Two-sided, against the margin: twice that of the side on which the effect lies, which nobody named in advance."""
        one_side = self.p_above if (self.effect or 0.0) > 0 else self.p_below
        return None if one_side is None else min(1.0, 2 * one_side)

    @property
    def decided(self) -> bool:
        return self.reading in DECIDED

    @property
    def e(self) -> float:
        """An e-value of what is decided: losses alone where no pair has one failure alone, else of losses and failures together.

        Of the statements about the mean (above, below, inside), those that are false have e-values no larger than the one e_n
        at the true mean, so the largest of them, L, is an e-value still. So is F_a + F_b, of the e-values that either arm
        fails more (`majority_e`), and since L is one whatever the pattern of failures, so are products with it. Together:
        the larger of F_b (L_a + 1) / 2 and F_a (L_b + 1) / 2, where L_a speaks for a and is 0 where failures forbid it.
        A reading by failures alone can be reached at an e-value of half of 1/alpha.
        """
        top, bottom = SIDES[self.better]
        of: dict[Reading, float] = {top: self.e_above, bottom: self.e_below, "tie": self.e_inside}
        allowed = {
            reading: e
            for reading, e in of.items()
            if _with_failures(reading, self.failures, self.better, NEVER) == reading
        }
        if self.failures.alike:
            return max(allowed.values())
        if self.better is None:
            return 0.0
        for_a, for_b = self.failures.e_b_fails_more, self.failures.e_a_fails_more
        return max(for_a * (allowed.get("a", 0.0) + 1), for_b * (allowed.get("b", 0.0) + 1)) / 2


def judge(
    a: Values,
    b: Values,
    *,
    better: Direction | None,
    margin: float,
    failed_a: Collection[int] = (),
    failed_b: Collection[int] = (),
    alpha: float = ALPHA,
    largest: float | None = None,
) -> Judged:
    """Compares two arms seed by seed.

    `a` and `b` map seed -> value, or are sequences of equal length that are paired by place. A run fails where its value is
    None or not finite, or where its seed (or place) is in `failed_a` or `failed_b`. `margin`, in the unit of the values, is the
    largest difference that would make no difference to anyone. `better` says which way is better; None, of a number that is
    neither, names the side of a - b instead.

    Losses given success: d = a - b over the pairs in which neither failed, with its confidence sequence
    (archlab.comparison.sequence), valid at any stopping time. Readings, where `better` is "lower":

        a, b           the whole interval lies below -margin, or above margin (above, below where better is None)
        tie            it lies inside (-margin, margin)
        not a, not b   it ends above -margin, or below margin: that arm does not win by more than the margin (not above,
                       not below where better is None)
        open           otherwise

    Where all differences are the same to the last few bits there is no spread to measure, and a number that takes few values
    can come out so by chance. The interval is then infinite, and signs decide: n differences beyond the margin on one side
    weigh as n tosses of a coin do (`majority_e`), which is enough from six on at alpha=0.05.

    `largest` is how far apart two values can be at most, where that is known: 1 for shares, such as the answers that a model
    finds. A rule that one run in six finds is not seen in several pairs, and their spread says nothing of it; so whatever is
    said of shares also has to hold however they are spread (`bounded_e`), which takes ten pairs at least, and does not find
    a tie within a tenth in 24.

    Failures are an endpoint of their own, whatever the direction of the metric. By `majority_e` over the pairs in which one arm
    alone failed, an arm that fails more often, at 1/alpha, has lost. Short of that an arm with more failures cannot win, tie or
    be said to be no worse, and a pair with one failure forbids a tie: two arms of which one fails three times in ten are not
    alike, however alike their losses given success. Where both failed, the pair says nothing. Where `better` is None, failures
    name no winner, and forbid a tie.

    Each of the two endpoints has a chance of at most alpha of a wrong statement; both together, measured, no more than alpha
    (experiments/aa). Raises UserError where the arms have no pair, or alpha or margin is no such number.
    """
    check(margin, alpha, largest)
    if better not in SIDES:
        raise UserError(f"better={better}: should be lower, higher or None")
    seeds, first, second, unpaired = pair_up(a, b)
    lost_a = ~np.isfinite(first) | np.isin(seeds, list(failed_a))
    lost_b = ~np.isfinite(second) | np.isin(seeds, list(failed_b))
    both = ~lost_a & ~lost_b
    x, y = first[both], second[both]
    losses = _losses(x, y, margin, alpha)
    if largest is not None and len(x) > 1:
        losses = _however_spread(losses, x - y, margin, alpha, largest)
    failures = _failures(lost_a, lost_b)
    difference = np.where(both, np.where(both, first, 0) - np.where(both, second, 0), np.nan)
    of_losses = _read(losses, better, alpha)
    reading = _with_failures(of_losses, failures, better, alpha)
    needed = None
    if reading not in DECIDED:
        needed = _needed(losses, failures, len(seeds), len(x), better, margin, alpha)
        if needed is not None and largest is not None:
            needed = _needed_of_shares(x - y, needed, margin, alpha, largest)
    return Judged(
        n=len(seeds),
        seeds=seeds,
        unpaired=unpaired,
        differences=tuple(float(d) if math.isfinite(d) else None for d in difference),
        better=better,
        margin=margin,
        alpha=alpha,
        failures=failures,
        of_losses=of_losses,
        reading=reading,
        needed=needed,
        **losses,
    )


def of_bounds(found: Judged, *, at_least: bool, at_most: bool) -> Judged:
    """The same where differences are only bounds: some are `at_least` as large as they were seen, some `at_most`.

    Where the mean may be larger than what was seen, nothing speaks for below, inside or not above; where it may be smaller,
    nothing speaks for above, inside or not below. There is no interval of it; failures are what they are.
    """
    gone = {*(("e_below", "e_not_above") if at_least else ()), *(("e_above", "e_not_below") if at_most else ())}
    if not gone:
        return found
    effect = found.effect or 0.0
    leaning = (effect > found.margin and not at_most) or (effect < -found.margin and not at_least)
    return _read_again(found, dict.fromkeys(gone, 0.0), leaning)


def between(found: Judged, least: Judged, most: Judged) -> Judged:
    """The same where of each difference no more is known than that it lies between that of `least` and that of `most`.

    That the mean is not beyond the margin, on one side or on both, then has to hold of the differences furthest out. What is
    said of a difference is said of those that were seen. There is no interval of it; failures are what they are.
    """
    less = {
        "e_not_above": min(found.e_not_above, most.e_not_above),
        "e_not_below": min(found.e_not_below, least.e_not_below),
    }
    if all(e == getattr(found, name) for name, e in less.items()):
        return found
    return _read_again(found, less, abs(found.effect or 0.0) > found.margin)


def _read_again(found: Judged, changed: Mapping[str, float], leaning: bool) -> Judged:
    """With these e-values in the place of its own; `leaning`: whether more pairs like those seen would decide it."""
    names = ("e_above", "e_below", "e_not_above", "e_not_below")
    losses: dict[str, Any] = {name: getattr(found, name) for name in names} | dict(changed)
    of_losses = _read(losses, found.better, found.alpha)
    reading = _with_failures(of_losses, found.failures, found.better, found.alpha)
    needed = found.needed if reading not in DECIDED and (leaning or not found.failures.alike) else None
    return replace(found, **losses, of_losses=of_losses, reading=reading, interval=None, needed=needed)


def _losses(a: np.ndarray, b: np.ndarray, margin: float, alpha: float) -> dict:
    """The fields of Judged that say where the mean of a - b lies."""
    n, d = len(a), a - b
    if n < 2:
        effect = float(d[0]) if n else None
        none = dict.fromkeys(("e_above", "e_below", "e_not_above", "e_not_below"), 1.0)
        return {"effect": effect, "sd": None, "interval": None, "by": "mean", **none}
    effect, sd = float(d.mean()), float(d.std(ddof=1))
    rounding = 4 * float(np.finfo(float).eps) * float(np.abs([a, b]).max())
    if sd <= rounding:
        effect = 0.0 if abs(effect) <= rounding else effect
        signs = {
            "e_above": _sign_e(n, effect - margin),
            "e_below": _sign_e(n, -effect - margin),
            "e_not_above": _sign_e(n, margin - effect),
            "e_not_below": _sign_e(n, margin + effect),
        }
        return {"effect": effect, "sd": 0.0, "interval": None, "by": "signs", **signs}
    half = half_width(n, alpha) * sd
    means = {
        "e_above": one_sided_e(-math.inf, margin, effect, sd, n),
        "e_below": one_sided_e(-margin, math.inf, effect, sd, n),
        "e_not_above": one_sided_e(margin, math.inf, effect, sd, n),
        "e_not_below": one_sided_e(-math.inf, -margin, effect, sd, n),
    }
    interval = (effect - half, effect + half) if math.isfinite(half) else None
    return {"effect": effect, "sd": sd, "interval": interval, "by": "mean", **means}


def _however_spread(losses: dict, d: np.ndarray, margin: float, alpha: float, largest: float) -> dict:
    """The same, where each e-value is the smaller one of that of the spread and that of any spread within the bounds."""
    bounded = {
        "e_above": bounded_e(d, margin, largest),
        "e_below": bounded_e(-d, margin, largest),
        "e_not_above": bounded_e(-d, -margin, largest),
        "e_not_below": bounded_e(d, -margin, largest),
    }
    low, high = bounded_interval(d, largest, alpha)
    if losses["interval"] is not None:
        low, high = min(low, losses["interval"][0]), max(high, losses["interval"][1])
    evidence = {name: min(losses[name], float(e)) for name, e in bounded.items()}
    return losses | evidence | {"interval": (low, high)}


def _sign_e(n: int, beyond: float) -> float:
    """Of n differences that all lie `beyond` what they are held against; 0 is on neither side."""
    return majority_e(n if beyond > 0 else 0, n if beyond < 0 else 0)


def _read(losses: Mapping, better: Direction | None, alpha: float) -> Reading:
    above, below, not_above, not_below = (
        losses[name] >= 1 / alpha for name in ("e_above", "e_below", "e_not_above", "e_not_below")
    )
    top, bottom = SIDES[better]
    names: dict[str, Reading] = {"b": "not b", "a": "not a", "above": "not above", "below": "not below"}
    if above or below:
        return top if above else bottom
    if not_above and not_below:
        return "tie"
    return names[top] if not_above else names[bottom] if not_below else "open"


def _with_failures(of_losses: Reading, failures: Failures, better: Direction | None, alpha: float) -> Reading:
    if better is None:
        return "open" if of_losses == "tie" and not failures.alike else of_losses
    if failures.e_a_fails_more >= 1 / alpha:
        return "b"
    if failures.e_b_fails_more >= 1 / alpha:
        return "a"
    if failures.alike:
        return of_losses
    if failures.only_a == failures.only_b:
        return "open" if of_losses == "tie" else of_losses
    safer: Literal["a", "b"] = "a" if failures.only_a < failures.only_b else "b"
    frailer = "b" if safer == "a" else "a"
    if of_losses == "tie":
        return OPPOSITE[safer]
    # Of what losses alone say, only what speaks for the arm that fails less holds with the failures as well.
    return of_losses if of_losses in (safer, f"not {frailer}") else "open"


def _failures(lost_a: np.ndarray, lost_b: np.ndarray) -> Failures:
    n, k_a, k_b = len(lost_a), int(lost_a.sum()), int(lost_b.sum())
    only_a, only_b = int((lost_a & ~lost_b).sum()), int((lost_b & ~lost_a).sum())
    return Failures(k_a, k_b, only_a, only_b, majority_e(only_a, only_b), majority_e(only_b, only_a), n)


@cache
def boschloo(k_a: int, k_b: int, n: int) -> float:
    """Two-sided p of equal chances, of k_a and k_b out of n each."""
    from scipy import stats  # here, since it takes a second to import, and is needed only where runs failed

    return float(stats.boschloo_exact([[k_a, k_b], [n - k_a, n - k_b]]).pvalue)


def _needed(
    losses: Mapping, failures: Failures, n: int, n_losses: int, better: Direction | None, margin: float, alpha: float
) -> int | None:
    """The fewer of what losses and failures would take, if both went on as they did."""
    ways = []
    effect, sd = losses["effect"], losses["sd"]
    if sd is not None and losses["by"] == "signs":
        sure = least(lambda pairs: majority_e(pairs, 0) >= 1 / alpha, n_losses + 1)
        ways.append(sure if abs(effect) != margin else None)
    elif sd is not None:
        leaning = _read(
            {
                "e_above": LARGEST * (effect > margin),
                "e_below": LARGEST * (effect < -margin),
                "e_not_above": LARGEST * (effect < margin),
                "e_not_below": LARGEST * (effect > -margin),
            },
            better,
            alpha,
        )
        if _with_failures(leaning, failures, better, alpha) in DECIDED:
            pairs = pairs_needed(abs(effect) - margin, sd, alpha, above=n_losses)
            ways.append(pairs and math.ceil(pairs * n / n_losses))
    if better is not None and failures.only_a != failures.only_b:
        more, less = sorted((failures.only_a / n, failures.only_b / n), reverse=True)
        ways.append(least(lambda pairs: majority_e(more * pairs, less * pairs) >= 1 / alpha, n + 1))
    known = [pairs for pairs in ways if pairs is not None]
    return min(known, default=None)


def _needed_of_shares(d: np.ndarray, by_spread: int, margin: float, alpha: float, largest: float) -> int | None:
    """As many as their spread takes, or more: if the next pairs are those that were seen, over and over."""
    effect = float(d.mean())

    def enough(pairs: int) -> bool:
        seen = np.resize(d, pairs)
        above, below = bounded_e(seen, margin, largest), bounded_e(-seen, margin, largest)
        inside = min(bounded_e(seen, -margin, largest), bounded_e(-seen, -margin, largest))
        return bool((above if effect > margin else below if effect < -margin else inside) >= 1 / alpha)

    return least(enough, by_spread)  # which is more than there are


def pair_up(a: Values, b: Values) -> tuple[tuple[int, ...], np.ndarray, np.ndarray, tuple[int, ...]]:
    """Seeds of both in order, the two arms' values, and the seeds that only one of them has. Raises UserError."""
    if not isinstance(a, Mapping) and not isinstance(b, Mapping):
        if len(a) != len(b):
            raise UserError(f"judge: {len(a)} values against {len(b)}; give as many of each, or map seed to value")
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        raise UserError("judge: one arm is a mapping and one a sequence; give two mappings of seed to value")
    seeds, unpaired = tuple(sorted(a.keys() & b.keys())), tuple(sorted(a.keys() ^ b.keys()))
    if not seeds:
        raise UserError("judge: the two arms share no seed, so there is no pair; run both at the same seeds")
    # As float64, where None becomes nan.
    first, second = (np.array([arm[seed] for seed in seeds], dtype=float) for arm in (a, b))
    return seeds, first, second, unpaired


def check(margin: float, alpha: float, largest: float | None = None) -> None:
    if not (margin >= 0 and math.isfinite(margin)):
        raise UserError(f"margin={margin}: should be a number, 0 or greater")
    if largest is not None and margin >= largest:
        raise UserError(
            f"margin={margin}: is no smaller than the largest difference there can be, {largest:g}; give less"
        )
    if not 0 < alpha < 1:
        raise UserError(f"alpha={alpha}: should lie between 0 and 1, such as 0.05")
