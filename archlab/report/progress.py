"""The progress of a loop, on stderr: a live bar in a terminal, a few plain lines anywhere else."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from archlab.report.tables import count, duration, nats, number

Item = TypeVar("Item")

REFRESHES_PER_SECOND = 8
LINES_A_TRAINING = 10


class TrainingProgress:
    """Shows the progress of `total` training steps, of which `start` were taken before; a context manager."""

    def __init__(self, total: int, start: int = 0, console: Console | None = None):
        self._display = _display("train", total, start, LINES_A_TRAINING, console)

    def advance(self, step: int, loss: float | None, grad_norm: float | None, tokens_per_second: float | None) -> None:
        """Reports that `step`, counted from 1, is done; loss in nats per token."""
        status = f"loss {nats(loss)}  grad {number(grad_norm)}  {count(tokens_per_second)} tok/s"
        self._display.show(step, status)

    def __enter__(self) -> "TrainingProgress":
        self._display.open()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.close()


def track(iterable: Iterable[Item], description: str, total: int, console: Console | None = None) -> Iterator[Item]:
    """Passes `total` items on, showing how many are done; outside a terminal it says so once, at the end."""
    display = _display(description, total, 0, 1, console)
    display.open()
    try:
        for done, item in enumerate(iterable, start=1):
            yield item
            display.show(done, "")
    finally:
        display.close()


class Counted:
    """Shows how much of a total, in seconds of expected work, is done; a context manager."""

    def __init__(self, description: str, total: float, console: Console | None = None):
        self._display = _display(description, max(1, math.ceil(total)), 0, LINES_A_TRAINING, console)
        self._done = 0.0

    def add(self, amount: float) -> None:
        self._done += amount
        self._display.show(round(self._done), "")

    def __enter__(self) -> "Counted":
        self._display.open()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.close()


class _Bar:
    """A line that is redrawn by a thread of its own, so that `show` only stores what it will draw."""

    def __init__(self, description: str, total: int, start: int, console: Console):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(" {task.fields[status]}"),
            TextColumn(" ETA"),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=True,
            refresh_per_second=REFRESHES_PER_SECOND,
            # Output that is redirected to a file meanwhile belongs in the file, not above the bar.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task: TaskID = self._progress.add_task(description, total=total, completed=start, status="")

    def open(self) -> None:
        self._progress.start()

    def show(self, done: int, status: str) -> None:
        self._progress.update(self._task, completed=done, status=status)

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    """A plain line each time another `1 / n_lines` of the total is done."""

    def __init__(self, description: str, total: int, start: int, n_lines: int, console: Console):
        self._description, self._total, self._start = description, max(total, 1), start
        self._n_lines, self._console = n_lines, console
        self._printed = self._part(start)
        self._opened = time.monotonic()

    def open(self) -> None:
        self._opened = time.monotonic()

    def show(self, done: int, status: str) -> None:
        if self._part(done) > self._printed:
            self._printed = self._part(done)
            self._print(done, status)

    def close(self) -> None:
        pass

    def _part(self, done: int) -> int:
        return done * self._n_lines // self._total

    def _print(self, done: int, status: str) -> None:
        elapsed = time.monotonic() - self._opened
        if done < self._total:
            clock = f"ETA {duration(elapsed * (self._total - done) / (done - self._start))}"
        else:
            clock = f"took {duration(elapsed)}"
        words = (self._description, f"{done:>{len(str(self._total))}}/{self._total}", status, clock)
        line = "  ".join(word for word in words if word)
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _display(description: str, total: int, start: int, n_lines: int, console: Console | None) -> _Bar | _Lines:
    console = console or Console(stderr=True)
    if console.is_interactive:
        return _Bar(description, total, start, console)
    return _Lines(description, total, start, n_lines, console)
