"""Attention, against torch's MultiheadAttention, plain loops, and Hugging Face's norms on queries and keys."""

from itertools import product

import pytest
import torch
from oracles import (
    BATCH,
    BIAS,
    D_MODEL,
    HEAD_DIM,
    HEADS,
    MAY_READ,
    SEQ,
    attend,
    attentions,
    build,
    every_pair_once,
    gradients,
    make,
    make_attention,
    make_reading,
    options,
    randomise,
    scores_of,
)
from torch import nn

from archlab.blocks.norm import LayerNorm

PREFIXES = (3, 5)
EXACT = dict(rtol=1e-9, atol=1e-9)  # float64 throughout
KV_HEADS_OF = {"mha": 6, "gqa": 3, "mqa": 1}


def draw_input(d_model: int = D_MODEL, batch: int = BATCH):
    return torch.randn(batch, SEQ, d_model, dtype=torch.float64).requires_grad_()


def read_of(pos: str, mask: str):
    return make_reading(pos, mask, SEQ, PREFIXES if mask == "prefix" else 0)


def by_loops(attention, x, mask, pos, softcap=None, kv_heads=HEADS):
    """The whole block from its weights: heads are consecutive stretches of head_dim features."""

    def heads(linear, number):
        projected = x @ linear.weight.T + (0 if linear.bias is None else linear.bias)
        return torch.stack([projected[..., h * HEAD_DIM : (h + 1) * HEAD_DIM] for h in range(number)], dim=1)

    q, k, v = heads(attention.q_proj, HEADS), heads(attention.k_proj, kv_heads), heads(attention.v_proj, kv_heads)
    read = attend(q, k, v, lambda b, i, j: MAY_READ[mask](i, j, PREFIXES[b]), BIAS[pos], softcap)
    joined = torch.cat([read[:, h] for h in range(HEADS)], dim=-1)
    return joined @ attention.out_proj.weight.T + (0 if attention.out_proj.bias is None else attention.out_proj.bias)


ROWS = list(product(KV_HEADS_OF, BIAS, MAY_READ, (None, 0.8), (False, True)))


@pytest.mark.parametrize(("name", "pos", "mask", "softcap", "biases"), every_pair_once(ROWS))
def test_agrees_with_loops(name, pos, mask, softcap, biases):
    attention = make_attention(name, pos=pos, mask=mask, softcap=softcap, qkv_bias=biases, out_bias=biases).double()
    x = draw_input()
    out, expected = attention(x, read_of(pos, mask)), by_loops(attention, x, mask, pos, softcap, KV_HEADS_OF[name])
    torch.testing.assert_close(out, expected, **EXACT)
    leaves = [x, *attention.parameters()]
    torch.testing.assert_close(gradients(out, leaves), gradients(expected, leaves), **EXACT)


def test_agrees_with_torchs_multihead_attention():
    d_model = HEADS * HEAD_DIM
    ours = make_attention("mha", d_model=d_model, qkv_bias=True, out_bias=True).double()
    theirs = nn.MultiheadAttention(d_model, HEADS, batch_first=True).double()
    projections = ours.q_proj, ours.k_proj, ours.v_proj
    theirs.in_proj_weight.data = torch.cat([p.weight.data for p in projections])
    theirs.in_proj_bias.data = torch.cat([p.bias.data for p in projections])
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x, context = draw_input(d_model), make_reading("none", "causal", SEQ)
    hidden = torch.ones(SEQ, SEQ, dtype=torch.bool).triu(1)
    expected, weights = theirs(x, x, x, attn_mask=hidden, average_attn_weights=False)
    torch.testing.assert_close(ours(x, context), expected, **EXACT)
    torch.testing.assert_close(gradients(ours(x, context), [x]), gradients(expected, [x]), **EXACT)
    torch.testing.assert_close(scores_of(ours, x, context, context.everything).softmax(dim=-1), weights, **EXACT)


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pos", "mask"), every_pair_once(list(product(attentions(), options("pos"), options("mask"))))
)
def test_scores_are_what_the_output_is_made_of(name, pos, mask):
    attention = make_attention(name, pos=pos, mask=mask).double()
    x, context = draw_input(), read_of(pos, mask)
    scores = scores_of(attention, x, context, context.everything)
    assert torch.equal(scores.isneginf().any(dim=1), ~context.everything.can_attend.expand(BATCH, SEQ, SEQ))
    v = attention.heads(attention.v_proj(x)).repeat_interleave(
        HEADS // KV_HEADS_OF.get(name, attention.k_proj.out_features // HEAD_DIM), dim=1
    )
    joined = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x, context), attention.out_proj(joined), **EXACT)


