"""Training a run, resuming it, reading it back, and continuing a prompt with it; and sweeps of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig
from rich.console import Group, RenderableType
from rich.text import Text

from archlab.base.arguments import checked
from archlab.base.errors import UserError
from archlab.base.quantities import Count
from archlab.config.compose import configuration, plans
from archlab.config.overrides import refuse_twice
from archlab.model.decoder import Decoder
from archlab.records.reader import Run, read_run
from archlab.report import tables
from archlab.runs import lab, tune
from archlab.runs.load import load_run
from archlab.runs.sweep import Job, carry_out
from archlab.verbs.compare import Comparison, compare
from archlab.verbs.generate import GeneratedText, generate
from archlab.verbs.shown import Shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class TrainedRun(Shown):
    """A finished run: what was asked for, what was measured, and its weights."""

    record: Run
    own: Path | None = None
    """The folder of the user's own options that it was made with."""

    @property
    def directory(self) -> Path:
        """The run's folder."""
        return self.record.directory

    @property
    def config(self) -> dict[str, Any]:
        """The whole configuration."""
        return self.record.config

    @property
    def summary(self) -> dict[str, Any]:
        """How it ended: losses in nats per token, costs, stability, verdict by length."""
        return self.record.summary

    def to_pandas(self) -> "pd.DataFrame":
        """One row per step: loss in nats per token, and the gradient's norm before clipping."""
        import pandas as pd

        columns = {"loss": self.record.losses, "grad_norm": self.record.grad_norms}
        return pd.DataFrame(columns, index=pd.RangeIndex(1, len(self.record.losses) + 1, name="step"))

    def layers(self) -> "pd.DataFrame":
        """One row per layer and probed step: activation_rms, grad_norm and the others."""
        import pandas as pd

        rows = [
            {"step": logged["step"], "layer": depth, **layer}
            for logged in self.record.metrics
            for depth, layer in enumerate(logged.get("layers", ()))
        ]
        return pd.DataFrame(rows).set_index(["step", "layer"]) if rows else pd.DataFrame()

    @checked
    def plot(self, what: str = "training") -> "Figure | None":
        """Loss and gradient norm by step; or the probed quantities by layer, the loss by position, or by length.

        None where the run did not measure it.
        """
        from archlab.report import plots  # here, so that a run need not wait for matplotlib

        summary, leaking = self.summary, bool(self.summary.get("leaking"))
        drawn = {
            "training": lambda: plots.training_figure(self.record.metrics, leaking),
            "layers": lambda: plots.layers_figure(self.record.metrics, leaking),
            "positions": lambda: plots.by_position_figure(self.record.positions, summary["train_len"], leaking),
            "lengths": lambda: plots.by_length_figure(summary.get("length") or [], summary["train_len"], leaking),
        }
        if what not in drawn:
            raise UserError(f"plot: there is no picture {what}; use {', '.join(drawn)}")
        return drawn[what]()

    @checked
    def model(self, *overrides: str) -> Decoder:
        """Its weights in a decoder; other options are allowed if they change no weight, such as "mask=window"."""
        return load_run(self.directory, *overrides, config_dir=self.own)[1]

    def generate(self, prompt: str, **settings: Any) -> GeneratedText:
        """How its model continues a prompt; `settings` are those of `archlab.generate`."""
        return generate(self.directory, prompt, config_dir=self.own, **settings)

    def __rich__(self) -> RenderableType:
        return Group(tables.result(self.summary), as_path(self.directory))


def as_path(directory: Path) -> Text:
    """A directory in one line however long it is, so that it can be copied."""
    return Text(str(directory), no_wrap=True, overflow="ignore")


@checked
def load(directory: str | Path, *, config_dir: str | Path | None = None) -> TrainedRun:
    """Loads a run. Raises UserError where the directory holds no finished run."""
    return TrainedRun(read_run(Path(directory)), Path(config_dir) if config_dir else None)


@checked
def run(*what: str | DictConfig, config_dir: str | Path | None = None, plots: bool = True) -> TrainedRun:
    """Trains and evaluates the model that overrides, or one configuration, define: `archlab.run("norm=rms", "train.steps=50")`.

    Prints the model and a progress bar, as the command does. Raises UserError.
    """
    words = [word for word in what if isinstance(word, str)]
    cfg = configuration(*what, config_dir=config_dir)
    tune.find_rates([cfg], show=True)
    directory = lab.run(cfg, words, plots=plots, show_result=False)
    return load(directory, config_dir=config_dir)


@checked
def resume(directory: str | Path, *, config_dir: str | Path | None = None, plots: bool = True) -> TrainedRun:
    """Finishes a run that was broken off, as if it had not been; a finished one is left unchanged. Raises UserError."""
    own = Path(config_dir) if config_dir else None
    return load(lab.resume(Path(directory), plots, own, show_result=False), config_dir=config_dir)


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Shown):
    """Runs of one sweep, in its order."""

    runs: Sequence[TrainedRun]

    @cached_property
    def comparison(self) -> Comparison:
        """All arms compared. Raises UserError where they cannot be."""
        return compare(*(run.directory for run in self.runs))

    def to_pandas(self) -> "pd.DataFrame":
        """One row per run: its overrides and the numbers of its summary."""
        import pandas as pd

        rows: list[dict[str, Any]] = [
            {"directory": str(run.directory), "overrides": " ".join(run.record.overrides)}
            | {name: value for name, value in run.summary.items() if isinstance(value, (int, float, str))}
            for run in self.runs
        ]
        return pd.DataFrame(rows)

    def plot(self) -> "Figure | None":
        """Each arm's effect with its interval."""
        return self.comparison.plot()

    def __rich__(self) -> RenderableType:
        directories = [as_path(run.directory) for run in self.runs]
        if len(self.runs) < 2:
            return Group(*directories)
        try:
            return Group(*directories, self.comparison)
        except UserError as error:
            return Group(*directories, Text(f"no comparison: {error}"))


@checked
def sweep(
    *overrides: str,
    config_dir: str | Path | None = None,
    again: bool = False,
    plots: bool = False,
    workers: Count | None = None,
    pack: Literal["auto", "off"] | Count = "auto",
) -> Sweep:
    """One run for every combination of comma-separated values: `archlab.sweep("norm=layer,rms", "seed=0,1,2")`.

    All are checked before the first starts. Existing runs are kept, and those that were broken off are finished,
    unless `again`. `workers` is how many run at a time; None: as many as is fastest here. Raises UserError.
    """
    refuse_twice(overrides)
    own = Path(config_dir) if config_dir else None
    jobs = [Job(plan, own, plots, resume=not again) for plan in plans(*overrides, config_dir=config_dir)]
    carried = carry_out(jobs, workers, pack, show_result=False)
    directories = {number: result() for number, result, _ in carried}
    return Sweep([load(directories[number], config_dir=config_dir) for number in sorted(directories)])
