"""What the C library does with memory that was freed."""

import ctypes
import os
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's numbers for what mallopt(3) sets: the freed bytes at the heap's end, and the bytes of one block, from which on
memory goes back to the system."""

LARGEST = 2**31 - 1
"""What fits into mallopt's int: two gigabytes."""

ASKED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Variables by which a user says so, which then holds."""


@cache
def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees, up to two gigabytes, and uses it again; returns whether it does.

    A training step allocates the same tensors as the step before. glibc gives large ones back as they are freed, and
    the system fills every page of the next one with zeros at its first touch: a cross-entropy of 2048 x 50,304 logits
    took four times as long (experiments/bench/README.md). Another C library is left as it is.
    """
    if any(name in os.environ for name in ASKED):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc, or not a system that finds names so
        return False
    told = [mallopt(what, LARGEST) for what in (TRIM_THRESHOLD, MMAP_THRESHOLD)]
    return told == [1, 1]
