"""Rules for some of the layers: what was typed, `layers[3::4].pos=none`, becomes complete choices."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from archlab.base.configuration import copied, plain_dict
from archlab.base.errors import UserError
from archlab.base.words import layers_in, slice_of
from archlab.config.assemble import default_d_ff, default_kv_heads, kv_heads_of
from archlab.config.groups import has_width
from archlab.config.overrides import groups, option_node
from archlab.config.plan import IN_LAYERS, SIZES_IN_LAYERS, LayerPlan, plans_of, positions_act
from archlab.config.types import check_block

Rule = dict[str, Any]


def settle_layers(cfg: DictConfig, folders: Sequence[Path]) -> None:
    """Replaces what was typed for some layers by a list of complete choices, in the order in which the rules apply.

    `folders` hold the options, archlab's own and the user's. Raises UserError where a rule matches no layer, sets what
    layers may not differ in, or changes nothing.
    """
    if isinstance(cfg.layers, ListConfig):  # it was settled before
        return
    rules = [settled(slice_of(at), rule, cfg, folders) for at, rule in plain_dict(cfg.layers).items()]
    with open_dict(cfg):
        cfg.layers = rules


def settle_positions(cfg: DictConfig, explicit: Collection[str], folders: Sequence[Path]) -> None:
    """Without a layer whose mixer honours the default position scheme, pos is none; a scheme that somebody chose stays.

    It then is refused when the model is built.
    """
    if any(name.partition(".")[0] == "pos" for name in explicit) or positions_act(plain_dict(cfg)):
        return
    with open_dict(cfg):
        cfg.pos = option_in("pos", "none", cfg, folders, ":")
        cfg.choices.pos = "none"


FOLLOW = "follow"
"""The key under which a rule notes, while it is settled, which of its sizes nobody typed."""


def check_rules(cfg: DictConfig) -> None:
    """Raises UserError where a rule changes nothing, or where rules replace the model's choice in every layer.

    A size that nobody typed, and that equals the model's, is dropped from its rule.
    """
    plain = plain_dict(cfg)
    for rule in plain["layers"]:
        of_itself = rule.pop(FOLLOW, [])
        sizes = {
            name: size for name, size in rule.pop("size", {}).items() if name not in of_itself or size != cfg.size[name]
        }
        rule |= {"size": sizes} if sizes else {}
    with open_dict(cfg):
        cfg.layers = plain["layers"]
    rules, whole = plain["layers"], plans_of(plain)
    for i, rule in enumerate(rules):
        selected = layers_in(rule["at"], cfg.size.n_layers)
        without = plans_of(plain | {"layers": rules[:i] + rules[i + 1 :]})
        for what in (*(group for group in IN_LAYERS if group in rule), *rule.get("size", {})):
            if all(getattr(whole[depth], what) == getattr(without[depth], what) for depth in selected):
                shown = rule["choices"].get(what, rule.get("size", {}).get(what))
                name = what if what in IN_LAYERS else f"size.{what}"
                raise UserError(
                    f"layers[{rule['at']}].{name}={shown}: changes nothing: these layers have it anyway, or a later"
                    " rule replaces it; leave it out"
                )
    base = plans_of(plain | {"layers": []})[0]
    for part in fields(LayerPlan):
        if (
            rules
            and all(getattr(plan, part.name) != getattr(base, part.name) for plan in whole)
            and part.name in IN_LAYERS
        ):
            choice = getattr(base, part.name)
            raise UserError(
                f"{part.name}={choice.name}: changes nothing: rules replace it in every layer; leave some layers out of them,"
                f" or set {part.name}=... for the whole model"
            )


def check_width(cfg: DictConfig, explicit: Collection[str]) -> None:
    """Refuses a d_ff that was typed for layers without a feed-forward network; `matched` says nothing, and can stay."""
    wide = [has_width(plan.ffn.node) for plan in plans_of(plain_dict(cfg))]
    typed = "size.d_ff" in explicit and cfg.size.d_ff != default_d_ff(cfg.ffn, cfg.size.d_model)
    if typed and not any(wide):
        raise UserError(
            f"size.d_ff={cfg.size.d_ff}: changes nothing under ffn={cfg.choices.ffn}, which has no width; leave it out, or use"
            " size.d_ff=matched in the place of a preset's, or a feed-forward network"
        )
    for rule in cfg.layers:
        if "d_ff" in rule.get("size", {}) and not any(wide[depth] for depth in layers_in(rule["at"], len(wide))):
            raise UserError(
                f"layers[{rule['at']}].size.d_ff={rule['size']['d_ff']}: changes nothing: these layers have no feed-forward"
                " network; leave it out, or use one there"
            )


def settled(at: str, typed: Mapping[str, Any], cfg: DictConfig, folders: Sequence[Path]) -> Rule:
    """A rule with a complete choice for each group it names."""
    if not layers_in(at, cfg.size.n_layers):
        raise UserError(
            f"layers[{at}]: matches none of the size.n_layers={cfg.size.n_layers} layers, counted from 0; use another"
            " slice, or more layers"
        )
    for name in typed:
        if name not in (*IN_LAYERS, "choices", "size"):
            raise not_of_a_layer(at, name)
    for name in typed.get("choices", {}):
        if name not in IN_LAYERS:
            raise not_of_a_layer(at, name)
    chosen = {name: str(option) for name, option in typed.get("choices", {}).items()}
    spoken_of = [group for group in IN_LAYERS if group in chosen or group in typed]
    rule: Rule = {"at": at, "choices": {group: chosen.get(group, cfg.choices[group]) for group in spoken_of}}
    for group in spoken_of:
        rule[group] = whole_choice(at, group, chosen.get(group), typed.get(group, {}), cfg, folders)
    if sizes := dict(settled_sizes(at, rule, typed.get("size", {}), cfg)):
        rule |= {"size": sizes, FOLLOW: [name for name in sizes if name not in typed.get("size", {})]}
    return rule


def not_of_a_layer(at: str, name: str) -> UserError:
    sizes = ", ".join(f"size.{size}" for size in SIZES_IN_LAYERS)
    return UserError(
        f"layers[{at}].{name}: applies to the whole model; layers may differ only in {', '.join(IN_LAYERS)}, {sizes}"
    )


def whole_choice(
    at: str, group: str, option: str | None, typed: Mapping[str, Any], cfg: DictConfig, folders: Sequence[Path]
) -> dict[str, Any]:
    """The option's own node, or the model's where only fields were typed, with these fields set."""
    node = plain_dict(cfg[group]) if option is None else option_in(group, option, cfg, folders, at)
    for name, value in typed.items():
        if name not in node or name.startswith("_"):
            inside = ", ".join(key for key in node if not key.startswith("_")) or "none"
            raise UserError(f"layers[{at}].{group}.{name}: no such option; it has: {inside}")
        node[name] = node[name] | value if isinstance(node[name], dict) and isinstance(value, dict) else value
    check_block(group, node)
    return node


def option_in(group: str, option: str, cfg: DictConfig, folders: Sequence[Path], at: str) -> dict[str, Any]:
    """An option from its file, with its references resolved in this configuration."""
    node = option_node(group, option, folders)
    if node is None:
        raise UserError(f"layers[{at}].{group}={option}: no such option; options: {', '.join(groups(folders)[group])}")
    return plain_dict(in_setting(group, node, cfg))


def in_setting(group: str, node: DictConfig, cfg: DictConfig) -> DictConfig:
    """A group's options, with references replaced by their values in this configuration."""
    whole = copied(cfg)
    with open_dict(whole):
        whole[group] = node
    OmegaConf.resolve(whole)
    return whole[group]


def settled_sizes(at: str, rule: Rule, typed: Mapping[str, Any], cfg: DictConfig) -> Iterator[tuple[str, int]]:
    """Sizes that were typed for these layers, and those that follow from another mixer or feed-forward network there."""
    for name, value in typed.items():
        if name not in SIZES_IN_LAYERS:
            raise not_of_a_layer(at, f"size.{name}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"layers[{at}].size.{name}={value}: should be a whole number, 1 or more")
    if "d_ff" in typed:
        yield "d_ff", typed["d_ff"]
    elif "ffn" in rule and cfg.size.d_ff == "matched" and has_width(rule["ffn"]):
        yield "d_ff", default_d_ff(rule["ffn"], cfg.size.d_model)
    if "n_kv_heads" in typed:
        name = rule["choices"].get("mixer", cfg.choices.mixer)
        yield "n_kv_heads", kv_heads_of(rule.get("mixer", cfg.mixer), name, cfg.size.n_heads, typed["n_kv_heads"])
    elif "mixer" in rule and rule["choices"]["mixer"] != cfg.choices.mixer:
        yield "n_kv_heads", default_kv_heads(rule["mixer"], cfg.size.n_heads)
