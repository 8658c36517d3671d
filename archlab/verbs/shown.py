"""A result that a terminal prints as the command line does and that a notebook shows as a page."""

from abc import ABC, abstractmethod
from io import StringIO

from rich.console import Console, RenderableType

WIDTH = 100
"""Width, in columns, of a result as text or HTML, where there is no terminal."""


class Shown(ABC):
    """`print(result)` gives what the command prints; in a notebook the last line of a cell shows it in colour."""

    @abstractmethod
    def __rich__(self) -> RenderableType:
        """What rich prints."""

    def __str__(self) -> str:
        written = StringIO()
        console = Console(file=written, width=WIDTH, color_system=None, legacy_windows=False)
        console.print(self, highlight=False, crop=False)
        return written.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        console = Console(file=StringIO(), width=WIDTH, record=True, force_jupyter=False)
        console.print(self, highlight=False, crop=False)
        return console.export_html(inline_styles=True, code_format=PAGE)


PAGE = '<pre style="line-height:normal; overflow-x:auto; font-family:monospace">{code}</pre>'
"""Without a whole HTML page around it, which a notebook already has."""
