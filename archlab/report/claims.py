"""Decided claims -> a table, a plot of every value that was compared, and a page in words."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.text import Text

from archlab.base.files import whole
from archlab.report.plots import in_plot
from archlab.report.tables import Record, as_code, duration, in_markdown, make_table, number

COLORS = {"SUPPORTED": "green", "REFUTED": "red", "INCONCLUSIVE": "yellow"}


def claims_table(records: Iterable[Record]) -> RenderableType:
    """A row for each claim: its verdict, and the effect and interval of the part that decided it."""
    table = make_table(("verdict", "left"))
    table.add_column("claim", overflow="fold", ratio=1)
    table.add_column("effect", justify="right", no_wrap=True)
    table.add_column("seeds", justify="right", no_wrap=True)
    for record in records:
        part = deciding(record)
        table.add_row(
            Text(record["verdict"], style=COLORS[record["verdict"]]),
            Text.assemble((record["name"], "bold"), "\n", record["sentence"]),
            f"{number(part['effect'])}\n{interval(part)}" if part else "n/a",
            str(record["seeds"]),
        )
    return table


def claims_markdown(records: Iterable[Record], folder: str = "") -> str:
    """The same rows for a page; each claim's name links to the claim's own page, under `folder`."""
    lines = ["| claim | verdict | effect (interval) | seeds |", "|---|---|---|---|"]
    for record in records:
        part = deciding(record)
        effect = f"{number(part['effect'])} ({interval(part)})" if part else "not measured"
        name = f"[{in_markdown(record['name'])}]({folder}{quote(record['name'])}/README.md)"
        lines.append(
            f"| {name}: {in_markdown(record['sentence'])} | {record['verdict']} | {effect} | {record['seeds']} |"
        )
    return "\n".join(lines) + "\n"


def deciding(record: Record) -> Record | None:
    """The part that decided a claim; None where nothing was measured."""
    parts: Sequence[Record] = record["parts"]
    return next((part for part in parts if part["verdict"] == record["verdict"]), parts[0] if parts else None)


def interval(part: Record) -> str:
    if part["interval"] is None:
        return "n/a"
    low, high = part["interval"]
    return "exact" if low == high else f"{number(low)} to {number(high)}"


def draw_claim(record: Record, path: Path) -> Path | None:
    """One panel per part: a dot for each arm and seed, the dots of a seed joined, and the value they are compared with."""
    parts = [
        part for part in record["parts"] if any(value is not None for of in part["values"].values() for value in of)
    ]
    if not parts:
        return None
    figure = Figure(figsize=(4.2 * len(parts), 3.4), layout="constrained")
    for axes, part in zip(np.atleast_1d(figure.subplots(1, len(parts))), parts, strict=True):
        draw_part(axes, part)
    with whole(path) as part:
        figure.savefig(part, dpi=110)
    return path


def draw_part(axes: Axes, part: Record) -> None:
    arms = list(part["values"])
    rows = list(zip(*(part["values"][arm] for arm in arms), strict=True))
    for row in rows:
        there = [(x, value) for x, value in enumerate(row) if value is not None]
        axes.plot(*zip(*there, strict=True), color="0.75", linewidth=0.8, zorder=1) if there else None
    for x, arm in enumerate(arms):
        values = [value for value in part["values"][arm] if value is not None]
        axes.scatter([x] * len(values), values, s=22, zorder=2)
        missing = len(part["values"][arm]) - len(values)
        if missing:
            axes.annotate(
                f"{missing} diverged", (x, 0.98), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8
            )
    if part["form"] == "value":
        axes.axhline(part["than"], color="0.4", linestyle="--", linewidth=0.9)
    axes.set_xticks(range(len(arms)), [in_plot(arm) for arm in arms])
    axes.set_xlim(-0.6, len(arms) - 0.4)
    axes.set_ylabel(in_plot(measured(part)))
    axes.set_title(in_plot(f"{part['text']}\n{part['verdict']}"), fontsize=8.5, wrap=True)
    axes.spines[["top", "right"]].set_visible(False)


def measured(part: Record) -> str:
    over = ", ".join(f"{name} {xs[0]} to {xs[-1]}" for name, xs in part["over"].items())
    return f"{part['reduce'].replace('_', ' ')} of {part['metric']} over {over}" if over else part["metric"]


def readme(record: Record, picture: Path | None) -> str:
    """The claim's page, in Markdown."""
    lines = [
        f"# {in_markdown(record['sentence'])}",
        "",
        f"**{record['verdict']}**: {in_markdown(record['reason'])}.",
        "",
        f"Claimed in: {in_markdown(record['source'])}",
        "",
    ]
    if record["parts"]:
        lines += [
            (
                f"Regime: {record['regime']}; {record['seeds']} seeds, {record.get('runs', 0)} runs, "
                f"{duration(record['seconds'])} of one process."
            ),
            "",
        ]
    if picture:
        lines += [f"![every value that was compared]({picture.name})", ""]
    for part in record["parts"]:
        lines += part_lines(part)
    if record["arms"]:
        lines += [
            "## Arms",
            "",
            *(
                f"- **{in_markdown(label)}**: {as_code(' '.join(arm['train']))}{then(arm)}"
                for label, arm in record["arms"].items()
            ),
            "",
        ]
    return "\n".join([*lines, *made(record)]) + "\n"


def part_lines(part: Record) -> list[str]:
    header = [
        f"## {in_markdown(part['text'])}: {part['verdict']}",
        "",
        in_markdown(f"{quantity(part)}; {part['told']}."),
        "",
    ]
    rows = [f"| {in_markdown(label)} | {', '.join('diverged' if value is None else f'{value:.5g}' for value in values)} |"
            for label, values in part["values"].items()]  # fmt: skip
    return [*header, f"| arm | {in_markdown(measured(part))}, by seed |", "|---|---|", *rows, ""]


def quantity(part: Record) -> str:
    first, *rest = part["arms"]
    name = measured(part)
    match part["form"]:
        case "difference":
            return f"{name} of {first} less that of {rest[0]}"
        case "ratio":
            return f"{name} of {first} over that of {rest[0]}"
        case "between":
            return f"{name} between {first} and {rest[0]}"
        case _:
            return f"{name} of {first}"


def then(arm: Record) -> str:
    return f", its weights then evaluated under {as_code(' '.join(arm['then']))}" if arm["then"] else ""


def made(record: Record) -> list[str]:
    commits = ", ".join(record.get("commits") or [])
    made_at = f" Runs were made at commit {commits}." if commits else ""
    return [
        "## Again",
        "",
        "```bash",
        record["command"],
        "```",
        "",
        f"Written by that command on {record['date']}, torch {record['versions']['torch']}.{made_at}",
    ]
