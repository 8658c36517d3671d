"""A stability map's record -> a section: learning rate by depth, a view for each arm and warm-up."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from archlab.report.page.comparison import value
from archlab.report.page.curves import finite, rounded
from archlab.report.page.parts import Cell, Figure, PageTable, Prose, Section, View, figure_text, word
from archlab.report.tables import nats, number

Record = Mapping[str, Any]


def stability_section(record: Record) -> Section:
    """`record` is {arms: [{label, cells: [{lr, n_layers, warmup, loss, status}], ...}]}.

    The summary of an arm (largest_stable_lr, lr_sensitivity, best_loss) is in the arm, or in its rows, one per depth.
    """
    rows = [line(arm["label"], row) for arm in record["arms"] for row in arm.get("rows") or [arm]]
    headings = ("arm", "layers", "warm-up", "best loss", "LR sensitivity", "stable up to LR")
    caption = "LR sensitivity is low too for arms that hardly train: read it together with the best loss."
    judged = [verdicts(record["verdicts"])] if record.get("verdicts") else []
    notes = [Prose(f"Note: {note}.") for note in record.get("notes", ())]
    return Section("Stability", [heat_maps(record), PageTable(caption, headings, rows), *judged, *notes])


def verdicts(found: Sequence[Mapping[str, Any]]) -> PageTable:
    """Each arm against the first, by the rule of comparisons; older maps have none."""
    headings = ("arm", "layers", "warm-up", "of", "verdict", "effect", "e", "seeds", "seeds needed")
    rows = [
        [
            word(one["arm"]),
            Cell(str(one["n_layers"]), one["n_layers"]),
            Cell(str(one["warmup"]), one["warmup"]),
            word(one["quantity"].replace("_", " ")),
            Cell(one["verdict"] + " (alone)" * (one.get("survives") is False), one["verdict"], verdict=True),
            value(one["effect"], ""),
            Cell(number(one["e"]), one["e"]),
            Cell(str(one["n"]), one["n"]),
            Cell(str(one["seeds_needed"] or ""), one["seeds_needed"]),
        ]
        for one in found
    ]
    caption = (
        f"Against {found[0]['baseline']}, seed by seed; e is the evidence for a verdict. (alone): it does not survive among all of"
        " them (e-BH)."
    )
    return PageTable(caption, headings, rows)


def line(label: str, row: Record) -> list[Cell]:
    stable, edge = row.get("stable_up_to", row["largest_stable_lr"]), row.get("at_edge")
    return [
        word(label),
        Cell(f"{row['n_layers']}" if "n_layers" in row else "all", row.get("n_layers")),
        Cell(f"{row['warmup']}" if row.get("warmup") is not None else "", row.get("warmup")),
        value(row["best_loss"], "nats"),
        value(row["lr_sensitivity"], "nats"),
        Cell("none" if stable is None else f"{'at least ' if edge else ''}{number(stable)}", stable),
    ]


def heat_maps(record: Record) -> Figure:
    every = [cell for arm in record["arms"] for cell in arm["cells"]]
    losses = [cell["loss"] for cell in every if finite(cell["loss"])]
    plateau = max((cell["plateau"] for cell in every if finite(cell.get("plateau"))), default=math.inf)
    scale = {"zmin": rounded(min(*losses, plateau)), "zmax": rounded(min(max(losses), plateau))} if losses else {}
    views = []
    for arm in record["arms"]:
        warmups = list(dict.fromkeys(cell["warmup"] for cell in arm["cells"]))
        for warmup in warmups:
            name = arm["label"] + (f", warm-up {warmup}" if len(warmups) > 1 else "")
            cells = [cell for cell in arm["cells"] if cell["warmup"] == warmup]
            views.append(View(name, [heat_map(cells) | scale], AXES))
    caption = (
        "Validation loss, nats per token, on one scale for all arms, which ends at the unigram plateau. A cross is a run that"
        " failed or diverged."
    )
    return Figure("Stability map", caption, views, height=380)


def heat_map(cells: Sequence[Record]) -> dict[str, Any]:
    rates, depths = sorted({cell["lr"] for cell in cells}), sorted({cell["n_layers"] for cell in cells})
    at = {(cell["n_layers"], cell["lr"]): cell for cell in cells}
    grid = [[at.get((depth, rate)) for rate in rates] for depth in depths]
    return {
        "type": "heatmap", "colorscale": "Viridis", "reversescale": True, "xgap": 2, "ygap": 2,
        "x": [f"{rate:g}" for rate in rates], "y": [str(depth) for depth in depths],
        "z": [[rounded(cell["loss"]) if cell and finite(cell["loss"]) else None for cell in row] for row in grid],
        "text": [[mark(cell) for cell in row] for row in grid], "texttemplate": "%{text}", "hoverinfo": "x+y+text",
        "colorbar": {"title": {"text": "loss"}, "thickness": 12},
    }  # fmt: skip


def mark(cell: Record | None) -> str:
    """The text of a cell: its loss, after a cross unless it trained."""
    if cell is None:
        return ""
    loss = nats(cell["loss"]) if finite(cell["loss"]) else ""
    return loss if cell["status"] in ("trained", "completed") else f"\u00d7 {loss or figure_text(cell['status'])}"


AXES = {
    "xaxis": {"title": {"text": "learning rate"}, "type": "category"},
    "yaxis": {"title": {"text": "layers"}, "type": "category"},
}
