"""All arms against one of them: the noise first, then each difference, corrected for how many there are."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from statsmodels.stats.multitest import multipletests

from archlab.base.errors import UserError
from archlab.base.metrics import Direction
from archlab.comparison.arms import Arm, sort_into_arms
from archlab.comparison.equal import AXES, HALF_LIFE, at_equal
from archlab.comparison.metric import Metric
from archlab.comparison.paired import Paired, paired
from archlab.records.reader import Record, Run

WORDS = {"a": "better", "b": "worse"}
"""A verdict of `paired(arm, baseline)`, said of the arm; the other verdicts stand as they are."""

Values = dict[int, float | None]


@dataclass(frozen=True)
class Measured:
    """An arm with its values by seed, None where a run diverged; and how it compares, unless it is the baseline."""

    arm: Arm
    values: Values
    at_equal: dict[str, float | None]
    rank: int
    against: Paired | None
    p_adjusted: float | None

    @property
    def finished(self) -> list[float]:
        return [value for value in self.values.values() if value is not None]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.finished) if self.finished else None

    @property
    def sd(self) -> float | None:
        return statistics.stdev(self.finished) if len(self.finished) > 1 else None

    @property
    def verdict(self) -> str | None:
        """better, worse, equivalent, within noise or one pair; None where there is nothing to compare with."""
        return WORDS.get(self.against.verdict, self.against.verdict) if self.against else None

    def record(self) -> Record:
        first, against = self.arm.runs[0], self.against
        return {
            "label": self.arm.label,
            "overrides": self.arm.overrides,
            "runs": [str(run.directory) for run in self.arm.runs],
            "seeds": self.arm.seeds,
            "values": list(self.values.values()),
            "mean": self.mean,
            "sd": self.sd,
            "n": len(self.values),
            "diverged": len(self.values) - len(self.finished),
            "rank": self.rank,
            "at_equal": self.at_equal,
            "n_params": first.summary.get("n_params"),
            "train_flops_per_token": first.summary.get("train_flops_per_token"),
            "effect": against and against.effect,
            "interval": list(against.interval) if against and against.interval else None,
            "level": against and against.level,
            "p": against and against.p,
            "p_adjusted": self.p_adjusted,
            "verdict": self.verdict,
            "seeds_needed": against and against.seeds_needed,
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
        }


def compare(
    runs: Sequence[Run],
    *,
    metric: str = "val_loss",
    baseline: str | None = None,
    smallest_effect: float | None = None,
    direction: Direction | None = None,
    alpha: float = 0.05,
    mix: bool = False,
) -> ComparedArms:
    """Sorts runs into arms and compares every arm with the baseline, seed by seed.

    `baseline` is an arm's label, or enough of its words to mean one arm; without it, the arm of the first run.
    `smallest_effect` is in the metric's unit; without it, 0.01 where that is nats per token, else 0. `direction` says
    which way is better of a number of which `archlab.records.summary` does not.

    The noise floor is the standard deviation of the baseline's values over seeds (n - 1), of those that finished.
    Each other arm is compared by `paired(arm, baseline)`; effect is arm - baseline. With k such comparisons the
    chance that any of them names a winner where no arm differs is kept at alpha by Holm's step-down (statsmodels
    multipletests): the smallest p is tested at alpha / k, the next at alpha / (k - 1), and so on up to the first that
    fails; that one and all after it cannot be distinguished from noise. Each interval is shown at the level at which its p was
    tested, those after the first failure at its level, so that an interval excludes zero exactly where Holm rejects:
    interval and verdict cannot contradict each other. They are intervals one at a time, not jointly. Arms with fewer
    than two pairs have no p and are not counted in k.

    Ranks order the arms by the share of runs that diverged, then by the mean of the others. A diverged run has no
    value, whatever the metric, and counts as worse than every finished run in its comparison. Raises UserError where runs cannot be
    compared, or the metric or the baseline is not among them.
    """
    measure = Metric(metric, direction)
    smallest = measure.smallest_effect if smallest_effect is None else smallest_effect
    arms, notes = sort_into_arms(runs, mix=mix)
    reference = find_baseline(arms, baseline)
    values = [{seed: measure.value(run) for seed, run in arm.by_seed.items()} for arm in arms]
    values = [dict(sorted(of_arm.items())) for of_arm in values]
    _ = measure.lower_is_better  # asked for here, of a number that is there
    pairs = _against(values[arms.index(reference)], reference, arms, values, measure, smallest, alpha)
    losses, reached = at_equal(arms)
    measured = [
        Measured(arm, of_arm, of_losses, rank, *pairs.get(arm.label, (None, None)))
        for arm, of_arm, of_losses, rank in zip(arms, values, losses, _ranks(values, measure), strict=True)
    ]
    found = ComparedArms(measure, smallest, alpha, measured, measured[arms.index(reference)], notes)
    notes += _remarks(found, reached)
    return found


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
    base: Values,
    reference: Arm,
    arms: Sequence[Arm],
    values: Sequence[Values],
    metric: Metric,
    smallest_effect: float,
    alpha: float,
) -> dict[str, tuple[Paired, float | None]]:
    """By label, how each arm that shares a seed with the baseline compares to it, and its p after Holm's step-down."""

    def pair(of_arm: Values, level: float) -> Paired:
        return paired(
            of_arm, base, smallest_effect=smallest_effect, alpha=level, lower_is_better=metric.lower_is_better
        )

    sharing = [(arm.label, of_arm) for arm, of_arm in zip(arms, values, strict=True) if arm is not reference]
    sharing = [(label, of_arm) for label, of_arm in sharing if of_arm.keys() & base.keys()]
    p_values = [pair(of_arm, alpha).p for _, of_arm in sharing]
    steps = iter(holm([p for p in p_values if p is not None], alpha))
    compared = {}
    for (label, of_arm), p in zip(sharing, p_values, strict=True):
        level, p_adjusted = (alpha, None) if p is None else next(steps)
        compared[label] = pair(of_arm, level), p_adjusted
    return compared


