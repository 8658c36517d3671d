"""Averages of a run's weights, by which it is validated and evaluated in place of the last ones."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from archlab.base.errors import UserError
from archlab.base.quantities import Probability, Share
from archlab.model.decoder import Decoder


class Averaged:
    """A copy of a decoder that holds an average of its weights, by one of torch's rules.

    As torch's own AveragedModel, whose update waits for the device at every step.
    """

    def __init__(self, decoder: Decoder, rule: Callable[[list[Tensor], list[Tensor], int], None]):
        self.module, self.rule = copy.deepcopy(decoder), rule
        self.n_averaged = 0

    @torch.no_grad()
    def update(self, decoder: Decoder) -> None:
        """Takes a decoder's weights in; the first are the average so far."""
        own: list[Tensor] = list(self.module.parameters())
        its: list[Tensor] = list(decoder.parameters())
        if self.n_averaged:
            self.rule(own, its, self.n_averaged)
        else:
            torch._foreach_copy_(own, its)
        self.n_averaged += 1


class Average(ABC):
    """Which of a run's weights are averaged, and how."""

    averages = True
    """Whether a model is to be evaluated with other weights than those it is trained with."""

    packed = False
    """Whether runs that are averaged so can be trained as one pack."""

    @abstractmethod
    def __call__(self, decoder: Decoder) -> Averaged | None:
        """What keeps the average of a decoder's weights; None where the last weights are what counts."""

    def check(self, steps: int) -> None:  # noqa: B027 - most have nothing to refuse
        """Raises UserError where the average of a run of so many steps would be its last weights."""

    def after(self, steps: int) -> int:
        """Of so many steps, after which one the average begins."""
        return 0


class NoAverage(Average):
    """The last weights."""

    averages = False
    packed = True

    def __call__(self, decoder: Decoder) -> Averaged | None:
        return None


class Exponential(Average):
    """average <- decay * average + (1 - decay) * weights after every step, from those of the first step on.

    Source: arXiv:1803.05407, sec. 3.2, as torch.optim.swa_utils has it.
    """

    def __init__(self, decay: Probability = 0.99):
        if decay == 0:
            raise UserError(
                f"average.decay={decay}: keeps nothing of earlier weights, so it would change nothing; use average=none, or a"
                " larger one"
            )
        self.decay = decay

    def check(self, steps: int) -> None:
        if steps == 1:
            raise UserError("average=ema: of train.steps=1 step is the last weights; use average=none, or more steps")

    def __call__(self, decoder: Decoder) -> Averaged | None:
        return Averaged(decoder, get_ema_multi_avg_fn(self.decay))


class Tail(Average):
    """The mean of the weights after each of the last steps, a `share` of all.

    Source: arXiv:1803.05407, alg. 1, with a cycle of one step.
    """

    def __init__(self, share: Share = 0.2):
        self.share = share

    def __call__(self, decoder: Decoder) -> Averaged | None:
        return Averaged(decoder, get_swa_multi_avg_fn())

    def check(self, steps: int) -> None:
        if self.after(steps) == steps - 1:
            raise UserError(
                f"average.share={self.share}: of {steps} steps is the last one, so it would change nothing; use average=none, a"
                " larger share, or more steps"
            )

    def after(self, steps: int) -> int:
        return steps - max(1, round(self.share * steps))
