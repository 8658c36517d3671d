"""Which arms of existing runs differ, and whether the difference is real; and stability maps."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from archlab.base.arguments import checked
from archlab.base.errors import UserError
from archlab.base.files import write_text
from archlab.base.metrics import Direction
from archlab.base.quantities import NonNegative
from archlab.comparison.arms import read_all
from archlab.comparison.comparison import compare as compare_runs
from archlab.comparison.stability_map import MAPPED
from archlab.comparison.stability_map import stability_map as map_of
from archlab.records.directory import new_directory
from archlab.report import comparison as report
from archlab.report import stability_map as map_report
from archlab.verbs.shown import Shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Arms against a baseline, seed by seed; `record` is what comparison.json holds."""

    record: Mapping[str, Any]

    def to_pandas(self) -> "pd.DataFrame":
        """One row per arm, numbers unrounded."""
        return report.rows(self.record)

    def plot(self) -> "Figure | None":
        """Each arm's effect with its interval; None where there is no effect to show."""
        return report.effects_figure(self.record)

    @checked
    def save(self, folder: str | Path) -> Path:
        """Writes comparison.json, .csv, .md and .png. Raises UserError where they cannot be written."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            report.save_all(self.record, folder)
        except OSError as error:
            raise UserError(
                f"output={folder}: nothing can be written there: {error.strerror}; give another folder"
            ) from None
        return folder

    def __rich__(self) -> RenderableType:
        return report.comparison(self.record)


@checked
def compare(
    *runs: str | Path,
    metric: str = "val_loss",
    baseline: str | None = None,
    smallest_effect: NonNegative | None = None,
    direction: Direction | None = None,
    mix: bool = False,
    text: bool = False,
) -> Comparison:
    """Compares the arms of runs: directories, folders of runs, or globs. What cannot be read is left out, with a note.

    `archlab.comparison.comparison.compare` says what the options mean. Raises UserError where nothing can be compared.
    """
    found, notes = read_all(runs)
    compared = compare_runs(
        found,
        metric=metric,
        baseline=baseline,
        smallest_effect=smallest_effect,
        direction=direction,
        mix=mix,
        text=text,
    )
    record = compared.record()
    return Comparison(record | {"notes": [*notes, *record["notes"]]})


@dataclass(frozen=True, repr=False)
class StabilityMap(Shown):
    """The largest stable learning rate by depth; `record` is what stability_map.json holds."""

    record: Mapping[str, Any]
    beside: Path
    """The folder of the runs."""

    def save(self) -> Path:
        """Writes the map as JSON, CSV and a plot beside the runs, under stability_map/<time>/; returns that folder."""
        folder = new_directory(self.beside / "stability_map", f"{datetime.now():%Y%m%d-%H%M%S}")
        write_text(folder / "stability_map.json", json.dumps(self.record, indent=2) + "\n")
        map_report.write_csv(self.record, folder / "stability_map.csv")
        map_report.draw(self.record, folder / "stability_map.png")
        return folder

    def plot(self) -> "Figure":
        """The map as a picture."""
        return map_report.figure(self.record)

    def __rich__(self) -> RenderableType:
        return map_report.table(self.record)


@checked
def stability_map(*runs: str | Path) -> StabilityMap:
    """Maps the largest stable learning rate by depth, from existing runs. Raises UserError."""
    found, left_out = read_all(runs, MAPPED)
    chart = map_of(found)
    return StabilityMap(chart | {"notes": [*left_out, *chart["notes"]]}, found[0].directory.parent)
