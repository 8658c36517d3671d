"""One number of a run, by the name a user gives it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from archlab.base.errors import UserError
from archlab.base.messages import did_you_mean
from archlab.base.metrics import Direction
from archlab.comparison.failure import broke, failed, quantity_of
from archlab.records.reader import Run
from archlab.records.summary import KINDS, AtLength, kinds

AT_LENGTH = tuple(name for name, _ in kinds(AtLength))
"""What is measured at each evaluation length."""

OF_TIME = (KINDS["wall_seconds"].unit, KINDS["tokens_per_second"].unit)


@dataclass(frozen=True)
class Metric:
    """`val_loss`, `late_ratio@4` (at 4 times train_len) or a dotted number of the summary, `stability.max_grad_norm`."""

    name: str
    direction: Direction | None = None
    """Which way is better, where the number is none of `archlab.records.summary`."""

    @property
    def quantity(self) -> str:
        return quantity_of(self.name)

    @property
    def unit(self) -> str:
        return KINDS[self.quantity].unit if self.quantity in KINDS else ""

    @property
    def is_of_time(self) -> bool:
        """Whether it goes by what a run was timed under."""
        return self.unit in OF_TIME

    @property
    def lower_is_better(self) -> bool:
        """Raises UserError where that is not known, or said though it is."""
        kind = KINDS.get(self.quantity)
        if kind is None and self.direction is None:
            raise UserError(
                f"metric={self.name}: which way is better is not known of this number; add direction=lower or direction=higher"
            )
        if kind is not None and self.direction is not None:
            raise UserError(
                f"direction={self.direction}: of {self.name} {kind.better} is better, as is known; leave it out"
            )
        return (self.direction if kind is None else kind.better) == "lower"

    @property
    def smallest_effect(self) -> float:
        return KINDS[self.quantity].smallest_effect if self.quantity in KINDS else 0.0

    @property
    def largest_difference(self) -> float | None:
        """How far apart two runs can be; None where that is not known."""
        return 1.0 if self.quantity in KINDS and KINDS[self.quantity].share else None

    def value(self, run: Run) -> float | None:
        """None where the run diverged, whatever it measured before, or where the number was not finite.

        Raises UserError where the run has no such number, or did not measure it, which is no failure.
        """
        there = dict(_numbers(run.summary)) | dict(_at_lengths(run))
        unmeasured = self.name in there and there[self.name] is None and not self._not_finite(run)
        if unmeasured or (self.name not in there and not (run.diverged and self._measured_after_training)):
            there = {name: value for name, value in there.items() if value is not None}
            named = (name for name in there if name.rpartition(".")[2] == self.name)
            hint = (
                "" if unmeasured else next((f"did you mean {name}? " for name in named), did_you_mean(self.name, there))
            )
            raise UserError(
                f"metric={self.name}: {run.directory.name} {'did not measure it' if unmeasured else 'has no such number'};"
                f" {hint}it has {', '.join(sorted(there))}"
            )
        value = there.get(self.name)
        return None if run.diverged or value is None or not math.isfinite(value) else float(value)

    def failed(self, run: Run) -> bool:
        """Whether it counts as failed (`archlab.comparison.failure`), or has no value."""
        return self.value(run) is None or failed(run.summary, self.name)

    def _not_finite(self, run: Run) -> bool:
        """Whether a null says so, which a number also is that was not measured: the loss beside it tells which."""
        _, at, multiple = self.name.partition("@")
        if broke(run.summary) or not at:
            return broke(run.summary)
        return dict(_at_lengths(run)).get(f"loss@{multiple}") is None

    @property
    def _measured_after_training(self) -> bool:
        """A diverged run never came to measure these."""
        quantity, at, _ = self.name.partition("@")
        return quantity in AT_LENGTH if at else self.name == "val_loss"


def _numbers(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float | None]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{path}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}{name}", value
        elif value is None and name in KINDS:
            yield f"{path}{name}", None  # written where it was not finite, or not measured


def _at_lengths(run: Run) -> Iterator[tuple[str, float | None]]:
    """The numbers of each evaluation length; none where the length holds a note that there could be none."""
    train_len = run.config["train"]["train_len"]
    for record in run.summary.get("length") or []:
        if not record.get("note"):
            multiple = f"{record['eval_len'] / train_len:g}"
            yield from ((f"{key}@{multiple}", record[key]) for key in AT_LENGTH if key in record)
