"""Verbs that work on what was written down, not on a configuration: compare, claims, report, stability_map, generate."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from archlab.base.errors import UserError, printable
from archlab.base.metrics import Direction
from archlab.base.quantities import Count, Natural, NonNegative
from archlab.cli.arguments import config_dir, understood
from archlab.runs import experiments

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class CompareOptions:
    """What `compare` takes besides runs; `output` is a folder for the tables and the plot."""

    metric: str = "val_loss"
    baseline: str | None = None
    smallest_effect: NonNegative | None = None
    direction: Direction | None = None
    mix: bool = False
    output: str | None = None


def compare(arguments: list[str]) -> None:
    patterns, options, _ = understood("compare", arguments, CompareOptions)
    if not patterns:
        raise UserError("compare: takes directories of runs, as in archlab compare 'experiments/runs/*norm=*'")
    record = compared(patterns, options)
    show_comparison(record)
    if options.output:
        print(save_comparison(record, Path(options.output)))


def compared(patterns: Sequence[str | Path], options: CompareOptions) -> dict:
    """The record of a comparison, with what was left out among its notes. Raises UserError."""
    from archlab.comparison.arms import read_all
    from archlab.comparison.comparison import compare as compare_runs

    runs, notes = read_all(patterns)
    asked = {name: value for name, value in vars(options).items() if name != "output"}
    record = compare_runs(runs, **asked).record()
    return record | {"notes": [*notes, *record["notes"]]}


def show_comparison(record: dict) -> None:
    from rich.console import Console

    from archlab.report.comparison import comparison

    Console().print(comparison(record))


def save_comparison(record: dict, folder: Path) -> Path:
    from archlab.report.comparison import save_all

    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_all(record, folder)
    except OSError as error:
        raise UserError(
            f"output={folder}: nothing can be written there: {error.strerror}; give another folder"
        ) from None
    return folder


def compare_sweep(directories: Sequence[Path]) -> None:
    """How a sweep ends: all its arms compared, beside the runs. Where they can't be, one line says why."""
    from archlab.records.logbook import new_directory

    try:
        record = compared(directories, CompareOptions())
    except UserError as error:
        print(f"archlab: no comparison: {error}", file=sys.stderr)
        return
    show_comparison(record)
    print(
        save_comparison(record, new_directory(directories[0].parent / "comparisons", f"{datetime.now():%Y%m%d-%H%M%S}"))
    )


@dataclass(frozen=True)
class ClaimsOptions:
    """What `claims` takes besides names."""

    budget: Literal["quick", "full"] = "quick"
    workers: Count | None = None
    runs: str = "experiments/runs/claims"
    output: str | None = None


def claims(arguments: list[str]) -> None:
    names, options, flags = understood("claims", arguments, ClaimsOptions)
    from rich.console import Console

    from archlab.claim.session import decide_claims
    from archlab.report.claims import claims_table

    runs, output = Path(options.runs), Path(options.output) if options.output else None
    records = decide_claims(names, options.budget, runs, output, options.workers, config_dir(flags))
    Console().print(claims_table(records))


@dataclass(frozen=True)
class ReportOptions:
    """What `report` takes besides runs and claims; all but `output` are for the comparison of the runs."""

    output: str = "report.html"
    metric: str | None = None
    baseline: str | None = None
    smallest_effect: NonNegative | None = None
    direction: Direction | None = None
    mix: bool | None = None


def report(arguments: list[str]) -> None:
    names, options, flags = understood("report", arguments, ReportOptions)
    from archlab.report.written import write_report

    comparing = {name: value for name, value in vars(options).items() if name != "output" and value is not None}
    print(write_report(names, Path(options.output), comparing, partial(drawn_run, own=config_dir(flags))))


def drawn_run(directory: Path, own: Path | None = None) -> str:
    """The block diagram, as SVG, of the model a run trained."""
    from archlab.config.assemble import assemble_without_weights
    from archlab.diagram import svg
    from archlab.runs.load import saved_configuration

    return svg(assemble_without_weights(saved_configuration(directory, own)))


@dataclass(frozen=True)
class MapOptions:
    """`stability_map` has no options of its own."""


def stability_map(arguments: list[str]) -> None:
    directories, _, _ = understood("stability_map", arguments, MapOptions)
    if not directories:
        raise UserError("stability_map: takes directories of runs, as in archlab stability_map 'experiments/runs/*'")
    experiments.map_stability(directories)


@dataclass(frozen=True)
class GenerateOptions:
    """What `generate` takes besides a run; `archlab.model.generate.generate` says what they mean."""

    prompt: str | None = None
    max_new_tokens: Count = 200
    temperature: NonNegative = 0.0
    top_k: Count | None = None
    top_p: float | None = None
    seed: Natural = 0


def generate(arguments: list[str]) -> None:
    """Prints the prompt and what a run's model says after it; under a prefix mask the prompt is the prefix."""
    names, options, flags = understood("generate", arguments, GenerateOptions)
    if len(names) != 1:
        raise UserError(
            f"generate: takes one run's directory, not {len(names)}, as in archlab generate RUN prompt='In the beginning'"
        )
    if not options.prompt:
        raise UserError("prompt: is empty; give the text to go on from, as in prompt='In the beginning'")
    import torch

    from archlab.model.generate import generate as go_on
    from archlab.runs.load import load_run

    cfg, decoder = load_run(names[0], config_dir=config_dir(flags))
    check_bytes(names[0], cfg)
    tokens = torch.tensor([list(options.prompt.encode())])
    settings = {name: value for name, value in vars(options).items() if name != "prompt"}
    told = go_on(decoder, tokens, prefix_len=tokens.shape[1] if decoder.mask.uses_prefix else None, **settings)
    text = bytes(told[0].tolist()).decode(errors="replace")
    print(printable(text) if sys.stdout.isatty() else text)  # a terminal would obey what a stranger's model says


def check_bytes(run: str, cfg: "DictConfig") -> None:
    """Refuses a model whose tokens are not bytes of text."""
    if cfg.choices.data not in ("text", "python", "file", "hf") or cfg.data.get("tokenizer"):
        raise UserError(
            f"{run}: learned data={cfg.choices.data}, whose tokens are not bytes of text; give a run of data=text, python"
            " or file"
        )
