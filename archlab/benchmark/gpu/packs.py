"""Packs on the device: members are what they are alone, and many of them train faster than one after the other."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig

from archlab.benchmark.gpu.check import Observed
from archlab.benchmark.memory import peak_bytes
from archlab.benchmark.workload import member_of
from archlab.config.compose import compose, plans
from archlab.runs.packs import bytes_each
from archlab.train.loop import Outcome, train
from archlab.train.pack import Member, train_together
from archlab.train.runtime import Runtime, runtime

UNLIKE: tuple[dict[str, Any], ...] = ({}, {"lr": 1e-2, "weight_decay": 0.5}, {"clip": 0.1, "warmup": 0}, {"steps": 15})
"""Settings in which the members of a pack differ."""

SAME_LOSS = 1e-3
"""Of a loss after 20 steps in float32: a pack adds in another order, with another kernel for attention."""


def members_alone(device: torch.device, words: tuple[str, ...] = ("train.steps=20",)) -> Observed:
    """Members of a pack are what they are alone.

    Four runs with rates, decay, clipping and ends of their own, and a fifth that diverges: the losses of the four are
    those of the runs by themselves to 1e-3, and the fifth ends as diverged.
    """
    cfg, machine = compose(*words), Runtime(device, torch.float32)
    together = train_together(members(cfg, device, machine, broken=True), machine, tick=lambda *_: None)
    alone = [by_itself(member, machine) for member in members(cfg, device, machine, broken=False)]
    gap = max(
        abs(one / other - 1)
        for packed, single in zip(together, alone, strict=False)
        for one, other in zip(packed.losses, single.losses, strict=True)
    )
    ends = [outcome.status for outcome in together]
    passed = gap <= SAME_LOSS and ends == ["completed"] * len(UNLIKE) + ["diverged"]
    return Observed(f"losses within {gap:.1e}, ends {', '.join(ends)}", f"{SAME_LOSS:g}, the last diverged", passed)


def members(cfg: DictConfig, device: torch.device, machine: Runtime, broken: bool) -> list[Member]:
    """One for each of UNLIKE, and with `broken` another whose first loss is not finite."""
    made = []
    for seed, changes in enumerate((*UNLIKE, {}) if broken else UNLIKE):
        member = member_of(cfg, seed, device)
        member.settings = replace(member.settings, **changes)
        made.append(member)
    if broken:
        made[-1].decoder.head.weight.data.fill_(torch.finfo(torch.float32).max)
    return made


def by_itself(member: Member, machine: Runtime) -> Outcome:
    return train(
        member.decoder, member.source, member.settings, machine, seed=member.seed, validate=member.validate,
        report=member.report, tick=lambda *_: None,
    )  # fmt: skip


SIZES, AT, TIMES, WITHIN = (32, 128, 256), 128, 20.0, 0.1
"""Members; where the ratio is asked for, what it is to reach, and how far memory may be from its bill."""


def many(
    device: torch.device, words: tuple[str, ...] = ("train.steps=20",), sizes: Sequence[int] = SIZES, at: int = AT
) -> Observed:
    """Packs train faster than one run after the other.

    Tokens per second of packs of 32, 128 and 256 tiny runs beside a run by itself, eager both; at 128 at least 20 times
    as fast, and the peak memory of the largest within 10% of its bill.
    """
    cfg = compose(*words)
    machine = runtime(str(device), cfg.precision)
    single = rate(cfg, [member_of(cfg, 0, device)], machine, packed=False)
    rates, peak = {}, 0.0
    for size in sizes:

        def trained(size: int = size) -> None:  # from before its weights are there, which a pack puts into its stack
            rates[size] = rate(cfg, [member_of(cfg, seed, device) for seed in range(size)], machine, packed=True)

        peak = peak_bytes(trained, device)
    (plan,) = plans(*words)
    said = sizes[-1] * bytes_each(plan)
    off, times = peak / said - 1, rates[at] / single
    figure = ", ".join(f"K={size} {found / single:.1f}x" for size, found in rates.items())
    passed = times >= TIMES and abs(off) <= WITHIN
    return Observed(
        f"{figure}; {peak / 1e9:.2f} GB, {off:+.0%} of the bill", f"{TIMES:g}x at K={at}, within {WITHIN:.0%}", passed,
        {"single": single, "packed": rates, "peak": peak, "bill": said},
    )  # fmt: skip


def rate(cfg: DictConfig, pack: list[Member], machine: Runtime, packed: bool) -> float:
    """Tokens per second over all steps."""
    since = time.perf_counter()
    if packed:
        train_together(pack, machine, tick=lambda *_: None)
    else:
        by_itself(pack[0], machine)
    steps = cfg.train.steps * cfg.train.batch_size * cfg.train.train_len
    return len(pack) * steps / (time.perf_counter() - since)
