"""What of archlab's code decides a run's numbers: part of the name under which claims and searches keep what was run."""

import ast
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).parent.parent

ALWAYS = ("base", "data", "evaluate", "initial", "model", "probe", "train")
"""Rooms that every run goes through; of the blocks, those that its configuration names count, and what they import."""

IMPORTED = re.compile(r"^\s*(?:from|import)\s+(archlab(?:\.\w+)+)", re.MULTILINE)


def code_of(config: Mapping[str, Any]) -> str:
    """A hash of the code that a configuration's numbers depend on, and of torch's version.

    Comments, docstrings and layout are no part of it. A block of one's own counts with the file it stands in.
    """
    return hash_of(frozenset(target.rpartition(".")[0] for target in targets(config)))


@cache
def hash_of(modules: frozenset[str]) -> str:
    return hash_of_files(reachable(modules))


@cache
def code_at(*places: str) -> str:
    """The same of the files and the rooms at these places of archlab."""
    of_rooms = (file for place in places for file in (PACKAGE / place).rglob("*.py"))
    return hash_of_files([*of_rooms, *(PACKAGE / place for place in places if place.endswith(".py"))])


def hash_of_files(files: Iterable[Path]) -> str:
    text = "\n".join([torch.__version__, *(bare(file) for file in in_order(files))])
    return hashlib.sha256(text.encode()).hexdigest()


def in_order(files: Iterable[Path]) -> list[Path]:
    """The same order wherever archlab lies: libraries first, whose folder may come before archlab's own or after it."""
    return sorted(files, key=lambda file: (file.is_relative_to(PACKAGE), file))


def targets(node: object) -> Iterable[str]:
    """Every class that a configuration names."""
    if isinstance(node, Mapping):
        if isinstance(target := node.get("_target_"), str):
            yield target
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from targets(value)


@cache
def reachable(modules: frozenset[str]) -> frozenset[Path]:
    """The files of these modules, of the rooms that every run goes through, and of the blocks that either import."""
    found = set(always())
    waiting = [file for file in (file_of(module) for module in modules) if file is not None]
    waiting += [file for known in found for file in blocks_in(known)]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += blocks_in(file)
    return frozenset(found)


@cache
def always() -> frozenset[Path]:
    return frozenset(file for room in ALWAYS for file in (PACKAGE / room).rglob("*.py"))


@cache
def blocks_in(file: Path) -> tuple[Path, ...]:
    modules = {
        name for name in IMPORTED.findall(file.read_text(encoding="utf-8")) if name.startswith("archlab.blocks.")
    }
    return tuple(found for module in sorted(modules) if (found := file_of(module)) is not None)


@cache
def file_of(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@cache
def bare(file: Path) -> str:
    """The code alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not is_text(line)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
