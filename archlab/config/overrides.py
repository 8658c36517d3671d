"""Translates what is typed after `archlab` into Hydra's spelling, and refuses unknown names in one line.

With Hydra 1.3 the user must know which groups are in the defaults list: `norm=rms` for those, `+preset=modern` for
the others; and a misspelt `+nrom=rms` quietly becomes a new field. Here every spelling of a known name means the same
and an unknown name is an error, for the command line and for `archlab.config.compose.compose` alike.
"""

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, Sweep
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from archlab.base.errors import UserError, shortened
from archlab.base.messages import did_you_mean
from archlab.base.nested import leaves
from archlab.base.words import key_of, plain, renamed, rule_of, spelt, taken_apart, today, value_of
from archlab.config.flags import split
from archlab.config.messages import explain
from archlab.config.plan import IN_LAYERS
from archlab.config.presets import expand

# ---------------------------------------------------------------- what there is to choose from


@cache
def conf_dir() -> Path:
    """The folder of config.yaml: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/config.yaml in {package} or beside it")


def option_node(group: str, option: str, folders: Sequence[Path]) -> DictConfig | None:
    """What an option's file sets in its group, references unresolved; None where no folder has the file.

    A file may set fields of the whole configuration; then only the group's own part is returned.
    """
    file = next((path for folder in folders if (path := folder / group / f"{option}.yaml").is_file()), None)
    if file is None:
        return None
    loaded: DictConfig = pickle.loads(_loaded(state_of(file)))
    return loaded[group] if group in loaded else loaded


FileState = tuple[str, int, int]
"""A file's path, the time it was last written, and its size: what was read of it holds as long as these do."""


def state_of(file: Path) -> FileState:
    state = file.stat()
    return str(file), state.st_mtime_ns, state.st_size


@lru_cache(512)
def _loaded(file: FileState) -> bytes:
    """An option's file as OmegaConf has it; as bytes, from which who asks has a copy of his own."""
    return pickle.dumps(OmegaConf.load(file[0]))


NO_GROUPS = ("hydra", "claim")
"""Folders of conf/ that are not groups of options."""


def check_own(own: Sequence[Path]) -> None:
    """Refuses the user's folders where they do not exist, or where a file in them has the name of one of archlab's.

    Such a name would be ambiguous. An unchanged copy is allowed.
    """
    for folder in own:
        if not folder.is_dir():
            found = "is a file" if folder.exists() else "no such folder"
            raise UserError(
                f"--config-dir {folder}: {found}; give a folder with options of your own, such as norm/mine.yaml"
            )
        for file in sorted((*folder.glob("*/*.yaml"), *folder.glob("config.yaml"))):
            name = file.relative_to(folder)
            ours = conf_dir() / name
            if not ours.is_file() or ours.read_bytes() == file.read_bytes():
                continue
            if file.parent == folder:
                raise UserError(
                    f"--config-dir {folder}: its config.yaml would not be read, since archlab has its own; remove it"
                )
            raise UserError(
                f"--config-dir {folder}: {name} has the name of archlab's own {name.parent}={name.stem}, so the name is ambiguous;"
                f" rename yours, for example to {name.with_stem(f'my_{name.stem}')}"
            )


def groups(own: Sequence[Path] = ()) -> dict[str, list[str]]:
    """Every group with its options: a folder with the YAML files in it, archlab's own or the user's.

    Folders of other data, which are not groups, are left out.
    """
    check_own(own)
    found: dict[str, set[str]] = {}
    for file in (file for folder in (conf_dir(), *own) for file in folder.glob("*/*.yaml")):
        if file.parent.name not in NO_GROUPS:
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
        check_own(own)
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
        """The list in config.yaml into which a key reaches by a name instead of a number."""
        path: list[str] = []
        inside: Any = self.fields
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
    """What a file says, read anew where it changed: to parse config.yaml is a third of the time of a configuration."""
    return pickle.loads(_said(state_of(file)))


@lru_cache(512)
def _said(file: FileState) -> bytes:
    return pickle.dumps(yaml.safe_load(Path(file[0]).read_text(encoding="utf-8")) or {})


# ---------------------------------------------------------------- overrides

OF_RUN = {
    "resume": ", for its sweeps; archlab resume DIRECTORY finishes one run",
    "plots": "; leave it out",
    "workers": ", for its sweeps; leave it out",
    "pack": ", for its sweeps; leave it out",
}
"""Words that say how runs are carried out and are no part of a configuration, and what else there is to say of each."""

