"""The training loop, to be read from top to bottom."""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from archlab.base.signals import Stop
from archlab.data.batch import Source
from archlab.model.decoder import Decoder
from archlab.probe.nonfinite import NonFinite
from archlab.train.compiling import CompiledLayers, layer_calls
from archlab.train.observers import Divergence, Log, Observer, Record, Recording, Validation
from archlab.train.runtime import Runtime
from archlab.train.settings import TrainSettings
from archlab.train.state import RUNNING, TrainState
from archlab.train.step import Seen, StepResult, make_step, read

__all__ = ["Outcome", "Record", "train"]


@dataclass
class Outcome:
    """How a run ended. Losses and gradient norms are by step, in nats per token."""

    status: str = "completed"
    """completed, diverged, or stopped: by early stopping or by the user."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    first_nonfinite: NonFinite | None = None
    first_spike: int | None = None
    """The first step whose loss was a spike, if there was one."""

    recorded: list[Record] = field(default_factory=list)
    """What the layers did in the steps around that spike, or before the run diverged; empty where nothing happened."""

    interrupted: bool = False
    """Whether it was the user who stopped it."""

    best_step: int | None = None
    """With early stopping: the step whose weights were kept."""

    first_step_at: float | None = None
    """time.time() when the first step was done."""

    tokens_per_second: float | None = None
    """Over the steps after the first, without the time spent on validation and checkpoints."""

    compiled: bool = False
    """Whether the layers were compiled."""


def train(
    decoder: Decoder,
    source: Source,
    settings: TrainSettings,
    machine: Runtime,
    *,
    seed: int,
    probe_every: int | None = None,
    validate: Callable[[], float | None],
    report: Callable[[Record], None],
    tick: Callable[[int, float | None, float | None, float | None], None],
    observers: Sequence[Observer] = (),
    stop: Stop | None = None,
    saved: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None,
) -> Outcome:
    """Trains in place, from the beginning or from a `saved` TrainState.

    probe_every  records all quantities of the layers at every so many steps
    validate     returns the held-out loss, nats per token
    report       is called with each logged step's record
    tick         is called with each step's number, and the loss, gradient norm and tokens per second known by then
    observers    are called after the loop's own
    stop         ends the run after the step it is in, once it is asked to

    A loss or gradient that is not finite ends the run before it reaches the weights.
    """
    stop = stop or Stop()
    state = TrainState.begin(decoder, settings, machine, seed)
    if saved:
        state.load_state_dict(*saved)
    call = layer_calls(decoder, machine.compile)
    step = make_step(decoder, settings, machine, probe_every, call)
    validation = Validation(settings.eval_every, validate)
    log = Log(settings, probe_every, validation, report)
    observers = [Divergence(source, settings, machine, seed), Recording(), validation, log, *observers]
    pending: list[StepResult] = []
    decoder.train()
    with machine.in_force():
        try:
            while state.status == RUNNING and stop.asked is None:
                batch = source.train(seed, state.step + 1, settings.batch_size, settings.train_len)
                pending.append(step(state, batch))
                if any(observer.due(state) for observer in observers):
                    show(state, pending, observers)
                tick(state.step, last(state.losses), last(state.grad_norms), state.clock.tokens_per_second)
        except KeyboardInterrupt as error:
            stop.asked = getattr(error, "number", signal.SIGINT)
        if state.status == RUNNING:
            show(state, pending, observers)
    ended = outcome(state)
    ended.compiled = isinstance(call, CompiledLayers) and call.in_use
    return ended


def show(state: TrainState, pending: list[StepResult], observers: Sequence[Observer]) -> None:
    """Reads the pending results off the device and hands them to all observers."""
    seen = read(pending)
    pending.clear()
    let_see(state, seen, observers)


def let_see(state: TrainState, seen: list[Seen], observers: Sequence[Observer]) -> None:
    """Hands the numbers of the steps since the last time to all observers."""
    state.clock.steps_done(len(seen))
    for observer in observers:
        observer.see(state, seen)


def outcome(state: TrainState) -> Outcome:
    """How the run ended; the decoder is left with the weights to be evaluated."""
    diverged, interrupted = state.status == "diverged", state.status == RUNNING
    if not diverged:
        state.settle()
    return Outcome(
        status="stopped" if interrupted else state.status,
        losses=state.losses,
        grad_norms=state.grad_norms,
        first_nonfinite=state.first_nonfinite,
        first_spike=state.recorder.first_spike,
        recorded=state.recorder.kept(diverged),
        interrupted=interrupted,
        best_step=None if diverged else state.patience.restore(state.decoder),
        first_step_at=state.clock.first_step_at,
        tokens_per_second=state.clock.tokens_per_second,
    )


def last(values: Sequence[float]) -> float | None:
    """The last value, or None where there is none."""
    return values[-1] if values else None
