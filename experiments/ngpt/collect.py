"""Runs -> results.csv, ngpt.png and the README's tables: loss by arm, steps, learning rate and seed.

python experiments/ngpt/collect.py experiments/runs/ngpt
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from archlab.comparison.arms import read_all

HERE = Path(__file__).parent
TUNING_SEED = 9
ARMS = {"pre": "Pre-LN", "ngpt": "nGPT"}


def main(directories: list[str]) -> None:
    rows = [
        {
            "arm": ARMS[run.config["choices"]["residual"]],
            "steps": run.config["train"]["steps"],
            "lr": float(run.config["train"]["lr"]),
            "alpha_start": run.config["residual"].get("start"),
            "seed": run.seed,
            "val_loss": run.summary["val_loss"],
            "commit": run.summary["git"]["commit"],
        }
        for directory in directories
        for run in read_all([str(path.parent.parent) for path in Path(directory).rglob("summary.json")])[0]
    ]
    table = pd.DataFrame(rows).drop_duplicates(["arm", "steps", "lr", "alpha_start", "seed"])
    table = table.sort_values(["steps", "arm", "alpha_start", "lr", "seed"])
    table.to_csv(HERE / "results.csv", index=False)
    main_arms = table[table.alpha_start != 0.5]
    tuning = main_arms[main_arms.seed == TUNING_SEED]
    print(tuning.pivot(index=["steps", "arm"], columns="lr", values="val_loss").round(4).to_string(), "\n")
    seeds = main_arms[main_arms.seed != TUNING_SEED].groupby(["steps", "arm", "lr"]).val_loss
    print(seeds.agg(["mean", "std", "count"]).round(4).to_string(), "\n")
    print(seeds_side_by_side(main_arms[main_arms.seed != TUNING_SEED]), "\n")
    best = tuning.loc[tuning.groupby(["steps", "arm"]).val_loss.idxmin()]
    for steps in sorted(best.steps.unique()):
        reached = steps_to_reach(best[best.arm == "Pre-LN"], best[(best.arm == "nGPT") & (best.steps == steps)])
        print(f"nGPT's loss after {steps} steps is Pre-LN's after {reached:.0f}: {reached / steps:.2f} times as many")
    draw(tuning, best)


def seeds_side_by_side(seeds: pd.DataFrame) -> str:
    """By number of steps and seed, nGPT's loss less Pre-LN's, each arm at the rate with the lower mean over seeds."""
    means = seeds.groupby(["steps", "arm", "lr"], as_index=False).val_loss.mean()
    best = means.loc[means.groupby(["steps", "arm"]).val_loss.idxmin(), ["steps", "arm", "lr"]]
    wide = seeds.merge(best).pivot(index=["steps", "seed"], columns="arm", values="val_loss")
    return wide.assign(difference=wide["nGPT"] - wide["Pre-LN"]).round(4).to_string()


def steps_to_reach(curve: pd.DataFrame, other: pd.DataFrame) -> float:
    """After how many steps a curve of losses comes to this one, by a line through loss and log of steps, also beyond it."""
    slope, start = np.polyfit(curve.val_loss, np.log(curve.steps), 1)
    return float(np.exp(slope * other.val_loss.iloc[0] + start))


def draw(tuning: pd.DataFrame, best: pd.DataFrame) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    by_rate, by_steps = figure.subplots(1, 2, sharey=True)
    for (arm, steps), curve in tuning.groupby(["arm", "steps"]):
        line = "-" if arm == "nGPT" else "--"
        by_rate.plot(curve.lr, curve.val_loss, line, marker="o", label=f"{arm}, {steps} steps")
    for arm, curve in best.groupby("arm"):
        by_steps.plot(curve.steps, curve.val_loss, "-" if arm == "nGPT" else "--", marker="o", label=arm)
    by_rate.set(xscale="log", xlabel="learning rate", ylabel="validation loss (nats per token)")
    by_steps.set(xscale="log", xlabel="steps, each run with a schedule of its own")
    for axes, ticks in ((by_rate, sorted(tuning.lr.unique())), (by_steps, sorted(best.steps.unique()))):
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    by_steps.set_title("each at its best rate")
    by_rate.set_title("the tuning seed's loss by rate")
    by_rate.legend(fontsize=7)
    by_steps.legend()
    figure.savefig(HERE / "ngpt.png", dpi=150)


if __name__ == "__main__":
    main(sys.argv[1:])
