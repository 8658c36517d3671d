"""The names of parts in a drawing, read from the parts as they were built, and what leads past layers, in words."""

from collections.abc import Mapping, Sequence
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


def looped_in_words(layers: Sequence[int]) -> str:
    """The layers of a loop, which follow each other: layers 1-3, or layer 2."""
    which = "-".join(map(str, dict.fromkeys((layers[0], layers[-1]))))
    return f"layer{'s' * (len(layers) > 1)} {which}"


def skips_in_words(ends: Mapping[int, Sequence[int]]) -> str:
    """From where to where skips lead, of many the first two and the last: 0 → 5, 1 → 4; `ends` as `Skips` has them."""
    pairs = [f"{start} → {end}" for end, starts in sorted(ends.items(), reverse=True) for start in starts]
    return ", ".join(pairs if len(pairs) < 6 else [*pairs[:2], "...", pairs[-1]])
