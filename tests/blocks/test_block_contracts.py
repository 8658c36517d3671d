"""What every option of conf/ must hold, found by listing the folder: a new yaml is covered with no test edited."""

from copy import deepcopy
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from cover import COVER, choice_of
from oracles import (
    BATCH,
    BLOCKS,
    D_FF,
    D_MODEL,
    HEAD_DIM,
    HEADS,
    SEQ,
    VOCAB,
    build,
    draw_tokens,
    embeddings_of,
    every_option,
    make,
    make_attention,
    make_reading,
    make_scheme,
    node,
    options,
    randomise,
)
from torch import nn

from archlab.blocks.contracts import FeedForward, Head, Mask, Mixer, Norm, Position, Residual
from archlab.config.assemble import NothingDrawn

CONTRACTS = {
    "norm": Norm,
    "residual": Residual,
    "ffn": FeedForward,
    "pos": Position,
    "mask": Mask,
    "mixer": Mixer,
    "head": Head,
}
PREFIX = 3

each_option = pytest.mark.parametrize(("group", "name"), every_option(*BLOCKS))
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


@cache
def made_once(group, name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return build(n_layers=LAYERS_OF.get(group, 2), **{group: name})


def decoder_of(group, name):
    """A decoder with this option, of random weights in float64; whoever asks again has a copy, which is cheaper than another."""
    return deepcopy(made_once(group, name))


LAYERS_OF = {"residual": 4}
"""A scheme may do something else in the first layers and in the last; all other options are in two layers what they are in more."""


each_choice = pytest.mark.parametrize("choice", [choice_of(words) for words in COVER], ids=" ".join)
"""As few decoders as hold every option: for what each block of a decoder has to keep for the whole decoder to keep it."""


def decoder_with(choice):
    return build(n_layers=LAYERS_OF["residual"], **choice)


@cache
def read_once(group, name):
    """A decoder's embeddings and its logits of the same tokens, to ask for gradients between the two."""
    decoder = decoder_of(group, name)
    kept = embeddings_of(decoder)
    return decoder, kept, logits_of(decoder, draw_tokens())


def logits_of(decoder, tokens):
    return decoder(tokens, PREFIX if decoder.mask.uses_prefix else None)


# --- what kind of thing an option is ------------------------------------------------------------


@each_option
def test_is_a_final_block_of_its_kind_with_a_source(group, name):
    block = make(group, name).func
    assert issubclass(block, CONTRACTS[group])
    assert not block.__subclasses__(), "behaviour varies by wrapping, not by deriving from a concrete class"
    assert block.__doc__ and (group in ("norm", "residual") or "Source" in block.__doc__)


@each_option
def test_sizes_come_from_the_decoder_and_not_from_the_yaml(group, name):
    sizes = {
        "d_model",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "d_ff",
        "vocab_size",
        "kernel",
        "capped_kernel",
        "norm",
    }
    assert not sizes & set(node(group, name))


# --- shape and dtype ----------------------------------------------------------------------------


def run_norm(name, dtype):
    return make("norm", name)(d_model=D_MODEL).to(dtype)


def run_ffn(name, dtype):
    return make("ffn", name)(d_model=D_MODEL, d_ff=D_FF).to(dtype)


def run_residual(name, dtype):
    scheme = make_scheme(name, partial(make("norm", "rms"), d_model=D_MODEL)).to(dtype)
    return lambda x: scheme.leave(scheme(scheme.enter(x), (torch.tanh, torch.sin)))


def run_mixer(name, dtype):
    return partial(make_attention(name).to(dtype), context=make_reading("none", "causal", SEQ))


def run_pos(name, dtype):
    position = make("pos", name)(d_model=D_MODEL, n_heads=HEADS, head_dim=HEAD_DIM).to(dtype)
    return lambda x: position.embed(x, positions_for(position, range(SEQ)))


def positions_for(position, numbers):
    """The same numbers on every axis that a scheme has: (1, seq), or (1, axes, seq)."""
    numbers = torch.tensor([*numbers])[None]
    return numbers if position.axes == 1 else numbers.repeat(1, position.axes, 1)


def run_mask(name, dtype):
    attention = make_attention("mha", mask=name).to(dtype)
    return partial(attention, context=make_reading("none", name, SEQ, PREFIX))


def run_head(name, dtype):
    """With as many tokens as features, so that logits are shaped as the stream is."""
    return make("head", name)(
        d_model=D_MODEL, vocab_size=D_MODEL, norm=partial(make("norm", "rms"), d_model=D_MODEL)
    ).to(dtype)


RUN = {
    "head": run_head,
    "norm": run_norm,
    "ffn": run_ffn,
    "residual": run_residual,
    "mixer": run_mixer,
    "pos": run_pos,
    "mask": run_mask,
}


@each_dtype
@each_option
def test_keeps_shape_and_dtype(group, name, dtype):
    x = torch.randn(BATCH, SEQ, D_MODEL).to(dtype)
    out = RUN[group](name, dtype)(x)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)


