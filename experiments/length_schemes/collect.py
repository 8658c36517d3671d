"""Runs of this question -> results.csv, lengths.png and the README's tables.

python experiments/length_schemes/collect.py experiments/runs/length_schemes
"""

import csv
import math
import statistics
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from archlab.comparison.arms import Arm, read_all, sort_into_arms
from archlab.evaluate.length import verdict
from archlab.records.reader import Run

HERE = Path(__file__).parent
QUANTITIES = {"loss_last": 3, "late_ratio": 4}
"""What the tables hold, with its digits."""


def main(directories: list[str]) -> None:
    arms, _ = sort_into_arms(read_all(directories)[0])
    rows = [row for arm in arms for run in arm.runs for row in lengths(arm, run)]
    with (HERE / "results.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    draw(rows)
    print(*(markdown(rows, quantity, digits) for quantity, digits in QUANTITIES.items()), sep="\n\n")


def lengths(arm: Arm, run: Run) -> list[dict]:
    summary = run.summary
    said = verdict(summary["length"], summary["train_len"], exact=False, unigram=summary.get("unigram_loss", math.inf))
    return [
        {"arm": arm.label, "seed": run.seed, "train_len": summary["train_len"]}
        | {key: record[key] for key in ("eval_len", "protocol", "loss", "loss_last", "late_ratio")}
        | {"verdict": said["verdict"], "commit": summary["git"]["commit"], "corpus_sha256": summary["corpus_sha256"]}
        for record in summary["length"]
    ]


def gathered(rows: list[dict], quantity: str) -> dict[str, dict[int, list[float]]]:
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        found.setdefault(row["arm"], {}).setdefault(row["eval_len"], []).append(row[quantity])
    return found


def draw(rows: list[dict]) -> None:
    """Mean over seeds, and the range of the seeds as a band."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for arm, curve in gathered(rows, "late_ratio").items():
        (line,) = axes.plot(list(curve), [statistics.mean(seeds) for seeds in curve.values()], marker="o", label=arm)
        low, high = ([pick(seeds) for seeds in curve.values()] for pick in (min, max))
        axes.fill_between(list(curve), low, high, color=line.get_color(), alpha=0.25)
    ticks, train_len = sorted({row["eval_len"] for row in rows}), rows[0]["train_len"]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{n:,}\n{n // train_len}x" for n in ticks])
    axes.set_xlabel("evaluation length (tokens)")
    axes.set_ylabel("loss over the loss of the same tokens at 1x")
    axes.set_title("Late loss by length: mean and range of the seeds")
    figure.legend(loc="outside lower center", fontsize="small")
    figure.savefig(HERE / "lengths.png", dpi=150)


def markdown(rows: list[dict], quantity: str, digits: int) -> str:
    ticks = sorted({row["eval_len"] for row in rows})
    lines = ["| arm | " + " | ".join(f"{n}" for n in ticks) + " | verdict by seed |", "|---" * (len(ticks) + 2) + "|"]
    for arm, curve in gathered(rows, quantity).items():
        verdicts = ", ".join(row["verdict"] for row in rows if row["arm"] == arm and row["eval_len"] == ticks[0])
        cells = (
            f"{statistics.mean(seeds):.{digits}f} ({min(seeds):.{digits}f} to {max(seeds):.{digits}f})"
            for seeds in curve.values()
        )
        lines.append(f"| `{arm}` | " + " | ".join(cells) + f" | {verdicts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
