"""From what was measured to a verdict, with its evidence.

A part holds two arms, or an arm and a number, against each other by the one rule of comparisons (`archlab.comparison.judge`):

    above, below   supported where the quantity lies beyond the margin on the claimed side; refuted where it does not, or
                   where it lies beyond it on the other side. TIE: it lies within the margin of no difference
    equal          supported where it lies within the margin, refuted where it lies beyond it

A claim is supported where every part is: the evidence for it is that of its weakest part. It is refuted where the mean of
the parts' e-values against it reaches 1/alpha, which is evidence against all of them holding at once. Its controls, parts of
the same form, have to be supported, or there is no verdict: the runs could not have told.

An identity is no matter of chance: it holds where every one of its parts does at every seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from archlab.base.metrics import Direction
from archlab.claim.claim import Claim, Part, is_share
from archlab.comparison.failure import quantity_of
from archlab.comparison.judge import Judged, judge, of_bounds
from archlab.comparison.rule import ALPHA
from archlab.records.summary import KINDS

Verdict = Literal["SUPPORTED", "REFUTED", "TIE", "MIXED", "INCONCLUSIVE", "NOT RUN", "IDENTITY HOLDS", "IDENTITY FAILS"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""In the order in which the page of all claims has them."""

OPEN: Verdict = "INCONCLUSIVE"

SIDES = {"a": "below", "b": "above", "below": "below", "above": "above", "tie": "equal"}
"""Of readings where lower is better, what is said of a - b."""


@dataclass(frozen=True)
class Values:
    """What a measure came to, by seed, and the seeds at which the run failed."""

    by_seed: Mapping[int, float]
    failed: frozenset[int] = frozenset()

    @property
    def lost(self) -> frozenset[int]:
        """Seeds at which there is no number to compare, for whatever reason."""
        return self.failed | {seed for seed, value in self.by_seed.items() if not math.isfinite(value)}

    def less(self, amount: float) -> "Values":
        """All of them lower by that much."""
        return Values({seed: value - amount for seed, value in self.by_seed.items()}, self.failed) if amount else self


@dataclass(frozen=True)
class PartResult:
    part: Part
    verdict: Verdict
    judged: Judged | None
    """None of an identity."""

    values: Mapping[str, Values]
    """By arm, what the part compares."""

    e_for: float
    """E-value against "the part does not hold"."""

    e_against: float
    """E-value against "it holds"."""


@dataclass(frozen=True)
class Decision:
    """A claim's verdict, with the e-value of the evidence for it."""

    verdict: Verdict
    e: float
    parts: tuple[PartResult, ...]
    controls: tuple[PartResult, ...]
    e_for: float
    """E-value against "the claim does not hold"; 0 where a control was not found."""

    e_against: float
    """E-value against "it holds"; 0 where a control was not found."""

    @property
    def open(self) -> bool:
        """Whether more seeds could tell: not once a control is ruled out, since its interval holds at any number of seeds."""
        return self.verdict == OPEN and not any(one.verdict in ("REFUTED", "TIE") for one in self.controls)

    @property
    def because(self) -> PartResult | None:
        """The part that decided it."""
        if self.verdict == OPEN and (lacking := [one for one in self.controls if one.verdict != "SUPPORTED"]):
            return lacking[0]
        if not self.parts:
            return None
        if self.verdict in ("REFUTED", "TIE"):
            return max(self.parts, key=lambda result: result.e_against)
        if self.verdict == OPEN:
            not_found = [one for one in self.parts if one.verdict != "SUPPORTED"]
            return max(not_found or self.parts, key=lambda result: result.e_against)
        return min(self.parts, key=lambda result: result.e_for)


def decide(claim: Claim, parts: Sequence[PartResult], controls: Sequence[PartResult]) -> Decision:
    if claim.kind == "identity":
        holds = all(result.verdict == "IDENTITY HOLDS" for result in parts)
        return Decision(
            "IDENTITY HOLDS" if holds else "IDENTITY FAILS", math.inf, tuple(parts), tuple(controls), math.inf, math.inf
        )
    e_for = min(result.e_for for result in parts)
    e_against = math.fsum(result.e_against for result in parts) / len(parts)
    verdict: Verdict = OPEN
    if all(result.verdict == "SUPPORTED" for result in parts):
        verdict = "SUPPORTED"
    elif e_against >= 1 / ALPHA:
        worst = max(parts, key=lambda result: result.e_against)
        verdict = "TIE" if worst.verdict == "TIE" else "REFUTED"
    if not all(result.verdict == "SUPPORTED" for result in controls):
        verdict, e_for, e_against = OPEN, 0.0, 0.0
    e = e_for if verdict == "SUPPORTED" else max(e_for, e_against) if verdict == OPEN else e_against
    return Decision(verdict, e, tuple(parts), tuple(controls), e_for, e_against)


