"""What a check of a device comes to, and how a list of them is carried out in the time there is."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from omegaconf import DictConfig

from archlab.base.errors import UserError
from archlab.config.compose import compose

LIMIT = 9 * 60.0
"""Seconds after which no further check begins, so that the script ends within ten minutes."""

Verdict = Literal["pass", "fail", "measured", "not run"]


@dataclass(frozen=True)
class Observed:
    """What one check saw: a figure, what it was to reach, and whether it did; None where nothing is asked of it."""

    figure: str
    reach: str
    passed: bool | None
    data: Any = None
    """The numbers behind the figure, as plain data."""


Check = Callable[[torch.device], Observed]
"""Named by the first line of its docstring."""


@dataclass(frozen=True)
class CheckResult:
    """A line of the table."""

    name: str
    verdict: Verdict
    figure: str
    reach: str
    seconds: float
    data: Any = None

    def to_record(self) -> dict[str, Any]:
        """The same as a record."""
        return asdict(self)


def carried_out(checks: Sequence[Check], device: torch.device, limit: float = LIMIT) -> Iterator[CheckResult]:
    """Each check's result. One that raises has failed, and the others go on; one there is no time for was not run."""
    began = time.perf_counter()
    for check in checks:
        name, since = title(check), time.perf_counter()
        if since - began > limit:
            yield CheckResult(name, "not run", f"no time left after {limit:g} s", "", 0.0)
            continue
        try:
            seen = check(device)
        except Exception as error:  # whatever a device does not take is a finding
            seen = Observed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "", False)
        verdict: Verdict = "measured" if seen.passed is None else "pass" if seen.passed else "fail"
        yield CheckResult(name, verdict, seen.figure, seen.reach, time.perf_counter() - since, seen.data)


def title(check: Check) -> str:
    return (check.__doc__ or "").strip().splitlines()[0].rstrip(".")


def held(results: Sequence[CheckResult]) -> bool:
    """Whether no check failed or was left out."""
    return not any(result.verdict in ("fail", "not run") for result in results)


def composed_or_none(*words: str) -> DictConfig | None:
    """The configuration; None where these options do not go together."""
    try:
        return compose(*words)
    except UserError:
        return None


def named(examples: Sequence[str], most: int = 3) -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(examples) - most} more" if len(examples) > most else ""
    return ", ".join(examples[:most]) + more
