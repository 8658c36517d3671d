"""What was measured at a model's initial weights, as tables and a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from archlab.base.files import whole
from archlab.report.tables import make_pairs, make_table, nats, number, spaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: dict[str, str] = {
    "activation_rms": "activation RMS",
    "attention_entropy": "entropy",
    "max_score": "max score",
    "grad_norm": "gradient",
    "mixer_to_stream": "of it, mixer to stream",
    "ffn_to_stream": "ffn to stream",
}

QUANTITIES = {
    "gradient": "gradient of what the last ffn writes to the stream by",
    "rms": "activation RMS after the last layer",
    "update": "update after a few steps",
}


def start(seen: Mapping[str, Any], warnings: Sequence[str]) -> RenderableType:
    """By layer: activations, attention and gradients; the loss beside ln V; warnings."""
    table = make_table(("layer", "right"), *((heading, "right") for heading in COLUMNS.values()))
    for depth, layer in enumerate(seen["layers"]):
        table.add_row(str(depth), *(number(layer.get(key)) for key in COLUMNS))
    facts = [
        ("loss", f"{nats(seen['loss'])} nats per token, and ln V is {nats(seen['uniform_loss'])}"),
        ("standard deviation of the logits", number(seen["logit_std"])),
        ("activation RMS ~ layer^p", f"p = {number(seen['growth_exponent'])}"),
        ("gradient, first layer / last", number(seen["gradient_ratio"])),
        (
            f"update after {seen['steps']} steps at {seen['lr']:g}",
            f"{number(seen['update'])} (||F - F0|| / sqrt(d_model))",
        ),
    ]
    cautions = [Text(f"- {line}", style="yellow") for line in warnings] or [Text("No warnings.", style="green")]
    return spaced([table, make_pairs("At initialisation", facts), Group(*cautions)])


def depths(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Each quantity by placement and depth, its exponent beside the predicted one."""
    return spaced(_one_quantity(quantity, heading, rows) for quantity, heading in QUANTITIES.items())


def _one_quantity(quantity: str, heading: str, rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = make_table(
        ("residual", "left"),
        *((f"{depth} layers", "right") for depth in rows[0]["depths"]),
        ("~ depth^", "right"),
        ("predicted", "right"),
    )

    def write(value: Any) -> str:
        return value if isinstance(value, str) else "" if value is None else f"{value:g}"

    for row in rows:
        measured = row["exponents"][quantity]
        table.add_row(
            row["placement"], *map(number, row[quantity]), number(measured), write(row["predicted"][quantity])
        )
    return Group(Text(heading[0].upper() + heading[1:], style="bold"), table)


def start_figure(seen: Mapping[str, Any]) -> "Figure":
    """Activation RMS, gradient norm and attention entropy by layer; nothing where a mixer has no entropy."""
    import matplotlib
    from matplotlib.figure import Figure

    from archlab.report.plots import BLUE, STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        for axes, key in zip(figure.subplots(1, 3), ("activation_rms", "grad_norm", "attention_entropy"), strict=True):
            axes.plot([layer.get(key, math.nan) for layer in seen["layers"]], marker="o", color=BLUE)
            axes.set(title=key.replace("_", " "), xlabel="layer", ylim=(0, None))
        figure.suptitle("At initialisation")
    return figure


def draw(seen: Mapping[str, Any], path: Path) -> Path:
    """Writes the figure of `start_figure`; returns its file."""
    import matplotlib

    from archlab.report.plots import STYLE

    with matplotlib.rc_context(STYLE), whole(path) as part:
        start_figure(seen).savefig(part)
    return path