def holm(p_values: Sequence[float], alpha: float) -> list[tuple[float, float]]:
    """For each p, the level its step of Holm's procedure tests it at, and the adjusted p.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    if not p_values:
        return []
    rejected, adjusted, *_ = multipletests(p_values, alpha=alpha, method="holm")
    k, last = len(p_values), int(sum(rejected))
    order = sorted(range(k), key=lambda i: p_values[i])
    levels = {i: alpha / (k - min(step, last)) for step, i in enumerate(order)}
    return [(levels[i], float(adjusted[i])) for i in range(k)]


def _ranks(values: Sequence[Values], metric: Metric) -> list[int]:
    """From 1, the best; arms that are equal share a rank."""
    sign = 1 if metric.lower_is_better else -1
    keys = []
    for of_arm in values:
        finished = [value for value in of_arm.values() if value is not None]
        keys.append((1 - len(finished) / len(of_arm), sign * statistics.fmean(finished) if finished else 0.0))
    return [1 + sum(other < key for other in keys) for key in keys]


def _remarks(found: ComparedArms, reached: dict[str, float | None]) -> list[str]:
    """What a reader has to know beside the table, a line each."""
    base, notes = found.baseline, []
    for measured in found.arms:
        unpaired = sorted(measured.values.keys() ^ base.values.keys())
        if unpaired and measured is not base:
            seeds = ", ".join(map(str, unpaired))
            notes.append(f"{measured.arm.label}: no partner at seed {seeds}, so left out of its comparison")
        if diverged := len(measured.values) - len(measured.finished):
            notes.append(f"{measured.arm.label}: {diverged} of {len(measured.values)} runs diverged, ranked worst")
    if all(len(measured.values) < 2 for measured in found.arms):
        notes.append("one seed only, so nothing can be said of chance; run more, such as seed=0,1,2,3,4,5")
    if all(reached[axis] is not None for axis in AXES):
        notes.append(
            f"training losses are compared at {reached['steps']:.0f} steps, {reached['tokens']:.3g} tokens,"
            f" {reached['flops']:.3g} FLOPs and {reached['seconds']:.3g} seconds, the most that all arms reach;"
            f" mean of the logged steps up to there, weighted with a half-life of {HALF_LIFE}"
        )
    runs = [run for measured in found.arms for run in measured.arm.runs]
    for name, get in PLACES.items():
        if len(places := {str(get(run.summary)) for run in runs}) > 1:
            notes.append(f"the runs come from more than one {name} ({', '.join(sorted(places))})")
    return notes


def _commit(summary: Record) -> Any:
    return ((summary.get("git") or {}).get("commit") or "unknown")[:8]


PLACES = {"device": lambda summary: summary.get("device"), "commit": _commit}
"""What does not keep runs apart but should be known where it differs."""
