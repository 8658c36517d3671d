"""Two models side by side, and the changes that lead from one to the other, as tables."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from archlab.report.bills import gigabytes
from archlab.report.tables import count, flop, make_table, ratio, size, spaced

COSTS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "flops_per_token": ("forward pass, per token", flop),
    "train_flops_per_token": ("forward + backward, per token", flop),
    "kv_bytes_per_token": ("key-value cache, per token", size),
    "state_bytes": ("recurrent state, per sequence", size),
    "token_budget": ("tokens at 20 a parameter", count),
}


def difference(record: Mapping[str, Any]) -> RenderableType:
    """What differs first, then sizes, then parameters, costs and memory."""
    names = record["names"]
    parts = [
        in_words("block", names, record["blocks"]),
        Text(f"the same in both: {', '.join(record['same']) or 'no block'}"),
        in_words("setting", names, record["settings"]) if record["settings"] else None,
        in_words("size", names, [(name, str(a), str(b)) for name, a, b in record["sizes"]]),
        in_numbers("parameters of", names, [(name, a, b, lambda n: f"{n:,}") for name, a, b in record["parts"]]),
        in_numbers(
            f"cost at {lengths(record['seq_len'])}, {formats(record['weights'])}", names, list(costs(record["costs"]))
        ),
        in_numbers(
            f"memory to train ({formats(record['weights'])})", names, [(*row, gigabytes) for row in record["memory"]]
        ),
    ]
    return spaced(part for part in parts if part)


def lengths(both: Sequence[int]) -> str:
    return " and ".join(map(str, dict.fromkeys(both))) + " tokens"


def formats(both: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(both))


def costs(rows: Iterable[tuple[str, Any, Any]]) -> Iterable[tuple[str, Any, Any, Callable[[Any], str]]]:
    """The costs to show: the recurrent state is left out where neither model has one."""
    for name, a, b in rows:
        words, write = COSTS[name]
        if name != "state_bytes" or a or b:
            yield words, a, b, write


def columns(heading: str, names: Sequence[str], justify: Any = "left") -> Table:
    table = make_table((heading, "left"))
    for name in names:
        table.add_column(Text(name), justify=justify, overflow="fold")
    return table


def in_words(heading: str, names: Sequence[str], rows: Iterable[tuple[str, str, str]]) -> Table:
    """A table of texts in which differences are bold."""
    table = columns(heading, names)
    for name, a, b in rows:
        style = "bold" if a != b else "dim"
        table.add_row(Text(name), Text(a, style), Text(b, style))
    return table


def in_numbers(heading: str, names: Sequence[str], rows: Sequence[tuple[str, Any, Any, Callable[[Any], str]]]) -> Table:
    """A table of both numbers and the second one divided by the first."""
    table = columns(heading, names, "right")
    table.add_column("ratio", justify="right", no_wrap=True)
    for name, a, b, write in rows:
        times = ratio(b / a) if a and b is not None else "n/a"
        table.add_row(Text(name), *("none" if value is None else write(value) for value in (a, b)), times)
    return table


def ladder(rungs: Sequence[tuple[Sequence[str], Sequence[str], int]]) -> RenderableType:
    """(what changed, the overrides, parameters) of every rung; the commands can be copied as they stand."""
    lines: list[RenderableType] = []
    for number, (about, words, n_params) in enumerate(rungs):
        together = " (together: neither alone makes a model)" if len(about) > 1 else ""
        change = f"{', '.join(about)}{together}" if about else "from here"
        lines.append(Text.assemble((f"{number}  {change}", "bold"), f"  {count(n_params)} parameters"))
        lines.append(Text(f"   archlab {shlex.join(words)}", overflow="ignore", no_wrap=True))
    return Group(*lines)
