"""The groups of options, by name, and what a configuration says of them."""

import pydoc
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError
from archlab.config.plan import layer_plans, loop_of
from archlab.cost.settings import MemorySettings

BLOCKS = ("norm", "residual", "ffn", "pos", "mask", "mixer", "head")
OF_TRAINING = ("optimizer", "schedule", "average")
GROUPS = (*BLOCKS, "init", "size", "data", *OF_TRAINING)


def locate(group: str, path: str) -> Any:
    module, _, name = path.rpartition(".")
    if (found := getattr(sys.modules.get(module), name, None)) is not None:  # as all but the first time
        return found
    try:
        found = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"{group}._target_={path}: its module cannot be imported: {error.value}") from None
    if found is None:
        raise UserError(
            f"{group}._target_={path}: not found; name a class by its module, as in mine.Mine, in the folder you run from"
        )
    return found


def target(cfg: DictConfig, group: str) -> Any:
    return locate(group, cfg[group]["_target_"])


def option(cfg: Mapping[str, Any] | DictConfig, group: str) -> str:
    """The name of the option chosen for a group."""
    return cfg.get("choices", {}).get(group, cfg[group]["_target_"])


def made(cfg: DictConfig, group: str) -> Any:
    """The part of training that a group's option makes."""
    node = plain_dict(cfg[group])
    return target(cfg, group)(**{name: value for name, value in node.items() if not name.startswith("_")})


def memory_settings(cfg: DictConfig) -> MemorySettings:
    """The section `memory`, in which the optimizer is the configuration's own unless another is named."""
    asked = MemorySettings(**plain_dict(cfg.memory))
    return asked if asked.optimizer else replace(asked, optimizer=made(cfg, "optimizer").keeps)


def has_width(ffn: Mapping[str, Any]) -> bool:
    """Whether there is a feed-forward network with these options, whose width is d_ff."""
    return locate("ffn", ffn["_target_"]).acts


def leaks(cfg: DictConfig) -> bool:
    """Whether a position can see its own target through the norm."""
    sees_future = bool({"batch", "seq"} & set(target(cfg, "norm").reduces))
    return sees_future and not target(cfg, "mask").bidirectional


def grows_by_layers(cfg: DictConfig) -> bool:
    """Whether what is proved of the last feed-forward network's gradient by depth is about models such as this, made deeper.

    Every layer has such a network, and weights of its own.
    """
    return loop_of(cfg)["times"] is None and all(has_width(plan.ffn.node) for plan in layer_plans(cfg))
