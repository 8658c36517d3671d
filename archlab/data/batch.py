"""What every source of data yields, and what it promises. Read this file first.

tokens      ids of a sequence; its inputs are all but the last, its targets all but the first
targets     what is to be predicted at each input, where that is not the next token; the inputs are then all tokens
seq_len     tokens of input, so a sequence takes seq_len + 1, or seq_len where its targets are given
positions   the inputs' position numbers, where they are not the position scheme's own
prefix_len  how many input tokens the model is given: they may be attended to in both directions
scored      the targets that count in the loss
document_starts  where the inputs' documents start, of sequences that hold several
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from archlab.base.errors import UserError


class TooLong(UserError):
    """The data has no sequence of the length asked for; `longest` is the longest it has, in input tokens."""

    def __init__(self, message: str, longest: int):
        super().__init__(message)
        self.longest = longest


class Batch(NamedTuple):
    """Sequences side by side: int64 tokens, as a Source makes them on the CPU."""

    tokens: Int[Tensor, "batch seq_plus_1"] | Int[Tensor, "batch seq"]
    prefix_len: Int[Tensor, " batch"] | None
    """In input tokens; None where the data has no prefix."""

    scored: Bool[Tensor, "batch seq"]
    """Over targets. The target of the last prefix position is the first token after the prefix, so it counts."""

    targets: Int[Tensor, "batch seq"] | None = None
    """None: the next token. Where they are given, what counts is what the data scores, whatever the mask."""

    positions: Int[Tensor, "batch axes seq"] | None = None
    """None: the position scheme's default."""

    document_starts: Int[Tensor, "batch seq"] | None = None
    """By input, the index of the first token of its document in the sequence, 0 where that stands before the sequence.

    None: each sequence is one document. No target of another document than its input's is scored."""

    @property
    def inputs(self) -> Int[Tensor, "batch seq"]:
        return self.tokens[:, :-1] if self.targets is None else self.tokens

    @property
    def to_predict(self) -> Int[Tensor, "batch seq"]:
        return self.tokens[:, 1:] if self.targets is None else self.targets

    def rows(self, rows: slice) -> "Batch":
        """Some of the sequences."""
        return Batch._make(None if column is None else column[rows] for column in self)

    def to(self, device: torch.device) -> "Batch":
        """The same on a device. Nothing waits: while the device is at one step, the batch of the next is made and sent."""
        if device == self.tokens.device:
            return self
        sent = iter(in_one_copy([column for column in self if column is not None], device))
        return Batch._make(None if column is None else next(sent) for column in self)


def in_one_copy(columns: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Whole numbers and Bools on a device, sent together: on CUDA from page-locked memory, which nobody waits for."""
    sizes = [column.numel() for column in columns]
    flat = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=device.type == "cuda")
    for part, column in zip(flat.split(sizes), columns, strict=True):
        part.view(column.shape).copy_(column)
    parts = flat.to(device, non_blocking=True).split(sizes)
    return [part.view(column.shape).to(column.dtype) for part, column in zip(parts, columns, strict=True)]


def last_quarter(n: int) -> slice:
    """Of so many held-out tokens, those that settings are chosen by."""
    return slice(n - n // 4, None)


class Source(ABC):
    """Yields batches that depend on the arguments of the call and on nothing else: no state, no worker, no order."""

    name: str
    """What the user calls it: `data=name`."""

    vocab_size: int
    """Every id is below it."""

    sha256: str
    """Of the corpus; of a generated task, of the name and options that define it."""

    exact: bool
    """Whether there is one right answer, so that exact match means something."""

    marks_documents: bool = False
    """Whether it says of its sequences where documents start, with nothing asked for."""

    marks_prefix: bool = True
    """Whether its sequences have, or can be given, a part that the model is given."""

    same_targets: bool = True
    """Whether validation scores the same tokens at every length."""

    cuts_windows: bool = False
    """Whether a sequence begins anywhere in a longer text, so that its first token is like any other."""

    @abstractmethod
    def train(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        """The batch of one optimiser step."""

    @abstractmethod
    def validation(self, seq_len: int, n_tokens: int, batch_size: int, stride: int | None = None) -> Iterator[Batch]:
        """Held-out data, the same at every call: about `n_tokens` tokens of it, at least one sequence.

        The last batch may be smaller. With a `stride`, windows overlap and advance by that many tokens, and each
        target is still scored once; the last window may advance by less, to end where the last disjoint one would.
        """

    @property
    def n_before_tuning(self) -> int | None:
        """How many held-out tokens stand before those of `tuning`; None where these are other draws, or there are none."""
        return None

    def tuning(self) -> "Source":
        """The same with other held-out data, for choosing settings by: what is chosen on it is not scored on it.

        Of a text it is the last quarter of the held-out part, which an evaluation of few tokens does not reach; of a
        generated task, other draws. Raises UserError where a source has none.
        """
        raise UserError(f"eval.part=tuning: data={self.name} has no held-out part to choose settings by; use test")


class ChangedSource(Source):
    """The batches of another source, changed in one way; whatever it says of itself is what that one says."""

    def __init__(self, source: Source):
        self.source = source
        for said in Source.__annotations__:
            setattr(self, said, getattr(source, said))

    @property
    def n_before_tuning(self) -> int | None:
        return self.source.n_before_tuning
