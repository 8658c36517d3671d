"""Layers are listed: rules for some of them, what each layer is then made of, and what is refused."""

import pytest
import torch
from oracles import HEAD_DIM, LAYERS, MAY_READ, SEQ, WINDOW, built, draw_tokens, embeddings_of, randomise
from transformers import Cohere2Config, Gemma2Config, Gemma3TextConfig, ModernBertConfig

import archlab
from archlab.base.errors import UserError
from archlab.base.words import layers_in
from archlab.blocks.cache import Cache
from archlab.blocks.kernel import causal_kernel, masked_kernel
from archlab.config.plan import layer_plans
from archlab.model.decoder import Decoder

SMALL = (
    "size.d_model=48", f"size.n_layers={LAYERS}", "size.n_heads=6", f"size.head_dim={HEAD_DIM}", "size.d_ff=88",
    "size.vocab_size=61", f"train.train_len={WINDOW}",
)  # fmt: skip
BY_TURNS = ("mask=window", "layers[1::2].mask=causal")


def build(*words: str) -> Decoder:
    return randomise(built(*SMALL, *words)).double()


# ---------------------------------------------------------------- which layers


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("3::4", [3, 7]),
        ("::4", [0, 4, 8]),
        (":3", [0, 1, 2]),
        ("-2:", [7, 8]),
        ("4", [4]),
        ("-1", [8]),
        ("9", []),
        ("12::2", []),
        ("2:8:3", [2, 5]),
    ],
)
def test_a_slice_is_pythons(at, expected):
    assert layers_in(at, 9) == expected


@pytest.mark.parametrize(
    ("config", "at"),
    [
        (Gemma2Config(num_hidden_layers=9), "1::2"),
        (Gemma3TextConfig(num_hidden_layers=13), "5::6"),
        (Cohere2Config(num_hidden_layers=9), "3::4"),
        (ModernBertConfig(num_hidden_layers=8), "::3"),
    ],
    ids=["gemma2", "gemma3", "cohere2", "modernbert"],
)
def test_layers_take_turns_as_in_hugging_face(config, at):
    whole = layers_in(at, config.num_hidden_layers)
    ours = ["full_attention" if depth in whole else "sliding_attention" for depth in range(config.num_hidden_layers)]
    assert ours == list(config.layer_types)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mask=local_global mask.window=9", "mask=window mask.window=9 layers[1::2].mask=causal"),
        ("mask=local_global mask.every=3", "mask=window layers[2::3].mask=causal"),
        ("mask=local_global mask.every=4 mask.first=global", "mask=window layers[::4].mask=causal"),
        ("pos=local_global", "pos=rope layers[1::2].pos=rope layers[1::2].pos.base=1000000.0"),
        (
            "pos=local_global pos.every=3 pos.local_layers.base=500 pos.global_layers.fraction=0.4",
            "pos=rope pos.base=500 layers[2::3].pos=rope layers[2::3].pos.base=1000000.0 layers[2::3].pos.fraction=0.4",
        ),
        ("attn=gqa attn.qkv_bias=true +attn.softcap=20", "mixer=gqa mixer.qkv_bias=true mixer.softcap=20"),
    ],
)
def test_older_spellings_mean_the_same(old, new):
    assert archlab.compose(*old.split(), *SMALL) == archlab.compose(*new.split(), *SMALL)


@pytest.mark.parametrize(("preset", "n_layers", "n_global"), [("gemma2_2b", 26, 13), ("gemma3_1b", 26, 4)])
def test_presets_with_layers_by_turns(preset, n_layers, n_global):
    plans = layer_plans(archlab.compose(f"preset={preset}"))
    assert len(plans) == n_layers and sum(plan.mask.name == "causal" for plan in plans) == n_global
    small = layer_plans(archlab.compose(f"preset={preset}", "size=tiny"))
    assert [plan.mask.name for plan in small] == ["window", "causal"] * 2


# ---------------------------------------------------------------- what they are then


def reach_of(decoder: Decoder, depth: int) -> torch.Tensor:
    """Which tokens the attention of one layer attends to, by its gradient towards its own input."""
    mixer = decoder.layers[depth].mixer
    context = decoder.read(draw_tokens())[decoder.pair_of_layer[depth]]
    x = torch.randn(1, SEQ, decoder.embedding.embedding_dim, dtype=torch.float64, requires_grad=True)
    out = mixer(x, context)
    rows = [torch.autograd.grad(out[0, query].sum(), x, retain_graph=True)[0][0].any(dim=-1) for query in range(SEQ)]
    return torch.stack(rows)


def table(mask: str) -> torch.Tensor:
    return torch.tensor([[MAY_READ[mask](query, key, 0) for key in range(SEQ)] for query in range(SEQ)])


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("1::2", ["window", "causal", "window", "causal"]),
        ("::2", ["causal", "window", "causal", "window"]),
        ("2::3", ["window", "window", "causal", "window"]),
        ("::4", ["causal", "window", "window", "window"]),
    ],
)
def test_each_layer_attends_by_a_mask_of_its_own(at, expected):
    decoder = build("mask=window", f"layers[{at}].mask=causal")
    for depth, mask in enumerate(expected):
        assert torch.equal(reach_of(decoder, depth), table(mask))
        assert decoder.layers[depth].mixer.kernel is (causal_kernel if mask == "causal" else masked_kernel)


