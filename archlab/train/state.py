"""All that changes while a run trains, in one place: a checkpoint consists of this and nothing else."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from archlab.model.decoder import Decoder
from archlab.probe.nonfinite import NonFinite
from archlab.probe.recorder import Recorder
from archlab.train.clock import Clock
from archlab.train.optimizer import adamw
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
            adamw(decoder, settings),
            machine.scaler(),
            Patience(settings.patience),
            Clock(settings.tokens_per_step),
            torch.zeros((), dtype=torch.bool, device=machine.device),
        )

    def state_dict(self) -> tuple[Tensors, PlainData]:
        """Tensors by name, left on their devices, and the rest as plain data that can be written as JSON."""
        best, patience = self.patience.state_dict()
        recorded, recorder = self.recorder.state_dict()
        tensors = {
            **under("weights", own_tensors(self.decoder)),
            **under("optimizer", dict(self.moments())),
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
        }
        return tensors, rest

    def load_state_dict(self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        """Continues a saved run of an equal decoder and equal settings, random numbers included."""
        device = self.broken.device
        put_into(self.decoder, of("weights", tensors))
        for name, value in of("optimizer", tensors).items():
            quantity, _, parameter = name.partition("/")
            self.optimizer.state[self.decoder.get_parameter(parameter)][quantity] = value.to(device, copy=True)
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
                yield f"{quantity}/{name}", value


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
