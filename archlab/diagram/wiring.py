"""A graph of boxes drawn from bottom to top, each box above what it reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from archlab.diagram.canvas import GREY, Canvas
from archlab.diagram.sketch import Box, Graph, consumers

GAP = 15
RADIUS = 9
SIGNS = {"add": "+", "mul": "×"}

COLORS = {
    "norm": ("#F7E3EE", "#A03A78"),
    "linear": ("#DDEBF5", "#0072B2"),
    "embedding": ("#DDEBF5", "#0072B2"),
    "activation": ("#FBE3D3", "#B84F00"),
    "position": ("#D8F0E7", "#007A59"),
    "mask": ("#E9E9E9", "#222222"),
    "scale": ("#FDF6D0", "#8A7400"),
}
"""Fill and stroke, tints of Okabe and Ito's palette; each kind also has a name written in it."""
PLAIN = ("#FFFFFF", GREY)

Span = tuple[float, float]
"""The left and the right edge, as shares of the width that there is."""


@dataclass(frozen=True)
class Place:
    """Where a node stands: its left and right edge, and its row, counted from 0 at the entry."""

    span: Span
    row: int

    @property
    def middle(self) -> float:
        return sum(self.span) / 2


def height(box: Box) -> float:
    if box.kind in SIGNS:
        return 2 * RADIUS
    return 35 if box.detail else 22


def places(graph: Graph) -> tuple[list[Place], list[tuple[int, int, float]]]:
    """Where each node stands, and the lines: the node it starts from, the node it leads to, and its distance across.

    A node divides its width between the lines that leave it, and is as wide as the lines that reach it, so every line
    runs straight up in a lane of its own.
    """
    read, used = consumers(graph), [0] * len(graph)
    found = [Place((0.0, 1.0), 0)]
    lanes: list[tuple[int, int, float]] = []
    for reader in range(1, len(graph)):
        spans = []
        for source in graph[reader].reads:
            left, right = found[source].span
            lane = (right - left) / read[source]
            spans.append((left + lane * used[source], left + lane * (used[source] + 1)))
            lanes.append((source, reader, sum(spans[-1]) / 2))
            used[source] += 1
        across = min(left for left, _ in spans), max(right for _, right in spans)
        found.append(Place(across, 1 + max(found[source].row for source in graph[reader].reads)))
    return found, lanes


def stack(canvas: Canvas, graph: Graph, left: float, bottom: float, wide: float) -> float:
    """Draws the graph `wide` across, with its entry at the bottom; returns where it ends, at the top."""
    found, lanes = places(graph)
    rows = [0.0] * (1 + max(place.row for place in found))
    for node, place in zip(graph[1:], found[1:], strict=True):
        rows[place.row] = max(rows[place.row], height(node.box))
    floors = [bottom - sum(rows[:row]) - GAP * row for row in range(len(rows))]
    for source, reader, lane in lanes:
        start, end = found[source], found[reader]
        tall = height(graph[source].box) if source else 0
        ring = graph[reader].box.kind in SIGNS
        foot = floors[end.row] - (RADIUS if ring else 0)
        points = _way(left + start.middle * wide, floors[start.row] - tall, left + lane * wide, foot)
        if ring and lane != end.middle:
            points.append((left + end.middle * wide + (RADIUS if lane > end.middle else -RADIUS), foot))
        elif ring:
            points[-1] = (points[-1][0], floors[end.row])
        canvas.line(points)
    for node, place in zip(graph[1:], found[1:], strict=True):
        across = (place.span[1] - place.span[0]) * wide - 6
        draw(canvas, node.box, left + place.middle * wide, floors[place.row], across)
    return floors[-1] - rows[-1]


def _way(x: float, y: float, to_x: float, to_y: float) -> list[tuple[float, float]]:
    """A line that goes up, across where needed, and up."""
    return [(x, y), (to_x, to_y)] if abs(x - to_x) < 0.1 else [(x, y), (x, y - 6), (to_x, y - 6), (to_x, to_y)]


def draw(canvas: Canvas, box: Box, middle: float, bottom: float, wide: float) -> float:
    """Draws one box that stands on `bottom`; returns where it ends, at the top."""
    top = bottom - height(box)
    with canvas.group(box.kind, label=box.label, detail=box.detail, path=box.path):
        if box.kind in SIGNS:
            canvas.circle(middle, bottom - RADIUS, RADIUS, SIGNS[box.kind])
            return top
        canvas.rect(middle - wide / 2, top, wide, height(box), *COLORS.get(box.kind, PLAIN))
        canvas.text(middle, top + 15, box.label, 11.5, room=wide - 8, bold=bool(box.detail))
        if box.detail:
            canvas.text(middle, top + 29, box.detail, 10.5, room=wide - 6)
    return top


def column(canvas: Canvas, boxes: Sequence[Box], middle: float, bottom: float, wide: float) -> float:
    """Boxes one above the other with arrows between them; the caller draws the line into the first."""
    top = bottom
    for place, box in enumerate(boxes):
        if place:
            canvas.line([(middle, top), (middle, top - GAP)])
        top = draw(canvas, box, middle, top - GAP * bool(place), wide)
    return top
