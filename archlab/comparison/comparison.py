"""All arms against one of them: the noise first, then each difference, with one error rate however many there are."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from archlab.base.errors import UserError
from archlab.base.metrics import Direction
from archlab.comparison.arms import Arm, sort_into_arms
from archlab.comparison.equal import AXES, HALF_LIFE, at_equal, timed_unlike
from archlab.comparison.judge import Judged, judge
from archlab.comparison.many import survivors
from archlab.comparison.metric import Metric
from archlab.comparison.rule import ALPHA, LOOKS
from archlab.comparison.text import OverText, on_other_text
from archlab.records import summary
from archlab.records.reader import Record, Run

WORDS = {"a": "better", "b": "worse", "tie": "tie", "not a": "not better", "not b": "not worse", "open": "open"}
"""A reading of `judge(arm, baseline)`, said of the arm."""

Values = dict[int, float | None]


@dataclass(frozen=True)
class ToDecide:
    """What a decision would take, if everything goes on as it did: seeds in all, runs more, minutes of them."""

    seeds: int
    runs: int
    minutes: float | None


@dataclass(frozen=True)
class Measured:
    """An arm with its values by seed, None where a run has none; and how it compares, unless it is the baseline."""

    arm: Arm
    values: Values
    failed: frozenset[int]
    """Seeds whose run diverged, never left the unigram plateau, or has no value."""

    at_equal: dict[str, float | None]
    rank: int
    against: Judged | None
    """Of the arm as a and the baseline as b, at the level at which it counts among all comparisons."""

    alone: str | None
    """The verdict if this had been the only comparison."""

    to_decide: ToDecide | None
    on_other_text: OverText | None = None
    """What the difference would be on other text, where that was asked for."""

    @property
    def finished(self) -> list[float]:
        """What mean and spread are of: the values of runs that did not fail."""
        return finished(self.values, self.failed)

    @property
    def diverged(self) -> int:
        return sum(run.diverged for run in self.arm.runs)

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.finished) if self.finished else None

    @property
    def sd(self) -> float | None:
        return statistics.stdev(self.finished) if len(self.finished) > 1 else None

    @property
    def verdict(self) -> str | None:
        """better, worse, tie, not better, not worse or open; None where there is nothing to compare with."""
        return WORDS[self.against.reading] if self.against else None

    @property
    def effect(self) -> float | None:
        """Mean of arm - baseline where neither failed; None where one always did."""
        return self.against.effect if self.against else None

    @property
    def survives(self) -> bool | None:
        """Whether what it says alone it also says among all comparisons; None where it decides nothing alone."""
        return self.verdict == self.alone if self.alone in ("better", "worse", "tie") else None

    def record(self) -> Record:
        first, against = self.arm.runs[0], self.against
        return {
            "label": self.arm.label,
            "overrides": self.arm.overrides,
            "runs": [str(run.directory) for run in self.arm.runs],
            "seeds": self.arm.seeds,
            "values": list(self.values.values()),
            "failed": sorted(self.failed),
            "mean": self.mean,
            "sd": self.sd,
            "n": len(self.values),
            "diverged": self.diverged,
            "rank": self.rank,
            "at_equal": self.at_equal,
            "n_params": first.summary.get("n_params"),
            "train_flops_per_token": first.summary.get("train_flops_per_token"),
            "effect": self.effect,
            "interval": list(against.interval) if against and against.interval else None,
            "level": against and against.level,
            "e": against and against.e,
            "e_values": against and evidence(against),
            "p": against and against.p_flip,
            "failures": against and asdict(against.failures) | {"p_boschloo": against.failures.p_boschloo},
            "verdict": self.verdict,
            "alone": self.alone,
            "survives": self.survives,
            "seeds_needed": self.to_decide and self.to_decide.seeds,
            "runs_needed": self.to_decide and self.to_decide.runs,
            "minutes_needed": self.to_decide and self.to_decide.minutes,
            **({"on_other_text": asdict(self.on_other_text)} if self.on_other_text else {}),
        }


def finished(values: Values, failed: Collection[int]) -> list[float]:
    return [value for seed, value in values.items() if value is not None and seed not in failed]


def evidence(found: Judged) -> dict[str, float]:
    """Every e-value, by the statement it speaks for."""
    return {
        "above": found.e_above,
        "below": found.e_below,
        "not_above": found.e_not_above,
        "not_below": found.e_not_below,
        "arm_fails_more": found.failures.e_a_fails_more,
        "baseline_fails_more": found.failures.e_b_fails_more,
    }


@dataclass(frozen=True)
class ComparedArms:
    """What `compare` found; `record()` is the whole of it as plain JSON."""

    metric: Metric
    smallest_effect: float
    alpha: float
    arms: list[Measured]
    baseline: Measured
    notes: list[str]
    mix: bool = False
    """Whether runs were compared that do not share what they should."""

    @property
    def question(self) -> str:
        others = [measured.arm.label for measured in self.arms if measured is not self.baseline]
        if not others:
            return f"How far does {self.metric.name} scatter over seeds under {self.baseline.arm.label}?"
        which = others[0] if len(others) == 1 else f"any of {len(others)} arms"
        return f"Does {which} differ in {self.metric.name} from {self.baseline.arm.label}?"

    def record(self) -> Record:
        return {
            "question": self.question,
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "lower_is_better": self.metric.lower_is_better,
            "baseline": self.baseline.arm.label,
            "smallest_effect": self.smallest_effect,
            "alpha": self.alpha,
            "noise": {"sd": self.baseline.sd, "n": len(self.baseline.finished)},
            "notes": self.notes,
            "arms": [measured.record() for measured in self.arms],
            **({"direction": self.metric.direction} if self.metric.direction else {}),
            **({"mix": True} if self.mix else {}),
        }


def compare(
    runs: Sequence[Run],
    *,
    metric: str = "val_loss",
    baseline: str | None = None,
    smallest_effect: float | None = None,
    direction: Direction | None = None,
    alpha: float = ALPHA,
    mix: bool = False,
    text: bool = False,
) -> ComparedArms:
    """Sorts runs into arms and compares every arm with the baseline, seed by seed.

    `baseline` is an arm's label, or enough of its words to mean one arm; without it, the arm of the first run.
    `smallest_effect` is in the metric's unit; without it, 0.01 where that is nats per token, else 0. `direction` says
    which way is better of a number of which `archlab.records.summary` does not.

    The noise floor is the standard deviation of the baseline's values over seeds (n - 1), of those that did not fail. A run
    fails where it diverged or has no value and, where the metric is of a loss, where it ended on the unigram plateau
    (`archlab.comparison.failure`).
    Each other arm is compared by `judge(arm, baseline)`; effect is arm - baseline. Of k such comparisons those with a verdict
    survive together by e-BH: r of them where the r largest e-values reach k / (r alpha). Every arm is then read at the level
    1 - alpha r / k (r at least 1), so that interval and verdict agree and of the arms with a verdict a share of alpha is
    expected to be wrong at most, however they depend on each other. Source: arXiv:2009.02824.

    With `text`, each effect has a second interval beside it, of what the same models would differ by on other text of this
    kind (`archlab.comparison.text.on_other_text`); no verdict rests on it.

    Ranks order the arms by the share of runs that failed, then by the mean of the others. Raises UserError where runs cannot be
    compared, or the metric or the baseline is not among them.
    """
    measure = Metric(metric, direction)
    smallest = measure.smallest_effect if smallest_effect is None else smallest_effect
    if measure.largest_difference is not None and smallest >= measure.largest_difference:
        raise UserError(
            f"smallest_effect={smallest:g}: two {measure.unit.partition(' ')[0]}s differ by"
            f" {measure.largest_difference:g} at most; give less, such as 0.1"
        )
    arms, notes = sort_into_arms(runs, mix=mix)
    reference = find_baseline(arms, baseline)
    values = [{seed: measure.value(run) for seed, run in arm.by_seed.items()} for arm in arms]
    values = [dict(sorted(of_arm.items())) for of_arm in values]
    failed = [frozenset(seed for seed, run in arm.by_seed.items() if measure.failed(run)) for arm in arms]
    _ = measure.lower_is_better  # asked for here, of a number that is there
    if measure.is_of_time and not mix:
        refuse_unlike_times(runs_of(arms), metric)
    base = arms.index(reference)
    alone, judged = _against(base, values, failed, measure, smallest, alpha)
    if text and not judged:
        raise UserError(
            f"text=true: no other arm shares a seed with {reference.label}, so it would change nothing; give runs of another"
            " arm, or leave text out"
        )
    losses, reached = at_equal(arms)
    ranks = _ranks(values, failed, measure)
    measured = [
        Measured(
            arm,
            values[i],
            failed[i],
            losses[i],
            ranks[i],
            judged.get(i),
            alone.get(i),
            _to_decide(judged[i], arm, reference) if i in judged else None,
            on_other_text(arm, reference, measure, failed[i] | failed[base]) if text and i in judged else None,
        )
        for i, arm in enumerate(arms)
    ]
    found = ComparedArms(measure, smallest, alpha, measured, measured[base], notes, mix)
    notes += _remarks(found, reached)
    return found


def runs_of(arms: Sequence[Arm]) -> list[Run]:
    return [run for arm in arms for run in arm.runs]


def refuse_unlike_times(runs: Sequence[Run], metric: str) -> None:
    """Raises UserError where a time would be compared that runs took under unlike conditions."""
    for name, values in timed_unlike(runs).items():
        raise UserError(
            f"metric={metric}: the runs were not timed alike, {name} being {' and '.join(values)}, so their times do not compare;"
            " leave some out, or add mix=true"
        )


def find_baseline(arms: Sequence[Arm], words: str | None) -> Arm:
    if words is None:
        return arms[0]
    exact = [arm for arm in arms if sorted(arm.label.split()) == sorted(words.split())]
    meant = exact or [arm for arm in arms if set(words.split()) <= set(arm.label.split())]
    if words.split() and len(meant) == 1:
        return meant[0]
    problem = "means several arms" if meant else "no such arm"
    raise UserError(f"baseline={words}: {problem}; arms: {', '.join(arm.label for arm in arms)}")


def _against(
    base: int,
    values: Sequence[Values],
    failed: Sequence[frozenset[int]],
    metric: Metric,
    margin: float,
    alpha: float,
) -> tuple[dict[int, str], dict[int, Judged]]:
    """By place, the verdict of each arm that shares a seed with the baseline if it were alone, and how it is read among all."""

    def judged(i: int, level: float) -> Judged:
        better: Direction = "lower" if metric.lower_is_better else "higher"
        return judge(
            values[i],
            values[base],
            better=better,
            margin=margin,
            failed_a=failed[i],
            failed_b=failed[base],
            alpha=level,
            largest=metric.largest_difference,
        )

    sharing = [i for i, of_arm in enumerate(values) if i != base and of_arm.keys() & values[base].keys()]
    alone = {i: judged(i, alpha) for i in sharing}
    surviving = sum(survivors([alone[i].e for i in sharing], alpha))
    level = alpha * max(surviving, 1) / max(len(sharing), 1)
    return {i: WORDS[found.reading] for i, found in alone.items()}, {i: judged(i, level) for i in sharing}


def _to_decide(found: Judged, arm: Arm, reference: Arm) -> ToDecide | None:
    """Where it is open: the seeds at which a decision is likely, or those of a first look where nothing is known yet."""
    seeds = found.needed or (LOOKS[0] if not found.decided and found.n < LOOKS[0] else None)
    if seeds is None:
        return None
    costs = list(zip(more_runs(seeds, arm, reference), map(seconds_of, (arm, reference)), strict=True))
    minutes = [runs * seconds / 60 for runs, seconds in costs if seconds is not None]
    runs = sum(runs for runs, _ in costs)
    return ToDecide(seeds, runs, sum(minutes) if len(minutes) == len(costs) else None)


def more_runs(pairs: int, arm: Arm, reference: Arm) -> tuple[int, int]:
    """How many of each arm make so many pairs: a seed that only one of the two has takes one run, of the other."""
    of_arm, of_reference = arm.by_seed.keys(), reference.by_seed.keys()
    missing = max(0, pairs - len(of_arm & of_reference))
    by_reference = min(missing, len(of_arm - of_reference))
    by_arm = min(missing - by_reference, len(of_reference - of_arm))
    anew = missing - by_reference - by_arm
    return by_arm + anew, by_reference + anew


def seconds_of(arm: Arm) -> float | None:
    """Mean time of one of its runs; those of a pack share its time. None where a run does not say."""
    known = [seconds for run in arm.runs if (seconds := summary.seconds_of(run.summary)) is not None]
    return statistics.fmean(known) if len(known) == len(arm.runs) else None


def _ranks(values: Sequence[Values], failed: Sequence[frozenset[int]], metric: Metric) -> list[int]:
    """From 1, the best; arms that are equal share a rank."""
    sign = 1 if metric.lower_is_better else -1
    keys = []
    for of_arm, lost in zip(values, failed, strict=True):
        there = finished(of_arm, lost)
        keys.append((len(lost) / len(of_arm), sign * statistics.fmean(there) if there else 0.0))
    return [1 + sum(other < key for other in keys) for key in keys]


def _remarks(found: ComparedArms, reached: dict[str, float | None]) -> list[str]:
    """What a reader has to know beside the table, a line each."""
    base, notes = found.baseline, []
    for measured in found.arms:
        unpaired = sorted(measured.values.keys() ^ base.values.keys())
        if unpaired and measured is not base:
            seeds = ", ".join(map(str, unpaired))
            notes.append(f"{measured.arm.label}: no partner at seed {seeds}, so left out of its comparison")
        if measured.failed:
            notes.append(f"{measured.arm.label}: {_failures(measured)}")
        if measured.against is not None:
            notes += [f"{measured.arm.label}: {said}" for said in _open(measured, found)]
    notes += [*_price(found), *_untuned(found), *_unlike_searches(found)]
    if all(len(measured.values) < 2 for measured in found.arms):
        notes.append("one seed only, so nothing can be said of chance; run more, such as seed=0,1,2,3,4,5")
    runs = runs_of([measured.arm for measured in found.arms])
    unlike = timed_unlike(runs)
    if all(reached[axis] is not None for axis in AXES if not (unlike and axis == "seconds")):
        seconds = "" if unlike else f" and {reached['seconds']:.3g} seconds"
        notes.append(
            f"training losses are compared at {reached['steps']:.0f} steps, {reached['tokens']:.3g} tokens"
            f"{' and' if unlike else ','} {reached['flops']:.3g} FLOPs{seconds}, the most that all arms reach;"
            f" mean of the logged steps up to there, weighted with a half-life of {HALF_LIFE}"
        )
    if unlike:
        ways = "; ".join(f"{name}: {', '.join(values)}" for name, values in unlike.items())
        notes.append(f"the runs were not timed alike ({ways}), so that their seconds do not compare")
    for name, get in PLACES.items():
        if len(places := {str(get(run.summary)) for run in runs}) > 1:
            notes.append(f"the runs come from more than one {name} ({', '.join(sorted(places))})")
    return notes


def _failures(measured: Measured) -> str:
    """How many of an arm's runs failed, and of what."""
    n, diverged = len(measured.failed), measured.diverged
    kinds = [f"{diverged} diverged"] * bool(diverged)
    kinds += [f"{n - diverged} stayed on the unigram plateau or have no value"] * (n > diverged)
    return f"{n} of {len(measured.values)} runs failed ({', '.join(kinds)}); their values are in no mean, and they count as failures"


