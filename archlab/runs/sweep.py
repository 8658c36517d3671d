"""A sweep: runs one after the other or, where that is faster, side by side in processes of their own."""

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError
from archlab.config.plan import Plan
from archlab.records.directory import as_written, same_run
from archlab.runs import lab, tune
from archlab.runs.beside import Ended, side_by_side
from archlab.runs.expected import seconds_of_a_run
from archlab.runs.packs import PackSize, by_program, packs_of, why_not
from archlab.runs.together import run_together
from archlab.runs.workers import default_workers, worth_their_start


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

    @property
    def words(self) -> str:
        return " ".join(self.plan.overrides) or "the run"

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
) -> Iterator[Ended]:
    """Each job's outcome; one after the other, in order and only when it is called, or side by side, as they end.

    `workers` is how many run at a time, on the CPU's threads shared evenly; where it is None, one for each core if the
    jobs are long enough for that to pay, and one in all on a GPU. `pack` is how many runs of one program are trained as
    one (`archlab.runs.packs`). `started` is the time.time() from which the time to the first step of the first job
    counts, the search for rates left out.
    """
    alone = all(len(same) < 2 for same in by_program([job.plan for job in jobs]).values())
    if pack not in ("auto", "off") and alone and not any(job.plan.cfg.tune for job in jobs):
        raise UserError(
            f"pack={pack}: no two runs of this sweep are of one program, so it would change nothing; sweep over seed or"
            " train.lr too, or leave it out"
        )
    new = [number for number, job in enumerate(jobs) if job.existing is None]
    searched = tune.find_rates([jobs[number].plan.cfg for number in new], workers, pack, show_result)
    if show_result:
        for line in why_not([jobs[number].plan for number in new], pack):
            print(line)
    packs = [[new[i] for i in places] for places in packs_of([jobs[number].plan for number in new], pack)]
    packed = [places for places in packs if len(places) > 1]
    left = dict(enumerate(jobs))
    for places in packed:
        members = [left.pop(number) for number in places]
        if show_result:
            print(f"{len(places)} runs of one architecture are trained as one pack; pack=off trains each by itself")
        results = run_together([job.plan for job in members], any(job.plots for job in members))
        yield from (Ended(number, result, True) for number, result in zip(places, results, strict=True))
    workers = min(workers or worthwhile_workers(list(left.values())), len(left))
    if workers > 1:
        if show_result:
            print(f"{workers} runs at a time, each on its share of the threads; workers=1 makes one after the other")
        yield from side_by_side(
            {number: job.do_alone for number, job in left.items()}, workers, lambda number: left[number].words
        )
        return
    from_start = None if started is None else started + searched
    for number, job in left.items():
        yield Ended(number, partial(job.do, None if number else from_start, show_result), False)


def worthwhile_workers(jobs: Sequence[Job]) -> int:
    """One for each core, where the time they save is more than they take to start."""
    workers = default_workers()
    if any(job.plan.cfg.device not in ("auto", "cpu") for job in jobs):
        return 1
    return workers if worth_their_start([seconds_of_a_run(job.plan.cfg) for job in jobs], workers) else 1
