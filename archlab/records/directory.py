"""The state of a run by its directory: finished, broken off, or being written; and the lock its writer holds.

An unfinished run keeps its last checkpoints beside its other files; they are deleted once everything is written. So a
run with a summary and no checkpoint is finished, and one that was killed has no summary. Its writer holds a lock on
config.yaml, which the system releases when the process dies, however it dies.
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from archlab.base.errors import NoRoom, UserError
from archlab.base.files import kept_out, lock, named_by, no_room, sync, there
from archlab.base.nested import options_alone

CONFIG, SUMMARY, METRICS, STEPS = "config.yaml", "summary.json", "metrics.jsonl", "steps.jsonl"
CHECKPOINTS = "checkpoint-*.safetensors"


def new_directory(parent: Path, name: str) -> Path:
    """A new directory that no other run has, even where two start in the same second."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        return next(directory for directory in (parent / n for n in names) if made(directory))
    except OSError as error:
        raise no_room(error, parent) or UserError(
            f"output={parent}: no run can be written there: {error.strerror}; give another folder"
        ) from None


def made(directory: Path) -> bool:
    """Whether this call made the directory."""
    try:
        directory.mkdir()
    except FileExistsError:
        return False
    return True


@contextmanager
def disk_explained(directory: Path) -> Iterator[None]:
    """Turns what the disk refuses a run into one line, which names the run and says how to finish it.

    Raises NoRoom where the disk is full, and UserError where the directory may not be written, or is there no more.
    """
    try:
        yield
    except Exception as error:
        finishes = f"archlab resume {directory} finishes the run"
        if full := no_room(error, named_by(error) or directory):
            what = str(full).partition("; make room")[0]
            raise NoRoom(f"{what}; make room, and {finishes}") from None
        if isinstance(error, OSError) and not directory.is_dir():
            raise UserError(
                f"{directory}: was moved or deleted while it was being written; archlab resume finishes it where it"
                " is now"
            ) from None
        if refused := kept_out(error, directory):
            what = str(refused).partition("; give")[0]
            raise UserError(f"{what}; give it the rights that it needs, and {finishes}") from None
        raise


def checkpoints(directory: Path) -> list[Path]:
    """A run's checkpoints, the newest first."""
    return sorted(directory.glob(CHECKPOINTS), key=lambda file: (file.name.split("-")[1], file.stat().st_mtime_ns))[
        ::-1
    ]


def looks_like_a_run(directory: Path) -> bool:
    """Whether there is a configuration of a run."""
    return there(directory / CONFIG)


def refuse_beside_a_run(words: Sequence[str]) -> None:
    """Raises UserError where one of several words is a run."""
    if len(words) > 1 and (run := next((word for word in words if looks_like_a_run(Path(word))), None)):
        others = " ".join(word for word in words if word != run)
        raise UserError(f"{run}: is a run, which is taken as it was trained; give it without {others}")


def is_finished(directory: Path) -> bool:
    return (directory / SUMMARY).is_file() and not any(directory.glob(CHECKPOINTS))


def unfinished(directory: Path) -> str | None:
    """Why the run cannot be read yet, in one line; None where it was written to its end, or there is no run."""
    begun = all((directory / name).is_file() for name in (CONFIG, METRICS))  # a copied model is not a run
    if (directory / SUMMARY).is_file() or not begun:
        return None
    if being_written(directory):
        return f"{directory}: is still being written, {how_far(directory)}"
    return f"{directory}: was broken off {how_far(directory)}; archlab resume {directory} finishes it"


def how_far(directory: Path) -> str:
    """The last and the planned step, as far as they can be read from a run that may be incomplete."""
    return f"at step {last_step(directory)} of {planned_steps(directory)}"


def last_step(directory: Path) -> int:
    """The last step that was logged or has a checkpoint."""
    steps = [int(file.name.split("-")[1]) for file in checkpoints(directory)]
    try:
        lines = (directory / METRICS).read_bytes().splitlines(keepends=True)
        steps += [json.loads(line)["step"] for line in lines[-2:] if line.endswith(b"\n")]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return max(steps, default=0)


def planned_steps(directory: Path) -> object:
    try:
        return yaml.safe_load((directory / CONFIG).read_text(encoding="utf-8"))["train"]["steps"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return "?"


def as_written(configuration: Mapping[str, Any]) -> str:
    """A configuration as config.yaml holds it: options by their names and values, no classes."""
    return yaml.safe_dump(options_alone(configuration), sort_keys=False, allow_unicode=True)


def same_run(output: Path, configuration: str) -> Path | None:
    """The run under `output` whose config.yaml is the same apart from `output`; a finished one is preferred."""
    wanted = without_output(configuration)
    same = [file.parent for file in sorted(output.glob(f"*/{CONFIG}")) if without_output(read(file)) == wanted]
    return max(same, key=is_finished, default=None)


def without_output(configuration: str) -> list[str]:
    return [line for line in configuration.splitlines() if not line.startswith("output:")]


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


# ---------------------------------------------------------------- the lock


def being_written(directory: Path) -> bool:
    """Whether a living process is writing the run."""
    try:
        descriptor = os.open(directory / CONFIG, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not lock(descriptor)
    finally:
        os.close(descriptor)


def write_held(directory: Path, configuration: str) -> int:
    """Writes config.yaml, locked before anybody can see it; returns the descriptor that holds the lock."""
    part = directory / f".config.{os.getpid()}.part.yaml"
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as file:
            file.write(configuration)
        os.fsync(descriptor)
        lock(descriptor)
        os.replace(part, directory / CONFIG)
        sync(directory)
    except OSError as error:
        raise no_room(error, directory / CONFIG) or error from None
    return descriptor


def hold(directory: Path) -> int:
    """Locks an existing run; returns the descriptor that holds the lock. Raises UserError where another process has it."""
    try:
        descriptor = os.open(directory / CONFIG, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if there(directory / CONFIG) and (refused := kept_out(error)):
            raise refused from None
        raise UserError(f"{directory}: has no {CONFIG}, so it is not a run; give a run's directory") from None
    if not lock(descriptor):
        os.close(descriptor)
        raise UserError(
            f"{directory}: is being written by another process, {how_far(directory)}; wait for it, or stop it first"
        )
    return descriptor
