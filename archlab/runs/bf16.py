"""Whether a model trains faster in bfloat16 on this CPU, which only those with a unit for it are fast in."""

import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from omegaconf import DictConfig

from archlab.base.configuration import plain_dict
from archlab.model.decoder import Decoder
from archlab.runs.expected import seconds_of_a_step
from archlab.train.runtime import Runtime

UNITS = ("amx_bf16", "avx512_bf16")
"""Instructions that multiply bfloat16, as torch names what a CPU can do."""

LONG = 300.0
"""Seconds that a run is expected to train, on one thread, from which on a trial is worth its time."""

ROUNDS = 5

BUDGET = 0.15
"""Seconds after which a trial begins no further round."""

TOKENS = 256
"""Of the trial's batch, at most, but one sequence at least."""

SAID = 1.2
"""Times as fast, or as slow, from which on it is said: less is within the noise of five rounds."""

Trial = Callable[[Decoder, DictConfig], float]
"""How many times as fast as in float32 the model trains in bfloat16."""

TRIED: dict[str, float] = {}
"""What trials found in this process, by what they were of: the runs of a sweep ask once."""


def units() -> list[str]:
    """The instructions for bfloat16 that this CPU has."""
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return [name for name in UNITS if known.get(name)]


def times_in_bf16(decoder: Decoder, cfg: DictConfig) -> float:
    """How many times as fast as in float32 the first layer's forward and backward pass are in bfloat16, timed in turns.

    Of a layer, since products alone say too much: at size=nano they were 3.4 times as fast on a CPU with avx512_bf16, and a
    training step took 1.3 times as long as in float32.
    """
    length = cfg.train.train_len
    batch = max(1, min(cfg.train.batch_size, TOKENS // length))
    layer = copy.deepcopy(decoder.layers[0])
    x = torch.linspace(-1, 1, decoder.d_model).repeat(batch, length, 1)
    context = decoder.read(torch.zeros(batch, length, dtype=torch.int64))[decoder.pair_of_layer[0]]

    def seconds(dtype: torch.dtype) -> float:
        since = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            out = layer(layer.residual.enter(x.requires_grad_()), context)
        out.sum().backward()
        return time.perf_counter() - since

    ratios: list[float] = []
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):  # dropout draws, and the run draws as if there had been no trial
        while len(ratios) < ROUNDS + 1 and (len(ratios) < 2 or time.perf_counter() - began < BUDGET):
            ratios.append(seconds(torch.float32) / seconds(torch.bfloat16))
    return statistics.median(ratios[1:])  # in the first round torch makes what it keeps


def tried(decoder: Decoder, cfg: DictConfig, trial: Trial) -> float:
    """What a trial of this model finds, made once a process."""
    whole = plain_dict(cfg)
    parts = {name: whole.get(name) for name in ("choices", "size", "layers", *cfg.choices)}
    of = json.dumps([parts, cfg.train.train_len, cfg.train.batch_size], sort_keys=True, default=str)
    if of not in TRIED:
        TRIED[of] = trial(decoder, cfg)
    return TRIED[of]


def slower_in_bf16(cfg: DictConfig, where: Runtime, decoder: Decoder, trial: Trial = times_in_bf16) -> str | None:
    """A line that says how much slower the model trains than in float32, where bf16 is asked for; None elsewhere."""
    if where.device.type != "cpu" or where.dtype != torch.bfloat16:
        return None
    times = 1 / tried(decoder, cfg, trial)
    if times < SAID:
        return None
    return (
        f"precision: bf16, as was asked; in a short trial a layer took {times:.3g} times as long to train on this CPU as in float32:"
        " precision=fp32 is faster"
    )


def faster_in_bf16(
    cfg: DictConfig,
    where: Runtime,
    decoder: Decoder,
    trial: Trial = times_in_bf16,
    there: Callable[[], Sequence[str]] = units,
) -> str | None:
    """A line that says how much faster precision=bf16 would train, where precision=auto is float32 on a CPU that has a unit for it.

    It only says so. Were it decided by the clock, the same command would give other numbers on another machine, and on a
    busy one now and then; runs and claims could not be compared without asking where they were made.
    None where the run is short, or gains little.
    """
    undecided = cfg.precision == "auto" and where.device.type == "cpu" and where.dtype == torch.float32
    if not undecided or cfg.train.steps * seconds_of_a_step(cfg) < LONG:
        return None
    found = there()
    if not found:
        return None
    times = tried(decoder, cfg, trial)
    if times < SAID:
        return None
    return (
        f"precision: fp32, as auto is on every CPU, so that a run gives the same numbers on each; this one has {found[0]}, and in a"
        f" short trial a layer trained {times:.1f} times as fast in bf16: precision=bf16 uses it"
    )
