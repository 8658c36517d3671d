"""Where a run's numbers go beside its own files: each logger gets the same scalars, all of them on this machine.

A logger's library is imported when a run opens it, so nobody waits for one that was not asked for.
"""

import io
import os
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
    """One more place for a run's numbers. Made as `Logger(directory, config)`, the run's own; where a run goes on that
    was broken off, as `Logger(directory, config, after)`, the number of steps that stand.
    """

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Called at each logged step, with steps that rise."""

    def finish(self, summary: Record) -> None:
        """Called once, with how the run ended, or with nothing where it broke off; what is not finite has become None."""


class TensorBoard:
    """Writes events.out.* into the run's directory; read by `tensorboard --logdir`."""

    def __init__(self, directory: Path, config: Record, after: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        self.events = SummaryWriter(str(directory), purge_step=after + 1 if after else None)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.events.add_scalar(name, value, step)

    def finish(self, summary: Record) -> None:
        self.events.close()


class WeightsAndBiases:
    """Writes wandb/offline-run-* into the run's directory; sent by `wandb sync`, if ever, by the user alone.

    Each time a run goes on it writes one more, of the steps that follow.
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
    once a process, so runs of one command share the first one's. It has no summary; the summary's numbers are logged
    once more, as summary/..., at the last step. A run that goes on does so under its name; steps logged between its last
    checkpoint and its end stay there twice.
    """

    def __init__(self, directory: Path, config: Record, after: int = 0):
        os.environ.setdefault("TRACKIO_DIR", str(directory.parent.absolute() / ".trackio"))
        for elsewhere in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):  # with either, it would send the numbers away
            os.environ.pop(elsewhere, None)
        import trackio

        self.library, self.last = trackio, 0
        with redirect_stdout(io.StringIO()):  # what a run prints last is its own directory
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
            self.library.finish()  # not the run's own finish, after which the library would finish it again at exit


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
    """TensorBoard's, which every run has, and those that were asked for; `after` steps of the run stand already."""
    given = (directory, config, after) if after else (directory, config)
    return [logger(*given) for logger in (TensorBoard, *(OPTIONAL[name] for name in names))]


def numbers(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """The numbers of a nested record, under names joined by slashes."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{name}", value
