"""One architecture: tokens per second, share of the machine's peak, memory, and where a step's time goes."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from omegaconf import DictConfig

from archlab.base.configuration import plain_dict
from archlab.benchmark.kinds import by_kind
from archlab.benchmark.machine import machine_of
from archlab.benchmark.memory import HOW, peak_of_training
from archlab.benchmark.peak import matrix_product
from archlab.benchmark.turns import Work, in_turns
from archlab.benchmark.workload import Workload
from archlab.cost.describe import count_parameters
from archlab.cost.measure import forward_flops_per_token

Record = dict[str, Any]
MODES = ("forward", "forward_backward", "step", "decode")
PASSES = {"forward": 1, "forward_backward": 3, "step": 3}
"""Forward passes' worth of matrix products in each: a backward pass has twice those of a forward pass."""

ROUNDS = 9


def speed(cfg: DictConfig, rounds: int = ROUNDS, tick: Callable[[], None] = lambda: None) -> Record:
    """Measures one architecture; `tick` is called after each round."""
    work = Workload(cfg)
    calls = modes_of(work)
    compiling = compile_seconds(work)
    product, flops = matrix_product(work.machine)
    beside = {"eager": work.eager_step} if compiling else {}
    seconds = in_turns({**calls, **beside, "product": product}, rounds, tick)
    peak = flops / float(np.median(seconds.pop("product")))
    return {
        **setting(work),
        "rounds": rounds,
        "peak_flops": peak,
        "modes": {mode: rates(work, mode, seconds[mode], peak) for mode in calls},
        "compiled": {**compiling, "times_eager": beside_eager(seconds)} if compiling else None,
        "not_decoded": work.why_not_decoded,
        "kinds": by_kind(work, rounds),
        "memory": memory_of(work),
    }


def compile_seconds(work: Workload) -> Record | None:
    """What the first step takes in which layers are compiled, and how many graphs torch found on disk; None where none are."""
    if work.machine.compile == "off":
        return None
    from torch._dynamo.utils import counters

    work.eager_step()  # so that what a first step takes by itself is not counted
    before, since = counters["inductor"].copy(), time.perf_counter()
    work.step()
    found = {
        what: counters["inductor"][f"fxgraph_cache_{what}"] - before[f"fxgraph_cache_{what}"]
        for what in ("hit", "miss")
    }
    return {"seconds": time.perf_counter() - since, "on_disk": found["hit"], "made": found["miss"]}


def beside_eager(seconds: Mapping[str, list[float]]) -> float:
    """How many times as long an eager step takes as a compiled one: the median over the rounds."""
    return float(np.median(np.divide(seconds["eager"], seconds["step"])))


def modes_of(work: Workload) -> dict[str, Work]:
    """What is timed of a workload, by name."""
    return {mode: getattr(work, mode) for mode in MODES if mode != "decode" or work.why_not_decoded is None}


def tokens_of(work: Workload, mode: str) -> int:
    """Tokens that one call gets through; of decoding, those that are new."""
    return work.n_decoded if mode == "decode" else work.tokens


def rates(work: Workload, mode: str, seconds: list[float], peak: float | None = None) -> Record:
    """Tokens per second: the median over the rounds and the quartiles; the share of the peak where FLOPs are counted."""
    tokens = tokens_of(work, mode)
    low, middle, high = (float(tokens / value) for value in np.quantile(seconds, (0.75, 0.5, 0.25)))
    training = mode != "forward"
    per_token = PASSES.get(mode, 0) * forward_flops_per_token(work.decoder, work.settings.train_len, training)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": middle,
        "low": low,
        "high": high,
        "of_peak": middle * per_token / peak if peak and per_token else None,
    }


def setting(work: Workload) -> Record:
    """The architecture and what it was measured with."""
    return {
        "choices": plain_dict(work.cfg.choices),
        "n_params": count_parameters(work.decoder),
        "flops_per_token": forward_flops_per_token(work.decoder, work.settings.train_len),
        "seq_len": work.settings.train_len,
        "batch_size": work.settings.batch_size,
        "dtype": str(work.machine.dtype).removeprefix("torch."),
        "machine": machine_of(work.machine.device),
    }


def memory_of(work: Workload) -> Record:
    """The peak of training steps of the same configuration, measured on a model of its own; None where nothing counts it."""
    kind = work.machine.device.type
    bytes_ = peak_of_training(work.cfg, work.machine) if kind in HOW else None
    return {"bytes": bytes_, "how": HOW.get(kind, f"not counted on {kind}")}
