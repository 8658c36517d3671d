"""How sure a difference of two trained models is of the held-out text: what other text of the same kind might have said.

It is apart from what seeds do: more text cannot make up for few seeds, nor more seeds for little text.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from archlab.base.errors import UserError
from archlab.comparison.arms import Arm
from archlab.comparison.metric import Metric
from archlab.records.reader import Run

LEAST_BLOCKS = 10
"""With fewer, the spread of a mean says little."""


@dataclass(frozen=True)
class OverText:
    effect: float
    """Mean of a - b over the windows."""

    interval: tuple[float, float]
    blocks: int


def over_text(
    a: Sequence[float], b: Sequence[float], block: int = 8, level: float = 0.95, draws: int = 9999, seed: int = 0
) -> OverText:
    """The difference of two models' mean loss over the same windows of text, in the text's order, by the block bootstrap.

    Losses of neighbouring windows are alike, and an interval that takes them for independent is too narrow. So about
    n / `block` blocks of consecutive windows are drawn with replacement, whole, `draws` times; the interval is the
    bias-corrected and accelerated one of `scipy.stats.bootstrap`, at `level`. `block` is to be longer than windows stay alike.
    Of few blocks it would be too narrow, since draws spread less than samples do, by (n - 1) / n, and as a normal and not as
    Student's t: it is taken at the level at which the normal quantile is (n / (n - 1))^(1/2) times that of t. Of ten blocks of
    independent windows it then covers in 93 of 100 studies, and else in 89. Raises UserError where the windows are not the same
    number, or too few.

    Source: E. Carlstein, The Annals of Statistics 14 (1986), blocks that do not overlap; T. Hesterberg, arXiv:1411.5279, expanded
    percentile intervals.
    """
    from scipy.stats import bootstrap, norm, t  # here, since it takes a second to import

    d = np.subtract(a, b, dtype=float) if len(a) == len(b) else np.empty(0)
    n_blocks = len(d) // block
    if n_blocks < LEAST_BLOCKS or not np.isfinite(d).all():
        raise UserError(
            f"{len(a)} and {len(b)} windows in blocks of {block}: need finite losses of the same windows, at least"
            f" {LEAST_BLOCKS} blocks of them; score more text, such as eval.tokens=65536"
        )
    parts = np.array_split(d, n_blocks)
    sums, sizes = np.array([part.sum() for part in parts]), np.array([float(len(part)) for part in parts])
    if np.ptp(d) == 0:
        return OverText(float(d[0]), (float(d[0]), float(d[0])), n_blocks)

    def mean(total: np.ndarray, size: np.ndarray, axis: int = -1) -> np.ndarray:
        return total.sum(axis=axis) / size.sum(axis=axis)

    far = (n_blocks / (n_blocks - 1)) ** 0.5 * t.ppf((1 + level) / 2, n_blocks - 1)
    found = bootstrap(
        (sums, sizes), mean, paired=True, vectorized=True, n_resamples=draws, confidence_level=2 * norm.cdf(far) - 1,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return OverText(float(d.mean()), (float(found.low), float(found.high)), n_blocks)


def on_other_text(arm: Arm, base: Arm, metric: Metric, failed: Collection[int]) -> OverText | None:
    """`over_text` of two arms, each window's loss averaged over the seeds of both but for the `failed` ones; None without seeds.

    Raises UserError where the metric is no held-out loss, or a run kept no losses of windows.
    """
    seeds = [seed for seed in arm.seeds if seed in base.by_seed and seed not in failed]
    if not seeds:
        return None
    losses, others = mean_windows(arm, seeds, metric), mean_windows(base, seeds, metric)
    try:
        return over_text(losses, others)
    except UserError as error:
        raise UserError(f"text=true: metric={metric.name} is of {error}, or leave text out") from None


def mean_windows(arm: Arm, seeds: Sequence[int], metric: Metric) -> Sequence[float]:
    """The loss of each window, averaged over the runs of these seeds."""
    losses = [windows_of(arm.by_seed[seed], metric) for seed in seeds]
    if len(numbers := sorted({len(of_run) for of_run in losses})) > 1:
        raise UserError(
            f"text=true: {arm.label} has runs of {' and of '.join(map(str, numbers))} windows; compare runs that are scored on"
            " the same text, or leave text out"
        )
    means: list[float] = np.mean(np.asarray(losses, dtype=float), axis=0).tolist()
    return means


def windows_of(run: Run, metric: Metric) -> list[float | None]:
    """The losses of the windows that the metric is the mean of."""
    at = re.fullmatch(r"val_loss|loss@(\d+)", metric.name)
    if at is None:
        raise UserError(
            f"text=true: metric={metric.name} is no mean of held-out losses; use val_loss or loss@4, or leave text out"
        )
    losses = run.windows(int(at[1] or 1) * run.config["train"]["train_len"])
    if not losses:
        raise UserError(
            f"text=true: {run.directory} kept no losses of the windows of {metric.name}: it is older than they are, slid its"
            " windows or was not scored at this length; make it again with eval.protocol=disjoint, or leave text out"
        )
    return losses
