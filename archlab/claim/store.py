"""The jobs of a session of claims, each made once: their names are hashes of whole configurations, and claims share runs."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

from omegaconf import DictConfig

from archlab.claim.jobs import Changes, Job, LookJob, Measurement, RunJob
from archlab.config.compose import in_turn
from archlab.runs import tune
from archlab.runs.assembled import scored_at

LENGTH = re.compile(r"(\w+)@(\d+)")
"""A number of one length: late_ratio@4."""

Words = tuple[str, ...]
AJob = TypeVar("AJob", bound=Job)


@cache
def composed(overrides: Words, own: Path | None) -> DictConfig:
    return in_turn(*overrides, config_dir=own)


def at(seed: int, rate: float | None = None) -> Changes:
    return (("seed", seed), *((("train.lr", rate),) if rate is not None else ()))


@dataclass(frozen=True)
class JobStore:
    """Finds the same job for what was asked before."""

    root: Path
    own: Path | None = None
    known: dict[tuple, Job] = field(default_factory=dict)

    def trial(self, words: Words, place: int, seed: int) -> RunJob:
        def made() -> RunJob:
            arm = composed(words, self.own)
            changes = (*tune.Trial(arm, place, seed).changes, ("eval.lengths", [1]))
            return RunJob(arm, self.root, changes)

        return self.once(("trial", words, place, seed), made)

    def run(self, words: Words, rate: float | None, seed: int) -> RunJob:
        return self.once(
            ("run", words, rate, seed), lambda: RunJob(composed(words, self.own), self.root, at(seed, rate))
        )

    def look(self, words: Words, then: Words, rate: float | None, seed: int, measure: str) -> LookJob:
        def made() -> LookJob:
            return LookJob(
                self.run(words, rate, seed), composed_for(measure, (*words, *then), self.own), at(seed, rate)
            )

        return self.once(("look", words, then, rate, seed, measure), made)

    def measurement(self, measure: str, models: tuple[Words, ...], seed: int) -> Measurement:
        def made() -> Measurement:
            return Measurement(measure, tuple(composed(words, self.own) for words in models), self.root, at(seed))

        return self.once(("measurement", measure, models, seed), made)

    def once(self, asked: tuple, make: Callable[[], AJob]) -> AJob:
        if asked not in self.known:
            self.known[asked] = make()
        return cast(AJob, self.known[asked])


@cache
def composed_for(measure: str, overrides: Words, own: Path | None) -> DictConfig:
    return looked_at(measure, composed(overrides, own))


def looked_at(measure: str, cfg: DictConfig) -> DictConfig:
    """The same without the lengths that the measure does not read."""
    asked = LENGTH.fullmatch(measure)
    return scored_at(cfg, {1} if asked is None else {int(asked[2])} | ({1} if asked[1] == "late_ratio" else set()))


def key(job: Job) -> Path:
    """What makes two jobs one."""
    return job.folder if isinstance(job, RunJob) else job.file
