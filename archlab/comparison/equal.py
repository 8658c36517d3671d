"""Training losses of several arms where they have had the same: steps, tokens, FLOPs or seconds."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from archlab.comparison.arms import Arm
from archlab.comparison.failure import failed
from archlab.records.reader import Run

AXES = ("steps", "tokens", "flops", "seconds")

HALF_LIFE = 2
"""In logged steps, of the weights that smooth a loss curve."""

Curve = tuple[np.ndarray, np.ndarray]


def at_equal(arms: Sequence[Arm]) -> tuple[list[dict[str, float | None]], dict[str, float | None]]:
    """Each arm's training loss at the largest x that all arms reach on each axis, and these x.

    A loss is the exponentially weighted mean of the logged steps up to x, with a half-life of two of them (pandas
    ewm), interpolated between logged steps, then the mean over the arm's runs. FLOPs are tokens times
    train_flops_per_token; seconds are tokens over tokens_per_second, so without the first step and validations.
    Runs that failed, as far as losses go (`archlab.comparison.failure`), play no part; None where an arm has no other, or a
    run has no such axis, and of seconds where the runs were not timed alike (`timed_unlike`).
    """
    runs = [run for arm in arms for run in arm.runs]
    losses: list[dict[str, float | None]] = [{} for _ in arms]
    reached: dict[str, float | None] = {}
    for axis in AXES:
        curves = [[curve(run, axis) for run in arm.runs if not failed(run.summary, "train_loss")] for arm in arms]
        everywhere = [one for arm in curves for one in arm]
        there = [one for one in everywhere if one is not None]
        known = bool(there) and len(there) == len(everywhere) and not (axis == "seconds" and timed_unlike(runs))
        x = reached[axis] = float(min(one[0][-1] for one in there)) if known else None
        for arm, its_losses in zip(curves, losses, strict=True):
            at_x = [] if x is None else [float(np.interp(x, *one)) for one in arm if one is not None]
            its_losses[axis] = float(np.mean(at_x)) if at_x else None
    return losses, reached


def curve(run: Run, axis: str) -> Curve | None:
    """Smoothed training loss over one axis; None where the run's records don't hold it."""
    logged = [record for record in run.metrics if record.get("loss") is not None]
    scale = _scale(run, axis)
    if not logged or not scale:
        return None
    x = np.array([record["step" if axis == "steps" else "tokens"] for record in logged], dtype=float)
    loss = pd.Series([record["loss"] for record in logged]).ewm(halflife=HALF_LIFE).mean()
    return x * scale, loss.to_numpy()


def _scale(run: Run, axis: str) -> float | None:
    """What a step, or else a token, counts for."""
    if axis == "flops":
        return run.summary.get("train_flops_per_token")
    if axis == "seconds":
        speed = run.summary.get("tokens_per_second")
        return 1 / speed if speed else None
    return 1.0


TIMED = ("device", "threads", "pack")
"""What seconds go by besides the arm. A pack of K runs takes as long for each of them as for all."""


def timed_unlike(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Of these, what runs differ in so that their seconds do not compare, with its values; older runs may say nothing of one."""
    said = {name: {run.summary.get(name) or (1 if name == "pack" else None) for run in runs} for name in TIMED}
    values = {name: sorted(map(str, found - {None})) for name, found in said.items()}
    return {name: found for name, found in values.items() if len(found) > 1}
