"""The training loop, to be read from top to bottom."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from archlab.data.batch import Batch, Source
from archlab.model import Decoder
from archlab.probe.look import Look
from archlab.probe.nonfinite import NonFinite, first_nonfinite
from archlab.probe.recorder import Recorder
from archlab.train.clock import Clock
from archlab.train.objective import compute, scored_targets, token_losses
from archlab.train.optimizer import adamw
from archlab.train.patience import Patience
from archlab.train.precision import Machine
from archlab.train.schedule import learning_rate
from archlab.train.settings import TrainSettings

Record = dict[str, object]


@dataclass
class Outcome:
    """How a run ended. Losses and gradient norms are by step, in nats per token."""

    status: str = "completed"
    """completed, diverged, or stopped: by early stopping or by the user."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    first_nonfinite: NonFinite | None = None
    first_spike: int | None = None
    """The first step whose loss was a spike."""

    recorded: list[Record] = field(default_factory=list)
    """What the layers did in the steps around that spike, or before the run diverged; empty where nothing happened."""

    interrupted: bool = False
    """Whether it was the user who stopped it."""

    best_step: int | None = None
    """With early stopping: the step whose weights were kept."""

    first_step_at: float | None = None
    """time.time() when the first step was done."""

    tokens_per_second: float | None = None
    """Over the steps after the first, without the time spent on validation."""


def train(
    decoder: Decoder,
    source: Source,
    settings: TrainSettings,
    machine: Machine,
    *,
    seed: int,
    probe_every: int | None = None,
    validate: Callable[[], float],
    report: Callable[[Record], None],
    tick: Callable[[int, float, float, float], None],
) -> Outcome:
    """Trains in place.

    `validate` gives the held-out loss, `report` is handed each logged step's record, `tick` each step's number, loss,
    gradient norm and tokens per second. A loss or gradient that is not finite ends the run before it reaches the
    weights.
    """
    torch.manual_seed(seed)
    optimizer, scaler = adamw(decoder, settings), machine.scaler()
    outcome, patience, clock = Outcome(), Patience(settings.patience), Clock(settings.tokens_per_step)
    recorder = Recorder(list(decoder.layers) if probe_every else [])
    decoder.train()
    try:
        for step in range(1, settings.steps + 1):
            batch = source.train(seed, step, settings.batch_size, settings.train_len)
            look = Look(decoder) if falls_on(step, probe_every, settings.steps) else None
            rate = set_learning_rate(optimizer, step, settings)

            optimizer.zero_grad(set_to_none=True)
            with recorder.forward():
                loss = backward(decoder, batch, settings.accumulate, machine, scaler, look)
            scaler.unscale_(optimizer)
            recorder.gradients()
            if look:
                look.gradients()
            grad_norm = float(clip_grad_norm_(decoder.parameters(), settings.clip or math.inf))
            outcome.losses.append(loss)
            outcome.grad_norms.append(grad_norm)

            if broke(loss, grad_norm, scaler):
                outcome.status, outcome.first_nonfinite = "diverged", locate(decoder, batch, machine, step)
            else:
                with look.update() if look else nullcontext():
                    scaler.step(optimizer)
                    scaler.update()
            clock.step_done()
            tick(step, loss, grad_norm, clock.tokens_per_second)

            seen: Record = {}
            if look and outcome.status != "diverged":
                seen["layers"] = look.by_layer()
            recorder.step_done(outcome.losses, seen.get("layers"))
            if settings.eval_every and step % settings.eval_every == 0 and outcome.status != "diverged":
                with clock.paused():
                    seen["val_loss"] = validate()
                patience.see(step, seen["val_loss"], decoder)
                outcome.status = "stopped" if patience.over else "completed"
            if seen or outcome.status != "completed" or falls_on(step, settings.log_every, settings.steps):
                report(
                    {
                        **measured(step, loss, grad_norm, rate, settings),
                        "tokens_per_second": clock.tokens_per_second,
                        **seen,
                    }
                )
            if outcome.status != "completed":
                break
    except KeyboardInterrupt:
        outcome.status, outcome.interrupted = "stopped", True
    outcome.best_step = patience.restore(decoder) if outcome.status != "diverged" else None
    outcome.first_spike, outcome.recorded = recorder.first_spike, recorder.kept(outcome.status == "diverged")
    outcome.first_step_at, outcome.tokens_per_second = clock.first_step_at, clock.tokens_per_second
    return outcome


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, settings: TrainSettings) -> float:
    rate = learning_rate(step, settings)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def measured(step: int, loss: float, grad_norm: float, rate: float, settings: TrainSettings) -> Record:
    """What is known of every step."""
    return {
        "step": step,
        "tokens": step * settings.tokens_per_step,
        "loss": loss,
        "lr": rate,
        "grad_norm": grad_norm,
        "clipped": settings.clip is not None and grad_norm > settings.clip,
    }


def backward(
    decoder: Decoder, batch: Batch, pieces: int, machine: Machine, scaler: torch.amp.GradScaler, look: Look | None
) -> float:
    """Adds up the gradients of the batch's mean loss over its scored targets, one piece at a time; returns that loss."""
    n_scored = scored_targets(decoder, batch).sum().clamp(min=1)
    total = torch.zeros((), device=machine.device)
    for i, piece in enumerate(split(batch, pieces)):
        with machine.autocast():
            losses, output = compute(decoder, piece, decoder.taps if look and i == 0 else ())
            loss = losses.total / n_scored.to(machine.device) + sum(output.losses.values()) / pieces
        if look and i == 0:
            look.saw(output.taps)
        scaler.scale(loss).backward()
        total += loss.detach()
    return float(total)


def split(batch: Batch, pieces: int) -> list[Batch]:
    columns = [x.chunk(pieces) if x is not None else [None] * pieces for x in batch]
    return [Batch(*column) for column in zip(*columns, strict=True)]


def broke(loss: float, grad_norm: float, scaler: torch.amp.GradScaler) -> bool:
    """Under loss scaling an overflowing gradient is an ordinary event: the step is skipped and the scale lowered."""
    if scaler.is_enabled():
        return not math.isfinite(loss) or scaler.get_scale() < 1
    return not (math.isfinite(loss) and math.isfinite(grad_norm))


def locate(decoder: Decoder, batch: Batch, machine: Machine, step: int) -> NonFinite:
    def loss() -> Tensor:
        with machine.autocast():
            return token_losses(decoder, batch).total

    return first_nonfinite(decoder, loss, step)


def falls_on(step: int, every: int | None, last: int) -> bool:
    """The first step, every so many, and the last."""
    return every is not None and (step in (1, last) or step % every == 0)
