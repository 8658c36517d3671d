"""All that a training run is told: its options, and the parts it is put together from."""

from dataclasses import dataclass, field

from archlab.train.average import Average, NoAverage
from archlab.train.optimizer import AdamW, UpdateRule
from archlab.train.options import LossOptions, TrainOptions
from archlab.train.schedules import Cosine, Schedule


@dataclass(frozen=True)
class TrainSettings(TrainOptions):
    """The options of `train`, with one part for each group that is about training."""

    optimizer: UpdateRule = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Cosine)
    average: Average = field(default_factory=NoAverage)
    loss: LossOptions = field(default_factory=LossOptions)
