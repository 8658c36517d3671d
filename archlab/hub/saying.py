"""A config.json as overrides; where it cannot be one, why, by the name that its field has there."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from archlab.base.errors import UserError
from archlab.base.words import key_of, value_of
from archlab.config.compose import in_turn
from archlab.hub.classes import as_its_class_has_it, check_nothing_left_out
from archlab.hub.families import Family, kind_of
from archlab.hub.fields import FLAGS, NUMBERS, TYPES, WHOLE, WITHIN, WORDS
from archlab.hub.reading import Config, Words

MISREAD = (KeyError, TypeError, AttributeError, ValueError, ArithmeticError)
"""What reading a config.json raises that lacks a field, or holds one that it cannot go by."""

Path = tuple[str, ...]
"""Where a field stands: rope_parameters, rope_theta."""


def said_by(family: Family, config: Config) -> Words:
    """A config.json as overrides. Raises UserError."""
    kind = kind_of(config)
    try:
        return words_of(family, config)
    except KeyError as error:
        raise UserError(f"config.json: {error.args[0]} is missing; a {kind} model needs it") from None
    except MISREAD as error:
        raise UserError(f"config.json: holds a value of the wrong type for a {kind} model: {error}") from None


def words_of(family: Family, config: Config) -> Words:
    """A config.json as overrides, read as its class has it.

    Raises UserError. Of one that its class refuses, what no block does or no model can have is said first, since that
    names the field.
    """
    try:
        whole_config = as_its_class_has_it(config)
    except UserError:
        with suppress(*MISREAD):  # of which the class has said what there is to say
            in_turn(*plain_words(family, config))
        raise
    return plain_words(family, whole_config)


def plain_words(family: Family, config: Config) -> Words:
    check_nothing_left_out(config)
    return [plain_word(word) for word in family.words(config)]


def plain_word(word: str) -> str:
    """An override made from a config.json: its value must be a name or a number, with no other syntax in it."""
    if not re.fullmatch(r"(layers\[\d*:\d*(:\d+)?\]\.)?[a-z_0-9.]+=([A-Za-z0-9_.+-]+|\[[0-9.e,+-]+\])", word):
        raise UserError(f"config.json: {word[:120]}: is neither a name nor a number; fetch it again")
    return word


# ---------------------------------------------------------------- which field is at fault


def by_field(family: Family, config: Config, error: UserError) -> UserError:
    """The same error by the name of the field of config.json that is its cause, as far as that can be found."""
    if refusal(family, config) is None:  # as where an override is the cause
        return error
    there = dict(fields_in(config))
    if any(str(error).startswith(f"config.json: {'.'.join(path)}=") for path in there):
        return error
    return of_a_null(family, config, there) or of_a_number(family, config, there, error) or error


def of_a_null(family: Family, config: Config, there: Mapping[Path, Any]) -> UserError | None:
    """Where a field is null that the model cannot do without: that it is, and what it should be."""
    nulls = [path for path, value in there.items() if value is None]
    without = changed(config, dict.fromkeys(nulls, LEFT_OUT))
    left = refusal(family, without)
    for path in nulls:
        needed = str(left).startswith(f"config.json: {path[-1]} is missing")
        by_it = refusal(family, changed(without, {path: None}))
        if needed or (by_it and str(by_it) != str(left) and (left is None or "None" in str(by_it))):
            wanted = f"give {wanted_of(path[-1])}{', or leave the field out' if left is None else ''}"
            return UserError(f"config.json: {'.'.join(path)}=null: a {kind_of(config)} model goes by it; {wanted}")
    return None


def of_a_number(family: Family, config: Config, there: Mapping[Path, Any], error: UserError) -> UserError | None:
    """Where what is refused goes by the number in a field: that it does, and why it is refused."""
    option, refused = key_of(str(error)), value_of(str(error)).partition(":")[0]
    said = option_in(family, config, option)
    numbers = {path: n for path, n in there.items() if isinstance(n, int | float) and not isinstance(n, bool)}
    others = {path: [changed(config, {path: n + more}) for more in (1, 0.5, 2, 3)] for path, n in numbers.items()}
    for goes_by_it in (
        lambda other: said and option_in(family, other, option) not in (None, said),
        lambda other: refusal(family, other) is None,
    ):
        for path, number in sorted(numbers.items(), key=lambda one: refused not in (f"{one[1]}", f"{float(one[1])}")):
            if any(map(goes_by_it, others[path])):
                why = str(error).removeprefix("config.json: ")
                return UserError(f"config.json: {'.'.join(path)}={number}: {why}")
    return None


def refusal(family: Family, config: Config) -> UserError | None:
    """Why a config.json alone is no model; None where it is one."""
    try:
        in_turn(*said_by(family, config))
    except UserError as error:
        return error
    return None


def option_in(family: Family, config: Config, option: str) -> str | None:
    """What a config.json says of an option; None where it says nothing, or cannot be read."""
    for read in (words_of, plain_words):  # the latter where its class refuses it
        with suppress(UserError, *MISREAD):
            return next((word for word in read(family, config) if word.startswith(f"{option}=")), None)
    return None


def fields_in(config: Config, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Those that are read, with those inside others."""
    for name in (name for name in config if name in TYPES):
        if name in WITHIN and isinstance(config[name], Mapping):
            yield from fields_in(config[name], (*at, name))
        else:
            yield (*at, name), config[name]


LEFT_OUT = object()


def changed(config: Config, values: Mapping[Path, Any]) -> dict[str, Any]:
    """The same with other values of these fields, or without them."""
    made = dict(config)
    for (name, *inside), value in values.items():
        if inside:
            made[name] = changed(made[name], {tuple(inside): value})
        elif value is LEFT_OUT:
            made.pop(name, None)
        else:
            made[name] = value
    return made


def wanted_of(name: str) -> str:
    """What a field of this name holds."""
    kinds = {"a whole number": WHOLE, "a number": NUMBERS, "true or false": FLAGS, "a name": WORDS}
    return next((what for what, names in kinds.items() if name in names), "a value")
