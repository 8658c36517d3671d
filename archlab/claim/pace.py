"""How fast this machine is, tried before anyone is told how long claims will take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

import archlab
from archlab.claim.jobs import STEPS_OF, Job, Measurement, PackJob, RunJob, seconds
from archlab.config.assemble import build
from archlab.runs.assembled import machine_of, open_source, settings_of
from archlab.runs.expected import seconds_of_a_step
from archlab.runs.workers import makespan, pool_of, unless_stopped
from archlab.train.clock import elapsed
from archlab.train.state import TrainState
from archlab.train.step import make_step

TRIED = 2
"""Steps that are timed, after one that is not."""

KINDS = 4
"""Kinds of runs that are tried, those that take most of the time; what small models take is no fixed share of what large ones do."""

LONGEST_START = 30.0
"""Seconds: a process that is older has not only been starting."""


@dataclass(frozen=True)
class Pace:
    """What a worker takes to start, in seconds, and how many times as long a job takes as on the machine it was estimated for."""

    start: float
    factor: float

    def estimate(self, jobs: Sequence[Job | PackJob], workers: int) -> float:
        """Until the last of these jobs is done, so many at a time: three of a minute each, two at a time, take two."""
        return self.start + makespan([seconds(job) * self.factor for job in jobs], workers)


def since_start() -> float:
    """What importing everything took, as it will every worker."""
    return min(elapsed(archlab.STARTED), LONGEST_START)


def measured(jobs: Sequence[Job | PackJob], start: float, workers: int = 1) -> Pace:
    """The pace at which runs like these train here; that of the estimates where none are among the jobs.

    One worker is this process, with the threads it has. Several are tried at once, in processes like those that will do the
    jobs, since cores that share caches and memory are slower together than one alone; `start` is then what one takes to begin.
    """
    tried = kinds(jobs)
    if not tried:
        return Pace(start, 1.0)
    cfgs, shares = [cfg for cfg, _ in tried], [share for _, share in tried]
    if workers > 1:
        with pool_of(workers) as pool:
            pool.submit(time.time).result()  # once it answers, everything is imported
            tries = [pool.submit(unless_stopped, all_of, cfgs) for _ in range(workers)]
            seen = [one.result() for one in tries]
        start = sum(whole - sum(steps) * (1 + TRIED) for whole, steps in seen) / workers
        took = [sum(times) / workers for times in zip(*(steps for _, steps in seen), strict=True)]
    else:
        took = [a_step(cfg) for cfg in cfgs]
    slower = [each / seconds_of_a_step(cfg) for each, cfg in zip(took, cfgs, strict=True)]
    return Pace(max(0.0, start), sum(a * b for a, b in zip(slower, shares, strict=True)) / sum(shares))


def kinds(jobs: Sequence[Job | PackJob]) -> list[tuple[DictConfig, float]]:
    """A configuration for each kind of run that takes much of the time, with the seconds all of its kind are expected to take."""
    first: dict[float, DictConfig] = {}
    whole: dict[float, float] = {}
    for job in jobs:
        for one in job.members if isinstance(job, PackJob) else (job,):
            for cfg in stepping(one):
                kind = seconds_of_a_step(cfg)
                first.setdefault(kind, cfg)
                whole[kind] = whole.get(kind, 0.0) + seconds(one)
    most = sorted(whole, key=lambda kind: -whole[kind])[:KINDS]
    return [(first[kind], whole[kind]) for kind in most]


def stepping(job: Job) -> tuple[DictConfig, ...]:
    """What a job takes steps of training with; of a model that is only described, which may be too large to build, nothing."""
    match job:
        case RunJob(base=cfg):
            return (cfg,)
        case Measurement(measure=measure, bases=cfgs) if measure in STEPS_OF:
            return cfgs
    return ()


def all_of(cfgs: Sequence[DictConfig]) -> tuple[float, list[float]]:
    """The seconds that trying all of them took, and those of a step of each."""
    since = time.perf_counter()
    steps = [a_step(cfg) for cfg in cfgs]
    return time.perf_counter() - since, steps


def a_step(cfg: DictConfig) -> float:
    """Seconds of a training step: the batch, forward and backward pass, clipping, AdamW and what is probed at every step."""
    where, settings, source = machine_of(cfg), settings_of(cfg), open_source(cfg)
    decoder = build(cfg).to(where.device).train()
    state = TrainState.begin(decoder, settings, where, cfg.seed)
    step = make_step(decoder, settings, where, cfg.probe.every)
    with where.in_force():
        for number in range(1, 2 + TRIED):
            if number == 2:
                since = time.perf_counter()
            batch = source.train(cfg.seed, number, settings.batch_size, settings.train_len)
            float(step(state, batch).loss)
    return (time.perf_counter() - since) / TRIED