def test_first_row_of_a_causal_mask_reads_itself_alone():
    attention, x, context = make_attention("mha").double(), draw_input(), make_reading("none", "causal", SEQ)
    weights = scores_of(attention, x, context, context.everything).softmax(dim=-1)
    assert torch.equal(weights[:, :, 0, 0], torch.ones(BATCH, HEADS).double())
    assert not weights[:, :, 0, 1:].any()
    own = attention.out_proj(attention.v_proj(x))
    torch.testing.assert_close(attention(x, context)[:, 0], own[:, 0], **EXACT)


def test_scores_are_float32_in_a_bfloat16_model():
    attention, context = make_attention("mha", pos="alibi").bfloat16(), make_reading("alibi", "causal", SEQ)
    assert scores_of(attention, draw_input().bfloat16(), context, context.everything).dtype == torch.float32


def test_softcap_keeps_scores_within_it_and_little_ones_as_they_were():
    x, context = draw_input(), make_reading("none", "full", SEQ)
    plain, capped = (
        make_attention("mha", mask="full").double(),
        make_attention("mha", mask="full", softcap=2.0).double(),
    )
    capped.load_state_dict(plain.state_dict())
    scores, squashed = (scores_of(attention, 50 * x, context, context.everything) for attention in (plain, capped))
    assert scores.abs().max() > 100 and squashed.abs().max() <= 2.0
    scores, squashed = (scores_of(attention, 0.01 * x, context, context.everything) for attention in (plain, capped))
    torch.testing.assert_close(squashed, scores, rtol=1e-6, atol=1e-12)  # tanh(x) = x (1 - x^2/3), x below 1e-3


# --- heads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kv_heads"), KV_HEADS_OF.items())
def test_key_value_heads_by_default(name, kv_heads):
    attention = make_attention(name)
    assert attention.k_proj.out_features == attention.v_proj.out_features == kv_heads * HEAD_DIM
    assert type(attention).default_kv_heads(HEADS) == kv_heads


@pytest.mark.parametrize(("name", "admitted"), [("mha", {6}), ("gqa", {1, 2, 3, 6}), ("mqa", {1})])
def test_key_value_heads_admitted(name, admitted):
    kind = type(make_attention(name))
    assert {n for n in range(1, 7) if kind.admits(6, n)} == admitted


