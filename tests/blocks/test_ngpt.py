"""nGPT's parts and the model they make, against the paper's formulas written out in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import (
    BATCH,
    D_FF,
    D_MODEL,
    HEAD_DIM,
    HEADS,
    SEQ,
    VOCAB,
    attend,
    build,
    draw_tokens,
    gradients,
    make,
    make_attention,
    make_reading,
    make_scheme,
    randomise,
)

from archlab.base.errors import UserError
from archlab.blocks.cache import Cache

EXACT = dict(rtol=1e-12, atol=1e-12)  # both sides in float64
ROPE = dict(rtol=1e-6, atol=1e-6)  # RoPE's angles are float32 ones on our side
NO_EPS = make("norm", "l2", eps=1e-30)


def to_length_one(x):
    return x / x.norm(dim=-1, keepdim=True)


def factors(block):
    """s = s_init * stored / s_scale, s_scale being 1 / sqrt(d_model) but in the network."""
    return block.stored * D_MODEL**0.5


def test_the_stream_moves_by_alpha_towards_each_branchs_output_on_the_sphere():
    scheme = randomise(make_scheme("ngpt", lambda: NO_EPS(d_model=D_MODEL), start=0.2)).double()
    scheme.alphas[0].stored.data[::2] *= -1  # the published code takes the absolute value
    x = to_length_one(torch.randn(BATCH, SEQ, D_MODEL).double()).requires_grad_()
    a, b = (torch.randn(D_MODEL, D_MODEL).double() for _ in range(2))
    expected = x
    for alpha, branch in zip(scheme.alphas, (a, b), strict=True):
        share = (0.2 * factors(alpha)).abs()
        expected = to_length_one((1 - share) * expected + share * to_length_one(torch.tanh(expected @ branch)))
    out = scheme(x, (lambda h: torch.tanh(h @ a), lambda h: torch.tanh(h @ b)))
    torch.testing.assert_close(out, expected, **EXACT)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(BATCH, SEQ).double(), **EXACT)
    leaves = [x, *scheme.parameters()]
    torch.testing.assert_close(gradients(out, leaves), gradients(expected, leaves), rtol=1e-10, atol=1e-12)


def test_the_network_scales_both_sides_of_its_gate():
    ffn = randomise(make("ffn", "ngpt", scale=0.5)(d_model=D_MODEL, d_ff=D_FF)).double()
    x = torch.randn(BATCH, SEQ, D_MODEL).double()
    u, v = x @ ffn.up_proj.weight.T, x @ ffn.gate_proj.weight.T
    u, v = u * ffn.s_u.stored / 0.5, v * ffn.s_v.stored / 0.5 * math.sqrt(D_MODEL)
    torch.testing.assert_close(ffn(x), (u * v / (1 + torch.exp(-v))) @ ffn.down_proj.weight.T, **EXACT)


def test_logits_are_scaled_token_by_token():
    head = make("head", "ngpt", start=3.0)(d_model=D_MODEL, vocab_size=VOCAB, norm=lambda: NO_EPS(d_model=D_MODEL))
    x = torch.randn(BATCH, SEQ, D_MODEL).double()
    torch.testing.assert_close(head.double()(x), 3 * (x @ head.weight.T), rtol=1e-6, atol=1e-6)  # scale is a float32
    randomise(head)
    torch.testing.assert_close(head(x), 3 * factors(head.s_z) * (x @ head.weight.T), **EXACT)


@pytest.mark.parametrize("mixer", ["mha", "gqa"])
def test_queries_and_keys_are_of_length_one_times_learned_factors(mixer):
    """s on queries and keys alike; a key that several heads share is scaled for each of them by its own."""
    block = make_attention(mixer, qk_norm="head", norm=NO_EPS, qk_factors=True, scale="sqrt_head_dim").double()
    x = torch.randn(BATCH, SEQ, D_MODEL).double()
    q, k, v = (block.heads(x @ part.weight.T) for part in (block.q_proj, block.k_proj, block.v_proj))
    s = factors(block.factors.s).view(HEADS, 1, HEAD_DIM)
    k, v = (part.repeat_interleave(HEADS // part.shape[1], dim=1) for part in (k, v))
    q, k = s * to_length_one(q), s * to_length_one(k)
    gathered = attend(q * HEAD_DIM, k, v, lambda b, i, j: j <= i, lambda h, i, j: 0.0)  # it divides by sqrt(head_dim)
    expected = gathered.transpose(1, 2).flatten(2) @ block.out_proj.weight.T
    torch.testing.assert_close(block(x, make_reading("none", "causal", SEQ)), expected, **EXACT)


NGPT = dict(
    norm=NO_EPS,
    residual="ngpt",
    ffn="ngpt",
    head="ngpt",
    mixer=make("mixer", "mha", qk_norm="head", qk_factors=True, scale="sqrt_head_dim"),
)


def rotated(x):
    """RoPE with base 10000 on pairs of features half a head apart. Source: arXiv:2104.09864, eq. 15."""
    half = HEAD_DIM // 2
    angles = torch.arange(SEQ).double()[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


def by_the_paper(decoder, tokens):
    """The whole model, in the order of arXiv:2410.01131, sec. 2: positions before the norm of queries and keys."""
    h = decoder.embedding.weight[tokens]
    for layer in decoder.layers:
        attention, network = layer.mixer, layer.ffn
        q, k, v = (
            (h @ part.weight.T).view(BATCH, SEQ, HEADS, HEAD_DIM).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        s = factors(attention.factors.s).view(HEADS, 1, HEAD_DIM)
        q, k = to_length_one(rotated(q)) * s, to_length_one(rotated(k)) * s
        scores = math.sqrt(HEAD_DIM) * q @ k.mT + torch.full((SEQ, SEQ), -math.inf).double().triu(1)
        gathered = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(BATCH, SEQ, -1)
        h = step(h, gathered @ attention.out_proj.weight.T, layer.residual.alphas[0])
        u = (h @ network.up_proj.weight.T) * network.s_u.stored
        v = (h @ network.gate_proj.weight.T) * network.s_v.stored * math.sqrt(D_MODEL)
        h = step(h, (u * F.silu(v)) @ network.down_proj.weight.T, layer.residual.alphas[1])
    return factors(decoder.head.s_z) * (h @ decoder.head.weight.T)


def step(h, branch, alpha):
    return to_length_one(h + (0.05 * factors(alpha)).abs() * (to_length_one(branch) - h))


def test_the_whole_model_is_the_papers():
    decoder, tokens = build(**NGPT), draw_tokens()
    torch.testing.assert_close(decoder(tokens), by_the_paper(decoder, tokens), **ROPE)


def test_what_is_decoded_is_the_parallel_forward():
    decoder, tokens, cache = build(**NGPT), draw_tokens(), Cache()
    pieces = [decoder(tokens[:, at : at + 1], cache=cache) for at in range(SEQ)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), decoder(tokens), rtol=1e-9, atol=1e-9)


def test_what_the_factors_start_at():
    """alpha 0.05, s_qk, s_u and s_z 1, s_v 1 times sqrt(d_model); kept at 1 / sqrt(d_model), those of the network at 1."""
    decoder = build(dtype=torch.float32, fresh=True, **NGPT)
    layer = decoder.layers[2]
    for block, start, scale in (
        (layer.residual.alphas[1], 0.05, 48**-0.5),
        (layer.mixer.factors.s, 1.0, 48**-0.5),
        (layer.ffn.s_u, 1.0, 1.0),
        (layer.ffn.s_v, 48**0.5, 1.0),
        (decoder.head.s_z, 1.0, 48**-0.5),
    ):
        assert block.values().unique().tolist() == pytest.approx([start]) and block.stored.unique().tolist() == pytest.approx([scale])  # fmt: skip
    assert not any(name.endswith("gain") for name, _ in decoder.named_parameters())


def test_start_and_scale_are_what_factors_act_and_are_kept_at():
    residual = make_scheme("ngpt", lambda: NO_EPS(d_model=D_MODEL), start=0.2, scale=0.7)
    ffn = make("ffn", "ngpt", start=3.0, scale=0.5)(d_model=D_MODEL, d_ff=D_FF)
    head = make("head", "ngpt", start=2.0, scale=0.6)(
        d_model=D_MODEL, vocab_size=VOCAB, norm=lambda: NO_EPS(d_model=D_MODEL)
    )
    for block, start, scale in (
        (residual.alphas[1], 0.2, 0.7),
        (ffn.s_u, 3.0, 0.5),
        (ffn.s_v, 3 * 48**0.5, 0.5),
        (head.s_z, 2.0, 0.6),
    ):
        assert block.stored.unique().tolist() == pytest.approx([scale])
        torch.testing.assert_close(block.values(), torch.full_like(block.stored, start))


def test_a_scale_by_another_name_is_refused():
    import archlab

    with pytest.raises(UserError, match="mixer.scale=sqrt_d_model: "):
        archlab.compose("mixer.scale=sqrt_d_model")
