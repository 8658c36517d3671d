"""What may not change afterwards: which claims were registered, and every verdict there was, each in a file of lines.

registered.jsonl   a claim's hash, its budget and ladder, the date, the number of the call that registered it (`batch`), and how many of
                   its runs and measurements were there already (`made`)
verdicts.jsonl     a line for each verdict, never taken back; a claim's last line counts

Each line holds the hash of the one before it, so that a line that was edited or taken out is found. The last ones, which none
follows, are named by the results that rest on them (`archlab.claim.record.check_kept`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any

from archlab.base.errors import UserError
from archlab.base.files import Lines, alone
from archlab.base.plain import Unreadable, read_whole_lines
from archlab.claim.claim import BudgetName, Claim
from archlab.comparison.many import online_needed

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
        self.extend(lambda written: new)

    def extend(self, new: Callable[[list[Record]], Sequence[Mapping[str, Any]]]) -> list[Record]:
        """Adds what `new` makes of the records that are there, while no other process adds any; returns all of them.

        Raises UserError where they cannot be written.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with alone(self.file.parent / f".{self.file.name}.lock"):
                written = self.records()
                added = self.marked(new(written), written)
                self.write(added)
                return written + added
        except OSError as error:
            raise UserError(f"{self.file}: cannot be written: {error.strerror}; give another output=FOLDER") from None

    def marked(self, new: Sequence[Mapping[str, Any]], written: Sequence[Record]) -> list[Record]:
        """Each with the hash of the one before it and its own."""
        before, found = written[-1]["sha256"] if written else "", []
        for record in new:
            follows = {**record, "before": before}
            before = mark(follows)
            found.append(follows | {"sha256": before})
        return found

    def write(self, records: Sequence[Record]) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in records)
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


REGISTERED, DECIDED = "registered.jsonl", "verdicts.jsonl"


def registrations(folder: Path) -> Ledger:
    return Ledger(folder / REGISTERED, ("claim", "says", "date"))


def verdicts(folder: Path) -> Ledger:
    return Ledger(folder / DECIDED, ("claim", "e"))


def register(
    folder: Path,
    claims: Sequence[Claim],
    anew: bool = False,
    ladder: str | None = None,
    made: Mapping[str, int] = MappingProxyType({}),
    budget: BudgetName = "quick",
) -> None:
    """Notes what each claim says before its first run; what was registered before has to say the same.

    With `anew`, one that says otherwise is registered once more: its earlier verdicts stay in verdicts.jsonl. Each budget and
    ladder at which a claim is to be decided has a registration of its own. `made` says how many of a claim's runs and measurements are
    there already.
    Raises UserError.
    """
    ledger = registrations(folder)
    lines = ledger.records()
    if anew and not changed(lines, claims):
        raise UserError("anew=true: every claim says what was registered, so it would change nothing; leave it out")
    if to_register(lines, claims, anew, ladder, made, budget):
        ledger.extend(lambda there: to_register(there, claims, anew, ladder, made, budget))


def changed(lines: Sequence[Record], claims: Sequence[Claim]) -> list[Claim]:
    """Those that say otherwise than what was registered of them last."""
    says = {line["claim"]: line["says"] for line in lines}
    return [claim for claim in claims if says.get(claim.name, claim.sha256) != claim.sha256]


def to_register(
    lines: Sequence[Record],
    claims: Sequence[Claim],
    anew: bool,
    ladder: str | None,
    made: Mapping[str, int],
    budget: BudgetName,
) -> list[Record]:
    """A line for each claim that is not there as it stands. Raises UserError where one was changed, unless it is to be `anew`."""
    otherwise = changed(lines, claims)
    if otherwise and not anew:
        first = otherwise[0]
        last = [line["date"] for line in lines if line["claim"] == first.name][-1]
        raise UserError(
            f"claim/{first.name}.yaml: does not say what was registered on {last}; take the change back, or"
            " add anew=true, which registers it once more and keeps its earlier verdicts"
        )
    there = {(line["claim"], line["says"]) for line in lines if at(line) == (budget, ladder)}
    batch = 1 + max((line.get("batch", 0) for line in lines), default=0)
    return [
        {"claim": claim.name, "says": claim.sha256, "date": f"{date.today()}", "batch": batch}
        | ({} if budget == "quick" else {"budget": budget})
        | ({"ladder": ladder} if ladder else {})
        | {"made": made.get(claim.name, 0)}
        for claim in claims
        if claim in otherwise or (claim.name, claim.sha256) not in there
    ]


