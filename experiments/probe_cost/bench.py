"""What probing costs: the same steps with it and without, in turn, in one process; the ratio of the times.

    python experiments/probe_cost/bench.py [overrides]

Each round trains `every` steps, so that the probed arm looks once a round as it does by default (the first and the last
step of a run are always looked at, and are left out by starting each round in the middle of a long run). Looks and the
recorder, which measures a little at every step, are timed each on its own.
"""

import itertools
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import archlab
from archlab.probe.look import Look
from archlab.probe.recorder import Recorder
from archlab.runs.lab import open_source, section
from archlab.train.loop import backward
from archlab.train.optimizer import adamw
from archlab.train.runtime import runtime
from archlab.train.settings import TrainSettings

ROUNDS = 16


def main(overrides: list[str]) -> None:
    cfg = archlab.compose(*overrides)
    settings, where, source = section(cfg, "train", TrainSettings), runtime(cfg.device, cfg.precision), open_source(cfg)
    settings = replace(settings, accumulate=1)
    decoder = archlab.build(cfg).to(where.device)
    optimizer, scaler = adamw(decoder, settings), where.scaler()
    batches = [source.train(cfg.seed, step, settings.batch_size, settings.train_len) for step in range(cfg.probe.every)]

    def steps(looking: bool, recording: bool) -> float:
        recorder, losses = Recorder(list(decoder.layers) if recording else []), []
        start = time.perf_counter()
        for i, batch in enumerate(batches):
            look = Look(decoder) if looking and i == 0 else None
            optimizer.zero_grad(set_to_none=True)
            with recorder.forward():
                losses.append(backward(decoder, batch, 1, where, scaler, look))
            recorder.gradients()
            if look:
                look.gradients()
            with look.update() if look else nullcontext():
                optimizer.step()
            recorder.step_done(losses, look.by_layer() if look else None)
        return time.perf_counter() - start

    steps(True, True)
    for name, arm in (("looks", (True, False)), ("recorder", (False, True))):
        orders = itertools.islice(itertools.cycle((True, False)), ROUNDS)
        pairs = [
            (steps(*arm), steps(False, False)) if first else (steps(False, False), steps(*arm))[::-1]
            for first in orders
        ]
        ratios = sorted(with_it / without for with_it, without in pairs)
        median = statistics.median(ratios)
        print(f"{name}: time with / without = {median:.3f} (rounds {ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main(sys.argv[1:])
