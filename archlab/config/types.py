"""Whether each option of a configuration is of its type and in its range; every error is one line."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Annotated, Any, get_type_hints

from annotated_types import Interval, MinLen
from omegaconf import DictConfig
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError, shortened
from archlab.base.quantities import Count, Depth, Fraction, Literal, Natural, Positive, Probability, Width
from archlab.blocks.contracts import FeedForward, Head, Mask, Mixer, Norm, Position, Residual
from archlab.config.groups import BLOCKS, OF_TRAINING, locate
from archlab.cost.settings import MemorySettings
from archlab.data.batch import Source
from archlab.evaluate.settings import EvalSettings
from archlab.initial.settings import PreflightSettings
from archlab.model.init import Init
from archlab.train.average import Average
from archlab.train.optimizer import UpdateRule
from archlab.train.options import LossOptions, TrainOptions
from archlab.train.schedules import Schedule

KINDS: dict[str, type] = {
    "norm": Norm, "residual": Residual, "ffn": FeedForward, "pos": Position, "mask": Mask, "mixer": Mixer, "head": Head, "init": Init, "data": Source,
    "optimizer": UpdateRule, "schedule": Schedule, "average": Average,
}  # fmt: skip


@dataclass(frozen=True)
class TopLevel:
    """The options that belong to no section."""

    seed: Natural
    data_seed: Natural | None
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"]
    kernel: Literal["auto", "dense", "sdpa", "flex", "chunked", "fla"]
    compile: Literal["auto", "on", "off"]
    dropout: Probability
    prefix: list[Fraction] | None
    documents: bool
    sink_token: Natural | None
    random_positions: Count | None
    allow_leak: bool
    canon: str | None
    skips: Literal["unet"] | None
    budget: Literal["chinchilla"] | None
    match: Literal["params", "flops"] | None
    tune: Literal["lr"] | dict[str, Any] | None
    output: Annotated[str, MinLen(1)]
    loggers: list[Literal["wandb", "trackio"]]


@dataclass(frozen=True)
class Size:
    d_model: Width
    n_layers: Depth
    n_heads: Width
    n_kv_heads: Width | None
    head_dim: Width | None
    d_ff: Count | Literal["matched"]
    vocab_size: Annotated[int, Interval(ge=2, lt=2**31)]


@dataclass(frozen=True)
class Embed:
    tied: bool
    norm: bool
    scale: Literal["none", "sqrt_d_model"] | Positive
    width: Width | None
    types: Count | None


@dataclass(frozen=True)
class Loop:
    times: Depth | None
    layers: str | int | None


@dataclass(frozen=True)
class SeveralTokens:
    form: Literal["independent", "chained"] | None
    tokens: Annotated[int, Interval(ge=2, le=64)]
    weight: Positive | None


@dataclass(frozen=True)
class Probe:
    every: Count | None


SECTIONS = {
    "": TopLevel,
    "size": Size,
    "embed": Embed,
    "loop": Loop,
    "mtp": SeveralTokens,
    "train": TrainOptions,
    "loss": LossOptions,
    "probe": Probe,
    "eval": EvalSettings,
    "memory": MemorySettings,
    "preflight": PreflightSettings,
}


def check_types(cfg: DictConfig) -> None:
    """Raises UserError at the first option whose value is not of its type or out of its range."""
    plain = plain_dict(cfg, resolve=True)
    for section, kind in SECTIONS.items():
        check_fields(section, plain[section] if section else plain, {f.name: f.type for f in fields(kind)})
    for group in (*BLOCKS, "init", "data", *OF_TRAINING):
        check_block(group, plain[group])


def check_block(group: str, node: Any) -> None:
    """Checks a block's class against its kind, and its options against the class's constructor."""
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise UserError(
            f"{group}: the yaml of an option needs a _target_, the class to make, such as _target_: mine.Mine"
        )
    if group in BLOCKS and node.get("_partial_") is not True:
        raise UserError(
            f"{group}._partial_: should be true, since every layer makes a block of its own; add _partial_: true"
        )
    kind, block = KINDS[group], locate(group, node["_target_"])
    if not (inspect.isclass(block) and issubclass(block, kind)):
        raise UserError(
            f"{group}._target_={node['_target_']}: is not a {kind.__name__}; derive it from {kind.__module__}.{kind.__name__}"
        )
    check_options(group, node, block)


def check_options(path: str, node: Mapping[str, Any], block: Callable[..., Any]) -> None:
    """Checks options against the class's constructor, and those of blocks within it against theirs."""
    try:
        takes, hints = constructor(block)
    except NameError as error:  # in a type written as text, as with names imported for a type checker alone
        raise UserError(
            f"{path}: {block.__name__} says of an option's type what is not there when it runs: {error}; import it where the"
            " module runs, not under TYPE_CHECKING"
        ) from None
    for name in node:
        if name not in takes and not name.startswith("_"):
            raise UserError(f"{path}.{name}: {block.__name__} takes no such option; it takes {', '.join(takes)}")
    check_fields(path, node, {name: hint for name, hint in hints.items() if name in node})
    for name, value in node.items():
        if isinstance(value, dict) and inspect.isclass(inner := locate(f"{path}.{name}", value.get("_target_", ""))):
            check_options(f"{path}.{name}", value, inner)


@lru_cache(1024)
def constructor(block: Callable[..., Any]) -> tuple[Mapping[str, inspect.Parameter], Mapping[str, Any]]:
    """What a class takes, and of which types."""
    return inspect.signature(block).parameters, get_type_hints(block.__init__, include_extras=True)


def check_fields(path: str, given: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    for name, hint in hints.items():
        value = given[name]
        if isinstance(value, dict) and "_target_" in value:
            continue
        try:
            validator(hint).validate_python(value, strict=True)
        except PydanticUserError:
            continue  # the type of an object such as a tensor, which no configuration file can hold
        except ValidationError as error:
            where, shown = f"{path}.{name}" if path else name, "null" if value is None else shortened(str(value))
            raise UserError(f"{where}={shown}: {wanted(value, error)}") from None


def validator(hint: Any) -> TypeAdapter[Any]:
    """Made once for each hint, since to make it takes longer than all else that is asked of an option."""
    try:
        return _validator(hint)
    except TypeError:  # a hint that has no hash, as one with a list among its annotations
        return TypeAdapter(hint)


_validator = lru_cache(1024)(TypeAdapter)


def wanted(value: Any, error: ValidationError) -> str:
    """What a value should have been; a NaN or an infinity should be finite, whatever its bounds."""
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        return "should be a finite number"
    if value == [] and all(e["type"] == "too_short" for e in error.errors()):
        return "should have at least one item"
    found = {
        e["msg"].removeprefix("Input ").removeprefix("String ").lower()
        for e in error.errors()
        if e["type"] != "none_required"
    }
    told = " or ".join(sorted(found))
    if isinstance(value, str) and is_number(value):  # as in quotes, or what ${oc.env:...} stands for
        told += ", and this is a text"
    return told


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
