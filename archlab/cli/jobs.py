"""The jobs of one command: how they are carried out, and what is printed of them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import archlab
from archlab.base.errors import NoRoom, UserError
from archlab.base.files import kept_out, no_room
from archlab.base.messages import beyond_the_machine
from archlab.base.quantities import Count
from archlab.base.words import key_of, plain, sets, value_of
from archlab.cli.arguments import read
from archlab.config.compose import asked_for, finish, numbers_as_typed
from archlab.config.messages import explain
from archlab.config.plan import Plan
from archlab.records.reader import read_run

Action = Callable[[DictConfig, list[str]], Path | None]
"""What a verb does with a finished configuration and the overrides that made it; returns the run's directory."""


@dataclass(frozen=True)
class RunOptions:
    """What `run` takes besides a configuration: how its runs are carried out, which decides no outcome."""

    resume: bool = False
    """Whether runs that are there already are kept, and finished where they were broken off."""

    plots: bool | None = None
    """Whether each run is plotted; None: one run is, and of a sweep only the comparison."""

    workers: Count | None = None
    """How many runs of a sweep, or trials of tune=lr, go on at a time; None: as many as is fastest here."""

    pack: Literal["auto", "off"] | Count = "auto"
    """How many runs of one architecture are trained as one program; auto: on a GPU, as many as its memory holds."""

    @classmethod
    def taken_from(cls, words: Sequence[str]) -> tuple[list[str], "RunOptions"]:
        """The other words, and the options; the last word of a name counts. Raises UserError for a value of another type."""
        given = {one.name: value_given(word, one.type) for word in words for one in fields(cls) if sets(word, one.name)}
        return [word for word in words if key_of(word) not in given], cls(**given)


WHAT_FOR = {
    "resume": "resume=true keeps existing runs and finishes the rest",
    "plots": "plots=true draws every run's plots",
}


def value_given(word: str, kind: Any) -> Any:
    """What a word sets one of RunOptions to. Raises UserError."""
    name, value = key_of(word), value_of(word)
    if name in WHAT_FOR:
        if value.lower() not in ("true", "false"):
            raise UserError(f"{word}: should be true or false; {WHAT_FOR[name]}")
        return value.lower() == "true"
    if (
        name == "pack"
        and value not in ("auto", "off")
        and not (value.isascii() and value.isdigit() and value.strip("0"))
    ):
        raise UserError(f"{word}: should be auto, off, or how many runs are trained as one, such as pack=4")
    return read(name, value, kind)


@dataclass
class Jobs:
    """What has come of the jobs of one command, as far as they ran in this process or one of its own."""

    action: Action
    total: int | None = None
    done: dict[int, Path] = field(default_factory=dict)
    """By a job's place in the sweep, the run's directory."""

    errors: list[UserError] = field(default_factory=list)
    full: NoRoom | None = None
    """A disk without room ends the command: the jobs that are left would only find it full too."""

    process: int = field(default_factory=os.getpid)

    @property
    def directories(self) -> list[Path]:
        """In the sweep's order, whatever was done first."""
        return [self.done[number] for number in sorted(self.done)]

    def run(self, cfg: DictConfig) -> None:
        """One job that Hydra hands over. It prints a line of its own for an exception, so an error is kept for the end."""
        if self.full:
            return
        with self.errors_kept():
            plan = finished(cfg)
            settings = HydraConfig.get()
            words = [plain(word) for word in cast(list[str], OmegaConf.to_container(settings.overrides.task))]
            number = cast(DictConfig, settings.job).get("num", 0)
            if settings.mode == RunMode.MULTIRUN:
                self.announce(number, words)
            self.note(number, self.action(plan, words))

    def sweep(self, plans: Sequence[Plan], options: RunOptions, own: Path | None) -> None:
        """Trains what the plans of a sweep describe."""
        from archlab.runs import sweep

        jobs = [sweep.Job(plan, own, bool(options.plots), options.resume) for plan in plans]
        for number, result, over in sweep.carry_out(jobs, options.workers, options.pack, archlab.STARTED):
            if not over:
                self.announce(number, plans[number].overrides)
            with self.errors_kept():
                self.note(number, result())
            if over:
                self.announce(number, plans[number].overrides, outcome(self.done.get(number)))
            if self.full:
                return

    def one_by_one(self, plans: Sequence[Plan]) -> None:
        """What another verb than `run` does with each configuration of a sweep."""
        for number, plan in enumerate(plans):
            self.announce(number, plan.overrides)
            with self.errors_kept():
                self.note(number, self.action(plan.cfg, list(plan.overrides)))

    def announce(self, number: int, words: Sequence[str], outcome: str = "") -> None:
        """Prints a job's overrides, where it is one of several."""
        of = f"/{self.total}" if self.total else ""
        print(f"[{number + 1}{of}] {' '.join(words)}{outcome}", flush=True)

    def note(self, number: int, directory: Path | None) -> None:
        if directory is not None:
            self.done[number] = directory

    @contextmanager
    def errors_kept(self) -> Iterator[None]:
        """Inside, what the user or the machine is the cause of is kept for the end."""
        try:
            yield
        except (UserError, InstantiationException) as error:
            if os.getpid() != self.process:  # a launcher's, whose memory nobody reads afterwards
                raise explain(error) from None
            self.errors.append(explain(error))
        except (MemoryError, RuntimeError) as error:
            if (told := beyond_the_machine(error)) is None:
                raise
            self.errors.append(told)
        except OmegaConfBaseException as error:
            raise RuntimeError("a finished configuration was read wrongly") from error
        except (NoRoom, OSError) as error:
            self.full, refused = no_room(error), kept_out(error)
            if (self.full or refused) is None or os.getpid() != self.process:
                raise
            self.errors += [refused] if refused else []

    def raise_errors(self) -> None:
        """One line for all of them."""
        if self.full:
            raise self.full
        if self.errors:
            others = f" ({len(self.errors)} jobs failed; this is the first)" if len(self.errors) > 1 else ""
            raise UserError(f"{self.errors[0]}{others}")


def outcome(directory: Path | None) -> str:
    """How a run that nobody watched ended, to stand after its overrides."""
    from archlab.report.tables import duration, nats

    if directory is None:
        return ": failed"
    summary = read_run(directory).summary
    together = f" after its pack of {summary['pack']} began" if summary.get("pack") else ""
    loss, took = nats(summary["val_loss"]), duration(summary["wall_seconds"]) + together
    return f": {summary['status']}, validation loss {loss}, {took}"


def finished(cfg: DictConfig) -> DictConfig:
    """What Hydra composed, checked and settled."""
    settings = HydraConfig.get()
    try:
        own = [folder for folder in (own_of_job(),) if folder]
        words = cast(list[str], OmegaConf.to_container(settings.overrides.task))  # a reference in them as it was typed
        with numbers_as_typed(words):
            return finish(cfg, settings.runtime.choices, asked_for(words), own)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error


def own_of_job() -> Path | None:
    """The folder of the user's own options that this job was composed with."""
    sources = HydraConfig.get().runtime.config_sources
    return next((Path(source.path) for source in sources if "command-line" in source.provider), None)
