"""What claims need done: runs, looks at trained weights under other options, and measurements of untrained models.

Each job has a file that says it is done, named by everything that decides its outcome, so that claims share what they
have in common and an interrupted session goes on where it was. Jobs run side by side in worker processes, each on its
share of the threads, where that is faster; runs of one program can be trained as one pack.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from archlab.base.configuration import copied, plain_dict
from archlab.base.errors import UserError
from archlab.base.files import alone, write_text
from archlab.base.plain import Unreadable, read_json
from archlab.config.plan import Plan, layer_plans
from archlab.records.directory import as_written, is_finished, same_run
from archlab.runs.beside import side_by_side
from archlab.runs.code import code_at, code_of
from archlab.runs.corpus import own_corpus
from archlab.runs.expected import seconds_of_a_run, seconds_of_a_step, seconds_of_an_evaluation
from archlab.runs.packs import PackSize, by_program, on_a_gpu, packs_of
from archlab.runs.workers import default_workers, worth_their_start

Record = dict[str, Any]

WHEREVER = ("output", "device", "choices")
"""What a configuration holds that does not decide the outcome; what `device` decides is the precision."""


Changes = tuple[tuple[str, Any], ...]
"""Fields and what they are set to: (("seed", 3), ("train.lr", 1e-2))."""


@dataclass(frozen=True)
class RunJob:
    """Trains what a configuration describes, as `archlab run` would, without plots."""

    base: DictConfig
    root: Path
    changes: Changes = ()
    """On top of `base`, which jobs share: a copy of a configuration takes longer than all else about a job that is done."""

    @cached_property
    def cfg(self) -> DictConfig:
        return changed(self.base, self.changes)

    @cached_property
    def folder(self) -> Path:
        return self.root / digest("run", plain(self.base, self.changes))

    @property
    def result(self) -> Path | None:
        """summary.json, where the run is done."""
        return done_once(self)

    def look_for_result(self) -> Path | None:
        return next((file for file in self.folder.glob("*/summary.json") if is_finished(file.parent)), None)

    @cached_property
    def record(self) -> Record:
        assert self.result is not None
        return said(self.result, "status", "wall_seconds", "val_loss", "unigram_loss")

    def do(self) -> None:
        """Finishes what an interrupted session left, or makes the run; another session that is at it is waited for."""
        from archlab.runs import lab

        with alone(self.folder / ".lock"), quietly(self.folder / "log.txt"):
            if self.result:
                return
            if self.begun is not None:
                with contextlib.suppress(UserError):  # one that cannot go on is left as it is, and made once more
                    lab.resume(self.begun, plots=False)
                    return
            lab.run(self.plan.cfg, plots=False)

    @property
    def plan(self) -> Plan:
        """The run, in a folder of its own."""
        cfg = copied(self.cfg)
        cfg.output = str(self.folder)
        return Plan((), cfg, tuple(layer_plans(cfg)))

    @property
    def begun(self) -> Path | None:
        """A run that an interrupted session left."""
        if not self.folder.is_dir():
            return None
        return same_run(self.folder, as_written(plain_dict(self.plan.cfg, resolve=True)))

    @property
    def words(self) -> str:
        """What an error calls it."""
        return str(self.folder)


@dataclass(frozen=True)
class PackJob:
    """Trains runs of one program as one pack; each is written down by itself."""

    members: tuple[RunJob, ...]

    def do(self) -> None:
        """Those that another session has made or begun meanwhile are left out of the pack, and finished by themselves."""
        from archlab.runs.together import run_together

        with contextlib.ExitStack() as locks:
            for member in sorted(self.members, key=lambda member: member.folder):
                locks.enter_context(alone(member.folder / ".lock"))
            new = [member for member in self.members if not member.result and member.begun is None]
            locks.enter_context(quietly(self.members[0].folder / "log.txt"))
            results = run_together([member.plan for member in new]) if len(new) > 1 else []
        for result in results:
            result()
        for member in self.members:
            member.do()

    @property
    def words(self) -> str:
        """What an error calls it."""
        return f"{self.members[0].words} and {len(self.members) - 1} beside it"


@dataclass(frozen=True)
class LookJob:
    """Evaluates a run's weights under another configuration: another mask, another scaling of positions."""

    of: RunJob
    base: DictConfig
    changes: Changes = ()

    @cached_property
    def cfg(self) -> DictConfig:
        return changed(self.base, self.changes)

    @cached_property
    def file(self) -> Path:
        return self.of.folder / f"then-{digest(plain(self.base, self.changes))}.json"

    @property
    def result(self) -> Path | None:
        return done_once(self)

    def look_for_result(self) -> Path | None:
        return self.file if self.of.result and self.file.is_file() else None

    @cached_property
    def record(self) -> Record:
        return said(self.file, "length", "seconds")

    def do(self) -> None:
        from archlab.runs import lab

        trained = self.of.result
        assert trained is not None, "a run is looked at when it is done"
        with quietly(self.of.folder / "log.txt"):
            write(self.file, lab.evaluate_again(trained.parent, self.cfg, self.of.cfg))

    @property
    def words(self) -> str:
        """What an error calls it."""
        return str(self.file)


