"""A look at a model before training: activations, gradients and updates at its initial weights, and across depths."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.console import Group, RenderableType

from archlab.base.arguments import checked
from archlab.base.errors import UserError
from archlab.base.files import check_folder
from archlab.base.words import sets
from archlab.config.assemble import build
from archlab.config.groups import grows_by_layers, option
from archlab.initial.measure import look_at_start, update_size
from archlab.initial.settings import ENDINGS, PICTURES, PreflightSettings
from archlab.initial.warn import warnings
from archlab.report import preflight as tables
from archlab.report.progress import track
from archlab.runs import depths
from archlab.runs.assembled import machine_of, open_source, section, training_seed
from archlab.runs.holds import check_fits
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
        try:
            return tables.draw(self.record, path)
        except OSError as error:
            raise UserError(f"preflight.plot={path}: cannot be written: {error.strerror}; give another file") from None

    def __rich__(self) -> RenderableType:
        first = tables.start(self.record, self.warnings)
        return Group(first, tables.depths(self.depths)) if self.depths else first


@checked
def preflight(*model: str | Path | DictConfig, config_dir: str | Path | None = None) -> Start:
    """Measures one model, named as for `show`, at its initial weights, and placements at `preflight.depths`. Raises UserError."""
    asked = one("preflight", model, Path(config_dir) if config_dir else None)
    return start_of(asked.cfg, any(sets(word, "preflight.depths") for word in asked.words or ()))


def start_of(cfg: DictConfig, depths_asked: bool = False) -> Start:
    """The same of one configuration, and whether its `preflight.depths` were asked for. Raises UserError."""
    settings, where, source = (
        section(cfg, "preflight", PreflightSettings),
        machine_of(cfg),
        open_source(cfg),
    )
    size = {"batch_size": settings.batch_size, "seq_len": settings.seq_len or cfg.train.train_len}
    compared = placements_of(cfg, settings, depths_asked)
    check_fits(cfg, where.device)
    decoder = build(cfg).to(where.device)
    with where.in_force():
        start = look_at_start(decoder, source, training_seed(cfg), **size, where=where)
        update = update_size(decoder, source, settings.steps, settings.lr, training_seed(cfg), **size, where=where)
        comparison = depths.across_depths(cfg, compared, source, settings, where) if compared else ()
        rows = [row.to_record() for row in track(comparison, "depths", len(compared))]
    record = start.to_record() | {"update": update, "steps": settings.steps, "lr": settings.lr}
    return Start(record, list(warnings(start, update)), rows)


def placements_of(cfg: DictConfig, settings: PreflightSettings, asked: bool) -> dict[str, dict]:
    """The placements to compare at `preflight.depths`; says which are left out, and why. Raises UserError where depths cannot be."""
    if not settings.depths or not grows_by_layers(cfg):
        return {}
    compared, missing = depths.to_compare(cfg, settings.depths)
    chosen = option(cfg, "residual")
    if of_chosen := next((one for one in missing if one.placement == chosen), None):
        why = f"{of_chosen.depth} layers: {of_chosen.why}"
        if asked:
            raise UserError(
                f"preflight.depths={list(settings.depths)}: this model cannot have {why}; leave it out, or use preflight.depths=null"
            )
        print(f"archlab: note: not compared across depths: this model cannot have {why}", file=sys.stderr)
        return {}
    for one_left_out in missing:
        print(f"archlab: note: residual={one_left_out.placement} is left out: {one_left_out.why}", file=sys.stderr)
    return compared
