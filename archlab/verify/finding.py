"""What a check of a block comes to."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """A promise, whether it holds, and what was seen."""

    promise: str
    verdict: Literal["holds", "broken", "not asked"]
    sentence: str


class Broken(Exception):
    """A promise that does not hold; the message says what was seen instead."""


class NotAsked(Exception):
    """A promise that makes no sense here; the message says why."""


Check = Callable[[Any], str]
"""Returns the sentence of a promise that holds, named by the first line of its docstring; raises one of the two above."""


def findings(checks: Iterable[Check], subject: Any) -> Iterator[Finding]:
    """Every check's finding. A block may fail in any way it likes: whatever it raises is a broken promise."""
    for check in checks:
        promise = (check.__doc__ or "").strip().rstrip(".")
        try:
            yield Finding(promise, "holds", check(subject))
        except NotAsked as reason:
            yield Finding(promise, "not asked", str(reason))
        except Broken as seen:
            yield Finding(promise, "broken", str(seen))
        except Exception as error:
            told = next(iter(str(error).strip().splitlines()), "")
            yield Finding(promise, "broken", f"It raised {type(error).__name__}: {told[:300]}")
