"""What claims need done: runs, looks at trained weights under other options, and measurements of untrained models.

Each job has a file that says it is done, named by everything that decides its outcome, so that claims share what they
have in common and an interrupted session goes on where it was. Jobs run in worker processes, one thread each.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import archlab
from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError
from archlab.base.files import alone, write_text
from archlab.base.plain import Unreadable, read_json
from archlab.records.directory import as_written, is_finished, same_run
from archlab.runs.expected import PER_RUN, seconds_of_a_run, seconds_of_an_evaluation
from archlab.runs.workers import pool_of, unless_stopped

Record = dict[str, Any]

WHEREVER = ("output", "device", "choices")
"""What a configuration holds that does not decide the outcome; what `device` decides is the precision."""


@dataclass(frozen=True)
class RunJob:
    """Trains what a configuration describes, as `archlab run` would, without plots."""

    cfg: DictConfig
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / digest("run", self.cfg)

    @property
    def result(self) -> Path | None:
        """summary.json, where the run is done."""
        return next((file for file in self.folder.glob("*/summary.json") if is_finished(file.parent)), None)

    @property
    def record(self) -> Record:
        assert self.result is not None
        return said(self.result, "status", "wall_seconds")

    def do(self) -> None:
        """Finishes what an interrupted session left, or makes the run; another session that is at it is waited for."""
        from archlab.runs import lab

        cfg = self.cfg.copy()
        cfg.output = str(self.folder)
        with alone(self.folder / ".lock"), quietly(self.folder / "log.txt"):
            if self.result:
                return
            begun = same_run(self.folder, as_written(plain_dict(cfg, resolve=True)))
            if begun is not None:
                with contextlib.suppress(UserError):  # one that cannot go on is left as it is, and made once more
                    lab.resume(begun, plots=False)
                    return
            lab.run(cfg, plots=False)


@dataclass(frozen=True)
class LookJob:
    """Evaluates a run's weights under another configuration: another mask, another scaling of positions."""

    of: RunJob
    cfg: DictConfig

    @property
    def file(self) -> Path:
        return self.of.folder / f"then-{digest(self.cfg)}.json"

    @property
    def result(self) -> Path | None:
        return self.file if self.of.result and self.file.is_file() else None

    @property
    def record(self) -> Record:
        return said(self.file, "length", "seconds")

    def do(self) -> None:
        from archlab.runs import lab

        trained = self.of.result
        assert trained is not None, "a run is looked at when it is done"
        with quietly(self.of.folder / "log.txt"):
            write(self.file, lab.evaluate_again(trained.parent, self.cfg))


@dataclass(frozen=True)
class Measurement:
    """A number of one untrained model, or of two side by side."""

    measure: str
    cfgs: tuple[DictConfig, ...]
    root: Path

    @property
    def file(self) -> Path:
        return self.root / "measured" / f"{digest(self.measure, *self.cfgs)}.json"

    @property
    def result(self) -> Path | None:
        return self.file if self.file.is_file() else None

    @property
    def record(self) -> Record:
        return said(self.file, "value", "seconds")

    def do(self) -> None:
        from archlab.claim.measures import MEASURES

        self.file.parent.mkdir(parents=True, exist_ok=True)
        since = time.perf_counter()
        write(self.file, {"value": MEASURES[self.measure](*self.cfgs), "seconds": time.perf_counter() - since})


Job = RunJob | LookJob | Measurement


def digest(*parts: object) -> str:
    """A name for what decides an outcome, this version of archlab included."""
    described = [plain(part) for part in parts]
    return hashlib.sha256(json.dumps([archlab.__version__, described], sort_keys=True).encode()).hexdigest()[:20]


def plain(part: object) -> object:
    if not isinstance(part, DictConfig):
        return part
    from archlab.train.runtime import settled_precision  # here, since it takes a second to import

    whole = plain_dict(part)
    settled = {"precision": settled_precision(part.device, part.precision)}
    return {name: value for name, value in whole.items() if name not in WHEREVER} | settled


NUMBERS = ("value", "seconds", "wall_seconds")


def said(file: Path, *needs: str) -> Record:
    """What a job wrote down. Raises UserError where the file is damaged, or another's."""
    try:
        record = read_json(file)
        if not isinstance(record, dict) or (missing := [name for name in needs if name not in record]):
            raise Unreadable("is no record of a job" if not isinstance(record, dict) else f"lacks {', '.join(missing)}")
        if wrong := [name for name in needs if name in NUMBERS and type(record[name]) not in (int, float)]:
            raise Unreadable(f"{wrong[0]} is no number")
    except Unreadable as error:
        raise UserError(f"{file}: is damaged: {error}; remove it, and claims makes it again") from None
    return record


def write(file: Path, record: Record) -> None:
    """All of it or nothing."""
    write_text(file, json.dumps(record))


@contextlib.contextmanager
def quietly(log: Path) -> Iterator[None]:
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


# ---------------------------------------------------------------- doing them


def timed(job: Job) -> float:
    since = time.perf_counter()
    job.do()
    return time.perf_counter() - since


def work(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, float]]:
    """Does the jobs, longest first and looks after the runs they need; yields each with its seconds.

    An interruption lets go of the jobs that had not started, ends the others, which go on another time, and passes on.
    """
    waiting: list[Job] = sorted(jobs, key=lambda job: -seconds(job))
    with pool_of(workers) as pool:
        going: dict = {}
        while waiting or going:
            for job in [job for job in waiting if ready(job)]:
                waiting.remove(job)
                going[pool.submit(unless_stopped, timed, job)] = job
            done, _ = wait(going, return_when=FIRST_COMPLETED)
            for future in done:
                yield going.pop(future), future.result()


def ready(job: Job) -> bool:
    return not isinstance(job, LookJob) or job.of.result is not None


# ---------------------------------------------------------------- what they will take


def seconds(job: Job) -> float:
    """An estimate for one CPU thread, rough to a factor of two."""
    match job:
        case RunJob(cfg=cfg):
            return seconds_of_a_run(cfg)
        case LookJob(cfg=cfg):
            return seconds_of_an_evaluation(cfg)
        case Measurement():
            return PER_RUN
