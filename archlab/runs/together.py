"""Runs of one architecture that are trained as one pack; each has a directory, logs and an end of its own."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from archlab.base.messages import beyond_the_machine
from archlab.base.signals import Stop, Stopped, listening
from archlab.records.directory import disk_explained
from archlab.records.logbook import Logbook
from archlab.runs import lab
from archlab.runs.assembled import training_seed
from archlab.train.loop import Outcome
from archlab.train.pack import Member, train_together

if TYPE_CHECKING:
    from archlab.config.plan import Plan


def run_together(plans: Sequence["Plan"], plots: bool = False) -> list[Callable[[], Path]]:
    """Trains and evaluates what the plans describe; by plan, what returns the run's directory, or raises what it raised.

    The plans have one program key (`archlab.config.plan.Plan.program_key`), and `refusal` has none for them. One that cannot be
    begun, as where its data is too short, leaves the others a pack of their own.
    """
    began, results = time.time(), dict[int, Callable[[], Path]]()
    with listening() as stop, ExitStack() as books:
        begun: dict[int, tuple[lab.Work, Logbook]] = {}
        for number, plan in enumerate(plans):
            try:
                work = lab.prepared(plan.cfg, began, shown=not begun, packed=True)
                begun[number] = work, books.enter_context(Logbook(work.cfg.output, work.cfg, plan.overrides))
            except Exception as error:
                results[number] = partial(raising, error)
        if begun:
            try:
                results |= zip(begun, trained(list(begun.values()), stop, plots), strict=True)
            except Exception as error:  # of memory in a line of our own, since a traceback would hold what was in it
                results |= dict.fromkeys(begun, partial(raising, beyond_the_machine(error) or error))
    if stop.asked is not None:
        raise Stopped(stop.asked or signal.SIGINT)
    return [results[number] for number in range(len(plans))]


def trained(begun: Sequence[tuple[lab.Work, Logbook]], stop: Stop, plots: bool) -> list[Callable[[], Path]]:
    """Trains the runs as one, and evaluates each."""
    from archlab.report.progress import TrainingProgress

    members = [member(work, logbook, stop) for work, logbook in begun]
    with TrainingProgress(max(work.settings.steps for work, _ in begun)) as progress:
        outcomes = train_together(members, begun[0][0].where, tick=progress.advance, stop=stop)
    return [
        finished(work, logbook, outcome, one.error, stop, plots, len(begun))
        for (work, logbook), outcome, one in zip(begun, outcomes, members, strict=True)
    ]


def member(work: lab.Work, logbook: Logbook, stop: Stop) -> Member:
    return Member(
        work.decoder,
        work.source,
        work.settings,
        training_seed(work.cfg),
        validate=partial(lab.validated, work),
        report=logbook.step,
        probe_every=work.cfg.probe.every,
        observers=lab.watching(work, logbook, stop),
    )


def finished(
    work: lab.Work, logbook: Logbook, outcome: Outcome, error: Exception | None, stop: Stop, plots: bool, pack: int
) -> Callable[[], Path]:
    """Evaluates one member and writes its last files; what goes wrong there is that member's alone."""
    try:
        with disk_explained(logbook.directory):
            if error is not None:
                raise error
            lab.written_down(work, logbook, outcome, stop, plots, pack)
    except Exception as raised:
        logbook.__exit__(type(raised), raised, raised.__traceback__)
        return partial(raising, raised)
    return lambda: logbook.directory


def raising(error: Exception) -> Path:
    raise error
