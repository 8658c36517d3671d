"""NamedModel models: a preset is a list of overrides, which stand wherever the command line says nothing else."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from archlab.base.errors import UserError
from archlab.base.messages import did_you_mean
from archlab.base.plain import Unreadable, read_yaml
from archlab.base.words import key_of, rule_of, sets, value_of
from archlab.config.spelling import spelled

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
"""Of a group or an option; what begins with an underscore names a class, and that is for the option's own file to do."""

FOLLOWS_SIZE = ("embed.width",)
"""What a preset sets for its own width; left to its default where another size is chosen."""

BY_TURNS = re.compile(r"layers\[(\d+)::(\d+)\]")
"""A rule for one layer in so many; in a model of another depth every second layer."""


def expand(words: Sequence[str], options: Collection[str], folders: Sequence[Path]) -> list[str]:
    """The words with preset=NAME replaced by what its file holds and no other word overrules.

    A choice for a group overrules the preset's fields inside that group too: with size=tiny the blocks stay and the
    numbers go, and with another mixer the number of key-value heads goes. `folders` are searched in turn for
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
    """A preset's key; where another size is chosen, turns of many layers become turns of two."""
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
    """Whether words for the keys `taken` leave no room for a preset's word for `key`."""
    rule = rule_of(key)
    key = key if rule is None else rule[1]
    group = key.partition(".")[0]
    follows = (key in FOLLOWS_SIZE and "size" in taken) or (key == "size.n_kv_heads" and "mixer" in taken)
    return key in taken or group in taken or follows
