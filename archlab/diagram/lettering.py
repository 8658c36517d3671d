"""The width of text, and the size at which it fits into a given room."""

import textwrap
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
REGULAR, BOLD = FONTS / "DejaVuSans.ttf", FONTS / "DejaVuSans-Bold.ttf"
FAMILY = "DejaVu Sans, Verdana, sans-serif"
"""Verdana is as wide as DejaVu Sans, and browsers have it."""


@cache
def _font(file: Path) -> FT2Font:
    return FT2Font(str(file))


def width(words: str, size: float, bold: bool = False) -> float:
    """The width of the words, in the units of the font size."""
    font = _font(BOLD if bold else REGULAR)
    font.set_size(100, 72)
    font.set_text(words)
    return font.get_width_height()[0] / 64 / 100 * size


def fitting(words: str, size: float, room: float, bold: bool = False, smallest: float = 8) -> tuple[str, float]:
    """The words at a size at which they fit; shortened with an ellipsis where even the smallest does not fit."""
    wide = width(words, size, bold)
    if wide <= room:
        return words, size
    size = max(smallest, size * room / wide)
    while width(words, size, bold) > room and len(words) > 2:
        words = words.removesuffix("…")[:-1] + "…"
    return words, size


def wrapped(words: str, size: float, room: float, bold: bool = False) -> list[str]:
    """The words in as many lines as they need."""
    letters = int(room / max(width(words, size, bold), 1) * len(words))
    return textwrap.wrap(words, max(letters - 2, 12)) or [""]
