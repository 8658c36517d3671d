"""A model as a drawing needs it: boxes, what each of them reads, and matrices. Plain data, made by `archlab.diagram`."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Box:
    """One thing that is done to its inputs.

    `kind` says what it is: norm, linear, activation, position, mask, scale, add, mul, branch, embedding or op. `label`
    is its name and `detail` its sizes; `path` is its name inside the model, where it is a module.
    """

    kind: str
    label: str
    detail: str = ""
    path: str = ""


@dataclass(frozen=True)
class Node:
    box: Box
    reads: tuple[int, ...]


Graph = tuple[Node, ...]
"""Nodes in an order in which they can be computed. The first is what enters and reads nothing; the last is the result."""

ENTRY = Node(Box("entry", "x"), ())


def chain(*boxes: Box) -> Graph:
    """A graph in which each box reads the one before it."""
    return (ENTRY, *(Node(box, (place,)) for place, box in enumerate(boxes)))


def consumers(graph: Graph) -> list[int]:
    """How many times each node is read."""
    return [sum(node.reads.count(place) for node in graph) for place in range(len(graph))]


@dataclass(frozen=True)
class DrawnBranch:
    """A branch: its name, a short description, and its graph."""

    name: str
    summary: str
    graph: Graph


@dataclass(frozen=True)
class LayerSketch:
    """Layers that are built alike."""

    residual: Graph
    branches: tuple[DrawnBranch, ...]


@dataclass(frozen=True)
class Layers:
    """How many layers are built alike, and which they are, counted from 0."""

    layer: LayerSketch
    indices: tuple[int, ...]
    notes: tuple[str, ...] = ()
    """What leads to them, in words."""


@dataclass(frozen=True)
class Edge:
    """A line beside the stream: a loop, from the end of some layers back to their beginning, or a skip, from the end of some to others.

    `start` and `end` count the model's entries of `Layers` from 0. A loop leads from an entry to itself or to an earlier one.
    """

    start: int
    end: int

    @property
    def is_loop(self) -> bool:
        return self.end <= self.start


@dataclass(frozen=True)
class Matrix:
    """A query x key table in colours: `cells[query][key]` is a share in [0, 1], or a word for a cell without a number.

    The words are `forbidden` (the key is masked), `allowed` and `prefix`, for a key that is attended to because it is in the prefix.
    """

    title: str
    note: str
    cells: tuple[tuple[float | str, ...], ...]


@dataclass(frozen=True)
class DrawnHeads:
    """Heads that predict tokens after the next, in training alone: their kind, how many there are, and what one does."""

    name: str
    count: int
    graph: Graph


@dataclass(frozen=True)
class ModelSketch:
    title: str
    embedding: Graph
    layers: tuple[Layers, ...]
    head: Graph
    matrices: tuple[Matrix, ...] = field(default=())
    edges: tuple[Edge, ...] = field(default=())
    further: DrawnHeads | None = None