HYDRAS = re.compile(r"hydra[./](launcher|sweeper|callbacks)\b.*|hydra\.(sweep|job\.env_set|job\.env_copy)\..+")
"""Hydra's own settings that do something here: a run keeps its own records, and options of one's own have a flag."""


def normalise(arguments: Sequence[str], own: Sequence[Path] = ()) -> list[str]:
    """The same words in Hydra's spelling: flags first, a preset expanded, `+` exactly where Hydra wants it.

    `own` are folders with options of the user's own. Raises UserError.
    """
    flags, words = split(arguments)
    known = Known.within(own)
    words = today(expand(today(words), known.groups.get("preset", ()), known.config_dirs))
    normalised = flags + [_normalise(word, known) for word in words]
    _check_fields(words, known)
    return normalised


def _check_fields(words: Sequence[str], known: Known) -> None:
    """Holds a group's fields to the options that are chosen of it, which Hydra's own refusal does not name."""
    chosen = {group: [option] for group, option in known.listed.items()}
    for word in words:
        if (key := key_of(word)) in chosen and not isinstance((override := parse(word)).value(), dict):
            chosen[key] = _options(override, value_of(word), known.groups[key])
    for word in words:
        group, dot, field = key_of(word).partition(".")
        field = field.partition(".")[0]
        for option in chosen.get(group, ()) if dot else ():
            node = option_node(group, option, known.config_dirs)
            if node is None or field in node or "defaults" in node:  # a file that takes fields over from another
                continue
            others = (
                other for other in known.groups[group] if field in (option_node(group, other, known.config_dirs) or ())
            )
            there = [f"{group}={other}" for other in others]
            elsewhere = f"; {field} is a field of {', '.join(there)}" if there else ""
            inside = [str(name) for name in node if not str(name).startswith("_")]
            hint = "" if there else did_you_mean(field, inside)
            has = f"; {hint}it has: {', '.join(inside)}" if inside else ", and no other"
            raise UserError(f"{word}: {group}={option} has no field {field}{has}{elsewhere}")


def sets_hydra(word: str) -> bool:
    """Whether a word is about Hydra itself and not about a configuration."""
    return key_of(word).startswith(("hydra.", "hydra/"))


def refuse_of_the_command_line(words: Sequence[str]) -> None:
    """Refuses what a function would leave without effect: a flag, and settings of the Hydra that runs jobs."""
    for word in words:
        if word.startswith("-"):
            raise UserError(
                f"{word}: is a flag of the command line; here go overrides, name=value; archlab.sweep makes several runs"
            )
        if sets_hydra(word):
            _refuse_classes(word, key_of(word), value_of(word))
            raise UserError(
                f"{word}: is about how the command line runs jobs, so it would change nothing here; leave it out"
            )


def _normalise(word: str, known: Known) -> str:
    override = taken_apart(word)
    key, head, value, bare = override.key, override.head, override.value or "", word[len(override.prefix) :]
    _refuse_classes(bare, key, value)
    if (rule := rule_of(key)) is not None and override.value is not None:
        _check_rule(word, *rule, known)
        return spelt(word)
    if sets_hydra(word):
        if not HYDRAS.fullmatch(key):
            raise UserError(
                f"{word}: changes nothing; of Hydra's own settings hydra/launcher, hydra/sweeper, hydra.callbacks, hydra.sweep,"
                " hydra.job.env_set and hydra.job.env_copy do; leave it out"
            )
        return word
    if override.value is None and not word.startswith("~"):
        raise UserError(f"{word}: an override is written name=value; a verb comes first")
    if head in OF_RUN:
        raise UserError(f"{word}: only the verb run takes it{OF_RUN[head]}")
    if head not in known:
        raise UserError(f"{word}: nothing is called {head or 'that'}; {_hint(head, known)}there are {', '.join(known)}")
    if head == "experiment":
        raise UserError(f"{word}: an experiment is several runs; only the verb run takes it, as experiment=NAME")
    if word.startswith("~"):
        raise UserError(f"{word}: {key} cannot be left out, only set; {_can_be(key, known)}")
    if len(value) > 4000:  # a number in it may be too long for Hydra, which would then fail with a traceback
        parse(bare)
    if value.lstrip().startswith("{"):
        _refuse_empty(bare, key, parse(bare).value())
    if key in known.groups:
        return _choice(bare, key, value, known)
    if head == "layers":
        raise UserError(
            f"{bare}: a rule names a slice of the layers, as in layers[3::4].pos=none or layers[:3].ffn=gelu"
        )
    if isinstance(known.fields.get(key), Mapping) and not value.lstrip().startswith("{"):
        inside = ", ".join(f"{key}.{name}" for name in known.fields[key])
        raise UserError(f"{bare}: {key} is a section, not a field; set one of {inside}")
    if (whole := known.list_around(key)) is not None:
        raise UserError(f"{bare}: {whole} is a list, whose items have numbers; or set all of it, {whole}=[1,2]")
    return bare


