"""Generated tasks, each against a solver in plain Python that knows nothing of how they are made."""

import hashlib
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_class

from archlab.base.errors import UserError
from archlab.data.tasks import Copy, Dyck, ModAdd, OddOneOut, Parity, Recall, Reverse

TASKS = (Copy, Reverse, Recall, ModAdd, Parity, Dyck, OddOneOut)
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def solve_copy(question):
    return question[:-1]


def solve_reverse(question):
    return question[-2::-1]


def solve_modadd(question):
    return [sum(question[: i + 1]) % 10 for i in range(len(question) - 1)]


def solve_parity(question):
    return [question[: i + 1].count(1) % 2 for i in range(len(question) - 1)]


def solve_odd_one_out(question):
    (odd,) = (symbol for symbol in set(question[:-1]) if question.count(symbol) == 1)
    return [odd]


def solve_dyck(question):
    """Opening brackets are 0, 1, 2, their closing ones 3, 4, 5, the separator 6, the end 7."""
    stack = []
    for bracket in question[:-1]:
        if bracket < 3:
            stack.append(bracket)
        else:
            assert stack.pop() == bracket - 3
        assert len(stack) <= 8
    return [bracket + 3 for bracket in reversed(stack)] + [7]


SOLVERS = {
    "copy": solve_copy, "reverse": solve_reverse, "modadd": solve_modadd,
    "parity": solve_parity, "dyck": solve_dyck, "odd_one_out": solve_odd_one_out,
}  # fmt: skip


def check_recall(question, answer, scored):
    """Values follow queried keys; keys are 0 to 7, values 8 to 23, the separator 24."""
    *pairs, separator, first_query = question
    told = dict(zip(pairs[::2], pairs[1::2], strict=True))
    assert separator == 24 and set(told) <= set(range(8)) and len(told) == len(pairs) // 2
    assert [told[query] for query in [first_query, *answer[1::2]]] == answer[::2]
    assert scored == [i % 2 == 0 for i in range(len(answer))]


def rows(batch):
    """Question, answer with its scored flags, padding of each row: the answer ends where the padding begins."""
    for tokens, prefix_len, scored in zip(*(column.tolist() for column in batch[:3]), strict=True):
        end = 1 + max(i for i, counts in enumerate(scored, start=1) if counts)
        assert not any(scored[: prefix_len - 1])
        yield tokens[:prefix_len], tokens[prefix_len:end], scored[prefix_len - 1 : end - 1], tokens[end:]


def questions(batches):
    return [tuple(question) for batch in batches for question, *_ in rows(batch)]


@every_task
@pytest.mark.parametrize("seq_len", [18, 67])
def test_answers_are_right(task, seq_len):
    source = task()
    for batch in [source.train(0, 1, 41, seq_len), *source.validation(seq_len, 7 * seq_len, 5)]:
        assert batch.tokens.shape[1] == seq_len + 1 and batch.scored.shape[1] == seq_len
        assert 0 <= batch.tokens.min() and batch.tokens.max() < source.vocab_size
        for question, answer, scored, padding in rows(batch):
            assert set(padding) <= {source.vocab_size - 1}
            if task is Recall:
                check_recall(question, answer, scored)
            else:
                assert answer == SOLVERS[task.name](question) and all(scored)


@every_task
def test_training_asks_all_sizes_and_validation_the_largest(task):
    source = task()
    trained = {len(question) for question in questions(source.train(0, step, 50, 40) for step in range(20))}
    asked = {len(question) for question in questions(source.validation(40, 2000, 7))}
    assert len(asked) == 1 and asked == {max(trained)} and len(trained) > 5
    fixed = task(varied=False)
    assert {len(question) for question in questions([fixed.train(0, 0, 50, 40)])} == asked


@every_task
def test_sizes_grow_with_the_length(task):
    short, long = (next(task().validation(seq_len, 1, 1)).prefix_len.item() for seq_len in (48, 48 * 16))
    halves = (25, 385)  # as many symbols as their answers, and a separator
    others = {"recall": (18, 18), "dyck": (40, 760), "odd_one_out": (48, 768)}  # recall has 8 keys to tell
    assert (short, long) == others.get(task.name, halves)


@every_task
def test_no_question_is_both_trained_and_held_out(task):
    source, seq_len = task(), 24
    trained = set(questions(source.train(seed, step, 64, seq_len) for seed in range(3) for step in range(30)))
    asked = (batch for length in range(18, seq_len + 1) for batch in source.validation(length, 200 * length, 64))
    held_out = set(questions(asked))
    assert len(held_out) > 60 and trained.isdisjoint(held_out)


