"""One step of training. All that it uses and returns are tensors, so nothing waits for the device."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from archlab.data.batch import Batch
from archlab.model.decoder import Decoder
from archlab.model.layer import Layer, LayerCall
from archlab.probe.look import EVERY_STEP, Columns, Update, gradient_norms
from archlab.train.objective import NO_TERMS, Term, compute, scored_targets, terms_of
from archlab.train.optimizer import step_unless
from archlab.train.runtime import Runtime
from archlab.train.schedule import learning_rate
from archlab.train.settings import TrainSettings
from archlab.train.state import TrainState
from archlab.train.weights import saved_buffers


class StepResult(NamedTuple):
    """A step's mean loss in nats per token, gradient norm before clipping, and whether both are finite.

    `taps` are the recorded quantities, by name, each with a value per layer.
    """

    number: int
    loss: Tensor
    grad_norm: Tensor
    finite: Tensor
    taps: Columns
    further: dict[str, Tensor] = {}
    """The mean losses of the tokens after the next, by name, where they are predicted; not part of `loss`."""


class Seen(NamedTuple):
    """A StepResult as plain numbers."""

    number: int
    loss: float
    grad_norm: float
    finite: bool
    layers: dict[str, list[float | None]]
    """By quantity, one value per layer; None where a layer has no such quantity."""

    further: dict[str, float] = {}


Step = Callable[[TrainState, Batch], StepResult]


def make_step(
    decoder: Decoder,
    settings: TrainSettings,
    machine: Runtime,
    probe_every: int | None = None,
    call: LayerCall = Layer.watched,
) -> Step:
    """A step of this model: forward and backward pass, clipping, the optimizer's update.

    With `probe_every` some quantities of the layers are recorded at each step, and all of them at every `probe_every`th. A
    step whose loss or gradient is not finite does not change the weights, and neither does any step after it: training
    reads losses later than it takes steps, and a run that diverged keeps the weights it had before.

    `call` is how layers are called, such as compiled, but for a step that records all quantities: what is computed for
    those would have to be compiled by itself.
    """
    layers, terms = list(decoder.layers), terms_of(settings.loss)
    average_after = settings.average.after(settings.steps)
    kept_beside = saved_buffers(decoder)

    def step(state: TrainState, batch: Batch) -> StepResult:
        number = state.step + 1
        closely = falls_on(number, probe_every, settings.steps)
        wanted = decoder.taps if closely else EVERY_STEP if probe_every else ()
        buffers = [buffer.clone() for buffer in kept_beside]
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(number, settings) * group.get("rate", 1.0)

        state.optimizer.zero_grad(set_to_none=True)
        called = Layer.watched if closely else call
        loss, seen, counts, further = backward(
            decoder, batch, settings.accumulate, machine, state.scaler, wanted, called, terms
        )
        state.scaler.unscale_(state.optimizer)
        if probe_every:
            seen["grad_norm"] = decoder.by_application(gradient_norms(layers))
        grad_norm = clip_grad_norm_(decoder.parameters(), settings.clip or math.inf)
        finite = not_broken(loss, grad_norm, state.scaler)
        state.broken = state.broken | ~finite

        update = Update(layers) if closely else None
        apply(state, ~grad_norm.isfinite())
        decoder.after_step(counts)
        if update:
            seen["update_ratio"] = decoder.by_application(update.ratios())
        for buffer, before in zip(kept_beside, buffers, strict=True):
            buffer.copy_(before.where(state.broken, buffer))
        if state.averaged is not None and number > average_after:
            state.averaged.update(decoder)
        state.step = number
        return StepResult(number, loss, grad_norm.detach(), finite, seen, further)

    return step


def backward(
    decoder: Decoder,
    batch: Batch,
    pieces: int,
    machine: Runtime,
    scaler: torch.amp.GradScaler,
    wanted: Collection[str] = (),
    call: LayerCall = Layer.watched,
    terms: Mapping[str, Term] = NO_TERMS,
) -> tuple[Tensor, dict[str, Sequence[Tensor | None]], list[dict[str, Tensor]], dict[str, Tensor]]:
    """Adds up the gradients of the batch's mean loss over its scored targets, one piece at a time.

    What blocks and `terms` add to the loss is minimised too, and is not part of the returned loss, so that models compare. Returns
    that loss, in nats per token, the quantities recorded in the layers on the first piece, by application of a layer what
    it counted in all of them, and by name the mean losses of further tokens.
    """
    batch = batch.to(machine.device)
    n_scored = scored_targets(decoder, batch).sum().clamp(min=1)
    total = torch.zeros((), device=machine.device)
    seen: dict[str, Sequence[Tensor | None]] = {}
    counts: list[dict[str, Tensor]] = [{} for _ in range(decoder.applications_of_a_step)]
    further: dict[str, Tensor] = {}
    for i, piece in enumerate(split(batch, pieces)):
        # Compiled, all pieces record the same: what another compiles for costs more than a few numbers that nobody reads.
        shown_here = wanted if i == 0 or call is not Layer.watched else ()
        parts, shown = compute(decoder, piece, machine, shown_here, call, terms)
        loss = parts.total / n_scored
        beside = sum(term / n_scored for term in parts.terms.values())
        scaler.scale(loss + beside + sum(parts.added.values()) / pieces).backward()
        total += loss.detach()
        seen = seen or dict(shown)
        for so_far, counted in zip(counts, parts.counts, strict=True):
            so_far |= {name: so_far.get(name, 0) + value for name, value in counted.items()}
        further |= {name: further.get(name, 0) + both.detach() for name, both in parts.further.items()}
    return total, seen, counts, means(further)


def means(further: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of sums and numbers of targets, on the last axis, the means."""
    return {name: both[..., 0] / both[..., 1].clamp(min=1) for name, both in further.items()}


