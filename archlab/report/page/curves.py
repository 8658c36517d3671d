"""Runs, arm by arm -> figures. One thin line per seed, a bold one for their mean, a cross where a run diverged."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from archlab.comparison.equal import timed_unlike
from archlab.records.reader import Run
from archlab.report.page.parts import Figure, View, figure_text
from archlab.report.plots import binned

DrawnCurve = dict[float, tuple[float, float]]
"""A run's points by a key that seeds share (the step, the layer): x and y."""

MOST_POINTS = 600
"""A longer curve is thinned to about this many points."""

AXES: dict[str, tuple[str, Callable[[Run, Mapping[str, Any]], float | None]]] = {
    "steps": ("step", lambda run, record: record["step"]),
    "tokens": ("tokens", lambda run, record: record["tokens"]),
    "FLOPs": ("training FLOPs, counted", lambda run, record: record["tokens"] * run.summary["train_flops_per_token"]),
    "seconds": ("seconds of training, from the second step on", lambda run, record: seconds(record)),
}
QUANTITIES = {
    "activation RMS": "activation_rms",
    "gradient norm": "grad_norm",
    "update / weight": "update_ratio",
    "attention entropy (nats)": "attention_entropy",
    "largest score": "max_score",
    "state RMS": "state_rms",
    "mean decay of the state": "mean_decay",
    "router entropy (nats)": "router_entropy",
    "largest load of an expert (of the mean)": "max_load",
    "smallest load of an expert (of the mean)": "min_load",
}
LENGTHS = {
    "whole window": ("loss", "loss (nats per token)"),
    "end of the window": ("loss_last", "loss over the last half train_len (nats per token)"),
    "exact match": ("exact_match", "share of answers that are right"),
}


@dataclass(frozen=True)
class ArmCurves:
    """What is compared: a label and its runs, one per seed."""

    label: str
    runs: Sequence[Run]


def figures(arms: Sequence[ArmCurves]) -> list[Figure]:
    """Every figure that the runs have data for."""
    made = (training(arms), by_length(arms), by_position(arms), layers(arms))
    return [figure for figure in made if figure is not None]


def training(arms: Sequence[ArmCurves]) -> Figure | None:
    """Training loss by step, token, FLOP and, where the runs were timed alike, second."""
    views = []
    timed_alike = not timed_unlike([run for arm in arms for run in arm.runs])
    for name, (title, place) in AXES.items():
        if name == "seconds" and not timed_alike:
            continue
        curves = [[training_curve(run, place) for run in arm.runs] for arm in arms]
        top = ceiling(curves)
        ends = [end for i, arm in enumerate(arms) for end in crosses(i, arm, curves[i], top)]
        layout = axes(title, "training loss (nats per token)", yaxis={"range": loss_range(curves, top)} if top else {})
        views.append(View(name, [*traces(arms, curves), *ends], layout))
    thinned = any(len(run.metrics) > MOST_POINTS for arm in arms for run in arm.runs)
    caption = (
        "A bold line is the mean of an arm's seeds, at steps that all finished seeds reached; a thin line is one seed."
        + (" Crosses mark where runs diverged." if any(run.diverged for arm in arms for run in arm.runs) else "")
        + (" Long curves are thinned: a short spike may be missing." if thinned else "")
    )
    return shown("Loss while training", caption, views)


def by_length(arms: Sequence[ArmCurves]) -> Figure | None:
    """Held-out loss by evaluation length."""
    views = []
    for name, (key, title) in LENGTHS.items():
        curves = [
            [points((r["eval_len"], r["eval_len"], r.get(key)) for r in lengths(run)) for run in arm.runs]
            for arm in arms
        ]
        ticks = sorted({length for arm in curves for curve in arm for length in curve})
        layout = axes("evaluation length (tokens)", title, **marked(arms, ticks))
        views.append(View(name, traces(arms, curves, "lines+markers"), layout))
    return shown("Held-out loss by length", "A dashed line marks the length of training.", views)