def _open(measured: Measured, found: ComparedArms) -> list[str]:
    """What cannot be concluded of an arm, why, and what it would take."""
    against = measured.against
    assert against is not None
    lines = []
    compared = sum(other.against is not None for other in found.arms)
    if measured.survives is False:
        lines.append(f"{measured.alone} if it were the only comparison; among {compared} it does not survive (e-BH)")
    if against.by == "signs":
        lines.append(
            "all differences are the same, so that there is no spread over seeds to measure; signs alone decide"
        )
    if measured.verdict == "tie":
        lines.append(
            f"a tie in losses; of failures, a chance of up to {against.failures.unseen:.0%} is not ruled out by"
            f" {against.n} pairs without one"
        )
    if against.decided:
        return lines
    ruled_out = {
        "not better": "that it is better is ruled out; a tie or worse is open",
        "not worse": "that it is worse is ruled out; a tie or better is open",
    }
    lines.append(
        ruled_out.get(measured.verdict or "", "nothing can be concluded")
        + f" at {against.n} pair{'s' * (against.n > 1)}{_why(against)}"
    )
    if (takes := measured.to_decide) is None:
        return lines
    if against.needed is None:
        lines[-1] += f"; how many would decide is not known from so few, {takes.seeds} seeds are a first look"
    else:
        lines[-1] += f"; about {takes.seeds} seeds in all would decide, if effect, spread and failures stay as they are"
    lines[-1] += f": {_runs(takes.runs, takes.minutes)}"
    return lines


