"""Masks and biases as pictures: queries downwards, keys to the right."""

from collections.abc import Sequence

import matplotlib
from matplotlib.colors import to_hex

from archlab.diagram.canvas import GREY, Canvas
from archlab.diagram.sketch import Matrix

SIDE = 132
PANEL = SIDE + 12
BLOCK = SIDE + 74
WORDS = {"forbidden": "#FFFFFF", "allowed": "#222222", "prefix": "#56A5D6"}
SHADES = 32


def matrices(canvas: Canvas, tables: Sequence[Matrix], left: float, edge: float, across: bool = False) -> float:
    """Draws them one below the other from `edge` down, or side by side above `edge`; returns their height."""
    for place, table in enumerate(tables):
        x, y = (left + place * (PANEL + 24), edge - BLOCK) if across else (left, edge + place * BLOCK)
        _matrix(canvas, table, x, y)
    return BLOCK * (bool(tables) if across else len(tables))


def _matrix(canvas: Canvas, table: Matrix, left: float, top: float) -> None:
    side = SIDE / len(table.cells)
    colors = [[WORDS[cell] if isinstance(cell, str) else _shade(cell) for cell in line] for line in table.cells]
    with canvas.group("matrix", label=table.title):
        canvas.text(left, top + 12, table.title, 12, room=PANEL + 8, bold=True, anchor="start")
        canvas.text(left, top + 26, table.note, 10, room=PANEL + 8, anchor="start", fill=GREY)
        canvas.cells(left + 12, top + 34, side, colors)
        canvas.border(left + 12, top + 34, SIDE)
        canvas.text(left + 12 + SIDE / 2, top + 34 + SIDE + 13, "key →", 10, fill=GREY)
        canvas.elements.append(f'<g transform="translate({left + 7:.5g} {top + 34 + SIDE / 2:.5g}) rotate(-90)">')
        canvas.text(0, 0, "← query", 10, fill=GREY)
        canvas.elements.append("</g>")


def _shade(share: float) -> str:
    """One of a few colours of viridis, so that cells of nearly the same value are one path."""
    return to_hex(matplotlib.colormaps["viridis"](round(share * SHADES) / SHADES))
