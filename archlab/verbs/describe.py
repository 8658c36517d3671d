"""The model that a configuration describes, its costs, and the memory that training it takes; nothing is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.console import Group, RenderableType

from archlab.base.arguments import checked
from archlab.config.assemble import assemble_without_weights
from archlab.config.groups import memory_settings
from archlab.cost import bill
from archlab.cost.describe import parameters_by_part
from archlab.cost.estimate import estimate
from archlab.model.decoder import Decoder
from archlab.report import bills
from archlab.runs.assembled import assembled, costs, machine_of
from archlab.runs.named_model import one
from archlab.train.budget import TOKENS_PER_PARAMETER
from archlab.verbs.shown import Shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class MemoryBill(Shown):
    """Bytes that training takes on one GPU, by what they are for."""

    bill: bills.Bill

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.bill.rows.values())

    def to_pandas(self) -> "pd.Series":
        """Bytes by what they are for."""
        import pandas as pd

        return pd.Series(self.bill.rows, name="bytes")

    def __rich__(self) -> RenderableType:
        return bills.memory(self.bill)


@dataclass(frozen=True, repr=False)
class Description(Shown):
    """A model that was assembled without weights."""

    cfg: DictConfig
    decoder: Decoder
    """On the meta device: every module and shape, no numbers."""

    costs: Mapping[str, Any]
    """n_params, and n_active_params where a token does not use all of them, and n_mtp_params of heads of further tokens; flops_per_token and train_flops_per_token, a multiply-add as two; bytes of the decode state; dtype."""

    parameters: Mapping[str, int]
    """Parameters by part of the model."""

    memory: MemoryBill

    def to_pandas(self) -> "pd.Series":
        """Parameters by part of the model."""
        import pandas as pd

        return pd.Series(self.parameters, name="parameters")

    def __rich__(self) -> RenderableType:
        tokens = TOKENS_PER_PARAMETER * self.costs["n_params"]
        flops = tokens * self.costs["train_flops_per_token"]
        budget = bills.token_budget(tokens, TOKENS_PER_PARAMETER, flops)
        parts = bills.parts(self.parameters)
        return Group(assembled(self.cfg, self.costs, self.decoder), "", parts, "", self.memory, budget)


@checked
def show(*model: str | Path | DictConfig, config_dir: str | Path | None = None) -> Description:
    """Describes one model: a preset, a run's directory, overrides, or a configuration. Raises UserError."""
    cfg = one("show", model, Path(config_dir) if config_dir else None).cfg
    decoder = assemble_without_weights(cfg)
    price = costs(cfg, machine_of(cfg), decoder)
    return Description(cfg, decoder, price, parameters_by_part(decoder), memory_of(cfg, decoder))


@checked
def memory(*model: str | Path | DictConfig, config_dir: str | Path | None = None) -> MemoryBill:
    """What training one model, named as for `show`, takes in memory, under the options of `memory`. Raises UserError."""
    cfg = one("memory", model, Path(config_dir) if config_dir else None).cfg
    return memory_of(cfg, assemble_without_weights(cfg))


def memory_of(cfg: DictConfig, decoder: Decoder) -> MemoryBill:
    """The same for a model that is already assembled."""
    settings, seq_len = memory_settings(cfg), cfg.train.train_len
    return MemoryBill(
        bills.Bill(
            rows=bill.rows(estimate(decoder, settings, seq_len)),
            assumptions=list(bill.assumptions(decoder, settings, seq_len)),
            growth=bill.otherwise(decoder, settings, seq_len),
            answer=bill.answer(decoder, settings, seq_len),
        )
    )
