"""What a page is made of. Every string is text, never HTML: the template escapes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the value it is sorted by: a number, a text, or None, which always comes last."""

    text: str
    sort: float | str | None
    verdict: bool = False


@dataclass(frozen=True)
class PageTable:
    """Rows under headings, sortable by every column."""

    kind: ClassVar[str] = "table"
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class View:
    """One view of a figure: traces and a layout as plotly's own JSON, without colours.

    A trace has the number of its arm, from 0, in `arm`; the page makes it a colour of its theme.
    """

    name: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """Curves with a switch between views where there are several."""

    kind: ClassVar[str] = "figure"
    title: str
    caption: str
    views: Sequence[View]
    height: int = 420


@dataclass(frozen=True)
class Picture:
    """An SVG as a separate picture: it can run no script, and its ids cannot clash with those of others."""

    kind: ClassVar[str] = "drawing"
    title: str
    svg: str


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Commands:
    kind: ClassVar[str] = "commands"
    lines: Sequence[str]


@dataclass(frozen=True)
class Prose:
    """A paragraph; with `tone` "note" or "verdict" it stands out."""

    kind: ClassVar[str] = "prose"
    text: str
    tone: str = ""


PagePart = PageTable | Figure | Picture | Facts | Commands | Prose


@dataclass(frozen=True)
class Section:
    heading: str
    parts: Sequence[PagePart]


def word(text: object) -> Cell:
    return Cell(str(text), str(text))


def figure_text(text: str) -> str:
    """A text as plotly wants it: it reads a little HTML in names and labels, and a label is not HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
