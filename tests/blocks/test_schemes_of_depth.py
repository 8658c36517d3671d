"""Residual schemes that know their depth, scale their branches or have several streams, against formulas and DeepSeek-V4."""

import math

import pytest
import torch
from oracles import BATCH, D_MODEL, LAYERS, SEQ, build, draw_tokens, gradients, make, make_scheme, randomise
from torch import nn
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

import archlab
from archlab.base.errors import UserError
from archlab.blocks.roles import DECAYING, Role

EXACT = dict(rtol=1e-12, atol=1e-12)  # both sides in float64
MANY_LAYERS = dict(rtol=1e-9, atol=1e-9)


def toy_branches():
    """Two unlike branches, linear maps with a bend."""
    a, b = (torch.randn(D_MODEL, D_MODEL, dtype=torch.float64) / 5 for _ in range(2))
    return (lambda x: torch.tanh(x @ a), lambda x: torch.sin(x @ b) + 0.2)


def scheme(name: str, **options):
    return randomise(make_scheme(name, lambda: make("norm", "layer")(d_model=D_MODEL), n_layers=6, **options)).double()


def at_layer(name: str, layer: int, **options):
    part = make("residual", name, **options)
    return randomise(part(norm=lambda: make("norm", "layer")(d_model=D_MODEL), n_layers=6, layer=layer)).double()


def draw_stream():
    return torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)


# --- depth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 4])
def test_layer_norm_scaling_divides_each_norm_by_the_root_of_the_layers_number(layer):
    residual, x, (f, g) = at_layer("scaled", layer), draw_stream(), toy_branches()
    first, second = residual.norms
    middle = x + f(first(x) / math.sqrt(layer + 1))
    torch.testing.assert_close(residual(x, (f, g)), middle + g(second(middle) / math.sqrt(layer + 1)), **EXACT)


@pytest.mark.parametrize(
    ("layer", "share", "post"), [(0, 0.25, True), (1, 0.25, True), (2, 0.25, False), (2, 0.5, True)]
)
def test_mix_ln_is_post_norm_in_the_first_share_of_six_layers(layer, share, post):
    residual, x, branches = at_layer("mix", layer, share=share), draw_stream(), toy_branches()
    same = scheme("post" if post else "pre")
    same.load_state_dict(residual.state_dict())
    assert torch.equal(residual(x, branches), same(x, branches))


def test_a_decoder_tells_each_scheme_its_layer():
    mixed, scaled = build(residual="mix", n_layers=8), build(residual="scaled", n_layers=8)
    assert [layer.residual.variant for layer in mixed.layers] == ["post"] * 2 + ["pre"] * 6
    assert mixed.kinds == [0, 0, 1, 1, 1, 1, 1, 1] and scaled.kinds == [0] * 8
    assert [layer.residual.scale for layer in scaled.layers] == [n**-0.5 for n in range(1, 9)]
    assert isinstance(build(residual=make("residual", "mix", share=1.0)).final_norm, nn.Identity)


# --- scales on branches --------------------------------------------------------------------------


def test_rezero_has_one_number_for_both_branches_and_starts_as_the_identity():
    residual, x, (f, g) = scheme("rezero"), draw_stream(), toy_branches()
    assert [weight.shape for weight in residual.parameters()] == [(1,)]
    middle = x + residual.alpha * f(x)
    torch.testing.assert_close(residual(x, (f, g)), middle + residual.alpha * g(middle), **EXACT)
    fresh = build(residual="rezero", norm="none", fresh=True)
    tokens = draw_tokens()
    torch.testing.assert_close(fresh(tokens), fresh.head(fresh.embedding(tokens)), **EXACT)


def test_layer_scale_has_a_number_for_each_feature_and_branch():
    residual, x, (f, g) = scheme("layer_scale"), draw_stream(), toy_branches()
    first, second = residual.norms
    middle = x + f(first(x)) @ residual.scales[0].scale.diag()
    torch.testing.assert_close(
        residual(x, (f, g)), middle + g(second(middle)) @ residual.scales[1].scale.diag(), **EXACT
    )
    fresh = make_scheme("layer_scale", nn.Identity, start=1e-5)
    assert all(torch.equal(each.scale, torch.full((D_MODEL,), 1e-5)) for each in fresh.scales)


