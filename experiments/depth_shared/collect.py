"""Runs -> results.csv, depth_shared.png and the README's tables.

python experiments/depth_shared/collect.py experiments/runs/depth_rates experiments/runs/depth_shared
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from archlab.comparison.arms import read_all

HERE = Path(__file__).parent
TUNING = 9
LOOPED, FOUR = "2 layers, looped twice", "4 layers"
PAIRS = [(LOOPED, "2 layers"), (LOOPED, FOUR), (LOOPED, "2 layers, 375 steps"), ("4 layers, U-net skips", FOUR)]


def arm(config: dict) -> str:
    looped = ", looped twice" if config["loop"]["times"] else ""
    skips = ", U-net skips" if config["skips"] else ""
    longer = f", {config['train']['steps']} steps" if config["train"]["steps"] != 200 else ""
    return f"{config['size']['n_layers']} layers{looped}{skips}{longer}"


def main(directories: list[str]) -> None:
    rows = [
        {
            "arm": arm(run.config),
            "lr": float(run.config["train"]["lr"]),
            "seed": run.seed,
            "val_loss": run.summary["val_loss"],
            "n_params": run.summary["n_params"],
            "flops_per_token": run.summary["flops_per_token"],
            "commit": run.summary["git"]["commit"],
        }
        for run in read_all(directories)[0]
    ]
    table = pd.DataFrame(rows).sort_values(["arm", "lr", "seed"])
    table.to_csv(HERE / "results.csv", index=False)
    print(table[table.seed == TUNING].pivot(index="arm", columns="lr", values="val_loss").round(4).to_string())
    measured = table[table.seed != TUNING]
    print(measured.groupby("arm").val_loss.agg(["mean", "std", "count"]).round(4).to_string())
    by_seed = measured.pivot(index="seed", columns="arm", values="val_loss")
    draw(by_seed, [(ours, theirs, *interval(by_seed[ours] - by_seed[theirs])) for ours, theirs in PAIRS])


def interval(differences: pd.Series) -> tuple[float, float]:
    """The mean of paired differences, and half its 95% interval by Student's t."""
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std() / len(differences) ** 0.5
    return differences.mean(), half


def draw(by_seed: pd.DataFrame, effects: list[tuple[str, str, float, float]]) -> None:
    figure = Figure(figsize=(7, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, (ours, theirs, mean, half) in enumerate(reversed(effects)):
        axes.plot(by_seed[ours] - by_seed[theirs], [row + 0.12] * len(by_seed), "o", color="grey", markersize=4)
        axes.errorbar(mean, row, xerr=half, fmt="s", color="#0072B2", capsize=4)
    for ours, theirs, mean, half in effects:
        print(f"| {ours} | {theirs} | {mean:+.4f} | {mean - half:+.4f} to {mean + half:+.4f} |")
    axes.set_yticks(range(len(effects)), [f"{ours}\nagainst {theirs}" for ours, theirs, *_ in reversed(effects)])
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xlabel("difference of validation losses (nats per token), below 0: better")
    axes.set_title("Mean and 95% interval of each pair; grey: a seed")
    figure.savefig(HERE / "depth_shared.png", dpi=150)


if __name__ == "__main__":
    main(sys.argv[1:])
