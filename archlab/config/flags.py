"""The flags of the command line, and how they are distinguished from the other words."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from archlab.base.errors import UserError
from archlab.base.messages import did_you_mean


@dataclass(frozen=True)
class Flag:
    """One of Hydra's flags. `values` is None for a switch and empty where any value will do."""

    name: str
    short: str
    help: str
    values: tuple[str, ...] | None = None
    default: str | None = None
    what: str = "FOLDER"
    """What a value is where any will do."""

    @property
    def usage(self) -> str:
        names = ", ".join(filter(None, (self.short, self.name)))
        if self.values is None:
            return names
        return f"{names} {'[WHAT]' if self.default else '|'.join(self.values) or self.what}"


FLAGS = (
    Flag("--help", "-h", "this page"),
    Flag("--version", "-V", "archlab's version"),
    Flag("--multirun", "-m", "one run for every combination of the comma-separated values"),
    Flag("--cfg", "-c", "print the configuration instead of running", ("job", "hydra", "all")),
    Flag("--resolve", "", "with --cfg: references replaced by their values"),
    Flag("--info", "-i", "print how the configuration came about",
         ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"), "all"),
    Flag("--config-dir", "-cd", "a folder with options of your own, as in my/norm/mine.yaml", ()),
    Flag("--ladder", "", "with diff: one change at a time, from the first model to the second"),
    Flag("--vs", "", "with bench: a second architecture's overrides, timed in turns with the first", (), what="OVERRIDES"),
    Flag("--shell-completion", "-sc", 'completion: eval "$(archlab -sc install=bash)"'),
    Flag("--hydra-help", "", "Hydra's own help"),
)  # fmt: skip


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags, in their long form and with their values, and the other words; both may come in any order."""
    flags, words, queue = [], [], deque(arguments)
    given: dict[str, str] = {}
    for place, word in enumerate(arguments, 1):
        if not word.strip():  # of which no refusal could show what it is about
            raise UserError(f"argument {place}: is empty; write what it is to be, or leave it out")
    while queue:
        word = queue.popleft()
        if not word.startswith("-"):
            words.append(word)
            continue
        name, equals, attached = word.partition("=")
        flag = _flag(name)
        if flag.values is not None:
            value = _value(flag, attached if equals else None, queue)
            if flag.name in given and given[flag.name] != value:
                raise UserError(
                    f"{flag.name} {given[flag.name]} {flag.name} {value}: one at a time; keep one of the two"
                )
            given[flag.name] = value
            flags += [flag.name, value]
        elif attached:
            raise UserError(f"{word}: {flag.name} takes no value")
        else:
            flags.append(flag.name)
    return flags, words


def _flag(name: str) -> Flag:
    for flag in FLAGS:
        if name in (flag.name, flag.short):
            return flag
    names = [flag.name for flag in FLAGS]
    raise UserError(f"{name}: no such flag; {did_you_mean(name, names)}flags: {', '.join(names)}")


def _value(flag: Flag, attached: str | None, queue: deque[str]) -> str:
    follows = queue[0] if attached is None and queue and not queue[0].startswith("-") else ""
    if attached is None and flag.default is not None and follows not in (flag.values or ()):
        return flag.default
    value = attached or (queue.popleft() if follows else "")
    if not value:
        raise UserError(f"{flag.name}: a value is missing; write {flag.usage}")
    if flag.values and value not in flag.values:
        hint = did_you_mean(value, flag.values)
        raise UserError(f"{flag.name} {value}: no such choice; {hint}choices: {', '.join(flag.values)}")
    return value
