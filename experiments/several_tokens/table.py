"""Runs of train.py -> results.csv, results.png and the README's tables: python experiments/several_tokens/table.py FOLDER"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import t

from archlab.comparison.arms import read_all

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    table = pd.DataFrame(rows(folder)).sort_values(["data", "equal", "form", "tokens", "seed"])
    table.to_csv(HERE / "results.csv", index=False)
    print("| data | equal | form | tokens | steps | val_loss | sd | against the next token alone | 95% interval |")
    print("|---|---|---|---:|---:|---:|---:|---:|---|")
    for (data, equal, form, tokens), runs in table.groupby(["data", "equal", "form", "tokens"]):
        alone = table[(table.data == data) & (table.tokens == 1)].set_index("seed").val_loss
        losses = runs.set_index("seed").val_loss
        said = [data, equal, form, str(tokens), str(runs.steps.iloc[0]), f"{losses.mean():.4f}", f"{losses.std():.4f}"]
        print("| " + " | ".join([*said, *(("", "") if tokens == 1 else in_words(losses - alone))]) + " |")
    draw(table)


def rows(folder: Path) -> list[dict]:
    return [
        {
            "data": data.name,
            "equal": kind.name,
            "form": run.config["mtp"]["form"] or "next alone",
            "tokens": run.config["mtp"]["tokens"] if run.config["mtp"]["form"] else 1,
            "steps": run.config["train"]["steps"],
            "seed": run.seed,
            "val_loss": run.summary["val_loss"],
            "train_flops_per_token": run.summary["train_flops_per_token"],
            "commit": run.summary["git"]["commit"],
        }
        for data in sorted(folder.iterdir())
        for kind in sorted(data.iterdir())
        for run in read_all([str(kind)])[0]
    ]


def in_words(differences: pd.Series) -> tuple[str, str]:
    """The mean of paired differences, and its interval by Student's t."""
    n, mean = len(differences), differences.mean()
    half = t.ppf(0.975, n - 1) * differences.std() / n**0.5
    return f"{mean:+.4f}", f"{mean - half:+.4f} to {mean + half:+.4f}"


def draw(table: pd.DataFrame) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (data, of_data) in zip(figure.subplots(1, 2), table.groupby("data"), strict=True):
        names = []
        for place, ((equal, form, tokens), runs) in enumerate(of_data.groupby(["equal", "form", "tokens"])):
            names.append(form if tokens == 1 else f"{form} {tokens}\nequal {equal}")
            axes.plot([place] * len(runs), runs.val_loss, "o", alpha=0.7)
            axes.plot([place - 0.3, place + 0.3], [runs.val_loss.mean()] * 2, color="black")
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axes.set_title(f"data={data}")
        axes.set_ylabel("validation loss of the next token (nats)")
    figure.savefig(HERE / "results.png", dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
