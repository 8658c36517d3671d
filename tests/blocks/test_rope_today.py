"""p-RoPE, LongRoPE and YaRN as released, against Hugging Face's functions that initialise RoPE, bit for bit; and p-RoPE by hand."""

import math

import pytest
import torch
from oracles import BATCH, D_MODEL, HEADS, build, draw_tokens, make
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from archlab.base.errors import UserError
from archlab.blocks.rope import rotated_features

WIDE, L = 48, 64  # features of a head, and the length that the model was trained at
SHORT = [1.0 + 0.05 * i for i in range(WIDE // 2)]
LONG = [1.0 + 1.7 * i for i in range(WIDE // 2)]


def rope(head_dim=WIDE, **options):
    return make("pos", "rope", **options)(d_model=D_MODEL, n_heads=HEADS, head_dim=head_dim)


def ours(scheme, length: int):
    return scheme.scaling.frequencies(torch.arange(length)[None]).flatten()


def theirs(kind: str, length: int, head_dim=WIDE, base=10000.0, fraction=1.0, **parameters):
    config = LlamaConfig(
        head_dim=head_dim, hidden_size=head_dim, num_attention_heads=1, max_position_embeddings=4 * L,
        rope_parameters={"rope_type": kind, "rope_theta": base, "partial_rotary_factor": fraction} | parameters,
    )  # fmt: skip
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), length)


TRAINED = {"original_max_position_embeddings": L}
CASES = {
    # name: (our options, theirs); each is compared bit for bit, float32
    "yarn": (dict(factor=4.0), dict(factor=4.0)),
    "yarn, untruncated": (dict(factor=4.0, truncate=False), dict(factor=4.0, truncate=False)),
    "yarn, gpt-oss": (
        dict(factor=32.0, truncate=False, base=150000.0, trained_len=4096, head_dim=64),
        dict(factor=32.0, truncate=False, base=150000.0, original_max_position_embeddings=4096, head_dim=64),
    ),
    "yarn, DeepSeek": (
        dict(factor=40.0, mscale=0.707, mscale_all_dim=1.0, trained_len=4096, head_dim=64),
        dict(factor=40.0, mscale=0.707, mscale_all_dim=1.0, original_max_position_embeddings=4096, head_dim=64),
    ),
    "yarn, beyond the slowest pair": (  # which makes more than a rotation within so long a sequence
        dict(factor=4.0, trained_len=100_000), dict(factor=4.0, original_max_position_embeddings=100_000)
    ),
    "yarn, wide": (dict(factor=4.0, head_dim=128, base=1e6), dict(factor=4.0, head_dim=128, base=1e6)),
    "longrope": (dict(factor=4.0, short_factor=SHORT, long_factor=LONG), dict(factor=4.0, short_factor=SHORT, long_factor=LONG)),
    "longrope, own factor": (
        dict(attention_factor=1.25, short_factor=SHORT, long_factor=LONG),
        dict(attention_factor=1.25, short_factor=SHORT, long_factor=LONG),
    ),
    "llama3": (
        dict(factor=8.0, head_dim=128, base=5e5, trained_len=8192),
        dict(factor=8.0, head_dim=128, base=5e5, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192),
    ),
}  # fmt: skip


@pytest.mark.parametrize("length", [40, L, L + 1, 300])
@pytest.mark.parametrize("name", CASES)
def test_frequencies_and_amplitude(name, length):
    options, parameters = CASES[name]
    kind = name.split(",")[0]
    scheme = rope(scaling=kind, **{"trained_len": L} | options)
    frequencies, amplitude = theirs(kind, length, **TRAINED | parameters)
    assert torch.equal(ours(scheme, length), frequencies)
    assert scheme.scaling.amplitude == pytest.approx(amplitude, rel=1e-12)
    assert scheme.uses_length == (kind == "longrope")


def test_each_sequence_is_as_long_as_it_is():
    scheme = rope(scaling="longrope", trained_len=L, factor=2.0, short_factor=SHORT, long_factor=LONG)
    both = torch.stack((torch.arange(100), torch.arange(100) // 2))  # of 100 positions and of 50
    apart = torch.cat([scheme.rotation(one[None]) for one in both])
    assert torch.equal(scheme.rotation(both), apart)


def test_phi_3_rotates_so():
    config = Phi3Config(
        hidden_size=WIDE, num_attention_heads=1, max_position_embeddings=4 * L, original_max_position_embeddings=L,
        pad_token_id=0,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": SHORT, "long_factor": LONG},
    )  # fmt: skip
    scheme = rope(scaling="longrope", trained_len=L, factor=4.0, short_factor=SHORT, long_factor=LONG)
    for length in (50, 90):
        positions = torch.arange(length)[None]
        cos, sin = Phi3RotaryEmbedding(config)(torch.zeros(1), positions)
        rotation = scheme.rotation(positions)[0]
        # float32 angles; the products of positions and frequencies are the same numbers
        torch.testing.assert_close(rotation[0], cos[0, :, : WIDE // 2], rtol=0, atol=1e-6)
        torch.testing.assert_close(rotation[1], sin[0, :, : WIDE // 2], rtol=0, atol=1e-6)


# --- p-RoPE -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "factor"), [(0.25, 1.0), (0.5, 4.0), (0.76, 1.0), (0.78, 1.0), (1.0, 2.0)]
)  # 0.78 of 24 pairs are 18.72, and 18 rotate
def test_the_highest_frequencies_stay(p, factor):
    scaled = {} if factor == 1 else dict(scaling="linear", factor=factor)
    frequencies, _ = theirs("proportional", 9, fraction=p, factor=factor)
    # A processor's vector units and what is left over round a power otherwise, by a last bit of float32.
    torch.testing.assert_close(ours(rope(p=p, **scaled), 9), frequencies, rtol=3e-7, atol=0)


def test_p_rope_by_the_papers_rotation():
    """Pair i of d/2 turns by 10000^(-2i/d) a position where i < p d/2; the rest stays as it is. Float64, features one by one."""
    d, p = 20, 0.5
    scheme, q = rope(head_dim=d, p=p), torch.randn(BATCH, HEADS, 7, d, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 4, 9, 30, 31, 100]])
    turned = scheme.rotate_queries(q, scheme.rotation(positions))
    for i in range(d // 2):
        one, other = q[..., i], q[..., i + d // 2]
        for s, position in enumerate(positions[0].tolist()):
            angle = position * 10000 ** (-2 * i / d) if i < p * d / 2 else 0.0
            expected = one[..., s] * math.cos(angle) - other[..., s] * math.sin(angle)
            torch.testing.assert_close(turned[..., s, i], expected, rtol=0, atol=3e-5)  # float32 angles up to 100
    kept = [i for i in range(d // 2) if i >= p * d / 2]
    assert torch.equal(turned[..., kept], q[..., kept])


def test_it_differs_from_partial_rotation_in_its_frequencies():
    half, partial = rope(p=0.5), rope(fraction=0.5)
    assert ours(half, 5)[-1] == 0 and len(ours(partial, 5)) == WIDE // 4
    torch.testing.assert_close(ours(partial, 5), ours(rope(), 5)[::2], rtol=1e-6, atol=0)
    assert torch.equal(ours(half, 5)[: WIDE // 4], ours(rope(), 5)[: WIDE // 4])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(p=0.01), "pos.p=0.01: leaves none of the 24 pairs.*pos=none"),
        (dict(scaling="linear", factor=2.0, truncate=False), "pos.truncate=false: changes nothing under pos.scaling=linear"),
        (dict(scaling="linear", factor=2.0, short_factor=SHORT), "pos.short_factor=.*changes nothing under"),
        (dict(scaling="yarn", factor=2.0, trained_len=L, mscale=1.0), "pos.mscale=1: changes nothing without pos.mscale_all_dim"),
        (
            dict(scaling="yarn", factor=2.0, trained_len=L, mscale=1.0, mscale_all_dim=0.7, attention_factor=1.1),
            "pos.mscale=1: changes nothing beside pos.attention_factor=1.1",
        ),
        (dict(scaling="longrope", factor=2.0, trained_len=L, long_factor=LONG), "pos.short_factor=null.*needs it"),
        (
            dict(scaling="longrope", factor=2.0, trained_len=L, long_factor=LONG, short_factor=SHORT[1:]),
            "pos.short_factor: has 23 numbers, and 24 pairs",
        ),
        (
            dict(scaling="longrope", trained_len=L, long_factor=LONG, short_factor=SHORT),
            "pos.factor=null: .*either it or pos.attention_factor",
        ),
        (
            dict(scaling="longrope", factor=2.0, attention_factor=1.2, trained_len=L, long_factor=LONG, short_factor=SHORT),
            "pos.factor=2: .*either it or pos.attention_factor",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options, problem):
    with pytest.raises(UserError, match=problem):
        rope(**options)


def test_a_decoder_with_all_of_it():
    """A sequence beyond the trained length uses the other list; a token's own prediction changes with it."""
    pos = make(
        "pos",
        "rope",
        scaling="longrope",
        trained_len=6,
        factor=2.0,
        p=0.8,
        short_factor=SHORT[:5],
        long_factor=LONG[:5],
    )
    decoder, tokens = build(pos=pos), draw_tokens(seq=9)
    short, long = decoder(tokens[:, :6]), decoder(tokens[:, :7])[:, :6]
    assert (short - long).abs().max() > 1e-3


def test_a_fraction_that_cannot_be_is_not_proposed():
    with pytest.raises(UserError, match=r"rotates 5 of the 5 features .* such as 0.4$"):
        rotated_features(1.0, 5)
