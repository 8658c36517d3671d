"""The generated tasks. Each says what its question and answer look like; `|` stands between the two."""

import math
from abc import abstractmethod
from typing import Annotated, final

import numpy as np
from annotated_types import Interval
from jaxtyping import Int

from archlab.base.quantities import Count
from archlab.data.generated import Problems, Sizes, Task

Open = Annotated[int, Interval(ge=1, le=2**16)]
"""Brackets that may be open at once."""


class Transcript(Task):
    """Symbols and a separator; the same symbols once more, in an order that the task says.

    The size is the number of symbols in a question; `symbols` of them exist.
    """

    def __init__(self, symbols: Count = 32, smallest: Count | None = None, varied: bool = True):
        self.symbols = symbols
        super().__init__(symbols + 2, smallest, varied, symbols=symbols)

    def n_tokens(self, size: int) -> int:
        return 2 * size + 1

    def n_questions(self, size: int) -> int:
        return self.symbols**size

    def draw(self, rng: np.random.Generator, sizes: Sizes, largest: int) -> Problems:
        question = series(rng, sizes, largest, self.symbols)
        place = self.order(sizes[:, None], np.arange(largest)[None]) % (largest + 1)
        return Problems(question, np.take_along_axis(question, place, axis=1), sizes + 1, sizes.copy())

    @abstractmethod
    def order(
        self, size: Int[np.ndarray, "batch 1"], i: Int[np.ndarray, "1 answer"]
    ) -> Int[np.ndarray, "#batch answer"]:
        """The place in the question of the answer's symbol i; of no account where i is not below the size."""


@final
class Copy(Transcript):
    """a b c SEP | a b c. Length generalisation on it: Kazemnejad et al. 2023, arXiv:2305.19466, table 1."""

    name = "copy"

    def order(
        self, size: Int[np.ndarray, "batch 1"], i: Int[np.ndarray, "1 answer"]
    ) -> Int[np.ndarray, "#batch answer"]:
        return i


@final
class Reverse(Transcript):
    """a b c SEP | c b a. Length generalisation on it: Kazemnejad et al. 2023, arXiv:2305.19466, table 1."""

    name = "reverse"

    def order(
        self, size: Int[np.ndarray, "batch 1"], i: Int[np.ndarray, "1 answer"]
    ) -> Int[np.ndarray, "#batch answer"]:
        return size - 1 - i


@final
class Recall(Task):
    """k1 v1 k2 v2 SEP k2 | v2 k1 v1. Keys are told their values once, then asked for; values are scored, keys given.

    Multi-query associative recall, Arora et al. 2023, arXiv:2312.04927; `multiquery_ar` of its released code, zoology.
    The size is the number of pairs and of queries. Keys are distinct; queries are drawn with replacement. Beyond `keys`
    pairs no key is left, and a larger problem has more queries alone, so that it is defined at every length.
    """

    name = "recall"
    scores_every = 2

    def __init__(self, keys: Count = 8, values: Count = 16, smallest: Count | None = None, varied: bool = True):
        self.keys, self.values = keys, values
        super().__init__(keys + values + 2, smallest, varied, keys=keys, values=values)

    def n_tokens(self, size: int) -> int:
        return 2 * min(size, self.keys) + 2 * size + 1

    def n_questions(self, size: int) -> int:
        n_pairs = min(size, self.keys)
        return math.perm(self.keys, n_pairs) * self.values**n_pairs

    def draw(self, rng: np.random.Generator, sizes: Sizes, largest: int) -> Problems:
        n_pairs = np.minimum(sizes, self.keys)
        keys = shuffles(rng, len(sizes), self.keys)
        values = self.keys + rng.integers(0, self.values, keys.shape)
        asked = rng.integers(0, n_pairs[:, None], (len(sizes), largest))
        queries = interleave(np.take_along_axis(keys, asked, axis=1), np.take_along_axis(values, asked, axis=1))
        question = np.pad(interleave(keys, values), ((0, 0), (0, 2)))
        np.put_along_axis(question, 2 * n_pairs[:, None], self.keys + self.values, axis=1)
        np.put_along_axis(question, 2 * n_pairs[:, None] + 1, queries[:, :1], axis=1)
        return Problems(question, queries[:, 1:].copy(), 2 * n_pairs + 2, 2 * sizes - 1)


