"""A comparison's record and its runs -> sections of a page."""

from collections.abc import Iterable, Mapping, Sequence
from shlex import quote
from typing import Any

from archlab.base.words import sets
from archlab.records.reader import Run
from archlab.records.summary import seconds_of
from archlab.report.page.curves import ArmCurves, figures, finite, rounded
from archlab.report.page.parts import (
    Cell,
    Commands,
    Facts,
    Figure,
    PagePart,
    PageTable,
    Picture,
    Prose,
    Section,
    View,
    figure_text,
    word,
)
from archlab.report.tables import count, divergence, duration, flop, nats, number

Record = Mapping[str, Any]


def comparison_sections(record: Record, runs: Sequence[Run], drawings: Mapping[str, str] = {}) -> list[Section]:
    """The question, the result, the arms, the curves, and the commands that reproduce them.

    `record` is ComparedArms.record(); `runs` are the runs it names; `drawings` holds an arm's diagram, as SVG, by its
    label, and an arm without one is shown by its choices.
    """
    at = {str(run.directory): run for run in runs}
    arms = [ArmCurves(arm["label"], [at[path] for path in arm["runs"] if path in at]) for arm in record["arms"]]
    pictures = [Picture(arm.label, drawings[arm.label]) for arm in arms if arm.label in drawings]
    return [
        Section("Question", question(record)),
        Section("Result", result(record)),
        Section("Arms", [*pictures, choices(arms)]),
        Section("Curves", figures(arms)),
        Section("Reproduce", reproduce(record, arms)),
    ]


def question(record: Record) -> list[PagePart]:
    unit, noise = record["unit"], record["noise"]
    spread = (
        f"{quantity(noise['sd'], unit)} over {noise['n']} seeds"
        if noise["sd"] is not None
        else f"unknown: it takes two runs that did not fail, and there {'is' if noise['n'] == 1 else 'are'} {noise['n']}"
    )
    facts = [
        (
            "metric",
            f"{record['metric']}, {record['unit'] or 'no unit'}; {'lower' if record['lower_is_better'] else 'higher'} is better",
        ),
        ("baseline", record["baseline"]),
        ("noise floor", f"{spread} (standard deviation of the baseline)"),
        ("smallest effect of interest", quantity(record["smallest_effect"], unit)),
        ("error rate", f"{record['alpha']:g} of all verdicts together (e-BH), however often one looks"),
    ]
    return [Facts(facts), *(Prose(f"Note: {note}.") for note in record["notes"])]


def result(record: Record) -> list[PagePart]:
    parts = [verdicts(record), effects(record), at_equal(record), by_seed(record)]
    return [part for part in parts if part is not None]


# ---------------------------------------------------------------- tables


def verdicts(record: Record) -> PageTable:
    """One row per arm: its mean, and what is known about its difference from the baseline."""
    unit = record["unit"]
    headings = (
        "rank",
        "arm",
        "verdict",
        f"mean {record['metric']}",
        "sd",
        "seeds",
        "failed",
        "effect",
        "interval",
        "e",
        "p",
        "seeds needed",
    )
    rows = [
        [
            Cell(str(arm["rank"]), arm["rank"]),
            word(arm["label"]),
            Cell(arm["verdict"], arm["verdict"], verdict=True) if arm["verdict"] else Cell("baseline", ""),
            value(arm["mean"], unit),
            value(arm["sd"], unit),
            whole(arm["n"]),
            whole(len(arm["failed"])),
            value(arm["effect"], unit, "+"),
            interval(arm["interval"], arm["level"], unit),
            Cell(number(arm["e"]), arm["e"]),
            Cell(number(arm["p"]), arm["p"]),
            whole(arm["seeds_needed"]),
        ]
        for arm in record["arms"]
    ]
    caption = (
        "Mean and sd: of runs that did not fail. Effect: arm minus baseline, paired by seed, where neither failed. Interval: of the confidence sequence, at the level that"
        " counts among all arms. e: the evidence for a verdict, against the smallest effect of interest. p: of signs flipped,"
        " two-sided, against the same; it holds at these seeds only and decides nothing."
    )
    return PageTable(caption, headings, rows)


