"""Whether a run was stable: its probes and losses in a handful of numbers."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import numpy as np

from archlab.probe.spike import SPIKE_HISTORY, SPIKE_WINDOW, is_spike
from archlab.train.loop import Outcome


def stability(outcome: Outcome, records: Sequence[dict], clip: float | None) -> dict[str, object]:
    """Worst values over the run; what was not measured is None.

    Gradient norms are of every step, what is inside the layers of the probed steps.
    """
    looks = [record["layers"] for record in records if "layers" in record]
    norms = [norm for norm in outcome.grad_norms if math.isfinite(norm)]
    return {
        "max_grad_norm": max(norms, default=None),
        "median_grad_norm": float(np.median(norms)) if norms else None,
        "clipped_share": share_above(outcome.grad_norms, clip),
        "loss_spike_score": spike_score(outcome.losses),
        "max_activation_rms": worst(max, looks, "activation_rms"),
        "max_update_ratio": worst(max, looks, "update_ratio"),
        **scores(looks),
        "first_nonfinite": asdict(outcome.first_nonfinite) if outcome.first_nonfinite else None,
    }


def scores(looks: Sequence[Sequence[dict]]) -> dict[str, float | None]:
    """Nothing where layers were looked into and no mixer of theirs has softmax scores."""
    if looks and not any("max_score" in layer for look in looks for layer in look):
        return {}
    return {
        "min_attention_entropy": worst(min, looks, "attention_entropy"),
        "max_attention_score": worst(max, looks, "max_score"),
    }


def share_above(norms: Sequence[float], clip: float | None) -> float | None:
    """Share of the steps whose gradient was clipped."""
    return sum(norm > clip for norm in norms) / len(norms) if norms and clip is not None else None


def spike_score(losses: Sequence[float]) -> float | None:
    """Share of the steps that are spikes, of those that can be (`archlab.probe.spike`)."""
    possible = range(SPIKE_HISTORY + 1, len(losses) + 1)
    spikes = sum(is_spike(losses[max(0, step - 1 - SPIKE_WINDOW) : step]) for step in possible)
    return spikes / len(possible) if possible else None


def worst(pick: Callable[[Iterable[float]], float], looks: Iterable[Sequence[dict]], quantity: str) -> float | None:
    there = (layer[quantity] for look in looks for layer in look if quantity in layer)
    values = [value for value in there if math.isfinite(value)]
    return pick(values) if values else None
