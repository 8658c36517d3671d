"""Loggers of a run's numbers, beside its own files: each gets the same scalars, and all stay on this machine.

A logger's library is imported when a run opens it, so libraries that are not used cost no time.
"""

import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from archlab.base.errors import UserError

Record = dict[str, Any]
PROJECT = "archlab"


@runtime_checkable
class Logger(Protocol):
    """One more place for a run's numbers. Made as `Logger(directory, config)`, with the run's own; for a run that is
    resumed, as `Logger(directory, config, after)`, where `after` is the number of steps that are kept.
    """

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Called at each logged step, with increasing steps."""

    def finish(self, summary: Record) -> None:
        """Called once, with the run's summary, empty where it was broken off; numbers that are not finite are None."""


class TensorBoard:
    """Writes events.out.* into the run's directory; read by `tensorboard --logdir`."""

    def __init__(self, directory: Path, config: Record, after: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        # Readers take the files in the order of their names, which begin with the second: a later one has a later second.
        while any(second_of(file) == int(time.time()) for file in directory.glob("events.out.tfevents.*")):
            time.sleep(0.05)
        self.events = SummaryWriter(str(directory), purge_step=after + 1 if after else None)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.events.add_scalar(name, value, step)

    def finish(self, summary: Record) -> None:
        self.events.close()


def second_of(file: Path) -> int:
    """The second in which a file of events was begun, 0 where its name tells none: events.out.tfevents.SECOND.HOST..."""
    return int(second) if (second := file.name.split(".")[3]).isdecimal() else 0


class WeightsAndBiases:
    """Writes wandb/offline-run-* into the run's directory; only the user sends it, with `wandb sync`.

    Each time a run is resumed, one more is written, with the steps that follow.
    """

    def __init__(self, directory: Path, config: Record, after: int = 0):
        import wandb

        self.run = wandb.init(
            project=PROJECT,
            name=directory.name,
            dir=directory,
            config=config,
            mode="offline",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.run.log(dict(scalars), step=step)

    def finish(self, summary: Record) -> None:
        self.run.summary.update(summary)
        self.run.finish()


class Trackio:
    """Writes to a store that the runs of one folder share: .trackio beside them, or TRACKIO_DIR where that is set.

    `TRACKIO_DIR=experiments/runs/.trackio trackio show --project archlab` opens it. The library reads the folder
    once per process, so runs of one command share the first one's. It has no summary; the summary's numbers are logged
    as summary/... at the last step. A resumed run keeps its name; steps that were logged after its last checkpoint
    are then stored twice.
    """

    def __init__(self, directory: Path, config: Record, after: int = 0):
        os.environ.setdefault("TRACKIO_DIR", str(directory.parent.absolute() / ".trackio"))
        for elsewhere in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):  # with either, it would send the numbers away
            os.environ.pop(elsewhere, None)
        import trackio

        self.library, self.last = trackio, 0
        with redirect_stdout(io.StringIO()):  # the last line that a run prints is its directory
            self.run = trackio.init(
                PROJECT,
                directory.name,
                config=config,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
                resume="allow" if after else "never",
            )

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.last = step
        self.run.log(dict(scalars), step=step)

    def finish(self, summary: Record) -> None:
        self.run.log(dict(numbers(summary, "summary")), step=self.last)
        with redirect_stdout(io.StringIO()):
            self.library.finish()  # not the run's own finish: the library would finish the run again at exit


OPTIONAL: dict[str, type] = {"wandb": WeightsAndBiases, "trackio": Trackio}
"""By the name of the library and of the extra that installs it."""


def check_installed(names: Sequence[str]) -> None:
    """Raises UserError where a logger is named twice or its library is not there."""
    for name in names:
        if list(names).count(name) > 1:
            raise UserError(f"loggers={list(names)}: {name} twice changes nothing; name it once")
        if find_spec(name) is None:
            raise UserError(f"loggers={list(names)}: {name} is not installed; pip install 'archlab[{name}]'")


def open_loggers(names: Sequence[str], directory: Path, config: Record, after: int = 0) -> list[Logger]:
    """TensorBoard, which every run has, and the loggers that were chosen; `after` steps of the run are done already."""
    arguments = (directory, config, after) if after else (directory, config)
    return [logger(*arguments) for logger in (TensorBoard, *(OPTIONAL[name] for name in names))]


def numbers(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """The numbers of a nested record, under names joined by slashes."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{name}", value
