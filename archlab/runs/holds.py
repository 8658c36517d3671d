"""Whether this machine holds a model at all, asked before its weights are made: a system that runs out of memory kills, and says nothing."""

import os

import torch
from omegaconf import DictConfig

from archlab.base.errors import UserError
from archlab.config.assemble import assemble_without_weights
from archlab.config.groups import made
from archlab.cost.describe import count_parameters
from archlab.cost.estimate import FLOAT32, kept_by_optimizer
from archlab.cost.settings import MemorySettings
from archlab.report.tables import count


def all_bytes(device: torch.device) -> float:
    """Of a device's memory, whoever holds it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(cfg: DictConfig, device: torch.device) -> None:
    """Raises UserError where weights, gradients and what the optimizer keeps, all float32, are more than the device's memory."""
    decoder = assemble_without_weights(cfg)
    n_params = count_parameters(decoder)
    kept = kept_by_optimizer(decoder, MemorySettings(optimizer=made(cfg, "optimizer").keeps), n_params)
    needs, there = FLOAT32 * (2 * n_params + kept), all_bytes(device)
    if needs > there:
        raise UserError(
            f"memory: {count(n_params)} parameters, their gradients and what optimizer={cfg.choices.optimizer} keeps take"
            f" {needs / 1e9:.3g} GB in float32, and this machine has {there / 1e9:.3g} GB; use a smaller size, such as size=tiny, which"
            " keeps a preset's blocks, or archlab show"
        )
