"""Several runs of one architecture trained as one program: their weights are stacked, and a step moves them all.

Each run is a member, with a seed, a data order, a learning rate, a schedule and an end of its own. What it computes is
what it would compute alone, but for the order in which numbers are added: a member's decoder, and what the optimizer
keeps of it, are views of the stack, so whoever watches a run sees an ordinary one.
"""

import copy
import math
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from archlab.base.messages import beyond_the_machine
from archlab.base.signals import Stop
from archlab.blocks.roles import DECAYING
from archlab.data.batch import Batch, Source
from archlab.model.decoder import Decoder, held_at_one
from archlab.probe.look import EVERY_STEP
from archlab.probe.recorder import EVERY_STEP as RECORDED_EVERY_STEP
from archlab.train.compiling import compile_errors, compiled
from archlab.train.loop import Outcome, let_see
from archlab.train.loop import outcome as outcome_of
from archlab.train.objective import Inputs, Program, Term, placed, terms_of
from archlab.train.observers import Divergence, Log, Observer, Record, Recording, Validation
from archlab.train.runtime import Runtime
from archlab.train.schedule import learning_rate
from archlab.train.settings import TrainSettings
from archlab.train.state import RUNNING, TrainState
from archlab.train.step import Seen, StepResult, falls_on, scalars_of, seen_of
from archlab.train.step import means as means_of

EPS = 1e-8
"""Of AdamW, as torch has it."""


@dataclass
class Member:
    """One run of a pack, and who watches it; the fields are the arguments of `archlab.train.loop.train`."""

    decoder: Decoder
    source: Source
    settings: TrainSettings
    seed: int
    validate: Callable[[], float | None]
    report: Callable[[Record], None]
    probe_every: int | None = None
    observers: Sequence[Observer] = ()
    error: Exception | None = field(default=None, init=False)
    """What ended this member alone, such as a full disk."""


class Following:
    """A member while it trains: its state, who watches it, and the results nobody has read yet."""

    def __init__(self, member: Member, machine: Runtime):
        settings, probe_every = member.settings, member.probe_every
        self.member, self.state = member, TrainState.begin(member.decoder, settings, machine, member.seed)
        validation = Validation(settings.eval_every, member.validate)
        log = Log(settings, probe_every, validation, member.report)
        divergence = Divergence(member.source, settings, machine, member.seed)
        self.observers: list[Observer] = [divergence, Recording(), validation, log, *member.observers]

    @property
    def running(self) -> bool:
        return self.state.status == RUNNING and self.member.error is None

    def due(self) -> bool:
        return any(observer.due(self.state) for observer in self.observers)

    def own_view_of(self, step: Seen) -> Seen:
        """The step with what the member would have recorded by itself, whatever the others of its pack had recorded."""
        every, last = self.member.probe_every, self.member.settings.steps
        if falls_on(step.number, every, last):
            return step
        kept = RECORDED_EVERY_STEP if every else ()
        return step._replace(layers={name: layers for name, layers in step.layers.items() if name in kept})

    def see(self, seen: list[Seen]) -> None:
        """What goes wrong with one member, as where its disk is full, ends that member alone."""
        for kept in self.state.optimizer.state.values():
            kept["step"].fill_(self.state.step)
        try:
            let_see(self.state, seen, self.observers)
        except Exception as error:
            self.member.error = error


def train_together(
    members: Sequence[Member],
    machine: Runtime,
    *,
    tick: Callable[[int, float | None, float | None, float | None], None],
    stop: Stop | None = None,
) -> list[Outcome]:
    """Trains all members in place, and returns how each ended.

    Where memory does not hold a pack it is halved, and goes on from the step it had reached; but where some weights had been
    moved already, which a second update would move twice, the error is raised. `tick` is called with each step's number and the
    mean loss and gradient norm of the running members.
    """
    stop = stop or Stop()
    following = [Following(member, machine) for member in members]
    packs = [Pack(following, machine)]
    try:
        with machine.in_force():
            while any(one.running for one in following) and stop.asked is None:
                packs = [half for pack in packs for half in stepped(pack, machine)]
                for pack in packs:
                    pack.show_where_due()
                front = max(one.state.step for one in following)
                tick(front, *means(following), sum_of_rates(following))
    except KeyboardInterrupt as error:
        stop.asked = getattr(error, "number", signal.SIGINT)
    for pack in packs:
        pack.show()
        pack.release()
    return [replace(outcome_of(one.state), compiled=machine.compile == "on") for one in following]


