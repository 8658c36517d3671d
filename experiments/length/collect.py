"""Runs of this question -> results.csv, lengths.png and the README's table.

python experiments/length/collect.py experiments/runs/*pos=*
"""

import csv
import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from archlab.evaluate.length import verdict

HERE = Path(__file__).parent
Curves = dict[str, dict[int, list[float]]]


def main(directories: list[str]) -> None:
    rows = [row for directory in sorted(directories) for row in lengths(Path(directory))]
    with (HERE / "results.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    draw(gather(rows, "loss_last"), rows[0]["train_len"])
    print(markdown(gather(rows, "loss_last"), rows, 3), markdown(gather(rows, "late_ratio"), rows, 4), sep="\n\n")


def gather(rows: list[dict], quantity: str) -> Curves:
    by_seed: Curves = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_seed[row["pos"]][row["eval_len"]].append(row[quantity])
    return by_seed


def lengths(directory: Path) -> list[dict]:
    summary = json.loads((directory / "summary.json").read_text())
    shared = {"pos": summary["choices"]["pos"], "seed": summary["seed"], "train_len": summary["train_len"]}
    said = verdict(summary["length"], summary["train_len"], exact=False, unigram=summary.get("unigram_loss", math.inf))
    return [
        {**shared, **{key: record[key] for key in ("eval_len", "protocol", "loss", "loss_last", "late_ratio")}}
        | {"verdict": said["verdict"], "commit": summary["git"]["commit"], "corpus_sha256": summary["corpus_sha256"]}
        for record in summary["length"]
    ]


def draw(by_seed: Curves, train_len: int) -> None:
    """Mean over seeds, and the range of the seeds as a band."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for pos, curve in by_seed.items():
        (line,) = axes.plot(curve.keys(), [statistics.mean(seeds) for seeds in curve.values()], marker="o", label=pos)
        low, high = ([pick(seeds) for seeds in curve.values()] for pick in (min, max))
        axes.fill_between(list(curve), low, high, color=line.get_color(), alpha=0.25)
    ticks = list(next(iter(by_seed.values())))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{n:,}\n{n // train_len}x" for n in ticks])
    axes.axvline(train_len, color="gray", linestyle="--", linewidth=1)
    axes.set_xlabel("evaluation length (tokens; trained at the dashed line)")
    axes.set_ylabel(f"loss over the last {train_len // 2} positions\n(nats per token)")
    axes.set_title("Held-out loss by length and position scheme: mean and range of the seeds")
    axes.legend()
    figure.savefig(HERE / "lengths.png", dpi=150)


def markdown(by_seed: Curves, rows: list[dict], digits: int) -> str:
    ticks = list(next(iter(by_seed.values())))
    lines = ["| pos | " + " | ".join(f"{n}" for n in ticks) + " | verdict by seed |", "|---" * (len(ticks) + 2) + "|"]
    for pos, curve in by_seed.items():
        verdicts = ", ".join(row["verdict"] for row in rows if row["pos"] == pos and row["eval_len"] == ticks[0])
        cells = (
            f"{statistics.mean(seeds):.{digits}f} ({min(seeds):.{digits}f} to {max(seeds):.{digits}f})"
            for seeds in curve.values()
        )
        lines.append(f"| {pos} | " + " | ".join(cells) + f" | {verdicts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