def test_layers_of_one_kind_share_a_reading():
    for words, count in {BY_TURNS: 2, ("mask=causal",): 1, ("mask=window",): 1}.items():
        assert len(build(*words).read(draw_tokens())) == count
    own_base = ("layers[1::2].pos.base=1e6",)
    assert len(build(*BY_TURNS, *own_base).read(draw_tokens())) == 2
    assert (
        len(build(*BY_TURNS, "layers[2::3].pos.base=1e6").read(draw_tokens())) == 3
    )  # 0: local; 1, 3: global; 2: local, base


def test_each_layer_rotates_by_a_base_of_its_own():
    decoder = build("layers[1::2].pos.base=1e6")
    positions = torch.arange(SEQ, dtype=torch.float64)
    pair = torch.arange(HEAD_DIM // 2, dtype=torch.float64)
    for depth in range(LAYERS):
        base = 1e4 if depth % 2 == 0 else 1e6
        angles = positions[:, None] * base ** (-2 * pair / HEAD_DIM)
        rotation = decoder.read(draw_tokens())[decoder.pair_of_layer[depth]].rotation
        # float32 angles up to 6
        torch.testing.assert_close(rotation[0].double(), torch.stack((angles.cos(), angles.sin())), rtol=0, atol=2e-6)


def test_a_model_reaches_past_the_window_through_its_global_layers_alone():
    tokens = draw_tokens(batch=1, seq=4 * WINDOW * LAYERS)
    for words, reaches in ((("mask=window",), False), (BY_TURNS, True)):
        decoder = build(*words)
        kept = embeddings_of(decoder)
        (gradient,) = torch.autograd.grad(decoder(tokens)[0, -1].sum(), kept)
        assert bool(gradient[0, 0].any()) == reaches


def test_some_layers_without_positions():
    decoder = build("layers[1::2].pos=none")
    assert [type(decoder.pairs[pair][0]).__name__ for pair in decoder.pair_of_layer] == ["RoPE", "NoPosition"] * 2


def test_layers_may_differ_in_every_group_and_in_two_sizes():
    decoder = build(
        "layers[0].mixer=mqa", "layers[1].ffn=gelu", "layers[1].size.d_ff=36", "layers[2].residual=sandwich",
        "layers[3].mixer.qk_norm=head", "layers[-1].pos=alibi",
    )  # fmt: skip
    first, second, third, last = decoder.layers
    assert (first.mixer.n_kv_heads, second.mixer.n_kv_heads) == (1, 6)
    assert [layer.ffn.down_proj.in_features for layer in decoder.layers] == [88, 36, 88, 88]
    assert type(second.ffn).__name__ == "Plain" and type(third.ffn).__name__ == "Gated"
    assert len(list(third.residual.modules())) > len(list(first.residual.modules()))
    assert type(last.mixer.q_norm).__name__ == "RMSNorm" and type(third.mixer.q_norm).__name__ == "Identity"
    assert decoder.kinds == [0, 1, 2, 3]


def test_a_matched_width_is_that_of_the_layers_own_network():
    decoder = archlab.build("size=nano", "size.d_model=48", "layers[0].ffn=relu")
    assert [layer.ffn.down_proj.in_features for layer in decoder.layers] == [192, 128]  # 4 d, and 2/3 of it, to eights


def test_the_later_rule_has_the_last_word():
    plans = layer_plans(archlab.compose("layers[1:].ffn=gelu", "layers[2].ffn=relu", *SMALL))
    assert [plan.ffn.name for plan in plans] == ["swiglu", "gelu", "relu", "gelu"]


def test_weights_that_layers_share_a_name_for_start_alike_whatever_the_rules():
    plain, ruled = built(*SMALL), built(*SMALL, "layers[1::2].pos=alibi", "layers[0].ffn=gelu")
    for name, weight in ruled.state_dict().items():
        if "layers.0.ffn" not in name:
            assert torch.equal(weight, plain.state_dict()[name]), name


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["layers[9::10].mask=window"], "layers[9::10]: matches none of the size.n_layers=4 layers, counted from 0; use another slice, or more layers"),
        (["layers[:2].mask=causal"], "layers[:2].mask=causal: changes nothing: these layers have it anyway, or a later rule replaces it; leave it out"),
        (["layers[0].ffn=gelu", "layers[0].size.d_ff=88"], "layers[0].size.d_ff=88: changes nothing: these layers have it anyway, or a later rule replaces it; leave it out"),
        (["layers[0].ffn=gelu", "layers[:1].ffn=relu"], "layers[0].ffn=gelu: changes nothing: these layers have it anyway, or a later rule replaces it; leave it out"),
        (["layers[:].mask=window"], "mask=causal: changes nothing: rules replace it in every layer; leave some layers out of them, or set mask=... for the whole model"),
        (["layers[0].norm=layer"], "layers[0].norm: applies to the whole model; layers may differ only in mixer, ffn, residual, pos, mask, size.d_ff, size.n_kv_heads"),
        (["layers[0].size.d_model=8"], "layers[0].size.d_model: applies to the whole model; layers may differ only in mixer, ffn, residual, pos, mask, size.d_ff, size.n_kv_heads"),
        (["layers[0].size.d_ff=0"], "layers[0].size.d_ff=0: should be a whole number, 1 or more"),
        (["layers[0].mask=windw"], "mask=windw: no such option; did you mean window? options: causal, chunked, document, full, prefix, window"),
        (["layers[0].pos.bse=7"], "layers[0].pos.bse: no such option; it has: base, layout, fraction, p, scaling, factor, trained_len, beta_fast, beta_slow, attention_factor, low_freq_factor, high_freq_factor, mscale, mscale_all_dim, truncate, short_factor, long_factor, logn"),
        (["layers[0].pos.base=-1"], "pos.base=-1: should be greater than 0"),
        (["layers[a].pos=none"], "layers[a].pos: a rule names a slice of the layers and what is another choice there, as in layers[3::4].pos=none or layers[:3].ffn=gelu; layers count from 0"),
        (["layers[0].pos=sinusoidal"], "layers: SinusoidalPosition adds to the embeddings, which all layers share; use it for the whole model, or in some layers a scheme that rotates queries and keys or biases scores"),
        (["layers[0].pos=learned"], "layers: LearnedPosition adds to the embeddings, which all layers share; use it for the whole model, or in some layers a scheme that rotates queries and keys or biases scores"),
        (["layers[0].pos=rope_2d"], "layers: RoPE2D has positions of its own beside RoPE's; in some layers use a scheme of one axis, without a table"),
        (["mask=local_global", "mask.every=1"], "mask.every=1: should be a whole number, 2 or more"),
        (["mask=local_global", "mask.first=both"], "mask.first=both: should be 'local' or 'global'"),
        (["mask=local_global", "mask.every=9"], "layers[8::9]: matches none of the size.n_layers=4 layers, counted from 0; use another slice, or more layers"),
        (["mask=causal,local_global"], "mask=causal,local_global: layers by turns are a rule, such as mask=window layers[1::2].mask=causal; sweep over the slice or over what stands there"),
    ],
)  # fmt: skip
def test_one_line_says_what_cannot_be(overrides, line):
    with pytest.raises(UserError) as refusal:
        archlab.compose(*overrides, *SMALL)
    assert str(refusal.value) == line


