"""What is typed after `archlab`, made into what Hydra takes, and refused in one line where it means nothing.

Hydra 1.3 asks the user to know which groups stand in the defaults list: `norm=rms` for those, `+preset=modern` for
the others, and a misspelt `+nrom=rms` quietly becomes a new field. Here every spelling of a real name means the same
and an unreal one is an error, for the command line and for `archlab.config.compose` alike.
"""

import difflib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, Sweep
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
)

from archlab.errors import UserError

# ---------------------------------------------------------------- what there is to choose from


def conf_dir() -> Path:
    """The folder of config.yaml: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/config.yaml in {package} or beside it")


def groups(own: Sequence[Path] = ()) -> dict[str, list[str]]:
    """Every group with its options: a folder with the YAML files in it, archlab's own or the user's."""
    found: dict[str, set[str]] = {}
    for file in (file for folder in (conf_dir(), *own) for file in folder.glob("*/*.yaml")):
        if file.parent.name != "hydra":
            found.setdefault(file.parent.name, set()).add(file.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}


@dataclass(frozen=True)
class Known:
    """What an override may name."""

    groups: dict[str, list[str]]
    listed: dict[str, str]
    """The groups of the defaults list, each with its default option."""
    fields: dict[str, Any]
    """The rest of config.yaml: its fields and sections."""
    config_dirs: tuple[Path, ...]

    @classmethod
    def within(cls, own: Sequence[Path]) -> "Known":
        for folder in own:
            if not folder.is_dir():
                raise UserError(f"--config-dir {folder}: no such folder; in it, an option of yours is a norm/mine.yaml")
        fields = _read(conf_dir() / "config.yaml")
        fields.pop("hydra", None)
        entries = [entry for entry in fields.pop("defaults") if isinstance(entry, Mapping)]
        listed = {group: option for entry in entries for group, option in entry.items()}
        return cls(groups(own), listed, fields, (conf_dir(), *own))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self.groups, *self.listed, *self.fields}))

    def homes(self, name: str) -> list[str]:
        """Where a field of this name lives: lr is train.lr."""
        files = [(group, file) for group, option in self.listed.items() for file in self._files(group, option)]
        sections = [*self.fields.items(), *((group, _read(file)) for group, file in files)]
        return [f"{section}.{name}" for section, inside in sections if isinstance(inside, Mapping) and name in inside]

    def list_around(self, key: str) -> str | None:
        """The list in config.yaml that a key reaches into by something that is no number."""
        inside, path = self.fields, []
        for part in key.split("."):
            if isinstance(inside, list):
                return None if part.isdigit() else ".".join(path)
            inside = inside.get(part) if isinstance(inside, Mapping) else None
            path.append(part)
        return None

    def _files(self, group: str, option: str) -> list[Path]:
        paths = (folder / group / f"{option}.yaml" for folder in self.config_dirs)
        return [path for path in paths if path.is_file()][:1]


def _read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}


# ---------------------------------------------------------------- flags


@dataclass(frozen=True)
class Flag:
    """One of Hydra's flags. `values` is None for a switch and empty where any value will do."""

    name: str
    short: str
    help: str
    values: tuple[str, ...] | None = None
    default: str | None = None

    @property
    def usage(self) -> str:
        names = ", ".join(filter(None, (self.short, self.name)))
        if self.values is None:
            return names
        return f"{names} {'[WHAT]' if self.default else '|'.join(self.values) or 'FOLDER'}"