MEASURING = ("claim/measures.py", "cost", "runs/assembled.py")
"""Places of the code that decides a measurement, beside what decides a run."""


@dataclass(frozen=True)
class Measurement:
    """A number of one untrained model, or of two side by side."""

    measure: str
    bases: tuple[DictConfig, ...]
    root: Path
    changes: Changes = ()

    @cached_property
    def cfgs(self) -> tuple[DictConfig, ...]:
        return tuple(changed(base, self.changes) for base in self.bases)

    @cached_property
    def file(self) -> Path:
        described = [plain(base, self.changes) for base in self.bases]
        return self.root / "measured" / f"{digest(self.measure, code_at(*MEASURING), *described)}.json"

    @property
    def result(self) -> Path | None:
        return done_once(self)

    def look_for_result(self) -> Path | None:
        return self.file if self.file.is_file() else None

    @cached_property
    def record(self) -> Record:
        return said(self.file, "value", "seconds")

    def do(self) -> None:
        from archlab.claim.measures import MEASURES

        self.file.parent.mkdir(parents=True, exist_ok=True)
        since = time.perf_counter()
        write(self.file, {"value": MEASURES[self.measure](*self.cfgs), "seconds": time.perf_counter() - since})

    @property
    def words(self) -> str:
        """What an error calls it."""
        return f"measure={self.measure}"


Job = RunJob | LookJob | Measurement


def done_once(job: Job) -> Path | None:
    """Where a job's result is; looked for on the disk until it is there, and not again."""
    found = job.__dict__.get("found") or job.look_for_result()
    if found is not None:
        job.__dict__["found"] = found  # as a cached_property does, of a frozen dataclass
    return found


def digest(*parts: str | Record) -> str:
    """A name for what decides an outcome: the configuration, the code that it goes through, and torch's version."""
    code = [code_of(part) for part in parts if isinstance(part, dict)]
    return hashlib.sha256(json.dumps([code, parts], sort_keys=True).encode()).hexdigest()[:20]


def changed(base: DictConfig, changes: Changes) -> DictConfig:
    cfg = copied(base)
    for name, value in changes:
        OmegaConf.update(cfg, name, value, merge=False)
    return cfg


def plain(base: DictConfig, changes: Changes) -> Record:
    """The changed configuration as plain data, with the precision that is meant in the place of the device, and the hash of
    a corpus of one's own: its file may hold another text tomorrow."""
    from archlab.train.runtime import settled_precision  # here, since it takes a second to import

    whole = plain_base(base) | {"precision": settled_precision(base.device, base.precision)} | own_corpus(base)
    for name, value in changes:
        group, _, field = name.rpartition(".")
        whole = whole | ({group: whole[group] | {field: value}} if group else {field: value})
    if whole.get("data_seed") is None:  # runs from before there was one are still found
        whole = {name: value for name, value in whole.items() if name != "data_seed"}
    return whole


SEEN: dict[int, tuple[DictConfig, Record]] = {}
"""What configurations are as plain data; each is kept, so that no other takes its number."""


def plain_base(base: DictConfig) -> Record:
    if id(base) not in SEEN:
        SEEN[id(base)] = base, {name: value for name, value in plain_dict(base).items() if name not in WHEREVER}
    return SEEN[id(base)][1]


NUMBERS = ("value", "seconds", "wall_seconds", "unigram_loss", "val_loss")

NOT_FINITE = ("val_loss",)
"""Numbers that are null where they were not finite: of a run that diverged, or whose last update broke it."""