def split(batch: Batch, pieces: int) -> list[Batch]:
    """The batch's sequences in `pieces` parts."""
    columns = [x.chunk(pieces) if x is not None else [None] * pieces for x in batch]
    return [Batch(*column) for column in zip(*columns, strict=True)]


def not_broken(loss: Tensor, grad_norm: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
    """Whether loss and gradient are finite.

    With loss scaling an overflowing gradient is an ordinary event, after which the step is skipped and the scale lowered.
    """
    if scaler.is_enabled():
        return loss.isfinite() & (scaler.scale(torch.ones_like(loss)) >= 1)
    return loss.isfinite() & grad_norm.isfinite()


def apply(state: TrainState, overflowed: Tensor) -> None:
    """The optimizer's update, which is skipped where a loss or gradient is not finite, and what its weights are held to."""
    skip = state.broken | overflowed
    step_unless(state.optimizer, skip)
    state.decoder.hold(unless=skip)
    state.scaler.update()


def falls_on(step: int, every: int | None, last: int) -> bool:
    """Whether it is the first step, a multiple of `every`, or the last."""
    return every is not None and (step in (1, last) or step % every == 0)


def read(results: Sequence[StepResult]) -> list[Seen]:
    """The results as plain numbers: the one place where training waits for the device, in one transfer for all."""
    if not results:
        return []
    scalars = [tensor.float() for result in results for tensor in scalars_of(result)]
    return seen_of(results, iter(torch.stack(scalars).tolist()))


def scalars_of(result: StepResult) -> Iterator[Tensor]:
    """All that there is to read of a step, in the order in which `seen_of` takes it."""
    yield from (result.loss, result.grad_norm, result.finite)
    yield from (tensor for tensor in chain(*result.taps.values()) if tensor is not None)
    yield from result.further.values()


def seen_of(results: Sequence[StepResult], numbers: Iterator[float]) -> list[Seen]:
    """The results with their numbers, in the order in which `read` takes them off the device."""

    def take(layers: Sequence[Tensor | None]) -> list[float | None]:
        return [None if tensor is None else next(numbers) for tensor in layers]

    return [
        Seen(
            result.number,
            next(numbers),
            next(numbers),
            next(numbers) == 1,
            {name: take(layers) for name, layers in result.taps.items()},
            {name: next(numbers) for name in result.further},
        )
        for result in results
    ]
