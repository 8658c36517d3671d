"""Memory that was freed is used again, where the C library can be told so and nobody has said otherwise."""

import ctypes
import os
import subprocess
import sys

import pytest

from archlab.base.freed_memory import ASKED, keep_freed_memory

FAULTS = """
import ctypes, resource
from archlab.base.freed_memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults(n_blocks, size=64 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n_blocks):
        block = libc.malloc(size)
        libc.memset(block, 1, size)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = keep_freed_memory()
faults(1)
print(kept, faults(8))
"""


def told(**variables: str) -> tuple[str, int]:
    """In a new process: whether it keeps what it frees, and the faults of eight blocks of 64 MB after a first one."""
    clean = {name: value for name, value in os.environ.items() if name not in ASKED}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=clean | variables, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_a_block_that_was_freed_is_touched_anew_by_nobody():
    kept, faults = told()
    assert kept == "True" and faults < 100, "64 MB are 16,384 pages, or 32 huge ones"


def test_what_the_user_says_of_it_holds():
    """By glibc's own variables: a threshold of one page gives every block back."""
    kept, _ = told(MALLOC_TRIM_THRESHOLD_="4096", MALLOC_MMAP_THRESHOLD_="4096")
    assert kept == "False"


@pytest.mark.parametrize("missing", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_as_it_is(missing, monkeypatch):
    for name in ASKED:
        monkeypatch.delenv(name, raising=False)

    def no_library(_: None) -> None:
        raise missing

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert not keep_freed_memory.__wrapped__()
