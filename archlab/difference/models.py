"""How two models differ: blocks, settings, sizes and costs, side by side."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from archlab.base.configuration import plain_dict
from archlab.base.nested import leaves
from archlab.config.assemble import assemble_without_weights
from archlab.config.groups import GROUPS, memory_settings
from archlab.config.plan import kinds_of_layers
from archlab.config.spelling import spelled
from archlab.cost import bill
from archlab.cost.describe import count_own_parameters, count_parameters, parameters_by_part
from archlab.cost.estimate import estimate
from archlab.cost.measure import costs
from archlab.difference.ladder import NO_PART
from archlab.runs.named_model import NamedModel
from archlab.train.budget import TOKENS_PER_PARAMETER

Pair = tuple[str, Any, Any]


@dataclass(frozen=True)
class Difference:
    """(what, of the first, of the second) in every entry; None where a model has no such thing."""

    names: tuple[str, str]
    seq_len: tuple[int, int]
    """Tokens a sequence, at which FLOPs and memory are counted."""

    weights: tuple[str, str]
    """The number format they are counted in."""

    blocks: list[Pair]
    same: list[str]
    """Groups in which they do not differ."""

    settings: list[Pair]
    sizes: list[Pair]
    parts: list[Pair]
    """Parameters, by part of the model."""

    costs: list[Pair]
    memory: list[Pair]
    """Bytes to train it, by what they are for."""


def difference(first: NamedModel, second: NamedModel, seq_len: int | None = None) -> Difference:
    """Of two models, at a length of their own or at one for both."""
    models = [first.cfg, second.cfg]
    one, other = (price(cfg, seq_len) for cfg in models)
    by_group = {group: differing_options(group, *models) for group in GROUPS if group != "size"}
    by_group |= {"layers": layers_in_words(*models)} if any(cfg.layers for cfg in models) else {}
    first_layers, other_layers = by_group.get("layers", ("", ""))
    in_layers = in_some_layers(models) if first_layers != other_layers else set()
    return Difference(
        names=(first.name, second.name),
        seq_len=(one["seq_len"], other["seq_len"]),
        weights=(one["weights"], other["weights"]),
        blocks=[(group, *pair) for group, pair in by_group.items() if pair[0] != pair[1]],
        same=[group for group, pair in by_group.items() if pair[0] == pair[1] and group not in in_layers],
        settings=list(settings(*models)),
        sizes=[(name, first.cfg.size[name], second.cfg.size[name]) for name in first.cfg.size],
        parts=beside(one["parts"], other["parts"]),
        costs=beside(one["costs"], other["costs"]),
        memory=[*beside(one["memory"], other["memory"]), ("total", one["total"], other["total"])],
    )


def in_some_layers(models: list[DictConfig]) -> set[str]:
    """Groups that are another choice in some layers of one of the models; the row `layers` says which."""
    return {str(group) for cfg in models for rule in cfg.layers or () for group in rule}


def beside(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Pair]:
    return [(name, one.get(name), other.get(name)) for name in dict.fromkeys((*one, *other))]


def settings(one: DictConfig, other: DictConfig) -> Iterator[Pair]:
    """Fields outside groups that differ."""
    for key, value in leaves({str(key): one[key] for key in one if key not in (*GROUPS, *NO_PART, "layers")}):
        if value != (there := OmegaConf.select(other, key)):
            yield key, spelled(value), spelled(there)


def differing_options(group: str, one: DictConfig, other: DictConfig) -> tuple[str, str]:
    """Both options, with those of their fields that are not the same in both.

    What is null goes without saying, and so does what a field takes over from the whole model, such as its dropout.
    """
    fields = [own_fields(group, cfg) for cfg in (one, other)]
    shared = {key for key in fields[0].keys() & fields[1].keys() if fields[0][key] == fields[1][key]}
    first, second = (
        " ".join(
            [cfg.choices[group], *(words(key, value) for key, value in of_one.items() if telling(key, value, shared))]
        )
        for cfg, of_one in zip((one, other), fields, strict=True)
    )
    return first, second


def layers_in_words(one: DictConfig, other: DictConfig) -> tuple[str, str]:
    """Layers that are alike once, with what sets them apart; a model whose layers are all alike says so."""
    first, second = (
        "; ".join(f"{kind.where}: {kind.what}" for kind in kinds_of_layers(cfg)) if cfg.layers else "all alike"
        for cfg in (one, other)
    )
    return first, second


def own_fields(group: str, cfg: DictConfig) -> dict[str, Any]:
    fields = plain_dict(cfg[group])
    return {key: value for key, value in fields.items() if key not in cfg or value != cfg[key]}


def telling(key: str, value: Any, shared: set[str]) -> bool:
    return key not in shared and not key.startswith("_") and value is not None


def words(key: str, value: Any) -> str:
    """A field; of a part of its own, the class and what it is given."""
    if not isinstance(value, Mapping):
        return f"{key}={spelled(value)}"
    given = [words(name, item) for name, item in value.items() if not name.startswith("_")]
    return f"{key}={value.get('_target_', '').rpartition('.')[2]}({', '.join(given)})"


def price(cfg: DictConfig, seq_len: int | None) -> dict[str, Any]:
    """What a model costs, by its shapes alone."""
    on_meta, settings = assemble_without_weights(cfg), memory_settings(cfg)
    length = seq_len or settings.seq_len or cfg.train.train_len
    settings, n_params = replace(settings, seq_len=length), count_parameters(on_meta)
    held = estimate(on_meta, settings, length)
    return {
        "seq_len": length,
        "weights": settings.weights,
        "parts": parameters_by_part(on_meta) | {"all": n_params},
        "costs": {
            **costs(on_meta, length, settings.bytes_per_number),
            "token_budget": TOKENS_PER_PARAMETER * count_own_parameters(on_meta),
        },
        "memory": bill.rows(held),
        "total": held.total,
    }
