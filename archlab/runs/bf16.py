"""Whether bfloat16 is the slower precision on this CPU, which only those with a unit for it are fast in."""

import statistics
import time
from collections.abc import Callable

import torch
from omegaconf import DictConfig

from archlab.train.runtime import Runtime

ROUNDS = 5
LARGEST = 1024
"""Rows and columns of the product that is timed, at most: a fraction of a second even where bfloat16 is slow."""

SLOWER = 1.2
"""Times as long, from which on it is said: less is within the noise of five rounds."""

Product = tuple[int, int, int]
"""Rows, columns summed over, columns."""


def seconds_of(product: Product, dtype: torch.dtype) -> float:
    """Of one matrix product on the CPU."""
    rows, between, columns = product
    one, other = torch.ones(rows, between, dtype=dtype), torch.ones(between, columns, dtype=dtype)
    since = time.perf_counter()
    one @ other
    return time.perf_counter() - since


def slower_in_bf16(
    cfg: DictConfig, where: Runtime, seconds: Callable[[Product, torch.dtype], float] = seconds_of
) -> str | None:
    """A line that says how much slower the model's products are than in float32, where they are; None elsewhere.

    It times a product of the feed-forward network's shape in both precisions, in turns.
    """
    if where.device.type != "cpu" or where.dtype != torch.bfloat16:
        return None
    tokens = cfg.train.batch_size * cfg.train.train_len // cfg.train.accumulate
    rows, between, columns = (min(n, LARGEST) for n in (tokens, cfg.size.d_model, cfg.size.d_ff))
    product = rows, between, columns
    ratios = [seconds(product, torch.bfloat16) / seconds(product, torch.float32) for _ in range(ROUNDS + 1)][1:]
    times = statistics.median(ratios)
    if times < SLOWER:
        return None
    return (
        f"precision: bf16, as was asked; a product of {rows} x {between} by {between} x {columns} takes {times:.3g} times as long"
        " on this CPU as in float32; precision=fp32 is faster"
    )