class RunningSum(Task):
    """a b c SEP | a, a+b, a+b+c, modulo `modulus`. The size is the number of terms.

    With `steps` the answer tells every partial sum, so each scored token adds one term to the token before it;
    without, it is the last sum alone, which takes all terms at once and is far harder to learn.
    """

    modulus: int

    def __init__(self, steps: bool, smallest: int | None, varied: bool, **options: int):
        self.steps = steps
        super().__init__(self.modulus + 2, smallest, varied, steps=steps, **options)

    def n_tokens(self, size: int) -> int:
        return size + 1 + (size if self.steps else 1)

    def n_questions(self, size: int) -> int:
        return self.modulus**size

    def draw(self, rng: np.random.Generator, sizes: Sizes, largest: int) -> Problems:
        question = series(rng, sizes, largest, self.modulus)
        sums = question[:, :-1].cumsum(axis=1) % self.modulus
        if self.steps:
            return Problems(question, sums, sizes + 1, sizes.copy())
        return Problems(question, np.take_along_axis(sums, sizes[:, None] - 1, axis=1), sizes + 1, np.ones_like(sizes))


@final
class ModAdd(RunningSum):
    """2 9 4 SEP | 2 1 5 for a modulus of 10: the addition of a chain of numbers, modulo `modulus`."""

    name = "modadd"

    def __init__(self, modulus: Count = 10, steps: bool = True, smallest: Count | None = None, varied: bool = True):
        self.modulus = modulus
        super().__init__(steps, smallest, varied, modulus=modulus)


@final
class Parity(RunningSum):
    """1 0 1 1 SEP | 1 1 0 1: whether the ones so far are odd in number. The size is the number of bits."""

    name = "parity"
    modulus = 2

    def __init__(self, steps: bool = True, smallest: Count | None = None, varied: bool = True):
        super().__init__(steps, smallest, varied)


