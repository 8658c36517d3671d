"""A run's model, read back from its directory: as it was, or the same weights under another configuration.

A run's directory may come from anyone, so its config.yaml is data: it names options and says what they were set to. The
classes are those that conf/, or the folder of the user's own options, has under these names; none is taken from the
file, and nothing of it is parsed as an override or a reference.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from archlab.base.configuration import copied, plain_dict
from archlab.base.errors import UserError
from archlab.base.nested import options_alone
from archlab.base.plain import Unreadable, read_yaml, within
from archlab.base.words import RENAMED, TURNS, spelt
from archlab.config.assemble import assemble_without_weights, settle_size
from archlab.config.check import check_together
from archlab.config.compose import composed, in_turn
from archlab.config.groups import BLOCKS, GROUPS
from archlab.config.overrides import conf_dir, groups, refuse_twice
from archlab.config.plan import loop_of
from archlab.config.rules import check_rules, settle_layers
from archlab.config.types import check_types
from archlab.model.decoder import Decoder
from archlab.records.directory import unfinished
from archlab.records.reader import asked_words
from archlab.runs.weights import load_weights

BEFORE_THERE_WERE_OTHERS = {"optimizer": "adamw", "schedule": "cosine", "average": "none"}
"""The options of groups that older runs' files do not name, as those runs were trained."""

MATCHED: dict[str, type | tuple[type, ...]] = {"to": str, "reference": (int, float), "d_ff_before": int, "d_ff": int}
"""What a run says of the width that match gave it."""


def load_run(
    directory: str | Path, *overrides: str, config_dir: str | Path | None = None
) -> tuple[DictConfig, Decoder]:
    """The configuration and the trained decoder, on the CPU, of a run's directory.

    With overrides, spelt as on the command line, the same weights under another configuration: another mask, another
    base of RoPE. What has weights must stay as it was. `config_dir` is a folder of the user's own options.
    Raises UserError where there is no such run, a file is damaged, a weight is not a finite number, or the weights are
    another model's.
    """
    directory = Path(directory)
    if why := unfinished(directory):
        raise UserError(why)
    cfg = saved_configuration(directory, config_dir)
    if overrides:
        cfg = changed(directory, cfg, overrides, config_dir)
    return cfg, load_weights(directory, cfg)


def saved_configuration(directory: Path, own: str | Path | None = None) -> DictConfig:
    """What a run's config.yaml says, checked as if it had been typed; `own` is a folder of the user's own options.

    Raises UserError.
    """
    file = directory / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"{directory}: has no config.yaml, so it is not a run; give a run's directory, as a run prints it"
        )
    try:
        return settled_as_it_was(said_in(file), own)
    except Unreadable as error:
        why = str(error)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (OmegaConfBaseException, RuntimeError, OverflowError) as error:  # torch's, of sizes beyond any machine's
        why = " ".join(str(error).split())[:120]
    raise UserError(f"{file}: is no configuration of this version's runs: {why}; give another run")


def said_in(file: Path) -> dict[str, Any]:
    """A configuration's file, whole and without references. Raises Unreadable."""
    saved = read_yaml(file)
    if not isinstance(saved, dict) or not isinstance(saved.get("choices"), dict):
        raise Unreadable("it does not say which options were chosen")
    saved = in_todays_words(saved)
    if missing := [group for group in GROUPS if not isinstance(saved["choices"].get(group), str)]:
        raise Unreadable(f"it does not say which {missing[0]} was chosen")
    for _, part in within(saved):
        if isinstance(part, str) and ("${" in part or part == "???"):
            raise Unreadable(f"{part[:60]} is a reference, and a run's file holds values alone")
        if isinstance(part, list) and (named := [inner for _, inner in within(part) if names_a_class(inner)]):
            raise Unreadable(f"{next(iter(named[0]))} stands in a list, and a run's file names no class")
    return saved


