"""Schedules: which share of `train.lr` a step takes after the warm-up."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Literal

from archlab.base.errors import UserError
from archlab.base.quantities import Share
from archlab.train.options import TrainOptions


class Schedule(ABC):
    """What the learning rate is multiplied by, as a function of the step alone."""

    uses: Collection[str] = ()
    """Which of `train`'s numbers it uses beside steps, lr and warmup."""

    stays = False
    """Whether the rate stays as it is after the warm-up."""

    @abstractmethod
    def share(self, step: int, options: TrainOptions) -> float:
        """Of `lr`, at a step after the warm-up and up to `options.steps`."""

    def check(self, options: TrainOptions, given: Collection[str] = ()) -> None:  # noqa: B027 - most have nothing to refuse
        """Raises UserError where a run of these options would have no such schedule, or one of the fields given changes nothing."""


class Cosine(Schedule):
    """min_lr + (1 - min_lr) (1 + cos(pi p)) / 2, where p goes from 0 after the warm-up to 1 at the last step.

    Source: arXiv:1608.03983, eq. 5, with one period.
    """

    uses = ("min_lr",)

    def check(self, options: TrainOptions, given: Collection[str] = ()) -> None:
        check_comes_down(options)

    def share(self, step: int, options: TrainOptions) -> float:
        return options.min_lr + (1 - options.min_lr) * (1 + math.cos(math.pi * progress(step, options))) / 2


class Linear(Schedule):
    """1 - p, where p goes from 0 after the warm-up to 1 at the last step, which is taken at zero.

    Source: arXiv:2502.15938, sec. 3 (linear decay to zero).
    """

    def share(self, step: int, options: TrainOptions) -> float:
        return 1 - progress(step, options)


SHAPES = {
    "linear": lambda p, low: low + (1 - low) * (1 - p),
    "sqrt": lambda p, low: low + (1 - low) * (1 - math.sqrt(p)),
    "exponential": lambda p, low: low**p,
}
"""Ways down from 1 to `low` while p goes from 0 to 1."""


class WarmupStableDecay(Schedule):
    """1 until the last `decay` of the steps, then down to min_lr, where p goes from 0 to 1:

    linear       min_lr + (1 - min_lr) (1 - p)
    sqrt         min_lr + (1 - min_lr) (1 - sqrt(p))
    exponential  min_lr ** p

    Source: arXiv:2404.06395, sec. 4.2, whose decay is exponential; arXiv:2405.18392, sec. 3 (linear and 1 - sqrt).
    """

    uses = ("min_lr",)

    def __init__(self, decay: Share = 0.2, shape: Literal["linear", "sqrt", "exponential"] = "sqrt"):
        self.decay, self.shape = decay, shape
        self.down = SHAPES[shape]

    def decay_steps(self, options: TrainOptions) -> int:
        """How many steps the way down has, at least one."""
        return max(1, round(self.decay * options.steps))

    def share(self, step: int, options: TrainOptions) -> float:
        begins = options.steps - self.decay_steps(options)
        return self.down(max(0.0, (step - begins) / self.decay_steps(options)), options.min_lr)

    def check(self, options: TrainOptions, given: Collection[str] = ()) -> None:
        check_comes_down(options)
        if options.warmup_steps + self.decay_steps(options) > options.steps > 1:
            raise UserError(
                f"schedule.decay={self.decay}: of {options.steps} steps the decay takes {self.decay_steps(options)} and the"
                f" warm-up {options.warmup_steps}, more than there are; use a smaller one, or a smaller train.warmup"
            )
        if self.shape == "exponential" and options.min_lr == 0:
            raise UserError(
                "train.min_lr=0: schedule.shape=exponential never comes down to zero; use a larger one, or"
                " schedule.shape=linear or sqrt"
            )
        if "schedule.shape" in given and self.decay_steps(options) == 1:
            raise UserError(
                f"schedule.shape={self.shape}: schedule.decay={self.decay} of {options.steps} steps is one step, which every shape"
                " takes at train.min_lr, so it would change nothing; leave it out, or use a larger schedule.decay"
            )


class InverseSqrt(Schedule):
    """sqrt(w / step), where w is the number of steps of the warm-up, and 1 where there is none.

    Source: arXiv:1706.03762, eq. 3, its top at `lr`.
    """

    def share(self, step: int, options: TrainOptions) -> float:
        return math.sqrt(max(1, options.warmup_steps) / step)


class Constant(Schedule):
    """1 after the warm-up."""

    stays = True

    def share(self, step: int, options: TrainOptions) -> float:
        return 1.0


def check_comes_down(options: TrainOptions) -> None:
    """Raises UserError where the rate would end where it began."""
    if options.min_lr == 1:
        raise UserError(
            "train.min_lr=1: the rate would never come down, so the schedule would change nothing; use a smaller one, or"
            " schedule=constant"
        )


def progress(step: int, options: TrainOptions) -> float:
    """From 0 at the last step of the warm-up to 1 at the last step of all."""
    return (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
