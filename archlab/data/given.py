"""The text that an objective of its own is taken over: the one that comes along, or a file of the user's."""

import numpy as np
from jaxtyping import UInt8

from archlab.data.batch import Source, TooLong
from archlab.data.corpus import split
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
        raise TooLong(
            f"{asked}={seq_len}: data={source.name} has {len(part)} tokens there; use at most that, or a longer text",
            len(part),
        )


def as_bytes(*options: float) -> UInt8[np.ndarray, " bytes"]:
    """Options, to be hashed with the text they are options over."""
    return np.frombuffer(repr(options).encode(), np.uint8)
