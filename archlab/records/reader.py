"""Reads runs back from their directories."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

from archlab.base.errors import UNPRINTABLE, UserError
from archlab.base.files import there
from archlab.base.plain import SERIES, Unreadable, read_json, read_lines, read_whole_lines, read_yaml
from archlab.records.directory import STEPS, unfinished
from archlab.records.schema import (
    check_config,
    check_metrics,
    check_overrides,
    check_positions,
    check_steps,
    check_summary,
)

Record = dict[str, Any]

PARTS = ("config.yaml", "summary.json")
"""What a directory must hold to be a run."""

COMPARED = ("train.steps", "train.batch_size", "train.train_len", "size.vocab_size", "eval.protocol", "eval.lengths", "eval.stride", "eval.tokens")  # fmt: skip
"""The fields that are checked before runs are compared."""


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
        """One record per logged step; a last line that was cut off in the middle is left out. Raises UserError."""
        return self._read("metrics.jsonl", read_lines, check_metrics)

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
        """{step, loss, grad_norm} of every step, while `metrics` has only logged steps. Raises UserError."""
        return self._read(STEPS, read_whole_lines, check_steps)

    @cached_property
    def positions(self) -> list[Record]:
        """Held-out loss by position, one curve per length. Raises UserError."""
        return self._read("positions.json", read_positions, check_positions)

    def windows(self, eval_len: int) -> list[float | None]:
        """The loss of each held-out window of a length; empty for a run that kept none."""
        return next((one.get("windows", []) for one in self.positions if one["eval_len"] == eval_len), [])

    @cached_property
    def overrides(self) -> list[str]:
        """What was asked for on the command line. Raises UserError."""
        return self._read("overrides.yaml", read_yaml, check_overrides)

    def _read(self, name: str, read: Callable[[Path], Any], check: Callable[[Any], list[Any]]) -> list[Any]:
        """The content of a file that a run may lack."""
        file = self.directory / name
        if not file.exists():
            return []
        try:
            return check(read(file))
        except Unreadable as error:
            raise UserError(f"{self.directory}: its {name} cannot be read: {error}; leave it out") from None


def read_positions(file: Path) -> Any:
    return read_json(file, SERIES)


def asked_words(file: Path) -> list[str]:
    """The overrides that a run was started with. Raises Unreadable."""
    return check_overrides(read_yaml(file))


def read_run(directory: Path, needs: Collection[str] = COMPARED) -> Run:
    """A run whose files are all checked; `needs` are the fields that its configuration must have.

    Raises UserError, with the file that is missing or damaged and what is wrong with it.
    """
    if UNPRINTABLE.search(str(directory)):
        raise UserError(f"{directory}: has a control character in its name; rename it, or leave it out")
    if why := unfinished(directory):
        raise UserError(why)
    for part in PARTS:
        if not (directory / part).is_file():
            raise UserError(f"{directory}: has no {part}, so it is not a finished run; leave it out")
    try:
        config = read_yaml(directory / "config.yaml")
        summary = read_json(directory / "summary.json")
    except Unreadable as error:
        raise UserError(f"{directory}: cannot be read: {error}; leave it out") from None
    try:
        run = Run(directory, dict(check_config(config, needs)), dict(check_summary(summary)))
    except Unreadable as error:
        raise UserError(f"{directory}: its record is damaged: {error}; leave it out") from None
    # Damage is found here, where a run can still be left out.
    _ = run.metrics, run.steps, run.overrides
    if run.positions and "train_len" not in run.summary:
        raise UserError(f"{directory}: its record is damaged: train_len is missing; leave it out")
    return run


def find(patterns: Sequence[str | Path]) -> list[Path]:
    """The directories that paths and globs name, each once, in order; a folder of runs means all runs in it."""
    if not patterns:
        raise UserError("no run is named; give directories of runs, or globs such as 'experiments/runs/*'")
    found: dict[Path, None] = {}
    for pattern in map(str, patterns):
        matching = named(pattern)
        if not matching:
            raise UserError(f"{pattern}: no such run; give directories of runs, or globs such as 'experiments/runs/*'")
        directories = [directory for path in matching for directory in inside(path)]
        if not directories:
            raise UserError(
                f"{pattern}: neither a run nor a folder of runs; a run's directory holds {' and '.join(PARTS)}"
            )
        found.update(dict.fromkeys(directories))
    return list(found)


def named(pattern: str) -> list[Path]:
    """What a path or a glob names; a name that is there is no glob, whatever brackets it has."""
    return [Path(pattern)] if there(Path(pattern)) else sorted(Path(path) for path in glob(pattern))


def inside(path: Path) -> list[Path]:
    """The run itself, or the runs in a folder of them; those that lack a part too, so that this can be reported."""
    if any((path / part).is_file() for part in PARTS):
        return [path]
    return sorted({file.parent for part in PARTS for file in path.glob(f"*/{part}")})
