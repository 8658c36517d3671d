"""Runs that were written down, read back from their directories."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from archlab.errors import UserError
from archlab.rundir import STEPS, unfinished

Record = dict[str, Any]

PARTS = ("config.yaml", "summary.json")
"""What a directory must hold to be a run."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run: what was asked for (`config`) and how it ended (`summary`)."""

    directory: Path
    config: Record
    summary: Record

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def diverged(self) -> bool:
        return self.summary["status"] == "diverged"

    @cached_property
    def metrics(self) -> list[Record]:
        """One record a logged step; a last line that was cut off in the middle is left out.

        Raises UserError where any other line is no record.
        """
        try:
            lines = (self.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        except OSError:
            return []
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            told = " ".join(str(error).split())[:120]
            raise UserError(f"{self.directory}: its metrics.jsonl cannot be read: {told}; leave it out") from None

    @property
    def losses(self) -> list[float]:
        """The loss of every step, nats per token; nan where it was not finite, and empty for runs that kept none."""
        return [math.nan if step["loss"] is None else step["loss"] for step in self.steps]

    @property
    def grad_norms(self) -> list[float]:
        """The gradient's norm at every step, before clipping."""
        return [math.nan if step["grad_norm"] is None else step["grad_norm"] for step in self.steps]

    @cached_property
    def steps(self) -> list[Record]:
        """{step, loss, grad_norm} of every step, where `metrics` has those that were logged."""
        try:
            lines = (self.directory / STEPS).read_text(encoding="utf-8").splitlines(keepends=True)
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            told = " ".join(str(error).split())[:120]
            raise UserError(f"{self.directory}: its {STEPS} cannot be read: {told}; leave it out") from None

    @cached_property
    def positions(self) -> list[Record]:
        """Held-out loss by position, one curve a length."""
        try:
            return json.loads((self.directory / "positions.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []

    @cached_property
    def overrides(self) -> list[str]:
        try:
            return yaml.safe_load((self.directory / "overrides.yaml").read_text(encoding="utf-8")) or []
        except (OSError, yaml.YAMLError):
            return []


def read_run(directory: Path) -> Run:
    """Raises UserError, with the file that is missing or cannot be read."""
    if why := unfinished(directory):
        raise UserError(why)
    for part in PARTS:
        if not (directory / part).is_file():
            raise UserError(f"{directory}: has no {part}, so it is no finished run; leave it out")
    try:
        config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{directory}: cannot be read: {' '.join(str(error).split())[:120]}; leave it out") from None
    missing = {"status", "val_loss", "corpus_sha256"} - set(summary if isinstance(summary, dict) else ())
    if missing or not isinstance(config, dict) or "seed" not in config:
        raise UserError(f"{directory}: its record lacks {', '.join(sorted(missing)) or 'a seed'}; leave it out")
    if not isinstance(summary["corpus_sha256"], str):
        raise UserError(f"{directory}: its record lacks the hash of its corpus; leave it out")
    run = Run(directory, config, summary)
    _ = run.metrics  # a damaged line is found here, where a run can still be left out
    return run


def find(patterns: Sequence[str | Path]) -> list[Path]:
    """The directories that paths and globs name, each once, in order; a folder of runs stands for those in it."""
    found: dict[Path, None] = {}
    for pattern in map(str, patterns):
        matching = sorted(Path(path) for path in glob(pattern))
        if not matching:
            raise UserError(f"{pattern}: no such run; give directories of runs, or globs such as 'experiments/runs/*'")
        directories = [directory for path in matching for directory in inside(path)]
        if not directories:
            raise UserError(
                f"{pattern}: neither a run nor a folder of runs; a run's directory holds {' and '.join(PARTS)}"
            )
        found.update(dict.fromkeys(directories))
    return list(found)


def inside(path: Path) -> list[Path]:
    """The run itself, or the runs in a folder of them; those that lack a part too, so that it can be said."""
    if any((path / part).is_file() for part in PARTS):
        return [path]
    return sorted({file.parent for part in PARTS for file in path.glob(f"*/{part}")})
