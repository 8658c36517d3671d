"""What is kept of a decided claim: result.json, plot.png and a README that says it in words."""

import json
import math
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from archlab.base.files import write_text
from archlab.base.plain import Unreadable, read_json
from archlab.claim.bench import ClaimPlan
from archlab.claim.decide import PartResult, Verdict, decide, in_words, reason, shifted
from archlab.claim.jobs import Job, LookJob, Measurement, RunJob
from archlab.records.logbook import git_state, versions
from archlab.report.claims import claims_markdown, draw_claim, readme

Record = dict[str, Any]


def record_of(plan: ClaimPlan, budget_name: str) -> Record:
    """The claim, what was measured and what it comes to; JSON."""
    claim = plan.claim
    record: Record = {
        "name": claim.name,
        "sentence": claim.sentence,
        "source": claim.source,
        "budget": budget_name,
        "date": f"{date.today()}",
        "versions": versions(),
        "git": git_state(),
        "command": f"python -m archlab claims {claim.name} budget={budget_name}",
    }
    if isinstance(plan.budget, str):
        verdict: Verdict = "INCONCLUSIVE"
        return record | {
            "verdict": verdict, "reason": plan.budget, "regime": None, "seconds": 0.0, "seeds": 0, "parts": [], "arms": {}
        }  # fmt: skip
    results = plan.results()
    jobs = list(plan)
    return record | {
        "verdict": decide(results),
        "reason": reason(results),
        "regime": regime(jobs),
        "seconds": sum({job.result: seconds_of(job) for job in jobs}.values()),
        "seeds": plan.budget.seeds,
        "runs": len({job.folder for job in jobs if isinstance(job, RunJob)}),
        "commits": sorted(commits(jobs)),
        "parts": [part_record(result) for result in results],
        "arms": {
            label: {"train": [*claim.common, *plan.budget.overrides, *arm.train], "then": list(arm.then)}
            for label, arm in claim.arms.items()
        },
    }


def part_record(result: PartResult) -> Record:
    part, found = result.part, result.found
    offset = part.against if shifted(part) else 0.0
    return {
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
        "effect": None if found.effect is None else found.effect + offset,
        "interval": None if found.interval is None else [bound + offset for bound in found.interval],
        "level": found.level,
        "p": found.p,
        "test": found.test,
        "n": found.n,
        "seeds_needed": found.seeds_needed,
        "diverged": [found.diverged_a, found.diverged_b],
        "verdict": result.verdict,
        "values": {label: [finite(value) for value in seeds.values()] for label, seeds in result.values.items()},
    }


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def regime(jobs: Iterable[Job]) -> str:
    """The sizes and budgets the verdict holds for; a range where runs differ."""
    jobs = list(jobs)
    cfgs = [job.cfg for job in jobs if isinstance(job, RunJob)]
    if not cfgs:
        looked_at = [cfg for job in jobs if isinstance(job, Measurement) for cfg in job.cfgs]
        return f"no training; {sizes(looked_at)}"
    lengths = spread(cfg.train.train_len for cfg in cfgs)
    batches = spread(cfg.train.batch_size for cfg in cfgs)
    rates = spread(cfg.train.lr for cfg in cfgs)
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
    """What a job took in the process that did it."""
    return job.record["wall_seconds" if isinstance(job, RunJob) else "seconds"]


def commits(jobs: Iterable[Job]) -> set[str]:
    """Of archlab, when the runs were made."""
    found = (
        job.of.record if isinstance(job, LookJob) else job.record for job in jobs if not isinstance(job, Measurement)
    )
    return {record["git"]["commit"][:7] for record in found if record.get("git")}


def keep(record: Record, folder: Path) -> None:
    """Writes a claim's folder; what was there of an earlier decision is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "result.json", json.dumps(record, indent=1) + "\n")
    picture = draw_claim(record, folder / "plot.png")
    write_text(folder / "README.md", readme(record, picture))


def keep_index(output: Path) -> None:
    """A page of all claims that were decided here, by verdict and name."""
    records = [record for file in output.glob("*/result.json") if (record := kept(file))]
    records.sort(key=lambda record: (VERDICTS.index(record["verdict"]), record["name"]))
    made = sorted({f"{record['date']}, budget {record['budget']}" for record in records})
    head = f"# Claims\n\nDecided by `python -m archlab claims`: {'; '.join(made)}.\n\n"
    write_text(output / "README.md", head + claims_markdown(records))


def kept(file: Path) -> Record | None:
    """What was decided before; None where the file is no such record."""
    try:
        record = read_json(file)
        claims_markdown([record])
        return record if record["verdict"] in VERDICTS and record["date"] and record["budget"] else None
    except (Unreadable, KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None


VERDICTS = ("SUPPORTED", "REFUTED", "INCONCLUSIVE")
