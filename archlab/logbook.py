"""A run's own directory: everything that is known of it, written as it becomes known.

config.yaml          the whole configuration, resolved: the options by their names and values, no classes
overrides.yaml       what was asked for on the command line
metrics.jsonl        one object a logged step
summary.json         how it ended
positions.json       held-out loss by position, one curve a length
autopsy.json         what moved first, and the steps it was found in; only where the run spiked or diverged
model.safetensors    the weights
events.out.*         TensorBoard's
wandb/               Weights & Biases', where it was asked for
*.png                plots
"""

import itertools
import json
import math
import platform
import subprocess
from collections.abc import Sequence
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
from archlab.errors import UserError
from archlab.loggers import open_loggers
from archlab.nested import options_alone

Record = dict[str, Any]


class Logbook:
    """Writes one run. Numbers that are not finite are written as null, so that the files are JSON."""

    def __init__(self, output: str, cfg: DictConfig, overrides: Sequence[str]):
        self.directory = new_directory(Path(output), f"{datetime.now():%Y%m%d-%H%M%S}-{slug(overrides)}")
        (self.directory / "config.yaml").write_text(OmegaConf.to_yaml(options_alone(OmegaConf.to_container(cfg, resolve=True))))
        (self.directory / "overrides.yaml").write_text(OmegaConf.to_yaml(list(overrides)))
        self.metrics: list[Record] = []
        self.lines = (self.directory / "metrics.jsonl").open("w", buffering=1)
        self.loggers = open_loggers(cfg.loggers, self.directory, OmegaConf.to_container(cfg, resolve=True))

    def step(self, record: Record) -> None:
        self.metrics.append(record)
        self.lines.write(json.dumps(finite(record)) + "\n")
        numbers = scalars(record)
        for logger in self.loggers:
            logger.log(numbers, record["step"])

    def autopsy(self, findings: Record) -> None:
        (self.directory / "autopsy.json").write_text(json.dumps(finite(findings)) + "\n")

    def close(self, summary: Record, positions: Sequence[Record], model: nn.Module) -> None:
        self.lines.close()
        for logger in self.loggers:
            logger.finish(finite(summary))
        (self.directory / "positions.json").write_text(json.dumps(finite(positions)))
        save_model(model, str(self.directory / "model.safetensors"))
        (self.directory / "summary.json").write_text(json.dumps(finite(summary), indent=2) + "\n")


def new_directory(parent: Path, name: str) -> Path:
    """A directory nobody else has, even where two runs start in the same second."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        return next(directory for directory in (parent / n for n in names) if made(directory))
    except OSError as error:
        raise UserError(
            f"output={parent}: no run can be written there: {error.strerror}; give another folder"
        ) from None


def made(directory: Path) -> bool:
    """Whether it was this call that made the directory."""
    try:
        directory.mkdir()
    except FileExistsError:
        return False
    return True


def slug(overrides: Sequence[str]) -> str:
    """What was asked for, as part of a file name."""
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
    """Of torch its build too, and of what it computes with on a GPU."""
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
    """The commit archlab runs from and whether it was changed since; None where it isn't run from a checkout.

    Asked once, when the first run starts: what the checkout becomes later is not what this process has loaded.
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
