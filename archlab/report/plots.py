"""Records of a run -> pictures.

For each picture there is a builder, `..._figure`, which returns a matplotlib Figure, or None where the records hold
nothing to show, and a function that saves what the builder made. Figures are made without pyplot, so drawing
leaves no state behind and needs no display.

A value that is None, nan or inf is never joined by a line: it leaves a gap, and a cross on the panel's upper edge.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from archlab.base.files import whole
from archlab.report.tables import count

Records = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours can be told apart with every kind of colour vision; so can viridis, for ordered values.
BLUE, GREEN, VERMILLION, PURPLE, GREY = "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#595959"
ORDERED = "viridis"


def in_plot(text: str) -> str:
    """A text escaped for matplotlib, which would read formulas between dollars."""
    return text.replace("$", r"\$")


STYLE: dict[Any, Any] = {  # Any, since matplotlib types the names of its settings one by one
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "figure.titlesize": 13,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "legend.fontsize": 10,
    "legend.framealpha": 0.9,
    "figure.dpi": 130,
}

BINS_PER_DOUBLING = 4
FEW_POINTS = 40
WIDE = 20  # losses that differ by this factor need a log axis


def draw_all(directory: Path, metrics: Records, summary: Mapping[str, Any], positions: Records) -> list[Path]:
    """Writes loss.png, layers.png, positions.png and lengths.png; returns those that had something to show."""
    directory.mkdir(parents=True, exist_ok=True)
    leaking = bool(summary.get("leaking"))
    train_len = summary["train_len"]
    drawn = [
        training(metrics, directory / "loss.png", leaking),
        layers(metrics, directory / "layers.png", leaking),
        by_position(positions, train_len, directory / "positions.png", leaking),
        by_length(summary.get("length") or [], train_len, directory / "lengths.png", leaking),
    ]
    return [path for path in drawn if path is not None]


def training(metrics: Records, path: Path, leaking: bool = False) -> Path | None:
    """Saves `training_figure`; returns None where there is nothing to show."""
    return _save(training_figure(metrics, leaking), path)


def layers(metrics: Records, path: Path, leaking: bool = False) -> Path | None:
    """Saves `layers_figure`; returns None where there is nothing to show."""
    return _save(layers_figure(metrics, leaking), path)


def by_position(positions: Records, train_len: int, path: Path, leaking: bool = False) -> Path | None:
    """Saves `by_position_figure`; returns None where there is nothing to show."""
    return _save(by_position_figure(positions, train_len, leaking), path)


def by_length(length: Records, train_len: int, path: Path, leaking: bool = False) -> Path | None:
    """Saves `by_length_figure`; returns None where there is nothing to show."""
    return _save(by_length_figure(length, train_len, leaking), path)


@matplotlib.rc_context(STYLE)
def training_figure(metrics: Records, leaking: bool = False) -> Figure | None:
    """Loss and gradient norm by step, with validation losses and clipped steps as points."""
    steps = _column(metrics, "step")
    losses, norms = _column(metrics, "loss"), _column(metrics, "grad_norm")
    if not np.isfinite([*losses, *norms]).any():
        return None
    figure, (upper, lower) = _panels("Loss and gradient norm while training", leaking, rows=2, sharex=True)
    _line(upper, steps, losses, color=BLUE, label="training")
    _points(upper, metrics, "val_loss", "D", color=VERMILLION, label="validation")
    _line(lower, steps, norms, color=BLUE, label="gradient norm")
    clipped = [record for record in metrics if record.get("clipped")]
    share = f"clipped ({len(clipped)} of {len(metrics)} logged)"
    _points(lower, clipped, "grad_norm", "v", color=VERMILLION, label=share)

    upper.set_ylabel("loss (nats per token)")
    lower.set_ylabel("gradient norm\nbefore clipping")
    lower.set_xlabel(f"step ({count(metrics[-1]['tokens'])} tokens by the last)")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10), min_n_ticks=1))
    lowest, highest = _positive_range(losses)
    if highest > WIDE * lowest:
        log_y(upper, losses)
    log_y(lower, norms)
    _legend(upper, lower)
    return figure


@matplotlib.rc_context(STYLE)
def layers_figure(metrics: Records, leaking: bool = False) -> Figure | None:
    """Activation RMS and gradient norm by layer, at the first, the middle and the last probe."""
    probes = [record for record in metrics if record.get("layers")]
    chosen = [probes[i] for i in sorted({0, len(probes) // 2, len(probes) - 1})] if probes else []
    quantities = {"activation_rms": "activation RMS", "grad_norm": "gradient norm"}
    everything = {key: [value for probe in chosen for value in _column(probe["layers"], key)] for key in quantities}
    if not np.isfinite([*everything["activation_rms"], *everything["grad_norm"]]).any():
        return None
    figure, panels = _panels("Activations and gradients by layer", leaking, columns=2)
    for axes, (key, words) in zip(panels, quantities.items(), strict=True):
        for color, probe in zip(_ordered_colors(len(chosen)), chosen, strict=True):
            profile = _column(probe["layers"], key)
            _line(axes, np.arange(len(profile)), profile, color=color, marker="o", label=f"step {probe['step']:,}")
        axes.set_xlabel("layer, counted from 0")
        axes.set_ylabel(words)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        log_y(axes, everything[key])
    _legend(*panels)
    return figure


@matplotlib.rc_context(STYLE)
def by_position_figure(positions: Records, train_len: int, leaking: bool = False) -> Figure | None:
    """Held-out loss by position, a line for each evaluation length, averaged in bins of equal width on the axis."""
    curves = {record["eval_len"]: binned(record["position"], record["loss"], train_len) for record in positions}
    if not np.isfinite([loss for _, means in curves.values() for loss in means]).any():
        return None
    figure, (axes,) = _panels("Held-out loss by position", leaking)
    for color, eval_len in zip(_ordered_colors(len(curves)), sorted(curves), strict=True):
        label = f"{eval_len:,} tokens ({eval_len / train_len:g}x)"
        _line(axes, *curves[eval_len], color=color, marker=".", markersize=4, label=label)
    axes.set_ylabel("loss (nats per token)")
    axes.set_xlabel(f"position, counted from 1 (tokens; each point is the mean of 1/{BINS_PER_DOUBLING} of a doubling)")
    _length_axis(axes, _doublings(train_len, max(curves)), train_len)
    _mark_train_len(axes, train_len)
    _legend(axes)
    return figure


@matplotlib.rc_context(STYLE)
def by_length_figure(length: Records, train_len: int, leaking: bool = False) -> Figure | None:
    """Held-out loss by evaluation length, and, for a task, the share of answers that were right."""
    losses = {"loss": "whole window", "loss_last": "end of the window"}
    shares = {"exact_match": "whole answers", "token_accuracy": "single tokens"}
    shown = [names for names in (losses, shares) if any(np.isfinite(_column(length, key)).any() for key in names)]
    if not shown:
        return None
    title = "Held-out loss by length" if shown == [losses] else "Held-out loss and accuracy by length"
    figure, panels = _panels(title, leaking, rows=len(shown), sharex=True)
    for axes, names in zip(panels, shown, strict=True):
        _draw_lengths(axes, length, names)
        axes.set_ylabel("loss (nats per token)" if names is losses else "share that is right")
        if names is shares:
            axes.set_ylim(-0.05, 1.1)
        _length_axis(axes, sorted({record["eval_len"] for record in length}), train_len)
        _mark_train_len(axes, train_len)
    panels[-1].set_xlabel("evaluation length (tokens)")
    _legend(*panels)
    return figure


def binned(positions: Sequence[int], losses: Sequence[float | None], train_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss in bins of equal width on a log2 axis -> (positions counted from 1, losses).

    `positions` count from 0. One bin ends at train_len, so no bin mixes positions within the training length with
    later ones. A bin with a loss that is not finite is itself not finite.
    """
    reached = np.asarray(positions, dtype=float) + 1
    bins = np.ceil(BINS_PER_DOUBLING * np.log2(reached / train_len) - 1e-9).astype(int)
    _, members, sizes = np.unique(bins, return_inverse=True, return_counts=True)
    centres = np.exp2(np.bincount(members, np.log2(reached)) / sizes)
    return centres, np.bincount(members, _floats(losses)) / sizes