def _why(against: Judged) -> str:
    if against.effect is None:
        return ", in none of which both runs succeeded; where they stay on the plateau, train longer (train.steps)"
    if against.interval is None and against.by == "mean":
        return f", too few for a finite interval at {against.level:.3g}"
    if not against.failures.alike and against.of_losses != against.reading:
        return f", since one of the two failed in {against.failures.only_a + against.failures.only_b} of them"
    return ""


def _runs(runs: int, minutes: float | None) -> str:
    return f"{runs} more runs" + (
        "" if minutes is None else f", {minutes:.2g} minutes" if minutes < 99.5 else f", {minutes / 60:.2g} hours"
    )


def _untuned(found: ComparedArms) -> list[str]:
    """Says of a comparison of trained arms that their rates were not sought, and which they are."""
    arms = [measured.arm for measured in found.arms]
    fixed = [arm for arm in arms if not any(run.summary.get("tuned") for run in arm.runs)]
    rates = sorted({float(run.config["train"]["lr"]) for arm in fixed for run in arm.runs})
    if len(arms) < 2 or not fixed:
        return []
    whose = "every arm is" if len(fixed) == len(arms) else ", ".join(arm.label for arm in fixed) + ":"
    at = ", ".join(f"{rate:g}" for rate in rates)
    return [
        f"{whose} untuned, at lr={at}, which may suit one arm better than another; tune=lr finds each a rate of its own"
    ]


