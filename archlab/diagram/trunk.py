"""A residual scheme's graph as a stream with arms that leave it and come back; and the same as a formula."""

from collections.abc import Iterator
from dataclasses import dataclass

from archlab.diagram.sketch import Graph, consumers


@dataclass(frozen=True)
class DrawnJoin:
    """A sum. Each arm reads the stream, after the nodes that all arms share, and is added to it.

    `on_stream` is what happens to the stream itself on its way to the sum, such as a multiplication; `kept` is False
    where the stream is not part of the sum. All are nodes, in the order in which they are computed.
    """

    shared: tuple[int, ...]
    arms: tuple[tuple[int, ...], ...]
    on_stream: tuple[int, ...]
    kept: bool


Step = int | DrawnJoin
"""A node on the stream itself, or a sum of the stream and its arms."""


def along_the_stream(graph: Graph) -> list[Step] | None:
    """The scheme's steps in order, or None where it is not a stream with arms, such as a mixture of several streams."""
    steps: list[Step] = []
    node = len(graph) - 1
    while node:
        if len(graph[node].reads) == 1:
            steps.append(node)
            (node,) = graph[node].reads
            continue
        parted = _part(graph, node)
        if parted is None:
            return None
        join, node = parted
        steps.append(join)
    return steps[::-1]


def _part(graph: Graph, node: int) -> tuple[DrawnJoin, int] | None:
    """A sum's terms as arms, and the node of the stream they leave from."""
    if graph[node].box.kind != "add":
        return None
    terms = [_down(graph, term) for term in _terms(graph, node)]
    root = min(root for root, _ in terms)
    shared: tuple[int, ...] = ()
    arms: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    trunks: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for start, boxes in terms:
        before = _between(graph, root, start)
        if before is None or (shared and before and before != shared):
            return None
        shared = shared or before
        own = not before and not any(graph[place].box.kind == "branch" for place in boxes)
        (trunks if own else arms).append((before, boxes))
    if not arms or len(trunks) > 1 or any(before != shared for before, _ in arms):
        return None
    return DrawnJoin(shared, tuple(boxes for _, boxes in arms), trunks[0][1] if trunks else (), bool(trunks)), root


def _terms(graph: Graph, node: int) -> Iterator[int]:
    """The terms of a sum, including those of sums inside it that nothing else reads."""
    for place in graph[node].reads:
        if graph[place].box.kind == "add" and consumers(graph)[place] == 1:
            yield from _terms(graph, place)
        else:
            yield place


def _down(graph: Graph, node: int) -> tuple[int, tuple[int, ...]]:
    """From a term down to the first node that others read too: that node, and the nodes above it in order."""
    above: list[int] = []
    read = consumers(graph)
    while len(graph[node].reads) == 1 and read[node] == 1:
        above.append(node)
        (node,) = graph[node].reads
    return node, tuple(above[::-1])


def _between(graph: Graph, low: int, high: int) -> tuple[int, ...] | None:
    """The nodes above `low` up to and including `high`; None where the way forks."""
    way: list[int] = []
    while high != low:
        if len(graph[high].reads) != 1:
            return None
        way.append(high)
        (high,) = graph[high].reads
    return tuple(way[::-1])


def formula(graph: Graph) -> list[str]:
    """The graph written out, a line for each value that is used more than once and one for the result."""
    read, names, lines = consumers(graph), {0: "x"}, []
    spare = iter("yzuvwabcdefgh")
    for place in range(1, len(graph)):
        if read[place] > 1:
            text = _written(graph, place, names)
            names[place] = next(spare, f"x{place}")
            lines.append(f"{names[place]} = {text}")
    last = len(graph) - 1
    return [*lines, names.get(last) or _written(graph, last, names)]


def _written(graph: Graph, place: int, names: dict[int, str]) -> str:
    node = graph[place]
    inside = [names.get(read) or _written(graph, read, names) for read in node.reads]
    match node.box.kind:
        case "add":
            return " + ".join(inside)
        case "mul":
            return " × ".join(f"({term})" if " + " in term else term for term in inside)
        case "scale":
            (term,) = inside
            return f"({term}) {node.box.label}" if " + " in term else f"{term} {node.box.label}"
        case "norm":
            return f"norm({', '.join(inside)})"
        case _:
            return f"{node.box.label}({', '.join(inside)})"
