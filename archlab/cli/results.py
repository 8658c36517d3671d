"""Verbs that work on written runs and claims, not on a configuration: compare, claims, report, stability_map, generate.

Each is done by a module of archlab.verbs that is imported when the verb is called, so no verb waits for another's libraries.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from archlab.base.collecting import no_collecting
from archlab.base.errors import UserError, printable
from archlab.base.metrics import Direction
from archlab.base.quantities import Count, Natural, NonNegative, Positive
from archlab.cli.arguments import config_dir, show, understood

if TYPE_CHECKING:
    from archlab.verbs.compare import Comparison


@dataclass(frozen=True)
class CompareOptions:
    """What `compare` takes besides runs; `output` is a folder for the tables and the plot."""

    metric: str = "val_loss"
    baseline: str | None = None
    smallest_effect: NonNegative | None = None
    direction: Direction | None = None
    mix: bool = False
    text: bool = False
    output: str | None = None


def compare(arguments: list[str]) -> None:
    patterns, options, _ = understood("compare", arguments, CompareOptions)
    if not patterns:
        raise UserError("compare: takes directories of runs, as in archlab compare 'experiments/runs/*norm=*'")
    found = compared(patterns, options)
    show(found)
    if options.output:
        print(found.save(options.output))


def compared(patterns: Sequence[str | Path], options: CompareOptions) -> "Comparison":
    with no_collecting():
        from archlab.verbs.compare import compare as arms_of

    return arms_of(*patterns, **{name: value for name, value in vars(options).items() if name != "output"})


def compare_sweep(directories: Sequence[Path]) -> None:
    """Compares all arms of a finished sweep and writes the result beside the runs; if it can't, one line says why."""
    from archlab.records.directory import new_directory

    try:
        found = compared(directories, CompareOptions())
    except UserError as error:
        print(f"archlab: no comparison: {error}", file=sys.stderr)
        return
    show(found)
    print(found.save(new_directory(directories[0].parent / "comparisons", f"{datetime.now():%Y%m%d-%H%M%S}")))


@dataclass(frozen=True)
class ClaimsOptions:
    """What `claims` takes besides names."""

    budget: Literal["quick", "full", "gpu"] = "quick"
    workers: Count | None = None
    runs: str = "experiments/runs/claims"
    output: str | None = None
    pack: Literal["auto", "off"] | Count = "auto"
    anew: bool = False
    ladder: str | None = None
    evidence: Positive | None = None


def claims(arguments: list[str]) -> None:
    names, options, flags = understood("claims", arguments, ClaimsOptions)
    from archlab.verbs.claims import claims as decided

    show(decided(*names, **vars(options), config_dir=config_dir(flags)))


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
    from archlab.verbs.report import write_report

    chosen = {name: value for name, value in vars(options).items() if value is not None}
    print(write_report(*names, **chosen, config_dir=config_dir(flags)))


@dataclass(frozen=True)
class MapOptions:
    """`stability_map` has no options of its own."""


def stability_map(arguments: list[str]) -> None:
    directories, _, _ = understood("stability_map", arguments, MapOptions)
    if not directories:
        raise UserError("stability_map: takes directories of runs, as in archlab stability_map 'experiments/runs/*'")
    map_stability(directories)


def map_stability(directories: Sequence[str | Path]) -> None:
    """Prints the stability map of existing runs, and writes it beside them."""
    from archlab.verbs.compare import stability_map as map_of

    chart = map_of(*directories)
    folder = chart.save()
    show(chart)
    print(folder)


REPORTS = {"stability_map": map_stability}
"""What is made of an experiment's runs at its end, by the name in the experiment's file."""


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
    """Prints the prompt and how a run's model continues it; under a prefix mask the prompt is the prefix."""
    names, options, flags = understood("generate", arguments, GenerateOptions)
    if len(names) != 1:
        raise UserError(
            f"generate: takes one run's directory, not {len(names)}, as in archlab generate RUN prompt='In the beginning'"
        )
    if not options.prompt:
        raise UserError("prompt: is empty; give the text to continue, as in prompt='In the beginning'")
    from archlab.verbs.generate import generate as go_on

    text = go_on(names[0], **vars(options), config_dir=config_dir(flags)).text
    print(printable(text) if sys.stdout.isatty() else text)  # control characters in the text would act on a terminal
