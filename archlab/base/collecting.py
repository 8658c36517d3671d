"""When Python looks for garbage that reference counts do not find."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collecting() -> Iterator[None]:
    """Inside, it does not look: for code that imports much.

    What is imported stays, and each time that enough of it has come, all of it would be gone through once more: a sixth of
    the time that importing torch takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