def _unlike_searches(found: ComparedArms) -> list[str]:
    """Says where arms chose their rate among more trials than others, or found it at an edge."""
    tuned = {measured.arm.label: measured.arm.runs[0].summary.get("tuned") or {} for measured in found.arms}
    notes = [
        f"{label}: its rate is at the edge of those that were tried, so that a better one may lie beyond"
        for label, search in tuned.items()
        if search.get("edge") is True
    ]
    tried = {label: n for label, search in tuned.items() if (n := _cells(search))}
    if len(set(tried.values())) > 1:
        words = ", ".join(f"{n} for {label}" for label, n in tried.items())
        notes.append(
            f"rates were sought in unlike numbers of cells: {words}; arms of one sweep with tune=lr try the same ones"
        )
    return notes


def _cells(search: Mapping[str, Any]) -> int:
    """Rates that were tried, at all values of a second axis together; 0 where it does not say."""
    second = search.get("second")
    lines: Any = second.get("rates") if isinstance(second, Mapping) else [[None, search.get("rates")]]
    try:
        return sum(len(rates) for _, rates in lines or ())
    except (TypeError, ValueError):
        return 0


def _price(found: ComparedArms) -> list[str]:
    """What all that is open would take together; the baseline's seeds serve every arm."""
    open_arms = [(measured, measured.to_decide) for measured in found.arms if measured.to_decide is not None]
    if len(open_arms) < 2:
        return []
    base = found.baseline.arm
    more = [(*more_runs(takes.seeds, measured.arm, base), measured.arm) for measured, takes in open_arms]
    wanted: list[tuple[int, Arm]] = [(of_arm, arm) for of_arm, _, arm in more]
    wanted.append((max(of_base for _, of_base, _ in more), base))
    times = [runs * seconds / 60 for runs, arm in wanted if (seconds := seconds_of(arm)) is not None]
    total = math.fsum(times) if len(times) == len(wanted) else None
    return [f"to decide what is open in {len(open_arms)} arms: {_runs(sum(runs for runs, _ in wanted), total)}"]


def _commit(summary: Record) -> Any:
    return ((summary.get("git") or {}).get("commit") or "unknown")[:8]


PLACES = {"device": lambda summary: summary.get("device"), "commit": _commit}
"""What does not keep runs apart but should be known where it differs."""
