"""The arguments of a verb that takes names and a few options of its own, instead of a model's options."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from archlab.base.errors import UserError, shortened
from archlab.base.messages import did_you_mean
from archlab.base.words import taken_apart
from archlab.config.flags import split
from archlab.config.overrides import check_own

Options = TypeVar("Options")


def understood(
    verb: str,
    arguments: Sequence[str],
    kind: type[Options],
    switches: Sequence[str] = (),
    names_are_overrides: bool = False,
    valued: Sequence[str] = (),
) -> tuple[list[str], Options, dict[str, str]]:
    """Names, options and the values of flags; `kind` is a dataclass with one typed field and default per option.

    `switches` are the verb's own flags without a value, `valued` those with one. Where names may be overrides, every word that is not an
    option is one. `null` becomes None. Raises UserError for a misspelt option or a value of the wrong type.
    """
    flags, words = split(arguments)
    on = [flag for flag in flags if flag in switches]
    flags = [flag for flag in flags if flag not in switches]
    known = (*switches, *valued, "--config-dir")
    if unknown := [flag for flag in flags if flag.startswith("-") and flag not in known]:
        raise UserError(f"{unknown[0]}: {verb} takes no such flag; it takes {', '.join(known)}")
    with_values = dict(zip(flags[::2], flags[1::2], strict=True))
    own = [Path(folder) for flag, folder in with_values.items() if flag == "--config-dir"]
    check_own(own)  # even where the verb does not use the folder
    hints = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]  # typing has no type for dataclasses
    names: list[str] = []
    given: dict[str, Any] = {}
    typed: dict[str, str] = {}
    for word in words:
        override = taken_apart(word)
        name, value = override.prefix.lstrip("+") + override.key, override.value
        if value is None or name.startswith(".") or "/" in name:  # a run's directory is named by its overrides
            names.append(word)
        elif name not in hints and names_are_overrides:
            names.append(word)
        elif name not in hints:
            has = f"{did_you_mean(name, hints)}it has: {', '.join(hints)}" if hints else "it has none of its own"
            raise UserError(f"{word}: {verb} has no option {name}; {has}")
        elif name in given and typed[name] != word:
            raise UserError(f"{typed[name]} {word}: set {name} twice; keep one of the two")
        else:
            given[name], typed[name] = read(name, value, hints[name]), word
    return names, kind(**given), dict.fromkeys(on, "") | with_values


def read(name: str, value: str, hint: Any) -> Any:
    if not value and name != "prompt":  # for an empty prompt, generate has its own error
        found = "names no file or folder" if name == "output" else "is empty"
        raise UserError(f"{name}=: {found}; write {name}=... with a value, or leave it out")
    try:
        return TypeAdapter(hint).validate_python(None if value == "null" else value)
    except ValidationError as error:
        every = [line for line in error.errors() if line["type"] != "none_required"]  # null is no word for most options
        wanted = ", or ".join(dict.fromkeys(line["msg"].removeprefix("Input ").lower() for line in every))
        if value.strip("+-").lower() in ("nan", "inf", "infinity"):
            wanted = "should be a finite number"
        raise UserError(f"{name}={shortened(value)}: {wanted}") from None


def show(found: object, **options: Any) -> None:
    """Prints what a verb found."""
    from rich.console import Console  # here, since not every verb prints a table

    Console(**options).print(found)


def config_dir(flags: dict[str, str]) -> Path | None:
    """The folder of the user's own options, where one was given."""
    return Path(flags["--config-dir"]) if "--config-dir" in flags else None
