"""Claims of papers and of folklore, decided by runs: supported, refuted or inconclusive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import RenderableType

from archlab.base.arguments import checked
from archlab.base.quantities import Count, Positive
from archlab.claim.session import decide_claims
from archlab.report.claims import claims_table
from archlab.verbs.shown import Shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Claims(Shown):
    """Decided claims; `records` are the contents of their result.json."""

    records: Sequence[Mapping[str, Any]]

    def to_pandas(self) -> "pd.DataFrame":
        """One row per claim: name, verdict, sentence, source, seeds."""
        import pandas as pd

        columns = ("name", "verdict", "sentence", "source", "seeds")
        return pd.DataFrame([{column: record.get(column) for column in columns} for record in self.records])

    def __rich__(self) -> RenderableType:
        return claims_table(self.records)


@checked
def claims(
    *names: str,
    budget: Literal["quick", "full", "gpu"] = "quick",
    workers: Count | None = None,
    runs: str | Path = "experiments/runs/claims",
    output: str | Path | None = None,
    config_dir: str | Path | None = None,
    pack: Literal["auto", "off"] | Count = "auto",
    anew: bool = False,
    ladder: str | None = None,
    evidence: Positive | None = None,
) -> Claims:
    """Decides claims by name or pattern, all of them where none is named; existing runs are used again.

    `workers` is how many runs or measurements go on at a time; None: as many as is fastest here. `pack` is how many runs
    of one architecture are trained as one program; auto: on a GPU, as many as its memory holds. `anew` registers claims once
    more that say otherwise than what was registered; their earlier verdicts stay in verdicts.jsonl. `ladder`
    decides each claim at several sizes and horizons, of factors of two: 3x2 at 1, 2 and 4 times the width and at 1 and 2 times
    the steps; 1x1xtext+python as it is, on both corpora. `evidence` lets a claim that is decided go on until its e-value is as
    large as that, or its seeds are used up: 20 decides a claim by itself, beside many others it takes more to survive.
    Raises UserError before anything is run where a claim cannot be read or made.
    """
    own, folder = (Path(path) if path else None for path in (config_dir, output))
    return Claims(decide_claims(names, budget, Path(runs), folder, workers, own, pack, anew, ladder, evidence))