FLAGS = (
    Flag("--help", "-h", "this page"),
    Flag("--version", "-V", "archlab's version"),
    Flag("--multirun", "-m", "one run for every combination of the comma-separated values"),
    Flag("--cfg", "-c", "print the configuration instead of running", ("job", "hydra", "all")),
    Flag("--resolve", "", "with --cfg: references replaced by their values"),
    Flag("--info", "-i", "print how the configuration came about",
         ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"), "all"),
    Flag("--config-dir", "-cd", "a folder with options of your own, as in my/norm/mine.yaml", ()),
    Flag("--shell-completion", "-sc", 'completion: eval "$(archlab -sc install=bash)"'),
    Flag("--hydra-help", "", "Hydra's own help"),
)  # fmt: skip


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags, written out in full with their values, and the other words, wherever they stood."""
    flags, words, queue = [], [], deque(arguments)
    while queue:
        word = queue.popleft()
        if not word.startswith("-"):
            words.append(word)
            continue
        name, _, attached = word.partition("=")
        flag = _flag(name)
        flags.append(flag.name)
        if flag.values is not None:
            flags.append(_value(flag, attached, queue))
        elif attached:
            raise UserError(f"{word}: {flag.name} takes no value")
    return flags, words


def _flag(name: str) -> Flag:
    for flag in FLAGS:
        if name in (flag.name, flag.short):
            return flag
    names = [flag.name for flag in FLAGS]
    raise UserError(f"{name}: no such flag; {did_you_mean(name, names)}flags: {', '.join(names)}")


def _value(flag: Flag, attached: str, queue: deque[str]) -> str:
    follows = queue[0] if queue and not queue[0].startswith("-") else ""
    if not attached and flag.default is not None and follows not in (flag.values or ()):
        return flag.default
    value = attached or (queue.popleft() if follows else "")
    if not value:
        raise UserError(f"{flag.name}: a value is missing; write {flag.usage}")
    if flag.values and value not in flag.values:
        hint = did_you_mean(value, flag.values)
        raise UserError(f"{flag.name} {value}: no such choice; {hint}choices: {', '.join(flag.values)}")
    return value


# ---------------------------------------------------------------- overrides


def normalise(arguments: Sequence[str], own: Sequence[Path] = ()) -> list[str]:
    """The same request in Hydra's spelling: flags first, `+` where and only where Hydra wants it.

    `own` are folders with options of the user's own. Raises UserError.
    """
    flags, words = split(arguments)
    known = Known.within(own)
    return flags + [_normalise(word, known) for word in words]


def _normalise(word: str, known: Known) -> str:
    bare = word.lstrip("+~")
    key, equals, value = bare.partition("=")
    head = key.split(".")[0]
    if key.startswith(("hydra.", "hydra/")):
        return word
    if not equals and not word.startswith("~"):
        raise UserError(f"{word}: an override is written name=value; a verb comes first")
    if head not in known:
        raise UserError(f"{word}: nothing is called {head or 'that'}; {_hint(head, known)}there are {', '.join(known)}")
    if word.startswith("~"):
        raise UserError(f"{word}: {key} cannot be left out, only set; {_can_be(key, known)}")
    if key in known.groups:
        return _choice(bare, key, value, known)
    if isinstance(known.fields.get(key), Mapping) and not value.lstrip().startswith("{"):
        inside = ", ".join(f"{key}.{name}" for name in known.fields[key])
        raise UserError(f"{bare}: {key} is a section, not a field; set one of {inside}")
    if (whole := known.list_around(key)) is not None:
        raise UserError(f"{bare}: {whole} is a list, whose items have numbers; or set all of it, {whole}=[1,2]")
    return bare


def _hint(name: str, known: Known) -> str:
    return did_you_mean(name, known) or (f"did you mean {homes[0]}? " if (homes := known.homes(name)) else "")


def _can_be(key: str, known: Known) -> str:
    return f"options: {', '.join(known.groups[key])}" if key in known.groups else f"write {key}=..."


def _choice(word: str, group: str, value: str, known: Known) -> str:
    """A group with one of its options, or a sweep over several."""
    options = known.groups[group]
    override = parse(word)
    if isinstance(override.value(), dict):
        return word
    for option in _options(override, value, options):
        if option not in options:
            hint = did_you_mean(option, options)
            raise UserError(f"{word}: no such option{_quoted(option, value)}; {hint}options: {', '.join(options)}")
    return word if group in known.listed else f"+{word}"


def _options(override: Override, text: str, options: list[str]) -> list[str]:
    """The options an override asks for."""
    value = override.value()
    listing = f"options: {', '.join(options)}"
    if isinstance(value, Glob):
        if not (matching := value.filter(options)):
            raise UserError(f"{override.input_line}: matches no option; {listing}")
        return matching
    if isinstance(value, ChoiceSweep):
        return [str(item.text if isinstance(item, QuotedString) else item) for item in value.list]
    if isinstance(value, list):
        sweep = ",".join(map(str, value))
        raise UserError(
            f"{override.input_line}: {override.key_or_group} takes one option, not a list; "
            f"to run each write -m {override.key_or_group}={sweep}; {listing}"
        )
    if value is None or value == "":
        raise UserError(f"{override.input_line}: {override.key_or_group} cannot be empty; {listing}")
    return [text if isinstance(value, Sweep) else str(text).strip("'\" ")]


def _quoted(option: str, value: str) -> str:
    return "" if option == value else f" '{option}'"


def parse(word: str) -> Override:
    """One override in Hydra's grammar."""
    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except OverrideParseException as error:
        raise explain(error) from error


# ---------------------------------------------------------------- one line for what Hydra finds later


def explain(error: Exception) -> UserError:
    """What Hydra or OmegaConf says in several lines, in one."""
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
            return UserError(_one_line(str(error).partition("Config search path")[0]))
        case ConfigCompositionException() if isinstance(cause, OmegaConfBaseException):
            return explain(cause)
        case ConfigCompositionException() if "--multirun" in str(error) and "'" in str(error):
            word = str(error).splitlines()[0].partition("'")[2].rpartition("'")[0]
            return UserError(_sweep(word))
        case InterpolationKeyError():
            where = f"{error.full_key}: " if error.full_key else ""
            name = str(error).partition("'")[2].partition("'")[0]
            return UserError(f"{where}${{{name}}} refers to nothing; between the braces goes a field, as in ${{seed}}")
        case OmegaConfBaseException():
            where = f"{error.full_key}: " if error.full_key else ""
            return UserError(where + _one_line(str(error).partition("full_key:")[0]))
        case HydraException() | yaml.YAMLError():
            return UserError(_one_line(str(error)))
        case _:
            raise error


def _sweep(word: str) -> str:
    key, _, value = word.partition("=")
    plain = value if "(" not in value else "..."
    return f"{word}: several values are several runs, which -m asks for; a list is written {key}=[{plain}]"


def _no_such_field(error: OmegaConfBaseException) -> UserError:
    parent, key, path = error.parent_node, str(error.key), str(error.full_key)
    if isinstance(parent, ListConfig):
        return UserError(f"{path}: there are {len(parent)} items, counted from 0")
    place = path.removesuffix(key).rstrip(".") or "the configuration"
    inside = [str(name) for name in parent or () if not str(name).startswith("_") and name != "hydra"]
    if not inside:
        return UserError(f"{path}: {place} has no options of its own, so no '{key}'")
    return UserError(f"{path}: {place} has no option '{key}'; {did_you_mean(key, inside)}it has: {', '.join(inside)}")


def did_you_mean(name: str, real: Iterable[str]) -> str:
    """A half sentence with the nearest real name, or nothing where none is near."""
    close = difflib.get_close_matches(name, list(real), n=1, cutoff=0.5)
    return f"did you mean {close[0]}? " if close else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