@each_dtype
@pytest.mark.parametrize("name", options("pos"))
def test_turning_keeps_shape_and_dtype_and_norm_of_all_but_what_fades(name, dtype):
    position, q = (
        make("pos", name)(d_model=D_MODEL, n_heads=HEADS, head_dim=HEAD_DIM),
        torch.randn(BATCH, HEADS, SEQ, HEAD_DIM).to(dtype),
    )
    turned = position.rotate_queries(q, position.rotation(positions_for(position, range(SEQ))))
    assert (turned.shape, turned.dtype) == (q.shape, q.dtype)
    if name == "xpos":
        return
    rounding = 2**-7 if dtype == torch.bfloat16 else 1e-5  # of the features; of float32 cosines
    torch.testing.assert_close(turned.double().norm(dim=-1), q.double().norm(dim=-1), rtol=rounding, atol=0)


@each_choice
def test_a_decoder_of_it_gives_finite_logits_in_each_dtype(choice):
    decoder, tokens = decoder_with(choice), draw_tokens()
    for dtype in DTYPES:
        logits = logits_of(decoder.to(dtype), tokens)
        assert (logits.shape, logits.dtype) == ((BATCH, SEQ, VOCAB), dtype)
        assert logits.isfinite().all()


@each_option
def test_half_precision_follows_double(group, name):
    """A decoder in bfloat16 is the same function, to what eight bits keep through four layers."""
    wide, tokens = build(torch.float32, fresh=True, **{group: name}).eval(), draw_tokens()
    expected = logits_of(wide, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        close = logits_of(wide, tokens)
    assert (close.float() - expected).norm() < 0.1 * expected.norm()


@each_option
def test_shapes_can_be_tried_without_memory(group, name):
    with torch.device("meta"), NothingDrawn():
        decoder = build(torch.float32, fresh=True, n_layers=LAYERS_OF.get(group, 1), **{group: name})
    tokens = torch.zeros(BATCH, SEQ, dtype=torch.long, device="meta")
    assert logits_of(decoder, tokens).shape == (BATCH, SEQ, VOCAB)


@each_option
def test_weights_survive_a_state_dict(group, name):
    """What a block computes depends on its options and on what its state dict holds, and on nothing else."""
    decoder, tokens = decoder_of(group, name).eval(), draw_tokens()
    twin = build(n_layers=LAYERS_OF.get(group, 2), **{group: name}).eval()
    twin.load_state_dict(decoder.state_dict())
    assert torch.equal(logits_of(decoder, tokens), logits_of(twin, tokens))


# --- gradients ----------------------------------------------------------------------------------


@each_option
def test_gradients_reach_every_parameter(group, name):
    decoder, tokens = decoder_of(group, name).eval(), draw_tokens()
    F.cross_entropy(logits_of(decoder, tokens).flatten(0, 1), draw_tokens().flatten()).backward()
    for weight_name, weight in decoder.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), weight_name
        assert weight.grad.any(), weight_name


@each_option
def test_a_layer_shares_no_parameter_with_another(group, name):
    layers = made_once(group, name).layers
    token_positions = [weight.data_ptr() for layer in layers for weight in layer.parameters(recurse=True)]
    assert (
        len(set(token_positions))
        == len(token_positions)
        == sum(1 for layer in layers for _ in layer.named_parameters(remove_duplicate=False))
    )
    modules = [id(module) for layer in layers for module in layer.modules()]
    assert len(set(modules)) == len(modules)


@each_option
def test_only_what_a_position_may_read_and_not_score_reaches_it(group, name):
    """What may be scored has no gradient towards later tokens, unless the norm says that it leaks."""
    decoder, kept, logits = read_once(group, name)
    scored = decoder.mask.may_score(SEQ, torch.full((BATCH,), PREFIX if decoder.mask.uses_prefix else 0))
    leak = 0.0
    for position in range(SEQ):
        chosen = logits[scored[:, position], position]
        if chosen.numel() and position + 1 < SEQ:
            (gradient,) = torch.autograd.grad(chosen.square().sum(), kept, retain_graph=True)
            leak = max(leak, gradient[:, position + 1 :].abs().max().item())
    sees_future = any(norm.sees_future for norm in decoder.modules() if isinstance(norm, Norm))
    assert leak > 1e-6 if sees_future else leak == 0


@each_option
def test_sequences_do_not_touch_each_other(group, name):
    decoder, kept, logits = read_once(group, name)
    (gradient,) = torch.autograd.grad(logits[0].square().sum(), kept, retain_graph=True)
    across = any("batch" in norm.reduces for norm in decoder.modules() if isinstance(norm, Norm))
    assert gradient[1].any() == across


