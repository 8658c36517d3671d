"""Writes SVG, element by element."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from xml.sax.saxutils import escape, quoteattr

from archlab.base.errors import printable
from archlab.diagram.lettering import BOLD, FAMILY, REGULAR, fitting

Point = tuple[float, float]

INK = "#222222"
GREY = "#595959"

ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
    f' markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>'
)


class Canvas:
    """Elements in the order they were drawn. y grows downwards, as in SVG."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    @contextmanager
    def group(self, kind: str, **data: str) -> Iterator[None]:
        """Everything drawn inside belongs to a <g class=kind data-...>."""
        attributes = "".join(f" data-{name}={quoteattr(printable(value))}" for name, value in data.items() if value)
        self.elements.append(f'<g class="{kind}"{attributes}>')
        yield
        self.elements.append("</g>")

    def rect(self, x: float, y: float, wide: float, high: float, fill: str, stroke: str, dash: str = "") -> None:
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.elements.append(
            f'<rect x="{x:.4g}" y="{y:.5g}" width="{wide:.4g}" height="{high:.4g}" rx="4" fill="{fill}"'
            f' stroke="{stroke}"{dashed}/>'
        )

    def border(self, x: float, y: float, side: float) -> None:
        self.elements.append(
            f'<rect x="{x:.4g}" y="{y:.5g}" width="{side:.4g}" height="{side:.4g}" fill="none" stroke="{GREY}"/>'
        )

    def circle(self, x: float, y: float, radius: float, sign: str) -> None:
        """A ring with a plus or a times in it."""
        arm = radius * (0.62 if sign == "+" else 0.44)
        strokes = (
            f"M{x - arm:.5g} {y:.5g}h{2 * arm:.4g}M{x:.5g} {y - arm:.5g}v{2 * arm:.4g}"
            if sign == "+"
            else f"M{x - arm:.5g} {y - arm:.5g}l{2 * arm:.4g} {2 * arm:.4g}m{-2 * arm:.4g} 0l{2 * arm:.4g} {-2 * arm:.4g}"
        )
        self.elements.append(
            f'<circle cx="{x:.5g}" cy="{y:.5g}" r="{radius}" fill="white" stroke="{INK}" stroke-width="1.5"/>'
            f'<path d="{strokes}" stroke="{INK}" stroke-width="1.5" fill="none"/>'
        )

    def line(self, points: Sequence[Point], thick: float = 1.3, arrow: bool = True) -> None:
        way = " ".join(f"{x:.5g},{y:.5g}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.elements.append(
            f'<polyline points="{way}" fill="none" stroke="{INK}" stroke-width="{thick}" stroke-linejoin="round"{end}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 11,
        *,
        room: float = 1000,
        bold: bool = False,
        anchor: str = "middle",
        fill: str = INK,
    ) -> None:
        """One line of text, in a smaller size where the room is too narrow."""
        words, size = fitting(printable(words), size, room, bold)
        weight = ' font-weight="bold"' if bold else ""
        self.elements.append(
            f'<text x="{x:.5g}" y="{y:.5g}" font-size="{size:.3g}" text-anchor="{anchor}" fill="{fill}"{weight}>'
            f"{escape(words)}</text>"
        )

    def cells(self, x: float, y: float, side: float, colors: Sequence[Sequence[str]]) -> None:
        """A table of small squares, one path per colour."""
        paths: dict[str, list[str]] = {}
        for row, line in enumerate(colors):
            for start, length in _runs(line):
                here = (
                    f"M{x + start * side:.5g} {y + row * side:.5g}h{length * side:.4g}v{side:.4g}h{-length * side:.4g}z"
                )
                paths.setdefault(line[start], []).append(here)
        for color, strokes in paths.items():
            self.elements.append(f'<path d="{"".join(strokes)}" fill="{color}" shape-rendering="crispEdges"/>')


def _runs(line: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where each stretch of one colour starts, and how long it is."""
    start = 0
    for end in range(1, len(line) + 1):
        if end == len(line) or line[end] != line[start]:
            yield start, end - start
            start = end


def document(elements: Sequence[str], left: float, top: float, wide: float, high: float, title: str) -> str:
    """A whole SVG file on white."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:.5g} {top:.5g} {wide:.5g} {high:.5g}" width="{wide:.5g}"'
        f' height="{high:.5g}" font-family="{FAMILY}" role="img">\n<title>{escape(printable(title))}</title>\n{ARROW}\n'
        f'<rect x="{left:.5g}" y="{top:.5g}" width="{wide:.5g}" height="{high:.5g}" fill="white"/>\n'
        + "\n".join(elements)
        + "\n</svg>\n"
    )


def png(svg: str, zoom: float = 1.5) -> bytes:
    """An SVG of this module as a PNG, with the same fonts on every machine."""
    import resvg_py

    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=svg,
            zoom=zoom,
            font_files=[str(REGULAR), str(BOLD)],
            font_family="DejaVu Sans",
            sans_serif_family="DejaVu Sans",
            skip_system_fonts=True,
        )
    )
