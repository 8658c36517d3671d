"""What moved first in a run that spiked or diverged: the records of its last steps -> findings. Needs no torch.

The rule. A series is one quantity of one layer. A value has moved if it lies further from the median of the up to 32
values before it than `threshold` times their spread (1.4826 MAD, and at least 1% of what is usual); what is not finite
has moved. A series moved at the earliest step from which on, up to the step at which the loss moved, every value has
moved as seen from there, while the value before had not; it is sought in the 64 steps before, and a single value
counts only in the step of the loss. A series with fewer than 8 values before is not judged. Sizes (RMS, norms, ratios)
are compared by their logarithm, so that steady growth is no move. The loss is held to the same rule, upwards only.

The threshold is the quantile of Student's t at which calm series would move with a chance of 1% in all: Bonferroni over
the series and the steps. Its degrees of freedom are 0.37 times the values before: of normal values, the MAD knows the
spread as well as the standard deviation does of 0.37 times as many (its efficiency, doi:10.1080/01621459.1993.10476408).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

Record = dict[str, Any]

CALM_STEPS = 32
LEAST_CALM = 8
HORIZON = 64
FALSE_ALARM = 0.01
MAD_EFFICIENCY = 0.37
LEAST_SPREAD = 0.01
MAD_TO_SIGMA = 1.4826
TINY = 1e-30

FORWARD, LOSS, BACKWARD, UPDATE, OVER = range(5)
"""The order in which a step computes."""

PHASES = {
    "attention_entropy": FORWARD,
    "max_score": FORWARD,
    "activation_rms": FORWARD,
    "grad_norm": BACKWARD,
    "update_ratio": UPDATE,
}
SIZES = ("activation_rms", "grad_norm", "update_ratio")


@dataclass(frozen=True)
class Series:
    """One quantity of one layer, at the steps at which it was measured."""

    layer: int
    quantity: str
    steps: np.ndarray
    values: np.ndarray

    @property
    def compared(self) -> np.ndarray:
        return np.log(np.maximum(self.values, TINY)) if self.quantity in SIZES else in_parts_of_usual(self.values)


@dataclass(frozen=True)
class Move:
    """Where a series moved; `steps_before` counts to the loss's own move, or to the end where the loss never moved."""

    step: int
    layer: int
    quantity: str
    steps_before: int

    @property
    def order(self) -> tuple[int, int, int]:
        """Steps in order; within one, the forward pass from the first layer up, then the backward pass down."""
        phase = PHASES[self.quantity]
        return self.step, phase, self.layer if phase == FORWARD else -self.layer


def autopsy(
    losses: Sequence[float],
    recorded: Sequence[Record],
    *,
    diverged: bool,
    first_spike: int | None,
    first_nonfinite: Record | None = None,
) -> Record | None:
    """What is found of a run that diverged, else of its first spike; None where neither happened.

    `losses` are those of every step, `recorded` the kept {step, loss, layers: [{quantity: value}]}. The result:
    `event` (diverged or spiked) and `event_step`; `loss_moved`, a step or None; `first`, the {step, layer, quantity,
    steps_before} that moved before the loss did, or None; `next`, what else moved no later than the loss, in order;
    `watched` series and their `threshold`; `note`, why there is no `first`; `first_nonfinite` as it was given.
    """
    event = len(losses) if diverged else first_spike
    if event is None:
        return None
    watched = list(series(recorded, event))
    n_series = max(1, len(watched))
    loss = in_parts_of_usual(np.array(losses[:event], dtype=float))
    loss_moved = onset(np.arange(1, event + 1), loss, event, n_series, upwards=True)
    reference = event if loss_moved is None else loss_moved
    moves = sorted(moved(watched, reference), key=lambda move: move.order)
    # The gradients of the step at which the loss moved were computed after it, so they cannot have moved before.
    end = (reference, OVER if loss_moved is None else LOSS, 0)
    first = moves[0] if moves and moves[0].order < end else None
    return {
        "event": "diverged" if diverged else "spiked",
        "event_step": event,
        "loss_moved": loss_moved,
        "first": asdict(first) if first else None,
        "next": [asdict(move) for move in moves if move is not first],
        "watched": len(watched),
        "threshold": threshold(n_series),
        "note": None if first else why_nothing(watched, reference),
        "first_nonfinite": first_nonfinite,
    }


def series(recorded: Sequence[Record], last: int) -> Iterator[Series]:
    """Every quantity of every layer, up to and with the step `last`."""
    until = [record for record in recorded if record["step"] <= last]
    for layer in range(len(until[0]["layers"]) if until else 0):
        for quantity in PHASES:
            there = [record for record in until if quantity in record["layers"][layer]]
            if there:
                steps = np.array([record["step"] for record in there])
                values = np.array([record["layers"][layer][quantity] for record in there], dtype=float)
                yield Series(layer, quantity, steps, values)


@cache
def threshold(n_series: int, n_before: int = CALM_STEPS) -> float:
    """How many spreads from the median a calm series gets with a chance of 1% over all series and steps."""
    from scipy import stats  # here, since it takes a second to import, and a calm run needs none

    return float(stats.t.isf(FALSE_ALARM / 2 / (n_series * HORIZON), MAD_EFFICIENCY * n_before))


def moved(watched: Sequence[Series], reference: int) -> Iterator[Move]:
    for one in watched:
        step = onset(one.steps, one.compared, reference, len(watched))
        if step is not None:
            yield Move(step, one.layer, one.quantity, reference - step)


def onset(steps: np.ndarray, values: np.ndarray, last: int, n_series: int, upwards: bool = False) -> int | None:
    """The earliest step from which on every value, up to the step `last`, has moved, while the one before it had not."""
    steps, values = steps[steps <= last], values[steps <= last]
    had_moved = False
    for i in range(LEAST_CALM, len(steps)):
        away = has_moved(values[max(0, i - CALM_STEPS) : i], values[i:], n_series, upwards)
        lasted = away.all() and (len(away) > 1 or steps[i] == last)
        if lasted and not had_moved and steps[i] > last - HORIZON:
            return int(steps[i])
        had_moved = away[0]
    return None


def in_parts_of_usual(values: np.ndarray) -> np.ndarray:
    """The values over the median of their absolute values, so that 0.01 is 1% of what is usual."""
    sizes = np.abs(values[np.isfinite(values)])
    return values / max(np.median(sizes), TINY) if len(sizes) else values


def has_moved(before: np.ndarray, now: np.ndarray, n_series: int, upwards: bool) -> np.ndarray:
    """Which of the values of now lie beyond what was usual before; what is not finite always does."""
    usual = before[np.isfinite(before)]
    if len(usual) < LEAST_CALM:
        return np.zeros(len(now), dtype=bool)
    median = np.median(usual)
    spread = max(MAD_TO_SIGMA * np.median(np.abs(usual - median)), LEAST_SPREAD)
    away = (now - median) / spread
    return ~np.isfinite(now) | ((away if upwards else np.abs(away)) > threshold(n_series, len(usual)))


def why_nothing(watched: Sequence[Series], reference: int) -> str:
    if not watched:
        return "nothing inside the layers was watched, since probe.every=null"
    if max(int((one.steps < reference).sum()) for one in watched) < LEAST_CALM:
        return f"fewer than {LEAST_CALM} steps came before, too few to know what is usual"
    return "nothing that was watched moved before the loss"
