"""What is given to a function that users call from Python, held to the function's own types."""

import errno
import inspect
from collections.abc import Callable
from functools import cache, wraps
from math import isfinite
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_args

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from archlab.base.errors import UserError, shortened
from archlab.base.files import TOO_LONG

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which refuses an argument of another type by a UserError of one line."""
    signature = inspect.signature(function)

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            parameter = signature.parameters[name]
            if parameter.annotation is parameter.empty or parameter.kind is parameter.VAR_KEYWORD:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL:
                given.arguments[name] = tuple(
                    _value(name, _named(f"{name}, argument {place}", one), parameter.annotation)
                    for place, one in enumerate(value, 1)
                )
            else:
                if Path in get_args(parameter.annotation):
                    _path(name, value)
                given.arguments[name] = _value(name, value, parameter.annotation)
        try:
            return function(*given.args, **given.kwargs)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise UserError(f"{shortened(str(error.filename))}: {TOO_LONG}") from None

    return called


def _path(name: str, value: Any) -> None:
    """Raises UserError where no file can have such a name."""
    _named(name, value)
    if "\0" in str(value):
        raise UserError(f"{name}={shortened(repr(str(value)))}: no file can have a NUL in its name; leave it out")


def _named(name: str, value: Any) -> Any:
    """The value, where it is not the empty text: as a path that would be the folder one is in, which nobody named."""
    if value == "":
        raise UserError(f"{name}: is empty; write what it is to be, or leave it out")
    return value


def _value(name: str, value: Any, hint: Any) -> Any:
    """The value as its type has it: 1 given for a number with a fraction is 1.0."""
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        found = dict.fromkeys(
            "should be a path" if line["type"] == "path_type" else line["msg"].removeprefix("Input ")
            for line in error.errors()
        )
        if isinstance(value, float) and not isfinite(value):
            found = {"should be a finite number": None}
        shown = shortened(" ".join(repr(value)[:1000].split()))
        raise UserError(f"{name}={shown}: {' or '.join(found)}") from None


@cache
def _adapter(hint: Any) -> TypeAdapter:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a type that brings a configuration of its own
        return TypeAdapter(hint)
