"""The record of a comparison -> a table for the terminal, CSV, Markdown, and a plot.

A record is what `archlab.comparison.comparison.ComparedArms.record()` returns, or the comparison.json made of it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from archlab.base.files import whole, write_text
from archlab.report.plots import BLUE, GREEN, GREY, STYLE, VERMILLION, in_plot
from archlab.report.tables import count, flop, in_markdown, make_table, nats, number, percent

Record = Mapping[str, Any]

COLORS = {
    "better": "green",
    "worse": "red",
    "tie": "cyan",
    "not better": "yellow",
    "not worse": "yellow",
    "open": "yellow",
}
MARKS = {"better": GREEN, "worse": VERMILLION}

NAMES = ("arm", "verdict")
OTHER_TEXT = "on other text (95%)"
WRAPPING = (*NAMES, "interval", OTHER_TEXT)
MIN_NAME = 18
"""The smallest width of an arm's name, in columns of the terminal."""

AXES = {"steps": "steps", "tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}


def save_all(record: Record, folder: Path) -> list[Path]:
    """Writes comparison.json, .csv, .md and, where there is an effect to show, .png; returns what was written."""
    texts = {
        "json": json.dumps(record, indent=2, allow_nan=False) + "\n",
        "csv": rows(record).to_csv(index=False),
        "md": markdown(record),
    }
    paths = [folder / f"comparison.{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    figure = effects_figure(record)
    if figure is not None:
        paths.append(folder / "comparison.png")
        with whole(paths[-1]) as part:
            figure.savefig(part)
    return paths


# ---------------------------------------------------------------- tables


NEEDS = "e: evidence for the verdict, 1 is none; p: of signs flipped, two-sided, against the smallest effect, at these seeds only; needs: seeds in all until a verdict can be expected"  # fmt: skip


def rows(record: Record) -> pd.DataFrame:
    """One row for each arm, numbers unrounded: what the CSV file holds."""
    return pd.DataFrame([_row(arm) for arm in record["arms"]])


def _row(arm: Record) -> Record:
    low, high = arm["interval"] or (None, None)
    single = ("label", "rank", "mean", "sd", "n", "diverged", "effect")
    return {
        **{name: arm[name] for name in single},
        "interval_low": low,
        "interval_high": high,
        "failed": len(arm["failed"]),
        **{name: arm[name] for name in ("level", "e", "p", "verdict", "alone", "survives")},
        **{name: arm[name] for name in ("seeds_needed", "runs_needed", "minutes_needed")},
        **{f"train_loss_at_equal_{axis}": arm["at_equal"][axis] for axis in AXES},
        **{name: arm[name] for name in ("n_params", "train_flops_per_token")},
    }


def comparison(record: Record) -> RenderableType:
    """The whole of a comparison, the noise floor first."""
    parts: list[RenderableType] = [Text(record["question"], style="bold"), Text(noise(record))]
    for title, frame in _tables(record):
        parts += ["", Text(title, style="bold"), _rich(frame, record)]
    return Group(*parts, "", *(Text(f"note: {note}") for note in record["notes"]))


def markdown(record: Record) -> str:
    """The same tables as the terminal's."""
    parts = [f"# {in_markdown(record['question'])}", in_markdown(noise(record))]
    for title, frame in _tables(record):
        parts += [f"**{in_markdown(title)}**", markdown_table(frame)]
    return "\n\n".join(parts) + "\n\n" + "".join(f"- {in_markdown(note)}\n" for note in record["notes"])


def markdown_table(frame: pd.DataFrame) -> str:
    """A Markdown table with aligned columns, so that the file itself is readable too."""
    cells = [[in_markdown(cell) for cell in row] for row in (frame.columns, *frame.to_numpy().tolist())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    place = [str.ljust if name in NAMES else str.rjust for name in frame]
    lines = [
        "| " + " | ".join(put(cell, width) for put, cell, width in zip(place, row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = (
        "|"
        + "|".join(
            "-" * (width + 1) + ("-" if name in NAMES else ":") for name, width in zip(frame, widths, strict=True)
        )
        + "|"
    )
    return "\n".join([lines[0], rule, *lines[1:]])


def _tables(record: Record) -> list[tuple[str, pd.DataFrame]]:
    ranked = sorted(record["arms"], key=lambda arm: arm["rank"])
    others = [arm for arm in ranked if arm["label"] != record["baseline"]]
    unit = f" ({record['unit']})" if record["unit"] else ""
    tables = [(f"Arms by {record['metric']}{unit}", pd.DataFrame(_arm(arm, record) for arm in ranked))]
    if others:
        frame = pd.DataFrame(_against(arm, record) for arm in others)
        levels = {level for level in frame["level"] if level}
        same = f"; intervals at {min(levels)}" if len(levels) == 1 else ""
        title = f"Against {record['baseline']} ({NEEDS}{same})"
        tables.append((title, frame if len(levels) > 1 else frame.drop(columns="level")))
    if any(value is not None for arm in ranked for value in arm["at_equal"].values()):
        tables.append(
            (
                "Training loss (nats per token) at equal steps, tokens, FLOPs, seconds; size and cost",
                pd.DataFrame(map(_equal, ranked)),
            )
        )
    return tables


def noise(record: Record) -> str:
    """The noise floor and what a difference has to exceed, in words."""
    floor, unit = record["noise"], record["unit"]
    of = f"{floor['n']} seeds of {record['baseline']}"
    if floor["sd"] is None:
        return f"Noise floor: unknown, since it takes two runs that did not fail; there are {of}."
    words = f"Noise floor: {_value(floor['sd'], record)} {unit}".rstrip() + f" (standard deviation over {of})."
    if len(record["arms"]) > 1:
        words += f" Smallest effect of interest: {number(record['smallest_effect'])}."
    return words


def _arm(arm: Record, record: Record) -> Record:
    return {
        "rank": str(arm["rank"]),
        "arm": arm["label"],
        "mean": _value(arm["mean"], record),
        "sd": _value(arm["sd"], record),
        "seeds": str(arm["n"]),
        "failed": str(len(arm["failed"])),
    }


def _against(arm: Record, record: Record) -> Record:
    low, high = (_value(bound, record, "+") for bound in arm["interval"] or (None, None))
    return {
        "arm": arm["label"],
        "effect": _value(arm["effect"], record, "+"),
        "interval": f"[{low}, {high}]" if arm["interval"] else "",
        "level": percent(arm["level"]) if arm["interval"] else "",
        "e": number(arm["e"], 2),
        "p": number(arm["p"], 2),
        **({OTHER_TEXT: _interval(arm.get("on_other_text"), record)} if _with_text(record) else {}),
        "verdict": arm["verdict"] or "no shared seed",
        "needs": str(arm["seeds_needed"] or ""),
    }


def _with_text(record: Record) -> bool:
    return any("on_other_text" in arm for arm in record["arms"])


def _interval(found: Record | None, record: Record) -> str:
    low, high = (_value(bound, record, "+") for bound in found["interval"]) if found else ("", "")
    return f"[{low}, {high}]" if found else ""


def _equal(arm: Record) -> Record:
    return {
        "arm": arm["label"],
        **{words: nats(arm["at_equal"][axis]) for axis, words in AXES.items()},
        "size": count(arm["n_params"]),
        "a token": flop(arm["train_flops_per_token"]),
    }


def _value(value: float | None, record: Record, sign: str = "") -> str:
    if value is None or record["unit"] == "nats per token":
        return nats(value, sign)
    return f"{value:{sign}.4g}"


def _rich(frame: pd.DataFrame, record: Record) -> Table:
    """A table in which names, intervals and verdicts may wrap, and no number is cut."""
    table = make_table()
    colors = {arm["label"]: COLORS.get(arm["verdict"], "") for arm in record["arms"]}
    for name in frame:
        table.add_column(
            name,
            justify="left" if name in NAMES else "right",
            no_wrap=name not in WRAPPING,
            min_width=MIN_NAME if name == "arm" else None,
            overflow="fold",
        )
    for row in frame.to_dict("records"):
        table.add_row(*(Text(row[name], style=colors[row["arm"]] if name == "verdict" else "") for name in frame))
    return table


# ---------------------------------------------------------------- plot


@matplotlib.rc_context(STYLE)
def effects_figure(record: Record) -> Figure | None:
    """Each arm's effect with its interval, each seed's difference as a dot; None where no arm has an effect."""
    compared = [arm for arm in record["arms"] if arm["effect"] is not None]
    if not compared:
        return None
    baseline = next(arm for arm in record["arms"] if arm["label"] == record["baseline"])
    figure = Figure(figsize=(8, 2.2 + 0.6 * len(compared)), layout="constrained")
    axes = figure.subplots()
    figure.suptitle(in_plot(f"{record['metric']} against {record['baseline']}"))
    if record["noise"]["sd"]:
        sd = record["noise"]["sd"]
        axes.axvspan(
            -sd, sd, color=GREY, alpha=0.15, lw=0, label=f"noise floor, +-1 sd over {record['noise']['n']} seeds"
        )
    for side in (-1, 1) if record["smallest_effect"] else ():
        label = "smallest effect of interest" if side == 1 else None
        axes.axvline(side * record["smallest_effect"], color=GREY, lw=1, ls=":", label=label)
    axes.axvline(0, color=GREY, lw=1)
    for place, arm in enumerate(compared):
        dots = differences(arm, baseline)
        label = "one seed" if place == 0 else None
        axes.plot(dots, [place - 0.18] * len(dots), "o", color=BLUE, alpha=0.5, markersize=4, label=label)
        low, high = arm["interval"] or (arm["effect"], arm["effect"])
        color = MARKS.get(arm["verdict"], GREY)
        axes.plot([low, high], [place, place], color=color, lw=2.5, solid_capstyle="butt")
        axes.plot(arm["effect"], place, "D", color=color, label="mean and interval" if place == 0 else None)
    axes.set_yticks(range(len(compared)), [in_plot(f"{arm['label']}\n{arm['verdict']}") for arm in compared])
    axes.set_ylim(len(compared) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    better = "lower" if record["lower_is_better"] else "higher"
    unit = f" ({record['unit']})" if record["unit"] else ""
    axes.set_xlabel(in_plot(f"difference in {record['metric']}{unit}; {better} is better"))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def differences(arm: Record, baseline: Record) -> list[float]:
    """Arm - baseline at each seed at which neither failed."""
    base, arm_values = by_seed(baseline), by_seed(arm)
    return [value - base[seed] for seed, value in arm_values.items() if seed in base]


def by_seed(arm: Record) -> dict[int, float]:
    """The values of runs that did not fail."""
    there = zip(arm["seeds"], arm["values"], strict=True)
    return {seed: value for seed, value in there if value is not None and seed not in arm["failed"]}