@pytest.mark.parametrize("other", ["layers[0].pos.base=100", "layers[0].pos=none", "layers[0].pos=xpos"])
@torch.no_grad()
def test_each_layer_decodes_by_its_own_scheme(other):
    """One token at a time, where each scheme's rotations are found for several tokens at once."""
    decoder, tokens, cache = build("pos=rope", other), draw_tokens(), Cache()
    pieces = [decoder(piece, cache=cache) for piece in tokens.split(1, dim=1)]
    # Angles are float32, and the same ones.
    torch.testing.assert_close(torch.cat(pieces, dim=1), decoder(tokens), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "words", [(), ("embed.width=24",), ("mtp.form=chained",), ("mtp.form=independent", "embed.width=24")]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_stream_is_as_wide_as_the_table_under_autocast(words, dtype):
    """What all layers add to: a projection of the embeddings, which autocast makes narrow, does not decide its dtype."""
    decoder, seen = built("size=nano", *words), []
    for layer in decoder.trained_layers:
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    tokens = torch.randint(256, (1, SEQ))
    with torch.autocast("cpu", dtype):
        decoder.compute(tokens, decoder.read(tokens), ahead=decoder.ahead)
    assert seen == [torch.float32] * len(decoder.trained_layers)


@pytest.mark.parametrize(
    "words",
    [
        ("norm=batch", "mask=full"),
        ("norm=batch", "mask=full", "loop.times=3"),
        ("ffn=experts", "ffn.balance_rate=0.1"),
        ("dropout=0.3",),
    ],
    ids=" ".join,
)
def test_a_layer_that_is_run_again_counts_each_batch_once(words):
    """Gradients, and what a layer keeps from step to step, such as a norm's running statistics, are those of running it once."""
    tokens = torch.randint(256, (3, SEQ))

    def after_a_step(again: bool) -> dict[str, torch.Tensor]:
        decoder = built("size=nano", *words).train()
        if again:
            decoder.recompute_activations()
        torch.manual_seed(0)
        decoder(tokens).square().mean().backward()
        return {
            **decoder.state_dict(),
            **{f"{name} gradient": weight.grad for name, weight in decoder.named_parameters()},
        }

    once, twice = after_a_step(False), after_a_step(True)
    assert [name for name, kept in once.items() if not torch.equal(kept, twice[name])] == []
