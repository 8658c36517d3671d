"""A look inside the layers during one training step: cheap enough to take every few steps, and otherwise not there.

By layer:
    activation_rms      root mean square of the residual stream after the layer
    attention_entropy   mean over heads and queries of the weights' entropy, nats
    max_score           largest score before the softmax
    grad_norm           norm of the gradient of all the layer's parameters, before clipping
    update_ratio        norm of the step's change of the layer's parameters over the norm of the parameters

The two attention quantities are taken from the first sequence of the batch, and from its last queries where it is long.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from archlab.blocks.reading import Reading
from archlab.model import Decoder


IN_FORWARD = ("activation_rms", "attention_entropy", "max_score")
"""What the forward pass shows; the first is cheap enough for every step."""


def gradient_norms(layers: Sequence[nn.Module]) -> Tensor:
    """By layer, the norm of the gradient of all its parameters."""
    return torch.stack([get_total_norm([p.grad for p in layer.parameters() if p.grad is not None]) for layer in layers])


class Update:
    """How far a step moves each layer: made before the step, `ratios()` after it."""

    def __init__(self, layers: Sequence[nn.Module]):
        self.layers = layers
        self.before = [[p.detach().clone() for p in layer.parameters()] for layer in layers]

    @torch.no_grad()
    def ratios(self) -> Tensor:
        """By layer, the norm of the change of its parameters over their norm before."""
        pairs = zip(self.layers, self.before, strict=True)
        return torch.stack(
            [
                get_total_norm(torch._foreach_sub(list(layer.parameters()), old)) / get_total_norm(old)
                for layer, old in pairs
            ]
        )


class Look:
    """Measures one step: `forward()` around the forward pass, `gradients()` after the backward, `update()` around the step.

    `quantities` says what of the forward pass is looked at; hooks are there for nothing else.
    """

    def __init__(self, decoder: Decoder, quantities: Sequence[str] = IN_FORWARD):
        self.decoder = decoder
        self.quantities = quantities
        self.seen: dict[str, list[Tensor] | Tensor] = {}

    @contextmanager
    def forward(self) -> Iterator[None]:
        self.seen.update({quantity: [] for quantity in self.quantities})
        hooks = []
        if "activation_rms" in self.quantities:
            hooks += [layer.register_forward_hook(self.see_stream) for layer in self.decoder.layers]
        if {"attention_entropy", "max_score"} & set(self.quantities):
            hooks += [
                layer.attention.register_forward_pre_hook(self.see_attention, with_kwargs=True)
                for layer in self.decoder.layers
            ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def see_stream(self, layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.seen["activation_rms"].append(
            torch.linalg.vector_norm(output, dtype=torch.float32) / output.numel() ** 0.5
        )

    @torch.no_grad()
    def see_attention(self, attention: nn.Module, inputs: tuple[Tensor], options: dict[str, Reading]) -> None:
        (x,), reading = inputs, options["reading"]
        one = reading.of_first()
        *_, rows = one.blocks()
        scores = attention.scores(x[:1], one, rows)
        self.seen["attention_entropy"].append(torch.special.entr(scores.softmax(dim=-1)).sum(dim=-1).mean())
        self.seen["max_score"].append(scores.amax())

    @torch.no_grad()
    def gradients(self) -> None:
        self.seen["grad_norm"] = gradient_norms(list(self.decoder.layers))

    @contextmanager
    def update(self) -> Iterator[None]:
        update = Update(list(self.decoder.layers))
        yield
        self.seen["update_ratio"] = update.ratios()

    def taps(self) -> dict[str, Tensor]:
        """What was seen: by name, a value for each layer."""
        return {
            name: torch.stack(values) if isinstance(values, list) else values for name, values in self.seen.items()
        }

    def by_layer(self) -> list[dict[str, float]]:
        """What was seen, one record a layer."""
        return by_layer({name: values.tolist() for name, values in self.taps().items()})


def by_layer(columns: dict[str, list[float]]) -> list[dict[str, float]]:
    """One record a layer, of a value for each layer by name."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
