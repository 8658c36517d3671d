"""The learning rate over a run."""

from archlab.train.settings import TrainSettings


def learning_rate(step: int, settings: TrainSettings) -> float:
    """At step 1 .. steps: linear up to lr over the warm-up, then lr times the schedule's share.

    A run of one step takes it at lr: there is nothing to come down from.
    Source: arXiv:1706.03762, sec. 5.3 for the warm-up.
    """
    if settings.steps == 1:
        return settings.lr
    warmup = settings.warmup_steps
    if step <= warmup:
        return settings.lr * step / warmup
    return settings.lr * settings.schedule.share(step, settings)
