"""The last steps of a run that spiked or diverged, layer by layer, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from archlab.base.files import whole
from archlab.report.plots import BLUE, GREY, ORDERED, STYLE, VERMILLION, in_plot, log_y
from archlab.report.tables import QUANTITIES, moved_first

Records = Sequence[Mapping[str, Any]]

EVERY_STEP = ("activation_rms", "grad_norm")
OF_SOME_BLOCKS = ("state_rms", "mean_decay", "router_entropy", "max_load", "min_load")
AT_LOOKS = ("attention_entropy", "max_score", "update_ratio", *OF_SOME_BLOCKS)
LOGARITHMIC = ("loss", "activation_rms", "grad_norm", "update_ratio", "state_rms")


def draw_autopsy(findings: Mapping[str, Any], recorded: Records, path: Path) -> Path | None:
    """Saves `autopsy_figure`; returns None where no step was recorded."""
    figure = autopsy_figure(findings, recorded)
    if figure is not None:
        with whole(path) as part:
            figure.savefig(part)
        return path
    return None


@matplotlib.rc_context(STYLE)
def autopsy_figure(findings: Mapping[str, Any], recorded: Records) -> Figure | None:
    """Loss and each quantity by step, a line per layer, with the steps at which the loss and the first series moved."""
    if not recorded:
        return None
    seen = {key for record in recorded for layer in record["layers"] for key in layer}
    shown = ["loss", *(key for key in (*EVERY_STEP, *AT_LOOKS) if key in seen)]
    figure = Figure(figsize=(9, 1.9 * len(shown) + 1.4), layout="constrained")
    first = findings["first"]
    words = moved_first(first) if first else findings["note"]
    figure.suptitle(in_plot(words[0].upper() + words[1:]))
    steps = np.array([record["step"] for record in recorded])
    for axes, key in zip(figure.subplots(len(shown), 1, sharex=True, squeeze=False).flat, shown, strict=True):
        if key == "loss":
            values = np.array([record["loss"] for record in recorded], dtype=float)
            _line(axes, steps, values, BLUE, "loss")
        else:
            values = _layers(axes, steps, recorded, key, first)
        axes.set_ylabel(QUANTITIES.get(key, "loss (nats per token)").replace(" ", "\n", 1))
        if key in LOGARITHMIC:
            log_y(axes, values)
        _mark_steps(axes, findings)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles, labels = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _layers(axes: Axes, steps: np.ndarray, recorded: Records, key: str, first: Mapping[str, Any] | None) -> np.ndarray:
    """A line for each layer, dark to light from the first to the last; the first to move is drawn thick."""
    values = np.array([[layer.get(key) for layer in record["layers"]] for record in recorded], dtype=float)
    measured = np.array([any(key in layer for layer in record["layers"]) for record in recorded])
    n_layers = values.shape[1]
    named = {0, n_layers - 1, first["layer"] if first else 0}
    for layer, share in enumerate(np.linspace(0, 0.85, n_layers)):
        is_first = first is not None and (first["layer"], first["quantity"]) == (layer, key)
        label = f"layer {layer}" if layer in named else None
        color = matplotlib.colormaps[ORDERED](share)
        _line(axes, steps[measured], values[measured, layer], color, label, 3 if is_first else 1.2)
    return values[measured]


def _line(axes: Axes, steps: np.ndarray, values: np.ndarray, color: Any, label: str | None, width: float = 1.2) -> None:
    """The finite values, and a cross on the upper edge for each of the others."""
    finite = np.isfinite(values)
    marker = "." if finite.sum() <= 40 else None
    axes.plot(steps, np.where(finite, values, np.nan), color=color, label=label, linewidth=width, marker=marker)
    edge = axes.get_xaxis_transform()
    axes.plot(steps[~finite], np.full((~finite).sum(), 0.95), "x", color=color, markersize=7, transform=edge)


def _mark_steps(axes: Axes, findings: Mapping[str, Any]) -> None:
    axes.axvline(findings["event_step"], color=GREY, linestyle=":", label=f"{findings['event']}")
    if findings["loss_moved"] is not None:
        axes.axvline(findings["loss_moved"], color=GREY, linestyle="--", label="loss moved")
    if findings["first"]:
        axes.axvline(findings["first"]["step"], color=VERMILLION, linewidth=5, alpha=0.4, label="first moved")
