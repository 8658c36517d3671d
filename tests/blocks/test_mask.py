"""Masks, against matrices written by hand: who may read whom, what may be scored, which keys may be left out."""

import pytest
import torch
from oracles import MAY_READ, WINDOW, build, draw_tokens, make, make_reading, options

from archlab.blocks import context as contexts

CAUSAL = """
    1 0 0 0 0 0
    1 1 0 0 0 0
    1 1 1 0 0 0
    1 1 1 1 0 0
    1 1 1 1 1 0
    1 1 1 1 1 1
"""
PREFIX_OF_3 = """
    1 1 1 0 0 0
    1 1 1 0 0 0
    1 1 1 0 0 0
    1 1 1 1 0 0
    1 1 1 1 1 0
    1 1 1 1 1 1
"""
WINDOW_OF_3 = """
    1 0 0 0 0 0
    1 1 0 0 0 0
    1 1 1 0 0 0
    0 1 1 1 0 0
    0 0 1 1 1 0
    0 0 0 1 1 1
"""
WINDOW_OF_1 = """
    1 0 0 0 0 0
    0 1 0 0 0 0
    0 0 1 0 0 0
    0 0 0 1 0 0
    0 0 0 0 1 0
    0 0 0 0 0 1
"""
FULL = """
    1 1 1 1 1 1
    1 1 1 1 1 1
    1 1 1 1 1 1
    1 1 1 1 1 1
    1 1 1 1 1 1
    1 1 1 1 1 1
"""


def matrix(rows: str) -> torch.Tensor:
    return torch.tensor([[int(entry) for entry in row.split()] for row in rows.strip().splitlines()], dtype=torch.bool)


def can_attend(mask, prefix_len=0, seq_len: int = 6) -> torch.Tensor:
    return make_reading("none", mask, seq_len, prefix_len).everything.can_attend


HAND_WRITTEN = [
    # mask, options, prefix_len, who may read whom
    ("causal", {}, 0, CAUSAL),
    ("prefix", {}, 0, CAUSAL),
    ("prefix", {}, 1, CAUSAL),
    ("prefix", {}, 3, PREFIX_OF_3),
    ("prefix", {}, 6, FULL),
    ("window", {"window": 1}, 0, WINDOW_OF_1),
    ("window", {"window": 3}, 0, WINDOW_OF_3),
    ("window", {"window": 6}, 0, CAUSAL),
    ("window", {"window": 60}, 0, CAUSAL),
    ("full", {}, 0, FULL),
]


@pytest.mark.parametrize(("name", "changes", "prefix_len", "expected"), HAND_WRITTEN)
def test_who_may_read_whom(name, changes, prefix_len, expected):
    assert torch.equal(can_attend(make("mask", name, **changes), prefix_len)[0], matrix(expected))


def test_each_sequence_has_a_prefix_of_its_own():
    together = can_attend("prefix", [0, 3, 6])
    assert torch.equal(together, torch.stack([matrix(CAUSAL), matrix(PREFIX_OF_3), matrix(FULL)]))


@pytest.mark.parametrize(
    ("name", "changes", "prefix_len", "expected"),
    [
        ("causal", {}, 0, [1, 1, 1, 1, 1, 1]),
        ("window", {"window": 3}, 0, [1, 1, 1, 1, 1, 1]),
        ("prefix", {}, 0, [1, 1, 1, 1, 1, 1]),
        ("prefix", {}, 1, [1, 1, 1, 1, 1, 1]),
        ("prefix", {}, 2, [0, 1, 1, 1, 1, 1]),
        ("prefix", {}, 3, [0, 0, 1, 1, 1, 1]),  # position 2 ends the prefix: its target, position 3, lies outside
        ("prefix", {}, 6, [0, 0, 0, 0, 0, 1]),
        ("prefix", {}, 9, [0, 0, 0, 0, 0, 1]),
        ("full", {}, 0, [0, 0, 0, 0, 0, 1]),  # the last target is not part of the input
    ],
)
def test_which_positions_may_be_scored(name, changes, prefix_len, expected):
    scored = make("mask", name, **changes)().may_score(6, torch.tensor([prefix_len, prefix_len]))
    assert scored.int().tolist() == [expected, expected]


