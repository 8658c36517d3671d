"""Deciding claims: an estimate first, progress meanwhile, and each claim written down as soon as it is decided."""

import sys
from collections.abc import Sequence
from fnmatch import filter as matching
from pathlib import Path

from rich.console import Console

from archlab.base.errors import UserError
from archlab.base.messages import did_you_mean
from archlab.claim.bench import ClaimPlan, plan
from archlab.claim.claim import BudgetName, Claim, known_claims, read_claim
from archlab.claim.jobs import Job, PackJob, RunJob, in_packs, seconds, work, worthwhile_workers
from archlab.claim.measures import MEASURES
from archlab.claim.pace import measured, since_start
from archlab.claim.record import Record, keep, keep_index, record_of
from archlab.report.progress import Counted
from archlab.report.tables import duration
from archlab.runs.packs import PackSize, why_not
from archlab.runs.workers import expect_workers, threads_each

OUR_OWN = Path("experiments/claims")


def decide_claims(
    names: Sequence[str],
    budget: BudgetName = "quick",
    runs: Path = Path("experiments/runs/claims"),
    output: Path | None = None,
    workers: int | None = None,
    own: Path | None = None,
    pack: PackSize = "auto",
) -> list[Record]:
    """Runs what the claims need that is not there yet, and returns their records; every claim where no name is given.

    `workers` is how many jobs go on at a time; None: one for each core where that is faster, else one in all. `pack` is
    how many runs of one program are trained as one (`archlab.runs.packs`).

    Runs are kept under `runs` and found again; each claim's result goes to a folder of its own under `output`. Where
    none is given, that is `experiments/claims`, whose pages belong to archlab's own claims, and for a claim of one's own
    `decided` beside its runs.
    Raises UserError before anything is run where a claim can't be read or made.
    """
    start, claims = since_start(), chosen(names, own)
    if workers != 1 and any(part.measure not in MEASURES for claim in claims for part in claim.parts):
        expect_workers()  # they import while this process plans
    plans = [plan(claim, budget, runs, own) for claim in claims]
    for job in (job for planned in plans for job in planned if job.result is not None):
        _ = job.record  # what is damaged is found before anything runs
    missing = list({key(job): job for planned in plans for job in planned if job.result is None}.values())
    todo = in_packs([job for planned in plans for job in planned], missing, pack)
    if missing:
        writable(runs)
    console = Console(file=sys.stderr)  # as it is now: a run in this process has its words go to a log
    for line in why_not([job.plan for job in missing if isinstance(job, RunJob)], pack):
        console.print(line, highlight=False, soft_wrap=True)
    workers = max(1, min(workers or worthwhile_workers(todo), len(todo)))
    announce(console, plans, missing, todo, workers, start)
    folders = {planned.claim.name: output or home(planned.claim.name, runs) for planned in plans}
    records: dict[str, Record] = {}

    def settle() -> None:
        for planned in plans:
            if planned.claim.name not in records and all(job.result for job in planned):
                record = records[planned.claim.name] = record_of(planned, budget)
                keep(record, folders[planned.claim.name] / planned.claim.name)
                console.print(
                    f"{record['verdict']:12} {record['sentence']}", highlight=False, markup=False, soft_wrap=True
                )

    with Counted("claims", sum(map(seconds, missing)), console) as progress:
        settle()
        for done, _ in work(todo, workers):
            progress.add(seconds(done))
            settle()
    for folder in dict.fromkeys(folders.values()):
        keep_index(folder)
        if folder != OUR_OWN:
            console.print(str(folder), markup=False, highlight=False, soft_wrap=True)
    return [records[planned.claim.name] for planned in plans]


def writable(runs: Path) -> None:
    """Makes the folder of the runs before any begins. Raises UserError where there can be none."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs={runs}: no run can be written there: {error.strerror}; give another folder") from None


def home(name: str, runs: Path) -> Path:
    """Where a claim's result goes: a user's own to the runs, not among pages that are kept under version control."""
    return OUR_OWN if name in known_claims() else runs / "decided"


def chosen(names: Sequence[str], own: Path | None) -> list[Claim]:
    known = known_claims((own,) if own else ())
    picked: dict[str, Path] = {}
    for name in names or known:
        found = matching(known, name)
        if not found:
            raise UserError(f"{name}: no such claim; {did_you_mean(name, known)}claims: {', '.join(known)}")
        picked |= {one: known[one] for one in found}
    return [read_claim(file) for file in picked.values()]


def key(job: Job) -> object:
    return job.folder if isinstance(job, RunJob) else job.file


def announce(
    console: Console,
    plans: Sequence[ClaimPlan],
    missing: Sequence[Job],
    todo: Sequence[Job | PackJob],
    workers: int,
    start: float,
) -> None:
    """Says what there is to do and how long it takes, by the pace of this machine."""
    jobs = {key(job): job for planned in plans for job in planned}
    claims, needed = counted(len(plans), "claim"), needs(list(jobs.values()))
    if not missing:
        console.print(
            f"{claims}: {needed}, all there already" if jobs else f"{claims}, of nothing to run", highlight=False
        )
        return
    there = f", {len(jobs) - len(missing)} of them there already" if len(missing) < len(jobs) else ""
    pace = measured(todo, threads_each(workers), start if workers > 1 else 0.0, workers)
    estimate = pace.estimate(todo, workers)
    console.print(
        f"{claims} need{'s' * (len(plans) == 1)} {needed}{there}; what is missing takes about {duration(estimate)}, {workers} at"
        " a time at this machine's pace",
        highlight=False,
        soft_wrap=True,
    )


def needs(jobs: Sequence[Job]) -> str:
    """How many of each kind of job."""
    n_runs = sum(isinstance(job, RunJob) for job in jobs)
    kinds = [counted(n_runs, "run"), counted(len(jobs) - n_runs, "measurement")]
    return " and ".join(words for words in kinds if not words.startswith("0 "))


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
