"""What can be set about a training run by a number, with its units."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from archlab.base.quantities import Count, Fraction, Natural, NonNegative, Positive, Probability, Tokens


@dataclass(frozen=True)
class TrainOptions:
    """One field for each option of `train`; conf/config.yaml says what each means."""

    steps: Count
    tokens: Tokens | None
    train_len: Annotated[int, Interval(ge=2, le=2**28)]
    batch_size: Count
    accumulate: Count
    lr: Positive
    min_lr: Fraction
    warmup: Natural | None
    weight_decay: NonNegative
    beta1: Probability
    beta2: Probability
    clip: Positive | None
    checkpoint: bool
    eval_every: Count | None
    patience: Count | None
    log_every: Count
    save_every: Count | None = None
    deterministic: bool = False

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.train_len

    @property
    def warmup_steps(self) -> int:
        """A tenth of the steps where nothing else is said."""
        return self.steps // 10 if self.warmup is None else self.warmup


@dataclass(frozen=True)
class LossOptions:
    """One field for each option of `loss`; conf/config.yaml says what each means."""

    z: NonNegative = 0.0
    label_smoothing: Probability = 0.0