def test_each_sequence_is_scored_after_a_prefix_of_its_own():
    scored = make("mask", "prefix")().may_score(6, torch.tensor([0, 3, 6]))
    assert scored.int().tolist() == [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("name", options("mask"))
def test_may_score_is_what_may_read_says_of_the_next_position(name):
    reads = can_attend(name, [0, 1, 3, 6])
    scored = make("mask", name)().may_score(6, torch.tensor([0, 1, 3, 6]))
    for sequence, row in enumerate(scored):
        table = reads[sequence % len(reads)]
        assert row.tolist() == [not table[i, i + 1] for i in range(5)] + [True]


@pytest.mark.parametrize("name", MAY_READ)
def test_flags_that_kernels_and_checks_rely_on(name):
    mask = make("mask", name)()
    assert (mask.causal, mask.bidirectional, mask.uses_prefix) == (name == "causal", name == "full", name == "prefix")


@pytest.mark.parametrize("name", options("mask"))
def test_flags_agree_with_the_predicate(name):
    mask, reads, longer = make("mask", name)(), can_attend(name, 0), can_attend(name, 4)
    assert not mask.causal or torch.equal(reads[0], matrix(CAUSAL))
    assert mask.bidirectional == bool(reads.all())
    assert mask.uses_prefix == (not torch.equal(reads, longer))


@pytest.mark.parametrize("name", options("mask"))
def test_every_position_reads_something(name):
    for prefix_len in range(7):
        assert can_attend(name, prefix_len).any(dim=-1).all()


@pytest.mark.parametrize("block", [1, 4, 5, 6, 12])
@pytest.mark.parametrize("name", options("mask"))
def test_blocks_hold_every_query_once_and_every_key_it_may_read(name, block, monkeypatch):
    monkeypatch.setattr(contexts, "QUERY_BLOCK", block)
    seq_len, prefix_lens = 13, [0, 1, 3, 7, 13]
    context = make_reading("none", name, seq_len, prefix_lens)
    everything = context.everything.can_attend
    queries = []
    for rows in context.blocks():
        queries += range(*rows.queries.indices(seq_len))
        table = everything[:, rows.queries]
        assert torch.equal(table[:, :, rows.keys], rows.can_attend)
        left_out = table.clone()
        left_out[:, :, rows.keys] = False
        assert not left_out.any()
    assert queries == list(range(seq_len))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("causal", slice(0, 9)), ("window", slice(5 - WINDOW + 1, 9)), ("full", slice(0, 13)), ("prefix", slice(0, 13))],
)
def test_reach(name, expected):
    assert make("mask", name)().reach(slice(5, 9), 13) == expected


# --- in a whole decoder -------------------------------------------------------------------------


@pytest.mark.parametrize(("other", "prefix_len"), [("causal", 0), ("causal", 1), ("full", 7)])
def test_a_prefix_mask_at_its_ends_is_another_mask(other, prefix_len):
    prefix, tokens = build(mask="prefix"), draw_tokens()
    twin = build(mask=other)
    twin.load_state_dict(prefix.state_dict())
    torch.testing.assert_close(
        prefix(tokens, prefix_len), twin(tokens), rtol=1e-10, atol=1e-10
    )  # two kernels in float64


def test_without_a_prefix_length_the_prefix_is_empty():
    decoder, tokens = build(mask="prefix"), draw_tokens()
    assert torch.equal(decoder(tokens), decoder(tokens, 0))


def test_a_prefix_length_for_each_sequence():
    decoder, tokens = build(mask="prefix"), draw_tokens(batch=3)
    apart = torch.cat([decoder(tokens[i : i + 1], prefix_len) for i, prefix_len in enumerate((0, 3, 7))])
    torch.testing.assert_close(decoder(tokens, torch.tensor([0, 3, 7])), apart, rtol=1e-10, atol=1e-10)
    together = decoder(tokens, torch.tensor([3, 3, 3]))
    torch.testing.assert_close(decoder(tokens, 3), together, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", sorted(set(MAY_READ) - {"prefix"}))
def test_a_mask_without_a_prefix_takes_no_prefix_length(name):
    with pytest.raises(ValueError, match="prefix_len=3.*mask=prefix"):
        build(mask=name)(draw_tokens(), 3)
