"""What to be wary of, in plain sentences."""

import math
from collections.abc import Iterator

from archlab.initial.measure import InitialMeasures

FAR_ABOVE = 1.0
"""Nats above ln V from which the head must be called sure of what it cannot know."""

UNEVEN = 10.0
"""From how many times its counterpart a gradient is called out of proportion."""


def warnings(start: InitialMeasures, update: float) -> Iterator[str]:
    """Nothing where the start is as it should be."""
    values = [start.loss, update, *(value for layer in start.layers for value in layer.values())]
    if not all(map(math.isfinite, values)):
        yield "A number is not finite before training has begun: no learning rate will help."
        return
    excess = start.loss - start.uniform_loss
    if excess > FAR_ABOVE:
        yield (
            f"The loss starts {excess:.2f} nats above ln V: the logits are too spread (standard deviation"
            f" {start.logit_std:.2f}), so the first steps go into unlearning them. A smaller initial head would help."
        )
    ratio = start.gradient_ratio
    if ratio > UNEVEN:
        yield f"The first layer's gradient is {ratio:.3g} times the last one's: it grows on its way back."
    if ratio < 1 / UNEVEN:
        yield f"The first layer's gradient is {ratio:.3g} times the last one's: it vanishes on its way back."
    first, last = start.layers[0]["activation_rms"], start.layers[-1]["activation_rms"]
    if last > UNEVEN * first:
        yield f"The stream grows from {first:.3g} to {last:.3g} (RMS) between the first layer and the last."
    if last < first / UNEVEN:
        yield f"The stream shrinks from {first:.3g} to {last:.3g} (RMS) between the first layer and the last."
    if update == 0:
        yield "A few steps of Adam change nothing of what the model computes: something is cut off from the loss."
