"""What is kept of a decided claim: result.json, plot.png and a README that says it in words."""

import json
import math
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from archlab.base.errors import UserError
from archlab.base.files import write_text
from archlab.base.plain import Unreadable, read_json
from archlab.claim.course import Course
from archlab.claim.decide import VERDICTS, Decision, PartResult, in_words, reason
from archlab.claim.jobs import Job, LookJob, Measurement, RunJob
from archlab.claim.ladder import ClaimLadder, n_params_of, slopes_of, together, tokens_of, why
from archlab.claim.ledger import DECIDED, REGISTERED, history, registrations, standings, surviving, verdicts
from archlab.claim.measures import parameters
from archlab.config.assemble import assemble_without_weights
from archlab.cost.measure import forward_flops_per_token
from archlab.records import summary
from archlab.records.logbook import git_state, versions
from archlab.report.claims import claims_markdown, draw_claim, index_page, readme
from archlab.runs import tune

Record = dict[str, Any]


def record_of(made: ClaimLadder, budget_name: str, registered: Record | None) -> Record:
    """The claim, what was measured and what it comes to; JSON. `registered` is the line of its registration.

    Of a ladder `rungs` holds each rung's record whole; parts, controls, rates and the like are then those of the rung that
    stands for all.
    """
    claim, evidence = made.claim, made.evidence
    record: Record = {
        "name": claim.name,
        "sentence": claim.sentence,
        "source": claim.source,
        "kind": claim.kind,
        "budget": budget_name,
        "date": f"{date.today()}",
        "registered": registered and registered["date"],
        "lines": {REGISTERED: registered["sha256"]} if registered else {},
        "says": claim.sha256,
        "versions": versions(),
        "git": git_state(),
        "command": f"python -m archlab claims {claim.name} budget={budget_name}"
        + (f" ladder={made.asked}" if made.asked else "")
        + (f" evidence={evidence:g}" if evidence else ""),
        "ladder": made.asked,
        "evidence": evidence,
    }
    if isinstance(made.budget, str):
        nothing: Record = {
            "regime": None,
            "seconds": 0.0,
            "seeds": 0,
            "parts": [],
            "controls": [],
            "arms": {},
            "rates": {},
            "e": None,
        }
        return record | {"verdict": "NOT RUN", "reason": made.budget} | nothing
    decisions = [course.decision(course.seeds) for course in made.rungs]
    rungs = [rung_record(course, decision) for course, decision in zip(made.rungs, decisions, strict=True)]
    return record | (rungs[0] if len(rungs) == 1 else ladder_record(made, decisions, rungs))


def ladder_record(made: ClaimLadder, decisions: Sequence[Decision], rungs: Sequence[Record]) -> Record:
    """What the rungs come to together."""
    whole = together(decisions)
    rungs = [scale_of(course) | rung for course, rung in zip(made.rungs, rungs, strict=True)]
    effects = [rung["parts"][0]["effect"] for rung in rungs]
    slopes = slopes_of(effects, [rung["n_params"] for rung in rungs], [rung["tokens"] for rung in rungs])
    standing = {name: value for name, value in rungs[whole.because].items() if name not in ("n_params", "tokens")}
    sums = {name: sum(rung[name] for rung in rungs) for name in ("seconds", "runs", "trials")}
    return (
        standing
        | sums
        | {
            "verdict": whole.verdict,
            "e": finite(whole.e),
            "reason": why(whole, decisions, made.rungs, slopes),
            "commits": sorted({commit for rung in rungs for commit in rung["commits"]}),
            "slopes": slopes,
            "rungs": rungs,
        }
    )


def scale_of(made: Course) -> Record:
    """How large a rung is."""
    return {
        "label": made.rung.label,
        "width": made.rung.width,
        "steps": made.rung.steps,
        "corpus": made.rung.corpus,
        "n_params": n_params_of(made, made.seeds),
        "tokens": tokens_of(made.composed(made.claim.parts[0].arms[-1])),
    }


def rung_record(made: Course, decision: Decision) -> Record:
    """What a claim came to at one rung."""
    claim, jobs, trials = made.claim, made.jobs(made.seeds), made.trials()
    assert not isinstance(made.budget, str)
    runs = [job for job in jobs if isinstance(job, RunJob)]
    return {
        "verdict": decision.verdict,
        "e": finite(decision.e),
        "reason": reason(decision),
        "decided_by": decided_by(decision),
        "would_change": would_change(made, decision),
        "tune": claim.tune if claim.kind == "trained" else None,
        "regime": regime(jobs),
        "seconds": sum(seconds_of(job) for job in [*jobs, *trials]),
        "seeds": made.seeds,
        "most_seeds": made.budget.seeds,
        "runs": len(runs),
        "trials": len(trials),
        "commits": sorted(commits(jobs)),
        "rates": {label: rates_record(made, label) for label in made.tuned},
        "parts": [part_record(result) for result in decision.parts],
        "controls": [part_record(result) for result in decision.controls],
        "costs": costs(made),
        "arms": {
            label: {"train": list(made.words(label, made.beside.get(label, ()))), "then": list(arm.then)}
            for label, arm in claim.arms.items()
        },
    }