def by_position(arms: Sequence[ArmCurves]) -> Figure | None:
    """Held-out loss by position, a view for each evaluation length."""
    views = []
    for eval_len in sorted({record["eval_len"] for arm in arms for run in arm.runs for record in run.positions}):
        curves = [[position_curve(run, eval_len) for run in arm.runs] for arm in arms]
        ticks = [2**k for k in range(0, int(eval_len).bit_length(), 2)]
        layout = axes("position, counted from 1 (tokens)", "loss (nats per token)", **marked(arms, ticks))
        views.append(View(f"{eval_len:,} tokens", traces(arms, curves), layout))
    caption = "Each point is the mean of a quarter of a doubling. A dashed line marks the length of training."
    return shown("Held-out loss by position", caption, views[::-1])


def layers(arms: Sequence[ArmCurves]) -> Figure | None:
    """What each run's last probe measured, by layer."""
    views = []
    for name, key in QUANTITIES.items():
        curves = [
            [points((i, i, layer.get(key)) for i, layer in enumerate(last_look(run))) for run in arm.runs]
            for arm in arms
        ]
        layout = axes(
            "layer, counted from 0", name, xaxis={"tickformat": "d", "nticks": 8}, yaxis={"rangemode": "tozero"}
        )
        views.append(View(name, traces(arms, curves, "lines+markers"), layout))
    return shown("Inside the layers", "The last probe of each run, before any divergence that ended it.", views)


# ---------------------------------------------------------------- a run's curve


def training_curve(run: Run, place: Callable[[Run, Mapping[str, Any]], float | None]) -> DrawnCurve:
    every = max(1, math.ceil(len(run.metrics) / MOST_POINTS))
    kept = [record for i, record in enumerate(run.metrics) if i % every == 0 or record is run.metrics[-1]]
    return points((record["step"], place(run, record), record.get("loss")) for record in kept)


def position_curve(run: Run, eval_len: int) -> DrawnCurve:
    for record in run.positions:
        if record["eval_len"] == eval_len:
            places, losses = binned(record["position"], record["loss"], run.summary["train_len"])
            return points((i, float(x), float(y)) for i, (x, y) in enumerate(zip(places, losses, strict=True)))
    return {}


def lengths(run: Run) -> Sequence[Mapping[str, Any]]:
    return run.summary.get("length") or []


def last_look(run: Run) -> Sequence[Mapping[str, Any]]:
    looks = [record["layers"] for record in run.metrics if record.get("layers") and finite(record.get("loss"))]
    return looks[-1] if looks else []


def points(found: Iterable[tuple[float, float | None, float | None]]) -> DrawnCurve:
    """The points whose x and y are both numbers."""
    return {key: (x, y) for key, x, y in found if finite(x) and finite(y)}


def finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def seconds(record: Mapping[str, Any]) -> float | None:
    """Since the first step was done, of whose tokens the speed is none."""
    speed, step = record.get("tokens_per_second"), record["step"]
    return record["tokens"] * (step - 1) / step / speed if speed else None


def mean(curves: Sequence[DrawnCurve]) -> DrawnCurve:
    """The mean over curves, at the keys that all of them have."""
    shared = [key for key in curves[0] if all(key in curve for curve in curves)] if curves else []
    n = len(curves)
    return {key: (sum(c[key][0] for c in curves) / n, sum(c[key][1] for c in curves) / n) for key in shared}


# ---------------------------------------------------------------- traces