def at(line: Record) -> tuple[str, str | None]:
    """The budget and the ladder of a registration or a verdict; of the oldest lines, the quick one."""
    return line.get("budget") or "quick", line.get("ladder")


def registration(
    folder: Path, name: str, says: str | None, ladder: str | None = None, budget: str = "quick"
) -> Record | None:
    """The line by which a claim that says this was registered at this budget and ladder: the first since it last said otherwise."""
    of_it = [line for line in registrations(folder).records() if line["claim"] == name]
    since = list(takewhile(lambda line: line["says"] == says, of_it[::-1]))[::-1]
    return next((line for line in since if at(line) == (budget, ladder)), None)


def history(folder: Path, record: Record) -> Record:
    """What was there when a decided claim was registered as it stands.

    registered   the date; None where it is not
    anew         whether it had been registered before, and said otherwise
    decided      the date of the first verdict that was there; None where there was none
    made         how many of its runs and measurements were there
    """
    name, says = record["name"], record.get("says")
    budget, ladder = at(record)
    line = registration(folder, name, says, ladder, budget)
    if line is None:
        return {"registered": None, "anew": False, "decided": None, "made": 0}
    earlier = [
        of_it["date"] for of_it in verdicts(folder).records() if of_it["claim"] == name and was_there(of_it, line)
    ]
    said = [of_it["says"] for of_it in registrations(folder).records() if of_it["claim"] == name]
    return {
        "registered": line["date"],
        "anew": any(other != says for other in said),
        "decided": min(earlier, default=None),
        "made": line.get("made", 0),
    }


def was_there(verdict: Record, line: Record) -> bool:
    """Whether a verdict is older than a registration; of the same day, one of other words, budget or ladder is taken for it."""
    other = verdict.get("says") != line.get("says") or at(verdict) != at(line)
    return (verdict["date"], not other) < (line["date"], True)


def surviving(folder: Path) -> dict[str, bool]:
    """Of each decided claim, whether its verdict survives beside all others at one error rate (online e-BH at 5%).

    What is tested is a claim as it was worded, at its budget and ladder, in the order of first registration: one that was
    registered anew, or is decided on a ladder too, is a later hypothesis, and what it said before stays among those tested. What
    a claim came to last is what is told of it. Those of the first call share half of the error rate. An identity is no matter of
    chance, and plays no part.
    """
    return {name: e >= needed for name, (e, needed) in standings(folder).items()}


def standings(folder: Path) -> dict[str, tuple[float, float]]:
    """Of each decided claim, its e-value and the one from which on it survives, the others as they are."""
    lines = registrations(folder).records()
    first_says = {line["claim"]: line["says"] for line in lines[::-1]}
    found: dict[Hypothesis, Record] = {}
    last: dict[str, Hypothesis] = {}
    for line in verdicts(folder).records():  # the oldest don't say of which words they are
        one = last[line["claim"]] = hypothesis(line, line.get("says") or first_says.get(line["claim"], ""))
        found[one] = line
    hypotheses = dict.fromkeys([*(hypothesis(line, line["says"]) for line in lines), *found])
    tested = [one for one in hypotheses if found.get(one, {}).get("kind") != "identity"]
    e_values = [float(found[one]["e"] or 0) if one in found else 0.0 for one in tested]
    batch = len(first_batch(lines).intersection(tested))
    stands = dict(zip(tested, zip(e_values, online_needed(e_values, batch=batch), strict=True), strict=True))
    now = {line["claim"]: line["says"] for line in lines}
    return {name: stands[one] for name, one in last.items() if one in stands and now.get(name) == one[1]}


Hypothesis = tuple[str, str, str, str | None]
"""A claim, what it says, its budget and its ladder."""


def hypothesis(line: Record, says: str) -> Hypothesis:
    """What a registration or a verdict is of."""
    return line["claim"], says, *at(line)


def first_batch(lines: Sequence[Record]) -> set[Hypothesis]:
    """What was registered by the first call; of lines that don't number it, on the first of their days."""
    same = ("batch",) if lines and "batch" in lines[0] else ("batch", "date")
    of_first = (line for line in lines if all(line.get(name) == lines[0].get(name) for name in same))
    return {hypothesis(line, line["says"]) for line in of_first}