# --- by kind ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in options("ffn") if make("ffn", name).func.acts])
def test_a_network_transforms_each_position_alone(name):
    ffn = randomise(make("ffn", name)(d_model=D_MODEL, d_ff=D_FF)).eval().double()
    x = torch.randn(BATCH, SEQ, D_MODEL).double().requires_grad_()
    (gradient,) = torch.autograd.grad(ffn(x)[0, 2].square().sum(), x)
    touched = gradient.any(dim=-1)
    assert touched.nonzero().tolist() == [[0, 2]]
    assert ffn.gated == hasattr(ffn, "gate_proj")


@pytest.mark.parametrize("name", options("pos"))
def test_a_position_scheme_is_defined_at_any_position_or_names_its_limit(name):
    position = make("pos", name)(d_model=D_MODEL, n_heads=HEADS, head_dim=HEAD_DIM)
    last = 1_000_000 if position.limit is None else position.limit - 1
    positions = positions_for(position, [last])
    assert position.embed(torch.randn(1, 1, D_MODEL), positions).isfinite().all()
    q = torch.randn(1, HEADS, 1, HEAD_DIM)
    assert position.rotate_keys(q, position.rotation(positions)).isfinite().all()
    for other in (torch.zeros_like(positions), positions):
        assert position.bias(positions[..., None], other[..., None, :]).isfinite().all()


@pytest.mark.parametrize("name", options("pos"))
def test_a_bias_is_float32_and_announced(name):
    position = make("pos", name)(d_model=D_MODEL, n_heads=HEADS, head_dim=HEAD_DIM)
    positions = positions_for(position, range(SEQ))
    bias = position.bias(positions[..., None], positions[..., None, :])
    assert bias.dtype == torch.float32
    assert position.biases_scores == bool(bias.any())


@pytest.mark.parametrize("name", options("residual"))
def test_a_scheme_that_says_norms_alone_tell_it_from_pre_is_pre_without_them(name):
    def run(scheme):
        residual, x = make_scheme(scheme, nn.Identity), torch.linspace(-1, 1, D_MODEL).view(1, 1, -1)
        return residual.leave(residual(residual.enter(x), (torch.tanh, torch.cos)))

    same = torch.equal(run(name), run("pre"))
    assert make("residual", name).func.told_apart_by_norms == (same and name != "pre")


@pytest.mark.parametrize("group", BLOCKS)
def test_no_two_options_of_a_group_are_the_same(group):
    """Two options differ in the parameters they have or in what they compute with the same ones."""

    def fingerprint(name):
        decoder = decoder_of(group, name).eval()
        return (
            *(weight.shape for weight in decoder.parameters()),
            *logits_of(decoder, torch.arange(SEQ)[None]).flatten().tolist(),
            *in_documents(decoder, torch.arange(SEQ)[None]).flatten().tolist(),
        )

    def in_documents(decoder, tokens):
        starts = (tokens // 3).clamp(max=1) * 3
        return decoder(tokens, document_starts=starts) if decoder.mask.uses_documents else torch.zeros(())

    names = options(group)
    assert len({fingerprint(name) for name in names}) == len(names)


# --- the decoder around the blocks --------------------------------------------------------------


@each_choice
def test_recomputing_activations_changes_no_number(choice):
    decoder, tokens = decoder_with(choice).eval(), draw_tokens()

    def gradients():
        decoder.zero_grad()
        logits_of(decoder, tokens).square().sum().backward()
        return [weight.grad.clone() for weight in decoder.parameters()]

    kept = gradients()
    decoder.recompute_activations()
    assert all(torch.equal(again, before) for again, before in zip(gradients(), kept, strict=True))


def test_embeddings_are_scaled_then_placed_then_normed_then_dropped_out():
    decoder = build(pos="learned", norm="layer", embed_norm=True, embed_scale="sqrt_d_model", dropout=0.4)
    tokens, seen = draw_tokens(batch=20), []
    decoder.layers[0].register_forward_pre_hook(lambda layer, arguments: seen.append(arguments[0]))
    decoder.eval()(tokens)
    raw = decoder.embedding.weight[tokens] * 48**0.5 + decoder.position.table.weight[:SEQ]
    expected = F.layer_norm(raw, (D_MODEL,), decoder.embed_norm.gain, decoder.embed_norm.shift)
    torch.testing.assert_close(seen[0], expected, rtol=1e-12, atol=1e-12)  # float64
    decoder.train()(tokens)
    kept = seen[1] != 0
    torch.testing.assert_close(seen[1][kept], expected[kept] / 0.6, rtol=1e-12, atol=1e-12)
    assert 0.57 < kept.double().mean() < 0.63  # 6720 draws: a standard deviation of 0.006


@pytest.mark.parametrize("name", options("mixer"))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_stream_of_half_precision_goes_through_under_autocast(name, dtype):
    """A branch alone is the stream of residual=none, and as narrow as autocast's products: no part of a mixer may take it for wide."""
    torch.manual_seed(0)
    decoder = build(torch.float32, mixer=name, residual="none")
    tokens = torch.randint(VOCAB, (BATCH, SEQ))
    with torch.autocast("cpu", dtype):
        logits = decoder(tokens)
    assert logits.isfinite().all()
    logits.float().square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in decoder.parameters())
