"""A second axis of tuning: `tune={init.gain: [0.5, 1]}` finds the rate at each of these values, and takes the best of all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf, open_dict

from archlab.base.configuration import copied, plain_dict
from archlab.base.errors import UserError, shortened
from archlab.base.nested import leaves

OF_TRAIN = ("weight_decay", "warmup", "min_lr", "beta1", "beta2", "clip")
"""Numbers of `train` that change neither what a run costs nor what it is scored on."""

GROUPS = ("init", "optimizer", "schedule")
"""Whose numbers are all such. A member of a pack may have its own; `loss` is that of the whole pack, so it is not here."""


@dataclass(frozen=True)
class SecondAxis:
    """A field beside train.lr, and its values."""

    field: str
    values: tuple[float, ...]

    def at(self, cfg: DictConfig, value: float) -> DictConfig:
        """The arm at one value, of which the rate alone is still to be found."""
        changed = copied(cfg)
        with open_dict(changed):
            OmegaConf.update(changed, self.field, value)
            changed.tune = "lr"
        return changed


def second_axis(tune: object) -> SecondAxis | None:
    """What `tune` asks for beside the rate; None where that is nothing. Raises UserError where it can't be searched."""
    if not isinstance(tune, Mapping | DictConfig):
        return None
    given = plain_dict(tune) if isinstance(tune, DictConfig) else dict(tune)
    if len(given) != 1:
        raise UserError(
            f"tune={shortened(str(given))}: has {len(given)} fields; give one beside train.lr, as in"
            " tune={init.gain: [0.5, 1]}"
        )
    ((field, values),) = given.items()
    head, _, name = field.partition(".")
    if not (name and (head in GROUPS or (head == "train" and name in OF_TRAIN))):
        ours = ", ".join([*(f"train.{one}" for one in OF_TRAIN), *(f"numbers of {group}" for group in GROUPS)])
        why = "is the first axis already" if field == "train.lr" else "is no second axis of tuning"
        raise UserError(f"tune.{shortened(field)}: {why}; use one of {ours}")
    shown = f"tune.{field}={shortened(str(list(values) if isinstance(values, tuple) else values))}"
    if not isinstance(values, list | tuple) or not all(map(is_number, values)):
        raise UserError(f"{shown}: should be a list of numbers")
    if len(set(values)) < max(2, len(values)):
        raise UserError(f"{shown}: should be two values or more, each once; for a single one set {field} itself")
    return SecondAxis(field, tuple(values))


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def check_there(cfg: DictConfig, axis: SecondAxis) -> None:
    """Raises UserError where the arm has no such number."""
    group = axis.field.partition(".")[0]
    there = [
        f"{group}.{name}"
        for name, value in leaves(plain_dict(cfg[group]))
        if not name.startswith("_") and is_number(value)
    ]
    if axis.field not in there and group in GROUPS:
        has = f"has {', '.join(there)}" if there else "has no numbers"
        raise UserError(
            f"tune.{axis.field}: {group}={cfg.choices[group]} has no such number, so it would change nothing; it {has}"
        )