def decide_part(part: Part, values: Mapping[str, Values]) -> PartResult:
    """`values` holds, by arm, what the part's measure gave; of a `between`, under "between"."""
    if part.form == "difference":
        a, b = (values[label] for label in part.arms)
        a = a.less(part.against)
    elif part.form == "ratio":
        first, second = (values[label] for label in part.arms)
        ratios = quantity(part, values).by_seed
        # Who failed stays known: a pair whose second arm failed has no ratio, and that is not the first arm's failure.
        a = Values({seed: part.against if seed in second.lost else x for seed, x in ratios.items()}, first.lost)
        b = Values(dict.fromkeys(ratios, part.against), second.lost)
    else:
        a = quantity(part, values)
        b = Values(dict.fromkeys(a.by_seed, part.against))
    better = direction(part) if part.form in ("difference", "ratio") else None
    judged = judge(
        a.by_seed,
        b.by_seed,
        better=better,
        margin=part.by,
        failed_a=a.failed,
        failed_b=b.failed,
        alpha=ALPHA,
        largest=largest_difference(part),
    )
    at_least, at_most = bounds(part, values)
    judged = of_bounds(judged, at_least=at_least, at_most=at_most)
    e_for, e_against = evidence(part, judged)
    verdict = verdict_of(part, side_of(judged))
    if judged.better is None and (a.lost or b.lost):
        verdict, e_for, e_against = OPEN, 0.0, 0.0  # what the runs that did not fail come to is not what the arm does
    if not evident(verdict, e_for, e_against):
        verdict = OPEN
    return PartResult(part, verdict, judged, values, e_for, e_against)


def evident(verdict: Verdict, e_for: float, e_against: float) -> bool:
    """Whether the e-value of what is said reaches what decides."""
    return verdict == OPEN or (e_for if verdict == "SUPPORTED" else e_against) >= 1 / ALPHA


def bounds(part: Part, values: Mapping[str, Values]) -> tuple[bool, bool]:
    """Whether what a part compares may be larger than it was seen, and smaller: where a rate lies at an end of those swept.

    The largest stable rate is then the last one or more, and the best one that end or beyond it.
    """
    if part.reduce not in ("largest_stable", "best_x") or not part.over:
        return False, False
    ((*_, top),) = part.over.values()
    ((bottom, *_),) = part.over.values()
    high, low = (
        [
            any(math.isclose(x, math.log10(end), abs_tol=1e-9) for x in values[label].by_seed.values())
            for label in part.arms
        ]
        for end in (top, bottom)
    )
    if part.reduce == "largest_stable":
        low = [False] * len(low)  # it was run, and is stable
    if part.form == "ratio":
        return (any(high + low),) * 2
    return high[0] or any(low[1:]), low[0] or any(high[1:])


def largest_difference(part: Part) -> float | None:
    """How far apart the two values of a pair can be; None where that is not known. Of shares: 1, and what is taken off one.

    A share that is held against a number is judged by its spread: near its bound no 24 seeds could hold it there otherwise.
    """
    shares = part.trained and is_share(part.measure) and part.form == "difference" and part.reduce in (None, "best")
    return 1.0 + abs(part.against) if shares else None


def verdict_of(part: Part, side: str | None) -> Verdict:
    if side == part.expect:
        return "SUPPORTED"
    if side == "equal":
        return "TIE"
    return "REFUTED" if side in ("above", "below", f"not {part.expect}") else OPEN


def identity_part(part: Part, values: Mapping[str, Values]) -> PartResult:
    """Whether every seed's number is what is claimed."""
    found = quantity(part, values).by_seed.values()
    beyond = [value - part.against for value in found]
    holds = {
        "equal": all(abs(distance) <= part.by for distance in beyond),
        "above": all(distance > part.by for distance in beyond),
        "below": all(distance < -part.by for distance in beyond),
    }[part.expect]
    return PartResult(part, "IDENTITY HOLDS" if holds else "IDENTITY FAILS", None, values, math.inf, math.inf)


def direction(part: Part) -> Direction | None:
    """Which way is better of what a part measures; None where neither is, or it is not known."""
    if part.reduce == "largest_stable":
        return "higher"
    kind = KINDS.get(quantity_of(part.measure)) if part.trained else None
    of_the_measure = part.reduce in (None, "best", "sensitivity")
    return kind.better if kind is not None and of_the_measure else None


def side_of(judged: Judged) -> str | None:
    """The reading as what is said of a - b: above, below, equal, not above, not below; None where it is open."""
    if judged.reading == "open":
        return None
    negated, word = judged.reading.startswith("not "), judged.reading.removeprefix("not ")
    if judged.better == "higher" and word in ("a", "b"):
        word = {"a": "b", "b": "a"}[word]
    return f"not {SIDES[word]}" if negated else SIDES[word]


