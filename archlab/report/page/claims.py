"""Decided claims -> sections of a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from archlab.report.page.parts import Cell, Facts, PagePart, PageTable, Prose, Section, word
from archlab.report.tables import duration, number

Record = Mapping[str, Any]


def claim_sections(records: Sequence[Record]) -> list[Section]:
    """All claims in a table, then each with its parts."""
    return [Section("Claims", [overview(records)]), *(claim_section(record) for record in records)] if records else []


def overview(records: Sequence[Record]) -> PageTable:
    rows = [
        [
            word(r["name"]),
            word(r["sentence"]),
            verdict(r["verdict"]),
            word(seeds(r)),
            Cell(duration(r["seconds"]), r["seconds"]),
        ]
        for r in records
    ]
    return PageTable(
        "Each verdict holds only in its own regime.", ("claim", "sentence", "verdict", "seeds", "time"), rows
    )


def claim_section(record: Record) -> Section:
    facts = [
        ("source", record["source"]),
        ("reason", record["reason"]),
        ("regime", record["regime"]),
        ("seeds", seeds(record)),
        ("time", duration(record["seconds"])),
    ]
    head: list[PagePart] = [
        Prose(record["sentence"]),
        Prose(record["verdict"], "verdict"),
        Facts([(k, v) for k, v in facts if v]),
    ]
    head += [ladder(record)] if record.get("rungs") else []
    return Section(f"Claim: {record['name']}", [*head, parts(record)] if record["parts"] else head)


def ladder(record: Record) -> PageTable:
    """A row for each size and horizon that a claim was decided at."""
    rows = []
    for rung in record["rungs"]:
        first = rung["parts"][0]
        ends = first["interval"]
        rows.append(
            [
                word(rung["label"]),
                Cell(number(rung["n_params"]), rung["n_params"]),
                Cell(number(rung["tokens"]), rung["tokens"]),
                Cell(number(first["effect"]), first["effect"]),
                Cell(" to ".join(map(number, ends)), ends[0]) if ends else word(""),
                Cell(number(rung["e"]), rung["e"]),
                word(seeds(rung)),
                verdict(rung["verdict"]),
            ]
        )
    headings = ("rung", "parameters", "tokens", "effect", "interval", "e", "seeds", "verdict")
    return PageTable(f"The first part at each rung; what else is told is of {record['label']}", headings, rows)


def parts(record: Record) -> PageTable:
    headings = ("part", "arms", "metric", "effect", "interval", "p", "smallest effect", "verdict", "values")
    rows = [
        [
            word(part["text"]),
            word("; ".join(map(str, part["arms"]))),
            word(part["metric"]),
            Cell(number(part["effect"]), part["effect"]),
            Cell(" to ".join(map(number, part["interval"])), part["interval"][0]) if part["interval"] else word(""),
            Cell(number(part["p"]), part["p"]),
            Cell(number(part["smallest_effect"]), part["smallest_effect"]),
            verdict(part["verdict"]),
            word("; ".join(f"{arm}: {', '.join(map(number, values))}" for arm, values in part["values"].items())),
        ]
        for part in record["parts"]
    ]
    return PageTable("What was expected, and what was measured", headings, rows)


def verdict(text: str) -> Cell:
    return Cell(text, text, verdict=True)


def seeds(record: Record) -> str:
    found = record["seeds"]
    return ", ".join(map(str, found)) if isinstance(found, Sequence) else str(found)
