"""How fast an architecture is on this machine: by itself, beside another, beside other libraries, by size; and a GPU's checks."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig
from rich.console import RenderableType

from archlab.base.arguments import checked
from archlab.base.errors import UserError
from archlab.base.files import whole_folder
from archlab.base.words import key_of, sets
from archlab.benchmark import peers as of_peers
from archlab.benchmark import scaling as of_sizes
from archlab.benchmark import speed as of_one
from archlab.benchmark import versus as of_two
from archlab.benchmark.gpu.suite import CHECKS, device_or_refusal, gpu
from archlab.benchmark.machine import machine_of
from archlab.benchmark.ratio import Rounds
from archlab.config.compose import compose, plans
from archlab.config.overrides import refuse_twice
from archlab.config.plan import Plan
from archlab.records.directory import new_directory
from archlab.records.logbook import git_state, versions
from archlab.report import benchmark as report
from archlab.report.progress import Counted, track
from archlab.runs.named_model import words_in
from archlab.verbs.shown import Shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Suite = Literal["speed", "peers", "scaling", "gpu"]
HOME = Path("experiments/bench")


@dataclass(frozen=True, repr=False)
class Benchmark(Shown):
    """What was measured; `record` is what bench.json holds."""

    record: Mapping[str, Any]

    def __bool__(self) -> bool:
        """Whether no check failed; where there are none, true."""
        return all(check["verdict"] in ("pass", "measured") for check in self.record.get("checks", ()))

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each thing that was measured, numbers unrounded."""
        return report.rows(self.record)

    def plot(self) -> "Figure":
        """The shares of a step's time, the ratios with their intervals, the growth by size, or the checks."""
        return report.figure(self.record)

    @checked
    def save(self, folder: str | Path | None = None) -> Path:
        """Writes bench.json, .csv, .txt and .png into a folder that is not there yet; by itself one in experiments/bench.

        Raises UserError where there can be none.
        """
        path = place_for(folder, self.record["suite"])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_folder(path) as part:
                report.write_all(self.record, str(self), part)
        except OSError as error:
            raise UserError(
                f"output={path}: nothing can be written there: {error.strerror}; give another folder"
            ) from None
        return path

    def __rich__(self) -> RenderableType:
        return report.tables(self.record)


@checked
def bench(
    *words: str,
    vs: str | None = None,
    suite: Suite = "speed",
    rounds: Rounds | None = None,
    config_dir: str | Path | None = None,
) -> Benchmark:
    """Measures speed and memory of the architecture that overrides assemble.

    `vs` are a second architecture's changes, in one text: both are then timed in turns. `suite` is speed, peers (beside
    other libraries), scaling (by length, width, depth and runs in a pack) or gpu (checks of a CUDA device). `rounds` is how
    often everything is timed. Raises UserError.
    """
    refuse_twice(words)
    for word in words:
        if sets(word, "output"):
            raise UserError(f"{word}: a benchmark is no run; write it down by .save(folder)")
    if vs is not None and suite != "speed":
        raise UserError(f"--vs {vs}: suite={suite} knows no second architecture; leave one of the two out")
    if suite == "gpu":
        return checks_of_device(words, rounds)
    plan = one_plan(words, config_dir)
    if vs is not None:
        return beside(words, plan, vs, rounds, config_dir)
    if suite == "scaling":
        return by_size(words, plan, rounds, config_dir)
    if suite == "peers":
        of_peers.chosen(plan.cfg)
        cfg = compose(*replaced(words, "probe.every=null"), config_dir=config_dir)
        n = rounds or of_peers.ROUNDS
        with Counted("bench", n) as done:
            found = of_peers.peers(cfg, n, partial(done.add, 1))
        return written_down("peers", words, found)
    n = rounds or of_one.ROUNDS
    with Counted("bench", n) as done:
        found = of_one.speed(plan.cfg, n, partial(done.add, 1))
    return written_down("speed", words, found)