@pytest.mark.parametrize("name", ["gqa", "mqa"])
def test_consecutive_heads_share_a_key_value_head(name):
    """Shared heads written out once for each query head make plain multi-head attention."""
    shared, whole = make_attention(name).double(), make_attention("mha").double()
    group = HEADS // KV_HEADS_OF[name]
    weights = dict(shared.state_dict())
    for which in ("k_proj.weight", "v_proj.weight"):
        heads = weights[which].split(HEAD_DIM)
        weights[which] = torch.cat([heads[h // group] for h in range(HEADS)])
    whole.load_state_dict(weights)
    x, context = draw_input(), make_reading("none", "causal", SEQ)
    torch.testing.assert_close(shared(x, context), whole(x, context), **EXACT)


# --- norms on queries and keys ------------------------------------------------------------------


@pytest.mark.parametrize("name", attentions())
def test_qk_norm_is_an_rms_norm_of_each_head_before_it_is_turned(name):
    attention = make_attention(name, pos="rope", qk_norm="head").double()
    x, context = draw_input(), make_reading("rope", "causal", SEQ)
    q, k = attention.queries_and_keys(x, context)
    for out, projection, norm in ((q, attention.q_proj, attention.q_norm), (k, attention.k_proj, attention.k_norm)):
        torchs = nn.RMSNorm(HEAD_DIM, eps=1e-6).double()
        torchs.weight.data = norm.gain.data
        heads = torchs(projection(x).unflatten(-1, (-1, HEAD_DIM))).transpose(1, 2)
        torch.testing.assert_close(out, context.rotate_queries(heads), **EXACT)


@pytest.mark.parametrize("qk_norm", ["head", "width"])
def test_qk_norm_makes_the_size_of_queries_and_keys_immaterial(qk_norm):
    attention, x, context = (
        make_attention("gqa", qk_norm=qk_norm).double(),
        draw_input(),
        make_reading("none", "causal", SEQ),
    )
    before = attention(x, context)
    attention.q_proj.weight.data *= 70
    attention.k_proj.weight.data *= 300
    torch.testing.assert_close(
        attention(x, context), before, rtol=1e-4, atol=1e-4
    )  # eps weighs 1e-6 before and nothing after


@pytest.mark.parametrize("name", attentions())
def test_qk_norm_over_the_width_is_one_norm_over_all_heads(name):
    attention = make_attention(name, qk_norm="width").double()
    x, context = draw_input(), make_reading("none", "causal", SEQ)
    q, k = attention.queries_and_keys(x, context)
    for out, projection, norm in ((q, attention.q_proj, attention.q_norm), (k, attention.k_proj, attention.k_norm)):
        rows = projection(x)
        assert norm.gain.shape == rows.shape[-1:]
        normed = norm.gain * rows / (rows.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(out, normed.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2), **EXACT)


@pytest.mark.parametrize(("qk_norm", "queries", "keys"), [("head", HEAD_DIM, HEAD_DIM), ("width", 60, 30)])
def test_norms_on_queries_and_keys_are_of_the_models_own_kind(qk_norm, queries, keys):
    decoder = build(norm=make("norm", "layer", eps=0.3), mixer=make("mixer", "gqa", qk_norm=qk_norm))
    attention = decoder.layers[0].mixer
    for norm, width in ((attention.q_norm, queries), (attention.k_norm, keys)):
        assert (type(norm), norm.eps, norm.gain.shape, norm.shift.shape) == (LayerNorm, 0.3, (width,), (width,))


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("pos", ["none", "alibi"])
def test_a_scale_of_the_users_stands_in_the_place_of_one_over_the_root_of_head_dim(pos, softcap):
    scaled = make_attention("gqa", pos=pos, scale=0.05, softcap=softcap).double()
    plain = make_attention("gqa", pos=pos, softcap=softcap).double()
    plain.load_state_dict(scaled.state_dict())
    plain.q_proj.weight.data *= 0.05 * HEAD_DIM**0.5
    x, context = draw_input(), read_of(pos, "causal")
    torch.testing.assert_close(scaled(x, context), plain(x, context), **EXACT)
    rows = context.everything
    torch.testing.assert_close(scores_of(scaled, x, context, rows), scores_of(plain, x, context, rows), **EXACT)


# --- dropout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("mask", options("mask"))
@pytest.mark.parametrize("pos", ["none", "alibi"])
def test_dropout_acts_in_training_only(pos, mask, softcap):
    attention = make_attention("mha", pos=pos, mask=mask, softcap=softcap, dropout=0.4).double()
    without = make_attention("mha", pos=pos, mask=mask, softcap=softcap).double()
    without.load_state_dict(attention.state_dict())
    x, context = draw_input(), read_of(pos, mask)
    assert torch.equal(attention.eval()(x, context), without(x, context))
    attention.train()
    assert not torch.equal(attention(x, context), attention(x, context))


def test_dropout_is_of_weights_and_of_outputs():
    attention = randomise(make_attention("mha", dropout=0.4)).double()
    x, context = draw_input(batch=100), make_reading("none", "causal", SEQ)
    out = attention(x, context)
    assert 0.37 < (out == 0).double().mean() < 0.43  # 33,600 outputs: a standard deviation of 0.003
    attention.out_dropout.p = 0.0
    out = attention(x, context)
    assert not (out[:, 1:] == 0).all(dim=-1).any()
    assert not torch.equal(out, attention(x, context))
    attention.dropout = 0.0
    assert torch.equal(attention(x, context), attention(x, context))