def traces(
    arms: Sequence[ArmCurves], curves: Sequence[Sequence[DrawnCurve]], mode: str = "lines"
) -> list[dict[str, Any]]:
    """For each arm a line for its mean, which stands in the legend, and a thin one for each seed where there are more."""
    made = []
    for i, (arm, seeds) in enumerate(zip(arms, curves, strict=True)):
        finished = [curve for run, curve in zip(arm.runs, seeds, strict=True) if curve and not run.diverged]
        average = mean(finished)
        named = {"name": figure_text(arm.label), "arm": i}
        made.append(
            named
            | {"mode": mode, "seeds": "mean", "label": arm.label, "line": {"width": 2.6}, "marker": {"size": 7}}
            | coordinates(average)
        )
        if len(seeds) > 1 or seeds != finished:
            made += [
                named
                | {"mode": "lines", "name": f"{named['name']}, seed {run.seed}", "opacity": 0.45, "line": {"width": 1}}
                | coordinates(curve)
                for run, curve in zip(arm.runs, seeds, strict=True)
                if curve
            ]
    return made


def crosses(i: int, arm: ArmCurves, curves: Sequence[DrawnCurve], top: float | None) -> Iterator[dict[str, Any]]:
    """Where each diverged run of an arm had its last number, brought down to the panel's edge where it is above."""
    ended = [max(curve.values()) for run, curve in zip(arm.runs, curves, strict=True) if run.diverged and curve]
    if ended and top:
        marker = {"symbol": "x", "size": 10}
        group = {"name": f"{figure_text(arm.label)}: diverged", "arm": i}
        yield group | {"mode": "markers", "marker": marker, "cliponaxis": False} | {
            "x": [rounded(x) for x, _ in ended], "y": [rounded(min(y, top)) for _, y in ended]
        }  # fmt: skip


def coordinates(curve: DrawnCurve) -> dict[str, list[float]]:
    places = sorted(curve.values())
    return {"x": [rounded(x) for x, _ in places], "y": [rounded(y) for _, y in places]}


def rounded(value: float) -> float:
    """Six significant digits: finer than a screen."""
    return float(f"{value:.6g}")


def shown(title: str, caption: str, views: Sequence[View]) -> Figure | None:
    """The figure without the views that hold no point; None where none holds any."""
    there = [view for view in views if any(trace["x"] for trace in view.traces)]
    return Figure(title, caption, there) if there else None


# ---------------------------------------------------------------- axes


def axes(x: str, y: str, xaxis: Mapping[str, Any] = {}, yaxis: Mapping[str, Any] = {}, **more: Any) -> dict[str, Any]:
    return {"xaxis": {"title": {"text": x}, **xaxis}, "yaxis": {"title": {"text": y}, **yaxis}, **more}


def ceiling(curves: Sequence[Sequence[DrawnCurve]]) -> float | None:
    """The highest loss a panel shows: the highest first loss of any run, since a diverging loss has no bound."""
    begun = [curve[min(curve)][1] for arm in curves for curve in arm if curve]
    return max(begun) if begun else None


def loss_range(curves: Sequence[Sequence[DrawnCurve]], top: float) -> list[float]:
    lowest = min(y for arm in curves for curve in arm for _, y in curve.values())
    room = 0.05 * (top - lowest) or 0.5
    return [rounded(lowest - room), rounded(top + room)]


def marked(arms: Sequence[ArmCurves], ticks: Sequence[float]) -> dict[str, Any]:
    """A log axis of tokens with plain numbers at its ticks, and a dashed line at each length of training."""
    trained = sorted({run.summary["train_len"] for arm in arms for run in arm.runs if run.summary.get("train_len")})
    lines = [
        {
            "type": "line",
            "xref": "x",
            "yref": "paper",
            "x0": n,
            "x1": n,
            "y0": 0,
            "y1": 1,
            "line": {"dash": "dash", "width": 1.2},
        }
        for n in trained
    ]
    labels = [
        {"x": math.log10(n), "y": 1, "xref": "x", "yref": "paper", "text": f"trained on {n:,}", "showarrow": False, "xanchor": "right", "yanchor": "top"}
        for n in trained
    ]  # fmt: skip
    xaxis = {"type": "log", "tickmode": "array", "tickvals": list(ticks), "ticktext": [f"{tick:,}" for tick in ticks]}
    return {"xaxis": xaxis, "shapes": lines, "annotations": labels}
