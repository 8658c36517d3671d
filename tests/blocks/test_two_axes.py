"""GLM's two positions, against ChatGLM-6B's own way of numbering and of turning, written out step by step."""

import math

import pytest
import torch
from oracles import BATCH, D_MODEL, HEAD_DIM, HEADS, SEQ, build, draw_tokens, make

from archlab.base.errors import UserError

FLOAT32_ANGLES = dict(rtol=0, atol=1e-5)  # angles up to 9 in float32 are off by 5e-7, times features of a few units


def make_position(name: str, head_dim: int = HEAD_DIM, **changes):
    return make("pos", name, **changes)(d_model=D_MODEL, n_heads=HEADS, head_dim=head_dim)


def numbered(length: int, prefix: int, anchor: str) -> list[list[int]]:
    """ChatGLM-6B: positions of the context, then the [gMASK]'s; zeros in the context, then 1, 2, .."""
    place = max(prefix - 1, 0) if anchor == "last" else prefix
    return [
        [i if i < prefix else place for i in range(length)],
        [0 if i < prefix else i - prefix + 1 for i in range(length)],
    ]


@pytest.mark.parametrize("anchor", ["last", "next"])
@pytest.mark.parametrize("name", ["rope_2d", "learned_2d"])
def test_positions_follow_from_the_prefix(name, anchor):
    position, prefixes = make_position(name, anchor=anchor), [0, 1, 4, 9]
    expected = torch.tensor([numbered(9, prefix, anchor) for prefix in prefixes])
    index = torch.arange(9)[None]
    assert torch.equal(position.default_positions(index, torch.tensor(prefixes)), expected)
    assert torch.equal(position.default_positions(index, torch.tensor([4])), expected[2:3])


def turn_by_hand(x, positions, widths):
    """Each part of a head is a RoPE in half layout over its own features, by its own positions; float64, one pair at a time."""
    out, start = x.clone(), 0
    for numbers, width in zip(positions, widths, strict=True):
        for s, p in enumerate(numbers):
            for i in range(width // 2):
                a, b, angle = start + i, start + i + width // 2, p * 10000 ** (-2 * i / width)
                out[..., s, a] = x[..., s, a] * math.cos(angle) - x[..., s, b] * math.sin(angle)
                out[..., s, b] = x[..., s, a] * math.sin(angle) + x[..., s, b] * math.cos(angle)
        start += width
    return out


@pytest.mark.parametrize(("head_dim", "widths"), [(8, (4, 4)), (16, (8, 8)), (10, (4, 6)), (4, (2, 2))])
def test_each_half_of_a_head_turns_by_one_of_the_positions(head_dim, widths):
    position, x = make_position("rope_2d", head_dim), torch.randn(BATCH, HEADS, SEQ, head_dim, dtype=torch.float64)
    positions = torch.tensor(
        [[[0, 1, 2, 3, 3, 3, 3], [0, 0, 0, 0, 1, 2, 3]], [[5, 9, 0, 2, 2, 2, 2], [1, 0, 7, 0, 1, 2, 3]]]
    )
    rotation = position.rotation(positions)
    for turn in (position.rotate_queries, position.rotate_keys):
        turned = turn(x, rotation)
        for b in range(BATCH):
            torch.testing.assert_close(turned[b], turn_by_hand(x[b], positions[b].tolist(), widths), **FLOAT32_ANGLES)


def test_learned_tables_are_read_at_one_position_each_and_added():
    position, x = make_position("learned_2d", max_positions=13), torch.randn(BATCH, SEQ, D_MODEL)
    positions = torch.randint(13, (BATCH, 2, SEQ))
    first, second = (table.weight for table in position.tables)
    expected = torch.stack(
        [
            torch.stack([x[b, s] + first[positions[b, 0, s]] + second[positions[b, 1, s]] for s in range(SEQ)])
            for b in range(BATCH)
        ]
    )
    torch.testing.assert_close(
        position.embed(x, positions), expected, rtol=1e-6, atol=1e-6
    )  # float32, two sums in another order
    assert position.limit == 13


@pytest.mark.parametrize("name", ["rope_2d", "learned_2d"])
def test_a_decoder_takes_the_two_positions_from_its_prefix_or_from_the_caller(name):
    decoder, tokens = build(pos=name, mask="prefix"), draw_tokens()
    by_default = decoder(tokens, torch.tensor([3, 5]))
    given = torch.tensor([numbered(SEQ, 3, "last"), numbered(SEQ, 5, "last")])
    assert torch.equal(by_default, decoder(tokens, torch.tensor([3, 5]), positions=given))
    moved = given + torch.tensor([0, 1])[:, None] * (given[:, 1:] > 0)
    assert not torch.allclose(by_default, decoder(tokens, torch.tensor([3, 5]), positions=moved))


@pytest.mark.parametrize("head_dim", [2, 7])
def test_a_head_too_narrow_for_two_is_refused(head_dim):
    with pytest.raises(UserError, match=rf"size\.head_dim={head_dim}: .*even number from 4 on"):
        make_position("rope_2d", head_dim)


def test_rows_before_the_first_position_are_opts():
    from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding

    position, theirs = make_position("learned", max_positions=11, offset=2), OPTLearnedPositionalEmbedding(11, D_MODEL)
    position.table.weight.data = theirs.weight.data
    x, positions = torch.zeros(1, 11, D_MODEL), torch.arange(11)[None]
    expected = theirs(torch.ones(1, 11, dtype=torch.long), 0, positions)
    assert torch.equal(position.embed(x, positions), expected) and position.limit == 11
