"""What probing costs: the same steps with it and without, in turn, in one process; the ratio of the times.

    python experiments/probe_cost/bench.py [overrides]

A round is `probe.every` steps of one long run, so that the probed arm looks closely at one of them, as it does by
default. The first step and the last of a run are always looked at closely: the first is in a round that is not timed,
the last is never reached. What is seen cheaply at every step is also timed by itself, without the close look.
"""

import itertools
import statistics
import sys
import time
from dataclasses import replace

import archlab
from archlab.runs.assembled import open_source, section
from archlab.train.observers import Recording
from archlab.train.runtime import runtime
from archlab.train.settings import TrainSettings
from archlab.train.state import TrainState
from archlab.train.step import make_step, read

ROUNDS = 16
WITHOUT = "without"


def main(overrides: list[str]) -> None:
    cfg = archlab.compose(*overrides)
    machine, source, every = runtime(cfg.device, cfg.precision), open_source(cfg), cfg.probe.every
    settings = replace(section(cfg, "train", TrainSettings), accumulate=1, steps=1000 * every)
    decoder = archlab.build(cfg).to(machine.device).train()
    state = TrainState.begin(decoder, settings, machine, cfg.seed)
    batches = [source.train(cfg.seed, step, settings.batch_size, settings.train_len) for step in range(every)]
    probed = {WITHOUT: None, "probing": every, "at every step alone": settings.steps}
    steps = {name: make_step(decoder, settings, machine, probe_every) for name, probe_every in probed.items()}

    def seconds(name: str) -> float:
        start = time.perf_counter()
        seen = read([steps[name](state, batch) for batch in batches])
        state.losses += [step.loss for step in seen]
        Recording().see(state, seen)
        return time.perf_counter() - start

    for name in steps:
        seconds(name)
    for name in (name for name in steps if name != WITHOUT):
        ratios = []
        for order in itertools.islice(itertools.cycle(((name, WITHOUT), (WITHOUT, name))), ROUNDS):
            spent = {arm: seconds(arm) for arm in order}
            ratios.append(spent[name] / spent[WITHOUT])
        median = statistics.median(ratios)
        print(f"{name}: time with / without = {median:.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main(sys.argv[1:])
