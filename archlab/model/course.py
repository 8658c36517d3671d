"""In which order a decoder applies its layers: one after the other, or some of them several times, with the same weights.

A looped layer is one layer: its weights are counted, saved and updated once, and their gradient is the sum over all of its
applications. Whatever is of an application and not of a weight is counted for each: operations, what is kept for the
backward pass, what decoding caches, and what is recorded in a layer.

N, the number of layers by which residual schemes and inits scale, counts a layer as often as it is applied, since that is
how often the stream is added to. What goes by a layer's own number has the place of its first application; schemes whose
norms go by it (Residual's `layer`) are refused in a loop, where a layer has several places.

Source: arXiv:2502.17416, fig. 1: k layers looped L times, and looping the middle ones alone. Universal Transformers
(arXiv:1807.03819) also add an embedding of the application's number to the stream, and stop by token; these do neither.
"""

from collections.abc import Sequence
from typing import NamedTuple

from archlab.base.errors import UserError
from archlab.base.words import SLICE, layers_in

MOST = 1000
"""Applications of all layers, as many as `size.n_layers` may have."""


class Application(NamedTuple):
    """A layer, counted from 0, and how often it was applied before."""

    layer: int
    visit: int


Course = tuple[Application, ...]
"""The applications in their order. A place is an index in it."""


def course_of(n_layers: int, times: int | None = None, looped: str | int | None = None) -> Course:
    """All layers in order; consecutive ones, by default all, `times` times over.

    `looped` is a slice of the layers, or one layer's number. Raises UserError where that is no loop.
    """
    before, inside, after = parts_of(n_layers, times, looped)
    turns = [Application(layer, visit) for visit in range(times or 1) for layer in inside]
    course = (*(Application(layer, 0) for layer in before), *turns, *(Application(layer, 0) for layer in after))
    if len(course) > MOST and times:
        raise UserError(
            f"loop.times={times}: makes {len(course)} layers, each counted as often as it is applied; use at most {MOST}"
        )
    return course


def parts_of(n_layers: int, times: int | None, looped: str | int | None) -> tuple[range, range, range]:
    """The layers before a loop, in it and after it; all are in it where there is none."""
    if times == 1:
        raise UserError(
            "loop.times=1: applies the layers once, as they are without it; use 2 or more, or loop.times=null"
        )
    if looped is None:
        return range(0), range(n_layers), range(n_layers, n_layers)
    given = f"loop.layers={looped}"
    if times is None:
        raise UserError(
            f"{given}: changes nothing without loop.times; set how often these layers are applied, as loop.times=2"
        )
    at = str(looped).replace(" ", "")
    if not SLICE.fullmatch(at):
        raise UserError(
            f"{given}: should be a slice of the layers, such as 1:3, or one layer's number; layers count from 0"
        )
    inside = layers_in(at, n_layers)
    if not inside:
        raise UserError(
            f"{given}: matches none of the size.n_layers={n_layers} layers, counted from 0; use another slice"
        )
    first, last = inside[0], inside[-1]
    if inside != list(range(first, last + 1)):
        raise UserError(
            f"{given}: layers {', '.join(map(str, inside))} do not follow each other; use a slice without a step"
        )
    if len(inside) == n_layers:
        raise UserError(
            f"{given}: are all layers, which are looped without it as well; leave it out, or use a smaller slice"
        )
    return range(first), range(first, last + 1), range(last + 1, n_layers)


def first_places(course: Course) -> list[int]:
    """By layer, the place of its first application."""
    return [place for place, application in enumerate(course) if application.visit == 0]


def looped_layers(course: Course) -> Sequence[int]:
    """The layers that are applied more than once."""
    return [layer for layer, visit in course if visit == 1]


def times_of(course: Course) -> int:
    """How often the looped layers are applied; 1 where there are none."""
    return 1 + max(visit for _, visit in course)
