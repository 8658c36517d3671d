"""How an override is written: name=value, spellings that are older than today's, and rules for some of the layers.

`layers[3::4].pos=none` is a rule: a slice of the layers, as Python counts them, and what is another choice there. Hydra
has no brackets in a name, so on its way through Hydra the slice is spelt as a word: layers.at_3__4.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from archlab.base.errors import UserError

RENAMED = {"attn": "mixer"}
"""Groups that had another name, by that name."""

RULE = re.compile(r"layers\[([^\]]*)\]\.(.+)", re.DOTALL)
SPELT_RULE = re.compile(r"layers\.at_(\w+)\.(.+)", re.DOTALL)
SLICE = re.compile(r"-?\d+|(-?\d+)?:(-?\d+)?(:([1-9]\d*)?)?")

TURNS = "local_global"
"""What a rule for every so many layers was called when it was an option of mask and of pos."""


@dataclass(frozen=True)
class Override:
    """An override taken apart, as `+norm.eps=1e-6` into "+", "norm.eps" and "1e-6"."""

    prefix: str
    """Hydra's own marks: "+", "++", "~" or nothing."""

    key: str
    """The dotted name that is set."""

    value: str | None
    """None where there is no "=": the word sets nothing."""

    @property
    def head(self) -> str:
        """The first part of the name: a group, a section or a field."""
        return self.key.partition(".")[0]


def taken_apart(word: str) -> Override:
    """The only place that knows where a word is cut."""
    bare = word.lstrip("+~")
    key, equals, value = bare.partition("=")
    return Override(word[: len(word) - len(bare)], key, value if equals else None)


def key_of(word: str) -> str:
    """The dotted name that an override sets."""
    return taken_apart(word).key


def value_of(word: str) -> str:
    """What it is set to, as it is written; nothing where it sets nothing."""
    return taken_apart(word).value or ""


def sets(word: str, key: str) -> bool:
    """Whether a word gives this name a value."""
    override = taken_apart(word)
    return override.key == key and override.value is not None


def today(words: Sequence[str]) -> list[str]:
    """The same request in today's spelling. Raises UserError where an old one has none."""
    return list(turns_as_rules([renamed(plain(word)) for word in words]))


def renamed(word: str) -> str:
    """With today's name of its group, inside a rule too."""
    for old, new in RENAMED.items():
        word = re.sub(rf"^([+~]*(?:layers\[[^\]]*\]\.)?){old}(?=[.=]|$)", rf"\1{new}", word)
    return word


# ---------------------------------------------------------------- rules


def rule_of(key: str) -> tuple[str, str] | None:
    """The slice and the name within it of a rule's key; None where it is no rule. Raises UserError for no slice."""
    if not key.startswith("layers["):
        return None
    found = RULE.fullmatch(key)
    if found is None or not SLICE.fullmatch(found[1].replace(" ", "")):
        raise UserError(
            f"{key}: a rule names a slice of the layers and what is another choice there, as in layers[3::4].pos=none or"
            " layers[:3].ffn=gelu; layers count from 0"
        )
    return found[1].replace(" ", ""), found[2]


def spelt(word: str) -> str:
    """A rule in Hydra's spelling; a choice of an option goes apart from the option's fields."""
    override = taken_apart(word)
    rule = None if "~" in override.prefix else rule_of(override.key)
    if rule is None:
        return word
    at, inside = rule
    value = "" if override.value is None else f"={override.value}"
    inside = inside if "." in inside else f"choices.{inside}"
    return f"++layers.at_{at.replace(':', '_').replace('-', 'm')}.{inside}{value}"


def plain(word: str) -> str:
    """A rule that comes out of Hydra as it was typed; other words as they are."""
    found = SPELT_RULE.fullmatch(word.lstrip("+"))
    return word if found is None else f"layers[{slice_of(found[1])}].{found[2].removeprefix('choices.')}"


def slice_of(spelling: str) -> str:
    """3__4 is 3::4."""
    return spelling.removeprefix("at_").replace("_", ":").replace("m", "-")


def layers_in(at: str, n_layers: int) -> list[int]:
    """The layers that a slice, or one number, names among so many."""
    if ":" not in at:
        index = int(at) + (n_layers if int(at) < 0 else 0)
        return [index] if 0 <= index < n_layers else []
    return list(range(n_layers))[slice(*(int(part) if part else None for part in at.split(":")))]


# ---------------------------------------------------------------- layers by turns, as they were once asked for


def turns_as_rules(words: Sequence[str]) -> Iterator[str]:
    """mask=local_global and pos=local_global as the rules they stand for."""
    by_turns = [group for group in ("mask", "pos") if any(plainly(word) == f"{group}={TURNS}" for word in words)]
    for word in words:
        if TURNS in word and not any(plainly(word) == f"{group}={TURNS}" for group in by_turns):
            raise UserError(
                f"{word}: layers by turns are a rule, such as mask=window layers[1::2].mask=causal; sweep over the slice or"
                " over what stands there"
            )
        if not any(key_of(word).split(".")[0] == group for group in by_turns):
            yield word
    for group in by_turns:
        own = {key_of(word).partition(".")[2]: value_of(word) for word in words if key_of(word).split(".")[0] == group}
        yield from {"mask": mask_by_turns, "pos": position_by_turns}[group](own)


def plainly(word: str) -> str:
    return word.lstrip("+")


def global_layers(group: str, own: dict[str, str]) -> str:
    """The layers that are global: the last of each `every`, or the first of them."""
    every, first = own.pop("every", "2"), own.pop("first", "local")
    if not every.isdigit() or int(every) < 2:
        raise UserError(f"{group}.every={every}: should be a whole number, 2 or more")
    if first not in ("local", "global"):
        raise UserError(f"{group}.first={first}: should be 'local' or 'global'")
    return f"layers[{int(every) - 1 if first == 'local' else ''}::{every}]"


def mask_by_turns(own: dict[str, str]) -> Iterator[str]:
    at = global_layers("mask", own)
    own.pop("")
    yield from ("mask=window", *(f"mask.{name}={value}" for name, value in own.items()), f"{at}.mask=causal")


def position_by_turns(own: dict[str, str]) -> Iterator[str]:
    at = global_layers("pos", own)
    there = {"base": "1000000.0"}
    yield "pos=rope"
    for name, value in own.items():
        kind, _, option = name.partition(".")
        if kind == "local_layers" and option:
            yield f"pos.{option}={value}"
        elif kind == "global_layers" and option:
            there[option] = value
        elif name:
            raise UserError(f"pos.{name}={value}: write it as a rule, such as pos=rope {at}.pos=rope {at}.pos.base=1e6")
    yield from (f"{at}.pos=rope", *(f"{at}.pos.{option}={value}" for option, value in there.items()))
