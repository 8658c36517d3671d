"""How time and memory of a training step grow with the length, the width and the depth: measured, and fitted by a power."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig
from scipy import stats

from archlab.benchmark.memory import HOW, peak_of_training
from archlab.benchmark.speed import Record, setting
from archlab.benchmark.turns import in_turns
from archlab.benchmark.workload import Workload

ROUNDS = 7
SWEPT = {"seq_len": "train.train_len", "d_model": "size.d_model", "n_layers": "size.n_layers"}
"""What is made larger, by its name, and the option that does it. Another size is another entry."""

FACTORS = (0.5, 1, 2, 4)


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


def scaling(
    sized: Mapping[str, Mapping[int, DictConfig]], rounds: int = ROUNDS, tick: Callable[[], None] = lambda: None
) -> Record:
    """`sized` maps each name of `SWEPT` to configurations by value; the batch is the same number of sequences in all."""
    swept: dict[str, Any] = {}
    for name, configurations in sized.items():
        works = {str(value): Workload(cfg) for value, cfg in configurations.items()}
        seconds = in_turns({value: work.step for value, work in works.items()}, rounds, tick)
        first = next(iter(works.values()))
        counted = first.machine.device.type in HOW
        bytes_ = [peak_of_training(cfg, first.machine) if counted else None for cfg in configurations.values()]
        values = list(configurations)
        times = [float(np.median(seconds[value])) for value in works]
        swept[name] = {
            "values": values,
            "seconds": times,
            "spread": [float(np.subtract(*np.quantile(seconds[value], (0.75, 0.25)))) for value in works],
            "bytes": bytes_,
            "time": power(values, times).to_record(),
            "memory": power(values, [b for b in bytes_ if b is not None]).to_record() if counted else None,
        }
        about = setting(first)
    return {
        "choices": about["choices"],
        "batch_size": about["batch_size"],
        "dtype": about["dtype"],
        "machine": about["machine"],
        "rounds": rounds,
        "how": HOW.get(first.machine.device.type),
        "swept": swept,
    }
