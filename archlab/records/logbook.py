"""A run's own directory: everything that is known about the run, written as soon as it is known.

config.yaml          the whole configuration, resolved: the options by their names and values, no classes
overrides.yaml       what was asked for on the command line
metrics.jsonl        one object per logged step
steps.jsonl          loss and gradient norm of every step
checkpoint-*         from which a run that was broken off continues; deleted once it is finished
summary.json         how it ended
sketch.json          the model as it is drawn
positions.json       held-out loss by position and by window, one record per length
autopsy.json         what moved first, and the steps it was found in; only where the run spiked or diverged
model.safetensors    the weights
events.out.*         TensorBoard's
wandb/               Weights & Biases', where it was asked for
*.png                plots
"""

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_model
from torch import nn

import archlab
from archlab.base.configuration import plain_dict
from archlab.base.errors import NoRoom, UserError
from archlab.base.files import PARTS, Lines, whole, write_text
from archlab.records import checkpoint
from archlab.records.directory import (
    METRICS,
    STEPS,
    SUMMARY,
    as_written,
    disk_explained,
    new_directory,
    write_held,
)
from archlab.records.loggers import Logger, open_loggers
from archlab.train.state import TrainState

Record = dict[str, Any]


class Logbook:
    """Writes one run, and holds its directory's lock. Numbers that are not finite are written as null, so that the
    files are JSON. On an error it closes everything and releases the lock; what is written stays as it is.
    """

    def __init__(self, output: str, cfg: DictConfig, overrides: Sequence[str], again: "Again | None" = None):
        """A new run or, with `again`, a run that is continued in its own directory."""
        again = again or Again(*begun(Path(output), cfg, overrides))
        self.directory, self.finished = again.directory, False
        self.held: int | None = again.held
        self.files: dict[str, Lines] = {}
        self.loggers: list[Logger] = []
        try:
            lengths = again.about.get("lengths", {})
            self.metrics = read_metrics(self.directory / METRICS, lengths.get(METRICS, 0))
            with disk_explained(self.directory):
                self.files = {name: Lines(self.directory / name, lengths.get(name, 0)) for name in (METRICS, STEPS)}
                again.clear()
                plain = plain_dict(cfg, resolve=True)
                self.loggers = open_loggers(cfg.loggers, self.directory, plain, again.about.get("step", 0))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Logbook":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self.files.values():
            file.close()
        if self.held is None:
            return
        os.close(self.held)
        self.held = None
        for logger in [] if self.finished else self.loggers:
            with suppress(OSError):  # a disk that was full for the run is full for its loggers too
                logger.finish({})

    def step(self, record: Record) -> None:
        self.metrics.append(record)
        self.files[METRICS].add(json.dumps(finite(record)) + "\n")
        numbers = scalars(record)
        for logger in self.loggers:
            logger.log(numbers, record["step"])

    def steps(self, numbers: Sequence[tuple[int, float, float]]) -> None:
        """Every step's number, loss and gradient norm."""
        records = [{"step": step, "loss": loss, "grad_norm": norm} for step, loss, norm in numbers]
        self.files[STEPS].add("".join(json.dumps(finite(record)) + "\n" for record in records))

    def save(self, state: TrainState, about: Record) -> None:
        """Writes a checkpoint, which holds the current length of each growing file."""
        for file in self.files.values():
            file.sync()
        lengths = {name: file.length for name, file in self.files.items()}
        checkpoint.save(self.directory, *state.state_dict(), {**about, "lengths": lengths, "step": state.step})

    def autopsy(self, findings: Record) -> None:
        write_text(self.directory / "autopsy.json", json.dumps(finite(findings)) + "\n")

    def close(
        self, summary: Record, positions: Sequence[Record], model: nn.Module, to_be_continued: bool = False
    ) -> None:
        """Writes the last files, the summary at the end, so that a run with one is whole. Checkpoints stay if it is
        to be continued.
        """
        for logger in self.loggers:
            logger.finish(finite(summary))
        self.finished = True
        write_text(self.directory / "positions.json", json.dumps(finite(positions)))
        with whole(self.directory / "model.safetensors") as part:
            save_model(model, str(part))
        write_text(self.directory / SUMMARY, json.dumps(finite(summary), indent=2) + "\n")
        if not to_be_continued:
            checkpoint.clear(self.directory)
        self.__exit__()


@dataclass(frozen=True)
class Again:
    """A run's directory, locked by this process; `about` is what its checkpoint, if any, holds beside the state."""

    directory: Path
    held: int
    about: Record = field(default_factory=dict)

    def clear(self) -> None:
        """Deletes the summary and what a killed writer left; without a checkpoint, all other results too."""
        for pattern in (SUMMARY, PARTS) if self.about else BEGUN_ANEW:
            for file in self.directory.glob(pattern):
                file.unlink()


BEGUN_ANEW = (
    SUMMARY,
    PARTS,
    "events.out.*",
    "positions.json",
    "autopsy.json",
    "autopsy.png",
    "model.safetensors",
    "sketch.json",
)


def begun(output: Path, cfg: DictConfig, overrides: Sequence[str]) -> tuple[Path, int]:
    """Makes a new run's directory, with its overrides and configuration; returns it and the descriptor of its lock."""
    directory = new_directory(output, f"{datetime.now():%Y%m%d-%H%M%S}-{slug(overrides)}")
    try:
        write_text(directory / "overrides.yaml", OmegaConf.to_yaml(list(overrides)))
        return directory, write_held(directory, as_written(plain_dict(cfg, resolve=True)))
    except NoRoom:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def read_metrics(file: Path, length: int) -> list[Record]:
    """The records in the first `length` bytes; a null in them was a number that is not finite. Raises UserError."""
    if not length:
        return []
    try:
        with file.open("rb") as opened:
            records = [json.loads(line) for line in opened.read(length).splitlines()]
        for record in records:
            for layer in record.get("layers", ()):
                layer |= {name: math.nan for name, value in layer.items() if value is None}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        why = " ".join(str(error).split())[:120]
        raise UserError(f"{file}: is damaged: {why}; delete the run's checkpoints to start it anew") from None
    return records


def slug(overrides: Sequence[str]) -> str:
    """The overrides, as part of a file name."""
    words = "_".join(overrides) or "default"
    return "".join(c if c.isalnum() or c in "._-=" else "-" for c in words)[:80]


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scalars(record: Record) -> dict[str, float]:
    """A record's numbers under the names that loggers group them by."""
    flat = {
        f"train/{name}": value for name, value in record.items() if isinstance(value, (int, float)) and name != "step"
    }
    for depth, layer in enumerate(record.get("layers", ())):
        flat |= {f"{quantity}/layer_{depth}": value for quantity, value in layer.items()}
    return flat


def versions() -> Record:
    """Versions of Python and the libraries, for torch with its build and those of its GPU libraries."""
    names = ("numpy", "einops", "hydra-core")
    cudnn = torch.backends.cudnn.version() if torch.version.cuda else None
    beneath = {"cuda": torch.version.cuda, "cudnn": cudnn and str(cudnn), "hip": torch.version.hip}
    return {
        "archlab": archlab.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: version for name, version in beneath.items() if version},
        **{name: metadata.version(name) for name in names},
    }


@cache
def git_state() -> Record | None:
    """The commit archlab runs from and whether its files were changed since; None where it isn't run from a checkout.

    Read once, when the first run starts: later changes of the checkout are not what this process has loaded.
    """
    here = Path(archlab.__file__).parent.parent
    if not (here / ".git").exists():
        return None
    try:
        commit = git(here, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(git(here, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()