def test_peri_ln_is_sandwich_with_a_norm_on_the_embeddings():
    """Of arXiv:2502.02732: a norm on the embeddings, one before and after each branch, one before the head."""
    decoder, tokens = build(residual="sandwich", embed_norm=True), draw_tokens()
    context = decoder.read(tokens)[0]
    x = decoder.embed_norm(decoder.embedding(tokens))
    for layer in decoder.layers:
        for part, before, after in zip(
            (lambda y, m=layer.mixer: m(y, context), layer.ffn),
            layer.residual.norms,
            layer.residual.branch_norms,
            strict=True,
        ):
            x = x + after(part(before(x)))
    torch.testing.assert_close(decoder(tokens), decoder.head(decoder.final_norm(x)), **MANY_LAYERS)


# --- several streams -----------------------------------------------------------------------------


def by_matrix(streams, connections, branch):
    """HC of (n + 1) x (n + 1), of the paper's eq. 1 to 5: its first column mixes a branch's input, its first row its output."""
    mixed = [sum(connections[i + 1][j] * h for i, h in enumerate(streams)) for j in range(len(streams) + 1)]
    out = branch(mixed[0])
    return [connections[0][j + 1] * out + mixed[j + 1] for j in range(len(streams))]


@pytest.mark.parametrize("dynamic", [False, True])
def test_hyper_connections_are_the_papers_matrix_for_each_token(dynamic):
    n = 3
    residual, x, branches = scheme("hyper", streams=n, dynamic=dynamic), draw_stream(), toy_branches()
    x = torch.stack([x, x.flip(1), x.roll(1, 2)], dim=-2).requires_grad_()
    expected = torch.zeros_like(x)
    for b in range(BATCH):
        for i in range(SEQ):
            streams = list(x[b, i])
            for which, (norm, branch) in enumerate(zip(residual.norms, branches, strict=True)):
                hc = torch.zeros(n + 1, n + 1, dtype=torch.float64)
                m = residual.mixings[which]
                hc[1:, 0], hc[1:, 1:], hc[0, 1:] = m.read, m.keep, m.write
                if dynamic:
                    h = torch.stack(streams)
                    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
                    w, s_a, s_b = m.maps, m.read_scale, m.write_scale
                    hc[1:, 0] = hc[1:, 0] + s_a * torch.tanh(h @ w[0])
                    hc[1:, 1:] = hc[1:, 1:] + s_a * torch.tanh(h @ w[1:-1].T)
                    hc[0, 1:] = hc[0, 1:] + s_b * torch.tanh(h @ w[-1])
                streams = by_matrix(streams, hc, lambda u, norm=norm, branch=branch: branch(norm(u)))
            expected[b, i] = torch.stack(streams)
    out = residual(x, branches)
    torch.testing.assert_close(out, expected, **EXACT)
    leaves = [x, *residual.parameters()]
    torch.testing.assert_close(gradients(out, leaves), gradients(expected, leaves), **MANY_LAYERS)


@pytest.mark.parametrize("dynamic", [False, True])
def test_fresh_hyper_connections_are_pre_norm(dynamic):
    """All streams are the same sum, so the head's norm of their sum is that of one."""
    part = make("residual", "hyper", streams=3, dynamic=dynamic)
    fresh, plain, tokens = build(residual=part, fresh=True), build(fresh=True), draw_tokens()
    plain.load_state_dict({n: w for n, w in fresh.state_dict().items() if n in plain.state_dict()})
    plain.final_norm.eps /= 9  # of a sum three times as long
    torch.testing.assert_close(fresh(tokens), plain(tokens), **MANY_LAYERS)
    assert [[m.read.argmax().item() for m in layer.residual.mixings] for layer in fresh.layers] == [
        [0, 1],
        [2, 0],
        [1, 2],
        [0, 1],
    ]