def at_equal(record: Record) -> PageTable | None:
    """Training loss where every arm has spent as much."""
    arms = [arm for arm in record["arms"] if arm.get("at_equal")]
    if not arms:
        return None
    axes = list(arms[0]["at_equal"])
    rows = [[word(arm["label"]), *(value(arm["at_equal"].get(axis), "nats") for axis in axes)] for arm in arms]
    caption = (
        "Training loss, nats per token, at the most that all arms have spent: steps, tokens, FLOPs, seconds; of runs that"
        " neither diverged nor stayed on the unigram plateau."
    )
    return PageTable(caption, ("arm", *(f"at equal {axis.replace('flops', 'FLOPs')}" for axis in axes)), rows)


def by_seed(record: Record) -> PageTable:
    unit, seeds = record["unit"], sorted({seed for arm in record["arms"] for seed in arm["seeds"]})
    rows = []
    for arm in record["arms"]:
        of = dict(zip(arm["seeds"], arm["values"], strict=True))
        cells = [seed_cell(of, seed, seed in arm["failed"], unit) for seed in seeds]
        rows.append([word(arm["label"]), *cells])
    return PageTable(f"{record['metric']} by seed", ("arm", *(f"seed {seed}" for seed in seeds)), rows)


def seed_cell(of: Mapping[int, float | None], seed: int, failed: bool, unit: str) -> Cell:
    """A run's value; it may have one and have failed all the same."""
    if failed:
        found = of.get(seed)
        return Cell("failed" if found is None else f"failed ({written(found, unit)})", None)
    return value(of.get(seed), unit)


def choices(arms: Sequence[ArmCurves]) -> PageTable:
    """The blocks of each arm, with those in which the arms differ first."""
    shown = [(arm, arm.runs[0].summary) for arm in arms if arm.runs]
    groups = list(dict.fromkeys(group for _, summary in shown for group in summary.get("choices", {})))
    groups.sort(key=lambda group: len({summary.get("choices", {}).get(group) for _, summary in shown}) == 1)
    rows = [
        [
            word(arm.label),
            *(word(summary.get("choices", {}).get(group, "n/a")) for group in groups),
            Cell(count(summary.get("n_params")), summary.get("n_params")),
            Cell(flop(summary.get("train_flops_per_token")), summary.get("train_flops_per_token")),
        ]
        for arm, summary in shown
    ]
    return PageTable("Blocks and costs", ("arm", *groups, "parameters", "training cost per token"), rows)


# ---------------------------------------------------------------- the effects as a picture


def effects(record: Record) -> Figure | None:
    """A dot and its interval for every arm that was compared; the band holds what is too small to matter."""
    compared = [(i, arm) for i, arm in enumerate(record["arms"]) if arm["effect"] is not None and arm["interval"]]
    if not compared:
        return None
    traces = [
        {
            "arm": i, "name": figure_text(arm["label"]), "mode": "markers", "marker": {"size": 10},
            "x": [rounded(arm["effect"])], "y": [figure_text(arm["label"])],
            "error_x": {
                "type": "data", "symmetric": False, "thickness": 2, "width": 6,
                "array": [rounded(arm["interval"][1] - arm["effect"])],
                "arrayminus": [rounded(arm["effect"] - arm["interval"][0])],
            },
        }
        for i, arm in compared
    ]  # fmt: skip
    zero = {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": 0,
        "x1": 0,
        "y0": 0,
        "y1": 1,
        "line": {"width": 1.2, "dash": "dash"},
    }
    small = record["smallest_effect"]
    band = {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": -small,
        "x1": small,
        "y0": 0,
        "y1": 1,
        "line": {"width": 0},
        "band": True,
    }
    unit = f" ({record['unit']})" if record["unit"] else ""
    layout = {
        "xaxis": {"title": {"text": figure_text(f"effect on {record['metric']}{unit}")}},
        "yaxis": {"autorange": "reversed", "type": "category"},
        "shapes": [band, zero] if small else [zero],
    }
    side = "left" if record["lower_is_better"] else "right"
    caption = f"Dots are effects against {record['baseline']}, bars their intervals; {side} is better."
    shade = " Effects inside the band are smaller than the smallest of interest." if small else ""
    return Figure("Effects", caption + shade, [View("effect", traces, layout)], height=150 + 46 * len(compared))


# ---------------------------------------------------------------- how to do it again