def _draw_lengths(axes: Axes, length: Records, names: Mapping[str, str]) -> None:
    """A line for each named quantity, and a note on the lengths where it is not defined."""
    undefined = [record for record in length if record.get("note")]
    defined = sorted((record for record in length if not record.get("note")), key=lambda record: record["eval_len"])
    lengths = _column(defined, "eval_len")
    for (key, words), color, marker in zip(names.items(), (BLUE, VERMILLION), "os", strict=False):
        if any(key in record for record in defined):
            _line(axes, lengths, _column(defined, key), color=color, marker=marker, label=words)
    for note in dict.fromkeys(record["note"] for record in undefined):
        where = [record["eval_len"] for record in undefined if record["note"] == note]
        _cross(axes, np.array(where), GREY, note)


def _panels(
    title: str, leaking: bool, rows: int = 1, columns: int = 1, sharex: bool = False
) -> tuple[Figure, list[Axes]]:
    """An empty figure with its title, and its panels."""
    figure = Figure(figsize=(8, 3.2 * rows + 1.6), layout="constrained")
    if leaking:
        figure.suptitle(f"LEAKING: {title}", color=VERMILLION, weight="bold")
    else:
        figure.suptitle(title)
    return figure, list(figure.subplots(rows, columns, sharex=sharex, squeeze=False).flat)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    """A line through the finite values and a cross above each of the others."""
    finite = np.isfinite(y)
    if "marker" not in style and finite.sum() <= FEW_POINTS:
        style["marker"] = "."
    axes.plot(x, np.where(finite, y, np.nan), **style)
    if not finite.all():
        _cross(axes, x[~finite], style["color"], "not finite")