def test_the_split_is_the_same_for_every_size_and_order():
    """All 256 questions of 8 bits: each is on one side, about one in eight held out."""
    source = Parity(smallest=8)
    trained = set(questions(source.train(0, step, 64, 16) for step in range(60)))
    held_out = set(questions(source.validation(16, 16 * 2000, 50)))
    assert trained.isdisjoint(held_out) and len(trained | held_out) == 256
    assert 16 <= len(held_out) <= 48


@every_task
def test_a_batch_depends_on_seed_and_step_alone(task):
    first = task().train(3, 5, 7, 29)
    same = [torch.equal(a, b) for a, b in zip(first[:3], task().train(3, 5, 7, 29)[:3], strict=True)]
    assert all(same)
    assert not torch.equal(first.tokens, task().train(3, 6, 7, 29).tokens)
    assert not torch.equal(first.tokens, task().train(4, 5, 7, 29).tokens)


@every_task
def test_validation_is_the_same_in_any_batches(task):
    source = task()
    in_threes = torch.cat([batch.tokens for batch in source.validation(29, 290, 3)])
    source.train(1, 2, 5, 29)
    assert torch.equal(in_threes, torch.cat([batch.tokens for batch in source.validation(29, 290, 10)]))
    assert [len(batch.tokens) for batch in source.validation(29, 290, 3)] == [3, 3, 3, 1]
    assert len(next(source.validation(29, 1, 3)).tokens) == 1


@every_task
def test_the_hash_names_task_and_options(task):
    assert task().sha256 == task().sha256 != task(smallest=9).sha256
    assert len({task().sha256 for task in TASKS}) == len(TASKS)
    assert len({Copy(symbols=n).sha256 for n in (8, 9, 10)}) == 3


def test_the_hash_is_of_canonical_json():
    written = b'{"smallest": 2, "symbols": 32, "task": "copy", "varied": true}'
    assert Copy().sha256 == hashlib.sha256(written).hexdigest()


def test_recall_beyond_its_keys_asks_more():
    for question, answer, scored, _ in rows(next(Recall(keys=5, values=7).validation(64, 1, 1))):
        assert len(question) == 2 * 5 + 2 and set(question[:10:2]) == set(range(5))
        assert sum(scored) == (64 - 2 * 5) // 2 and set(answer[1::2]) == set(range(5))


def test_odd_one_out_beyond_its_alphabet_uses_symbols_again():
    for batch in OddOneOut(symbols=5).validation(44, 440, 10):
        for question, answer, _, _ in rows(batch):
            times = {symbol: question.count(symbol) for symbol in set(question[:-1])}
            assert times.pop(answer[0]) == 1
            assert sorted(times.values()) == [10, 10, 10, 12]  # 21 pairs of 4 symbols


def test_sums_may_hide_their_steps():
    for batch in (ModAdd(steps=False).train(0, 0, 31, 20), Parity(steps=False).train(0, 0, 31, 20)):
        modulus = int(batch.tokens[batch.tokens < batch.tokens.max() - 1].max()) + 1
        for question, answer, _, _ in rows(batch):
            assert answer == [sum(question[:-1]) % modulus]


def test_dyck_sees_every_depth_and_kind():
    answers = {tuple(answer) for batch in [Dyck().train(0, 0, 500, 40)] for _, answer, _, _ in rows(batch)}
    assert {len(answer) - 1 for answer in answers} == set(range(9))
    assert {bracket for answer in answers for bracket in answer} == {3, 4, 5, 7}


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Copy(symbols=255), "data.symbols=255"),
        (lambda: Recall(keys=200, values=55), "data.keys=200, data.values=55"),
        (lambda: ModAdd(modulus=300), "data.*modulus=300"),
        (lambda: Parity(smallest=5), "data.smallest=5: .* at least 6"),
        (lambda: Copy(symbols=1), "data.symbols=1: data=copy has too few"),
        (lambda: OddOneOut(symbols=1), "data.symbols=1: data=odd_one_out has too few"),
        (lambda: Copy().train(0, 0, 1, 3), "train.train_len=3: .* takes 4"),
        (lambda: Copy().validation(3, 1, 1), "eval.lengths: a length of 3: .* takes 4"),
        (lambda: Copy().validation(40, 1, 1, 20), "eval.stride=20"),
    ],
)
def test_what_cannot_be_is_named(make, field):
    with pytest.raises(UserError, match="^" + field):
        make()


@every_task
def test_the_configuration_says_what_the_class_does(task):
    options = yaml.safe_load((Path(__file__).parents[2] / "conf" / "data" / f"{task.name}.yaml").read_text())
    assert get_class(options.pop("_target_")) is task
    assert task(**options).sha256 == task().sha256
