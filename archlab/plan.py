"""What a model is made of, layer by layer: a settled configuration with its rules for some layers carried out."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from omegaconf import DictConfig, OmegaConf

from archlab.words import layers_in

IN_LAYERS = ("mixer", "ffn", "residual", "pos", "mask")
"""The groups that a rule can choose from for some layers; the others are the whole model's."""

SIZES_IN_LAYERS = ("d_ff", "n_kv_heads")


@dataclass(frozen=True)
class Choice:
    """An option of a group with its own options: a name in conf/, or in a folder of the user's."""

    group: str
    name: str
    key: str
    """Its options, so written that equal ones are equal."""

    node: Mapping[str, Any] = field(compare=False, repr=False)
    """The same, as Hydra instantiates them."""

    @classmethod
    def of(cls, group: str, name: str, node: Mapping[str, Any]) -> "Choice":
        return cls(group, name, json.dumps(node, sort_keys=True), node)


@dataclass(frozen=True)
class LayerPlan:
    """One layer: a choice from each group that layers may differ in, and its sizes."""

    mixer: Choice
    ffn: Choice
    residual: Choice
    pos: Choice
    mask: Choice
    d_ff: int
    n_kv_heads: int


def layer_plans(cfg: DictConfig) -> list[LayerPlan]:
    """One entry per layer, in order, of a settled configuration."""
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    return plans_of(plain)


def plans_of(cfg: Mapping[str, Any]) -> list[LayerPlan]:
    """The same of a configuration as plain data."""
    size, names = cfg["size"], cfg.get("choices", {})
    base = LayerPlan(
        **{group: Choice.of(group, names.get(group, group), cfg[group]) for group in IN_LAYERS},
        **{name: size[name] for name in SIZES_IN_LAYERS},
    )
    plans = [base] * size["n_layers"]
    for rule in cfg.get("layers") or []:
        for depth in layers_in(rule["at"], len(plans)):
            plans[depth] = replace(plans[depth], **changes_of(rule))
    return plans


def changes_of(rule: Mapping[str, Any]) -> dict[str, Any]:
    """What a settled rule sets in each of its layers."""
    choices = {group: Choice.of(group, rule["choices"][group], rule[group]) for group in IN_LAYERS if group in rule}
    return {**choices, **rule.get("size", {})}


def runs_of_equal(plans: list[LayerPlan]) -> Iterator[tuple[range, LayerPlan]]:
    """Layers that follow each other and are alike, as one."""
    start = 0
    for plan, same in groupby(plans):
        n = len(list(same))
        yield range(start, start + n), plan
        start += n