def test_manifold_constrained_hyper_connections_are_deepseek_v4s(monkeypatch):
    n = 4
    residual, x, branches = scheme("mhc"), draw_stream(), toy_branches()
    x = torch.stack([x, x.flip(1), x.roll(1, 2), -x], dim=-2).requires_grad_()
    config = DeepseekV4Config(hidden_size=D_MODEL, hc_mult=n, hc_sinkhorn_iters=20, hc_eps=1e-6, rms_norm_eps=1e-6)
    streams = x
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # written in their code
        for which, (norm, branch) in enumerate(zip(residual.norms, branches, strict=True)):
            theirs = DeepseekV4HyperConnection(config).double()
            ours = residual.mixings[which]
            theirs.fn.data, theirs.base.data, theirs.scale.data = ours.mix.data, ours.base.data, ours.scale.data
            post, comb, collapsed = theirs(streams)
            # as their decoder layer has it
            streams = post[..., None] * branch(norm(collapsed))[:, :, None] + comb.transpose(-1, -2) @ streams
    out = residual(x, branches)
    torch.testing.assert_close(out, streams, **EXACT)
    torch.testing.assert_close(gradients(out, [x]), gradients(streams, [x]), **MANY_LAYERS)
    keep = residual.mixings[0](x)[..., n:-n].unflatten(-1, (n, n))
    ones = torch.ones_like(keep[..., 0])
    torch.testing.assert_close(keep.sum(-2), ones, rtol=0, atol=1e-5)  # up to eps, and 20 rounds
    torch.testing.assert_close(keep.sum(-1), ones, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "learned", "start"),
    [
        ("rezero", "alpha", 0.0),
        ("layer_scale", "scales.1.scale", 0.1),
        ("hyper", "mixings.0.read_scale", 0.01),
        ("hyper", "mixings.1.write_scale", 0.01),
        ("hyper", "mixings.1.write", 1.0),
        ("mhc", "mixings.0.scale", 0.01),
        ("mhc", "mixings.1.base", 0.0),
    ],
)
def test_what_the_learned_numbers_of_a_scheme_start_at(name, learned, start):
    """arXiv:2003.04887, eq. 1; arXiv:2103.17239; arXiv:2409.19606, sec. 4; arXiv:2512.24880."""
    fresh = make_scheme(name, lambda: make("norm", "layer")(d_model=D_MODEL), n_layers=6)
    assert fresh.get_parameter(learned).unique().tolist() == pytest.approx([start])


def test_what_looks_at_the_streams_is_drawn_and_all_else_of_a_scheme_starts_as_made():
    weights = {weight.name: weight.role for weight in scheme("mhc").weights()}
    assert {name for name, role in weights.items() if role is Role.HIDDEN} == {"mixings.0.mix", "mixings.1.mix"}
    roles = {weight.name: weight.role for weight in scheme("hyper").weights()}
    assert {name for name, role in roles.items() if role is Role.HIDDEN} == {"mixings.0.maps", "mixings.1.maps"}
    assert {*roles.values()} == {Role.SCALAR, Role.GAIN, Role.BIAS, Role.HIDDEN}


def test_what_makes_hyper_connections_dynamic_decays_and_the_rest_does_not():
    """arXiv:2409.19606, sec. 4, implementation."""
    decaying = {weight.name for weight in scheme("hyper").weights() if weight.role in DECAYING}
    assert decaying == {"mixings.0.maps", "mixings.1.maps"}
    assert not any(weight.role in DECAYING for weight in scheme("hyper", dynamic=False).weights())


@pytest.mark.parametrize("name", ["hyper", "mhc"])
def test_one_stream_is_refused(name):
    with pytest.raises(
        UserError, match="residual.streams=1: one stream is not mixed with any; use 2 or more, or residual=pre"
    ):
        scheme(name, streams=1)


@pytest.mark.parametrize("name", ["scaled", "mix", "rezero", "layer_scale", "hyper", "mhc"])
def test_packed_members_have_schemes_of_their_own(name):
    decoders, tokens = [build(residual=name, n_layers=2) for _ in range(2)], draw_tokens()
    weights = {
        n: torch.stack([d.get_parameter(n).detach() for d in decoders]) for n, _ in decoders[0].named_parameters()
    }
    decoders[0].for_packs()
    packed = torch.vmap(lambda own: torch.func.functional_call(decoders[0], own, (tokens,)))(weights)
    torch.testing.assert_close(packed, torch.stack([decoder(tokens) for decoder in decoders]), **MANY_LAYERS)
    assert LAYERS != 2


@pytest.mark.parametrize(("share", "told"), [(0.25, "of 2 layers 1 post, 1 pre"), (0.5, "of 2 layers 1 post, 1 pre")])
def test_how_many_layers_a_share_comes_to_is_shown(share, told, capsys):
    print(archlab.show("size=nano", "size.n_layers=2", "residual=mix", f"residual.share={share}"))
    assert told in " ".join(capsys.readouterr().out.split())
