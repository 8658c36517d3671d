"""Deciding claims: an estimate first, progress meanwhile, and each claim written down as soon as it is decided."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import filter as matching
from pathlib import Path

from rich.console import Console

from archlab.base.errors import UserError
from archlab.base.messages import did_you_mean
from archlab.claim.claim import BudgetName, Claim, known_claims, read_claim
from archlab.claim.jobs import Job, RunJob, check_pack, in_packs, seconds, work, worthwhile_workers
from archlab.claim.ladder import ClaimLadder
from archlab.claim.ladder import ladder as on_ladder
from archlab.claim.ledger import register, registration, surviving, verdicts
from archlab.claim.pace import measured, since_start
from archlab.claim.record import Record, check_kept, keep, keep_index, kept, record_of
from archlab.claim.store import JobStore, key
from archlab.comparison.rule import ALPHA
from archlab.report.progress import Counted
from archlab.report.tables import duration
from archlab.runs.packs import PackSize, on_a_gpu, why_not
from archlab.runs.workers import expect_workers

OUR_OWN = Path("experiments/claims")


def decide_claims(
    names: Sequence[str],
    budget: BudgetName = "quick",
    runs: Path = Path("experiments/runs/claims"),
    output: Path | None = None,
    workers: int | None = None,
    own: Path | None = None,
    pack: PackSize = "auto",
    anew: bool = False,
    ladder: str | None = None,
    evidence: float | None = None,
) -> list[Record]:
    """Runs what the claims need that is not there yet, and returns their records; every claim where no name is given.

    `workers` is how many jobs go on at a time; None: one for each core where that is faster, else one in all. `pack` is
    how many runs of one program are trained as one (`archlab.runs.packs`). `anew` is that of `archlab.claim.ledger.register`. `ladder`, such
    as 3x2, decides each claim at so many sizes and horizons (`archlab.claim.ladder`). `evidence` is the e-value up to which a
    claim goes on once it is decided, within its seeds; what was asked for before, of the same claim, stays.

    Runs are kept under `runs` and found again; each claim's result goes to a folder of its own under `output`. Where
    none is given, that is `experiments/claims`, whose pages belong to archlab's own claims, and for a claim of one's own
    `decided` beside its runs. Every claim is registered there before its first run.
    Raises UserError before anything is run where a claim can't be read or made; and once all others are decided, where the
    runs of one lack what is claimed of them.
    """
    start, claims = since_start(), chosen(names, own, budget)
    if workers != 1 and any(part.trained for claim in claims for part in claim.parts):
        expect_workers()  # they import while this process plans
    jobs = JobStore(runs, own)
    folders = {claim.name: output or home(claim.name, runs) for claim in claims}
    enough = enough_evidence(evidence, claims, folders, budget, ladder)
    courses = [on_ladder(claim, budget, jobs, ladder, enough[claim.name]) for claim in claims]
    expected = in_all(made.most for made in courses)
    for job in expected:
        if job.result is not None:
            _ = job.record  # what is damaged is found before anything runs
    least, most = in_all(missing(made.least) for made in courses), missing(expected)
    check_pack(expected, pack)
    for folder in dict.fromkeys(folders.values()):
        check_kept(folder)  # likewise
    if most:
        writable(runs)
    done = {made.claim.name: sum(job.result is not None for job in in_all([made.most])) for made in courses}
    for folder in dict.fromkeys(folders.values()):
        register(folder, [claim for claim in claims if folders[claim.name] == folder], anew, ladder, done, budget)
    console = Console(file=sys.stderr)  # as it is now: a run in this process has its words go to a log
    runs_to_make = [job for job in most if isinstance(job, RunJob)]
    if runs_to_make and on_a_gpu([runs_to_make[0].plan]):  # plans take time to make
        for line in why_not([job.plan for job in runs_to_make], pack):
            console.print(line, highlight=False, soft_wrap=True)
    workers = max(1, min(workers or worthwhile_workers(most), len(most)))
    announce(console, courses, least, most, workers, start)
    records: dict[str, Record] = {}

    def settle(made: ClaimLadder) -> None:
        name = made.claim.name
        line = registration(folders[name], name, made.claim.sha256, ladder, budget)
        record = records[name] = keep(record_of(made, budget, line), folders[name] / name)
        keep_index(folders[name], known_claims() if folders[name] == OUR_OWN else ())
        console.print(f"{record['verdict']:14} {record['sentence']}", highlight=False, markup=False, soft_wrap=True)

    refused: list[UserError] = []
    with Counted("claims", sum(map(seconds, most)), console) as progress:
        for made in as_they_settle(courses, workers, pack, progress, refused):
            settle(made)
    for folder in dict.fromkeys(folders.values()):
        survives = surviving(folder)
        for name, record in records.items():
            if folders[name] == folder:
                record["survives"] = survives.get(name)
        if folder != OUR_OWN:
            console.print(str(folder), markup=False, highlight=False, soft_wrap=True)
    if refused:
        others = f" (and so {counted(len(refused) - 1, 'other claim')})" if len(refused) > 1 else ""
        raise UserError(f"{refused[0]}{others}")
    return [records[made.claim.name] for made in courses]


AHEAD = 4
"""So many jobs for each worker are sought before any is begun, from as many claims as that takes."""


def as_they_settle(
    courses: Sequence[ClaimLadder], workers: int, pack: PackSize, progress: Counted, refused: list[UserError]
) -> Iterator[ClaimLadder]:
    """Does what the claims want, the first of them first, and yields each when it is settled.

    A claim whose runs cannot decide it goes no further, and why is added to `refused`; the others go on.
    """
    left = list(courses)
    went_on = {id(rung) for made in courses for rung in made.rungs if missing(rung.most)}
    while left:
        todo: dict[object, Job] = {}
        settled = []
        for made in tuple(left):
            if len(todo) >= AHEAD * workers:
                break
            try:
                wanted = made.wanted()
            except UserError as error:
                refused.append(error)
                left.remove(made)
                continue
            todo |= {key(job): job for job in wanted}
            if not wanted:
                settled.append(made)
        for made in settled:
            left.remove(made)
            yield made
            spared = (job for rung in made.rungs if id(rung) in went_on for job in rung.spared)
            progress.add(sum(map(seconds, spared)))
        if todo:
            for done, _ in work(in_packs(list(todo.values()), pack), workers):
                progress.add(seconds(done))


def enough_evidence(
    asked: float | None, claims: Sequence[Claim], folders: Mapping[str, Path], budget: BudgetName, ladder: str | None
) -> dict[str, float]:
    """By claim, the e-value with which it is settled: never less than it was to have before, so that no run is unseen again.

    Raises UserError where what is asked for would change nothing.
    """
    before = {claim.name: asked_before(folders[claim.name] / claim.name, claim, budget, ladder) for claim in claims}
    if asked is None:
        return before
    if asked <= 1 / ALPHA:
        raise UserError(
            f"evidence={asked:g}: every verdict has an e-value of {1 / ALPHA:g}; give more, or leave it out"
        )
    if all(claim.kind != "trained" for claim in claims):
        raise UserError(
            f"evidence={asked:g}: {claims[0].name} trains nothing, and what it measures is measured at all its seeds; leave it"
            " out"
        )
    if all(asked < kept for kept in before.values()):
        first, kept = next(iter(before.items()))
        raise UserError(
            f"evidence={asked:g}: {first} was decided with evidence={kept:g}, which stays; give more, or leave it out"
        )
    trained = {claim.name for claim in claims if claim.kind == "trained"}
    return {name: max(asked, kept) if name in trained else kept for name, kept in before.items()}


def asked_before(folder: Path, claim: Claim, budget: BudgetName, ladder: str | None) -> float:
    """The most evidence up to which a claim ever went on, as it stands, at this budget and ladder; what decides it, where there is none.

    Every verdict is a line of the ledger, whatever was decided since; result.json is that of the last one.
    """
    lines = [line for line in verdicts(folder.parent).records() if line["claim"] == claim.name]
    same = {"says": claim.sha256, "budget": budget, "ladder": ladder}.items()
    found = [line for line in (*lines, kept(folder / "result.json") or {}) if same <= line.items()]
    return max(1 / ALPHA, *(line.get("evidence") or 0.0 for line in found), 0.0)


def missing(jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if job.result is None]


def in_all(lists: Iterable[Sequence[Job]]) -> list[Job]:
    """Each job once."""
    return list({key(job): job for jobs in lists for job in jobs}.values())


def writable(runs: Path) -> None:
    """Makes the folder of the runs before any begins. Raises UserError where there can be none."""
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs={runs}: no run can be written there: {error.strerror}; give another folder") from None


def home(name: str, runs: Path) -> Path:
    """Where a claim's result goes: a user's own to the runs, not among pages that are kept under version control."""
    return OUR_OWN if name in known_claims() else runs / "decided"


def chosen(names: Sequence[str], own: Path | None, budget: BudgetName) -> list[Claim]:
    """The claims that have this budget. Raises UserError where one that is named has none, or none is left."""
    claims = named(names, own)
    without = [claim.name for claim in claims if budget not in claim.budgets]
    if without and (len(without) == len(claims) or without[0] in names):
        raise UserError(
            f"budget={budget}: {without[0]} says nothing of it; give the claim {budget}: {{overrides: [...]}}, or use budget=quick"
            " or full"
        )
    return [claim for claim in claims if budget in claim.budgets]


def named(names: Sequence[str], own: Path | None) -> list[Claim]:
    known = known_claims((own,) if own else ())
    picked: dict[str, Path] = {}
    for name in names or known:
        found = matching(known, name)
        if not found:
            raise UserError(f"{name}: no such claim; {did_you_mean(name, known)}claims: {', '.join(known)}")
        picked |= {one: known[one] for one in found}
    return [read_claim(file) for file in picked.values()]


def announce(
    console: Console,
    courses: Sequence[ClaimLadder],
    least: Sequence[Job],
    most: Sequence[Job],
    workers: int,
    start: float,
) -> None:
    """Says what there is to do and how long it takes, by the pace of this machine: as little, and as much, as it may be."""
    claims = counted(len(courses), "claim")
    if not most:
        there = in_all(made.most for made in courses)
        console.print(
            f"{claims}: {needs(there)}, all there already" if there else f"{claims}, of nothing to run", highlight=False
        )
        return
    pace = measured(most, start if workers > 1 else 0.0, workers)
    shortest, longest = (duration(pace.estimate(jobs, workers)) for jobs in (least, most))
    takes = (
        longest
        if len(least) == len(most)
        else f"{shortest} where all is clear at once, to {longest} where no seed is spared"
    )
    count = needs(most) if len(least) == len(most) else f"{needs(least)} at least and {needs(most)} at most"
    console.print(
        f"{claims} need{'s' * (len(courses) == 1)} {count or 'nothing'} that are not there; this takes about {takes},"
        f" {workers} at a time at this machine's pace",
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
