"""Being told to stop: by Ctrl-C, by a cluster that ends its jobs (SIGTERM), by a terminal that closes (SIGHUP).

The first signal is an orderly end, the second one ends the process at once; the exit status is 128 and the signal's
number, as shells have it. A signal that was being ignored, as under nohup, still is.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """Raised where a signal asked for the end."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__()
        self.number = number

    @property
    def status(self) -> int:
        return 128 + self.number


class Stop:
    """Whether somebody asked for the end. A run looks at `asked` between its steps, so that none is torn in two."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.at_once = False
        self.terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            leave(number)
        self.asked = number
        if number == signal.SIGHUP:
            self.let_go_of_the_terminal()
        if self.at_once:
            raise Stopped(number)

    def let_go_of_the_terminal(self) -> None:
        """A terminal that has closed answers every word with an error, which would end the run before it is saved."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self.terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Inside, a signal raises Stopped where it falls: for what can be done again from its beginning."""
        if self.asked is not None:
            raise Stopped(self.asked)
        self.at_once = True
        try:
            yield
        finally:
            self.at_once = False


@contextmanager
def listening() -> Iterator[Stop]:
    """A Stop that hears the process's signals until the block ends."""
    stop = Stop()
    with handled_by(stop.hear):
        yield stop


@contextmanager
def raising() -> Iterator[None]:
    """Every one of the signals raises Stopped, as Ctrl-C by itself raises KeyboardInterrupt."""

    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        raise Stopped(number)

    with handled_by(hear):
        try:
            yield
        except Exception:
            if heard:  # a library that was being imported has made another exception of it
                raise Stopped(heard[0]) from None
            raise


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, none of the signals is heard; the first that came is heard at the end."""
    came: list[int] = []
    try:
        with handled_by(lambda number, frame: came.append(number)):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Python lets only the main thread hear signals; in another one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, handling in before.items() if handling not in (signal.SIG_IGN, None)]
    try:
        for number in heard:
            signal.signal(number, handler)
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def leave(number: int, frame: FrameType | None = None) -> None:
    """Ends the process without another word. A progress bar hides the cursor, so that is shown again."""
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")
    os._exit(128 + number)
