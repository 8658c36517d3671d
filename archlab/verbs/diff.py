"""How two models differ, and the overrides that lead from one to the other."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from archlab.base.arguments import checked
from archlab.base.quantities import AtOnce
from archlab.config.assemble import assemble_without_weights
from archlab.cost.describe import count_parameters
from archlab.difference.ladder import Rung, changes, ladder
from archlab.difference.models import Difference, difference
from archlab.report import diff as tables
from archlab.report.progress import track
from archlab.runs.named_model import NamedModel, two
from archlab.verbs.shown import Shown

if TYPE_CHECKING:
    import pandas as pd

    from archlab.verbs.draw import Drawing


@dataclass(frozen=True, repr=False)
class ModelDifference(Shown):
    """Two models side by side."""

    found: Difference
    models: tuple[NamedModel, NamedModel]

    def to_pandas(self) -> "pd.DataFrame":
        """One row per compared item: its kind, its name, and what each model has."""
        import pandas as pd

        kinds = ("blocks", "settings", "sizes", "parts", "costs", "memory")
        rows = [(kind, *row) for kind in kinds for row in getattr(self.found, kind)]
        return pd.DataFrame(rows, columns=["kind", "what", *self.found.names])

    def plot(self) -> "Drawing":
        """Both block diagrams in one picture."""
        from archlab.diagram.draw import side_by_side  # here, so that tables need not wait for matplotlib
        from archlab.verbs.draw import Drawing, decoder_of

        first, second = self.models
        return Drawing(
            side_by_side(decoder_of(first), decoder_of(second), (first.name, second.name)),
            f"{first.name} and {second.name}",
        )

    def __rich__(self) -> RenderableType:
        return tables.difference(asdict(self.found))


@checked
def diff(
    first: str | Path, second: str | Path, *, seq_len: AtOnce | None = None, config_dir: str | Path | None = None
) -> ModelDifference:
    """How two models differ; each is a preset, a run's directory, or overrides in one text: "preset=llama_7b norm=layer".

    FLOPs and memory are counted at `seq_len` tokens, or at each model's own length. Raises UserError.
    """
    return between(*two("diff", (str(first), str(second)), Path(config_dir) if config_dir else None), seq_len)


def between(first: NamedModel, second: NamedModel, seq_len: int | None = None) -> ModelDifference:
    """The same for models that are already found."""
    return ModelDifference(difference(first, second, seq_len), (first, second))


@dataclass(frozen=True, repr=False)
class Ladder(Shown):
    """The way from one model to another, one change per rung."""

    rungs: list[Rung]
    parameters: list[int]
    """Of each rung's model."""

    def to_pandas(self) -> "pd.DataFrame":
        """One row per rung."""
        import pandas as pd

        rows = [(", ".join(rung.about), " ".join(rung.words)) for rung in self.rungs]
        return pd.DataFrame(rows, columns=["changed", "overrides"]).assign(parameters=self.parameters)

    def __rich__(self) -> RenderableType:
        rows = zip(self.rungs, self.parameters, strict=True)
        return tables.ladder([(rung.about, rung.words, n_params) for rung, n_params in rows])


def way_between(first: NamedModel, second: NamedModel, own: Path | None = None) -> Ladder:
    """The overrides from the first model to the second, change by change; `own` is the folder of the user's own options.

    Raises UserError.
    """
    n_changes = len(list(changes(first.cfg, second.cfg, own)))
    rungs = list(track(ladder(first, second, own), "ladder", n_changes + 1))
    return Ladder(rungs, [count_parameters(assemble_without_weights(rung.cfg)) for rung in rungs])