def said(file: Path, *needs: str) -> Record:
    """What a job wrote down. Raises UserError where the file is damaged, or another's."""
    try:
        record = read_json(file)
        if not isinstance(record, dict) or (missing := [name for name in needs if name not in record]):
            raise Unreadable("is no record of a job" if not isinstance(record, dict) else f"lacks {', '.join(missing)}")
        if wrong := [name for name in needs if name in NUMBERS and not is_number(name, record[name])]:
            raise Unreadable(f"{wrong[0]} is no number")
    except Unreadable as error:
        raise UserError(f"{file}: is damaged: {error}; remove it, and claims makes it again") from None
    return record


def is_number(name: str, value: object) -> bool:
    return type(value) in (int, float) or (value is None and name in NOT_FINITE)


def write(file: Path, record: Record) -> None:
    """All of it or nothing."""
    write_text(file, json.dumps(record))


@contextlib.contextmanager
def quietly(log: Path) -> Iterator[None]:
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


# ---------------------------------------------------------------- doing them


def check_pack(jobs: Sequence[Job], pack: PackSize) -> None:
    """Raises UserError where a pack is asked for and no two of all the runs are of one program."""
    runs = [job for job in jobs if isinstance(job, RunJob)]
    if pack not in ("auto", "off") and all(len(same) < 2 for same in by_program([run.plan for run in runs]).values()):
        raise UserError(
            f"pack={pack}: no two runs of these claims are of one program, so it would change nothing; leave it out"
        )


def in_packs(missing: Sequence[Job], pack: PackSize) -> list[Job | PackJob]:
    """What is missing, with the runs that nobody has begun by pack. Raises UserError where memory can't hold one."""
    new = [job for job in missing if isinstance(job, RunJob) and job.begun is None]
    if pack == "auto" and not on_a_gpu([run.plan for run in new[:1]]):  # plans take time to make
        return list(missing)
    packs = [[new[i] for i in places] for places in packs_of([run.plan for run in new], pack)]
    packed = {run.folder for members in packs if len(members) > 1 for run in members}
    alone = [job for job in missing if not (isinstance(job, RunJob) and job.folder in packed)]
    return [*alone, *(PackJob(tuple(members)) for members in packs if len(members) > 1)]


def worthwhile_workers(jobs: Sequence[Job | PackJob]) -> int:
    """One for each core, where the time they save is more than they take to start."""
    workers = default_workers()
    return workers if worth_their_start([seconds(job) for job in jobs], workers) else 1


def timed(job: Job | PackJob) -> float:
    since = time.perf_counter()
    job.do()
    return time.perf_counter() - since


def work(jobs: Sequence[Job | PackJob], workers: int) -> Iterator[tuple[Job | PackJob, float]]:
    """Does the jobs, longest first and looks after the runs they need; yields each with its seconds.

    With one worker they are done in this process. An interruption lets go of the jobs that had not started, ends the
    others, which go on another time, and passes on.
    """
    todo: list[Job | PackJob] = sorted(jobs, key=lambda job: -seconds(job))
    if workers == 1:
        for job in sorted(todo, key=lambda job: isinstance(job, LookJob)):
            yield job, timed(job)
        return
    numbered = {number: partial(timed, job) for number, job in enumerate(todo)}
    beside = side_by_side(numbered, workers, lambda number: todo[number].words, lambda number: ready(todo[number]))
    with contextlib.closing(beside):
        for number, result, _ in beside:
            yield todo[number], result()


def ready(job: Job | PackJob) -> bool:
    return not isinstance(job, LookJob) or job.of.result is not None


# ---------------------------------------------------------------- what they will take


STEPS_OF = {"update_size": 7, "last_ffn_gradient": 1}
"""As many steps of training as a measurement takes, where it takes any."""

PER_MEASUREMENT = 0.15
"""Seconds to build a model and look at it."""


def seconds(job: Job | PackJob) -> float:
    """An estimate for one CPU thread, rough to a factor of two, of what jobs of one base have in common."""
    match job:
        case RunJob(base=cfg):
            return seconds_of_a_run(cfg)
        case PackJob(members=members):
            return total(members)
        case LookJob(base=cfg):
            return seconds_of_an_evaluation(cfg)
        case Measurement(measure=measure, bases=cfgs):
            steps = STEPS_OF.get(measure, 0)
            return sum(PER_MEASUREMENT + steps * seconds_of_a_step(cfg) for cfg in cfgs)


def total(jobs: Iterable[Job | PackJob]) -> float:
    return sum(map(seconds, jobs))