def evidence(part: Part, judged: Judged) -> tuple[float, float]:
    """E-values against "the part does not hold" and against "it holds".

    Where no pair has one failure alone they are those of the losses given success, L. Else those of losses and failures
    together, F (L + 1), where F is the e-value that the other arm fails more often (`majority_e`, which is half of one of one
    side): the mean of 2 F and of 2 F L, each an e-value, since L is one whatever the pattern of failures. L is 0 where fewer
    than two pairs have losses. Losses speak for the arm that fails less, and for either where both fail alone as often.
    """
    losses = {
        "below": (judged.e_below, judged.e_not_below),
        "above": (judged.e_above, judged.e_not_above),
        "equal": (judged.e_inside, judged.e_outside),
    }[part.expect]
    fails = judged.failures
    if fails.alike:
        return losses
    if judged.better is None:
        return 0.0 if part.expect == "equal" else losses[0], losses[1]
    a_worse, b_worse = fails.e_a_fails_more, fails.e_b_fails_more
    if part.expect == "equal":
        return 0.0, (a_worse + b_worse) * (losses[1] + 1) / 2
    favours_a = (part.expect == "below") == (judged.better == "lower")
    safer, frailer = (b_worse, a_worse) if favours_a else (a_worse, b_worse)
    favoured, other = (fails.only_a, fails.only_b) if favours_a else (fails.only_b, fails.only_a)
    told = judged.sd is not None
    for_it = losses[0] if told and favoured <= other else 0.0
    against = losses[1] if told and favoured >= other else 0.0
    return safer * (for_it + 1), frailer * (against + 1)


def quantity(part: Part, values: Mapping[str, Values]) -> Values:
    """What is held against a number, by seed."""
    match part.form:
        case "value":
            return values[part.arms[0]]
        case "between":
            return values["between"]
    first, second = (values[label] for label in part.arms)
    seeds = sorted(first.by_seed.keys() & second.by_seed.keys())
    return Values(
        {seed: joined(part.form, first.by_seed[seed], second.by_seed[seed]) for seed in seeds},
        first.failed | second.failed,
    )


def joined(form: str, a: float, b: float) -> float:
    return a - b if form == "difference" else a / b if b else math.nan


# ---------------------------------------------------------------- in words


def reason(decision: Decision) -> str:
    """The part that decided it, in a sentence."""
    result = decision.because
    if result is None:
        return "nothing was measured"
    control = "the control was not found, so these runs could not have told: " if result in decision.controls else ""
    return f"{control}{result.part.says}: {in_words(result)}"


def in_words(result: PartResult) -> str:
    """What was asked and what was seen: effect, interval and number of seeds, and failures where there were any."""
    part, judged = result.part, result.judged
    if judged is None:
        found = list(quantity(part, result.values).by_seed.values())
        return f"asked: {asked(part)}; seen: {spread(found)}"
    words = [f"asked: {asked(part)}"]
    if judged.effect is not None:
        words.append(f"seen: {signed(part, judged.effect + part.against)} ({interval_in_words(part, judged)})")
    if any(bounds(part, result.values)):
        words.append(f"which is a bound, since at some seed {part.reduce} is an end of what was swept; sweep further")
    if failed := failures_in_words(part, judged):
        words.append(failed)
    if result.verdict == OPEN and judged.needed:
        words.append(f"about {judged.needed} seeds would tell")
    return "; ".join(words)


def interval_in_words(part: Part, judged: Judged) -> str:
    seeds = f"{judged.n} seeds"
    if judged.sd == 0:
        return f"the same at every seed, {seeds}"
    if judged.interval is None:
        return f"no interval, {seeds}"
    low, high = (bound + part.against for bound in judged.interval)
    return f"{judged.level:.3g} interval {low:.4g} to {high:.4g} at any number of seeds, {seeds}"


def failures_in_words(part: Part, judged: Judged) -> str | None:
    failures = judged.failures
    if not failures.a and not failures.b:
        return None
    if part.form != "difference":
        return f"{failures.a} of {judged.n} runs failed"
    a, b = part.arms
    p = "" if (found := failures.p_boschloo) is None else f" (Boschloo p {found:.2g})"
    return f"{failures.a} of {judged.n} runs of {a} failed and {failures.b} of {b}{p}"


def spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def asked(part: Part) -> str:
    """What the quantity has to be, in words: below -0.01."""
    if part.expect == "equal":
        return f"within {part.by:g} of {part.against:g}"
    return f"{part.expect} {signed(part, part.against + (part.by if part.expect == 'above' else -part.by))}"


def signed(part: Part, value: float) -> str:
    """A number of the quantity; a difference always has its sign."""
    return f"{value:+.4g}" if part.form == "difference" and value else f"{value:.4g}"
