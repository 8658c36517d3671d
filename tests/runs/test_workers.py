"""Worker processes and Ctrl-C: nobody but the process that the user started hears it, and nothing is printed of the others."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from archlab.base.errors import UserError
from archlab.runs import workers

INTERRUPTED = """
import os, signal, threading, time
from multiprocessing import forkserver
from archlab.runs.workers import expect_workers, pool_of

expect_workers()
server = forkserver._forkserver._forkserver_pid
blocked = [line.split()[1] for line in open(f"/proc/{server}/status") if line.startswith("SigBlk")]
print([number.name for number in (signal.SIGINT, signal.SIGTERM) if int(blocked[0], 16) >> number - 1 & 1])
threading.Timer(0.1, lambda: [os.kill(pid, signal.SIGINT) for pid in (server, os.getpid())]).start()
try:
    with pool_of(2) as pool:
        pool.submit(time.sleep, 60).result()
except KeyboardInterrupt:
    print("heard")
"""
"""Ctrl-C while the server imports what a run needs, which takes seconds."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_while_workers_start_prints_nothing_of_them():
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.stderr) == ("['SIGINT']\nheard\n", "")


def no_lock():
    raise OSError(30, "Read-only file system")


def test_without_locks_there_is_one_process_and_who_asks_for_more_is_told(monkeypatch):
    """As where /dev/shm may not be written. Fault found: every sweep long enough for two processes ended in a traceback."""
    monkeypatch.setattr(workers, "get_context", lambda: SimpleNamespace(Lock=no_lock))
    assert workers.default_workers() == 1
    with pytest.raises(UserError, match=r"^workers=2: no processes .* read-only file system; use workers=1$"):
        workers.pool_of(2).__enter__()
