"""The learning rate over a run."""

import math

from archlab.train.settings import TrainSettings


def learning_rate(step: int, settings: TrainSettings) -> float:
    """At step 1 .. steps: linear up to lr over the warm-up, then half a cosine down to min_lr * lr at the last step.

    A run of one step takes it at lr: there is nothing to come down from.
    Source: arXiv:1608.03983, eq. 5, with one period; arXiv:1706.03762, sec. 5.3 for the warm-up.
    """
    if settings.steps == 1:
        return settings.lr
    warmup = settings.warmup_steps
    if step <= warmup:
        return settings.lr * step / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.lr * (settings.min_lr + (1 - settings.min_lr) * (1 + math.cos(math.pi * progress)) / 2)