def _check_rule(word: str, at: str, inside: str, known: Known) -> None:
    """Checks a rule's choice against the group's options; the rest is checked when the rules are settled."""
    if inside in known.groups:
        _choice(f"{inside}={value_of(word)}", inside, value_of(word), known)
    elif "." not in inside:
        raise UserError(
            f"{word}: nothing is called {inside} in a layer; {did_you_mean(inside, IN_LAYERS)}there are {', '.join(IN_LAYERS)}"
        )


def _refuse_classes(word: str, key: str, value: str) -> None:
    """Refuses an override that names a class: only an option's file may do that; overrides set values only."""
    reserved = [part for part in key.split(".") if part.startswith("_")]
    if not reserved and "_" in value and set("{$") & set(value):
        reserved = re.findall(r"(?<!\w)_(?:target|partial|args|recursive|convert)_(?!\w)", value)
    if reserved:
        raise UserError(
            f"{word}: {reserved[0]} names the class to make, which only an option's own file may do; write it into a yaml, such as"
            " my/norm/mine.yaml, and give the folder by --config-dir my"
        )


def _refuse_empty(word: str, name: str, value: Any) -> None:
    """Refuses an empty mapping at any depth, since it sets nothing."""
    if value == {}:
        raise UserError(f"{word}: sets nothing; write what it should set, as in {name}.NAME=VALUE, or leave it out")
    for key, inside in value.items() if isinstance(value, dict) else ():
        _refuse_empty(word, f"{name}.{key}", inside)


def _hint(name: str, known: Known) -> str:
    """A hint: a section's field of exactly that name or, without one, the closest name at the top level."""
    return f"did you mean {homes[0]}? " if (homes := known.homes(name)) else did_you_mean(name, known)


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


def refuse_twice(words: Sequence[str]) -> None:
    """Refuses a command in which one word leaves another without effect; the same word twice is allowed.

    Words that are not overrides are refused elsewhere.
    """
    seen: dict[str, tuple[str, Any]] = {}
    for word in words:
        for key, value in _settings(word):
            for other, (first, earlier) in seen.items():
                if _overrules(key, value, other, earlier):
                    raise UserError(f"{first} {word}: set {plain(min(key, other, key=len))} twice; keep one of the two")
            seen[key] = word, value


def _overrules(key: str, value: Any, other: str, earlier: Any) -> bool:
    """Whether two settings differ and are of the same field, or one of a list and the other of an item in it."""
    if key == other:
        return earlier != value
    return (isinstance(earlier, list) and key.startswith(f"{other}.")) or (
        isinstance(value, list) and other.startswith(f"{key}.")
    )


def _settings(word: str) -> Iterator[tuple[str, Any]]:
    """What an override sets, by dotted names; a mapping sets each of its entries. Two presets have an error of their own."""
    try:
        override = taken_apart(spelt(renamed(word)))
    except UserError:
        return
    key, word = override.key, f"{override.key}={override.value}"
    if override.value is None or "~" in override.prefix or key == "preset":
        return
    try:
        value = parse(word).value()
    except UserError:  # reported where the word is parsed
        return
    yield from leaves({key: value}) if isinstance(value, dict) else [(key, _comparable(value))]


def _comparable(value: Any) -> Any:
    """A value that can be compared: Hydra's classes for quoted text and for sweeps compare by identity."""
    if isinstance(value, QuotedString):
        return value.text
    return str(value) if isinstance(value, Sweep | Glob) else value


@lru_cache(4096)
def parse(word: str) -> Override:
    """One override in Hydra's grammar, which takes some milliseconds to read it."""
    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except OverrideParseException as error:
        raise explain(error) from error
    except ValueError:  # Python's own limit on the digits of an integer
        raise UserError(f"{shortened(word)}: has a number with too many digits to be read; use a smaller one") from None