def stepped(pack: "Pack", machine: Runtime) -> list["Pack"]:
    """The pack after its next step; two packs, each half as large, where memory did not hold it."""
    try:
        pack.step()
        return [pack]
    except (MemoryError, RuntimeError) as error:
        if beyond_the_machine(error) is None or len(pack.following) == 1 or pack.updating:
            raise
    pack.show()
    pack.weights.clear()
    middle = len(pack.following) // 2
    halves = [Pack(part, machine, pack.number) for part in (pack.following[:middle], pack.following[middle:])]
    return [after for half in halves for after in stepped(half, machine)]


class Pack:
    """The stacked weights of its members, and a step that moves them all."""

    def __init__(self, following: Sequence[Following], machine: Runtime, number: int = 0):
        self.following, self.machine, self.number = list(following), machine, number
        self.settings = [one.member.settings for one in self.following]
        decoders = [one.member.decoder for one in self.following]
        self.base = copy.deepcopy(decoders[0]).train()  # the blocks alone; its own weights are never used
        self.base.for_packs()
        with torch.no_grad():
            self.weights = stacked_weights(decoders)
            self.moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in self.weights.items()}
            for i, one in enumerate(self.following):
                view_moments(one.state, self.moments, i)
        decaying = {weight.name for weight in self.base.weights() if weight.role in DECAYING}
        device = machine.device
        self.decay = {
            name: torch.tensor(
                [s.optimizer.decay(s, d.rates.get(name, 1.0)) for s, d in zip(self.settings, decoders, strict=True)],
                dtype=torch.float64,
                device=device,
            )
            * (name in decaying)
            for name in self.weights
        }
        self.rates = {
            name: torch.tensor([d.rates.get(name, 1.0) for d in decoders], dtype=torch.float64, device=device)
            for name in self.weights
        }
        self.held = {
            name: (axis, torch.tensor([name in d.held for d in decoders], device=device))
            for decoder in decoders
            for name, axis in decoder.held.items()
        }
        """The axis, counted from the last as in a member's own weights, and which members hold the weight at length 1."""
        self.terms = terms_of(self.settings[0].loss)
        self.beta1, self.beta2 = self.of_each("beta1", device), self.of_each("beta2", device)
        self.clip = torch.tensor([s.clip or math.inf for s in self.settings], device=device)
        self.of_layer = [
            [n for n in self.weights if n.startswith(f"layers.{i}.")] for i in range(len(self.base.layers))
        ]
        self.broken = torch.stack([one.state.broken for one in self.following])
        self.programs: dict[Any, Callable[..., Any]] = {}
        self.pending: list[StepResult] = []
        """Results whose tensors have a value for each member."""

        self.updating = False
        """Whether a step's update has begun and not ended."""

    def of_each(self, name: str, device: torch.device) -> Tensor:
        """A setting of every member, float64, as torch's own optimizer computes with it."""
        return torch.tensor([getattr(s, name) for s in self.settings], dtype=torch.float64, device=device)

    def release(self) -> None:
        """Gives every member's decoder weights of its own again."""
        for one in self.following:
            for parameter in one.member.decoder.parameters():
                parameter.data = parameter.data.clone()

    # ------------------------------------------------------------ a step

    def step(self) -> None:
        """Forward and backward pass, clipping and AdamW for every member, and no wait for the device."""
        number, device = self.number + 1, self.machine.device
        running = [one.running and number <= one.member.settings.steps for one in self.following]
        closely = any(falls_on(number, one.member.probe_every, one.member.settings.steps) for one in self.following)
        probed = any(one.member.probe_every for one in self.following)
        wanted = self.base.taps if closely else EVERY_STEP if probed else ()
        inputs = [placed(one.member.decoder, self.batch(one, number).to(device)) for one in self.following]

        loss, taps, further = self.backward(inputs, wanted)
        grads = {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}
        if probed:
            by_layer = [norms([grads[name] for name in names if name in grads]) for names in self.of_layer]
            taps["grad_norm"] = self.base.by_application(by_layer)
        grad_norm = norms(list(grads.values()))
        finite = loss.isfinite() & grad_norm.isfinite()
        self.broken = self.broken | ~finite
        alive = sent(running, torch.bool, device) & ~self.broken
        before = self.layers_before() if closely else None
        clipping = (self.clip / (grad_norm + 1e-6)).clamp(max=1.0)
        self.updating = True
        self.update(grads, number, clipping, alive)
        self.updating = False
        if before is not None:
            taps["update_ratio"] = self.base.by_application(self.update_ratios(before))
        self.pending.append(StepResult(number, loss, grad_norm, finite, taps, further))
        self.number = number
        for one, runs, broken in zip(self.following, running, self.broken, strict=True):
            if runs:
                one.state.step, one.state.broken = number, broken

    def batch(self, one: Following, number: int) -> Batch:
        """The member's own data; of one that has ended, the last that it had."""
        settings = one.member.settings
        return one.member.source.train(
            one.member.seed, min(number, settings.steps), settings.batch_size, settings.train_len
        )

    def backward(
        self, inputs: Sequence[Inputs], wanted: Collection[str]
    ) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
        """Adds up the gradients of every member's mean loss over its scored targets.

        Returns the losses, the taps and the mean losses of further tokens.
        """
        pieces = self.settings[0].accumulate
        whole = stacked_inputs(inputs)
        n_scored = whole.scored.sum(dim=(1, 2)).clamp(min=1)
        axes = tuple(None if column is None else 0 for column in whole)
        program = self.program(tuple(wanted), axes)
        for weight in self.weights.values():
            weight.grad = None
        total = torch.zeros(len(inputs), device=self.machine.device)
        seen: dict[str, Any] = {}
        further: dict[str, Tensor] = {}
        for i, piece in enumerate(in_pieces(whole, pieces)):
            weights = {f"decoder.{name}": weight for name, weight in self.weights.items()}
            with self.machine.autocast():
                sums, added, terms, ahead, taps = program(weights, *piece)
            loss = sums / n_scored
            beside = sum(((one / n_scored).sum() for one in terms.values()), start=0.0)
            (loss.sum() + beside + sum((one.sum() for one in added.values()), start=0.0) / pieces).backward()
            total += loss.detach()
            further |= {name: further.get(name, 0) + both.detach() for name, both in ahead.items()}
            if i == 0:
                names = dict.fromkeys(name for layer in taps for name in layer)
                seen = {name: [layer.get(name) for layer in taps] for name in names}
        return total, seen, means_of(further)

    def program(self, wanted: tuple[str, ...], axes: tuple[int | None, ...]) -> Callable[..., Any]:
        """(stacked weights, inputs) -> losses, what blocks and terms add to them, those of further tokens, taps.

        `axes` are the members' axis in each input. Where it is compiled it is compiled as a whole, since torch calls nothing
        compiled under vmap; a step that records all quantities is run as it is.
        """
        if (wanted, axes) not in self.programs:
            of_one = program_of_one(self.base, wanted, self.terms)

            def of_all(weights: dict[str, Tensor], *piece: Tensor | None) -> Any:
                return torch.vmap(of_one, in_dims=(0, *axes))(weights, *piece)

            as_it_is = self.machine.compile != "on" or wanted == self.base.taps
            self.programs[wanted, axes] = of_all if as_it_is else compiled_or_refused(of_all)
        return self.programs[wanted, axes]

    @torch.no_grad()
    def update(self, grads: Mapping[str, Tensor], number: int, clipping: Tensor, alive: Tensor) -> None:
        """AdamW with every member's own numbers. Source: arXiv:1711.05101, alg. 2.

        A member that broke down or has ended stays where it is: its gradient counts as zero, and so does its rate.
        """
        scheduled = [learning_rate(min(number, s.steps), s) for s in self.settings]
        rates = sent(scheduled, torch.float64, alive.device).where(alive, 0.0)
        first, second = 1 - self.beta1**number, 1 - self.beta2**number
        for name, grad in grads.items():
            weight, (mean, square) = self.weights[name], self.moments[name]

            def each(numbers: Tensor, like: Tensor = weight) -> Tensor:
                return numbers.to(like.dtype).view(-1, *[1] * (like.ndim - 1))

            grad = (grad * each(clipping)).where(each(alive.to(grad.dtype)) > 0, 0.0)
            weight.mul_(each(1 - rates * self.rates[name] * self.decay[name]))
            mean.lerp_(grad, each(1 - self.beta1))
            square.mul_(each(self.beta2)).addcmul_(grad * each(1 - self.beta2), grad)
            denominator = (square.sqrt() / each(second.sqrt())).add_(EPS)
            weight.sub_(mean / denominator * each(rates * self.rates[name] / first))
            if name in self.held:
                axis, holds = self.held[name]
                weight.copy_(held_at_one(weight, axis, unless=each(alive & holds) == 0))

    # ------------------------------------------------------------ what is seen of a step

    @torch.no_grad()
    def layers_before(self) -> list[list[Tensor]]:
        return [[self.weights[name].clone() for name in names] for names in self.of_layer]

    @torch.no_grad()
    def update_ratios(self, before: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """By layer, the norm of the change of its parameters over their norm before, for every member."""
        return [
            norms([self.weights[name] - old for name, old in zip(names, olds, strict=True)]) / norms(olds)
            for names, olds in zip(self.of_layer, before, strict=True)
        ]

    def show_where_due(self) -> None:
        """All members are shown their numbers where an observer of any of them wants its own now."""
        if any(one.running and one.due() for one in self.following):
            self.show()

    def show(self) -> None:
        """Reads the pending results of all members off the device at once, and shows each member its own."""
        rows = read_packed(self.pending, len(self.following))
        self.pending.clear()
        for one, seen in zip(self.following, rows, strict=True):
            if one.running:
                one.see([one.own_view_of(step) for step in seen if step.number <= one.member.settings.steps])


def program_of_one(base: Decoder, wanted: tuple[str, ...], terms: Mapping[str, Term]) -> Callable[..., Any]:
    """A member's loss, what is added to it by blocks and by terms, those of further tokens, and taps, as a function of its weights and inputs."""
    program = Program(base, wanted, terms=terms)
    buffers = {f"decoder.{name}": buffer for name, buffer in base.named_buffers()}

    def of_one(weights: dict[str, Tensor], *piece: Tensor | None) -> Any:
        parts, taps = functional_call(program, {**weights, **buffers}, piece)
        return parts.total, parts.added, parts.terms, parts.further, taps

    return of_one


def compiled_or_refused(of_all: Callable[..., Any]) -> Callable[..., Any]:
    """A pack's program, compiled. Calls raise UserError where torch cannot do that."""
    program = compiled(of_all)

    def call(*inputs: Any) -> Any:
        with compile_errors("this pack"):
            return program(*inputs)

    return call


def read_packed(results: Sequence[StepResult], n_members: int) -> list[list[Seen]]:
    """By member, the results as plain numbers, in one transfer for all."""
    if not results:
        return [[] for _ in range(n_members)]
    columns = [tensor.float() for result in results for tensor in scalars_of(result)]
    return [seen_of(results, iter(row)) for row in torch.stack(columns, dim=1).tolist()]


def stacked_inputs(inputs: Sequence[Inputs]) -> Inputs:
    """Inputs of all members, along a new first axis."""
    columns = zip(*inputs, strict=True)
    return Inputs(*(torch.stack(column) if column[0] is not None else None for column in columns))  # type: ignore[arg-type]


def in_pieces(whole: Inputs, pieces: int) -> list[Inputs]:
    """The sequences of every member in so many parts."""
    columns = [x.chunk(pieces, dim=1) if x is not None else [None] * pieces for x in whole]
    return [Inputs(*column) for column in zip(*columns, strict=True)]


def stacked_weights(decoders: Sequence[Decoder]) -> dict[str, Tensor]:
    """By name, the weights of all decoders along a new first axis; the decoders hold views of them from now on."""
    stacked: dict[str, Tensor] = {}
    for name, _ in decoders[0].named_parameters():
        own = [decoder.get_parameter(name) for decoder in decoders]
        stacked[name] = torch.stack([parameter.detach() for parameter in own]).requires_grad_(own[0].requires_grad)
        for i, parameter in enumerate(own):
            parameter.data = stacked[name].detach()[i]
    return stacked


def view_moments(state: TrainState, moments: Mapping[str, tuple[Tensor, Tensor]], i: int) -> None:
    """What the optimizer of a member keeps becomes views of the stack, with what it held before."""
    for name, parameter in state.decoder.named_parameters():
        kept, views = state.optimizer.state[parameter], [one[i] for one in moments[name]]
        for quantity, view in zip(("exp_avg", "exp_avg_sq"), views, strict=True):
            if quantity in kept:
                view.copy_(kept[quantity])
            kept[quantity] = view
        kept["step"] = torch.zeros((), device=parameter.device)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Over all but the first axis of all tensors together, the 2-norm of every member."""
    return torch.stack([tensor.detach().flatten(1).norm(dim=1) for tensor in tensors]).norm(dim=0)


def sent(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number of every member on the device; on CUDA from page-locked memory, for which nobody waits."""
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def means(following: Sequence[Following]) -> tuple[float | None, float | None]:
    """The mean of the last losses and gradient norms that were read."""
    losses = [one.state.losses[-1] for one in following if one.state.losses]
    grads = [one.state.grad_norms[-1] for one in following if one.state.grad_norms]
    return (sum(losses) / len(losses), sum(grads) / len(grads)) if losses else (None, None)


def sum_of_rates(following: Sequence[Following]) -> float | None:
    """Tokens per second of all members together."""
    rates = [one.state.clock.tokens_per_second for one in following]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known else None
