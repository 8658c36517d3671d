"""A corpus that another machine may not have, as part of the name under which claims and searches keep what was run on it."""

import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from archlab.base.nested import leaves
from archlab.config.assemble import in_the_users_words

OURS = "archlab.data."
OF_THE_MACHINE = frozenset({"archlab.data.text.StandardLibrary"})
"""Ours, and yet another text where Python is of another version."""

Stamp = tuple[str, int, int]
"""A file with its size and the time of its last change, in nanoseconds."""


def own_corpus(cfg: DictConfig) -> dict[str, str]:
    """`corpus_sha256`, as runs record it, where the data is a file, a class of one's own or of this machine's Python.

    Nothing of data that archlab brings along or makes, which is the same everywhere.

    It is hashed once, and again only when one of its files has changed.
    """
    target = cfg.data._target_
    if target.startswith(OURS) and target not in OF_THE_MACHINE and cfg.data.get("path") is None:
        return {}
    data = OmegaConf.to_container(cfg.data, resolve=True)
    assert isinstance(data, dict)
    return {"corpus_sha256": hashed(json.dumps(data), tuple(stamps(data)))}


@cache
def hashed(data: str, files: tuple[Stamp, ...]) -> str:
    """Raises UserError where there is no such corpus."""
    with in_the_users_words():
        return str(instantiate(json.loads(data)).sha256)


def stamps(data: Mapping[Any, Any]) -> Iterator[Stamp]:
    """Of the files that its options name, and of those in the folders that they name."""
    for _, value in leaves(data):
        named = os.path.expanduser(value) if isinstance(value, str) else ""
        for file in sorted(Path(named).rglob("*")) if named and os.path.isdir(named) else [named]:
            if os.path.isfile(file):
                found = os.stat(file)
                yield str(file), found.st_size, found.st_mtime_ns