def costs(made: Course) -> Record:
    """What a run of each arm of the first part takes, where none of it is swept."""
    part = made.claim.parts[0]
    if not part.trained or part.over:
        return {}
    of_arms = {label: made.composed(label) for label in part.arms}
    return {
        label: {
            "steps": cfg.train.steps,
            "tokens": tokens_of(cfg),
            "n_params": int(parameters(cfg)),
            "flops_per_token": forward_flops_per_token(
                assemble_without_weights(cfg), cfg.train.train_len, training=True
            ),
        }
        for label, cfg in of_arms.items()
    }


def rates_record(made: Course, label: str) -> Record:
    """The search of an arm's rate: every trial, None where it diverged."""
    return tune.found_beside(list(map(made.cells, made.lines(label))), made.middle(label), made.claim.second)


def decided_by(decision: Decision) -> int | None:
    """The place of the part that decided a claim, among its parts and then its controls."""
    places = (n for n, result in enumerate((*decision.parts, *decision.controls)) if result is decision.because)
    return next(places, None)


def would_change(made: Course, decision: Decision) -> str:
    """What it would take for another verdict."""
    if made.claim.kind == "identity":
        return "an error in the formula, or in the code"
    regime = "other sizes, budgets or data, of which nothing was asked here"
    if not decision.open:
        return regime
    because = decision.because
    needed = because.judged.needed if because and because.judged else None
    return f"about {needed} seeds; or {regime}" if needed else f"more seeds than can be estimated; or {regime}"


def part_record(result: PartResult) -> Record:
    part, judged = result.part, result.judged
    record: Record = {
        "text": part.says,
        "told": in_words(result),
        "form": part.form,
        "arms": list(part.arms),
        "metric": part.measure,
        "over": {name: list(xs) for name, xs in (part.over or {}).items()},
        "reduce": part.reduce,
        "expect": part.expect,
        "than": part.against,
        "smallest_effect": part.by,
        "verdict": result.verdict,
        "values": {
            label: [finite(value) for _, value in sorted(of.by_seed.items())] for label, of in result.values.items()
        },
        "failed_seeds": {label: sorted(of.failed) for label, of in result.values.items()},
    }
    if judged is None:
        return record | {
            "effect": None,
            "interval": None,
            "level": None,
            "e": None,
            "p": None,
            "n": len(next(iter(record["values"].values()))),
            "seeds_needed": None,
            "failed": [0, 0],
        }
    effect, interval = judged.effect, judged.interval
    return record | {
        "effect": None if effect is None else effect + part.against,
        "interval": None if interval is None else [bound + part.against for bound in interval],
        "level": judged.level,
        "e": finite(result.e_for if result.verdict in ("SUPPORTED", "INCONCLUSIVE") else result.e_against),
        "p": judged.p_flip,
        "n": judged.n,
        "seeds_needed": judged.needed,
        "failed": [judged.failures.a, judged.failures.b],
        "failures_p": judged.failures.p_boschloo,
    }


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def regime(jobs: Iterable[Job]) -> str:
    """The sizes and budgets the verdict holds for; a range where runs differ."""
    jobs = list(jobs)
    runs = [job for job in jobs if isinstance(job, RunJob)]
    cfgs = list({id(job.base): job.base for job in runs}.values())
    if not cfgs:
        looked_at = [cfg for job in jobs if isinstance(job, Measurement) for cfg in job.bases]
        return f"no training; {sizes(looked_at)}"
    lengths = spread(cfg.train.train_len for cfg in cfgs)
    batches = spread(cfg.train.batch_size for cfg in cfgs)
    rates = spread(dict(job.changes).get("train.lr", job.base.train.lr) for job in runs)
    data = ", ".join(sorted({cfg.choices.data for cfg in cfgs}))
    steps = spread(cfg.train.steps for cfg in cfgs)
    return f"{sizes(cfgs)}; {steps} steps of {batches} x {lengths} tokens of {data}; lr {rates}"


