"""A stability map as a table, a CSV file and a heat map."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Group, RenderableType
from rich.text import Text

from archlab.base.files import whole
from archlab.report.plots import ORDERED, STYLE, VERMILLION, in_plot
from archlab.report.tables import make_table, nats, number

Record = Mapping[str, Any]

COLUMNS = ("arm", "warmup", "n_layers", "lr", "status", "loss", "losses", "seeds", "plateau")


def table(chart: Record) -> RenderableType:
    """A row for each arm, warm-up and depth, and what the columns mean."""
    body = make_table()
    body.add_column("arm", overflow="fold")
    for heading in HEADINGS:
        body.add_column(heading, justify="right", no_wrap=True)
    for arm in chart["arms"]:
        for row in arm["rows"]:
            body.add_row(Text(arm["label"]), *columns_of(row))
    title = Text("Stability map (validation loss, nats per token)", style="bold")
    meaning = (
        "Stable up to: from the best learning rate upwards, where the loss, a line between the rates swept, has lost half of the"
        " best one's gain over the unigram plateau; where the next rate learned nothing, no more than that step is known of it."
        " Sensitivity: the mean loss over the learning rates of the sweep, each at most ln vocab_size, minus the best loss; it is low"
        " too for a model that hardly trains at any."
    )
    judged = [verdicts(chart["verdicts"])] if chart.get("verdicts") else []
    return Group(title, body, Text(meaning), *judged, *(Text(f"Note: {note}.") for note in chart["notes"]))


def verdicts(found: Sequence[Record]) -> RenderableType:
    """Each arm against the first, by the rule of comparisons."""
    body = make_table()
    body.add_column("arm", overflow="fold")
    for heading in ("warm-\nup", "layers", "of", "effect", "e", "needs", "verdict"):
        body.add_column(heading, justify="right", no_wrap=heading != "verdict")
    for one in found:
        effect = "" if one["effect"] is None else f"{one['effect']:+.3g}"
        verdict = one["verdict"] + " (alone)" * (one["survives"] is False)
        figures = [str(one["warmup"]), str(one["n_layers"]), QUANTITIES[one["quantity"]], effect, number(one["e"], 2)]
        body.add_row(Text(one["arm"]), *figures, str(one["seeds_needed"] or ""), verdict)
    title = Text(f"Against {found[0]['baseline']}, seed by seed (e: evidence; needs: seeds in all)", style="bold")
    return Group(title, body)


QUANTITIES = {"best_loss": "loss", "log10_stable_lr": "log10 lr"}


HEADINGS = ("warm-\nup", "layers", "best\nloss", "LR sensi-\ntivity", "best\nlr", "stable\nup to")


def columns_of(row: Record) -> list[str]:
    best, rate = nats(row["best_loss"]), number(row["best_lr"])
    figures = [best, nats(row["lr_sensitivity"]), rate if row["largest_stable_lr"] else "plateau"]
    return [str(row["warmup"]), str(row["n_layers"]), *figures, largest(row)]


def largest(row: Record) -> str:
    """The rate up to which it is stable; a lower bound where the sweep ended before it did."""
    if row["largest_stable_lr"] is None:
        return "none"
    return f"{'>= ' if row['at_edge'] else ''}{row['stable_up_to']:.3g}"


def write_csv(chart: Record, path: Path) -> None:
    """A line for each cell; seeds and their losses are separated by spaces, and a diverged run's loss is empty."""
    with whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for arm in chart["arms"]:
            for cell in arm["cells"]:
                listed = {
                    key: " ".join("diverged" if item is None else str(item) for item in cell[key])
                    for key in ("losses", "seeds")
                }
                writer.writerow({**cell, **listed, "arm": arm["label"]})


def draw(chart: Record, path: Path) -> None:
    """Saves `figure`."""
    with whole(path) as part:
        figure(chart).savefig(part)


@matplotlib.rc_context({**STYLE, "axes.grid": False})
def figure(chart: Record) -> Figure:
    """A panel for each arm and warm-up: learning rate by depth, coloured by the loss, clipped at the plateau.

    Hatched: it never left the plateau. A cross: it diverged. A red step: the largest stable learning rate of a row.
    """
    panels = [(arm, warmup) for arm in chart["arms"] for warmup in dict.fromkeys(row["warmup"] for row in arm["rows"])]
    cells = [cell for arm in chart["arms"] for cell in arm["cells"]]
    lowest = min((cell["loss"] for cell in cells if cell["loss"] is not None), default=0.0)
    plateau = max(cell["plateau"] for cell in cells)
    scale = matplotlib.colors.Normalize(min(lowest, plateau), plateau)
    rates = sorted({cell["lr"] for cell in cells})
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    depths = max(len({cell["n_layers"] for cell in arm["cells"]}) for arm in chart["arms"])
    figure = Figure(
        figsize=(0.75 * len(rates) * columns + 2.6, (0.55 * depths + 1.3) * rows + 1.3), layout="constrained"
    )
    figure.suptitle("Validation loss by learning rate and depth")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    several = len({warmup for _, warmup in panels}) > 1
    for axes, (arm, warmup) in zip(grid, panels, strict=False):
        _panel(axes, arm, warmup, rates, scale)
        axes.set_title(in_plot(f"{arm['label']}{f', warm-up {warmup}' if several else ''}"), fontsize=10)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    colors = matplotlib.cm.ScalarMappable(scale, matplotlib.colormaps[ORDERED])
    figure.colorbar(colors, ax=figure.axes, label="loss (nats per token),\nclipped at the unigram plateau")
    figure.supxlabel(
        "learning rate   (hatched: never left the plateau; cross: diverged; red: largest stable)", fontsize=10
    )
    return figure


def _panel(axes: Axes, arm: Record, warmup: int, rates: Sequence[float], scale: Any) -> None:
    rows = [row for row in arm["rows"] if row["warmup"] == warmup]
    depths = [row["n_layers"] for row in rows]
    for cell in (cell for cell in arm["cells"] if cell["warmup"] == warmup):
        _cell(axes, rates.index(cell["lr"]), depths.index(cell["n_layers"]), cell, scale)
    for y, row in enumerate(rows):
        if row["largest_stable_lr"] is not None and not row["at_edge"]:
            x = rates.index(row["largest_stable_lr"]) + 0.5
            axes.plot([x, x], [y - 0.5, y + 0.5], color=VERMILLION, linewidth=3, solid_capstyle="butt")
    axes.set_xlim(-0.5, len(rates) - 0.5)
    axes.set_ylim(-0.5, len(depths) - 0.5)
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], rotation=45, fontsize=9)
    axes.set_yticks(range(len(depths)), depths)
    axes.set_ylabel("layers")


def _cell(axes: Axes, x: int, y: int, cell: Record, scale: Any) -> None:
    share = 1.0 if cell["loss"] is None else float(np.clip(scale(cell["loss"]), 0, 1))
    color = "white" if cell["status"] == "diverged" else matplotlib.colormaps[ORDERED](share)
    hatch = "///" if cell["status"] == "failed" else None
    axes.add_patch(
        Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, hatch=hatch, edgecolor="#888888", linewidth=0.5)
    )
    words = "x" if cell["loss"] is None else f"{cell['loss']:.2f}"
    axes.text(x, y, words, ha="center", va="center", fontsize=8, color="black" if share > 0.55 else "white")