def _cross(axes: Axes, x: np.ndarray, color: Any, label: str) -> None:
    """Crosses on the upper edge, where a value is missing."""
    edge = axes.get_xaxis_transform()
    axes.plot(x, np.full(len(x), 0.97), "x", color=color, markersize=7, mew=2, transform=edge, label=label)


def _points(axes: Axes, records: Records, key: str, marker: str, color: str, label: str) -> None:
    """The finite values of some of the steps, unjoined."""
    values = _column(records, key)
    finite = np.isfinite(values)
    if finite.any():
        steps = _column(records, "step")[finite]
        axes.plot(steps, values[finite], marker, color=color, markersize=5, label=label, zorder=3)


def _length_axis(axes: Axes, ticks: Sequence[int], train_len: int) -> None:
    """A log2 axis of tokens; from train_len on, a tick also says how many times it is."""
    axes.set_xscale("log", base=2)
    multiples = [f"\n{tick / train_len:g}x" if tick >= train_len else "" for tick in ticks]
    labels = [f"{tick:,}{multiple}" for tick, multiple in zip(ticks, multiples, strict=True)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_ticklabels(labels)


def _doublings(train_len: int, longest: int) -> list[int]:
    """Powers of two up to half of train_len, then train_len doubled until the longest."""
    below = [2**k for k in range(train_len.bit_length()) if 2 ** (k + 1) <= train_len]
    above = [train_len * 2**k for k in range(longest.bit_length()) if train_len * 2**k <= longest]
    return below + (above or [train_len])


def _mark_train_len(axes: Axes, train_len: int) -> None:
    """A line at the length of training, and a shade over what is beyond it."""
    axes.axvline(train_len, color=GREY, linestyle="--", linewidth=1.2, label=f"trained on {train_len:,} tokens")
    left, right = axes.get_xlim()
    axes.axvspan(train_len, max(right, train_len), color=GREY, alpha=0.07, linewidth=0)
    axes.set_xlim(left, max(right, train_len))


def _positive_range(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The least and the largest of the finite values above zero; (1, 1) where there are none."""
    values = np.asarray(values)
    positive = values[np.isfinite(values) & (values > 0)]
    return (float(positive.min()), float(positive.max())) if positive.size else (1.0, 1.0)


def log_y(axes: Axes, values: Sequence[float] | np.ndarray) -> None:
    """A log10 axis around the positive values, at least a factor of four high, with plain numbers at its ticks."""
    low, high = _positive_range(values)
    margin = max((high / low) ** 0.08, (4 * low / high) ** 0.5)
    axes.set_yscale("log")
    axes.set_ylim(low / margin, high * margin)
    axes.yaxis.set_major_locator(LogLocator(subs=_ticks_a_decade(high / low)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _ticks_a_decade(spread: float) -> tuple[float, ...]:
    """The ticks within a decade: fewer for more decades."""
    if spread > 1000:
        return (1,)
    return (1, 2, 5) if spread > 12 else (1, 1.5, 2, 3, 4, 6, 8)


def _legend(*panels: Axes) -> None:
    """A legend in each panel, with each label once."""
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axes.legend(unique.values(), unique.keys())


def _ordered_colors(n: int) -> list[Any]:
    """Colours from dark to light; the palest, which can hardly be seen on white, are left out."""
    return [matplotlib.colormaps[ORDERED](share) for share in np.linspace(0, 0.85, n)]


def _column(records: Records, key: str) -> np.ndarray:
    """One quantity of every record; nan where a record lacks it."""
    return _floats([record.get(key) for record in records])


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _save(figure: Figure | None, path: Path) -> Path | None:
    if figure is None:
        return None
    with whole(path) as part:
        figure.savefig(part)
    return path
