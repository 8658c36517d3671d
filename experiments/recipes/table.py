"""One table of the sweeps whose folders are given: what each arm came to against the first, and the rate that was found for it.

python experiments/recipes/table.py experiments/runs/recipes
"""

import json
import sys
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import OmegaConf

HERE = Path(__file__).parent


def rate_of(arm: str, sweep: Path) -> float:
    """The learning rate that was found for the arm, which is one for all of its seeds."""
    words = set(arm.split())
    runs = [file.parent for file in sweep.glob("*/summary.json")]
    tuned = [
        json.loads((run / "summary.json").read_text())["tuned"]
        for run in runs
        if words <= set(OmegaConf.load(run / "overrides.yaml"))
    ]
    (rate,) = {found["lr"] for found in tuned}
    assert not any(found["edge"] for found in tuned), f"{arm}: the best rate lies at the edge of what was tried"
    return rate


def arms_of(sweep: Path) -> pd.DataFrame:
    """The rows of the sweep's latest comparison."""
    table = pd.read_csv(max(sweep.glob("comparisons/*/comparison.csv")))
    table.insert(0, "question", sweep.name)
    table["rate"] = [rate_of(arm, sweep) for arm in table["label"]]
    columns = "question label mean sd n rate effect interval_low interval_high e p verdict".split()
    return table[columns].rename(columns={"label": "arm", "mean": "val_loss", "n": "seeds"})


def draw(table: pd.DataFrame) -> None:
    """Effects against each question's first arm with their intervals."""
    rows = table.dropna(subset=["effect"]).iloc[::-1]
    figure = Figure(figsize=(7, 0.5 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    width = [rows["effect"] - rows["interval_low"], rows["interval_high"] - rows["effect"]]
    axes.errorbar(rows["effect"], rows["arm"], xerr=width, fmt="o", capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("validation loss against the first arm of the question, nats per token")
    FigureCanvasAgg(figure).print_png(HERE / "effects.png")


if __name__ == "__main__":
    table = pd.concat([arms_of(sweep) for sweep in sorted(Path(sys.argv[1]).iterdir())], ignore_index=True)
    table.to_csv(HERE / "results.csv", index=False)
    draw(table)
    print("| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|", sep="\n")
    for row in table.astype(object).where(table.notna(), "").itertuples(index=False):
        print("| " + " | ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row) + " |")
