"""The last steps of a training run, layer by layer: what a run that breaks is asked about afterwards.

At every step, by layer:
    activation_rms      root mean square of the residual stream after the layer
    grad_norm           norm of the gradient of all the layer's parameters, before clipping

On the steps at which a `Look` is taken its quantities stand beside these.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archlab.probe.look import by_layer
from archlab.probe.spike import is_spike

CAPACITY = 256
"""Steps that are kept."""

AFTER_SPIKE = 16
"""Steps that are kept after the first spike; those before it fill the rest."""

EVERY_STEP = ("activation_rms", "grad_norm")

Record = dict[str, object]


@dataclass(frozen=True)
class RecordedStep:
    """One step as it was recorded: by quantity, a value for each layer."""

    number: int
    loss: float
    layers: Mapping[str, Sequence[float | None]]

    def record(self) -> Record:
        """As {step, loss, layers: [{quantity: value}]}."""
        return {"step": self.number, "loss": self.loss, "layers": by_layer(dict(sorted(self.layers.items())))}


class Recorder:
    """Told of each step, it keeps the last ones. `kept()` is what to look at: the stretch around the first spike, or
    the last steps where the run broke down. Of steps without layers it keeps nothing, but still notes the first spike.
    """

    def __init__(self) -> None:
        self.steps: deque[RecordedStep] = deque(maxlen=CAPACITY)
        self.around_spike: list[RecordedStep] | None = None
        self.first_spike: int | None = None

    def step_done(
        self, number: int, losses: Sequence[float], layers: Mapping[str, Sequence[float | None]] | None = None
    ) -> None:
        """`losses` are those of the steps up to this one, at least as many as `is_spike` looks at."""
        if layers:
            self.steps.append(RecordedStep(number, losses[-1], layers))
        if self.first_spike is None and is_spike(losses):
            self.first_spike = number
        if self.first_spike is not None and number == self.first_spike + AFTER_SPIKE:
            self.around_spike = list(self.steps)

    def kept(self, diverged: bool) -> list[Record]:
        """The recorded steps that explain how the run broke, oldest first; none where neither happened."""
        if not diverged and self.first_spike is None:
            return []
        steps = self.steps if diverged or self.around_spike is None else self.around_spike
        return [step.record() for step in steps]

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        rest: dict[str, Any] = {"first_spike": self.first_spike}
        for name, steps in (("steps", self.steps), ("around_spike", self.around_spike or [])):
            saved: dict[str, Any] = {
                "numbers": [step.number for step in steps],
                "losses": [step.loss for step in steps],
                "rows": {},
                "absent": {},
            }
            for quantity in {quantity: None for step in steps for quantity in step.layers}:
                rows = [row for row, step in enumerate(steps) if quantity in step.layers]
                saved["rows"][quantity] = rows
                values = [steps[row].layers[quantity] for row in rows]
                saved["absent"][quantity] = [layer for layer, value in enumerate(values[0]) if value is None]
                there = [[0.0 if value is None else value for value in row] for row in values]
                tensors[f"{name}/{quantity}"] = torch.tensor(there, dtype=torch.float64)
            rest[name] = saved
        return tensors, rest

    def load_state_dict(self, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
        read = {name: list(steps_of(name, tensors, rest[name])) for name in ("steps", "around_spike")}
        self.first_spike = rest["first_spike"]
        self.steps = deque(read["steps"], maxlen=CAPACITY)
        self.around_spike = read["around_spike"] or None


def steps_of(name: str, tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> list[RecordedStep]:
    layers: list[dict[str, list[float | None]]] = [{} for _ in saved["numbers"]]
    for quantity, rows in saved["rows"].items():
        absent = saved["absent"][quantity]
        for row, values in zip(rows, tensors[f"{name}/{quantity}"].tolist(), strict=True):
            layers[row][quantity] = [None if layer in absent else value for layer, value in enumerate(values)]
    return [RecordedStep(*step) for step in zip(saved["numbers"], saved["losses"], layers, strict=True)]