@final
class Dyck(Task):
    """( [ ] { SEP | } ) END. Closes what is open, innermost first. The size is the number of brackets in the question.

    Brackets of `kinds` kinds, never more than `depth` of them open at once: the bounded hierarchical language
    Dyck-(k, D) of Yao et al. 2021, arXiv:2105.11115. The number of open brackets is a random walk between 0 and
    `depth`, reflected at both, as in its released generate_mbounded_dyck.py, where at 0 the text may also end.
    """

    name = "dyck"

    def __init__(self, kinds: Count = 3, depth: Open = 8, smallest: Count | None = None, varied: bool = True):
        self.kinds, self.depth = kinds, depth
        super().__init__(2 * kinds + 3, smallest, varied, kinds=kinds, depth=depth)

    def n_tokens(self, size: int) -> int:
        return size + 1 + min(size, self.depth) + 1

    def n_questions(self, size: int) -> int:
        walks = 2 ** ((size - 1) // 2) if self.depth > 1 else 1
        return walks * self.kinds ** ((size + 1) // 2)

    def draw(self, rng: np.random.Generator, sizes: Sizes, largest: int) -> Problems:
        separator, end = 2 * self.kinds, 2 * self.kinds + 1
        n_open = self._walk(rng, sizes, largest)
        brackets = self._brackets(rng, n_open)
        still_open = np.take_along_axis(n_open, sizes[:, None], axis=1)
        closing = np.minimum(sizes[:, None] + np.arange(self.depth + 1), brackets.shape[1] - 1)
        answer = np.take_along_axis(brackets, closing, axis=1)
        np.put_along_axis(answer, still_open, end, axis=1)
        np.put_along_axis(brackets, sizes[:, None], separator, axis=1)
        return Problems(brackets, answer, sizes + 1, still_open[:, 0] + 1)

    def _walk(self, rng: np.random.Generator, sizes: Sizes, largest: int) -> Int[np.ndarray, "batch places"]:
        """How many brackets are open at each place: `size` random steps, then down to none."""
        steps = 2 * rng.integers(0, 2, (len(sizes), largest + self.depth)) - 1
        free = np.pad(steps.cumsum(axis=1), ((0, 0), (1, 0)))
        reflected = self.depth - np.abs(self.depth - free % (2 * self.depth))
        beyond = np.arange(free.shape[1]) - sizes[:, None]
        at_size = np.take_along_axis(reflected, sizes[:, None], axis=1)
        return np.where(beyond <= 0, reflected, np.maximum(at_size - beyond, 0))

    def _brackets(
        self, rng: np.random.Generator, n_open: Int[np.ndarray, "batch places"]
    ) -> Int[np.ndarray, "batch brackets"]:
        """Opening brackets 0 to kinds - 1 of random kinds, each closed by its own kind + kinds.

        The brackets between n - 1 and n open ones alternately open and close, so in a stable order by n each closing
        bracket follows its opening one.
        """
        outer = np.maximum(n_open[:, 1:], n_open[:, :-1])
        closes = n_open[:, 1:] < n_open[:, :-1]
        kind = rng.integers(0, self.kinds, closes.shape)
        by_level = np.argsort(outer, axis=1, kind="stable")
        before = np.roll(by_level, 1, axis=1)
        opened = np.empty_like(by_level)
        np.put_along_axis(opened, by_level, before, axis=1)
        return np.where(closes, self.kinds + np.take_along_axis(kind, opened, axis=1), kind)


@final
class OddOneOut(Task):
    """b a c a b QUERY | c. Every symbol stands twice but one, which is the answer. The size is the number of pairs.

    A position that sees only its left takes every first occurrence for unique; one that sees the whole question does
    not, which is what a prefix mask is for. Where there are more pairs than the other `symbols` they are used again,
    as evenly as can be, so the odd one stays the only symbol that stands once.
    """

    name = "odd_one_out"

    def __init__(self, symbols: Count = 32, smallest: Count | None = None, varied: bool = True):
        self.symbols = symbols
        super().__init__(symbols + 2, smallest, varied, symbols=symbols)

    def n_tokens(self, size: int) -> int:
        return 2 * size + 3

    def n_questions(self, size: int) -> int:
        return self.symbols * (self.symbols - 1) * (2 * size + 1)

    def draw(self, rng: np.random.Generator, sizes: Sizes, largest: int) -> Problems:
        alphabet = shuffles(rng, len(sizes), self.symbols)
        odd, others = alphabet[:, :1], alphabet[:, 1:]
        pairs = others[:, np.arange(largest) % others.shape[1]]
        length = 2 * sizes + 1
        order = rng.random((len(sizes), 2 * largest + 1))
        order[np.arange(order.shape[1]) >= length[:, None]] = 2.0  # what is beyond the size stays behind
        symbols = np.concatenate([odd, np.repeat(pairs, 2, axis=1)], axis=1)
        question = np.pad(np.take_along_axis(symbols, order.argsort(axis=1), axis=1), ((0, 0), (0, 1)))
        np.put_along_axis(question, length[:, None], self.symbols, axis=1)
        return Problems(question, odd.copy(), length + 1, np.ones_like(sizes))


def series(rng: np.random.Generator, sizes: Sizes, largest: int, symbols: int) -> Int[np.ndarray, "batch question"]:
    """Random symbols, as many as the size says, and the id after the last symbol as their separator."""
    drawn = rng.integers(0, symbols, (len(sizes), largest + 1))
    np.put_along_axis(drawn, sizes[:, None], symbols, axis=1)
    return drawn


def shuffles(rng: np.random.Generator, n: int, of: int) -> Int[np.ndarray, "batch symbols"]:
    """Rows of 0 to `of` - 1, each in an order of its own."""
    return rng.random((n, of)).argsort(axis=1)


def interleave(
    first: Int[np.ndarray, "batch pairs"], second: Int[np.ndarray, "batch pairs"]
) -> Int[np.ndarray, "batch symbols"]:
    """first[0] second[0] first[1] second[1] ..."""
    return np.stack([first, second], axis=2).reshape(len(first), -1)
