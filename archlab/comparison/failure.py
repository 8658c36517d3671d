"""Which runs count as failed: the one rule of comparisons and of claims."""

from collections.abc import Mapping
from typing import Any

from archlab.base.plateau import on_plateau
from archlab.records.summary import KINDS

OF_LOSS = (KINDS["val_loss"].unit, KINDS["late_ratio"].unit)
"""Units of what a model that never left the plateau says nothing by; its gradients and its cost it has all the same."""


def quantity_of(metric: str) -> str:
    """late_ratio@4 is a late_ratio; stability.max_grad_norm a max_grad_norm."""
    return metric.partition("@")[0].rpartition(".")[2]


def broke(summary: Mapping[str, Any]) -> bool:
    """Whether a run diverged; also by its last update, which only its evaluation shows."""
    return summary["status"] == "diverged" or summary["val_loss"] is None


def failed(summary: Mapping[str, Any], metric: str) -> bool:
    """Whether a run broke; or, where a loss is asked for, never left the plateau of token frequencies.

    What a model finds of a task's answers is the result itself, however little it has learned.
    """
    if broke(summary):
        return True
    unigram = summary.get("unigram_loss")
    return is_of_loss(metric) and unigram is not None and on_plateau(summary["val_loss"], unigram)


def is_of_loss(metric: str) -> bool:
    """Whether it is a loss, or a ratio of losses."""
    kind = KINDS.get(quantity_of(metric))
    return kind is not None and kind.better == "lower" and kind.unit in OF_LOSS
