"""What every generated task shares.

A sequence holds one problem: a question, which is the prefix; its answer, whose targets are scored; padding, which is
not. A problem has a size (symbols to copy, pairs to recall), and a longer sequence holds a larger problem. Validation
asks the largest that fits seq_len; training draws sizes uniformly from the smallest up to it, or, with `varied=false`,
asks the largest as well. The smallest size is, unless it is given, the first with enough questions to hold some out.

Questions are split by a hash of their tokens: one in eight is held out, whatever the seed, the length or the batch.
"""

import hashlib
import json
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt64

from archlab.base.errors import UserError
from archlab.data.batch import Batch, Source
from archlab.data.corpus import slices

HELD_OUT_ONE_IN = 8
FEWEST_QUESTIONS = 64  # of the smallest size: with 8 held out, both parts are there
MOST_DRAWS = 1000  # a held-out question is missed so often once in 10**57
MOST_TOKEN_IDS = 256
TUNING = (1,)

Sizes = Int[np.ndarray, " batch"]


class Problems(NamedTuple):
    """Questions and answers, left-aligned; what stands beyond a row's length is of no account."""

    question: Int[np.ndarray, "batch question"]
    answer: Int[np.ndarray, "batch answer"]
    question_len: Int[np.ndarray, " batch"]
    answer_len: Int[np.ndarray, " batch"]


class Task(Source):
    """A source of problems with one right answer each.

    A task names its ids below `vocab_size` and keeps the last of them for padding.
    """

    exact = True

    draws: tuple[int, ...] = ()
    """Which draws validation takes, beside those of a seq_len; none but those of `tuning` are numbered."""

    scores_every: int = 1
    """Of an answer's tokens, every such one is scored, from the first on; the others are given."""

    def __init__(self, vocab_size: int, smallest: int | None, varied: bool, **options: int | bool):
        given = ", ".join(f"data.{option}={value}" for option, value in options.items())
        if vocab_size > MOST_TOKEN_IDS:
            raise UserError(f"{given}: takes {vocab_size} token ids of {MOST_TOKEN_IDS}; use fewer symbols")
        self.vocab_size, self.varied = vocab_size, varied
        self.smallest = self._smallest(smallest, given)
        defined_by = {"task": self.name, "smallest": self.smallest, "varied": varied, **options}
        self.sha256 = hashlib.sha256(json.dumps(defined_by, sort_keys=True).encode()).hexdigest()

    @abstractmethod
    def n_tokens(self, size: int) -> int:
        """Tokens that the longest problem of a size takes, question and answer together; grows with the size."""

    @abstractmethod
    def n_questions(self, size: int) -> int:
        """How many different questions of a size there are, at least."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, sizes: Sizes, largest: int) -> Problems:
        """A problem of each size, in arrays wide enough for the `largest`."""

    def train(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        largest = self._largest("train.train_len=", seq_len)
        rng = np.random.default_rng([seed, step])
        sizes = rng.integers(self.smallest if self.varied else largest, largest, batch_size, endpoint=True)
        return self._lay_out(self._draw_from(False, rng, sizes, largest), seq_len)

    def validation(self, seq_len: int, n_tokens: int, batch_size: int, stride: int | None = None) -> Iterator[Batch]:
        """As many problems as there are sequences in `n_tokens`."""
        if stride is not None:
            raise UserError(f"eval.stride={stride}: data={self.name} asks whole problems; use eval.protocol=disjoint")
        largest = self._largest("eval.lengths: a length of ", seq_len)
        sizes = np.full(max(1, n_tokens // seq_len), largest)
        whole = self._lay_out(
            self._draw_from(True, np.random.default_rng([seq_len, *self.draws]), sizes, largest), seq_len
        )
        return (whole.rows(rows) for rows in slices(len(sizes), batch_size))

    def tuning(self) -> "Task":
        other = copy(self)
        other.draws = TUNING
        return other

    def _smallest(self, asked: int | None, given: str) -> int:
        """The smallest size asked for, or the smallest that is possible."""
        sizes = range(1, FEWEST_QUESTIONS + 1)
        possible = next((size for size in sizes if self.n_questions(size) >= FEWEST_QUESTIONS), None)
        if possible is None:
            raise UserError(f"{given}: data={self.name} has too few questions to hold some out; use more symbols")
        if asked is not None and asked < possible:
            raise UserError(
                f"data.smallest={asked}: with {given} there are fewer than {FEWEST_QUESTIONS} questions of this size, "
                f"too few to hold some out; use at least {possible}, or null"
            )
        return asked or possible

    def _largest(self, field: str, seq_len: int) -> int:
        """The largest size whose problems fit a sequence."""
        sizes = range(seq_len + 2)
        largest = bisect_right(sizes, seq_len + 1, key=self.n_tokens) - 1
        if largest < self.smallest:
            fits = self.n_tokens(self.smallest) - 1
            raise UserError(
                f"{field}{seq_len}: the smallest problem of data={self.name} takes {fits}; use at least that "
                "or a smaller data.smallest"
            )
        return largest

    def _draw_from(self, held_out: bool, rng: np.random.Generator, sizes: Sizes, largest: int) -> Problems:
        """Draws again wherever a question lies on the other side of the split."""
        problems = self.draw(rng, sizes, largest)
        for _ in range(MOST_DRAWS):
            wrong = np.flatnonzero(is_held_out(problems.question, problems.question_len) != held_out)
            if len(wrong) == 0:
                return problems
            for column, redrawn in zip(problems, self.draw(rng, sizes[wrong], largest), strict=True):
                column[wrong] = redrawn
        raise UserError(
            f"data.smallest={self.smallest}: data={self.name} has too few questions of this size to "
            "hold some out; use a larger one"
        )

    def _lay_out(self, problems: Problems, seq_len: int) -> Batch:
        """Question, answer, padding; scores the answer's targets."""
        question_len, answer_len = problems.question_len[:, None], problems.answer_len[:, None]
        place = np.arange(seq_len + 1)
        in_question = place < question_len
        in_answer = (place >= question_len) & (place < question_len + answer_len)
        tokens = np.full(in_question.shape, self.vocab_size - 1)
        tokens[in_question] = problems.question[np.arange(problems.question.shape[1]) < question_len]
        tokens[in_answer] = problems.answer[np.arange(problems.answer.shape[1]) < answer_len]
        scored = in_answer & ((place - question_len) % self.scores_every == 0)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(problems.question_len), torch.from_numpy(scored[:, 1:]))


def is_held_out(
    question: Int[np.ndarray, "batch question"], question_len: Int[np.ndarray, " batch"]
) -> Bool[np.ndarray, " batch"]:
    """Whether a question's hash, a mixed sum of mixed (place, token) pairs, is divisible by HELD_OUT_ONE_IN."""
    place = np.arange(question.shape[1])
    marks = mix((question + MOST_TOKEN_IDS * place).astype(np.uint64))
    marks[place >= question_len[:, None]] = 0
    return mix(marks.sum(axis=1)) % HELD_OUT_ONE_IN == 0


def mix(x: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): every input bit moves every output bit."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
