"""Runs that cross seeds of the initial weights with seeds of the data -> results.csv and the README's tables.

python experiments/variance/components.py experiments/runs/variance
"""

import csv
import itertools
import sys
from pathlib import Path

import numpy as np

from archlab.comparison.text import over_text
from archlab.comparison.variance import components
from archlab.evaluate.validation import held_out
from archlab.records.reader import Run, find, read_run
from archlab.runs.assembled import machine_of, open_source
from archlab.runs.load import load_run

HERE = Path(__file__).parent
SEEDS = range(4)


def late_ratio(run: Run) -> float:
    """Of the loss on the same late tokens, at four times the training length to that at it."""
    return next(at["late_ratio"] for at in run.summary["length"] if at["eval_len"] == 4 * run.summary["train_len"])


MEASURED = {
    ("text", "val_loss"): lambda run: run.summary["val_loss"],
    ("text", "late_ratio@4"): late_ratio,
    ("python", "val_loss"): lambda run: run.summary["val_loss"],
    ("python", "late_ratio@4"): late_ratio,
    ("recall", "val_loss"): lambda run: run.summary["val_loss"],
    ("recall", "exact_match"): lambda run: run.summary["length"][0]["exact_match"],
}
"""By data and name, what is read off a run."""


TEXTS = ("text", "python")

NAMES = ["data", "measure", "seed", "data_seed", "value"]


def main(directories: list[str]) -> None:
    runs = {}
    for run in map(read_run, find(directories)):
        runs[run.summary["choices"]["data"], run.config["seed"], run.config["data_seed"]] = run
    there = {data for data, *_ in runs}
    rows = [one for one in kept() if one["data"] not in there]  # of data whose runs are not given
    for (data, name), read in MEASURED.items():
        if data in there:
            values = [[read(runs[data, i, j]) for j in SEEDS] for i in SEEDS]
            cells = [(data, name, i, j, repr(values[i][j])) for i in SEEDS for j in SEEDS]
            rows += [dict(zip(NAMES, cell, strict=True)) for cell in cells]
            print(row(data, name, values))
    with (HERE / "results.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, NAMES, lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(rows, key=lambda one: list(MEASURED).index((one["data"], one["measure"]))))
    for data in TEXTS:
        if data in there:
            print(text_alone(data, [runs[data, i, 0] for i in SEEDS]))


def kept() -> list[dict[str, str]]:
    """What results.csv holds."""
    with (HERE / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def row(data: str, name: str, values: list[list[float]]) -> str:
    found = components(values)
    cells = [f"{data}, {name}", f"{found.mean:.4f}", f"{found.total**0.5:.4f}"]
    variances = (found.rows, found.columns, found.both)
    cells += [f"{round(100 * variance / found.total)}%" if found.total else "n/a" for variance in variances]
    cells += [f"{low:.2g} to {high:.2g}" for low, high in (found.rows_over_both, found.columns_over_both)]
    return f"| {' | '.join(cells)} |"


def text_alone(data: str, runs: list[Run]) -> str:
    """How uncertain the difference of two runs is for want of text: half the 95% interval of each pair."""
    losses = [windows(run) for run in runs]
    pairs = [over_text(a, b) for a, b in itertools.combinations(losses, 2)]
    alone = [over_text(a, b, block=1) for a, b in itertools.combinations(losses, 2)]
    width = lambda found: np.mean([(one.interval[1] - one.interval[0]) / 2 for one in found])  # noqa: E731
    differences = np.mean([abs(one.effect) for one in pairs])
    return (
        f"{data}: {len(losses[0])} windows, blocks of 8: +-{width(pairs):.4f} (windows by themselves: +-{width(alone):.4f});"
        f" mean difference of two seeds {differences:.4f}"
    )


def windows(run: Run) -> np.ndarray:
    """The mean loss of each held-out window."""
    cfg, decoder = load_run(run.directory)
    seen = held_out(decoder.eval(), open_source(cfg), machine_of(cfg), cfg.train.train_len, cfg.eval.tokens)
    return seen.nats.double().mean(dim=1).numpy()


if __name__ == "__main__":
    main(sys.argv[1:])
