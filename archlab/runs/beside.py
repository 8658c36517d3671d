"""Jobs side by side in worker processes, whatever they are: as they end, each with what came of it."""

from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, NamedTuple

from archlab.base.errors import UserError
from archlab.runs.workers import pool_of, unless_stopped


class Ended(NamedTuple):
    """What has come of a job, or comes of it when it is asked for."""

    number: int
    """Its key among the jobs."""

    result: Callable[[], Any]
    """Returns what the job returned, or raises what it raised."""

    over: bool
    """Whether the job is over; else it is done when `result` is called."""


def side_by_side(
    jobs: Mapping[int, Callable[[], Any]],
    workers: int,
    words: Callable[[int], str],
    ready: Callable[[int], bool] = lambda number: True,
) -> Generator[Ended, None, None]:
    """Does the jobs in their order, so many at a time, each as soon as it is `ready`; what never is, is left.

    A worker that the system kills, as where memory runs out, takes the pool with it: what was not done by then is done
    again one at a time, so that only the job that is too large is lost. `words` says what a job is, for that error.
    """
    waiting, left = list(jobs), dict(jobs)
    with pool_of(workers) as pool:
        going: dict[Any, int] = {}
        try:
            while waiting or going:
                for number in [number for number in waiting if ready(number)]:
                    going[pool.submit(unless_stopped, jobs[number])] = number
                    waiting.remove(number)
                if not going:
                    break
                for future in wait(going, return_when=FIRST_COMPLETED).done:
                    number = going.pop(future)
                    if not isinstance(future.exception(), BrokenProcessPool):
                        del left[number]
                        yield Ended(number, future.result, True)
        except BrokenProcessPool:  # of submit, where the pool broke before all were handed over
            pass
    while again := [number for number in left if ready(number)]:
        number = again[0]
        yield Ended(number, partial(in_a_pool_of_its_own, left.pop(number), words(number)), False)


def in_a_pool_of_its_own(job: Callable[[], Any], words: str) -> Any:
    """Raises UserError where the system kills the job's process."""
    with pool_of(1) as pool:
        try:
            return pool.submit(unless_stopped, job).result()
        except BrokenProcessPool:
            raise UserError(
                f"{words}: its process was killed, as where memory runs out; use a smaller size, shorter sequences or a"
                " smaller batch"
            ) from None
