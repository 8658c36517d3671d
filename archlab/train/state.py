"""All that changes while a run trains, in one place: a checkpoint consists of this and nothing else."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from archlab.model.decoder import Decoder
from archlab.probe.nonfinite import NonFinite
from archlab.probe.recorder import Recorder
from archlab.train.average import Averaged
from archlab.train.clock import Clock
from archlab.train.optimizer import UpdateRule
from archlab.train.patience import Patience
from archlab.train.runtime import Runtime
from archlab.train.settings import TrainSettings
from archlab.train.weights import own_tensors, put_into

RUNNING = "running"
"""The status until a run is over: completed, diverged or stopped."""

Tensors = dict[str, Tensor]
PlainData = dict[str, Any]


@dataclass
class TrainState:
    """A run between two steps.

    Losses (nats per token) and gradient norms are by step, as far as they have been read off the device.
    """

    decoder: Decoder
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    patience: Patience
    clock: Clock
    broken: Tensor
    """Bool, on the device: whether a loss or gradient was not finite. From then on no step changes the weights."""

    rule: UpdateRule
    """What made the optimizer."""

    averaged: Averaged | None = None
    """The average of the weights that is evaluated in their place, where there is one."""

    recorder: Recorder = field(default_factory=Recorder)
    step: int = 0
    """Steps taken."""

    status: str = RUNNING
    first_nonfinite: NonFinite | None = None
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)

    @classmethod
    def begin(cls, decoder: Decoder, settings: TrainSettings, machine: Runtime, seed: int) -> "TrainState":
        """Before the first step; what is drawn from now on depends on `seed` alone."""
        torch.manual_seed(seed)
        return cls(
            decoder,
            settings.optimizer(decoder, settings),
            machine.scaler(),
            Patience(settings.patience),
            Clock(settings.tokens_per_step),
            torch.zeros((), dtype=torch.bool, device=machine.device),
            settings.optimizer,
            settings.average(decoder),
        )

    def state_dict(self) -> tuple[Tensors, PlainData]:
        """Tensors by name, left on their devices, and the rest as plain data that can be written as JSON."""
        best, patience = self.patience.state_dict()
        recorded, recorder = self.recorder.state_dict()
        tensors = {
            **under("weights", own_tensors(self.decoder)),
            **under("optimizer", dict(self.moments())),
            **under("average", own_tensors(self.averaged.module) if self.averaged else {}),
            **under("best", best),
            **under("recorder", recorded),
            **under("rng", draws(self.broken.device)),
            "broken": self.broken,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "grad_norms": torch.tensor(self.grad_norms, dtype=torch.float64),
        }
        rest = {
            "step": self.step,
            "status": self.status,
            "first_nonfinite": self.first_nonfinite and asdict(self.first_nonfinite),
            "patience": patience,
            "recorder": recorder,
            "clock": self.clock.state_dict(),
            "scaler": self.scaler.state_dict(),
            "optimizer": [numbers_of(group) for group in self.optimizer.param_groups],
            "averaged": self.averaged.n_averaged if self.averaged else 0,
        }
        return tensors, rest

    def load_state_dict(self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        """Continues a saved run of an equal decoder and equal settings, random numbers included."""
        device = self.broken.device
        put_into(self.decoder, of("weights", tensors))
        for name, value in of("optimizer", tensors).items():
            quantity, _, parameter = name.partition("/")
            kept = self.optimizer.state[self.decoder.get_parameter(parameter)]
            if quantity in kept:  # of which there may be views
                kept[quantity].copy_(value)
            else:
                kept[quantity] = value.to(device, copy=True)
        for group, numbers in zip(self.optimizer.param_groups, rest.get("optimizer", ()), strict=False):
            group.update(numbers)
        if self.averaged:
            put_into(self.averaged.module, of("average", tensors))
            self.averaged.n_averaged = rest["averaged"]
        self.patience.load_state_dict(
            {name: value.to(device, copy=True) for name, value in of("best", tensors).items()}, rest["patience"]
        )
        self.recorder.load_state_dict(of("recorder", tensors), rest["recorder"])
        self.clock.load_state_dict(rest["clock"])
        self.scaler.load_state_dict(rest["scaler"])
        self.broken.copy_(tensors["broken"])
        self.losses, self.grad_norms = tensors["losses"].tolist(), tensors["grad_norms"].tolist()
        self.step, self.status = rest["step"], rest["status"]
        self.first_nonfinite = NonFinite(**rest["first_nonfinite"]) if rest["first_nonfinite"] else None
        draw_from(of("rng", tensors))

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """What the optimiser keeps of each parameter, under the parameter's name."""
        for name, parameter in self.decoder.named_parameters():
            for quantity, value in self.optimizer.state[parameter].items():
                if isinstance(value, Tensor):
                    yield f"{quantity}/{name}", value

    # ------------------------------------------------------------ the weights that are evaluated

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Inside, the decoder has the weights it is evaluated with; after it, exactly those it is trained with."""
        if self.averaged is None and not self.rule.averages:
            yield
            return
        trained = {name: tensor.clone() for name, tensor in own_tensors(self.decoder).items()}
        self.settle()
        try:
            yield
        finally:
            put_into(self.decoder, trained)

    def settle(self) -> None:
        """Leaves the decoder with the weights it is evaluated with: the average's, where one has begun."""
        self.rule.evaluate(self.optimizer)
        if self.averaged is not None and self.averaged.n_averaged > 0:
            put_into(self.decoder, own_tensors(self.averaged.module))
            self.decoder.hold()  # a mean of vectors of length 1 is shorter


def numbers_of(group: Mapping[str, Any]) -> PlainData:
    """The plain numbers of one of torch's parameter groups; some optimizers count their steps there."""
    return {name: value for name, value in group.items() if isinstance(value, bool | int | float)}


def draws(device: torch.device) -> Tensors:
    """The states of the random number generators that dropout draws from, by device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def draw_from(states: Mapping[str, Tensor]) -> None:
    """Sets the random number generators to what `draws` returned."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state)


def under(folder: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors with `folder/` before their names."""
    return {f"{folder}/{name}": tensor for name, tensor in tensors.items()}


def of(folder: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors whose names begin with `folder/`, without it."""
    return {
        name.removeprefix(f"{folder}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{folder}/")
    }
