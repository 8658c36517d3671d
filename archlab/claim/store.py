"""The jobs of a session of claims, each made once: their names are hashes of whole configurations, and claims share runs."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

from omegaconf import DictConfig

from archlab.claim.jobs import Job, LookJob, Measurement, RunJob
from archlab.config.compose import in_turn
from archlab.runs import tune
from archlab.runs.assembled import scored_at

LENGTH = re.compile(r"(\w+)@(\d+)")
"""A number of one length: late_ratio@4."""

Words = tuple[str, ...]
AJob = TypeVar("AJob", bound=Job)


@cache
def composed(overrides: Words, own: Path | None) -> DictConfig:
    return in_turn(*overrides, config_dir=own, composed_before=composed_with(own))


@cache
def composed_with(own: Path | None) -> dict[Words, DictConfig]:
    """What configurations share that differ in numbers alone, such as a swept learning rate."""
    return {}


def seeded(cfg: DictConfig, seed: int, rate: float | None = None) -> DictConfig:
    cfg = cfg.copy()
    cfg.seed = seed
    if rate is not None:
        cfg.train.lr = rate
    return cfg


@dataclass(frozen=True)
class JobStore:
    """Finds the same job for what was asked before."""

    root: Path
    own: Path | None = None
    known: dict[tuple, Job] = field(default_factory=dict)

    def trial(self, words: Words, place: int, seed: int) -> RunJob:
        def made() -> RunJob:
            cfg = tune.Trial(composed(words, self.own), place, seed).cfg
            cfg.eval.lengths = [1]
            return RunJob(cfg, self.root)

        return self.once(("trial", words, place, seed), made)

    def run(self, words: Words, rate: float | None, seed: int) -> RunJob:
        return self.once(
            ("run", words, rate, seed), lambda: RunJob(seeded(composed(words, self.own), seed, rate), self.root)
        )

    def look(self, words: Words, then: Words, rate: float | None, seed: int, measure: str) -> LookJob:
        def made() -> LookJob:
            other = seeded(composed((*words, *then), self.own), seed, rate)
            return LookJob(self.run(words, rate, seed), looked_at(measure, other))

        return self.once(("look", words, then, rate, seed, measure), made)

    def measurement(self, measure: str, models: tuple[Words, ...], seed: int) -> Measurement:
        def made() -> Measurement:
            return Measurement(measure, tuple(seeded(composed(words, self.own), seed) for words in models), self.root)

        return self.once(("measurement", measure, models, seed), made)

    def once(self, asked: tuple, make: Callable[[], AJob]) -> AJob:
        if asked not in self.known:
            self.known[asked] = make()
        return cast(AJob, self.known[asked])


def looked_at(measure: str, cfg: DictConfig) -> DictConfig:
    """The same without the lengths that the measure does not read."""
    asked = LENGTH.fullmatch(measure)
    return scored_at(cfg, {1} if asked is None else {int(asked[2])} | ({1} if asked[1] == "late_ratio" else set()))


def key(job: Job) -> Path:
    """What makes two jobs one."""
    return job.folder if isinstance(job, RunJob) else job.file
