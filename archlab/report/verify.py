"""What was found about a block, promise by promise."""

from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.text import Text

from archlab.report.tables import make_table, spaced

MARKS = {"holds": ("✓", "green"), "broken": ("✗", "bold red"), "not asked": ("–", "dim")}


def findings(title: str, rows: Sequence[Mapping[str, str]]) -> RenderableType:
    """A line for each promise, and how many hold."""
    table = make_table(("", "left"), ("promise", "left"))
    table.add_column("what was seen", overflow="fold")
    for row in rows:
        mark, style = MARKS[row["verdict"]]
        table.add_row(Text(mark, style), Text(row["promise"], style), Text(row["sentence"]))
    broken = sum(row["verdict"] == "broken" for row in rows)
    held = sum(row["verdict"] == "holds" for row in rows)
    summary = f"{title}: {held} promises hold, {broken} {'is' if broken == 1 else 'are'} broken."
    return spaced([table, Text(summary, "bold red" if broken else "bold green")])
