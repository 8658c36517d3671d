"""Who watches a run: each is asked after every step whether it needs the numbers now, and shown them when anybody does."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from archlab.base.signals import Stop
from archlab.data.batch import Source
from archlab.probe.look import by_layer
from archlab.probe.nonfinite import first_nonfinite
from archlab.probe.recorder import EVERY_STEP
from archlab.probe.spike import SPIKE_WINDOW
from archlab.train.objective import compute
from archlab.train.runtime import Runtime
from archlab.train.schedule import learning_rate
from archlab.train.settings import TrainSettings
from archlab.train.state import RUNNING, TrainState
from archlab.train.step import Seen, falls_on
from archlab.train.weights import saved_buffers

Record = dict[str, Any]


class Observer(ABC):
    """Sees the state between two steps, and the numbers of all steps since it saw it last; none where nothing is new."""

    def due(self, state: TrainState) -> bool:
        """Whether it needs them now. They cost a wait for the device, so nobody asks without need."""
        return False

    @abstractmethod
    def see(self, state: TrainState, seen: list[Seen]) -> None:
        """Looks at the state, and at the numbers of the steps since it saw it last."""


class Divergence(Observer):
    """Ends the run at the first step that was not finite, and forgets what was tried after it."""

    def __init__(self, source: Source, settings: TrainSettings, machine: Runtime, seed: int):
        self.source, self.settings, self.machine, self.seed = source, settings, machine, seed

    def see(self, state: TrainState, seen: list[Seen]) -> None:
        for i, step in enumerate(seen):
            if not step.finite:
                kept = {quantity: step.layers[quantity] for quantity in EVERY_STEP if quantity in step.layers}
                seen[i:] = [step._replace(layers=kept)]
                state.step, state.status = step.number, "diverged"
                break
        state.losses += [step.loss for step in seen]
        state.grad_norms += [step.grad_norm for step in seen]
        if state.status == "diverged" and seen:
            self.locate(state)
        elif state.step == self.settings.steps:
            state.status = "completed"

    def locate(self, state: TrainState) -> None:
        """Runs the step's forward pass once more, on the weights it broke on; dropout draws by the step's number."""
        batch = self.source.train(self.seed, state.step, self.settings.batch_size, self.settings.train_len)

        def loss() -> Tensor:
            return compute(state.decoder, batch, self.machine)[0].total

        torch.manual_seed(state.step)
        kept = [(buffer, buffer.clone()) for buffer in saved_buffers(state.decoder)]
        state.first_nonfinite = first_nonfinite(state.decoder, loss, state.step)
        for buffer, before in kept:
            buffer.copy_(before)


class Recording(Observer):
    """Keeps what the layers did in the last steps, and notes the first spike."""

    def see(self, state: TrainState, seen: list[Seen]) -> None:
        for step in seen:
            losses = state.losses[max(0, step.number - 1 - SPIKE_WINDOW) : step.number]
            state.recorder.step_done(step.number, losses, step.layers)


class Validation(Observer):
    """Every so many steps the held-out loss, and early stopping by it."""

    def __init__(self, every: int | None, validate: Callable[[], float | None]):
        self.every, self.validate = every, validate
        self.latest: tuple[int, float | None] | None = None

    def due(self, state: TrainState) -> bool:
        return self.every is not None and state.step % self.every == 0

    def see(self, state: TrainState, seen: list[Seen]) -> None:
        if seen and self.due(state) and state.status != "diverged":
            with state.clock.paused(), state.evaluated():
                loss = self.validate()
                state.patience.see(state.step, loss, state.decoder)
            self.latest = state.step, loss
            if state.patience.over:
                state.status = "stopped"


class Log(Observer):
    """Reports the steps that are logged: every so many, those that were looked into, validated, or the last."""

    def __init__(
        self,
        settings: TrainSettings,
        probe_every: int | None,
        validation: Validation,
        report: Callable[[Record], None],
    ):
        self.settings, self.probe_every, self.validation, self.report = settings, probe_every, validation, report

    def due(self, state: TrainState) -> bool:
        return falls_on(state.step, self.settings.log_every, self.settings.steps)

    def see(self, state: TrainState, seen: list[Seen]) -> None:
        for step in seen:
            watched = self.watched(step)
            ended = step.number == state.step and state.status != RUNNING
            if watched or ended or falls_on(step.number, self.settings.log_every, self.settings.steps):
                rate = {"tokens_per_second": state.clock.tokens_per_second}
                self.report({**measured(step, self.settings), **rate, **watched})

    def watched(self, step: Seen) -> Record:
        """What is known of some steps only."""
        watched: Record = {}
        if step.finite and falls_on(step.number, self.probe_every, self.settings.steps):
            watched["layers"] = by_layer(step.layers)
        if self.validation.latest and self.validation.latest[0] == step.number:
            watched["val_loss"] = self.validation.latest[1]
        return watched


def measured(step: Seen, settings: TrainSettings) -> Record:
    """What is known of every step."""
    return {
        "step": step.number,
        "tokens": step.number * settings.tokens_per_step,
        "loss": step.loss,
        "lr": learning_rate(step.number, settings),
        "grad_norm": step.grad_norm,
        "clipped": settings.clip is not None and step.grad_norm > settings.clip,
        **step.further,
    }


class EveryStep(Observer):
    """Hands each step's number, loss and gradient norm on."""

    def __init__(self, report: Callable[[Sequence[tuple[int, float, float]]], None]):
        self.report = report

    def see(self, state: TrainState, seen: list[Seen]) -> None:
        self.report([(step.number, step.loss, step.grad_norm) for step in seen])


SHARE_FOR_SAVING = 1 / 50
"""Of the run's time at most, where checkpoints are made by time."""

LEAST_SECONDS = 10.0
"""Between two of those."""


class Checkpoints(Observer):
    """Saves the state every so many steps or, where none are given, as often as costs under 2% of the time; at the end
    of training, too, and where somebody asked to stop. The last of the observers, so that the others are done.
    """

    def __init__(self, every: int | None, stop: Stop, save: Callable[[TrainState], None]):
        self.every, self.stop, self.save = every, stop, save
        self.saved, self.cost = time.monotonic(), LEAST_SECONDS * SHARE_FOR_SAVING
        self.holds: tuple[int, str] | None = None
        """The step and status that were saved last."""

    def due(self, state: TrainState) -> bool:
        if self.every is not None:
            return state.step % self.every == 0
        return time.monotonic() - self.saved > max(LEAST_SECONDS, self.cost / SHARE_FOR_SAVING)

    def see(self, state: TrainState, seen: list[Seen]) -> None:
        if state.status == RUNNING and self.stop.asked is None and not self.due(state):
            return
        if self.holds == (state.step, state.status):
            return
        since = time.monotonic()
        with state.clock.paused():
            self.save(state)
        self.holds, self.saved = (state.step, state.status), time.monotonic()
        self.cost = self.saved - since
