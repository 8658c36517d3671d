"""What makes one configuration into another: the overrides, change by change, and the way from one to the other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from archlab.base.errors import UserError
from archlab.base.nested import leaves
from archlab.base.words import key_of
from archlab.config.compose import compose
from archlab.config.groups import GROUPS, has_width, target
from archlab.config.overrides import conf_dir, option_node
from archlab.config.plan import IN_LAYERS, layer_plans
from archlab.config.presets import overruled
from archlab.config.rules import in_setting
from archlab.config.spelling import spelled
from archlab.runs.named_model import NamedModel

NO_PART = ("choices", "matched", "match", "output", "loggers")
"""Keys of a configuration that do not say what the model or its training is: where records go, and how numbers arose."""


@dataclass(frozen=True)
class Change:
    """One thing that differs, as the overrides that set it."""

    about: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Rung:
    """One step of the way: what changed, and the overrides of the whole model then."""

    about: tuple[str, ...]
    """One name, or several where neither change alone makes a model that can be built."""

    words: tuple[str, ...]
    cfg: DictConfig


# ---------------------------------------------------------------- what differs


def changes(here: DictConfig, there: DictConfig, own: Path | None = None) -> Iterator[Change]:
    """What of `here` has to be set for `there`: group by group, then size by size, then field by field."""
    for group in GROUPS:
        if group != "size" and (here.choices[group] != there.choices[group] or here[group] != there[group]):
            yield Change(group, tuple(choice(group, there, own)))
    if here.layers != there.layers:
        yield Change("layers", tuple(rule_words(there, own)))
    for field, value in there.size.items():
        if here.size[field] != value:
            yield Change(f"size.{field}", (f"size.{field}={spelled(by_rule(there, field))}",))
    steps_follow = there.train.tokens is not None or there.budget is not None
    for key, value in leaves({str(key): there[key] for key in there if key not in (*GROUPS, *NO_PART, "layers")}):
        if OmegaConf.select(here, key) != value and not (steps_follow and key == "train.steps"):
            yield Change(key, (f"{key}={spelled(value)}",))


def choice(group: str, cfg: DictConfig, own: Path | None) -> Iterator[str]:
    """A group's option, and its fields where they are not the option's own."""
    option = cfg.choices[group]
    yield f"{group}={option}"
    yield from (
        f"{group}.{key}={spelled(value)}" for key, value in unlike(cfg[group], default(group, option, cfg, own))
    )
    if group == "mixer" and (n_kv_heads := by_rule(cfg, "n_kv_heads")) is not None:
        yield f"size.n_kv_heads={n_kv_heads}"


def rule_words(cfg: DictConfig, own: Path | None = None) -> Iterator[str]:
    """The rules for some layers, each choice and each field that is not its option's own."""
    for rule in cfg.layers:
        for group in (group for group in IN_LAYERS if group in rule):
            option = rule.choices[group]
            yield f"layers[{rule['at']}].{group}={option}"
            for key, value in unlike(rule[group], default(group, option, cfg, own)):
                yield f"layers[{rule['at']}].{group}.{key}={spelled(value)}"
        yield from (f"layers[{rule['at']}].size.{name}={value}" for name, value in rule.get("size", {}).items())


def by_rule(cfg: DictConfig, field: str) -> Any:
    """A size as it would be written: null where the number is the one that a rule gives, matched where it has no effect."""
    size = cfg.size
    if field == "n_kv_heads" and size.n_kv_heads == target(cfg, "mixer").default_kv_heads(size.n_heads):
        return None
    if field == "head_dim" and size.head_dim * size.n_heads == size.d_model:
        return None
    if field == "d_ff" and not any(has_width(plan.ffn.node) for plan in layer_plans(cfg)):
        return "matched"
    return size[field]


def default(group: str, option: str, cfg: DictConfig, own: Path | None) -> DictConfig:
    """An option as its file has it, in the setting of this configuration."""
    node = option_node(group, option, [folder for folder in (own, conf_dir()) if folder])
    if node is None:
        raise UserError(f"{group}={option}: is no option of archlab; give the folder it is in by --config-dir")
    return in_setting(group, node, cfg)


def unlike(given: Mapping[str, Any], standard: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields that are not as they stand by default, by dotted names."""
    for key, value in given.items():
        other = standard.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping) and value.keys() == other.keys():
            yield from unlike(value, other, f"{prefix}{key}.")
        elif value != other:
            yield f"{prefix}{key}", value


# ---------------------------------------------------------------- as overrides


def all_words(cfg: DictConfig, own: Path | None = None) -> tuple[str, ...]:
    """Overrides that compose to this configuration."""
    return tuple(word for change in changes(compose(), cfg, own) for word in change.words)


def with_change(words: Sequence[str], change: Change) -> tuple[str, ...]:
    """The overrides with those of a change in the place of what they overrule."""
    if change.about == "layers":
        return (*(word for word in words if not key_of(word).startswith("layers[")), *change.words)
    taken = {key_of(word) for word in change.words}
    if taken & {"train.tokens", "budget"}:
        taken |= {"train.steps"}
    return (*(word for word in words if not overruled(key_of(word), taken)), *change.words)


# ---------------------------------------------------------------- the way


def ladder(first: NamedModel, last: NamedModel, own: Path | None = None) -> Iterator[Rung]:
    """From one model to the other, one change at a time; every rung can be run, the last is the other model.

    The order is that of `changes`, and a change that makes no model waits until others were made. Where none does,
    the first two or three that do together are one rung. Raises UserError where even all of them make none.
    """
    words = tuple(first.words or ())
    if first.words is None or first.cfg.layers or any(key_of(word) == "match" for word in words):
        words = all_words(first.cfg, own)
    rung: Rung | None = Rung((), words, first.cfg)
    seen: set[tuple[str, ...]] = set()
    while rung:
        if rung.words in seen:
            raise UserError(
                f"{first.name} and {last.name}: no way from one to the other was found; use diff without --ladder"
            )
        seen.add(rung.words)
        yield rung
        rung = next_rung(rung, list(changes(rung.cfg, last.cfg, own)), own)


def next_rung(rung: Rung, left: list[Change], own: Path | None) -> Rung | None:
    """The first change, or the fewest together, that make a model; None where nothing is left."""
    refusal = None
    for together in (1, 2, 3, len(left)):
        for chosen in combinations(left, min(together, len(left))):
            if not chosen:
                return None
            words = rung.words
            for change in chosen:
                words = with_change(words, change)
            try:
                cfg = compose(*words, config_dir=own)
            except UserError as error:
                refusal = refusal or error
                continue
            if cfg != rung.cfg:  # a size that goes by a rule changes with those that the rule goes by
                return Rung(tuple(change.about for change in chosen), words, cfg)
    raise UserError(f"no way was found from one to the other: {refusal or 'no override sets ' + left[0].about}")
