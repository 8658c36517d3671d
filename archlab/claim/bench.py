"""From a claim to the numbers it needs: which jobs, and what they say once done."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from archlab.base.errors import UserError
from archlab.claim.claim import Budget, BudgetName, Claim, Part
from archlab.claim.decide import PartResult, decide_part
from archlab.claim.jobs import Job, LookJob, Measurement, Record, RunJob
from archlab.claim.measures import MEASURES
from archlab.claim.reductions import REDUCTIONS
from archlab.config.compose import in_turn
from archlab.runs.assembled import scored_at

LENGTH = re.compile(r"(\w+)@(\d+)")
"""A number of one length: late_ratio@4."""


@dataclass(frozen=True)
class ClaimPlan:
    """One claim at one budget: by part, arm, seed and swept value, the job that measures it."""

    claim: Claim
    budget: Budget | str
    jobs: dict[int, dict[str, dict[int, list[Job]]]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Job]:
        """Every job, the runs that are looked at included."""
        for arms in self.jobs.values():
            for seeds in arms.values():
                for row in seeds.values():
                    for job in row:
                        if isinstance(job, LookJob):
                            yield job.of
                        yield job

    def results(self) -> list[PartResult]:
        return [self.result(number, part) for number, part in enumerate(self.claim.parts)]

    def result(self, number: int, part: Part) -> PartResult:
        values = {
            label: {
                seed: reduced(part, [value_of(job, part.measure) for job in row], row) for seed, row in seeds.items()
            }
            for label, seeds in self.jobs[number].items()
        }
        return decide_part(part, values, len(self.claim.parts))


def plan(claim: Claim, budget_name: BudgetName, root: Path, own: Path | None = None) -> ClaimPlan:
    """What has to be done for a claim; raises UserError where its overrides don't make a model."""
    budget = claim.budgets[budget_name]
    planned = ClaimPlan(claim, budget)
    if isinstance(budget, str):
        return planned
    for number, part in enumerate(claim.parts):
        try:
            planned.jobs[number] = jobs_of(claim, part, budget, root, own)
        except UserError as error:
            raise UserError(f"claim/{claim.name}.yaml: parts.{number}: {error}") from None
    return planned


def jobs_of(claim: Claim, part: Part, budget: Budget, root: Path, own: Path | None) -> dict[str, dict[int, list[Job]]]:
    """By arm, or "between" for two arms taken together: by seed: a job for each swept value."""
    rows = {label: [overrides(claim, label, swept, budget) for swept in sweep(part)] for label in part.arms}
    if part.form == "between":
        pairs = list(zip(*rows.values(), strict=True))
        both = [[composed(words, own) for words in pair] for pair in pairs]
        return {"between": {s: [measurement(part, pair, s, root) for pair in both] for s in range(budget.seeds)}}
    return {
        label: {
            s: [job(part, words, claim.arms[label].then, s, root, own) for words in row] for s in range(budget.seeds)
        }
        for label, row in rows.items()
    }


def sweep(part: Part) -> list[tuple[str, ...]]:
    """The overrides of each swept value; one empty set of them where nothing is swept."""
    return [(f"{name}={x}",) for name, xs in part.over.items() for x in xs] if part.over else [()]


def overrides(claim: Claim, label: str, swept: tuple[str, ...], budget: Budget) -> tuple[str, ...]:
    return (*claim.common, *budget.overrides, *claim.arms[label].train, *swept)


@cache
def composed(overrides: tuple[str, ...], own: Path | None) -> DictConfig:
    return in_turn(*overrides, config_dir=own, composed_before=composed_with(own))


@cache
def composed_with(own: Path | None) -> dict[tuple[str, ...], DictConfig]:
    """What configurations share that differ in numbers alone, such as a swept learning rate."""
    return {}


def seeded(cfg: DictConfig, seed: int) -> DictConfig:
    cfg = cfg.copy()
    cfg.seed = seed
    return cfg


def job(part: Part, words: tuple[str, ...], then: tuple[str, ...], seed: int, root: Path, own: Path | None) -> Job:
    cfg = seeded(composed(words, own), seed)
    if part.measure in MEASURES:
        return Measurement(part.measure, (cfg,), root)
    run = RunJob(cfg, root)
    if not then:
        return run
    return LookJob(run, looked_at(part.measure, seeded(composed((*words, *then), own), seed)))


def looked_at(measure: str, cfg: DictConfig) -> DictConfig:
    """The same without the lengths that the measure does not read."""
    asked = LENGTH.fullmatch(measure)
    return scored_at(cfg, {1} if asked is None else {int(asked[2])} | ({1} if asked[1] == "late_ratio" else set()))


def measurement(part: Part, cfgs: Sequence[DictConfig], seed: int, root: Path) -> Measurement:
    return Measurement(part.measure, tuple(seeded(cfg, seed) for cfg in cfgs), root)


# ---------------------------------------------------------------- reading what was done


def value_of(job: Job, measure: str) -> float:
    """What a finished job says of a measure; infinite where the run diverged."""
    if isinstance(job, Measurement):
        return job.record["value"]
    run = job.of if isinstance(job, LookJob) else job
    if run.record["status"] == "diverged":
        return math.inf
    return of_record(job.record, measure, run.cfg.train.train_len)


def of_record(record: Record, measure: str, train_len: int) -> float:
    """val_loss, late_ratio@4 (at four times train_len), or a dotted name of the record."""
    if match := LENGTH.fullmatch(measure):
        at = [entry for entry in record["length"] if entry["eval_len"] == int(match[2]) * train_len]
        value = at[0].get(match[1]) if at else None
    else:
        value = record
        for name in measure.split("."):
            value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, (int, float)):
        raise UserError(
            f"measure={measure}: a run has no such number; name one of its summary.json, such as val_loss or late_ratio@4"
        )
    return float(value)


def reduced(part: Part, values: list[float], row: list[Job]) -> float:
    if part.over is None or part.reduce is None:
        (value,) = values
        return value
    (xs,) = part.over.values()
    return REDUCTIONS[part.reduce](list(map(float, xs)), values, failed(row))


def failed(row: list[Job]) -> float:
    """The loss of a run that learned nothing but token frequencies; infinite where there was no run."""
    records = [
        job.of.record if isinstance(job, LookJob) else job.record for job in row if not isinstance(job, Measurement)
    ]
    return max((record["unigram_loss"] for record in records), default=math.inf)
