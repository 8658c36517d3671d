"""A look inside the layers during one training step: cheap enough to take every few steps, and otherwise not there.

By layer:
    activation_rms      root mean square of the residual stream after the layer
    attention_entropy   mean over heads and queries of the weights' entropy, nats
    max_score           largest score before the softmax
    grad_norm           norm of the gradient of all the layer's parameters, before clipping
    update_ratio        norm of the step's change of the layer's parameters over the norm of the parameters

The two attention quantities are taken from the first sequence of the batch, and from its last queries where it is long;
a mixer without softmax scores has neither, and a block may let more be seen. A looped layer has an entry for each application,
in order; grad_norm and update_ratio, which are of its weights, are the same in all of them. All but the last two are taps, which leave a
layer with its output (`archlab.blocks.taps`), so they are the same numbers eager, compiled and packed.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

EVERY_STEP = ("activation_rms",)
"""The tap that is cheap enough for every step."""

Columns = Mapping[str, Sequence[Tensor | None]]
"""By quantity, a value for each layer; None where a layer has no such thing."""


def columns(taps: Sequence[Mapping[str, Tensor]]) -> dict[str, list[Tensor | None]]:
    """What each layer let be seen, by quantity."""
    names = dict.fromkeys(name for layer in taps for name in layer)
    return {name: [layer.get(name) for layer in taps] for name in names}


def by_layer(numbers: Mapping[str, Sequence[float | None]]) -> list[dict[str, float]]:
    """One record per layer, of what it has."""
    rows = zip(*numbers.values(), strict=True)
    return [{name: value for name, value in zip(numbers, row, strict=True) if value is not None} for row in rows]


def gradient_norms(layers: Iterable[nn.Module]) -> list[Tensor]:
    """By layer, the norm of the gradient of all its parameters."""
    return [get_total_norm([p.grad for p in layer.parameters() if p.grad is not None]) for layer in layers]


class Update:
    """How far a step moves each layer: made before the step, `ratios()` after it."""

    def __init__(self, layers: Iterable[nn.Module]):
        self.layers = list(layers)
        self.before = [[p.detach().clone() for p in layer.parameters()] for layer in self.layers]

    @torch.no_grad()
    def ratios(self) -> list[Tensor]:
        """By layer, the norm of the change of its parameters over their norm before."""
        return [
            get_total_norm(torch._foreach_sub(list(layer.parameters()), old)) / get_total_norm(old)
            for layer, old in zip(self.layers, self.before, strict=True)
        ]
