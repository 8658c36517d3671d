"""What a run measures: the unit of each number, which way is better, and how much of a difference matters.

Whoever adds a number to summary.json that runs should be compared by adds a line here. Of a number without one, compare
asks which way is better.
"""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["lower", "higher"]

NATS = "nats per token"


@dataclass(frozen=True)
class Kind:
    """What one needs to know of a number to compare it."""

    better: Direction
    unit: str = ""
    smallest_effect: float = 0.0
    """Below this, a difference makes no difference to anyone; 0 where that cannot be said in general."""


LOSS = Kind("lower", NATS, 0.01)

KINDS: dict[str, Kind] = {
    "val_loss": LOSS,
    "train_loss": LOSS,
    "loss": LOSS,
    "loss_last": LOSS,
    "late_ratio": Kind("lower", "times the same targets at 1x"),
    "exact_match": Kind("higher", "share of answers"),
    "token_accuracy": Kind("higher", "share of tokens"),
    # what it costs
    "n_params": Kind("lower", "parameters"),
    "flops_per_token": Kind("lower", "FLOPs per token"),
    "train_flops_per_token": Kind("lower", "FLOPs per token"),
    "kv_bytes_per_token": Kind("lower", "bytes per token"),
    "state_bytes": Kind("lower", "bytes per sequence"),
    "tokens_per_second": Kind("higher", "tokens per second"),
    "first_step_seconds": Kind("lower", "seconds"),
    "wall_seconds": Kind("lower", "seconds"),
    # how calmly it trained
    "max_grad_norm": Kind("lower"),
    "median_grad_norm": Kind("lower"),
    "clipped_share": Kind("lower", "share of steps"),
    "loss_spike_score": Kind("lower", "share of steps"),
    "max_activation_rms": Kind("lower"),
    "max_update_ratio": Kind("lower"),
    "min_attention_entropy": Kind("higher", "nats"),
    "max_attention_score": Kind("lower"),
}
"""By the last part of its name in summary.json."""
