"""What a mixer does to its input, step by step, as a drawing needs it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DrawnStep:
    """One thing that is done; `reads` are the numbers of earlier steps, counted from 1, and 0 is the mixer's input.

    `kind` is one of norm, linear, activation, position, mask, scale, add, mul and op; `path` is the part's name in the
    mixer, where the step is one. A step of kind `part` is drawn as that part is: a norm, a projection, dropout.
    """

    kind: str
    label: str
    detail: str = ""
    path: str = ""
    reads: tuple[int, ...] = (0,)
