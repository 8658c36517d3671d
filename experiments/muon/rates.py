"""Runs of the tuning seed -> rates.csv, rates.png and the README's first table: loss by optimizer and learning rate.

python experiments/muon/rates.py experiments/runs/muon_rates
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from archlab.comparison.arms import read_all

HERE = Path(__file__).parent


def main(directories: list[str]) -> None:
    rows = [
        {
            "optimizer": run.config["choices"]["optimizer"],
            "lr": float(run.config["train"]["lr"]),
            "seed": run.seed,
            "val_loss": run.summary["val_loss"],
            "commit": run.summary["git"]["commit"],
        }
        for run in read_all(directories)[0]
    ]
    table = pd.DataFrame(rows).sort_values(["optimizer", "lr"])
    table.to_csv(HERE / "rates.csv", index=False)
    draw(table)
    by_rate = table.pivot(index="optimizer", columns="lr", values="val_loss")
    print(
        "| optimizer | " + " | ".join(f"{lr:g}" for lr in by_rate) + " |",
        "|---" * (len(by_rate.columns) + 1) + "|",
        sep="\n",
    )
    for optimizer, losses in by_rate.iterrows():
        print(f"| {optimizer} | " + " | ".join(f"{loss:.4f}" for loss in losses) + " |")


def draw(table: pd.DataFrame) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for optimizer, curve in table.groupby("optimizer"):
        axes.plot(curve.lr, curve.val_loss, marker="o", label=optimizer)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("validation loss (nats per token)")
    axes.set_title("The tuning seed's loss by learning rate")
    axes.legend()
    figure.savefig(HERE / "rates.png", dpi=150)


if __name__ == "__main__":
    main(sys.argv[1:])
