"""How time and memory of a training step grow with the length, the width, the depth and the runs in a pack: measured, and fitted by a power."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig
from scipy import stats

from archlab.benchmark.memory import HOW, peak_of_pack, peak_of_training
from archlab.benchmark.speed import Record, setting
from archlab.benchmark.turns import Work, in_turns
from archlab.benchmark.workload import PackedWorkload, Workload
from archlab.config.plan import Plan
from archlab.runs.packs import most_members, refusal

ROUNDS = 7
SWEPT = {"seq_len": "train.train_len", "d_model": "size.d_model", "n_layers": "size.n_layers"}
"""What is made larger, by its name, and the option that does it. Another size is another entry."""

FACTORS = (0.5, 1, 2, 4)

PACKED = "K"
"""Runs packed as one, by the name that it has beside those of SWEPT."""

SIZES = {"cpu": (1, 2, 4, 8), "cuda": (1, 8, 64, 256)}
"""Runs in a pack, by device: on a GPU small packs take no longer than one run."""


@dataclass(frozen=True)
class Power:
    """y ~ x^exponent, with the exponent's standard error; of two points the error is not known."""

    exponent: float
    error: float | None

    def to_record(self) -> dict[str, float | None]:
        """The same as a record."""
        return {"exponent": self.exponent, "error": self.error}


def power(x: Sequence[float], y: Sequence[float]) -> Power:
    """The least-squares line through (log x, log y), all of them above 0 (scipy.stats.linregress)."""
    fitted = stats.linregress(np.log(x), np.log(y))
    return Power(float(fitted.slope), float(fitted.stderr) if len(x) > 2 else None)


def values_of(cfg: DictConfig, option: str) -> list[int]:
    """Half of what the option is, as much, twice and four times as much; whole numbers, each once."""
    section, _, name = option.partition(".")
    now = cfg[section][name]
    return sorted({max(1, math.floor(factor * now)) for factor in FACTORS})


def sizes_of(plan: Plan, device: str) -> list[int]:
    """How many runs are packed, as far as memory holds them."""
    most = most_members(plan)
    return [size for size in SIZES[device] if size <= most]


def scaling(
    sized: Mapping[str, Mapping[int, DictConfig]],
    rounds: int = ROUNDS,
    tick: Callable[[], None] = lambda: None,
    packed: Plan | None = None,
) -> Record:
    """`sized` maps each name of `SWEPT` to configurations by value; the batch is the same number of sequences in all.

    With `packed` a step of packs of that plan's runs is measured too, each run with a batch of its own: the time of a pack that
    costs no more than a run grows with the power 0 of the number of its runs, and that of runs one after the other with
    the power 1. Where such runs are not packed, `not_packed` says why.
    """
    swept: dict[str, Any] = {}
    for name, configurations in sized.items():
        works = {value: Workload(cfg) for value, cfg in configurations.items()}
        first = next(iter(works.values()))
        counted = first.machine.device.type in HOW
        bytes_ = [peak_of_training(cfg, first.machine) if counted else None for cfg in configurations.values()]
        seconds = in_turns({str(value): work.step for value, work in works.items()}, rounds, tick)
        swept[name] = grown(list(works), [seconds[str(value)] for value in works], bytes_)
        about = setting(first)
    not_packed = refusal(packed) if packed else None
    if packed and not not_packed:
        swept[PACKED] = of_packs(packed, rounds, tick)
    return {
        "choices": about["choices"],
        "batch_size": about["batch_size"],
        "dtype": about["dtype"],
        "machine": about["machine"],
        "rounds": rounds,
        "how": HOW.get(first.machine.device.type),
        "swept": swept,
        "not_packed": not_packed,
    }


def of_packs(plan: Plan, rounds: int, tick: Callable[[], None]) -> Record:
    """The growth with the number of runs, and how many times as fast the largest pack is as its runs one after the other."""
    alone = Workload(plan.cfg)
    machine = alone.machine
    sizes = sizes_of(plan, machine.device.type)
    calls: dict[str, Work] = {str(size): PackedWorkload(plan.cfg, size, machine).step for size in sizes}
    counted = machine.device.type in HOW
    bytes_ = [peak_of_pack(plan.cfg, size, machine) if counted else None for size in sizes]
    seconds = in_turns({"alone": alone.step, **calls}, rounds, tick)
    largest = sizes[-1] * np.divide(seconds["alone"], seconds[str(sizes[-1])])
    low, middle, high = (float(times) for times in np.quantile(largest, (0.25, 0.5, 0.75)))
    return {
        **grown(sizes, [seconds[str(size)] for size in sizes], bytes_),
        "alone": float(np.median(seconds["alone"])),
        "times_alone": {"ratio": middle, "low": low, "high": high},
    }


def grown(values: Sequence[int], seconds: Sequence[Sequence[float]], bytes_: Sequence[int | None]) -> Record:
    """What was measured at each value, and the powers that fit it; none of memory where nothing counts it, none of one value."""
    times = [float(np.median(rounds)) for rounds in seconds]
    known = [b for b in bytes_ if b is not None]
    return {
        "values": list(values),
        "seconds": times,
        "spread": [float(np.subtract(*np.quantile(rounds, (0.75, 0.25)))) for rounds in seconds],
        "bytes": list(bytes_),
        "time": power(values, times).to_record() if len(values) > 1 else None,
        "memory": power(values, known).to_record() if known and len(values) > 1 else None,
    }
