"""Latent and differential attention, against Hugging Face's DeepSeek and DiffLlama with copied weights."""

import pytest
import torch
import transformers
from oracles import (  # fmt: skip
    BATCH,
    D_MODEL,
    HEADS,
    SEQ,
    built,
    composed,
    gradients,
    make,
    make_attention,
    make_reading,
    randomise,
)
from torch import nn
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention

from archlab.blocks.activations import Accounting
from archlab.blocks.cache import Cache
from archlab.blocks.roles import Role
from archlab.config.assemble import assemble_without_weights
from archlab.contract.subject import SMALL
from archlab.cost.measure import decode_state, measured
from archlab.hub.writing import everything

HEAD_DIM, RANK, Q_RANK, NOPE, V_DIM = 10, 13, 7, 8, 5
EXACT = dict(rtol=1e-9, atol=1e-9)  # float64 throughout, sums in another order
ANGLES = dict(rtol=1e-5, atol=1e-6)  # RoPE's angles are float32
LAMBDA = dict(rtol=1e-5, atol=1e-6)  # theirs has lambda's sums in float32


def draw_input():
    return torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64).requires_grad_()


def agree(ours, theirs, context, *arguments, tolerances):
    x = draw_input()
    out, expected = ours(x, context), theirs(x, *arguments)[0]
    torch.testing.assert_close(out, expected, **tolerances)
    torch.testing.assert_close(gradients(out, [x]), gradients(expected, [x]), **tolerances)


def copy_latent(ours, theirs, q_rank):
    """Their latent vector and rotated key are one matrix, and so are a head's key and value."""
    weights = {name: module.weight.data for name, module in theirs.named_modules() if hasattr(module, "weight")}
    of_heads = weights["kv_b_proj"].unflatten(0, (HEADS, NOPE + V_DIM))
    ours.kv_a_proj.weight.data, ours.k_rope_proj.weight.data = weights["kv_a_proj_with_mqa"].split((RANK, HEAD_DIM))
    ours.k_b_proj.weight.data, ours.v_b_proj.weight.data = of_heads[:, :NOPE].flatten(0, 1), of_heads[:, NOPE:].flatten(0, 1)  # fmt: skip
    ours.kv_a_norm.gain.data, ours.out_proj.weight.data = weights["kv_a_layernorm"], weights["o_proj"]
    names = {"q_a_proj": "q_a_proj", "q_b_proj": "q_b_proj"} if q_rank else {"q_proj": "q_proj"}
    for name, of_theirs in names.items():
        getattr(ours, name).weight.data = weights[of_theirs]
    if q_rank:
        ours.q_a_norm.gain.data = weights["q_a_layernorm"]


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(
    ("config", "block", "q_rank"),
    [
        (transformers.DeepseekV2Config, DeepseekV2Attention, None),
        (transformers.DeepseekV3Config, DeepseekV3Attention, Q_RANK),
    ],
)
def test_latent_attention_is_deepseeks(config, block, q_rank, rotated):
    settings = config(
        hidden_size=D_MODEL, num_attention_heads=HEADS, num_key_value_heads=HEADS, q_lora_rank=q_rank, kv_lora_rank=RANK,
        qk_nope_head_dim=NOPE, qk_rope_head_dim=HEAD_DIM, v_head_dim=V_DIM, attn_implementation="sdpa",
    )  # fmt: skip
    theirs = randomise(block(settings, 0))
    for name, width in (("kv_a_layernorm", RANK), ("q_a_layernorm", q_rank)):
        if width:  # theirs compute in float32
            theirs.set_submodule(name, randomise(nn.RMSNorm(width, eps=1e-6)))
    theirs = theirs.double()
    ours = make_attention(
        "mla", kv_lora_rank=RANK, q_lora_rank=q_rank, qk_nope_head_dim=NOPE, v_head_dim=V_DIM
    ).double()
    copy_latent(ours, theirs, q_rank)
    angles = torch.arange(SEQ)[:, None] * rotated / 10000 ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    context = make_reading(make("pos", "rope", layout="interleaved") if rotated else "none", "causal", SEQ)
    if block is DeepseekV2Attention:
        theirs_rotation = torch.polar(torch.ones_like(angles), angles)[None].to(torch.complex128)
        agree(ours, lambda x: theirs(x, None, position_embeddings=theirs_rotation), context, tolerances=ANGLES)
    else:
        whole = torch.cat((angles, angles), dim=-1)[None].double()
        tolerances = ANGLES if rotated else EXACT
        agree(ours, theirs, context, (whole.cos(), whole.sin()), None, tolerances=tolerances)


def test_a_scale_of_the_users_is_a_factor_on_the_queries():
    plain, scaled = (make_attention("mla", **options).double() for options in ({}, {"scale": 0.3}))
    scaled.load_state_dict(plain.state_dict())
    plain.q_proj.weight.data *= 0.3 * (2 * HEAD_DIM) ** 0.5
    x, context = draw_input(), make_reading("none", "causal", SEQ)
    torch.testing.assert_close(scaled(x, context), plain(x, context), **EXACT)


