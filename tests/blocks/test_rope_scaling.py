"""RoPE's scalings, log-n and xPos, against Hugging Face's rotary code and the papers' formulas in float64."""

import math

import pytest
import torch
from oracles import BATCH, D_MODEL, HEAD_DIM, HEADS, SEQ, build, draw_tokens, make
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from archlab.base.errors import UserError
from archlab.blocks.cache import Cache

WIDE, L = 48, 64  # features of a head, and the length that the model was trained at
FLOAT32 = dict(rtol=2e-6, atol=0)  # a power, a quotient and a product, each rounded to 2^-24


def make_rope(head_dim=WIDE, **options):
    return make("pos", "rope", **options)(d_model=D_MODEL, n_heads=HEADS, head_dim=head_dim)


def frequencies(rope, length: int):
    return rope.scaling.frequencies(torch.arange(length)[None]).flatten()


def theirs(head_dim=WIDE, base=10000.0, fraction=1.0, **parameters):
    parameters = {"rope_theta": base, "partial_rotary_factor": fraction} | parameters
    config = LlamaConfig(
        head_dim=head_dim, hidden_size=60, num_attention_heads=6, max_position_embeddings=L, rope_parameters=parameters
    )
    return LlamaRotaryEmbedding(config)


OPTIONS = {
    # name: (our options, theirs)
    "linear": (dict(factor=3.0), dict(rope_type="linear", factor=3.0)),
    "dynamic": (dict(factor=2.0, trained_len=L), dict(rope_type="dynamic", factor=2.0)),
    "yarn": (
        dict(factor=4.0, trained_len=L),
        dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=L),
    ),
    "yarn-betas": (
        dict(factor=8.0, trained_len=1000, beta_fast=20.0, beta_slow=2.0, attention_factor=1.3),
        dict(
            rope_type="yarn",
            factor=8.0,
            original_max_position_embeddings=1000,
            beta_fast=20.0,
            beta_slow=2.0,
            attention_factor=1.3,
        ),
    ),
    "llama3": (
        dict(factor=8.0, trained_len=1000),
        dict(
            rope_type="llama3",
            factor=8.0,
            original_max_position_embeddings=1000,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
        ),
    ),
    "llama3-factors": (
        dict(factor=5.0, trained_len=700, low_freq_factor=2.0, high_freq_factor=9.0),
        dict(
            rope_type="llama3",
            factor=5.0,
            original_max_position_embeddings=700,
            low_freq_factor=2.0,
            high_freq_factor=9.0,
        ),
    ),
}


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("length", [40, 64, 65, 500])
@pytest.mark.parametrize("name", OPTIONS)
def test_turns_as_hugging_face_does(name, length, fraction, base):
    ours, parameters = OPTIONS[name]
    rope, oracle = (
        make_rope(scaling=name.split("-")[0], base=base, fraction=fraction, **ours),
        theirs(base=base, fraction=fraction, **parameters),
    )
    positions = torch.arange(length)[None]
    cos, sin = oracle(torch.zeros(1), positions)  # once at this length, which is what a dynamic scaling goes by
    torch.testing.assert_close(frequencies(rope, length), oracle.inv_freq, **FLOAT32)
    assert rope.scaling.amplitude == pytest.approx(oracle.attention_scaling, rel=1e-12)
    # angles of up to 500, rounded to 2^-24 of themselves on either side
    torch.testing.assert_close(rope.rotation(positions)[0, 0], cos[0, :, : cos.shape[-1] // 2], rtol=0, atol=5e-4)
    torch.testing.assert_close(rope.rotation(positions)[0, 1], sin[0, :, : sin.shape[-1] // 2], rtol=0, atol=5e-4)


def test_yarn_multiplies_queries_and_keys_by_its_attention_factor():
    rope, oracle = make_rope(scaling="yarn", factor=4.0, trained_len=L), theirs(**OPTIONS["yarn"][1])
    q, k = torch.randn(2, BATCH, HEADS, SEQ, WIDE).unbind()
    positions = torch.arange(SEQ)[None]
    expected = apply_rotary_pos_emb(q, k, *oracle(q, positions))
    rotation = rope.rotation(positions)
    turned = rope.rotate_queries(q, rotation), rope.rotate_keys(k, rotation)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-5)  # float32 on both sides
    factor = 0.1 * math.log(4) + 1
    torch.testing.assert_close(turned[0].norm(dim=-1), factor * q.norm(dim=-1), rtol=1e-5, atol=0)


def by_hand(base: float, rotated: int) -> list[float]:
    return [base ** (-2 * i / rotated) for i in range(rotated // 2)]


def test_ntk_is_a_larger_base():
    expected = by_hand(10000.0 * 4.0 ** (WIDE / (WIDE - 2)), WIDE)
    actual = frequencies(make_rope(scaling="ntk", factor=4.0), 10)
    torch.testing.assert_close(actual.double(), torch.tensor(expected).double(), **FLOAT32)
    plain = by_hand(10000.0, WIDE)
    assert expected[0] == plain[0] and expected[-1] == pytest.approx(plain[-1] / 4, rel=1e-12)


@pytest.mark.parametrize(
    ("length", "alpha"),
    [(1, 1), (63, 1), (64, 1), (65, 3), (128, 3), (129, 7), (200, 7), (256, 7), (257, 15), (1024, 31)],
)
def test_qwens_dynamic_ntk_by_hand(length, alpha):
    """alpha = max(2^ceil(log2(T / L) + 1) - 1, 1), the values worked out for L = 64."""
    assert alpha == max(2 ** math.ceil(math.log2(length / L) + 1) - 1, 1)
    expected = by_hand(10000.0 * alpha ** (WIDE / (WIDE - 2)), WIDE)
    actual = frequencies(make_rope(scaling="dynamic_qwen", trained_len=L), length)
    torch.testing.assert_close(actual.double(), torch.tensor(expected).double(), **FLOAT32)


def test_yarn_leaves_the_fastest_pair_divides_the_slowest_and_rises_between():
    slowed = frequencies(make_rope(), 9) / frequencies(make_rope(scaling="yarn", factor=16.0, trained_len=2048), 9)
    assert slowed[0] == 1 and slowed[-1].item() == pytest.approx(16, rel=1e-6)  # float32
    assert (slowed.diff() >= -1e-6).all()  # float32
    assert ((slowed > 1.01) & (slowed < 15.9)).sum() >= 5  # a ramp and no step


def test_linear_is_a_division_of_positions():
    scaled, plain = make_rope(scaling="linear", factor=4.0), make_rope()
    positions = torch.arange(20)[None]
    torch.testing.assert_close(
        scaled.rotation(4 * positions), plain.rotation(positions), rtol=0, atol=1e-5
    )  # float32 angles up to 19


@pytest.mark.parametrize("scaling", ["dynamic", "dynamic_qwen"])
def test_a_dynamic_scaling_goes_by_each_sequences_own_length(scaling):
    rope = make_rope(scaling=scaling, trained_len=L, **({"factor": 1.0} if scaling == "dynamic" else {}))
    both = torch.stack((torch.arange(100), torch.arange(100) // 2))
    apart = [rope.rotation(positions[None]) for positions in both]
    assert torch.equal(rope.rotation(both), torch.cat(apart)) and rope.uses_length
    torch.testing.assert_close(
        apart[1], make_rope().rotation(both[1:]), rtol=0, atol=0
    )  # 50 positions: nothing to scale


def test_scalings_that_do_not_go_by_length_say_so():
    for name in ("linear", "llama3", "yarn"):
        assert not make_rope(scaling=name, **OPTIONS[name][0]).uses_length
    assert not make_rope().uses_length and not make_rope(scaling="ntk", factor=2.0).uses_length


# --- log-n --------------------------------------------------------------------------------------


def test_logn_multiplies_queries_beyond_the_trained_length_by_log_of_their_position():
    """Qwen: position i, counted from 1, beyond L, by log(i) / log(L)."""
    rope, plain = make_rope(logn=L, fraction=0.5).eval(), make_rope(fraction=0.5)
    q, positions = torch.randn(BATCH, HEADS, 100, WIDE).double(), torch.arange(20, 120)[None]
    factors = torch.tensor([math.log(i) / math.log(L) if i > L else 1.0 for i in range(21, 121)]).double()
    turned = plain.rotate_queries(q, plain.rotation(positions))
    rotation = rope.rotation(positions)
    torch.testing.assert_close(
        rope.rotate_queries(q, rotation), turned * factors[:, None], rtol=1e-6, atol=0
    )  # float32 factors
    assert torch.equal(rope.rotate_keys(q, rotation), plain.rotate_keys(q, plain.rotation(positions)))


def test_logn_is_for_inference_alone():
    rope, plain, positions = make_rope(logn=8).train(), make_rope(), torch.arange(50)[None]
    q = torch.randn(BATCH, HEADS, 50, WIDE)
    assert torch.equal(
        rope.rotate_queries(q, rope.rotation(positions)), plain.rotate_queries(q, plain.rotation(positions))
    )
    decoder = build(pos=make("pos", "rope", logn=3))
    tokens = draw_tokens()
    trained, evaluated = decoder.train()(tokens), decoder.eval()(tokens)
    assert torch.equal(trained[:, :3], evaluated[:, :3]) and not torch.allclose(trained[:, 3:], evaluated[:, 3:])


# --- xPos ---------------------------------------------------------------------------------------


def make_xpos(**options):
    return make("pos", "xpos", **options)(d_model=D_MODEL, n_heads=HEADS, head_dim=HEAD_DIM)


def xpos_score(q, k, n, m, base=10000.0, scale_base=512.0):
    """q at position n against k at m, pair by pair: zeta^((n-m)/512) times the product turned by the distance."""
    score = 0.0
    for i in range(HEAD_DIM // 2):
        zeta, angle = (2 * i + 0.4 * HEAD_DIM) / (1.4 * HEAD_DIM), (n - m) * base ** (-2 * i / HEAD_DIM)
        (a, b), (c, d) = q[2 * i : 2 * i + 2].tolist(), k[2 * i : 2 * i + 2].tolist()
        turned = math.cos(angle) * (a * c + b * d) + math.sin(angle) * (a * d - b * c)
        score += zeta ** ((n - m) / scale_base) * turned
    return score


@pytest.mark.parametrize("start", [0, 1000])
@pytest.mark.parametrize("scale_base", [512.0, 8.0])
def test_xpos_scores_fade_with_distance_as_the_formula_says(scale_base, start):
    xpos, q, k = make_xpos(scale_base=scale_base), *torch.randn(2, 1, 1, 40, HEAD_DIM, dtype=torch.float64).unbind()
    rotation = xpos.rotation(torch.arange(start, start + 40)[None])
    scores = (xpos.rotate_queries(q, rotation) @ xpos.rotate_keys(k, rotation).mT)[0, 0]
    if scale_base == 8.0 and start:  # beyond 17,000 * 8 / 512 positions the power is held
        assert scores.isfinite().all()
        return
    for n in range(0, 40, 3):
        for m in range(0, n + 1, 4):
            # float32 angles of up to 1040: 6e-5 of products of a few units, and factors of 2^60 at the most cancel
            assert scores[n, m].item() == pytest.approx(
                xpos_score(q[0, 0, n], k[0, 0, m], n, m, scale_base=scale_base), rel=1e-3, abs=2e-3
            )


def test_xpos_is_torchscales_up_to_its_common_offset():
    """Theirs counts positions from the middle, -(length // 2); scores do not change."""
    length, positions = 31, torch.arange(31, dtype=torch.float64) - 16
    scale = (torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) + 0.4 * HEAD_DIM) / (1.4 * HEAD_DIM)
    fading = scale ** (positions / 512)[:, None]
    theta = 1.0 / 10000 ** (torch.arange(0, HEAD_DIM // 2, dtype=torch.float64) / (HEAD_DIM // 2))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * theta

    def apply(x, factor):
        every_two = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)

        def twice(table):
            return table.repeat_interleave(2, dim=-1)

        return x * twice(angles.cos() * factor) + every_two * twice(angles.sin() * factor)

    q, k = torch.randn(2, BATCH, HEADS, length, HEAD_DIM, dtype=torch.float64).unbind()
    expected = apply(q, fading) @ apply(k, 1 / fading).mT
    xpos = make_xpos()
    rotation = xpos.rotation(torch.arange(length)[None])
    torch.testing.assert_close(
        xpos.rotate_queries(q, rotation) @ xpos.rotate_keys(k, rotation).mT, expected, rtol=0, atol=2e-4
    )  # float32 angles of 30


FAR = (0, 5000, 9000, 20_000, 100_000)  # the fastest pair leaves float16 at 4700 or so, and is held from 17,000 on


@pytest.mark.parametrize("start", FAR)
@pytest.mark.parametrize("mask", ["causal", "window"])
@torch.no_grad()
def test_xpos_is_the_same_function_in_float16(mask, start):
    """Under autocast, in a model of that dtype, and from a cache: to what eleven bits keep through four layers."""
    wide, tokens = build(torch.float32, pos="xpos", mask=mask).eval(), draw_tokens()
    positions = torch.arange(start, start + tokens.shape[1])[None]
    narrow = build(torch.float16, pos="xpos", mask=mask).eval()
    narrow.load_state_dict(wide.state_dict())
    expected, cache = wide(tokens, positions=positions), Cache()
    with torch.autocast("cpu", torch.float16):
        mixed = wide(tokens, positions=positions)
    pieces = [
        narrow(tokens[:, part], positions=positions[:, part], cache=cache) for part in (slice(0, 4), slice(4, None))
    ]
    for close in (mixed, narrow(tokens, positions=positions), torch.cat(pieces, dim=1)):
        assert close.dtype == torch.float16
        assert (close.float() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_xpos_trains_in_float16_at_any_position(softcap):
    decoder, tokens = build(torch.float32, pos="xpos", mixer=make("mixer", "gqa", softcap=softcap)), draw_tokens()
    with torch.autocast("cpu", torch.float16):
        logits = decoder(tokens, positions=torch.arange(9000, 9000 + tokens.shape[1])[None])
    logits.float().square().mean().backward()
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in decoder.parameters())


# --- refused ------------------------------------------------------------------------------------


REFUSED = [
    (dict(scaling="linear"), r"pos\.factor=null: pos\.scaling=linear needs it.*pos\.factor=4"),
    (dict(scaling="dynamic", factor=2.0), r"pos\.trained_len=null: pos\.scaling=dynamic needs it.*pos\.trained_len=2048"),
    (dict(factor=2.0), r"pos\.factor=2: changes nothing under pos\.scaling=none, which takes no options; leave it out"),
    (dict(scaling="linear", factor=2.0, trained_len=9), r"pos\.trained_len=9: changes nothing under pos\.scaling=linear, which takes factor;"),
    (dict(scaling="llama3", factor=2.0, trained_len=9, beta_fast=3.0), r"pos\.beta_fast=3: changes nothing under pos\.scaling=llama3"),
    (dict(scaling="linear", factor=1.0), r"pos\.factor=1: slows nothing down; use more than 1"),
    (dict(scaling="ntk", factor=0.5), r"pos\.factor=0\.5: slows nothing down"),
    (dict(scaling="yarn", factor=2.0, trained_len=9, beta_fast=1.0), r"pos\.beta_slow=1: should be below pos\.beta_fast=1;"),
    (dict(scaling="llama3", factor=2.0, trained_len=9, low_freq_factor=5.0), r"pos\.low_freq_factor=5: should be below pos\.high_freq_factor=4;"),
    (dict(scaling="yarn", factor=2.0, trained_len=9, base=1.0), r"pos\.base=1\.0: pos\.scaling=yarn.*above 1"),
    (dict(scaling="ntk", factor=2.0, head_dim=2), r"pos\.scaling: a change of base leaves the first pair.*use linear"),
    (dict(logn=1), r"pos\.logn=1: the logarithm of 1"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "told"), REFUSED, ids=lambda value: str(value)[:50])
def test_is_refused_in_one_line(options, told):
    with pytest.raises(UserError, match=told) as refused:
        make_rope(**options)
    assert "\n" not in str(refused.value)


def test_a_short_trained_length_makes_yarns_ramp_a_step():
    slowed = frequencies(make_rope(), 9) / frequencies(make_rope(scaling="yarn", factor=16.0, trained_len=6), 9)
    assert slowed[0] == 1 and torch.allclose(slowed[1:], torch.tensor(16.0))
