"""Files that a stranger may have written, read as plain data: texts, numbers, lists and mappings of them.

Nothing in such a file is a name of code, a reference or a pointer to another part of it, and how much of it is read is
bounded, so that no file keeps the reader busy.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from archlab.base.errors import UNPRINTABLE

SETTINGS, RECORD, SERIES = 2**16, 2**24, 2**30
"""Bytes read at most of a file of settings, of a record, and of one that holds a number or more for every step."""

DEEPEST = 32
"""Lists and mappings within each other. A run's configuration has four."""

LARGEST = 2**64
"""Of whole numbers. A seed goes up to 2**63."""


class Unreadable(Exception):
    """Why a file cannot be read, in half a sentence; whoever asked for it knows what the file was for."""


def read_yaml(file: Path, limit: int = SETTINGS) -> Any:
    """Raises Unreadable."""
    try:
        value = yaml.load(text_of(file, limit), PlainLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise Unreadable(shortened(error)) from None
    return plain(value)


def read_json(file: Path, limit: int = RECORD) -> Any:
    """Raises Unreadable."""
    return parsed(text_of(file, limit))


def read_lines(file: Path, limit: int = SERIES) -> list[Any]:
    """One value for each line; a last line that was cut off in the middle is left out. Raises Unreadable, with the line."""
    lines = text_of(file, limit).splitlines(keepends=True)
    return [at_line(number, line) for number, line in enumerate(lines, 1) if line.endswith("\n")]


def read_whole_lines(file: Path, limit: int = SERIES) -> list[Any]:
    """The same of a file that nobody writes to any more, whose last line is whole too. Raises Unreadable, with the line."""
    lines = text_of(file, limit).splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        raise Unreadable(f"line {len(lines)}: is cut off")
    return read_lines(file, limit)


def at_line(number: int, line: str) -> Any:
    try:
        return parsed(line)
    except Unreadable as error:
        raise Unreadable(f"line {number}: {error}") from None


def parsed(text: str) -> Any:
    try:
        return plain(json.loads(text))
    except RecursionError:
        raise Unreadable(f"lists and mappings lie more than {DEEPEST} deep in each other") from None
    except ValueError as error:
        raise Unreadable(shortened(error)) from None


def text_of(file: Path, limit: int) -> str:
    try:
        if not file.is_file():
            raise Unreadable("there is no such file")
        with file.open("rb") as opened:
            content = opened.read(limit + 1)
    except OSError as error:
        raise Unreadable(error.strerror or "it cannot be opened") from None
    if len(content) > limit:
        raise Unreadable(f"it is larger than {limit:,} bytes, and none that archlab writes is")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable("it is no text in UTF-8") from None


def shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def plain(value: Any) -> Any:
    """The value itself, where it is nothing but plain data of a sensible depth and size. Raises Unreadable."""
    for depth, part in within(value):
        if depth > DEEPEST:
            raise Unreadable(f"lists and mappings lie more than {DEEPEST} deep in each other")
        if isinstance(part, str) and UNPRINTABLE.search(part):
            raise Unreadable("it holds a control character")
        if isinstance(part, int) and abs(part) > LARGEST:
            raise Unreadable("it holds a whole number of more than 64 bits")
        if isinstance(part, dict) and not all(isinstance(key, str) for key in part):
            raise Unreadable("it holds a key that is no text")
    return value


def within(value: Any) -> Iterator[tuple[int, Any]]:
    """The value and all that is in it, keys included, each with its depth."""
    waiting = [(0, value)]
    while waiting:
        depth, part = waiting.pop()
        yield depth, part
        if isinstance(part, dict):
            waiting += [(depth + 1, inner) for pair in part.items() for inner in pair]
        elif isinstance(part, list):
            waiting += [(depth + 1, inner) for inner in part]


class PlainLoader(yaml.SafeLoader):
    """YAML without tags, anchors, aliases, merging and dates; 1e-5 is a number, and no key stands twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "anchor", None):
            raise Unreadable(f"it holds an anchor or an alias, {event.anchor}, and a file of plain data has none")
        if getattr(event, "tag", None):
            raise Unreadable(f"it holds a tag, {event.tag}, and a file of plain data has none")
        if self.depth > DEEPEST:
            raise Unreadable(f"lists and mappings lie more than {DEEPEST} deep in each other")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise Unreadable("a key stands twice in one of its mappings")
        return mapping


DATE, MERGE, VALUE, FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "merge", "value", "float"))
PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in patterns if tag not in (DATE, MERGE, VALUE)]
    for first, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
PlainLoader.add_implicit_resolver(FLOAT, re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
