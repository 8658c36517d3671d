"""The names of parts in a drawing, read from the parts as they were built."""

from typing import Any

from torch import nn

from archlab.blocks.contracts import Norm
from archlab.diagram.sketch import Box

ACTIVATIONS = "torch.nn.modules.activation"


def box_of(part: nn.Module, path: str) -> Box | None:
    """A part as a box, or None where it returns its input unchanged."""
    name = type(part).__name__
    match part:
        case nn.Identity():
            return None
        case nn.Dropout(p=share):
            return Box("op", f"dropout {share:g}", path=path) if share else None
        case Norm():
            return Box("norm", name, path=path) if part.acts else None
        case nn.Linear():
            return linear(part, path)
        case _ if type(part).__module__ == ACTIVATIONS or not list(part.parameters()):
            return Box("activation", name, path=path)
        case _:
            return Box("op", name, path=path)


def linear(part: nn.Linear, path: str, out: str = "") -> Box:
    """Its name in the model, and its widths; `out`, if any, is written in place of the second."""
    bias = " + bias" if part.bias is not None else ""
    return Box("linear", path.rpartition(".")[2], f"{part.in_features} → {out or part.out_features}{bias}", path)


def scale(factor: float, name: str = "") -> Box:
    """A multiplication by a number, which may have a name."""
    return Box("scale", f"× {name}", f"{factor:.4g}") if name else Box("scale", f"× {factor:.4g}")


def details(part: nn.Module) -> str:
    """The numbers and texts that a part was built with, as far as it keeps them as attributes."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in vars(part).items()
        if _is_shown(name, value)
    )


def _is_shown(name: str, value: Any) -> bool:
    return (
        not name.startswith("_") and name != "training" and value is not False and isinstance(value, (int, float, str))
    )
