"""What is said of a misspelt name, and of what is beyond the machine: one line each."""

import difflib
import re
from collections.abc import Iterable

from archlab.base.errors import UserError, shortened


def did_you_mean(name: str, real: Iterable[str]) -> str:
    """A half sentence with the nearest real name, or nothing where none is near."""
    close = difflib.get_close_matches(name, list(real), n=1, cutoff=0.5)
    return f"did you mean {close[0]}? " if close else ""


def beyond_the_machine(error: Exception) -> UserError | None:
    """What torch and NumPy say where there is not the memory, or where sizes can't even be counted; None of all else."""
    text = one_line(str(error).partition("Exception raised from")[0])
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        asked = re.search(r"allocate (\d[\d.]* \w+)", text)
        wanted = f"; {asked[1]} more were asked for" if asked else ""
        return UserError(
            f"memory: this machine has not enough{wanted}; use a smaller size, shorter sequences or fewer at once"
        )
    if isinstance(error, RuntimeError | TypeError | OverflowError) and "overflow" in text.lower():
        return UserError(f"size: is beyond what can be counted ({shortened(text, 120)}); use smaller numbers")
    return None


def one_line(text: str) -> str:
    return " ".join(text.split())
