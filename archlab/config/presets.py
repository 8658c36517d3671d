"""Models by name: a preset is a list of overrides, over which the command line takes precedence."""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from archlab.base.errors import UserError
from archlab.base.messages import did_you_mean
from archlab.base.plain import Unreadable, read_yaml
from archlab.base.words import key_of, rule_of, sets, value_of
from archlab.config.spelling import spelled

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
"""The name of a group or an option. Names that begin with an underscore, such as _target_, belong in an option's file."""

FOLLOWS_SIZE = ("embed.width",)
"""Fields that a preset sets to suit its own width; where another size is chosen, they keep their defaults."""

BY_TURNS = re.compile(r"layers\[(\d+)::(\d+)\]")
"""A rule such as layers[5::6], for every sixth layer; where another size is chosen, it applies to every second layer."""


def expand(words: Sequence[str], options: Collection[str], folders: Sequence[Path]) -> list[str]:
    """The words, with preset=NAME replaced by those overrides of its file that no other word overrules.

    A choice for a group overrules everything that the preset sets in that group: with size=tiny the preset's blocks
    are kept but not its sizes, and with another mixer not its number of key-value heads. `folders` are searched in turn for
    preset/NAME.yaml. Raises UserError where there is no such preset, or more than one is named.
    """
    presets = [word for word in words if sets(word, "preset")]
    if not presets:
        return list(words)
    name = value_of(presets[0])
    if len(presets) > 1 or "," in name:
        raise UserError(f"{' '.join(presets)}: a model has one preset; run one after the other, then archlab compare")
    if name not in options:
        hint = did_you_mean(name, options)
        raise UserError(f"{presets[0]}: no such preset; {hint}presets: {', '.join(options)}")
    file = next(path for folder in folders if (path := folder / "preset" / f"{name}.yaml").is_file())
    rest = [word for word in words if word not in presets]
    taken = {key_of(word) for word in rest}
    kept = [f"{at_size(key, taken)}={spelled(v)}" for key, v in read(file).items() if not overruled(key, taken)]
    return [*in_rules_too(kept, rest, folders), *rest]


def in_rules_too(kept: Sequence[str], typed: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The kept words, and what is typed of a group once more for layers where a rule chooses an option that has the field.

    Such a choice starts from the option's defaults, so that neither what is typed nor what the rule had would hold there.
    A rule that is left without a difference is left out.
    """
    keys, words = {key_of(word) for word in typed}, list(kept)
    for rule, group, option in chosen_by_rules(kept):
        of_group = [word for word in typed if key_of(word).startswith(f"{group}.") and sets(word, key_of(word))]
        of_rule = [word for word in kept if inside(word, f"{rule}.{group}")]
        if of_group and {word.removeprefix(f"{rule}.") for word in of_rule} == {w for w in kept if inside(w, group)}:
            words = [word for word in words if word not in of_rule]
            continue
        fields = fields_of(group, option, folders)
        again = (word for word in of_group if key_of(word).split(".")[1] in fields)
        words += [f"{rule}.{key_of(w)}=${{{key_of(w)}}}" for w in again if f"{rule}.{key_of(w)}" not in keys]
    return words


def inside(word: str, name: str) -> bool:
    """Whether a word sets this name or a field of it."""
    return key_of(word) == name or key_of(word).startswith(f"{name}.")


def fields_of(group: str, option: str, folders: Sequence[Path]) -> Collection[str]:
    """The fields that an option's file sets; none where it is in no folder."""
    file = next((path for folder in folders if (path := folder / group / f"{option}.yaml").is_file()), None)
    return () if file is None else read_yaml(file) or ()


def chosen_by_rules(words: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """The slice, the group and the option of each rule that chooses one."""
    for word in words:
        rule = rule_of(key_of(word))
        if rule is not None and "." not in rule[1]:
            yield f"layers[{rule[0]}]", rule[1], value_of(word)


def at_size(key: str, taken: Collection[str]) -> str:
    """A preset's key; where another size is chosen, its rule for every nth layer applies to every second layer."""
    found = BY_TURNS.match(key)
    if found is None or "size" not in taken:
        return key
    begins = 0 if found[1] == "0" else 1
    return f"layers[{begins}::2]{key[found.end() :]}"


def read(file: Path) -> dict[str, object]:
    """What a preset's file sets, by dotted names."""
    try:
        preset = read_yaml(file)
    except Unreadable as error:
        raise UserError(f"{file}: cannot be read as YAML: {error}") from None
    if not isinstance(preset, dict) or any(isinstance(value, dict) for value in preset.values()):
        raise UserError(f"{file}: a preset holds one line per override, such as norm: rms and norm.eps: 1e-6")
    for key, value in preset.items():
        rule = rule_of(str(key))
        names = (str(key) if rule is None else rule[1]).split(".")
        if not all(NAME.fullmatch(part) for part in names) or key.startswith("hydra."):
            raise UserError(f"{file}: {key}: is not an option; a preset names options, such as norm or norm.eps")
        for item in value if isinstance(value, list) else [value]:
            if not (isinstance(item, str | int | float) or item is None) or set("${}") & set(str(item)):
                raise UserError(
                    f"{file}: {key}={item}: a preset holds names, numbers and lists of them; write one of these"
                )
    return preset


def overruled(key: str, taken: Collection[str]) -> bool:
    """Whether words for the keys `taken` overrule a preset's value for `key`."""
    rule = rule_of(key)
    key = key if rule is None else rule[1]
    group = key.partition(".")[0]
    follows = (key in FOLLOWS_SIZE and "size" in taken) or (key == "size.n_kv_heads" and "mixer" in taken)
    return key in taken or group in taken or follows
