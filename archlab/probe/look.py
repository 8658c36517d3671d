"""A look inside the layers during one training step: cheap enough to take every few steps, and otherwise not there.

By layer:
    activation_rms      root mean square of the residual stream after the layer
    attention_entropy   mean over heads and queries of the weights' entropy, nats
    max_score           largest score before the softmax
    grad_norm           norm of the gradient of all the layer's parameters, before clipping
    update_ratio        norm of the step's change of the layer's parameters over the norm of the parameters

The two attention quantities are taken from the first sequence of the batch, and from its last queries where it is long;
a mixer without softmax scores has neither. A block may let more be seen. The first three are taps, which leave a layer with its output
(`archlab.blocks.taps`), so that they are the same numbers eager, compiled and packed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from archlab.model import Decoder


class Look:
    """Measures one step: `saw()` after the forward pass, `gradients()` after the backward, `update()` around the step."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self.seen: list[dict[str, Tensor]] = []

    def saw(self, taps: Sequence[Mapping[str, Tensor]]) -> None:
        """Takes what the forward pass let be seen, by layer: `Output.taps` of a pass that was asked for `decoder.taps`."""
        self.seen = [dict(layer) for layer in taps]

    @torch.no_grad()
    def gradients(self) -> None:
        for seen, layer in zip(self.seen, self.decoder.layers, strict=True):
            seen["grad_norm"] = get_total_norm([p.grad for p in layer.parameters() if p.grad is not None])

    @contextmanager
    def update(self) -> Iterator[None]:
        before = [[p.detach().clone() for p in layer.parameters()] for layer in self.decoder.layers]
        yield
        with torch.no_grad():
            for seen, layer, old in zip(self.seen, self.decoder.layers, before, strict=True):
                change = torch._foreach_sub(list(layer.parameters()), old)
                seen["update_ratio"] = get_total_norm(change) / get_total_norm(old)

    def by_layer(self) -> list[dict[str, float]]:
        """What was seen, one record per layer: whatever a layer has. One transfer for all of it."""
        numbers = iter(torch.stack([value.float() for layer in self.seen for value in layer.values()]).tolist())
        return [{name: next(numbers) for name in layer} for layer in self.seen]
