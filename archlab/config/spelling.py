"""A value as an override spells it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any


def spelled(value: Any) -> str:
    """A value as Hydra reads it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{spelled(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_./@-]+", value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)
