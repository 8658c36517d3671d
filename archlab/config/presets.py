"""Models by name: a preset is a list of overrides, which count where the command line says nothing else."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from archlab.base.errors import UserError
from archlab.base.messages import did_you_mean
from archlab.base.plain import Unreadable, read_yaml
from archlab.base.words import key_of, rule_of, sets, value_of
from archlab.config.spelling import spelled

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
"""Of a group or an option. A name with an underscore in front, such as _target_, belongs in an option's own file."""

FOLLOWS_SIZE = ("embed.width",)
"""What a preset sets for its own width; where another size is chosen, these keep their defaults."""

BY_TURNS = re.compile(r"layers\[(\d+)::(\d+)\]")
"""A rule such as layers[5::6], for every sixth layer; in a model of another size it is one for every second layer."""


def expand(words: Sequence[str], options: Collection[str], folders: Sequence[Path]) -> list[str]:
    """The words, with preset=NAME replaced by those overrides of its file that no other word overrules.

    A word for a group overrules all that the preset says of the group and of its options: with size=tiny the preset's
    blocks count and its sizes do not, and with another mixer its number of key-value heads does not. `folders` are searched in turn for
    preset/NAME.yaml. Raises UserError where there is no such preset, or more than one is named.
    """
    named = [word for word in words if sets(word, "preset")]
    if not named:
        return list(words)
    name = value_of(named[0])
    if len(named) > 1 or "," in name:
        raise UserError(f"{' '.join(named)}: a model has one preset; run one after the other, then archlab compare")
    if name not in options:
        hint = did_you_mean(name, options)
        raise UserError(f"{named[0]}: no such preset; {hint}presets: {', '.join(options)}")
    file = next(path for folder in folders if (path := folder / "preset" / f"{name}.yaml").is_file())
    rest = [word for word in words if word not in named]
    taken = {key_of(word) for word in rest}
    kept = {key: value for key, value in read(file).items() if not overruled(key, taken)}
    return [*(f"{at_size(key, taken)}={spelled(value)}" for key, value in kept.items()), *rest]


def at_size(key: str, taken: Collection[str]) -> str:
    """A preset's key; where another size is chosen, its rule for every nth layer becomes one for every second layer."""
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
        raise UserError(f"{file}: a preset is a line for each override, such as norm: rms and norm.eps: 1e-6")
    for key, value in preset.items():
        rule = rule_of(str(key))
        names = (str(key) if rule is None else rule[1]).split(".")
        if not all(NAME.fullmatch(part) for part in names) or key.startswith("hydra."):
            raise UserError(f"{file}: {key}: is no option; a preset names options, such as norm or norm.eps")
        for item in value if isinstance(value, list) else [value]:
            if not (isinstance(item, str | int | float) or item is None) or set("${}") & set(str(item)):
                raise UserError(
                    f"{file}: {key}={item}: a preset holds names, numbers and lists of them; write one of these"
                )
    return preset


def overruled(key: str, taken: Collection[str]) -> bool:
    """Whether words for the keys `taken` overrule a preset's word for `key`."""
    rule = rule_of(key)
    key = key if rule is None else rule[1]
    group = key.partition(".")[0]
    follows = (key in FOLLOWS_SIZE and "size" in taken) or (key == "size.n_kv_heads" and "mixer" in taken)
    return key in taken or group in taken or follows
