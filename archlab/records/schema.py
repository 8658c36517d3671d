"""What the files of a run must hold: types and ranges of the fields that are read; other fields are not checked.

A field that older runs lack may be missing; if present, it must be valid. `archlab.records.summary`
has the fields of summary.json.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval
from pydantic import BaseModel, ConfigDict, Strict, TypeAdapter, ValidationError

from archlab.base.plain import Unreadable, within
from archlab.base.quantities import Count, Natural
from archlab.records.summary import BOUND, Amount, Number, Summary


class Fields(BaseModel):
    """Fields of these types; others may stand beside them."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


# ---------------------------------------------------------------- config.yaml


class Train(Fields):
    steps: Natural = 0
    batch_size: Count = 1
    train_len: Count = 1
    tokens: Natural | None = None
    lr: Annotated[float, Gt(0), Interval(le=BOUND)] = 1.0
    warmup: Natural | None = None


class SizeSection(Fields):
    vocab_size: Annotated[int, Ge(2)] = 2
    n_layers: Count = 1


class Evaluation(Fields):
    protocol: str = ""
    lengths: list[Number] = []
    stride: Number | None = None
    tokens: Number = 0


class ConfigFile(Fields):
    """A run's configuration, as far as runs are compared by it."""

    seed: Natural
    train: Train
    size: SizeSection
    eval: Evaluation = Evaluation()
    prefix: list[Number] | None = None
    choices: dict[str, str] = {}
    budget: str | None = None


# ---------------------------------------------------------------- metrics.jsonl and positions.json


class Logged(Fields):
    """A line of metrics.jsonl."""

    step: Natural
    tokens: Natural
    loss: Number | None = None
    tokens_per_second: Amount | None = None
    layers: list[dict[str, Number | None]] | None = None


class StepLine(Fields):
    """A line of steps.jsonl."""

    step: Natural
    loss: Number | None
    grad_norm: Number | None


class PositionsFile(Fields):
    """Held-out loss by position, and by window in the order of the text, at one length."""

    eval_len: Count
    position: list[Natural]
    loss: list[Number | None]
    windows: list[Number | None] = []


NAME = re.compile(r"[\w:][\w:./-]*")
OVERRIDE = re.compile(r"[+~]*(?!hydra[./])[A-Za-z_][\w./@-]*(\[[-:\d]*\][\w./@-]*)?(=.*)?", re.DOTALL)


def check_config(content: object, needs: Iterable[str]) -> Mapping[str, Any]:
    """Raises Unreadable; `needs` are the dotted names of fields that sections must have."""
    config = checked(ConfigFile, content)
    for name in needs:
        section, field = name.split(".")
        if field not in config.get(section, {}):
            raise Unreadable(f"{name} is missing")
    for _, part in within(config):
        if isinstance(part, dict) and not all(map(NAME.fullmatch, part)):
            raise Unreadable("it holds an option with an invalid name")
    return config


def check_summary(content: object) -> Mapping[str, Any]:
    """Raises Unreadable."""
    if isinstance(content, dict) and (missing := {"status", "val_loss", "corpus_sha256"} - set(content)):
        raise Unreadable(f"lacks {', '.join(sorted(missing))}")
    summary = checked(Summary, content)
    for _, part in within(summary):
        if not measured(part):
            raise Unreadable(no_measurement(part))
    return summary


def check_metrics(content: object) -> list[Any]:
    """Raises Unreadable."""
    return checked(list[Logged], content)


def check_steps(content: object) -> list[Any]:
    """Raises Unreadable."""
    return checked(list[StepLine], content)


def check_positions(content: object) -> list[Any]:
    """Raises Unreadable."""
    curves = checked(list[PositionsFile], content)
    if any(len(curve["position"]) != len(curve["loss"]) for curve in curves):
        raise Unreadable("a curve has more positions than losses, or fewer")
    return curves


def check_overrides(content: object) -> list[str]:
    """Raises Unreadable; an override is a name and a value, and does not set one of Hydra's own options."""
    words = checked(list[Annotated[str, Strict()]], [] if content is None else content)
    if wrong := [word for word in words if not OVERRIDE.fullmatch(word)]:
        raise Unreadable(f"{wrong[0][:60]!r} is not an override")
    return words


def measured(value: object) -> bool:
    """False of a number that no measurement comes to."""
    return not isinstance(value, int | float) or -BOUND <= value <= BOUND


def no_measurement(value: float) -> str:
    """Why it is refused, in the words of JSON."""
    if math.isfinite(value):
        return f"holds {value:g}, which is not a measurement"
    return f"holds {json.dumps(value)}, which is no number; archlab writes null where there is none"


def checked(kind: Any, content: Any) -> Any:
    """The content, if it is of this kind. Raises Unreadable, with the first field that is not."""
    try:
        # As JSON, from which even a strict dataclass may be read as an object of its fields.
        TypeAdapter(kind).validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        if kind in (list[Logged], list[StepLine]):  # whose items are lines
            where = re.sub(r"^(\d+)\.?", lambda number: f"line {int(number[1]) + 1}: ", where).rstrip(": ")
        if not measured(first["input"]):
            raise Unreadable(f"{where}: {no_measurement(first['input'])}") from None
        raise Unreadable(f"{where}: {first['msg'].removeprefix('Input ').lower()}") from None
    return content
