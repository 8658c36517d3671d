"""What probing costs: the same steps with probes and without, in turn, in one process; the ratio of the times.

    python experiments/probe_cost/bench.py [overrides]

Each round trains `every` steps, so that the probed arm looks once a round as it does by default (the first and the last
step of a run are always looked at, and are left out by starting each round in the middle of a long run).
"""

import itertools
import statistics
import sys
import time
from dataclasses import replace

import archlab
from archlab.lab import open_source, section
from archlab.probe.look import Look
from archlab.train.loop import backward
from archlab.train.optimizer import adamw
from archlab.train.precision import machine
from archlab.train.settings import TrainSettings

ROUNDS = 12


def main(overrides: list[str]) -> None:
    cfg = archlab.compose(*overrides)
    settings, where, source = section(cfg, "train", TrainSettings), machine(cfg.device, cfg.precision), open_source(cfg)
    settings = replace(settings, accumulate=1)
    decoder = archlab.build(cfg).to(where.device)
    optimizer, scaler = adamw(decoder, settings), where.scaler()
    batches = [source.train(cfg.seed, step, settings.batch_size, settings.train_len) for step in range(cfg.probe.every)]

    def steps(probing: bool) -> float:
        start = time.perf_counter()
        for i, batch in enumerate(batches):
            look = Look(decoder) if probing and i == 0 else None
            optimizer.zero_grad(set_to_none=True)
            backward(decoder, batch, 1, where, scaler, look)
            if look:
                look.gradients()
                with look.update():
                    optimizer.step()
                look.by_layer()
            else:
                optimizer.step()
        return time.perf_counter() - start

    steps(True)
    pairs = [(steps(first), steps(not first), first) for first in itertools.islice(itertools.cycle((True, False)), ROUNDS)]
    ratios = [(a / b) if first else (b / a) for a, b, first in pairs]
    low, median, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"every {cfg.probe.every} steps: time with probes / without = {median:.3f} (rounds {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main(sys.argv[1:])
