"""How fast this machine is, tried before anyone is told how long claims will take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from omegaconf import DictConfig

import archlab
from archlab.claim.jobs import Job, RunJob, seconds
from archlab.config.assemble import build
from archlab.runs.expected import seconds_of_a_step

TRIED = 2
"""Steps that are timed, after one that is not."""

LONGEST_START = 30.0
"""Seconds: a process that is older has not only been starting."""


@dataclass(frozen=True)
class Pace:
    """What a worker takes to start, in seconds, and how many times as long a job takes as on the machine it was estimated for."""

    start: float
    factor: float

    def estimate(self, jobs: Sequence[Job], workers: int) -> float:
        """For all of these jobs, so many at a time."""
        each = [seconds(job) * self.factor for job in jobs]
        return self.start + max(sum(each) / workers, max(each))


def since_start() -> float:
    """What importing everything took, as it will every worker."""
    return min(time.time() - archlab.STARTED, LONGEST_START)


def measured(jobs: Sequence[Job], threads: int, start: float) -> Pace:
    """The pace at which the cheapest of the runs among these jobs trains here; that of the estimates where there is none."""
    runs = [job for job in jobs if isinstance(job, RunJob)]
    if not runs:
        return Pace(start, 1.0)
    cfg = min(runs, key=seconds).cfg
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        took = a_step(cfg)
    finally:
        torch.set_num_threads(before)
    return Pace(start, took / seconds_of_a_step(cfg))


def a_step(cfg: DictConfig) -> float:
    """Seconds of a forward and a backward pass over one batch, whatever is in it."""
    decoder, size = build(cfg), (cfg.train.batch_size // cfg.train.accumulate, cfg.train.train_len)
    tokens = torch.zeros(size, dtype=torch.long)
    prefix = 1 if decoder.mask.uses_prefix else None
    for step in range(1 + TRIED):
        if step == 1:
            since = time.perf_counter()
        for _ in range(cfg.train.accumulate):
            decoder(tokens, prefix).square().mean().backward()
    return (time.perf_counter() - since) / TRIED
