"""Processes that work side by side: one for each core, each with its share of the threads."""

import heapq
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import (
    active_children,
    forkserver,
    get_all_start_methods,
    get_context,
    parent_process,
    resource_tracker,
)
from multiprocessing.context import BaseContext, ForkServerContext
from threading import Thread
from typing import Any, TypeVar

from archlab.base.errors import UserError
from archlab.base.signals import Stopped, deferred

Result = TypeVar("Result")


GAIN = 1.4
"""How many times as fast two cores are with a process on each, of one thread, as with one process of two.

Measured end to end on two cores, start and comparison taken off (experiments/bench): 1.4 at size=nano.
"""

START = 5.0
"""Seconds until worker processes have imported everything."""


def default_workers() -> int:
    """One for each core; one in all on a GPU, and where there can be no processes side by side."""
    import torch

    return 1 if torch.cuda.is_available() or why_none_beside() else os.cpu_count() or 1


def why_none_beside() -> str | None:
    """Why no processes can work side by side here, as where /dev/shm may not be written; None where they can."""
    try:
        get_context().Lock()
    except (OSError, ImportError) as error:
        return getattr(error, "strerror", None) or "the system has no semaphores"
    return None


def threads_each(workers: int) -> int:
    return max(1, (os.cpu_count() or 1) // workers)


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Until the last of these jobs is done, so many at a time, the longest begun first."""
    busy = [0.0] * workers
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(busy, busy[0] + each)
    return max(busy)


def worth_their_start(seconds: Sequence[float], workers: int) -> bool:
    """Whether several jobs, of so many seconds on one thread, save more time side by side than the workers take to start.

    Where a core is also somebody else's, threads that wait for each other lose far more than processes do, so that few
    jobs count as many, which on an idle machine would gain less.
    """
    return workers > 1 and len(seconds) > 1 and not in_a_worker() and sum(seconds) * (1 - 1 / GAIN) > START


@contextmanager
def pool_of(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that are there until the block ends.

    Left by an error or by a request to stop, those that had not started are dropped and the others are asked to stop
    (SIGTERM): a run then saves where it is. A request that comes before the first has begun is heard once it has: its start
    cannot be taken back, and a worker whose pool is gone would print what it misses.
    """
    if why := why_none_beside():
        raise UserError(
            f"workers={workers}: no processes can work side by side here, since /dev/shm gives them no lock: {why.lower()}; use"
            " workers=1"
        )
    expect_workers()
    with ProcessPoolExecutor(workers, context(), start_worker, (threads_each(workers),)) as pool:
        try:
            with deferred():
                pool.submit(int)
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in active_children():
                worker.terminate()
            raise


def context() -> BaseContext:
    """A server that has imported everything and computed nothing forks the workers, where the system has forks.

    A process that has computed may not be forked: the threads that torch computes with would be missing in the child.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    server = get_context("forkserver")
    server.set_forkserver_preload(["archlab.runs.imported_once"])
    return server


def expect_workers() -> None:
    """Starts the server, if there is to be one, so that it imports while this process does something else.

    It, and the workers that it forks, never hear Ctrl-C, which a terminal sends to all of them: this process hears it, and
    decides. A server that heard it while it imports would print where it was.
    """
    if isinstance(context(), ForkServerContext):
        resource_tracker.ensure_running()  # else it starts with the server, and lets the signal through
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what is started inherits it
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


_in_a_worker = False


def in_a_worker() -> bool:
    """Whether this process is a worker itself, which starts none of its own."""
    return _in_a_worker


def start_worker(threads: int) -> None:
    import torch

    global _in_a_worker
    _in_a_worker = True
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a spawned worker would hear it; the parent does, and decides
    Thread(target=end_with_the_parent, daemon=True).start()


def end_with_the_parent() -> None:
    """Asks this worker to stop once the process that it works for is gone, as where that was killed: a run then saves where it is.

    A pool's workers are not told, and would go on with the jobs that were handed out ahead, beside whoever resumes them.
    """
    if parent := parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def has_a_parent() -> bool:
    """Whether there still is somebody who hands out jobs."""
    parent = parent_process()
    return parent is None or parent.is_alive()


_stopped = False
"""Whether this worker was asked to stop."""


def unless_stopped(function: Callable[..., Result], *arguments: Any) -> Result:
    """What a worker calls: a pool hands out jobs ahead, and a worker that was asked to stop must not begin the next."""
    global _stopped
    if _stopped:
        raise Stopped
    try:
        return function(*arguments)
    except KeyboardInterrupt:
        _stopped = True
        raise
    finally:
        if not has_a_parent():
            os._exit(1)  # nobody reads what came of it, and the pool would wait for the next job for ever
