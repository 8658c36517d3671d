"""Runs of this question -> results.csv, recall.png and the README's table: accuracy by the number of pairs.

python experiments/recall/pairs.py experiments/runs/recall
"""

import csv
import statistics
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from archlab.comparison.arms import Arm, read_all, sort_into_arms
from archlab.evaluate.validation import held_out
from archlab.records.reader import Run
from archlab.runs.assembled import open_source
from archlab.runs.load import load_run
from archlab.train.runtime import runtime

HERE = Path(__file__).parent
PAIRS = (2, 4, 6, 8)
TOKENS_PER_PAIR = 4
"""A key and its value in the list, and a query and its answer; a separator besides, which the shifted targets make up for."""

PROBLEMS = 512


def main(directories: list[str]) -> None:
    arms, _ = sort_into_arms(read_all(directories)[0])
    rows = [row for arm in arms for run in arm.runs for row in measured(arm, run)]
    with (HERE / "results.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    draw(rows)
    print(markdown(rows))


def measured(arm: Arm, run: Run) -> list[dict]:
    cfg, decoder = load_run(run.directory)
    source, where = open_source(cfg), runtime("cpu", "fp32")
    seen = {n: held_out(decoder, source, where, TOKENS_PER_PAIR * n, PROBLEMS * TOKENS_PER_PAIR * n) for n in PAIRS}
    kept = run.summary["state_bytes"] + run.summary["kv_bytes_per_token"] * TOKENS_PER_PAIR * max(PAIRS)
    shared = {"arm": arm.label, "seed": run.seed, "parameters": run.summary["n_params"], "kept_bytes": kept}
    return [
        {**shared, "pairs": n, "token_accuracy": found.token_accuracy, "commit": run.summary["git"]["commit"]}
        for n, found in seen.items()
    ]


def by_arm(rows: list[dict]) -> dict[str, dict[int, list[float]]]:
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        found.setdefault(row["arm"], {}).setdefault(row["pairs"], []).append(row["token_accuracy"])
    return found


def draw(rows: list[dict]) -> None:
    """Mean over seeds as a line, each seed as a cross."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for arm, curve in by_arm(rows).items():
        (line,) = axes.plot(list(curve), [statistics.mean(seeds) for seeds in curve.values()], marker="o", label=arm)
        each = [(n, share) for n, seeds in curve.items() for share in seeds]
        axes.plot(*zip(*each, strict=True), marker="x", linestyle="", color=line.get_color(), alpha=0.6)
    axes.set_xticks(PAIRS)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("pairs of a key and a value")
    axes.set_ylabel("share of values recalled")
    axes.set_title("Recall by number of pairs: mean of the seeds, and each by itself")
    figure.legend(loc="outside lower center", fontsize="small")
    figure.savefig(HERE / "recall.png", dpi=150)


def markdown(rows: list[dict]) -> str:
    lines = [
        "| arm | parameters | kept at 32 tokens, bytes | " + " | ".join(f"{n} pairs" for n in PAIRS) + " |",
        "|---|" + "---:|" * (2 + len(PAIRS)),
    ]
    for arm, curve in by_arm(rows).items():
        about = next(row for row in rows if row["arm"] == arm)
        cells = (f"{statistics.mean(seeds):.3f} ({min(seeds):.3f} to {max(seeds):.3f})" for seeds in curve.values())
        lines.append(f"| `{arm}` | {about['parameters']:,} | {about['kept_bytes']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
