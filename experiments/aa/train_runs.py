"""One nano configuration at many seeds -> results.csv, a row per run as soon as it has ended.

    python experiments/aa/train_runs.py 80

Seeds that results.csv holds already are not run again. The script is for runs only; bench.py says what they show.
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
from archlab.evaluate.validation import held_out
from archlab.report.progress import track
from archlab.runs.assembled import open_source, section
from archlab.train.loop import train
from archlab.train.runtime import runtime
from archlab.train.settings import TrainSettings

RESULTS = Path(__file__).parent / "results.csv"
OVERRIDES = ("size=nano", "train.steps=60", "device=cpu")
COLUMNS = ("seed", "val_loss", "seconds")


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
        loss = val_loss(seed, source)
        with RESULTS.open("a") as file:
            file.write(f"{seed},{loss!r},{time.time() - started:.2f}\n")


def val_loss(seed: int, source) -> float:
    """What `archlab run` writes as val_loss, without the rest of a run: no probes, no other lengths, no directory."""
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
    return validation().loss()


if __name__ == "__main__":
    main(int(sys.argv[1]))