def test_decoding_caches_the_latent_vector_and_the_rotated_key_alone():
    decoder, cache = built(*SMALL, "mixer=mla", f"mixer.kv_lora_rank={RANK}").eval(), Cache()
    decoder(torch.randint(61, (BATCH, 3)), cache=cache)
    for latent, k_rope in cache.states.values():
        assert latent.shape == (BATCH, 1, 3, RANK) and k_rope.shape == (BATCH, 1, 3, HEAD_DIM)
    state = decode_state(assemble_without_weights(composed(*SMALL, "mixer=mla", f"mixer.kv_lora_rank={RANK}")))
    assert (state.per_token, state.fixed) == (4 * (RANK + HEAD_DIM), 0)  # four layers


@pytest.mark.parametrize(("kv_heads", "depth"), [(6, 0), (2, 3)])
def test_differential_attention_is_diffllamas(kv_heads, depth):
    config = transformers.DiffLlamaConfig(
        hidden_size=D_MODEL, num_attention_heads=HEADS, num_key_value_heads=kv_heads, head_dim=HEAD_DIM, attention_bias=True,
        rms_norm_eps=1e-5, attn_implementation="sdpa",
    )  # fmt: skip
    theirs = DiffLlamaAttention(config, depth).double()
    ours = make("mixer", "diff", qkv_bias=True, out_bias=True)(
        d_model=D_MODEL, n_heads=HEADS, n_kv_heads=kv_heads, head_dim=HEAD_DIM, depth=depth,
        kernel=make_attention("mha").kernel,
    ).double()  # fmt: skip
    weights = {name.replace("lambda_", "lambda_of."): weight for name, weight in theirs.state_dict().items()}
    ours.load_state_dict({name.replace("o_proj", "out_proj"): weight for name, weight in weights.items()})
    rotation = torch.ones(1, SEQ, HEAD_DIM).double(), torch.zeros(1, SEQ, HEAD_DIM).double()
    agree(ours, theirs, make_reading("none", "causal", SEQ), rotation, tolerances=LAMBDA)


def test_differential_attention_is_the_difference_of_its_softmaxes():
    """The paper's formula in float64, pair by pair."""
    attention, x = make_attention("diff").double(), draw_input()
    q, k, v = (module(x).unflatten(-1, (HEADS, HEAD_DIM)) for module in (attention.q_proj, attention.k_proj, attention.v_proj))  # fmt: skip
    hidden, pairs = torch.ones(SEQ, SEQ, dtype=torch.bool).triu(1), []
    vectors = attention.lambda_of
    factor = (
        torch.exp(vectors.q1 @ vectors.k1) - torch.exp(vectors.q2 @ vectors.k2) + 0.2
    )  # 0.8 - 0.6 in the first layer
    for one, other in zip(range(HEADS // 2), range(HEADS // 2, HEADS), strict=True):
        first, second = (
            (q[:, :, h] @ k[:, :, h].mT / HEAD_DIM**0.5).masked_fill(hidden, -torch.inf).softmax(-1)
            for h in (one, other)
        )
        read = (first - factor * second) @ torch.cat((v[:, :, one], v[:, :, other]), dim=-1)
        pairs.append(0.8 * read / (read.square().mean(-1, keepdim=True) + 1e-5).sqrt())
    expected = attention.out_proj(torch.cat(pairs, dim=-1))
    out, leaves = attention(x, make_reading("none", "causal", SEQ)), [x, *attention.parameters()]
    torch.testing.assert_close(out, expected, **EXACT)
    torch.testing.assert_close(gradients(out, leaves), gradients(expected, leaves), **EXACT)


def test_its_vectors_are_scalars_that_start_with_the_papers_spread():
    decoder = built(*SMALL, "mixer=diff")
    weights = [w for w in decoder.layers[2].mixer.weights() if w.name.startswith("lambda_of.")]
    assert len(weights) == 4 and {w.role for w in weights} == {Role.SCALAR}
    drawn = torch.cat([w.tensor for layer in decoder.layers for w in layer.mixer.weights() if w.starts_within])
    assert 0.07 < drawn.std() < 0.13 and drawn.abs().max() < 0.1 * 3**0.5  # 160 draws
    assert decoder.layers[2].mixer.lambda_of.initial == pytest.approx(0.8 - 0.6 * 0.5488116360940264)


@pytest.mark.parametrize(
    ("words", "more"),
    [(["mixer=diff"], HEADS * HEAD_DIM + HEADS // 2), (["mixer=mla", f"mixer.kv_lora_rank={RANK}"], 1)],
)
def test_they_keep_what_autograd_keeps(words, more):
    """But for a number of each norm, and for the half that lambda does not multiply: the other is a view, which keeps both."""
    rules = Accounting(4)
    decoder = assemble_without_weights(composed(*SMALL, "pos=none", "kernel=dense", *words))
    ours, theirs = list(decoder.layers[1].mixer.saved_activations(rules)), measured(decoder, 1, "mixer", rules)
    assert sum(t.pair for t in theirs) == pytest.approx(sum(t.pair for t in ours))
    assert sum(t.token for t in theirs) == pytest.approx(sum(t.token for t in ours) + 4 * more)


def test_a_released_familys_fields_can_be_asked_for_of_them():
    """So that writing such a model is refused by what differs from each family, as any other is."""
    fields = everything(composed(*SMALL, "mixer=mla"))
    assert fields["num_attention_heads"] == HEADS and not fields.get("attention_bias")