def reproduce(record: Record, arms: Sequence[ArmCurves]) -> list[PagePart]:
    runs = [run for arm in arms for run in arm.runs]
    ended = [diverged(arm, run) for arm in arms for run in arm.runs if run.diverged]
    table = [PageTable("Runs that diverged", ("arm", "seed", "step", "where"), ended)] if ended else []
    return [*table, Commands([*commands(arms), comparing(record, runs)]), Facts(provenance(runs))]


def commands(arms: Iterable[ArmCurves]) -> list[str]:
    """A sweep over seeds for every arm, by the overrides its runs recorded."""
    return [line for arm in arms for line in dict.fromkeys(sweep(arm.runs))]


def sweep(runs: Sequence[Run]) -> Iterable[str]:
    """One command for all runs whose overrides differ only in the seed."""
    seeds_by_words: dict[tuple[str, ...], list[int]] = {}
    for run in runs:
        seeds_by_words.setdefault(tuple(w for w in run.overrides if not sets(w, "seed")), []).append(run.seed)
    for words, seeds in seeds_by_words.items():
        several = ["-m"] if len(seeds) > 1 else []
        yield " ".join(["python -m archlab", *several, *map(quote, words), f"seed={','.join(map(str, sorted(seeds)))}"])


def comparing(record: Record, runs: Sequence[Run]) -> str:
    options = [
        f"metric={record['metric']}",
        f"smallest_effect={record['smallest_effect']:g}",
        f"baseline={record['baseline']}",
        *([f"direction={record['direction']}"] if record.get("direction") else []),
        *(["mix=true"] if record.get("mix") else []),
    ]
    return " ".join(["python -m archlab compare", *(quote(str(run.directory)) for run in runs), *map(quote, options)])


def diverged(arm: ArmCurves, run: Run) -> list[Cell]:
    first = (run.summary.get("stability") or {}).get("first_nonfinite")
    where = divergence(first) if first else "not recorded"
    step = run.summary.get("steps")
    return [word(arm.label), whole(run.seed), whole(step), word(where)]


def provenance(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The conditions under which the runs were made, each value once."""
    fields_shown = {
        "commit": lambda s: commit(s.get("git")),
        "ran on": lambda s: f"{s.get('device')}, {s.get('dtype')}",
        "corpus (sha256)": lambda s: s["corpus_sha256"],
        "versions": lambda s: ", ".join(f"{name} {version}" for name, version in (s.get("versions") or {}).items()),
    }
    rows = [
        (name, "; ".join(dict.fromkeys(text_of(run.summary) for run in runs))) for name, text_of in fields_shown.items()
    ]
    spent = [seconds_of(run.summary) for run in runs]
    total = duration(sum(s for s in spent if finite(s))) if any(map(finite, spent)) else "n/a"
    dates = sorted({run.directory.name[:8] for run in runs if run.directory.name[:8].isdigit()})
    made = " to ".join(dict.fromkeys(f"{d[:4]}-{d[4:6]}-{d[6:]}" for d in (dates[0], dates[-1]))) if dates else "n/a"
    return [*rows, ("run on", made), ("time of all runs", total), ("runs", str(len(runs)))]


def commit(git: Record | None) -> str:
    if not git:
        return "not run from a checkout"
    return git["commit"][:12] + (" with uncommitted changes" if git["changed"] else "")


# ---------------------------------------------------------------- numbers


def quantity(x: float | None, unit: str, sign: str = "") -> str:
    """A value of the metric as it is written, with its unit."""
    return f"{written(x, unit, sign)} {unit}".strip()


def written(x: float | None, unit: str, sign: str = "") -> str:
    if unit.startswith("nats"):
        return nats(x, sign=sign)
    return ("+" if sign and x is not None and x > 0 else "") + number(x)


def value(x: float | None, unit: str, sign: str = "") -> Cell:
    return Cell(written(x, unit, sign), x if finite(x) else None)


def whole(n: int | None) -> Cell:
    return Cell("" if n is None else f"{n:,}", n)


def interval(bounds: Sequence[float] | None, level: float | None, unit: str) -> Cell:
    if not bounds:
        return Cell("", None)
    at = f" ({level:.3g})" if level is not None else ""
    return Cell(f"{written(bounds[0], unit, '+')} to {written(bounds[1], unit, '+')}{at}", bounds[0])
