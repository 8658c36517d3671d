"""Mappings within mappings, as configurations are."""

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What is no mapping, by dotted names."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def options_alone(node: Any) -> Any:
    """The same without the keys that name classes and say how they are made, all of which begin with an underscore.

    A run's file says which options were chosen and what they were set to; what class an option stands for is said in
    conf/, or in the folder of the user's own, and nowhere else.
    """
    if isinstance(node, Mapping):
        return {name: options_alone(value) for name, value in node.items() if not str(name).startswith("_")}
    if isinstance(node, list):
        return [options_alone(item) for item in node]
    return node
