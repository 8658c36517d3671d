"""A run's state on disk: tensors in a safetensors file, the rest as JSON in its header, and nothing executable.

A checkpoint is written whole or not at all, and its name holds its checksum, so that damage is noticed. The previous
one is kept until the next is safe; the last two are kept at any time, so that a damaged one costs only a few steps.
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
"""The header's key for everything that is not a tensor."""


class Checkpoint(NamedTuple):
    """What was saved: a TrainState's two parts, and `about`, the run's own notes."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    about: dict[str, Any]


def save(directory: Path, tensors: dict[str, Tensor], state: dict[str, Any], about: dict[str, Any]) -> None:
    """Writes a checkpoint. Raises NoRoom, which leaves the earlier checkpoints in place."""
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    header = {REST: json.dumps({"state": state, "about": about})}

    def final_name(part: Path) -> Path:
        return directory / f"checkpoint-{state['step']:09d}-{digest(part)}.safetensors"

    with whole(directory / "checkpoint.safetensors", final_name) as part:
        save_file(on_cpu, part, metadata=header)
    for old in checkpoints(directory)[KEPT:]:
        old.unlink()


def newest(directory: Path, damaged: list[str]) -> Checkpoint | None:
    """The newest undamaged checkpoint, None if there are no checkpoints; each newer one adds a line to `damaged`.

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
            damaged.append(f"{file.name} needs a longer {short[0]} than there is")
            continue
        return checkpoint
    if found:
        raise UserError(f"{directory}: {'; '.join(damaged)}; delete its checkpoints to start the run anew")
    return None


def read(file: Path) -> Checkpoint:
    with safe_open(file, framework="pt") as opened:
        rest = json.loads(opened.metadata()[REST])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    return Checkpoint(tensors, rest["state"], rest["about"])


def clear(directory: Path) -> None:
    """Deletes the checkpoints, which a completely written run no longer needs."""
    for file in checkpoints(directory):
        file.unlink()


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:DIGITS]


def size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
