"""A configuration as plain data."""

import pickle
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.base import Node


def plain_dict(cfg: DictConfig, resolve: bool = False) -> dict[str, Any]:
    """Dictionaries and lists, with references as they are written, or with what they refer to in their place."""
    if resolve and has_references(cfg):
        node = OmegaConf.to_container(cfg, resolve=True)
    else:
        node = as_written(cfg)
    assert isinstance(node, dict), f"a mapping was expected, not {node!r}"
    return {str(name): value for name, value in node.items()}


def as_written(node: Node) -> Any:
    """What OmegaConf.to_container gives, in a tenth of its time.

    It asks of every value whether it is a reference or missing, and a configuration is asked a dozen times on its way.
    """
    if isinstance(node, DictConfig) and isinstance(inside := node._content, dict):
        return {name: as_written(value) for name, value in inside.items()}
    if isinstance(node, ListConfig) and isinstance(items := node._content, list):
        return [as_written(value) for value in items]
    return node._value()  # also a whole mapping that is null, or a reference


def has_references(node: Node) -> bool:
    """Whether some value refers to another one, or is written as if it did."""
    if isinstance(node, DictConfig) and isinstance(inside := node._content, dict):
        return any(has_references(value) for value in inside.values())
    if isinstance(node, ListConfig) and isinstance(items := node._content, list):
        return any(has_references(value) for value in items)
    return isinstance(value := node._value(), str) and "${" in value


def copied(cfg: DictConfig) -> DictConfig:
    """A copy, in a fifth of the time that OmegaConf takes for its own."""
    copy: DictConfig = pickle.loads(pickle.dumps(cfg))
    return copy
