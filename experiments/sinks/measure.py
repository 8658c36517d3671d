"""Runs of this question -> results.csv, sinks.png and the README's table: where attention goes, how large activations are.

python experiments/sinks/measure.py experiments/runs/sinks

Each run's weights read 64 held-out sequences of the training length, which begin anywhere in the text. By layer:

    first_token_share   mean weight that queries give the sequence's first token; an even share would be `even`
    first_norm          norm of the residual stream after the layer at the first token, in parts of the median over the others
    largest             largest absolute feature of the residual stream after the layer, in parts of the median one
"""

import csv
import statistics
import sys
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from archlab.comparison.arms import Arm, read_all, sort_into_arms
from archlab.evaluate.sinks import SEQUENCES, first_token_shares
from archlab.records.reader import Run
from archlab.runs.assembled import machine_of, open_source
from archlab.runs.load import load_run

HERE = Path(__file__).parent
SEEN = {
    "first_token_share": "weight on the first token",
    "first_norm": "norm at the first token\n(parts of the others' median)",
    "largest": "largest activation\n(parts of the median)",
}


def main(directories: list[str]) -> None:
    arms, _ = sort_into_arms(read_all(directories)[0])
    rows = [row for arm in arms for run in arm.runs for row in measured(arm, run)]
    with (HERE / "results.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    draw(rows)
    print(markdown(rows))


@torch.no_grad()
def measured(arm: Arm, run: Run) -> list[dict]:
    cfg, decoder = load_run(run.directory)
    decoder.eval()
    seq_len = cfg.train.train_len
    source = open_source(cfg)
    batch, *_ = source.validation(seq_len, SEQUENCES * seq_len, SEQUENCES)
    tokens, streams = batch.tokens[:, :-1], []
    hooks = [layer.register_forward_hook(lambda _, __, out: streams.append(out)) for layer in decoder.layers]
    decoder(tokens)
    for hook in hooks:
        hook.remove()
    shares = first_token_shares(decoder, source, machine_of(cfg), seq_len, SEQUENCES * seq_len)
    even = sum(1 / n for n in range(1, seq_len + 1)) / seq_len
    return [
        {"arm": arm.label, "seed": run.seed, "layer": depth, "first_token_share": share, "even": even}
        | sizes(x)
        | {"commit": run.summary["git"]["commit"]}
        for depth, (share, x) in enumerate(zip(shares, streams, strict=True))
    ]


def sizes(x: Tensor) -> dict[str, float]:
    norms = x.norm(dim=-1)
    features = x.abs()
    return {
        "first_norm": float(norms[:, 0].mean() / norms[:, 1:].median()),
        "largest": float(features.max() / features.median()),
    }


def draw(rows: list[dict]) -> None:
    """Mean over seeds by layer, and the range of the seeds as a band."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    arms, depths = (list(dict.fromkeys(row[name] for row in rows)) for name in ("arm", "layer"))
    for axes, (name, title) in zip(figure.subplots(1, len(SEEN)), SEEN.items(), strict=True):
        for arm in arms:
            seeds = [[row[name] for row in rows if row["arm"] == arm and row["layer"] == depth] for depth in depths]
            (line,) = axes.plot(depths, [statistics.mean(of) for of in seeds], marker="o", label=arm)
            axes.fill_between(depths, list(map(min, seeds)), list(map(max, seeds)), color=line.get_color(), alpha=0.2)
        axes.set_xticks(depths)
        axes.set_xlabel("layer")
        axes.set_title(title, fontsize="medium")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    figure.savefig(HERE / "sinks.png", dpi=150)


def markdown(rows: list[dict]) -> str:
    depths = sorted({row["layer"] for row in rows})
    lines = [
        "| arm | quantity | " + " | ".join(f"layer {depth}" for depth in depths) + " |",
        "|---|---|" + "---:|" * len(depths),
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        for name in SEEN:
            seeds = ([row[name] for row in rows if row["arm"] == arm and row["layer"] == depth] for depth in depths)
            cells = (f"{statistics.mean(of):.3f} ({min(of):.3f} to {max(of):.3f})" for of in seeds)
            lines.append(f"| `{arm}` | {name} | " + " | ".join(cells) + " |")
    lines.append(f"\nAn even share is {rows[0]['even']:.3f}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
