"""A sweep: runs one after the other or, where that is faster, side by side in processes of their own."""

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError
from archlab.config.plan import Plan
from archlab.records.directory import as_written, same_run
from archlab.runs import lab
from archlab.runs.expected import seconds_of_a_run
from archlab.runs.packs import PackSize, by_program, packs_of
from archlab.runs.together import run_together
from archlab.runs.workers import default_workers, pool_of, unless_stopped

GAIN = 1.4
"""How many times as fast two cores are with a process on each, of one thread, as with one process of two.

Measured end to end on two cores, start and comparison taken off (experiments/bench): 1.4 at size=nano.
"""

START = 5.0
"""Seconds until worker processes have imported everything."""


class Carried(NamedTuple):
    """What has come of a job, or comes of it when it is asked for."""

    number: int
    """Its place in the sweep."""

    result: Callable[[], Path]
    """Returns the run's directory, or raises what the run raised."""

    ended: bool
    """Whether the run is over; else it is made when `result` is called."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep, and how it is made."""

    plan: Plan
    own: Path | None = None
    """The folder of the user's own options that it was composed with."""

    plots: bool = False
    resume: bool = False
    """Whether a run of this configuration that is there is kept, and finished where it was broken off."""

    def do(self, started: float | None = None, show_result: bool = True) -> Path:
        """Returns the run's directory."""
        if existing := self.existing:
            return lab.resume(existing, self.plots, self.own, show_result)
        words = list(self.plan.overrides)
        return lab.run(self.plan.cfg, words, started, plots=self.plots, show_result=show_result)

    @property
    def existing(self) -> Path | None:
        """The run of this configuration that is kept."""
        if not self.resume:
            return None
        return same_run(Path(self.plan.cfg.output), as_written(plain_dict(self.plan.cfg, resolve=True)))

    def do_alone(self) -> Path:
        """The same in a process of its own, whose prints nobody could tell from the others'."""
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return self.do(show_result=False)


def carry_out(
    jobs: Sequence[Job],
    workers: int | None = None,
    pack: PackSize = "auto",
    started: float | None = None,
    show_result: bool = True,
) -> Iterator[Carried]:
    """Each job's outcome; one after the other, in order and only when it is called, or side by side, as they end.

    `workers` is how many run at a time, on the CPU's threads shared evenly; where it is None, one for each core if the
    jobs are long enough for that to pay, and one in all on a GPU. `pack` is how many runs of one program are trained as
    one (`archlab.runs.packs`). `started` is the time.time() from which the time to the first step of the first job counts.
    """
    if pack not in ("auto", "off") and all(len(same) < 2 for same in by_program([job.plan for job in jobs]).values()):
        raise UserError(
            f"pack={pack}: no two runs of this sweep are of one program, so it would change nothing; sweep over seed or"
            " train.lr too, or leave it out"
        )
    new = [number for number, job in enumerate(jobs) if job.existing is None]
    packs = [[new[i] for i in places] for places in packs_of([jobs[number].plan for number in new], pack)]
    packed = [places for places in packs if len(places) > 1]
    left = dict(enumerate(jobs))
    for places in packed:
        members = [left.pop(number) for number in places]
        if show_result:
            print(f"{len(places)} runs of one architecture are trained as one pack; pack=off trains each by itself")
        results = run_together([job.plan for job in members], any(job.plots for job in members))
        yield from (Carried(number, result, True) for number, result in zip(places, results, strict=True))
    workers = min(workers or worthwhile_workers(list(left.values())), len(left))
    if workers > 1:
        if show_result:
            print(f"{workers} runs at a time, each on its share of the threads; workers=1 makes one after the other")
        yield from side_by_side(left, workers)
        return
    for number, job in left.items():
        yield Carried(number, partial(job.do, None if number else started, show_result), False)


def worthwhile_workers(jobs: Sequence[Job]) -> int:
    """One for each core, where the time they save is more than they take to start."""
    workers = default_workers()
    if any(job.plan.cfg.device not in ("auto", "cpu") for job in jobs):
        return 1
    saved = sum(seconds_of_a_run(job.plan.cfg) for job in jobs) * (1 - 1 / GAIN)
    return workers if workers > 1 and saved > START else 1


def side_by_side(jobs: dict[int, Job], workers: int) -> Iterator[Carried]:
    """A worker that the system kills, as where memory runs out, takes the pool with it: what was not done by then is done
    again one at a time, so that only the job that is too large is lost.
    """
    left = dict(jobs)
    with pool_of(workers) as pool:
        numbers = {pool.submit(unless_stopped, job.do_alone): number for number, job in jobs.items()}
        for future in as_completed(numbers):
            if not isinstance(future.exception(), BrokenProcessPool):
                number = numbers[future]
                del left[number]
                yield Carried(number, future.result, True)
    for number, job in left.items():
        yield Carried(number, partial(in_a_pool_of_its_own, job), False)


def in_a_pool_of_its_own(job: Job) -> Path:
    with pool_of(1) as pool:
        try:
            return pool.submit(unless_stopped, job.do_alone).result()
        except BrokenProcessPool:
            raise UserError(
                f"{' '.join(job.plan.overrides) or 'the run'}: its process was killed, as where memory runs out; use a smaller"
                " size, shorter sequences or a smaller batch"
            ) from None
