"""Types and shapes of functions, checked by beartype at every call."""

from collections.abc import Callable
from typing import get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    """A function within another whose signature has no shapes is left as it is.

    It would be prepared anew at each call of the other, for a millisecond; its plain types are mypy's.
    """
    return check(function) if "<locals>" not in function.__qualname__ or has_shapes(function) else function


def has_shapes(function: Callable) -> bool:
    return any(map(is_shaped, function.__annotations__.values()))


def is_shaped(annotation: object) -> bool:
    """Whether it is, or is made of, an array of a shape."""
    return (isinstance(annotation, type) and issubclass(annotation, AbstractArray)) or any(
        map(is_shaped, get_args(annotation))
    )
