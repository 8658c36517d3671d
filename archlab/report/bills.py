"""A model's parameters and the memory that training takes, as tables; bytes in decimal units, as memory is sold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from archlab.report.tables import count, flop, make_pairs, make_table, percent, spaced


def gigabytes(value: float) -> str:
    """Bytes in decimal units, to four digits: 26.78 GB."""
    units = (" B", " kB", " MB", " GB", " TB", " PB")
    place = next((i for i in range(len(units)) if abs(value) < 999.95 * 1000**i), len(units) - 1)
    return f"{value / 1000**place:.4g}{units[place]}"


@dataclass(frozen=True)
class Bill:
    """What training takes on one GPU, in bytes."""

    rows: Mapping[str, float]
    assumptions: Sequence[str]
    growth: Mapping[str, tuple[float, float, float]]
    """For each way to keep activations: their bytes, and the factor by which twice the length or batch multiplies them."""

    answer: str | None
    """What fits the budget, if there is one."""


def parts(by_part: Mapping[str, int]) -> RenderableType:
    """Parameters by part of the model."""
    total = sum(by_part.values())
    table = make_table(("parameters of", "left"), ("number", "right"), ("share", "right"))
    for part, n_params in by_part.items():
        table.add_row(part, f"{n_params:,}", percent(n_params / total))
    table.add_row(Text("all", style="bold"), f"{total:,}", "")
    return table


def memory(bill: Bill) -> RenderableType:
    """Weights, gradients, optimiser states and activations; the activations if they were kept in other ways; what fits."""
    total = sum(bill.rows.values())
    table = make_table(("memory to train", "left"), ("on each GPU", "right"))
    for name, size in bill.rows.items():
        table.add_row(name, gigabytes(size))
    table.add_row(Text("total", style="bold"), gigabytes(total))
    otherwise = make_table(
        ("activations of the layers", "left"),
        ("bytes", "right"),
        ("2x length", "right"),
        ("2x batch", "right"),
    )
    for way, (size, longer, wider) in bill.growth.items():
        otherwise.add_row(way, gigabytes(size), f"x{longer:.2f}", f"x{wider:.2f}")
    answer = [Text(bill.answer, style="bold")] if bill.answer else []
    return spaced([table, Group(*(Text(f"- {line}") for line in bill.assumptions)), otherwise, *answer])


def token_budget(tokens: int, ratio: int, flops: float) -> RenderableType:
    """The number of training tokens for the lowest loss at a fixed cost."""
    rows = [(f"at {ratio} a parameter", count(tokens)), ("forward + backward over them", flop(flops))]
    return make_pairs("Token budget", rows)
