"""Several things timed in one process, in turns: whatever disturbs the machine disturbs all of them alike."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.benchmark import Timer

Work = Callable[[], Any]
Turns = dict[str, list[float]]
"""By name, seconds a call in each round."""

BLOCK = 0.1
"""Seconds that a block of calls takes at least: many times what a clock or one wake-up of the scheduler is off by."""


def in_turns(
    work: Mapping[str, Work], rounds: int, tick: Callable[[], None] = lambda: None, block: float = BLOCK
) -> Turns:
    """Seconds that a call of each takes, by round; `tick` is called after each round.

    A round has a block of calls of each, in turns: first to last, and in the next round last to first, so that a drift
    falls on all alike. torch's own Timer waits for a CUDA device before it looks at the clock, and begins each block
    with two calls that do not count, in which caches are filled again after the others' turn.
    """
    timers = {name: timer(call) for name, call in work.items()}
    calls = {name: max(1, math.ceil(block / timed.timeit(1).mean)) for name, timed in timers.items()}
    seconds: Turns = {name: [] for name in timers}
    for number in range(rounds):
        for name in list(timers) if number % 2 == 0 else reversed(timers):
            seconds[name].append(timers[name].timeit(calls[name]).mean)
        tick()
    return seconds


def timer(call: Work) -> Timer:
    """With as many threads as the process has: by itself it takes one."""
    return Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
