"""Runs of this question -> balance.csv, balance.png and the README's table: how evenly the experts are used.

python experiments/experts/balance.py experiments/runs/experts
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import archlab
from archlab.comparison.arms import read_all, sort_into_arms

HERE = Path(__file__).parent
SEEN = {
    "max_load": "largest load of an expert\n(parts of an even one)",
    "min_load": "smallest load",
    "router_entropy": "entropy of the scores (nats)",
}
LAST = 5
"""Probed steps that the table takes the mean of."""


def main(directories: list[str]) -> None:
    arms, _ = sort_into_arms(read_all(directories)[0])
    routed = {arm.label: [archlab.load(run.directory).layers() for run in arm.runs] for arm in arms}
    routed = {label: looks for label, looks in routed.items() if "max_load" in looks[0]}
    table = pd.concat(
        {label: pd.concat(dict(enumerate(looks)), names=["seed"]) for label, looks in routed.items()}, names=["arm"]
    )[list(SEEN)]
    curves = table.groupby(["arm", "step"], sort=False).mean()
    curves.to_csv(HERE / "balance.csv")
    draw(curves)
    print("| arm | " + " | ".join(SEEN) + " |", "|---|" + "---:|" * len(SEEN), sep="\n")
    for label in routed:
        late = curves.loc[label].tail(LAST).mean()
        print(f"| `{label}` | " + " | ".join(f"{late[name]:.2f}" for name in SEEN) + " |")


def draw(curves: pd.DataFrame) -> None:
    """Mean over layers and seeds by step."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, title) in zip(figure.subplots(1, len(SEEN)), SEEN.items(), strict=True):
        for arm, curve in curves.groupby("arm", sort=False):
            axes.plot(curve.index.get_level_values("step"), curve[name], label=arm)
        axes.set_xlabel("step")
        axes.set_title(title, fontsize="medium")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    figure.savefig(HERE / "balance.png", dpi=150)


if __name__ == "__main__":
    main(sys.argv[1:])
