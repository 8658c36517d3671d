"""A run's state on the disk: tensors by safetensors, the rest as JSON in the same file's header, and nothing that runs.

A checkpoint is written whole or not at all, and its name holds a checksum of it, so that damage is noticed. The one
before is kept until the next is safe; two are there at any time, so that one that is damaged costs a few steps.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from archlab.base.errors import UserError
from archlab.base.files import whole
from archlab.records.directory import checkpoints

KEPT = 2
DIGITS = 16
REST = "archlab"
"""The name in the file's header under which everything stands that is no tensor."""


class Checkpoint(NamedTuple):
    """What was saved: a TrainState's two parts, and what the run wants to know besides."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    about: dict[str, Any]


def save(directory: Path, tensors: dict[str, Tensor], state: dict[str, Any], about: dict[str, Any]) -> None:
    """Raises NoRoom, and then the checkpoints that were there still are."""
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    header = {REST: json.dumps({"state": state, "about": about})}

    def named(part: Path) -> Path:
        return directory / f"checkpoint-{state['step']:09d}-{digest(part)}.safetensors"

    with whole(directory / "checkpoint.safetensors", named) as part:
        save_file(on_cpu, part, metadata=header)
    for old in checkpoints(directory)[KEPT:]:
        old.unlink()


def newest(directory: Path, damaged: list[str]) -> Checkpoint | None:
    """The newest checkpoint that is whole; a line is added to `damaged` for each newer one. None where there is none.

    Raises UserError where there are some and all are damaged.
    """
    found = checkpoints(directory)
    for file in found:
        if digest(file) != file.stem.rpartition("-")[2]:
            damaged.append(f"{file.name} is damaged")
            continue
        try:
            checkpoint = read(file)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            damaged.append(f"{file.name} cannot be read: {' '.join(str(error).split())[:80]}")
            continue
        if short := [name for name, length in checkpoint.about["lengths"].items() if size(directory / name) < length]:
            damaged.append(f"{file.name} goes with a longer {short[0]} than there is")
            continue
        return checkpoint
    if found:
        raise UserError(f"{directory}: {'; '.join(damaged)}; delete its checkpoints to begin the run anew")
    return None


def read(file: Path) -> Checkpoint:
    with safe_open(file, framework="pt") as opened:
        rest = json.loads(opened.metadata()[REST])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    return Checkpoint(tensors, rest["state"], rest["about"])


def clear(directory: Path) -> None:
    """What a run needs no longer once all of it is written."""
    for file in checkpoints(directory):
        file.unlink()


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:DIGITS]


def size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
