"""A sketch of a model -> its block diagram as SVG, read from bottom to top, as in the papers.

The residual stream is the thick line on the left. Boxes on it act on the stream itself; boxes to its right are on an
arm that leaves the stream and, where there is a ring with a plus, is added to it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from archlab.diagram.canvas import GREY, INK, Canvas, document
from archlab.diagram.heatmap import BLOCK, PANEL, matrices
from archlab.diagram.lettering import wrapped
from archlab.diagram.sketch import DrawnBranch, DrawnHeads, Edge, Graph, Layers, ModelSketch
from archlab.diagram.trunk import DrawnJoin, along_the_stream, formula
from archlab.diagram.wiring import GAP, RADIUS, column, draw, stack

MARGIN = 14
STREAM, STREAM_BOX = 90, 136
ARMS, ARM, BETWEEN = 182, 284, 16
EDGE = 12
"""Between the lines of two edges."""
FRAME = "#F5F5F5"
TITLE = 13
THICK = 2.6


def svg(sketch: ModelSketch) -> str:
    """The whole drawing as one SVG file."""
    canvas, wide, top = _drawn(sketch)
    left = _room_for_edges(sketch)
    return document(canvas.elements, -left, top, left + wide, -top, sketch.title)


def side_by_side(left: ModelSketch, right: ModelSketch) -> str:
    """Two drawings in one file, aligned at the bottom."""
    (first, wide, top), (second, second_wide, second_top) = _drawn(left), _drawn(right)
    before, between = _room_for_edges(left), _room_for_edges(right)
    moved = [f'<g class="model" transform="translate({wide + between:.4g} 0)">', *second.elements, "</g>"]
    highest = min(top, second_top)
    title = f"{left.title} and {right.title}"
    return document(
        ['<g class="model">', *first.elements, "</g>", *moved],
        -before,
        highest,
        before + wide + between + second_wide,
        -highest,
        title,
    )


def _room_for_edges(sketch: ModelSketch) -> float:
    """How wide the lines beside the stream are together, to the left of 0."""
    return EDGE * len(sketch.edges) + MARGIN * bool(sketch.edges)


def _drawn(sketch: ModelSketch) -> tuple[Canvas, float, float]:
    """The elements, how wide they are together, and where they end at the top; the foot is at 0."""
    canvas, arms = Canvas(), max(_arms(layers.layer.residual) for layers in sketch.layers)
    wide = ARMS + arms * (ARM + BETWEEN) + MARGIN
    beside = arms == 1
    top = _Stream(canvas, arms, room_below=0 if beside else BLOCK + MARGIN).model(sketch)
    if beside:
        matrices(canvas, sketch.matrices, wide, top)
        wide += (PANEL + MARGIN) * bool(sketch.matrices)
    else:
        matrices(canvas, sketch.matrices, ARMS, -MARGIN, across=True)
    lines = wrapped(sketch.title, TITLE, wide - 2 * MARGIN, bold=True)
    top -= 16 + 18 * len(lines)
    for number, line in enumerate(lines):
        canvas.text(MARGIN, top + 18 * (number + 1), line, TITLE, bold=True, anchor="start")
    return canvas, wide, top - 6


def _arms(residual: Graph) -> int:
    """How many columns of arms a layer needs; two where it is drawn as a graph with the branches beside it."""
    steps = along_the_stream(residual)
    return 2 if steps is None else max([len(step.arms) for step in steps if isinstance(step, DrawnJoin)], default=1)


class _Stream:
    """The stream as far as it is drawn: `y` is its upper end."""

    def __init__(self, canvas: Canvas, arms: int, room_below: float):
        """`room_below` is the height left free between the foot and the layers, to the right of the stream."""
        self.canvas, self.columns, self.room_below = canvas, arms, room_below
        self.y: float = -MARGIN

    def model(self, sketch: ModelSketch) -> float:
        self.canvas.text(STREAM, self.y, "tokens", 12)
        self.y -= 16
        self.boxes(sketch.embedding)
        self.rise(max(0, self.y + self.room_below))
        total, frames = sum(len(each.indices) for each in sketch.layers), list[tuple[float, float]]()
        for layers in sketch.layers:
            bottom = self.y - GAP
            self.layers(layers, total)
            frames.append((bottom, self.y))
        self.edges(sketch.edges, frames)
        beside = self.further(sketch.further) if sketch.further else self.y
        self.boxes(sketch.head)
        self.rise(GAP, arrow=True)
        self.canvas.text(STREAM, self.y - 6, "logits", 12)
        return min(self.y - 20, beside - MARGIN)

    def further(self, heads: DrawnHeads) -> float:
        """A frame beside the head, with what the heads of further tokens do; returns where it ends, at the top."""
        bottom = self.y - GAP
        outside, self.canvas.elements = self.canvas.elements, []
        top = stack(self.canvas, heads.graph, ARMS + 8, bottom, ARM - 16) - 42
        inside, self.canvas.elements = self.canvas.elements, outside
        several = f"{heads.count} of them, for the tokens" if heads.count > 1 else "for the token"
        with self.canvas.group("further", name=heads.name):
            self.canvas.rect(ARMS, top, ARM, bottom - top, "white", GREY, "5 3")
            self.canvas.text(ARMS + 9, top + 15, f"{heads.name}, in training alone", 12, bold=True, anchor="start")
            words = f"{several} after the next"
            self.canvas.text(ARMS + 9, top + 29, words, 10.5, room=ARM - 18, anchor="start", fill=GREY)
            self.canvas.elements += inside
        return top

    def rise(self, by: float, arrow: bool = False) -> None:
        """Draws the stream further upwards."""
        self.canvas.line([(STREAM, self.y), (STREAM, self.y - by)], THICK, arrow)
        self.y -= by

    def boxes(self, graph: Graph) -> None:
        for place in range(1, len(graph)):
            self.box(graph, place)

    def box(self, graph: Graph, place: int) -> None:
        self.rise(GAP)
        with self.canvas.group("stream"):
            self.y = draw(self.canvas, graph[place].box, STREAM, self.y, STREAM_BOX)

    def edges(self, edges: Sequence[Edge], frames: Sequence[tuple[float, float]]) -> None:
        """Lines to the left of the layers' frames, whose bottom and top are given: a loop leads down, a skip up."""
        for number, edge in enumerate(edges):
            x, frame = -EDGE * (number + 0.5), MARGIN / 2
            start, end = frames[edge.start][1] + 6 + 8 * number, frames[edge.end][0] - 6 - 8 * number
            with self.canvas.group("loop" if edge.is_loop else "skip"):
                self.canvas.line([(frame, start), (x, start), (x, end), (frame, end)], THICK)

    def layers(self, layers: Layers, total: int) -> None:
        """A frame around one layer, with the number of such layers."""
        self.rise(GAP)
        outside, bottom = self.canvas.elements, self.y
        self.canvas.elements = []
        self.rise(6)
        self.layer(layers)
        words = [_count(layers.indices, total), *layers.notes, *formula(layers.layer.residual)]
        self.rise(10 + 14 * len(words))
        inside, self.canvas.elements = self.canvas.elements, outside
        right = ARMS + self.columns * (ARM + BETWEEN)
        with self.canvas.group("layer", count=str(len(layers.indices))):
            self.canvas.rect(MARGIN / 2, self.y, right - MARGIN / 2, bottom - self.y, FRAME, GREY, "5 3")
            for line, text in enumerate(words):
                room = right - ARMS - 10
                self.canvas.text(
                    ARMS, self.y + 17 + 14 * line, text, 11.5, room=room, bold=not line, anchor="start",
                    fill=INK if not line else GREY,
                )  # fmt: skip
            self.canvas.elements += inside

    def layer(self, layers: Layers) -> None:
        residual = layers.layer.residual
        branches = {branch.name: branch for branch in layers.layer.branches}
        steps = along_the_stream(residual)
        if steps is None:
            self.graph(residual, layers.layer.branches)
            return
        for step in steps:
            if isinstance(step, int) and residual[step].box.kind == "branch":
                step = DrawnJoin((), ((step,),), (), kept=False)
            if isinstance(step, DrawnJoin):
                self.join(residual, step, branches)
            else:
                self.box(residual, step)

    def join(self, residual: Graph, join: DrawnJoin, branches: dict[str, DrawnBranch]) -> None:
        """The arms from where they leave the stream to where they come back."""
        self.rise(10)
        tap = fork = self.y
        middles = [ARMS + ARM / 2 + (ARM + BETWEEN) * place for place in range(len(join.arms))]
        first = sum(middles) / len(middles)
        if join.shared:
            self.canvas.line([(STREAM, tap), (first, tap), (first, tap - GAP)])
            with self.canvas.group("shared"):
                fork = column(self.canvas, [residual[p].box for p in join.shared], first, tap - GAP, ARM)
            self.canvas.line([(first, fork), (first, fork - 7)], arrow=False)
            fork -= 7
        tops = []
        for middle, nodes in zip(middles, join.arms, strict=True):
            start = first if join.shared else STREAM
            self.canvas.line([(start, fork), (middle, fork), (middle, fork - GAP)], arrow=_boxed(residual, nodes[0]))
            with self.canvas.group("arm"):
                tops.append(self.arm(residual, nodes, branches, middle, fork - GAP))
        end = min(tops) - GAP
        self.on_stream(residual, join, tap, end)
        ring = join.kept or len(join.arms) > 1
        for middle, top in zip(middles, tops, strict=True):
            last = middle == middles[-1]
            into = (STREAM + RADIUS, end) if ring else (STREAM, end)
            self.canvas.line([(middle, top), (middle, end), *([into] if last else [])], arrow=last and ring)
        self.y = end
        if ring:
            with self.canvas.group("add"):
                self.canvas.circle(STREAM, end, RADIUS, "+")
            self.y = end - RADIUS

    def on_stream(self, residual: Graph, join: DrawnJoin, tap: float, end: float) -> None:
        """The stream beside the arms: it continues, perhaps through boxes, or it ends."""
        if not join.kept:
            return
        self.y, stretch = tap, (tap - end) / (len(join.on_stream) + 1)
        for place in join.on_stream:
            self.rise(stretch - 11)
            with self.canvas.group("stream"):
                self.y = draw(self.canvas, residual[place].box, STREAM, self.y, 84)
        self.rise(self.y - end - RADIUS, arrow=True)

    def arm(
        self,
        residual: Graph,
        nodes: Sequence[int],
        branches: dict[str, DrawnBranch],
        middle: float,
        bottom: float,
    ) -> float:
        """The boxes of one arm in order; a branch is drawn with what is inside it."""
        top = bottom
        for number, place in enumerate(nodes):
            if number:
                self.canvas.line([(middle, top), (middle, top - GAP)], arrow=_boxed(residual, place))
                top -= GAP
            box = residual[place].box
            if box.kind == "branch":
                top = self.branch(branches[box.label], middle - ARM / 2, top)
            else:
                top = draw(self.canvas, box, middle, top, ARM)
        return top

    def branch(self, branch: DrawnBranch, left: float, bottom: float) -> float:
        """A branch as a frame around its own graph."""
        outside, self.canvas.elements = self.canvas.elements, []
        top = stack(self.canvas, branch.graph, left + 8, bottom, ARM - 16) - 42
        inside, self.canvas.elements = self.canvas.elements, outside
        with self.canvas.group("branch", name=branch.name):
            self.canvas.rect(left, top, ARM, bottom - top, "white", INK)
            self.canvas.text(left + 9, top + 15, branch.name, 12, bold=True, anchor="start")
            self.canvas.text(left + 9, top + 29, branch.summary, 10.5, room=ARM - 18, anchor="start", fill=GREY)
            self.canvas.elements += inside
        return top

    def graph(self, residual: Graph, branches: Sequence[DrawnBranch]) -> None:
        """A scheme that is not a stream with arms: its own graph, and beside it the branches."""
        self.rise(10)
        tap = self.y
        self.canvas.line([(STREAM, tap), (ARMS + ARM / 2, tap), (ARMS + ARM / 2, tap - 6)], arrow=False)
        with self.canvas.group("graph"):
            top = stack(self.canvas, residual, ARMS, tap - 6, ARM)
        beside = tap
        for branch in branches:
            beside = self.branch(branch, ARMS + ARM + BETWEEN, beside) - GAP
        end = min(top - GAP, beside)
        self.canvas.line([(ARMS + ARM / 2, top), (ARMS + ARM / 2, end), (STREAM, end)], arrow=False)
        self.y = end


def _boxed(graph: Graph, place: int) -> bool:
    """Whether a line ends at this node with an arrow; into a branch the line continues."""
    return graph[place].box.kind != "branch"


def _count(indices: Sequence[int], total: int) -> str:
    """How many layers are alike and, if there are others, which they are."""
    if len(indices) == total:
        return f"{total} layers, each" if total > 1 else "1 layer"
    which = ", ".join(_stretches(indices))
    return f"{len(indices)} of {total} layers, each: {which} (counted from 0)"


def _stretches(indices: Sequence[int]) -> Iterator[str]:
    """0-3, 5, 7: stretches of consecutive numbers; numbers at even steps as first, second, ..., last."""
    steps = {after - before for before, after in pairwise(indices)}
    if len(indices) > 4 and len(steps) == 1 and steps != {1}:
        yield from (str(indices[0]), str(indices[1]), "...", str(indices[-1]))
        return
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or indices[end] != indices[end - 1] + 1:
            first, last = indices[start], indices[end - 1]
            yield str(first) if first == last else f"{first}-{last}"
            start = end
