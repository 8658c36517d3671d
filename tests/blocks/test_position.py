"""Positions, against the papers' formulas in float64 and Hugging Face's rotary and ALiBi code."""

import math

import pytest
import torch
from oracles import (
    BATCH,
    D_MODEL,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LOG2_SLOPES,
    SEQ,
    build,
    built,
    draw_tokens,
    make,
    make_attention,
    make_reading,
    randomise,
    scores_of,
)
from transformers import LlamaConfig
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.falcon.modeling_falcon import build_alibi_tensor as build_falcon_alibi_tensor
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as rotate_as_gptj
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_as_llama
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from archlab.base.errors import UserError
from archlab.blocks.bias import alibi_slopes
from archlab.blocks.token_positions import PositionLimit

EXACT = dict(rtol=1e-12, atol=1e-12)  # float64 throughout
FLOAT32_ANGLES = dict(rtol=0, atol=1e-5)  # angles up to 7 in float32 are off by 4e-7, times features of a few units


def make_position(name: str, d_model=D_MODEL, n_heads=HEADS, head_dim=HEAD_DIM, **changes):
    return make("pos", name, **changes)(d_model=d_model, n_heads=n_heads, head_dim=head_dim)


def turn(rope, x, positions):
    return rope.rotate_queries(x, rope.rotation(torch.as_tensor(positions)[None]))


def draw_heads(seq: int = SEQ, heads: int = HEADS):
    return torch.randn(BATCH, heads, seq, HEAD_DIM, dtype=torch.float64)


# --- RoPE ---------------------------------------------------------------------------------------


def pairs(layout: str, rotated: int) -> list[tuple[int, int]]:
    half = rotated // 2
    return [(i, i + half) if layout == "half" else (2 * i, 2 * i + 1) for i in range(half)]


def turn_by_hand(x, positions, base, layout, rotated):
    """Each pair (a, b) turned by p * base^(-2i/r), one at a time in float64."""
    out = x.clone()
    for s, p in enumerate(positions):
        for i, (a, b) in enumerate(pairs(layout, rotated)):
            angle = p * base ** (-2 * i / rotated)
            out[..., s, a] = x[..., s, a] * math.cos(angle) - x[..., s, b] * math.sin(angle)
            out[..., s, b] = x[..., s, a] * math.sin(angle) + x[..., s, b] * math.cos(angle)
    return out


@pytest.mark.parametrize("base", [10000.0, 500000.0, 7.0])
@pytest.mark.parametrize(("fraction", "rotated"), [(1.0, 10), (0.4, 4), (0.6, 6)])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rope_formula(layout, fraction, rotated, base):
    rope, x = make_position("rope", layout=layout, fraction=fraction, base=base), draw_heads()
    expected = turn_by_hand(x, range(SEQ), base, layout, rotated)
    torch.testing.assert_close(turn(rope, x, range(SEQ)), expected, **FLOAT32_ANGLES)
    assert torch.equal(turn(rope, x, range(SEQ))[..., rotated:], x[..., rotated:])


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rope_angles_hold_at_long_positions(layout):
    rope = make_position("rope", layout=layout)
    positions = torch.tensor([0, 1, 257, 4095, 65537, 131071, 131072])
    theta = torch.tensor([10000 ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)], dtype=torch.float64)
    angles = positions.double()[:, None] * theta
    # Rounded to float32, 2^-24 of it each: the exponent, which moves theta by |ln theta| times that; the power (to two
    # units), its reciprocal, the angle; then the cosine.
    bound = angles * (theta.log().abs() + 5) * 2**-24 + 2**-23
    cos, sin = rope.rotation(positions[None])[0].double()
    assert ((cos - angles.cos()).abs() <= bound).all()
    assert ((sin - angles.sin()).abs() <= bound).all()


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_rope_scores_depend_on_the_distance_alone(layout, fraction):
    rope = make_position("rope", layout=layout, fraction=fraction)
    q, k = draw_heads(), draw_heads()

    def scores(start):
        positions = range(start, start + SEQ)
        return turn(rope, q, positions) @ turn(rope, k, positions).mT

    # angles of up to 131 in float32 are off by 1.5e-5, times products of norm ten
    torch.testing.assert_close(scores(0), scores(131), rtol=0, atol=1e-3)
    unturned = q @ k.mT
    assert (scores(0) - unturned).abs().max() > 1
    torch.testing.assert_close(
        scores(0).diagonal(dim1=-2, dim2=-1), unturned.diagonal(dim1=-2, dim2=-1), **FLOAT32_ANGLES
    )


