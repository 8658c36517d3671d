"""A look at a model before training: activations, gradients and updates at its initial weights, and across depths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.console import Group, RenderableType

from archlab.base.arguments import checked
from archlab.base.errors import UserError
from archlab.base.files import check_folder
from archlab.config.assemble import build
from archlab.config.check import grows_by_layers
from archlab.initial.measure import look_at_start, update_size
from archlab.initial.settings import ENDINGS, PICTURES, PreflightSettings
from archlab.initial.warn import warnings
from archlab.report import preflight as tables
from archlab.report.progress import track
from archlab.runs import depths
from archlab.runs.assembled import machine_of, open_source, section
from archlab.runs.named_model import one
from archlab.verbs.shown import Shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Start(Shown):
    """What was measured at the initial weights."""

    record: Mapping[str, Any]
    """loss and uniform_loss in nats per token, logit_std, layers, growth_exponent, gradient_ratio, update, steps, lr."""

    warnings: Sequence[str]
    depths: Sequence[Mapping[str, Any]]
    """Residual schemes by depth, each quantity with its exponent and the predicted one; empty where `preflight.depths` is null, or
    a layer has no feed-forward network or is looped."""

    def to_pandas(self) -> "pd.DataFrame":
        """One row per layer."""
        import pandas as pd

        return pd.DataFrame(self.record["layers"]).rename_axis("layer")

    def plot(self) -> "Figure":
        """Activation RMS, gradient norm and attention entropy by layer."""
        return tables.start_figure(self.record)

    @checked
    def save(self, path: str | Path) -> Path:
        """Writes the plot."""
        path = Path(path)
        if path.suffix not in PICTURES:
            raise UserError(f"preflight.plot={path}: should end in {ENDINGS}")
        check_folder("preflight.plot", path)
        return tables.draw(self.record, path)

    def __rich__(self) -> RenderableType:
        first = tables.start(self.record, self.warnings)
        return Group(first, tables.depths(self.depths)) if self.depths else first


@checked
def preflight(*model: str | Path | DictConfig, config_dir: str | Path | None = None) -> Start:
    """Measures one model, named as for `show`, at its initial weights, and placements at `preflight.depths`. Raises UserError."""
    cfg = one("preflight", model, Path(config_dir) if config_dir else None).cfg
    settings, where, source = (
        section(cfg, "preflight", PreflightSettings),
        machine_of(cfg),
        open_source(cfg),
    )
    size = {"batch_size": settings.batch_size, "seq_len": settings.seq_len or cfg.train.train_len}
    decoder = build(cfg).to(where.device)
    with where.in_force():
        start = look_at_start(decoder, source, cfg.seed, **size, where=where)
        update = update_size(decoder, source, settings.steps, settings.lr, cfg.seed, **size, where=where)
        compared = settings.depths and grows_by_layers(cfg)
        comparison = depths.across_depths(cfg, source, settings, where) if compared else ()
        rows = [row.to_record() for row in track(comparison, "depths", len(depths.placements(cfg)))]
    record = start.to_record() | {"update": update, "steps": settings.steps, "lr": settings.lr}
    return Start(record, list(warnings(start, update)), rows)
