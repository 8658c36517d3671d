"""BERT's objective: some tokens of a text are masked, and these are to be predicted."""

from collections.abc import Iterator
from copy import copy
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped

from archlab.base.errors import UserError
from archlab.base.quantities import Fraction, Share
from archlab.data.batch import Batch, Source, last_quarter
from archlab.data.corpus import hash_of, slices
from archlab.data.given import as_bytes, check_disjoint, check_length, drawn, given_text, one_after_another

N_BYTES = 256
MASK = 256
"""The id of [MASK], after those of the bytes."""

VALIDATION = 7
"""Seed of what is masked in the held-out part: one draw for all of it, so that at every length the same tokens are."""


@final
class Masked(Source):
    """Masked-LM over the bytes of a text: at `share` of the places the token is to be predicted.

    Of these places a share `mask` holds [MASK], a share `random` any byte, and the rest what stood there. Targets are
    the tokens at the same places, so a sequence is seq_len tokens. The text is the World English Bible, or the file at
    `path`. Source: arXiv:1810.04805, sec. 3.1 (Task 1) and app. A.1.
    """

    name = "masked"
    vocab_size = N_BYTES + 1
    exact = False
    marks_prefix = False

    def __init__(
        self,
        share: Share = 0.15,
        mask: Fraction = 0.8,
        random: Fraction = 0.1,
        path: str | None = None,
        valid_share: Share = 0.1,
    ):
        if not 0 < share < 1:
            raise UserError(
                f"data.share={share}: hides nothing or everything; use a share between 0 and 1, such as 0.15"
            )
        if not (mask >= 0 and random >= 0 and mask + random <= 1):
            raise UserError(f"data.mask={mask}, data.random={random}: should be shares that add up to at most 1")
        self.train_part, self.valid_part = given_text(path, valid_share)
        self.share, self.shares = share, (mask, mask + random)
        self.hidden, self.kind, self.other = self._draw(np.random.default_rng(VALIDATION), (len(self.valid_part),))
        self.sha256 = hash_of(self.train_part, self.valid_part, as_bytes(share, mask, random))

    def train(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        check_length(self, "train.train_len", seq_len, self.train_part)
        rng = np.random.default_rng([seed, step])
        starts = drawn(rng, self.train_part, seq_len, batch_size)
        tokens = cut(self.train_part, starts, seq_len)
        return self._batch(tokens, *self._draw(rng, tokens.shape))

    def validation(self, seq_len: int, n_tokens: int, batch_size: int, stride: int | None = None) -> Iterator[Batch]:
        check_length(self, "eval.lengths: a length", seq_len, self.valid_part)
        check_disjoint(self, seq_len, stride)
        starts = one_after_another(self.valid_part, seq_len, n_tokens)
        for rows in slices(len(starts), batch_size):
            yield self._batch(
                *(cut(part, starts[rows], seq_len) for part in (self.valid_part, self.hidden, self.kind, self.other))
            )

    @property
    def n_before_tuning(self) -> int:
        return last_quarter(len(self.valid_part)).start

    def tuning(self) -> "Masked":
        other, part = copy(self), last_quarter(len(self.valid_part))
        for name in ("valid_part", "hidden", "kind", "other"):
            setattr(other, name, getattr(self, name)[part])
        return other

    def _draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which places are to be predicted, what decides what stands there, and any byte."""
        return rng.random(shape) < self.share, rng.random(shape), rng.integers(0, N_BYTES, shape)

    def _batch(
        self,
        tokens: Int[np.ndarray, "batch seq"],
        hidden: Bool[np.ndarray, "batch seq"],
        kind: np.ndarray,
        other: Int[np.ndarray, "batch seq"],
    ) -> Batch:
        mask, random = self.shares
        seen = np.where(kind < mask, MASK, np.where(kind < random, other, tokens))
        return Batch(
            tokens=torch.from_numpy(np.where(hidden, seen, tokens)),
            prefix_len=None,
            scored=torch.from_numpy(hidden),
            targets=torch.from_numpy(tokens),
        )


def cut(part: Shaped[np.ndarray, " tokens"], starts: Int[np.ndarray, " batch"], seq_len: int) -> np.ndarray:
    windows = part[starts[:, None] + np.arange(seq_len)]
    return windows.astype(np.int64) if windows.dtype == np.uint8 else windows