def test_rope_keeps_every_norm():
    x = draw_heads()
    torch.testing.assert_close(
        turn(make_position("rope"), x, range(50, 50 + SEQ)).norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_rope_layouts_are_equal_up_to_a_permutation(fraction):
    half, interleaved = (make_position("rope", layout=layout, fraction=fraction) for layout in ("half", "interleaved"))
    rotated, x = round(fraction * HEAD_DIM), draw_heads()
    order = [i for pair in zip(range(rotated // 2), range(rotated // 2, rotated), strict=True) for i in pair]
    order += range(rotated, HEAD_DIM)  # interleaved feature n is half's feature order[n]
    torch.testing.assert_close(
        turn(interleaved, x[..., order], range(SEQ)), turn(half, x, range(SEQ))[..., order], **EXACT
    )
    assert (turn(interleaved, x, range(SEQ)) - turn(half, x, range(SEQ))).abs().max() > 0.1


def test_rope_half_is_llamas():
    config = LlamaConfig(hidden_size=60, num_attention_heads=HEADS, head_dim=HEAD_DIM, max_position_embeddings=64)
    x, k, positions = draw_heads(), draw_heads(heads=KV_HEADS), torch.arange(30, 30 + SEQ)
    cos, sin = LlamaRotaryEmbedding(config)(x, positions[None])
    rope = make_position("rope")
    theirs = rotate_as_llama(x, k, cos, sin)
    torch.testing.assert_close(
        (turn(rope, x, positions), turn(rope, k, positions)), theirs, rtol=0, atol=1e-4
    )  # angles of up to 37


def test_rope_interleaved_is_gptjs():
    x, positions = draw_heads(), torch.arange(30, 30 + SEQ)
    sin, cos = create_sinusoidal_positions(64, HEAD_DIM)[positions].double()[None].chunk(2, dim=-1)
    theirs = rotate_as_gptj(x.transpose(1, 2), sin, cos).transpose(1, 2)
    torch.testing.assert_close(
        turn(make_position("rope", layout="interleaved"), x, positions), theirs, rtol=0, atol=1e-4
    )


def test_rope_angles_stay_float32_under_a_bfloat16_model():
    decoder = build(dtype=torch.bfloat16, pos="rope")
    rotation = decoder.read(draw_tokens(seq=600))[0].rotation
    assert rotation.dtype == torch.float32
    # bfloat16 holds every integer up to 256 and none of the odd ones beyond.
    neighbours = (rotation[0, :, 257:] - rotation[0, :, 256:-1]).abs().amax(dim=(0, 2))
    assert neighbours.min() > 0.1
    x = draw_heads(seq=600).bfloat16()
    turned = decoder.position.rotate_keys(x, rotation)
    assert turned.dtype == torch.bfloat16
    expected = turn_by_hand(x.double(), range(600), 10000.0, "half", HEAD_DIM)
    torch.testing.assert_close(turned.double(), expected, rtol=2**-8, atol=1e-3)  # one rounding to bfloat16


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_rope_turns_features_in_pairs_or_says_so(fraction):
    with pytest.raises(UserError, match=rf"pos\.fraction={fraction}.*pairs.*0\.2 or 1"):
        make_position("rope", fraction=fraction)


# --- ALiBi --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_heads", LOG2_SLOPES)
def test_alibi_slopes_by_hand(n_heads):
    assert [math.log2(slope) for slope in alibi_slopes(n_heads, torch.device("cpu")).tolist()] == pytest.approx(
        LOG2_SLOPES[n_heads], abs=1.5e-7
    )  # a slope is rounded to float32, by 2^-24 of itself


@pytest.mark.parametrize("n_heads", range(1, 129))
def test_alibi_slopes_are_blooms_and_mpts(n_heads):
    ours = alibi_slopes(n_heads, torch.device("cpu"))
    last_key = build_alibi_tensor(torch.ones(1, 2), n_heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(ours, last_key, rtol=1e-6, atol=0)  # theirs are powers of a rounded float32
    torch.testing.assert_close(ours, -build_mpt_alibi_tensor(n_heads, 2)[:, 0, 0], rtol=1e-6, atol=0)


def test_alibi_bias_is_minus_slope_times_distance_both_ways():
    rows = make_reading("alibi", "full", SEQ).everything
    expected = [
        [[-(2.0 ** LOG2_SLOPES[HEADS][h]) * abs(i - j) for j in range(SEQ)] for i in range(SEQ)] for h in range(HEADS)
    ]
    assert torch.equal(rows.bias, torch.tensor([expected]))


def test_scaled_alibi_is_falcons_before_it_divides_the_scores():
    """Of 8 heads, whose slopes bfloat16 has exactly; theirs grows with the key, which no softmax tells from our distance."""
    rows = make_reading(make("pos", "alibi", scaled=True), "causal", SEQ, n_heads=8).everything
    theirs = build_falcon_alibi_tensor(torch.ones(1, SEQ), 8, torch.float64)[:, 0] / HEAD_DIM**0.5
    last_query = rows.bias[0, :, -1].double()
    torch.testing.assert_close(last_query - last_query[:, :1], theirs - theirs[:, :1], rtol=1e-6, atol=0)
    with pytest.raises(UserError, match=r"pos.scaled=true: changes nothing with size.head_dim=1"):
        make_position("alibi", head_dim=1, scaled=True)


def test_alibi_rewards_no_key_for_being_far_even_ahead():
    """Between equal keys the nearer has strictly more weight: also inside a prefix, where keys lie ahead."""
    prefix = 5
    attention = make_attention("mha", pos="alibi", mask="prefix")
    attention.k_proj.weight.data.zero_()
    context = make_reading("alibi", "prefix", SEQ, prefix)
    weights = scores_of(attention, torch.randn(1, SEQ, D_MODEL), context, context.everything).softmax(dim=-1)
    for query in range(SEQ):
        readable = [key for key in range(SEQ) if key <= query or key < prefix]
        for near in readable:
            for far in readable:
                if abs(query - near) < abs(query - far):
                    assert (weights[0, :, query, near] > weights[0, :, query, far]).all()


# --- added to the embeddings --------------------------------------------------------------------


@pytest.mark.parametrize("d_model", [48, 47])
@pytest.mark.parametrize("base", [10000.0, 100.0])
def test_sinusoidal_formula(d_model, base):
    x, positions = torch.randn(BATCH, SEQ, d_model).double(), range(3, 3 + SEQ)
    waves = [
        [(math.sin if f % 2 == 0 else math.cos)(p / base ** ((f - f % 2) / d_model)) for f in range(d_model)]
        for p in positions
    ]
    out = make_position("sinusoidal", d_model=d_model, base=base).embed(x, torch.tensor(positions)[None])
    torch.testing.assert_close(
        out, x + torch.tensor(waves, dtype=torch.float64), rtol=0, atol=2e-6
    )  # float32 angles up to 9


def test_sinusoidal_angles_stay_float32_under_bfloat16():
    position, x = make_position("sinusoidal"), torch.zeros(1, 600, D_MODEL)
    waves = position.embed(x, torch.arange(600)[None])
    torch.testing.assert_close(position.embed(x.bfloat16(), torch.arange(600)[None]), waves.bfloat16(), rtol=0, atol=0)


def test_learned_adds_the_row_of_each_position():
    position, x = make_position("learned", max_positions=9), torch.randn(BATCH, SEQ, D_MODEL)
    positions = torch.tensor([8, 0, 3, 3, 1, 7, 2])
    expected = torch.stack([x[:, s] + position.table.weight[p] for s, p in enumerate(positions.tolist())], dim=1)
    assert torch.equal(position.embed(x, positions[None]), expected)


def test_learned_says_where_its_table_ends():
    decoder = build(pos=make("pos", "learned", max_positions=9))
    assert decoder(draw_tokens(seq=9)).shape[1] == 9
    with pytest.raises(PositionLimit, match=r"pos\.max_positions=9.*10 tokens") as refused:
        decoder(draw_tokens(seq=10))
    assert refused.value.limit == 9


@pytest.mark.parametrize("name", ["none", "alibi", "rope"])
def test_leaves_the_embeddings_alone(name):
    x = torch.randn(BATCH, SEQ, D_MODEL)
    assert make_position(name).embed(x, torch.arange(SEQ)[None]) is x


@pytest.mark.parametrize("name", ["none", "alibi", "learned", "sinusoidal"])
def test_leaves_queries_and_keys_alone(name):
    x = draw_heads()
    assert turn(make_position(name), x, range(SEQ)) is x


@pytest.mark.parametrize("name", ["none", "rope", "learned", "sinusoidal"])
def test_leaves_the_scores_alone(name):
    position = make_position(name)
    assert not position.biases_scores
    assert not position.bias(torch.arange(SEQ).view(1, -1, 1), torch.arange(SEQ).view(1, 1, -1)).any()


def test_without_position_and_mask_a_decoder_cannot_tell_order():
    decoder, tokens, order = build(pos="none", mask="full"), draw_tokens(), torch.randperm(SEQ)
    torch.testing.assert_close(decoder(tokens[:, order]), decoder(tokens)[:, order], **EXACT)


SCHEMES = ["pos=rope", "pos=xpos", "pos=xpos pos.scale_base=0.3", "pos=alibi", "pos=t5", "pos=kerple", "pos=kerple_power", "pos=fire pos.threshold=2", "pos=learned",
           "pos=sinusoidal", "pos=rope pos.logn=4", "pos=rope pos.scaling=dynamic pos.factor=2 pos.trained_len=8"]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("words", SCHEMES)
def test_a_scheme_goes_by_distance_where_moving_all_positions_changes_nothing(words):
    decoder = randomise(built("size=nano", "embed.scale=none", *words.split())).double().eval()
    tokens, positions = torch.randint(61, (1, 15)), torch.arange(15)[None]
    there, moved = decoder(tokens, positions=positions), decoder(tokens, positions=positions + 9)
    change = float((there - moved).abs().max() / there.abs().max())
    assert (change < 1e-5) == decoder.position.goes_by_distance(15 + 9)


@pytest.mark.parametrize("name", ["rope", "xpos", "rope_2d", "sinusoidal"])
def test_what_a_position_is_rotated_by_does_not_depend_on_those_beside_it(name):
    """So that tokens decoded one at a time are exactly those of the whole sequence."""
    scheme, index = make("pos", name)(d_model=48, n_heads=3, head_dim=12).eval(), torch.arange(301)[None]
    positions = scheme.default_positions(index, torch.tensor([5]))

    def of(positions):
        return (
            scheme.embed(torch.zeros(1, positions.shape[-1], 48), positions)
            if scheme.embeds
            else scheme.rotation(positions)
        )

    pieces = [of(positions[..., start : start + 1]) for start in range(index.shape[1])]
    assert torch.cat(pieces, dim=1 if scheme.embeds else 2).equal(of(positions))
