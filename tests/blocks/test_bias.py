"""Learned biases, against Hugging Face's T5 and the papers' formulas in plain loops, through every kernel."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import (
    BATCH,
    D_MODEL,
    HEAD_DIM,
    HEADS,
    SEQ,
    build,
    draw_tokens,
    gradients,
    make,
    make_attention,
    make_reading,
    randomise,
)
from transformers.models.t5.modeling_t5 import T5Attention

from archlab.base.errors import UserError

LEARNED = ("t5", "kerple", "kerple_power", "fire")
EXACT = dict(rtol=1e-9, atol=1e-9)  # float64 through a softmax


def make_bias(name: str, **changes):
    return randomise(make("pos", name, **changes)(d_model=D_MODEL, n_heads=HEADS, head_dim=HEAD_DIM)).double()


def bias_of(position, query, key):
    return position.bias(torch.as_tensor(query).view(1, -1, 1), torch.as_tensor(key).view(1, 1, -1))[0]


def t5_by_hand(position, head: int, query: int, key: int) -> float:
    d = max(query - key, 0)
    bucket = d if d < 16 else min(16 + int(math.log(d / 16) / math.log(128 / 16) * 16), 31)
    return position.table.weight[bucket, head].item()


def kerple_by_hand(position, head: int, query: int, key: int) -> float:
    return -abs(position.r1[head].item()) * math.log(1 + abs(position.r2[head].item()) * abs(query - key))


def kerple_power_by_hand(position, head: int, query: int, key: int) -> float:
    return -abs(position.r1[head].item()) * abs(query - key) ** abs(position.r2[head].item())


def fire_by_hand(position, head: int, query: int, key: int) -> float:
    def psi(x):
        return math.log(abs(position.c.item()) * x + 1)

    share = psi(abs(query - key)) / (psi(max(query, abs(512 * position.threshold_gain.item()))) + 1e-6)
    hidden = [
        max(w * share + b, 0.0)
        for (w,), b in zip(position.up_proj.weight.tolist(), position.up_proj.bias.tolist(), strict=True)
    ]
    return sum(w * h for w, h in zip(position.down_proj.weight[head].tolist(), hidden, strict=True))


BY_HAND = {"t5": t5_by_hand, "kerple": kerple_by_hand, "kerple_power": kerple_power_by_hand, "fire": fire_by_hand}


@pytest.mark.parametrize("name", LEARNED)
def test_formula(name):
    position = make_bias(name)
    queries, keys = [0, 3, 15, 16, 77, 600, 5000], [0, 1, 9, 40, 600, 4871]
    expected = [[[BY_HAND[name](position, h, i, j) for j in keys] for i in queries] for h in range(HEADS)]
    torch.testing.assert_close(
        bias_of(position, queries, keys), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )  # float64


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (12, 1000)])
def test_t5_buckets_are_hugging_faces(buckets, max_distance, bidirectional):
    position = make_bias("t5", buckets=buckets, max_distance=max_distance, bidirectional=bidirectional)
    numbers = torch.arange(0, 1500, 7)
    away = numbers[None, :] - numbers[:, None]  # key - query
    expected = T5Attention._relative_position_bucket(away, bidirectional, buckets, max_distance)
    assert torch.equal(position.bucket_of(-away[None], buckets, max_distance), expected[None])
    torch.testing.assert_close(
        bias_of(position, numbers, numbers), position.table.weight[expected].permute(2, 0, 1), rtol=0, atol=0
    )


def test_the_first_distances_have_a_bucket_each_and_the_last_one_holds_the_rest():
    position = make_bias("t5")
    bucket = position.bucket_of(torch.arange(4000)[None, None], 32, 128).flatten()
    assert bucket[:16].tolist() == list(range(16)) and (bucket.diff() >= 0).all()
    assert bucket[128:].unique().tolist() == [31] and bucket.unique().tolist() == list(range(32))


@pytest.mark.parametrize("name", ["kerple", "kerple_power"])
def test_kerple_falls_from_zero_with_distance_whatever_the_sign_of_its_numbers(name):
    position = make_bias(name)
    position.r1.data *= torch.tensor([1, -1, 1, -1, 1, -1]).double()
    position.r2.data *= torch.tensor([-1, -1, 1, 1, -1, 1]).double()
    bias = bias_of(position, [50], range(51)).squeeze(1)
    assert not bias[:, -1].any() and (bias.diff(dim=-1) > 0).all()


def test_fire_measures_distances_against_the_position_beyond_its_threshold():
    position = make_bias("fire", threshold=10.0)
    position.threshold_gain.data.fill_(1.0)
    near, far = bias_of(position, [4], [0]), bias_of(position, [9], [5])
    torch.testing.assert_close(near, far, **EXACT)  # both below the threshold: only the distance counts
    assert (bias_of(position, [40], [36]) - bias_of(position, [90], [86])).abs().max() > 1e-3


# --- through every kernel -----------------------------------------------------------------------


@pytest.mark.parametrize("softcap", [None, 1.5], ids=["fused", "explicit"])
@pytest.mark.parametrize("mask", ["causal", "prefix", "full"])
@pytest.mark.parametrize("name", LEARNED)
def test_output_and_gradients_agree_with_plain_attention(name, mask, softcap):
    prefix = (3, 5) if mask == "prefix" else (0, 0)
    attention = make_attention("gqa", pos=name, mask=mask, softcap=softcap).double()
    context = make_reading(name, mask, SEQ, prefix)
    position = randomise(context.position).double()
    context = type(context)(position, context.mask, context.token_positions)
    x = torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)
    weights = [*attention.parameters(), *position.parameters()]
    out = attention(x, context)

    q, k = (part.repeat_interleave(6 // part.shape[1], dim=1) for part in attention.queries_and_keys(x, context))
    v = attention.heads(attention.v_proj(x)).repeat_interleave(2, dim=1)
    scores = q @ k.mT / HEAD_DIM**0.5
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    index = torch.arange(SEQ)
    can_attend = {
        "causal": lambda m: index[None] <= index[:, None],
        "prefix": lambda m: (index[None] <= index[:, None]) | (index[None] < m),
        "full": lambda m: torch.ones(SEQ, SEQ, dtype=torch.bool),
    }[mask]
    hidden = ~torch.stack([can_attend(m) for m in prefix])[:, None]
    scores = (scores + bias_of(position, index, index)).masked_fill(hidden, -math.inf)
    expected = attention.out_proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, expected, **EXACT)
    found = gradients(out, weights)
    for gradient in found[-len([*position.parameters()]) :]:
        assert gradient.isfinite().all() and gradient.any()
    # The bias was worked out once for both, and so was its graph.
    torch.testing.assert_close(found, gradients(expected, weights), **EXACT)


@pytest.mark.parametrize("name", LEARNED)
def test_a_long_sequence_taken_in_blocks_is_the_same_function(name, monkeypatch):
    decoder, tokens = build(pos=name, n_layers=2), draw_tokens(seq=23)
    whole = decoder(tokens)
    whole.square().sum().backward()
    expected = {weight: parameter.grad.clone() for weight, parameter in decoder.named_parameters()}
    decoder.zero_grad()
    monkeypatch.setattr("archlab.blocks.context.QUERY_BLOCK", 5)
    blocks = decoder(tokens)
    torch.testing.assert_close(blocks, whole, **EXACT)
    blocks.square().sum().backward()
    torch.testing.assert_close(
        {name: parameter.grad for name, parameter in decoder.named_parameters()}, expected, rtol=1e-8, atol=1e-8
    )  # sums of 23 squares


@pytest.mark.parametrize("name", LEARNED)
def test_the_bias_is_float32_under_autocast_and_in_a_bfloat16_model(name):
    position, numbers = make("pos", name)(d_model=D_MODEL, n_heads=HEADS, head_dim=HEAD_DIM), torch.arange(300, 340)
    expected = bias_of(position, numbers, numbers)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(bias_of(position, numbers, numbers), expected, rtol=0, atol=0)
    rounded = {key: weight.bfloat16() for key, weight in position.state_dict().items()}
    position.load_state_dict(rounded)
    expected = bias_of(position, numbers, numbers)
    torch.testing.assert_close(bias_of(position.bfloat16(), numbers, numbers), expected, rtol=0, atol=0)


def test_a_learned_bias_can_be_learned():
    """A target that needs distances alone: the previous token. Gradients reach the bias, and the loss falls."""
    torch.manual_seed(0)
    decoder = build(torch.float32, fresh=True, pos="kerple", n_layers=1)
    before = [weight.clone() for weight in decoder.position.parameters()]
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        tokens = draw_tokens(batch=16)
        loss = F.cross_entropy(decoder(tokens)[:, 1:].flatten(0, 1), tokens[:, :-1].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all((weight != old).all() for weight, old in zip(decoder.position.parameters(), before, strict=True))


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(buckets=7), r"pos\.buckets=7: needs a half for single distances; use a multiple of 2"),
        (dict(buckets=6, bidirectional=True), r"pos\.buckets=6: needs a half of them for each direction.*multiple of 4"),
        (dict(buckets=32, max_distance=16), r"pos\.max_distance=16: is within the 16 distances"),
        (dict(buckets=32, max_distance=8, bidirectional=True), r"pos\.max_distance=8: is within the 8 distances"),
    ],
)  # fmt: skip
def test_buckets_that_make_no_sense_are_refused(options, told):
    with pytest.raises(UserError, match=told):
        make_bias("t5", **options)


def test_kerples_numbers_start_between_those_of_its_published_code():
    assert make_bias("kerple").starts_within == {"r1": (0.0, 2.0), "r2": (0.0, 1.0)}
    assert make_bias("kerple_power").starts_within == {"r1": (0.0, 1.0), "r2": (0.0, 2.0)}
