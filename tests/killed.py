"""Runs that are killed at a chosen call, and all that a run leaves behind."""

import json
import os
import signal
from pathlib import Path

from archlab.base.errors import NoRoom

WORDS = (
    "size=nano", "size.d_model=24", "size.n_heads=3", "size.d_ff=40", "size.n_layers=1", "train.steps=24", "train.batch_size=3", "train.train_len=14",
    "train.save_every=5", "train.log_every=3", "train.eval_every=7", "train.patience=9", "probe.every=4", "dropout=0.1",
    "eval.tokens=56", "eval.lengths=[1,2]",
)  # fmt: skip
TIMES = {"tokens_per_second", "first_step_seconds", "wall_seconds"}


def the_run(folder: Path) -> Path:
    (directory,) = folder.iterdir()
    return directory


def all_of(directory: Path) -> dict:
    """Everything a run is, but for how long it took."""
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((directory / "summary.json").read_text())
    rest = ["model.safetensors", "positions.json", "steps.jsonl", "autopsy.json"]
    return {
        "metrics": [{name: value for name, value in record.items() if name not in TIMES} for record in metrics],
        "summary": {name: value for name, value in summary.items() if name not in TIMES},
        **{name: (directory / name).read_bytes() for name in rest if (directory / name).exists()},
        "names": sorted(
            file.name for file in directory.iterdir() if not file.name.startswith("events") and file.suffix != ".png"
        ),
    }


def in_a_child(act) -> int:
    """How a process ended that did this and nothing else: its exit status, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        status = 70
        signal.alarm(120)  # a fork that waits for a thread its parent had would wait for ever
        try:
            act()
            status = 0
        except KeyboardInterrupt as error:
            status = getattr(error, "status", 130)
        except NoRoom:
            status = 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, real, before=die):
    """The function, which first does something else when it is called for the given time."""
    calls = 0

    def called(*args, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            before(*args, **options) if before is not die else die()
        return real(*args, **options)

    return called
