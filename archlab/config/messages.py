"""Error messages of Hydra and OmegaConf, made into one line each."""

from collections.abc import Iterator
from contextlib import contextmanager

import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import ListConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigIndexError,
    ConfigKeyError,
    InterpolationKeyError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from archlab.base.errors import UserError
from archlab.base.messages import did_you_mean, one_line
from archlab.base.words import key_of, value_of


@contextmanager
def in_one_line() -> Iterator[None]:
    """Inside, Hydra's errors become UserErrors of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise explain(error) from error


def explain(error: Exception) -> UserError:
    """An error of Hydra or OmegaConf as a UserError of one line."""
    cause = error.__cause__
    match error:
        case UserError():
            return error
        case InstantiationException() if isinstance(cause, UserError):
            return cause
        case OverrideParseException():
            return UserError(
                f"{error.override}: cannot be read; write name=value, a list as name=[1,2], "
                f"and text with special characters in quotes, as in \"name='a=b'\""
            )
        case ConfigKeyError() | ConfigAttributeError() | ConfigIndexError():
            return _no_such_field(error)
        case MissingConfigException(missing_cfg_file=str(name)) if error.options:
            hint = did_you_mean(name.rpartition("/")[2], error.options)
            return UserError(f"{name}: not found; {hint}options: {', '.join(error.options)}")
        case MissingConfigException():
            return UserError(one_line(str(error).partition("Config search path")[0]))
        case ConfigCompositionException() if isinstance(cause, OmegaConfBaseException):
            return explain(cause)
        case ConfigCompositionException() if "--multirun" in str(error) and "'" in str(error):
            word = str(error).splitlines()[0].partition("'")[2].rpartition("'")[0]
            return UserError(_sweep(word))
        case InterpolationKeyError():
            where = f"{error.full_key}: " if error.full_key else ""
            name = str(error).partition("'")[2].partition("'")[0]
            return UserError(f"{where}${{{name}}} refers to nothing; put a field between the braces, as in ${{seed}}")
        case UnsupportedInterpolationType():
            name = str(error).partition("type ")[2].split()[0]
            return UserError(
                f"${{{name}:...}}: nothing is called {name}; put a field between the braces, as in ${{seed}}"
            )
        case OmegaConfBaseException():
            where = f"{error.full_key}: " if error.full_key else ""
            said = one_line(str(error).partition("full_key:")[0])
            raised, _, why = said.partition(" raised while resolving interpolation: ")
            return UserError(where + (why.strip("\"'") or raised))
        case HydraException() | yaml.YAMLError():
            return UserError(one_line(str(error)))
        case _:
            raise error


def _sweep(word: str) -> str:
    key, value = key_of(word), value_of(word)
    plain = value if "(" not in value else "..."
    return f"{word}: several values mean several runs, which need -m; a list is written {key}=[{plain}]"


def _no_such_field(error: OmegaConfBaseException) -> UserError:
    parent, key, path = error.parent_node, str(error.key), str(error.full_key)
    if isinstance(parent, ListConfig):
        return UserError(f"{path}: there are {len(parent)} items, counted from 0")
    place = path.removesuffix(key).rstrip(".") or "the configuration"
    inside = [str(name) for name in parent or () if not str(name).startswith("_") and name != "hydra"]
    if not inside:
        return UserError(f"{path}: {place} has no options of its own, so no '{key}'")
    return UserError(f"{path}: {place} has no option '{key}'; {did_you_mean(key, inside)}it has: {', '.join(inside)}")
