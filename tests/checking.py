"""Types and shapes of functions, checked by beartype at every call that is of another kind than those before."""

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, wraps
from inspect import isclass
from typing import Any, get_args

import torch
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import AbstractArray, TypeCheckError
from jaxtyping._storage import pop_shape_memo, push_shape_memo
from torch import Tensor

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def jaxtyped(thing: Any = None, *, typechecker: Callable) -> Any:
    """What jaxtyping's import hook decorates functions and dataclasses with, in place of jaxtyping's own of this name.

    That one binds and checks the parameters twice at every call, of functions without shapes too, which is a fifth of
    the tests' time. This one opens a scope of axes where there are shapes, checks once, and checks a call like one
    that it has seen no more.
    """
    if thing is None:
        return partial(jaxtyped, typechecker=typechecker)
    if isinstance(thing, classmethod | staticmethod):
        return type(thing)(jaxtyped(thing.__func__, typechecker=typechecker))
    if isinstance(thing, property):
        parts = (thing.fget, thing.fset, thing.fdel)
        return property(*(part and jaxtyped(part, typechecker=typechecker) for part in parts))
    if isclass(thing):
        if is_dataclass(thing) and "__init__" in vars(thing):
            thing.__init__ = jaxtyped(thing.__init__, typechecker=typechecker)
        return thing
    return once_of_a_kind(thing, typechecker) if has_shapes(thing) else typechecker(thing)


def once_of_a_kind(function: Callable, typechecker: Callable) -> Callable:
    """The function, whose arguments and result are checked where no call before had all of them of the same kinds.

    What is checked depends on nothing else, and to check it is a fifth of the tests' time.
    """
    seen: set[tuple] = set()
    check_arguments = in_a_scope(typechecker(function))
    check_result = in_a_scope(typechecker(returns_what_it_is_told(function)))

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # whose shapes are symbols
            return check_arguments(*args, **kwargs)
        given = (kind(args), kind(kwargs))
        if given not in seen:
            result = check_arguments(*args, **kwargs)
            seen.update((given, (given, kind(result))))
            return result
        result = function(*args, **kwargs)
        if (given, kind(result)) not in seen:
            told.append(result)
            check_result(*args, **kwargs)
            seen.add((given, kind(result)))
        return result

    return called


told: list[Any] = []


def returns_what_it_is_told(function: Callable) -> Callable:
    """A function with this one's signature, to check a result that is there already."""

    @wraps(function)
    def returned(*args: Any, **kwargs: Any) -> Any:
        return told.pop()

    return returned


def kind(thing: Any) -> Any:
    """All that a check of types and shapes sees of it."""
    if isinstance(thing, Tensor):
        return type(thing), thing.dtype, tuple(thing.shape)
    if isinstance(thing, tuple | list):
        return type(thing), tuple(map(kind, thing))
    if isinstance(thing, dict):
        return dict, tuple((name, kind(value)) for name, value in thing.items())
    return type(thing)


def in_a_scope(function: Callable) -> Callable:
    """The function, in whose signature an axis of one name has one size at each call."""

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        push_shape_memo({})
        try:
            return function(*args, **kwargs)
        except BeartypeCallHintViolation as violation:
            raise TypeCheckError(str(violation)) from None
        finally:
            pop_shape_memo()

    return called


def checked(function: Callable) -> Callable:
    """A function within another whose signature has no shapes is left as it is.

    It would be prepared anew at each call of the other, for a millisecond; its plain types are mypy's. So is one with a
    type in quotes, which may be imported for mypy alone.
    """
    within = "<locals>" in function.__qualname__
    quoted = any(isinstance(annotation, str) for annotation in function.__annotations__.values())
    return check(function) if has_shapes(function) or not (within or quoted) else function


def has_shapes(function: Callable) -> bool:
    return any(map(is_shaped, function.__annotations__.values()))


def is_shaped(annotation: object) -> bool:
    """Whether it is, or is made of, an array of a shape."""
    return (isinstance(annotation, type) and issubclass(annotation, AbstractArray)) or any(
        map(is_shaped, get_args(annotation))
    )