def beside(words: Sequence[str], plan: Plan, vs: str, rounds: int | None, config_dir: str | Path | None) -> Benchmark:
    """Two architectures in turns."""
    changes = words_in(vs)
    try:
        other = one_plan(of_two.other_words(tuple(words), changes), config_dir)
    except UserError as error:
        raise UserError(f"--vs {vs}: {error}") from None
    of_two.check_apart(plan, other, vs)
    names = " ".join(words) or "default", " ".join(changes)
    n = rounds or of_two.ROUNDS
    with Counted("bench", n) as done:
        found = of_two.versus(plan, other, names, n, partial(done.add, 1))
    return written_down("versus", [*words, f"--vs {vs}"], found)


def by_size(words: Sequence[str], plan: Plan, rounds: int | None, config_dir: str | Path | None) -> Benchmark:
    """A training step at several lengths, widths, depths and sizes of a pack; every size is composed before the first is timed."""
    sized = {
        name: {value: of_size(words, f"{option}={value}", config_dir) for value in of_sizes.values_of(plan.cfg, option)}
        for name, option in of_sizes.SWEPT.items()
    }
    n = rounds or of_sizes.ROUNDS
    swept = len(sized) + (of_sizes.refusal(plan) is None)
    with Counted("bench", n * swept) as done:
        found = of_sizes.scaling(sized, n, partial(done.add, 1), plan)
    return written_down("scaling", words, found)


def of_size(words: Sequence[str], word: str, config_dir: str | Path | None) -> DictConfig:
    """The configuration at one size. Raises UserError, and says that it is the suite which asked for that size."""
    try:
        return compose(*replaced(words, word), config_dir=config_dir)
    except UserError as error:
        raise UserError(f"suite=scaling: {word}: {error}") from None


def checks_of_device(words: Sequence[str], rounds: int | None) -> Benchmark:
    """The checks of the CUDA device there is."""
    if words:
        raise UserError(f"{words[0]}: suite=gpu checks every option at sizes of its own; leave it out")
    if rounds is not None:
        raise UserError(f"rounds={rounds}: changes nothing in suite=gpu, whose checks have their own; leave it out")
    device = device_or_refusal()
    results = [result.to_record() for result in track(gpu(), "checks", len(CHECKS))]
    return written_down("gpu", words, {"machine": machine_of(device), "checks": results})


def one_plan(words: Sequence[str], config_dir: str | Path | None) -> Plan:
    """The one architecture that overrides describe. Raises UserError where they describe several."""
    found = plans(*words, config_dir=config_dir)
    if len(found) > 1:
        raise UserError(
            f"{' '.join(words)}: describes {len(found)} architectures, and bench takes one; the second one of two goes after"
            " --vs, as in archlab bench norm=rms --vs norm=layer"
        )
    return found[0]


def replaced(words: Sequence[str], word: str) -> list[str]:
    """The overrides with one more, in the place of what they say of the same name."""
    return [*(other for other in words if key_of(other) != key_of(word)), word]


def written_down(suite: str, words: Sequence[str], found: Mapping[str, Any]) -> Benchmark:
    about = {"suite": suite, "overrides": list(words), "git": git_state(), "versions": versions()}
    return Benchmark({**about, **found})


# ---------------------------------------------------------------- where it is written


def check_place(folder: str | Path | None) -> None:
    """Raises UserError where the folder is there already, or could not be made; makes nothing."""
    if folder is None:
        check_writable(HOME)
        return
    if Path(folder).exists():
        raise UserError(
            f"output={folder}: is there already; give a folder that is not, so that nothing is written over"
        )
    check_writable(Path(folder))


def place_for(folder: str | Path | None, suite: str) -> Path:
    """The folder to write to, made by nobody yet. Raises UserError where it is there, or cannot be made."""
    check_place(folder)
    if folder is None:
        path = new_directory(HOME, f"{datetime.now():%Y%m%d-%H%M%S}-{suite}")
        path.rmdir()  # its name is free; it is written whole or not at all
        return path
    return Path(folder)


def check_writable(folder: Path) -> None:
    """Raises UserError where nothing could be written into a folder that is there or would be made."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "may not be written" if there.is_dir() else "is no folder"
        raise UserError(f"output={folder}: nothing can be written there: {there} {why}; give another folder")