def sizes(cfgs: Iterable[DictConfig]) -> str:
    cfgs = list(cfgs)
    return f"{spread(cfg.size.n_layers for cfg in cfgs)} layers of d_model {spread(cfg.size.d_model for cfg in cfgs)}"


def spread(values: Iterable[float]) -> str:
    low, high = min(values := list(values)), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def seconds_of(job: Job) -> float:
    """What a job took in the process that did it; of a pack, one run's share."""
    return (summary.seconds_of(job.record) or 0.0) if isinstance(job, RunJob) else job.record["seconds"]


def commits(jobs: Iterable[Job]) -> set[str]:
    """Of archlab, when the runs were made."""
    found = (
        job.of.record if isinstance(job, LookJob) else job.record for job in jobs if not isinstance(job, Measurement)
    )
    return {record["git"]["commit"][:7] for record in found if record.get("git")}


def keep(record: Record, folder: Path) -> Record:
    """Writes a claim's folder, and returns what is kept there; what was there of an earlier decision is replaced, and stays in
    verdicts.jsonl.

    What is found once more, of the same evidence, is not noted there again.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def new(lines: list[Record]) -> list[Record]:
        before = [line for line in lines if line["claim"] == record["name"]]
        noted = bool(before) and all(before[-1].get(name) == record.get(name) for name in EVIDENCE)
        return [] if noted else [{name: record.get(name) for name in LOGGED} | {"claim": record["name"]}]

    *_, line = (line for line in verdicts(folder.parent).extend(new) if line["claim"] == record["name"])
    record = record | {"lines": record["lines"] | {DECIDED: line["sha256"]}}
    write_text(folder / "result.json", json.dumps(record, indent=1) + "\n")
    keep_page(record, folder, draw_claim(record, folder / "plot.png"))
    return record


def keep_page(record: Record, folder: Path, picture: Path | None) -> None:
    """A claim's page: the record, when it was registered, and whether its verdict survives as of today."""
    e, needed = standings(folder.parent).get(record["name"], (None, None))
    since = {
        "history": history(folder.parent, record),
        "survives": None if e is None or needed is None else e >= needed,
        "needed": needed,
        "as_of": f"{date.today()}",
    }
    write_text(folder / "README.md", readme(record | since, picture))


def check_kept(output: Path) -> None:
    """Raises UserError where a kept result or one of the two ledgers is damaged, or lacks a line that a kept result rests on.

    A result names its lines by their hashes; an older one, that does not, has to have lines that say what it says. Results are
    read first: whoever writes one has written its lines before.
    """
    results = [(file, unharmed(file)) for file in sorted(output.glob("*/result.json"))]
    for ledger, says in ((registrations(output), ("says", "ladder")), (verdicts(output), EVIDENCE)):
        lines = ledger.records()
        for file, record in results:
            named = record.get("lines", {}).get(ledger.file.name)
            of_it = [line for line in lines if line["claim"] == record["name"]]
            there = (
                any(line["sha256"] == named for line in of_it)
                if named
                else any(all(line.get(name) == record.get(name) for name in says) for line in of_it)
            )
            if record.get("registered") and not there:
                raise UserError(
                    f"{ledger.file}: lacks the line that {file} rests on; put back what was written, or give another output=FOLDER"
                )


EVIDENCE = ("says", "budget", "ladder", "verdict", "e", "seeds", "reason")

LOGGED = ("kind", "says", "verdict", "e", "seeds", "budget", "ladder", "evidence", "date", "reason", "git")
"""What verdicts.jsonl says of each verdict."""


def keep_index(output: Path, known: Iterable[str] = ()) -> None:
    """A page of all claims that were decided here: by verdict, by what choices bought, and what was said of them earlier."""
    records = [record for file in output.glob("*/result.json") if (record := kept(file))]
    survives = surviving(output)
    for record in records:
        record["survives"] = survives.get(record["name"])
    records.sort(key=lambda record: (VERDICTS.index(record["verdict"]), record["name"]))
    write_text(output / "README.md", index_page(records, verdicts(output).records(), known))


def unharmed(file: Path) -> Record:
    """What was decided before. Raises UserError where the file is no such record."""
    if record := kept(file):
        return record
    raise UserError(
        f"{file}: is not what was written there; put back what was, or remove it, and the claim is decided again from its runs"
    )


def kept(file: Path) -> Record | None:
    """What was decided before; None where the file is no such record."""
    try:
        record = read_json(file)
        claims_markdown([record])
        return record if record["verdict"] in VERDICTS and record["date"] and record["budget"] else None
    except (Unreadable, KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None
