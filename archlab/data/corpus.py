"""Windows of one long run of tokens."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np
import torch
from jaxtyping import Int, Integer, UInt8

from archlab.base.errors import UserError
from archlab.data.batch import Batch, Source, TooLong, last_quarter

DocumentStarts = Int[np.ndarray, " _"]
"""Where each document of a run of tokens starts, from 0 on; no document is empty."""


class Corpus(Source):
    """A training and a held-out part, both one-dimensional arrays of ids.

    Training windows start anywhere in the training part with equal probability. Validation windows stand one after
    another from the start of the held-out part, so that every seq_len which divides `n_tokens` scores the same tokens
    (where the held-out part has that many).

    With `prefix=[low, high]` each sequence draws its prefix_len uniformly from low * seq_len to high * seq_len tokens,
    and only what follows the prefix is scored; without it everything is. With `documents`, where those of the two parts
    start, each batch says where its inputs' documents do, and the first token of a document is no target.
    """

    exact = False
    cuts_windows = True

    def __init__(
        self,
        train_part: Integer[np.ndarray, " train_tokens"],
        valid_part: Integer[np.ndarray, " valid_tokens"],
        vocab_size: int,
        prefix: Sequence[float] | None,
        documents: tuple[DocumentStarts, DocumentStarts] | None = None,
    ):
        check_prefix(prefix)
        if prefix is not None and documents is not None:
            raise UserError(f"documents=true: prefix={list(prefix)} would run across documents; leave one of them out")
        self.train_part, self.valid_part = train_part, valid_part
        self.vocab_size, self.prefix = vocab_size, prefix
        self.train_documents: DocumentStarts | None = None if documents is None else documents[0]
        self.valid_documents: DocumentStarts | None = None if documents is None else documents[1]
        self.sha256 = hash_of(train_part, valid_part, *(documents or ()))

    def train(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        self._check_train_len(seq_len)
        rng = np.random.default_rng([seed, step])
        starts = rng.integers(0, len(self.train_part) - seq_len, batch_size)
        if self.prefix is None:
            return windows(self.train_part, starts, seq_len, np.ones_like(starts), None, self.train_documents)
        prefix_len = _draw_prefix(self.prefix, rng, batch_size, seq_len)
        return windows(self.train_part, starts, seq_len, prefix_len, prefix_len)

    def validation(self, seq_len: int, n_tokens: int, batch_size: int, stride: int | None = None) -> Iterator[Batch]:
        self._check_eval_len(seq_len)
        self._check_stride(stride, seq_len)
        return self._held_out_windows(seq_len, n_tokens, batch_size, stride or seq_len)

    @property
    def n_before_tuning(self) -> int:
        return last_quarter(len(self.valid_part)).start

    def tuning(self) -> "Corpus":
        other, part = copy(self), last_quarter(len(self.valid_part))
        other.valid_part = self.valid_part[part]
        if self.valid_documents is not None:
            other.valid_documents = split_documents(self.valid_documents, part.start)[1]
        return other

    def _held_out_windows(self, seq_len: int, n_tokens: int, batch_size: int, stride: int) -> Iterator[Batch]:
        n_windows = max(1, min(n_tokens, len(self.valid_part) - 1) // seq_len)
        starts, first_scored = sliding(seq_len, n_windows, stride)
        prefix_len = None
        if self.prefix is not None:
            prefix_len = first_scored = _draw_prefix(self.prefix, np.random.default_rng(seq_len), len(starts), seq_len)
        for rows in slices(len(starts), batch_size):
            given = None if prefix_len is None else prefix_len[rows]
            yield windows(self.valid_part, starts[rows], seq_len, first_scored[rows], given, self.valid_documents)

    def _check_train_len(self, seq_len: int) -> None:
        longest = max(len(self.train_part) - 1, 0)
        if seq_len > longest:
            remedy = (
                f"use a train_len of at most {longest} or a longer corpus" if longest >= 2 else "give a longer corpus"
            )
            raise TooLong(
                f"train.train_len={seq_len}: data={self.name} has {counted(self.train_part)} to train on and a "
                f"sequence takes {seq_len + 1}; {remedy}",
                longest,
            )

    def _check_eval_len(self, seq_len: int) -> None:
        longest = max(len(self.valid_part) - 1, 0)
        if seq_len > longest:
            remedy = f"use a length of at most {longest}, " if longest else "use "
            raise TooLong(
                f"eval.lengths: a length of {seq_len}: data={self.name} holds out {counted(self.valid_part)} and a "
                f"sequence takes {seq_len + 1}; {remedy}a larger data.valid_share or a longer corpus",
                longest,
            )

    def _check_stride(self, stride: int | None, seq_len: int) -> None:
        if stride is None:
            return
        if not 1 <= stride <= seq_len:
            raise UserError(
                f"eval.stride={stride}: windows of {seq_len} tokens would leave out targets; use 1 to {seq_len}"
            )
        if self.prefix is not None:
            raise UserError(
                f"eval.stride={stride}: sliding windows score every target and prefix={list(self.prefix)} only what "
                "follows a prefix; use eval.protocol=disjoint or prefix=null"
            )


def _draw_prefix(shares: Sequence[float], rng: np.random.Generator, n: int, seq_len: int) -> Int[np.ndarray, " batch"]:
    """Lengths from the first to the second of these shares of a sequence."""
    low, high = (min(max(round(share * seq_len), 1), max(seq_len - 1, 1)) for share in shares)
    return rng.integers(low, high, n, endpoint=True)


def counted(part: Integer[np.ndarray, " tokens"]) -> str:
    return "1 token" if len(part) == 1 else f"{len(part)} tokens"


def windows(
    part: Integer[np.ndarray, " tokens"],
    starts: Int[np.ndarray, " batch"],
    seq_len: int,
    first_scored: Int[np.ndarray, " batch"],
    prefix_len: Int[np.ndarray, " batch"] | None,
    documents: DocumentStarts | None = None,
) -> Batch:
    """Cuts windows; a target is scored where its place in the window, 1 to seq_len, is at least `first_scored`.

    With `documents`, it is also of the same document as its input.
    """
    place = np.arange(seq_len + 1)
    tokens = np.asarray(part[starts[:, None] + place], dtype=np.int64)
    scored = place[1:] >= first_scored[:, None]
    document_starts = None
    if documents is not None:
        of_token = documents[np.searchsorted(documents, starts[:, None] + place, side="right") - 1] - starts[:, None]
        in_window = np.maximum(of_token, 0)
        scored &= in_window[:, 1:] == in_window[:, :-1]
        document_starts = torch.from_numpy(np.ascontiguousarray(in_window[:, :-1]))
    return Batch(
        tokens=torch.from_numpy(tokens),
        prefix_len=None if prefix_len is None else torch.from_numpy(prefix_len),
        scored=torch.from_numpy(scored),
        document_starts=document_starts,
    )


def split_documents(documents: DocumentStarts, n_train: int) -> tuple[DocumentStarts, DocumentStarts]:
    """Where documents start in the first n_train tokens, and in those after them; one may be cut in two."""
    after = documents[documents > n_train] - n_train
    return documents[documents < n_train], np.insert(after, 0, 0)


def starts_after(lengths: Sequence[int] | Int[np.ndarray, " documents"]) -> DocumentStarts:
    """Where documents of these lengths start, one after the other; empty ones are left out."""
    lengths = np.asarray(lengths, dtype=np.int64)
    return (np.cumsum(lengths) - lengths)[lengths > 0]


def starts_behind(part: UInt8[np.ndarray, " bytes"], separator: bytes) -> DocumentStarts:
    """Where documents start that each end with one separator or more."""
    ends = (found.end() for found in re.finditer(b"(?:" + re.escape(separator) + b")+", part.data))
    return np.array([0, *(end for end in ends if end < len(part))], dtype=np.int64)


def sliding(seq_len: int, n_windows: int, stride: int) -> tuple[Int[np.ndarray, " batch"], Int[np.ndarray, " batch"]]:
    """Starts and first scored places of windows that cover the targets of `n_windows` disjoint ones.

    A window scores as many targets as it stands further than the one before; the last may advance by less.
    """
    last = (n_windows - 1) * seq_len
    starts = np.append(np.arange(0, last, stride), last)
    advance = np.diff(starts, prepend=-seq_len)
    return starts, seq_len - advance + 1


def where_windows_start(n_windows: int, seq_len: int, stride: int) -> Int[np.ndarray, " window"]:
    """The starts that `sliding` gave so many windows in all: the last one stands where a disjoint one would."""
    starts = stride * np.arange(n_windows)
    starts[-1] -= starts[-1] % seq_len
    return starts


def slices(n: int, size: int) -> Iterator[slice]:
    """Cuts n rows into runs of `size`, the last one shorter where it must be."""
    return (slice(start, start + size) for start in range(0, n, size))


def split(
    tokens: Integer[np.ndarray, " tokens"], valid_share: float
) -> tuple[Integer[np.ndarray, " train_tokens"], Integer[np.ndarray, " valid_tokens"]]:
    """The first part to train on, the last `valid_share` of the tokens held out."""
    if not 0 < valid_share < 1:
        raise UserError(
            f"data.valid_share={valid_share}: leaves one of the two parts empty; use a share between 0 and 1"
        )
    n_train = len(tokens) - int(len(tokens) * valid_share)
    return tokens[:n_train], tokens[n_train:]


def hash_of(*parts: Integer[np.ndarray, " _"]) -> str:
    """SHA-256 of the arrays' bytes, as of one file after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def check_prefix(prefix: Sequence[float] | None) -> None:
    """Raises UserError where a prefix is no range of shares of a sequence that leave some of it."""
    if prefix is not None and not (len(prefix) == 2 and 0 <= prefix[0] <= prefix[1] < 1):
        raise UserError(f"prefix={list(prefix)}: should be two shares [low,high] with 0 <= low <= high < 1")
