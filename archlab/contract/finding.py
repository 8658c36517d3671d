"""What a check of a block comes to."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
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
            first_line = next(iter(str(error).strip().splitlines()), "")
            yield Finding(promise, "broken", f"It raised {type(error).__name__}: {first_line[:300]}{where(error)}")


def where(error: Exception) -> str:
    """The file and line of the user's own that raised it, or the innermost where none of them did."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(part in Path(frame.filename).parts for part in LIBRARIES)]
    frame = (own or frames)[-1] if frames else None
    return f" ({Path(frame.filename).name}, line {frame.lineno})" if frame else ""


LIBRARIES = ("archlab", "torch", "site-packages", "lib", "<frozen importlib._bootstrap>")
"""Folders of code that is not the user's."""
