"""GLM's objective: spans are cut out of a text, and what stood in the blanks follows it, span by span."""

from collections.abc import Iterator
from copy import copy
from typing import Annotated, NamedTuple, final

import numpy as np
import torch
from annotated_types import Interval

from archlab.base.errors import UserError
from archlab.base.quantities import Fraction, Share
from archlab.data.batch import Batch, Source, last_quarter
from archlab.data.corpus import hash_of, slices
from archlab.data.given import as_bytes, check_disjoint, check_length, drawn, given_text, one_after_another

N_BYTES = 256
MASK, REST, START, END = range(N_BYTES, N_BYTES + 4)
"""[MASK], a short blank; [gMASK], all that is left of the text; what a span begins after; and what ends it."""

SHORTEST = 8
"""Tokens: below it there is no room for a text, a blank and what stood in it."""


class Cut(NamedTuple):
    """A text with blanks: where each span begins, how long it is, and the order in which spans are filled in."""

    starts: list[int]
    lengths: list[int]
    order: list[int]
    mark: int
    """What stands in a blank."""


@final
class Blank(Source):
    """Autoregressive blank infilling over the bytes of a text.

    Part A is the text with a [MASK] in the place of each span; part B has the spans, in any order, each after a
    [START] and up to an [END]. Part A is the prefix, and part B alone is scored. Span lengths are drawn from a Poisson
    distribution of `mean_span` until `share` of the text is cut out. A share `rest` of the sequences has one span
    instead, the text's last 50% to 100%, with a [gMASK] in its place.

    A token's two positions are where it stands in part A (for part B: where its blank stands), and 0 in part A, then
    1, 2, ... within the span. A position scheme of one axis numbers the tokens as they follow each other.

    Source: arXiv:2103.10360, sec. 2.1 to 2.3; arXiv:2210.02414, sec. 2.2 has 30% [MASK] and 70% [gMASK].
    """

    name = "blank"
    vocab_size = N_BYTES + 4
    exact = False
    same_targets = False

    def __init__(
        self,
        share: Share = 0.15,
        mean_span: Annotated[float, Interval(ge=1, lt=2**31)] = 3.0,
        rest: Fraction = 0.0,
        path: str | None = None,
        valid_share: Share = 0.1,
    ):
        if not 0 < share < 0.5:
            raise UserError(f"data.share={share}: should be a share of the text above 0 and below a half, such as 0.15")
        if not 1 <= mean_span < 2**31:
            raise UserError(f"data.mean_span={mean_span}: should be 1 token or more, and fewer than 2^31")
        self.share, self.mean_span, self.rest = share, mean_span, rest
        self.train_part, self.valid_part = given_text(path, valid_share)
        self.sha256 = hash_of(self.train_part, self.valid_part, as_bytes(share, mean_span, rest))

    def train(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        self._check(f"train.train_len={seq_len}", seq_len)
        check_length(self, "train.train_len", seq_len, self.train_part)
        rng = np.random.default_rng([seed, step])
        starts = drawn(rng, self.train_part, seq_len, batch_size)
        return self._batch(rng, [self.train_part[start : start + seq_len] for start in starts])

    def validation(self, seq_len: int, n_tokens: int, batch_size: int, stride: int | None = None) -> Iterator[Batch]:
        self._check(f"a length of {seq_len}", seq_len)
        check_length(self, "eval.lengths: a length", seq_len, self.valid_part)
        check_disjoint(self, seq_len, stride)
        rng = np.random.default_rng(seq_len)
        starts = one_after_another(self.valid_part, seq_len, n_tokens)
        for rows in slices(len(starts), batch_size):
            yield self._batch(rng, [self.valid_part[start : start + seq_len] for start in starts[rows]])

    @property
    def n_before_tuning(self) -> int:
        return last_quarter(len(self.valid_part)).start

    def tuning(self) -> "Blank":
        other = copy(self)
        other.valid_part = self.valid_part[last_quarter(len(self.valid_part))]
        return other

    def _check(self, asked: str, seq_len: int) -> None:
        if seq_len < SHORTEST:
            raise UserError(
                f"{asked}: leaves data=blank no room for a text and a blank; use at least {SHORTEST} tokens"
            )

    def _batch(self, rng: np.random.Generator, texts: list[np.ndarray]) -> Batch:
        seq_len = len(texts[0])
        rows = [infilled(text, self._cut(rng, seq_len)) for text in texts]
        tokens, targets, positions, prefix_len = (np.stack(column) for column in zip(*rows, strict=True))
        place = np.arange(seq_len)
        return Batch(
            tokens=torch.from_numpy(tokens),
            prefix_len=torch.from_numpy(prefix_len),
            scored=torch.from_numpy(place >= prefix_len[:, None]),
            targets=torch.from_numpy(targets),
            positions=torch.from_numpy(positions),
        )

    def _cut(self, rng: np.random.Generator, seq_len: int) -> Cut:
        """Spans for so much text as fills seq_len tokens with its blanks and starts: seq_len less two for each span."""
        if rng.random() < self.rest:
            n_text = seq_len - 2
            length = int(rng.integers(-(-n_text // 2), n_text, endpoint=True))
            return Cut([n_text - length], [length], [0], REST)
        lengths: list[int] = []
        while sum(lengths) < self.share * (seq_len - 2 * len(lengths)):
            lengths.append(max(1, int(rng.poisson(self.mean_span))))
        left = seq_len - 2 * len(lengths) - sum(lengths)
        too_long = max(0, len(lengths) - left)  # a last span, for a short text
        lengths[-1] -= too_long
        left += too_long
        # Each blank in a gap of its own between the tokens that are left, so that no two touch.
        gaps = np.sort(rng.choice(left + 1, len(lengths), replace=False))
        starts = [int(gap) + sum(lengths[:i]) for i, gap in enumerate(gaps)]
        return Cut(starts, lengths, rng.permutation(len(lengths)).tolist(), MASK)


def infilled(text: np.ndarray, cut: Cut) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The text with its blanks and then the spans: tokens, targets, both positions, and how many tokens part A has."""
    pieces, blanks, after = [], [], 0
    for number, (start, length) in enumerate(zip(cut.starts, cut.lengths, strict=True)):
        pieces += [text[after:start], [cut.mark]]
        blanks.append(start - sum(cut.lengths[:number]) + number)  # every span before it is one blank now
        after = start + length
    seq_len = len(text)
    n_left = seq_len - 2 * len(cut.starts) - after
    part_a = np.concatenate([*pieces, text[after : after + n_left]]).astype(np.int64)
    tokens, targets = [part_a], [part_a]
    first, second = [np.arange(len(part_a))], [np.zeros(len(part_a), np.int64)]
    for number in cut.order:
        span = text[cut.starts[number] : cut.starts[number] + cut.lengths[number]].astype(np.int64)
        tokens.append(np.append(START, span))
        targets.append(np.append(span, END))
        first.append(np.full(len(span) + 1, blanks[number]))
        second.append(np.arange(1, len(span) + 2))
    positions = np.stack([np.concatenate(first), np.concatenate(second)])
    return np.concatenate(tokens), np.concatenate(targets), positions, len(part_a)
