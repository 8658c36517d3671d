"""What an architecture does, as functions without arguments that can be called as often as a timing needs."""

from collections.abc import Iterator

import torch
from omegaconf import DictConfig

from archlab.base.errors import UserError
from archlab.config.assemble import build
from archlab.data.batch import Batch, Source
from archlab.model.decoder import check_decodable
from archlab.model.generate import generate
from archlab.runs.assembled import open_source, settings_of, training_seed
from archlab.runs.holds import check_fits
from archlab.train.compiling import layer_calls
from archlab.train.objective import placed
from archlab.train.pack import Following, Member, Pack
from archlab.train.runtime import Runtime, runtime
from archlab.train.settings import TrainSettings
from archlab.train.state import TrainState
from archlab.train.step import StepResult, backward, falls_on, make_step

MOST_DECODED = 64
"""Tokens that one call of `decode` adds."""


def machine_timed(cfg: DictConfig) -> Runtime:
    """The machine a configuration asks for. Raises UserError where there is no such machine here.

    With compile=on its layers are compiled, as a run's are; compile=auto, which goes by the length of a run, compiles
    nothing here.
    """
    return runtime(cfg.device, cfg.precision, cfg.train.deterministic, cfg.compile)


class Workload:
    """A decoder with its initial weights, one batch of its data, and the step it is trained by.

    Every call works on the same batch. A step is a run's own second one or so, at which the learning rate is still
    small, so that the weights hardly move however often it is timed; it records what a run records at every step, and
    not what it records of all layers at every `probe.every`th.
    """

    def __init__(self, cfg: DictConfig, machine: Runtime | None = None):
        self.cfg = cfg
        self.machine = machine or machine_timed(cfg)
        if self.machine.device.type == "mps":
            raise UserError(
                "device=mps: a timing has to wait for the device, and that is done for CUDA alone; use device=cpu"
            )
        self.settings: TrainSettings = settings_of(cfg)
        self.source = open_source(cfg)
        self.batch: Batch = self.source.train(training_seed(cfg), 1, self.settings.batch_size, self.settings.train_len)
        check_fits(cfg, self.machine.device)
        self.decoder = build(cfg).to(self.machine.device).train()
        if self.settings.checkpoint:
            self.decoder.recompute_activations()
        self.state = TrainState.begin(self.decoder, self.settings, self.machine, training_seed(cfg))
        self.call = layer_calls(self.decoder, self.machine.compile)
        self._step = make_step(self.decoder, self.settings, self.machine, cfg.probe.every, self.call)
        self._eager_step = make_step(self.decoder, self.settings, self.machine, cfg.probe.every)
        self._before = before_a_plain_step(cfg.probe.every, self.settings.steps)
        self.prompt = self.batch.inputs[:1, : max(1, self.settings.train_len // 2)].to(self.machine.device)
        self.n_decoded = min(MOST_DECODED, self.settings.train_len - self.prompt.shape[1])

    @property
    def tokens(self) -> int:
        """Input tokens of a forward pass, and of a step."""
        return self.batch.inputs.numel()

    def forward(self) -> torch.Tensor:
        """The logits of the batch, nothing kept for a backward pass."""
        inputs = placed(self.decoder, self.batch)
        with self.machine.in_force(), torch.no_grad(), self.machine.autocast():
            return self.decoder(
                inputs.tokens, inputs.prefix_len, inputs.positions, document_starts=inputs.document_starts
            )

    def forward_backward(self) -> torch.Tensor:
        """The batch's loss and all gradients."""
        self.state.optimizer.zero_grad(set_to_none=True)
        with self.machine.in_force():
            return backward(
                self.decoder, self.batch, self.settings.accumulate, self.machine, self.state.scaler, call=self.call
            )[0]

    def step(self) -> StepResult:
        """A whole training step, as a run takes it."""
        self.state.step = self._before
        with self.machine.in_force():
            return self._step(self.state, self.batch)

    def eager_step(self) -> StepResult:
        """The same step, nothing compiled."""
        self.state.step = self._before
        with self.machine.in_force():
            return self._eager_step(self.state, self.batch)

    def decode(self) -> torch.Tensor:
        """`n_decoded` tokens after the first half of a sequence, one at a time from a cache, batch 1."""
        with self.machine.in_force(), self.machine.autocast():
            return generate(self.decoder, self.prompt, max_new_tokens=self.n_decoded)

    @property
    def why_not_decoded(self) -> str | None:
        """Why it cannot be decoded from a cache, in one line; None where it can."""
        try:
            check_decodable(self.decoder)
        except UserError as reason:
            return str(reason)
        return None


class OneBatch(Source):
    """A source that gives the same sequences at every step, drawn before the first: no step is timed with the drawing of its data."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def train(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        """The one batch, whatever is asked for."""
        return self.batch

    def validation(self, seq_len: int, n_tokens: int, batch_size: int, stride: int | None = None) -> Iterator[Batch]:
        """Nothing is held out."""
        yield from ()


class PackedWorkload:
    """So many runs of one architecture packed as one, and the step that trains them all.

    Member i has the seed of a run i later, and weights and a batch of its own. The step is the one of a `Workload`: its
    number stays the same, and nobody watches.
    """

    def __init__(self, cfg: DictConfig, n_members: int, machine: Runtime | None = None):
        self.cfg = cfg
        self.machine = machine or machine_timed(cfg)
        members = [member_of(cfg, cfg.seed + i, self.machine.device) for i in range(n_members)]
        for member in members:
            settings = member.settings
            member.probe_every = cfg.probe.every
            member.source = OneBatch(member.source.train(member.seed, 1, settings.batch_size, settings.train_len))
        self.pack = Pack([Following(member, self.machine) for member in members], self.machine)
        self._before = before_a_plain_step(cfg.probe.every, members[0].settings.steps)

    def step(self) -> StepResult:
        """A step of every member."""
        self.pack.number = self._before
        with self.machine.in_force():
            self.pack.step()
        return self.pack.pending.pop()


def member_of(cfg: DictConfig, seed: int, device: torch.device) -> Member:
    """A run of this configuration at another seed, which nobody watches."""
    own = cfg.copy()
    own.seed = seed
    source = open_source(own)
    return Member(
        build(own).to(device), source, settings_of(own), training_seed(own), lambda: None, lambda record: None
    )


def before_a_plain_step(every: int | None, last: int) -> int:
    """The number of a step, of a run's first ones, after which none falls on what is recorded of all layers."""
    return next((number - 1 for number in range(2, 6) if not falls_on(number, every, last)), 1)
