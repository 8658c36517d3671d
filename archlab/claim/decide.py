"""From what was measured to a verdict: supported, refuted or inconclusive, with an effect and an interval.

A part is decided by `archlab.comparison.paired` at the claim's seeds, against a number or arm against arm:

    above, below   supported where the whole interval lies beyond the smallest effect of interest on the claimed side;
                   refuted where it lies beyond it on the other side, or inside: no effect of interest is there
    equal          supported where the whole interval lies inside; refuted where it lies wholly outside
    otherwise      inconclusive

A claim is supported where every part is, refuted where any part is, and inconclusive otherwise. Supporting needs all
parts at once, so no correction for several of them is called for; refuting takes each part at alpha over their number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from archlab.claim.claim import Part
from archlab.comparison.paired import Paired, paired

Verdict = Literal["SUPPORTED", "REFUTED", "INCONCLUSIVE"]
Values = Mapping[int, float]
"""By seed; infinite where the run diverged."""

ALPHA = 0.05


@dataclass(frozen=True)
class PartResult:
    part: Part
    verdict: Verdict
    found: Paired
    values: dict[str, dict[int, float]]
    """By arm and seed, what the part compares; infinite where it diverged."""


def decide_part(part: Part, values: Mapping[str, Values], n_parts: int = 1) -> PartResult:
    """`values` holds, by arm and seed, what the part's measure gave; of a `between`, under "between"."""
    if part.form == "difference" and part.against == 0:
        a, b = (values[label] for label in part.arms)
    else:
        a = quantity(part, values)
        b = dict.fromkeys(a, part.against)
    found, stricter = (against(a, b, part.by, alpha) for alpha in (ALPHA, ALPHA / n_parts))
    verdict = read(part, found)
    if verdict == "REFUTED" and read(part, stricter) != "REFUTED":
        verdict, found = "INCONCLUSIVE", stricter
    return PartResult(part, verdict, found, {label: dict(of) for label, of in values.items()})


def quantity(part: Part, values: Mapping[str, Values]) -> dict[int, float]:
    """What is held against a number, by seed."""
    match part.form:
        case "value":
            return dict(values[part.arms[0]])
        case "between":
            return dict(values["between"])
    first, second = (values[label] for label in part.arms)
    seeds = first.keys() & second.keys()
    return {seed: join(part.form, first[seed], second[seed]) for seed in sorted(seeds)}


def join(form: str, a: float, b: float) -> float:
    """A diverged run on either side leaves nothing to compute: the pair counts as diverged."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return a - b if form == "difference" else a / b


def against(a: Values, b: Values, by: float, alpha: float) -> Paired:
    """Lower is called better throughout, so that "b" means that a is above."""
    return paired(a, b, smallest_effect=by, alpha=alpha, lower_is_better=True)


def read(part: Part, found: Paired) -> Verdict:
    where = {"a": "below", "b": "above", "equivalent": "equal"}.get(found.verdict)
    if where is None:
        return "INCONCLUSIVE"
    return "SUPPORTED" if where == part.expect else "REFUTED"


def decide(results: Sequence[PartResult]) -> Verdict:
    verdicts = {result.verdict for result in results}
    if "REFUTED" in verdicts:
        return "REFUTED"
    return "SUPPORTED" if verdicts == {"SUPPORTED"} else "INCONCLUSIVE"


def reason(results: Sequence[PartResult]) -> str:
    """The part that decided it, in a sentence."""
    verdict = decide(results)
    result = next((result for result in results if result.verdict == verdict), results[0])
    return f"{result.part.says}: {in_words(result)}"


def in_words(result: PartResult) -> str:
    """What was asked and what was seen: effect, interval and number of seeds."""
    part, found = result.part, result.found
    if found.diverged_a or found.diverged_b:
        return f"{found.diverged_a} of {found.n} runs diverged on the one side, {found.diverged_b} on the other (worst-rank p {found.p:.3g})"
    assert found.effect is not None  # all runs finished
    seen = f"asked: {asked(part)}; seen: {signed(part, found.effect + part.against if shifted(part) else found.effect)}"
    if found.interval is None:
        return f"{seen}, from one seed"
    low, high = (bound + part.against if shifted(part) else bound for bound in found.interval)
    limits = f"{found.level:.3g} interval {low:.4g} to {high:.4g}, {found.n} seeds" if low != high else "exactly"
    needed = f"; about {found.seeds_needed} seeds would tell" if found.seeds_needed else ""
    return f"{seen} ({limits}){needed}"


def asked(part: Part) -> str:
    """What the quantity has to be, in words: below -0.01."""
    if part.expect == "equal":
        return f"within {part.by:g} of {part.against:g}"
    return f"{part.expect} {signed(part, part.against + (part.by if part.expect == 'above' else -part.by))}"


def signed(part: Part, value: float) -> str:
    """A number of the quantity; a difference always has its sign."""
    return f"{value:+.4g}" if part.form == "difference" and value else f"{value:.4g}"


def shifted(part: Part) -> bool:
    """Whether effects are read as the quantity itself rather than as its distance from what it's held against."""
    return part.form != "difference" or part.against != 0
