"""Positions drawn from a longer range than a sequence has, so that those of long sequences are met in training."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from archlab.data.batch import Batch, ChangedSource, Source, TooLong

OF_POSITIONS = 1
"""Beside a seed and a step: the stream of draws that positions come from, apart from the data's own."""


class DrawnPositions(ChangedSource):
    """The batches of another source, whose tokens' positions are drawn from 0 .. `upto` - 1 and put in order.

    Each position is drawn once at most, all sets of them being equally likely. In training all sequences of a step share a
    draw, as in the published code; in validation each has its own where `in_validation`, and elsewhere none is drawn.
    Source: arXiv:2305.16843, sec. 3.1.
    """

    def __init__(self, source: Source, upto: int, in_validation: bool):
        super().__init__(source)
        self.upto, self.in_validation = upto, in_validation

    def train(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        batch = self.source.train(seed, step, batch_size, seq_len)
        rng = np.random.default_rng([seed, step, OF_POSITIONS])
        return batch._replace(positions=self._draw(rng, seq_len).expand(len(batch.tokens), 1, seq_len))

    def validation(self, seq_len: int, n_tokens: int, batch_size: int, stride: int | None = None) -> Iterator[Batch]:
        batches = self.source.validation(seq_len, n_tokens, batch_size, stride)
        if not self.in_validation:
            return batches
        if seq_len > self.upto:
            raise TooLong(
                f"eval.lengths: a length of {seq_len}: random_positions={self.upto} are fewer, and each is drawn once; use a"
                " larger random_positions, or eval.random_positions=false",
                self.upto,
            )
        return self._with_positions(batches, seq_len)

    def tuning(self) -> "DrawnPositions":
        return DrawnPositions(self.source.tuning(), self.upto, self.in_validation)

    def _with_positions(self, batches: Iterator[Batch], seq_len: int) -> Iterator[Batch]:
        rng = np.random.default_rng([seq_len, OF_POSITIONS])
        for batch in batches:
            yield batch._replace(positions=torch.stack([self._draw(rng, seq_len) for _ in batch.tokens]))

    def _draw(self, rng: np.random.Generator, seq_len: int) -> Int[Tensor, "1 seq"]:
        drawn = np.sort(rng.choice(self.upto, seq_len, replace=False, shuffle=False))
        return torch.from_numpy(drawn)[None]
