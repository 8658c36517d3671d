"""One nano configuration at many seeds -> lengths.csv, a row per run as soon as it has ended.

    python experiments/aa/train_runs.py 48

Seeds that lengths.csv holds already are not run again. The script is for runs only; bench.py says what they show. results.csv, the
validation losses of 80 such runs, is from an earlier version of this script, which looked at no other length.
"""

import csv
import sys
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from archlab.config.assemble import build
from archlab.config.compose import compose
from archlab.evaluate.length import by_length
from archlab.evaluate.settings import EvalSettings
from archlab.evaluate.validation import held_out
from archlab.report.progress import track
from archlab.runs.assembled import open_source, section
from archlab.train.loop import train
from archlab.train.runtime import runtime
from archlab.train.settings import TrainSettings

RESULTS = Path(__file__).parent / "lengths.csv"
OVERRIDES = ("size=nano", "train.steps=60", "device=cpu")
COLUMNS = ("seed", "val_loss", "late_ratio", "seconds")


def main(n_seeds: int) -> None:
    torch.set_num_threads(1)
    done = set()
    if RESULTS.exists():
        done = {int(row["seed"]) for row in csv.DictReader(RESULTS.open())}
    else:
        RESULTS.write_text(",".join(COLUMNS) + "\n")
    source = open_source(compose(*OVERRIDES))
    missing = [seed for seed in range(n_seeds) if seed not in done]
    for seed in track(missing, "seeds", len(missing), Console(stderr=True)):
        started = time.time()
        loss, ratio = measured(seed, source)
        with RESULTS.open("a") as file:
            file.write(f"{seed},{loss!r},{ratio!r},{time.time() - started:.2f}\n")


def measured(seed: int, source) -> tuple[float, float]:
    """What `archlab run` writes as val_loss and late_ratio@4, without the rest of a run: no probes, no directory."""
    cfg = compose(*OVERRIDES, f"seed={seed}")
    where, settings = runtime(cfg.device, cfg.precision), section(cfg, "train", TrainSettings)
    decoder = build(cfg).to(where.device)
    validation = partial(held_out, decoder, source, where, settings.train_len, cfg.eval.tokens)
    train(
        decoder,
        source,
        settings,
        where,
        seed=seed,
        probe_every=None,
        validate=lambda: validation().loss(),
        report=lambda record: None,
        tick=lambda *_: None,
    )
    lengths, _ = by_length(decoder, source, where, section(cfg, "eval", EvalSettings), settings.train_len, (1, 4))
    return validation().loss(), lengths[-1]["late_ratio"]


if __name__ == "__main__":
    main(int(sys.argv[1]))
