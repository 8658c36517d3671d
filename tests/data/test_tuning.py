"""Held-out data that settings are chosen by: none of it is scored by what has been chosen."""

import numpy as np
import pytest
import torch

import archlab
from archlab.base.errors import UserError
from archlab.data.batch import Source
from archlab.runs.assembled import open_source


def held_out(source, seq_len=31, n_tokens=700):
    return [batch.tokens for batch in source.validation(seq_len, n_tokens, 5)]


def opened(*words):
    return open_source(archlab.compose("size=nano", *words))


TEXTS = ["data=text", "data=python", "data=masked", "data=blank"]


@pytest.mark.parametrize("data", TEXTS)
def test_of_a_text_it_is_the_last_quarter_of_the_held_out_part(data):
    whole = opened(data)
    part = opened(data, "eval.part=tuning")
    n = len(whole.valid_part)
    np.testing.assert_array_equal(part.valid_part, whole.valid_part[n - n // 4 :])
    assert len(whole.valid_part) == n and part.sha256 == whole.sha256


@pytest.mark.parametrize("data", [*TEXTS, "data=copy", "data=recall", "data=odd_one_out"])
def test_training_is_the_same_and_what_is_scored_is_not(data):
    whole, part = opened(data), opened(data, "eval.part=tuning")
    assert torch.equal(whole.train(3, 2, 4, 31).tokens, part.train(3, 2, 4, 31).tokens)
    there = zip(held_out(whole), held_out(part), strict=True)
    assert not any(torch.equal(a, b) for a, b in there)


def test_documents_start_where_they_did(tmp_path):
    file = tmp_path / "texts"
    file.write_text("".join(f"{letter * (7 + i % 5)}\n" for i, letter in enumerate("abcdefghij" * 40)))
    words = ("data=file", f"data.path={file}", "data.separator=\\n", "documents=true", "data.valid_share=0.5")
    whole, part = opened(*words), opened(*words, "eval.part=tuning")
    offset = len(whole.valid_part) - len(part.valid_part)
    expected = [start - offset for start in whole.valid_documents if start > offset]
    assert list(part.valid_documents) == [0, *expected] and len(expected) > 3


def test_drawn_positions_are_those_of_the_part():
    part = opened("random_positions=300", "eval.part=tuning")
    alone = opened("eval.part=tuning")
    assert all(torch.equal(a, b) for a, b in zip(held_out(part), held_out(alone), strict=True))


def test_a_source_without_one_says_so():
    class Own(Source):
        name, vocab_size, sha256, exact = "own", 3, "", False

        def train(self, *asked):
            raise NotImplementedError

        def validation(self, *asked):
            raise NotImplementedError

    with pytest.raises(UserError, match="eval.part=tuning: data=own has no held-out part to choose settings by"):
        Own().tuning()
