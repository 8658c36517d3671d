"""What a layer is made of, before it is built: makers of its blocks, which of them are alike, and what they take."""

import inspect
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from archlab.blocks.contracts import FeedForward, Mask, Mixer, Position, Residual


@dataclass(frozen=True)
class LayerParts:
    """What one layer is made of: makers of its blocks, and the sizes that may differ from layer to layer.

    Layers that are given equal makers of a position scheme or a mask share one instance of it.
    """

    mixer: Callable[..., Mixer]
    ffn: Callable[..., FeedForward]
    residual: Callable[..., Residual]
    pos: Callable[..., Position]
    mask: Callable[..., Mask]
    d_ff: int
    n_kv_heads: int


def made_once(
    base: Callable[..., Any], of_base: Any, makers: Sequence[Callable[..., Any]], sizes: Mapping[str, int]
) -> list[Any]:
    """A block for each maker; equal makers share one, and the base's is there already."""
    made = [(base, of_base)]
    for maker in makers:
        if not any(alike(maker, other) for other, _ in made):
            made.append((maker, maker(**sizes)))
    return [next(block for other, block in made if alike(maker, other)) for maker in makers]


def alike(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two makers make the same: one thing, or the same class with the same options."""
    if isinstance(one, partial) and isinstance(other, partial):
        return one.func is other.func and one.args == other.args and one.keywords == other.keywords
    return one is other


def kinds_of(parts: Sequence[LayerParts]) -> list[int]:
    """A number for each layer, the same for layers that are built alike; counted from 0 in order of appearance."""
    firsts: list[LayerParts] = []
    kinds = []
    for part in parts:
        if not any(built_alike(part, first) for first in firsts):
            firsts.append(part)
        kinds.append(next(kind for kind, first in enumerate(firsts) if built_alike(part, first)))
    return kinds


def numbered(things: Sequence[Hashable]) -> list[int]:
    """A number for each, the same for equal ones; counted from 0 in order of appearance."""
    places = {thing: number for number, thing in enumerate(dict.fromkeys(things))}
    return [places[thing] for thing in things]


def built_alike(one: LayerParts, other: LayerParts) -> bool:
    """Whether two layers have equal makers of all blocks, and equal sizes."""
    makers = ("mixer", "ffn", "residual", "pos", "mask")
    sizes = (one.d_ff, one.n_kv_heads) == (other.d_ff, other.n_kv_heads)
    return one is other or (sizes and all(alike(getattr(one, name), getattr(other, name)) for name in makers))


@lru_cache(maxsize=256)
def parameters_of(maker: Callable[..., Any]) -> Collection[str]:
    """The names of what a block's constructor, or another function, takes."""
    return inspect.signature(maker).parameters


def class_of(maker: Callable[..., Any]) -> Any:
    """The class that a maker makes."""
    return getattr(maker, "func", maker)


def name_of(maker: Callable[..., Any]) -> str:
    """The same, by name."""
    return class_of(maker).__name__


def branches_beside(ffn: FeedForward | type[FeedForward]) -> int:
    """How many branches a layer with this network has."""
    return 2 if ffn.acts else 1
