"""What one needs to know of a number to compare runs by it: its unit, which way is better, how much matters."""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Kind:
    """Of a number of which less is better, or more."""

    unit: str = ""
    smallest_effect: float = 0.0
    """Below this, a difference makes no difference to anyone; 0 where that cannot be said in general."""

    better: Direction = "lower"

    @property
    def share(self) -> bool:
        """Whether it lies between 0 and 1."""
        return self.unit.startswith("share of ")


def Lower(unit: str = "", smallest_effect: float = 0.0) -> Kind:  # noqa: N802 (it reads as a kind in an annotation)
    """Less is better."""
    return Kind(unit, smallest_effect, "lower")


def Higher(unit: str = "", smallest_effect: float = 0.0) -> Kind:  # noqa: N802
    """More is better."""
    return Kind(unit, smallest_effect, "higher")
