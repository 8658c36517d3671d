"""What may not change afterwards: which claims were registered, and every verdict there was, each in a file of lines.

registered.jsonl   a claim's hash, its ladder and the date, written before its first run
verdicts.jsonl     a line for each verdict, never taken back; a claim's last line counts

Each line holds the hash of the one before it, so that a line that was edited or taken out is found.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from archlab.base.errors import UserError
from archlab.base.files import Lines, alone
from archlab.base.plain import Unreadable, read_whole_lines
from archlab.claim.claim import Claim
from archlab.comparison.many import online_survivors

Record = dict[str, Any]


class Ledger:
    """A file of records to which lines are only added, by one process at a time."""

    def __init__(self, file: Path, needs: Sequence[str]):
        self.file, self.needs = file, needs

    def records(self) -> list[Record]:
        """Raises UserError where a line isn't what was written."""
        try:
            lines = read_whole_lines(self.file) if self.file.exists() else []
        except Unreadable as error:
            raise UserError(f"{self.file}: {error}; put back what was written") from None
        before = ""
        for number, record in enumerate(lines, start=1):
            said = isinstance(record, dict) and all(name in record for name in self.needs)
            if not said or record.get("before") != before or record.get("sha256") != mark(record):
                raise UserError(
                    f"{self.file}: line {number} is not what was written there, or one before it is missing; put back what was"
                    " written"
                )
            before = record["sha256"]
        return lines

    def add(self, *new: Mapping[str, Any]) -> None:
        """All of the records, after those that are there. Raises UserError where they cannot be written."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with alone(self.file.parent / f".{self.file.name}.lock"):
                self.add_alone(new)
        except OSError as error:
            raise UserError(f"{self.file}: cannot be written: {error.strerror}; give another output=FOLDER") from None

    def add_alone(self, new: Sequence[Mapping[str, Any]]) -> None:
        written = self.records()
        before = written[-1]["sha256"] if written else ""
        lines = ""
        for record in new:
            marked = {**record, "before": before}
            marked["sha256"] = before = mark(marked)
            lines += json.dumps(marked) + "\n"
        file = Lines(self.file, self.file.stat().st_size if self.file.is_file() else 0)
        try:
            file.add(lines)
            file.sync()
        finally:
            file.close()


def mark(record: Mapping[str, Any]) -> str:
    """A hash of everything a record says, the hash of the one before it included."""
    said = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def registrations(folder: Path) -> Ledger:
    return Ledger(folder / "registered.jsonl", ("claim", "says", "date"))


def verdicts(folder: Path) -> Ledger:
    return Ledger(folder / "verdicts.jsonl", ("claim", "e"))


def register(folder: Path, claims: Sequence[Claim], anew: bool = False, ladder: str | None = None) -> None:
    """Notes what each claim says before its first run; what was registered before has to say the same.

    With `anew`, one that says otherwise is registered once more: its earlier verdicts stay in verdicts.jsonl. Each ladder at
    which a claim is to be decided has a registration of its own.
    Raises UserError.
    """
    lines = registrations(folder).records()
    known = {record["claim"]: record for record in lines}
    at_ladder = {(record["claim"], record["says"]) for record in lines if record.get("ladder") == ladder}
    changed = [claim for claim in claims if claim.name in known and known[claim.name]["says"] != claim.sha256]
    if changed and not anew:
        first = changed[0]
        raise UserError(
            f"claim/{first.name}.yaml: does not say what was registered on {known[first.name]['date']}; take the change back, or"
            " add anew=true, which registers it once more and keeps its earlier verdicts"
        )
    if anew and not changed:
        raise UserError("anew=true: every claim says what was registered, so it would change nothing; leave it out")
    new = [claim for claim in claims if claim in changed or (claim.name, claim.sha256) not in at_ladder]
    if new:
        registrations(folder).add(
            *(
                {"claim": claim.name, "says": claim.sha256, "date": f"{date.today()}"}
                | ({"ladder": ladder} if ladder else {})
                for claim in new
            )
        )


def surviving(folder: Path) -> dict[str, bool]:
    """Of each decided claim, whether its verdict survives beside all others at one error rate (online e-BH at 5%).

    Claims stand in the order in which they were first registered; those of the first day share half of the error rate.
    An identity is no matter of chance, and plays no part.
    """
    latest = {record["claim"]: record for record in verdicts(folder).records()}
    first: dict[str, str] = {}
    for record in registrations(folder).records():
        first.setdefault(record["claim"], record["date"])
    names = [name for name in first if latest.get(name, {}).get("kind") != "identity"]
    e_values = [float(latest[name]["e"] or 0) if name in latest else 0.0 for name in names]
    batch = sum(first[name] == first[names[0]] for name in names) if names else 0
    found = dict(zip(names, online_survivors(e_values, batch=batch), strict=True))
    return {name: there for name, there in found.items() if name in latest}
