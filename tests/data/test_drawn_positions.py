"""Positions drawn from a longer range: each once and in order, the same for a seed and a step, and what the model goes by."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from oracles import build, composed

from archlab.base.errors import UserError
from archlab.data.batch import TooLong
from archlab.data.corpus import Corpus
from archlab.data.positions import DrawnPositions
from archlab.train.objective import placed, token_losses


def source(upto=40, in_validation=True) -> DrawnPositions:
    tokens = np.arange(90, dtype=np.uint8) % 61
    corpus = Corpus(tokens[:60], tokens[60:], 61, None)
    corpus.name = "own"
    return DrawnPositions(corpus, upto, in_validation)


def test_each_once_in_order_and_by_seed_and_step():
    ours = source()
    batch = ours.train(3, 7, 4, 11)
    assert batch.positions.shape == (4, 1, 11) and (batch.positions.diff(dim=-1) > 0).all()
    assert batch.positions.min() >= 0 and batch.positions.max() < 40
    assert (batch.positions == batch.positions[:1]).all()  # one draw a step
    again, other_step, other_seed = ours.train(3, 7, 4, 11), ours.train(3, 8, 4, 11), ours.train(4, 7, 4, 11)
    assert torch.equal(again.positions, batch.positions)
    assert not torch.equal(other_step.positions, batch.positions) and not torch.equal(
        other_seed.positions, batch.positions
    )
    plain = ours.source.train(3, 7, 4, 11)
    assert torch.equal(plain.tokens, batch.tokens) and torch.equal(plain.scored, batch.scored)


def test_all_sets_are_equally_likely():
    """5 choose 2 sets, 500 steps: 50 each, with a standard deviation of 6.7."""
    ours = source(5)
    drawn = Counter(tuple(ours.train(0, step, 1, 2).positions.flatten().tolist()) for step in range(500))
    assert set(drawn) == set(combinations(range(5), 2))
    assert all(abs(count - 50) < 5 * 6.7 for count in drawn.values())


def test_validation_draws_for_each_window_or_not_at_all():
    one, other = (list(source().validation(7, 28, size)) for size in (3, 2))
    rows = [torch.cat([batch.positions for batch in batches]) for batches in (one, other)]
    assert torch.equal(*rows) and len({tuple(row.flatten().tolist()) for row in rows[0]}) == len(rows[0])
    assert all(batch.positions is None for batch in source(in_validation=False).validation(7, 28, 3))
    with pytest.raises(TooLong) as refusal:
        source(6).validation(7, 28, 3)
    assert refusal.value.longest == 6
    assert next(iter(source(6, in_validation=False).validation(7, 28, 3))).positions is None


@pytest.mark.parametrize("pos", ["rope", "sinusoidal", "alibi", "learned"])
def test_the_model_goes_by_them(pos):
    decoder, batch = build(pos=pos), source().train(0, 1, 2, 9)
    assert torch.equal(placed(decoder, batch).positions, batch.positions)
    seen = token_losses(decoder, batch).nats
    expected = -decoder(batch.inputs, positions=batch.positions).float().log_softmax(dim=-1)
    torch.testing.assert_close(seen, expected.gather(2, batch.to_predict[..., None])[..., 0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(seen, token_losses(decoder, batch._replace(positions=None)).nats)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("random_positions=512 pos=none", ["random_positions=512", "pos=none", "change nothing"]),
        ("random_positions=1024 pos=learned", ["random_positions=1024", "512"]),
        ("eval.random_positions=true", ["eval.random_positions=true", "random_positions=256"]),
    ],
)
def test_what_changes_nothing_or_cannot_be_is_refused(words, parts):
    with pytest.raises(UserError) as refusal:
        composed("size=nano", *words.split())
    assert not [part for part in parts if part not in str(refusal.value)] and "\n" not in str(refusal.value)


def test_a_run_has_them():
    from archlab.runs.assembled import open_source

    opened = open_source(composed("size=nano", "random_positions=300", "data=copy", "train.train_len=32"))
    assert isinstance(opened, DrawnPositions) and opened.exact and opened.train(0, 1, 2, 32).positions.max() < 300
