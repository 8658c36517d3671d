"""The text that an objective of its own is taken over: the one that comes along, or a file of the user's."""

import numpy as np
from jaxtyping import UInt8

from archlab.base.errors import UserError
from archlab.data.batch import Source, TooLong
from archlab.data.corpus import counted, split
from archlab.data.text import Text, mapped


def given_text(path: str | None, valid_share: float) -> tuple[UInt8[np.ndarray, " train"], UInt8[np.ndarray, " valid"]]:
    """The bytes to train on and those held out. Raises UserError."""
    if path is not None:
        return split(mapped(path), valid_share)
    text = Text(valid_share)
    return text.train_part, text.valid_part


def check_length(source: Source, asked: str, seq_len: int, part: UInt8[np.ndarray, " tokens"]) -> None:
    """Raises TooLong where a part of the text is shorter than a sequence."""
    if seq_len > len(part):
        remedy = (
            "use at most that, or a longer text"
            if len(part) >= 2
            else "give a longer text, or another data.valid_share"
        )
        raise TooLong(f"{asked}={seq_len}: data={source.name} has {counted(part)} there; {remedy}", len(part))


def drawn(rng: np.random.Generator, part: UInt8[np.ndarray, " tokens"], seq_len: int, n: int) -> np.ndarray:
    """Where n windows start: anywhere, with equal probability."""
    return rng.integers(0, len(part) - seq_len, n, endpoint=True)


def one_after_another(part: UInt8[np.ndarray, " tokens"], seq_len: int, n_tokens: int) -> np.ndarray:
    """Where the windows of about n_tokens start, at least one."""
    return seq_len * np.arange(max(1, min(n_tokens, len(part)) // seq_len))


def check_disjoint(source: Source, seq_len: int, stride: int | None) -> None:
    """Refuses windows that overlap, since what is hidden in one is hidden window by window."""
    if stride not in (None, seq_len):
        raise UserError(
            f"eval.stride={stride}: data={source.name} changes each window by itself; use eval.protocol=disjoint"
        )


def as_bytes(*options: float) -> UInt8[np.ndarray, " bytes"]:
    """Options, to be hashed with the text they are options over."""
    return np.frombuffer(repr(options).encode(), np.uint8)