def in_todays_words(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What an older run's file says, with today's names of groups, and layers by turns as the rules they are now."""
    choices = {RENAMED.get(name, name): choice for name, choice in saved["choices"].items()}
    choices = {**BEFORE_THERE_WERE_OTHERS, **choices}
    said = {RENAMED.get(name, name): value for name, value in saved.items()} | {"choices": choices}
    rules: dict[str, dict[str, Any]] = {}
    for group, option, local, there in (
        ("mask", "window", lambda node: {"window": node.get("window")}, lambda node: ("causal", {})),
        ("pos", "rope", lambda node: node.get("local_layers"), lambda node: ("rope", node.get("global_layers"))),
    ):
        node = said.get(group)
        if choices.get(group) == TURNS and isinstance(node, Mapping):
            if saved.get("layers"):
                raise Unreadable(f"{group}={TURNS} and rules for some layers are of different versions")
            choices[group], (at_global, options) = option, there(node)
            every, first = node.get("every"), node.get("first")
            if not isinstance(every, int) or every < 2:
                raise Unreadable(f"{group}.every={every} says nothing of which layers take turns")
            at = f"{every - 1}::{every}" if first == "local" else f"::{every}"
            rule = rules.setdefault(at, {"at": at, "choices": {}})
            rule["choices"][group], rule[group] = at_global, options_alone(options)
            said |= {group: local(node), "layers": list(rules.values())}
    return said


def rules_said(rules: object) -> dict[str, Any]:
    """The rules for some layers as they are typed, one after the other. Raises Unreadable where they are none."""
    if not isinstance(rules, list) or not all(isinstance(rule, Mapping) for rule in rules):
        raise Unreadable("layers holds no rules")
    said: dict[str, Any] = {}
    for rule in rules:
        spelling = spelt(f"layers[{rule.get('at')}].pos=").removeprefix("++layers.").partition(".")[0]
        parts = {name: value for name, value in rule.items() if name != "at"}
        if spelling in said or not all(isinstance(value, Mapping) for value in parts.values()):
            raise Unreadable("layers holds no rules")
        said[spelling] = options_alone(parts)
    return said


def names_a_class(part: object) -> bool:
    return isinstance(part, dict) and any(key.startswith("_") for key in part)


def settled_as_it_was(saved: Mapping[str, Any], own: str | Path | None) -> DictConfig:
    """The configuration of the options a file names, with the values it gives them."""
    choices = {group: saved["choices"][group] for group in GROUPS}
    options = groups((Path(own),) if own else ())
    for group, choice in choices.items():
        if choice not in options[group]:
            raise UserError(
                f"{group}={choice}: no such option here; if it is your own, give the folder by --config-dir"
            )
    whole, _ = composed([f"{group}={choice}" for group, choice in choices.items()], own)
    standing = plain_dict(whole)
    del standing["hydra"]
    values = {name: value for name, value in saved.items() if name not in ("choices", "matched", "layers")}
    cfg = OmegaConf.create(overlaid(standing, values, choices) | {"layers": rules_said(saved.get("layers") or [])})
    OmegaConf.resolve(cfg)
    with open_dict(cfg):
        cfg.choices = choices
        if cfg.match:
            cfg.matched = matched(saved.get("matched"))
    check_types(cfg)
    settle_layers(cfg, [*([Path(own)] if own else []), conf_dir()])
    settle_size(cfg)
    check_rules(cfg)
    checked = copied(cfg)
    checked.loggers = []  # reading a run logs nothing, so its loggers need not be installed here
    check_together(checked, assemble_without_weights(cfg), ())
    OmegaConf.set_struct(cfg, True)
    return cfg


def overlaid(
    standing: Mapping[str, Any], values: Mapping[str, Any], choices: Mapping[str, str], path: str = ""
) -> dict:
    """What stands in conf/ with the values of a file in its place; keys and classes are always conf's own."""
    result = dict(standing)
    group = path.partition(".")[0]
    for name, value in values.items():
        where = f"{path}.{name}" if path else name
        if name.startswith("_"):
            if name == "_target_":
                check_class(value, standing.get(name), group, choices)
        elif name not in standing:
            if group != "data":  # of data, what an option no longer asks is of no consequence to a trained model
                raise UserError(
                    f"{where}: {option_of(group, choices)} has no such option in this version; give another run"
                )
        elif isinstance(standing[name], Mapping) != isinstance(value, Mapping):
            wanted = "options by name" if isinstance(standing[name], Mapping) else "a value"
            raise UserError(
                f"{where}: should hold {wanted}, as {option_of(group or name, choices)} has it; give another run"
            )
        else:
            result[name] = overlaid(standing[name], value, choices, where) if isinstance(value, Mapping) else value
    return result


def option_of(group: str, choices: Mapping[str, str]) -> str:
    return f"{group}={choices[group]}" if group in choices else "a configuration"


def check_class(written: object, standing: object, group: str, choices: Mapping[str, str]) -> None:
    """Whether an option of this name is what it was when the run was made; older runs wrote the class beside it.

    A class of archlab's own may have moved since. Nothing is done with what was written but to compare it.
    """
    both = [str(path) for path in (written, standing)]
    if written != standing and not all(path.startswith("archlab.") for path in both):
        raise UserError(
            f"{option_of(group, choices)}: was {both[0]} in this run and is {both[1]} here; if it is a block of your own, give"
            " the folder of its option by --config-dir"
        )


def matched(said: object) -> dict[str, Any]:
    """What match changed. Raises UserError where the file does not say it as a run does."""
    if not isinstance(said, Mapping) or not all(isinstance(said.get(name), kind) for name, kind in MATCHED.items()):
        raise UserError(f"matched: should say {', '.join(MATCHED)}, as match was asked for; give another run")
    return {name: said[name] for name in MATCHED}


def changed(directory: Path, cfg: DictConfig, overrides: tuple[str, ...], own: str | Path | None = None) -> DictConfig:
    """What was asked for then, and these overrides after it, composed and checked anew."""
    try:
        asked = asked_words(directory / "overrides.yaml")
    except Unreadable as error:
        raise UserError(f"{directory}/overrides.yaml: cannot be read: {error}") from None
    if references := [word for word in asked if "$" in word]:
        raise UserError(
            f"{directory}/overrides.yaml: {references[0][:60]}: is a reference, and a run's file holds values alone; load the"
            " run as it is"
        )
    again = in_turn(*asked, config_dir=own)
    then, now = (whole | {"loop": loop_of(whole)} for whole in (plain_dict(cfg), plain_dict(again)))
    for part in (*BLOCKS, "layers", "size", "embed", "canon", "skips", "loop", "mtp"):
        if now.get(part) != then.get(part):
            raise UserError(
                f"{directory}: its overrides no longer compose to the {part} in its config.yaml, so nothing can be changed"
                " about it; load it as it is"
            )
    refuse_twice(overrides)
    return in_turn(*asked, *overrides, config_dir=own)
