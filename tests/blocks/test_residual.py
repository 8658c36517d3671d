"""Residual schemes, against their formulas, torch's encoder layer and the constants their papers print."""

import pytest
import torch
from oracles import BATCH, D_MODEL, HEADS, SEQ, VOCAB, attend, build, draw_tokens, gradients, make, randomise
from torch import nn

EXACT = dict(rtol=1e-12, atol=1e-12)  # both sides in float64
MANY_LAYERS = dict(rtol=1e-9, atol=1e-9)  # float64 through several layers, kernels of different order of summation


def toy_branches():
    """Two unlike branches, linear maps with a bend."""
    a, b = (torch.randn(D_MODEL, D_MODEL, dtype=torch.float64) / 5 for _ in range(2))
    return (lambda x: torch.tanh(x @ a), lambda x: torch.sin(x @ b) + 0.2)


def make_residual(name: str, norm: str = "layer", n_layers: int = 6):
    scheme = make("residual", name)(norm=lambda: make("norm", norm)(d_model=D_MODEL), n_layers=n_layers)
    return randomise(scheme).double()


def draw_stream(scale: float = 1.0):
    return scale * torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)


def in_turn(step):
    """A scheme that adds attention f, then the network g, each with a norm of its own."""

    def scheme(x, f, g, norms):
        x = step(x, f, norms[0])
        return step(x, g, norms[1])

    return scheme


def sandwich(x, f, g, norms):
    before_f, before_g, after_f, after_g = norms
    x = x + after_f(f(before_f(x)))
    return x + after_g(g(before_g(x)))


FORMULAS = {  # six layers
    "pre": in_turn(lambda x, f, norm: x + f(norm(x))),
    "post": in_turn(lambda x, f, norm: norm(x + f(x))),
    "deep": in_turn(lambda x, f, norm: norm(1.8612097182041991 * x + f(x))),
    "deep_glm": in_turn(lambda x, f, norm: norm(3.4641016151377544 * x + f(x))),
    "branch_norm": in_turn(lambda x, f, norm: x + norm(f(x))),
    "none": in_turn(lambda x, f, norm: f(norm(x))),
    "sandwich": sandwich,
    "parallel": lambda x, f, g, norms: x + f(norms[0](x)) + g(norms[0](x)),
    "sub": in_turn(lambda x, f, norm: x + f(norm(x))),  # and within f: below
}


def test_a_pre_norm_branch_times_a_number():
    torch.manual_seed(5)
    residual = make("residual", "pre")(norm=lambda: make("norm", "layer")(d_model=D_MODEL), n_layers=6, scale=0.22)
    residual, x, branches = randomise(residual).double(), draw_stream(), toy_branches()
    formula = in_turn(lambda x, f, norm: x + 0.22 * f(norm(x)))
    torch.testing.assert_close(residual(x, branches), formula(x, *branches, norms_of(residual)), **EXACT)


def norms_of(residual: nn.Module) -> list[nn.Module]:
    return [module for module in residual.modules() if hasattr(module, "gain")]


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name):
    residual, x, branches = make_residual(name), draw_stream(), toy_branches()
    torch.testing.assert_close(residual(x, branches), FORMULAS[name](x, *branches, norms_of(residual)), **EXACT)


HAND_WRITTEN_GAINS = [
    # scheme, layers, alpha, beta
    ("deep", 6, 1.8612, 0.3799),
    ("deep", 12, 2.2134, 0.3195),
    ("deep", 24, 2.6321, 0.2686),
    ("deep_glm", 6, 3.4641, 0.2887),
    ("deep_glm", 28, 7.4833, 0.1336),
]


@pytest.mark.parametrize(("name", "n_layers", "alpha", "beta"), HAND_WRITTEN_GAINS)
def test_deep_norm_constants(name, n_layers, alpha, beta):
    residual = make_residual(name, n_layers=n_layers)
    assert residual.branch_gain == pytest.approx(beta, abs=5e-5)  # four printed decimals
    # alpha as the scheme applies it: a stream of one against branches of nothing, with no norm to hide it
    bare = make_residual(name, norm="none", n_layers=n_layers)
    one = torch.ones(BATCH, SEQ, D_MODEL, dtype=torch.float64)
    (applied,) = bare(one, (torch.zeros_like, torch.zeros_like)).unique().tolist()
    assert applied == pytest.approx(alpha**2, rel=2e-4)  # twice, once a branch; four printed decimals


def test_parallel_branches_may_read_through_a_norm_each():
    scheme = make("residual", "parallel", norms=2)(norm=lambda: make("norm", "layer")(d_model=D_MODEL), n_layers=6)
    residual, x, (f, g) = randomise(scheme).double(), draw_stream(), toy_branches()
    first, second = norms_of(residual)
    torch.testing.assert_close(residual(x, (f, g)), x + f(first(x)) + g(second(x)), **EXACT)


@pytest.mark.parametrize(("n_layers", "gain"), [(1, 0.8325546), (6, 1.5763587), (24, 1.9675368)])
def test_sub_norm_starts_its_branches_sqrt_ln_2n_times_as_large(n_layers, gain):
    assert make_residual("sub", n_layers=n_layers).branch_gain == pytest.approx(gain, abs=1e-7)  # seven decimals


@pytest.mark.parametrize("ffn", ["gelu", "swiglu"])
def test_sub_norm_norms_what_goes_back_to_the_stream(ffn):
    """Magneto's layer step by step: a norm before q, k, v, one before out; a norm before the network, one before down."""
    decoder = build(residual="sub", norm=make("norm", "layer", eps=0.2), ffn=ffn, mixer="gqa")
    layer, x = decoder.layers[1], draw_stream()
    attention, network, context = layer.mixer, layer.ffn, decoder.read(draw_tokens())[0]

    def normed(norm, features):
        variance, mean = torch.var_mean(features, dim=-1, correction=0, keepdim=True)
        return norm.gain * (features - mean) / (variance + 0.2).sqrt() + norm.shift

    read_by_out, read_by_down = [], []
    attention.out_proj.register_forward_pre_hook(lambda _, given: read_by_out.append(given[0]))
    network.down_proj.register_forward_pre_hook(lambda _, given: read_by_down.append(given[0]))
    heads = []
    attention.inner_norm.register_forward_pre_hook(lambda _, given: heads.append(given[0]))
    out = layer(x, context)
    first, second = layer.residual.norms
    q, k = attention.queries_and_keys(normed(first, x), context)
    v = attention.heads(attention.v_proj(normed(first, x)))
    read = attend(q, k, v, lambda b, i, j: j <= i, lambda h, i, j: 0.0).transpose(1, 2).flatten(2)
    torch.testing.assert_close(heads[0], read, **EXACT)
    torch.testing.assert_close(read_by_out[0], normed(attention.inner_norm, read), **EXACT)
    middle = x + attention.out_proj(normed(attention.inner_norm, read))
    up = network.up_proj(normed(second, middle))
    hidden = (
        nn.functional.silu(network.gate_proj(normed(second, middle))) * up
        if ffn == "swiglu"
        else nn.functional.gelu(up)
    )
    torch.testing.assert_close(read_by_down[0], normed(network.inner_norm, hidden), **EXACT)
    torch.testing.assert_close(out, middle + network.down_proj(normed(network.inner_norm, hidden)), **EXACT)


def test_only_sub_norm_has_norms_within_its_branches():
    for name in FORMULAS:
        weights = [weight for weight, _ in build(residual=name).named_parameters() if "inner_norm" in weight]
        assert len(weights) == (8 if name == "sub" else 0)  # a gain in each of two branches of four layers


def test_every_other_scheme_leaves_initial_weights_alone():
    for name in set(FORMULAS) - {"deep", "deep_glm", "sub"}:
        assert make_residual(name).branch_gain == 1.0


def test_deep_norm_with_alpha_one_is_post_norm():
    deep, post, x, branches = make_residual("deep"), make_residual("post"), draw_stream(), toy_branches()
    deep.alpha = 1.0
    post.load_state_dict(deep.state_dict())
    assert torch.equal(deep(x, branches), post(x, branches))


@pytest.mark.parametrize("name", ["pre", "branch_norm", "sandwich", "parallel", "sub"])
def test_the_stream_itself_is_the_raw_input(name):
    residual, x = make_residual(name), draw_stream(scale=1000.0)
    for norm in norms_of(residual):
        norm.shift.data.zero_()  # a norm of nothing is then nothing
    assert torch.equal(residual(x, (torch.zeros_like, torch.zeros_like)), x)


@pytest.mark.parametrize("name", ["post", "deep", "deep_glm"])
def test_the_stream_leaves_a_post_norm_layer_normalised(name):
    layers = make("residual", name)(norm=lambda: make("norm", "layer", eps=1e-20)(d_model=D_MODEL), n_layers=6)
    out = layers.double()(draw_stream(scale=1000.0), toy_branches())
    torch.testing.assert_close(out.mean(dim=-1), torch.zeros(BATCH, SEQ).double(), **EXACT)
    torch.testing.assert_close(out.var(dim=-1, unbiased=False), torch.ones(BATCH, SEQ).double(), **EXACT)


ENDS_WITH_A_NORM = {
    "pre": True, "parallel": True, "sandwich": True, "branch_norm": True, "none": True, "sub": True,
    "post": False, "deep": False, "deep_glm": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS_WITH_A_NORM)
def test_the_model_ends_with_a_norm_of_its_own_where_the_stream_does_not(name):
    decoder = build(residual=name)
    assert any(name.startswith("final_norm") for name, _ in decoder.named_parameters()) == ENDS_WITH_A_NORM[name]
    seen = []
    decoder.head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    last_norm = decoder.final_norm if ENDS_WITH_A_NORM[name] else decoder.layers[-1].residual.norms[-1]
    decoder(draw_tokens())
    # Either way the head reads gain * (something of root mean square one), up to eps.
    torch.testing.assert_close(
        (seen[0] / last_norm.gain).square().mean(dim=-1), torch.ones(BATCH, SEQ).double(), rtol=1e-4, atol=0
    )


# --- torch's own Transformer --------------------------------------------------------------------


def torchs_decoder(norm_first: bool, activation: str, d_model: int, d_ff: int, n_layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        d_model, HEADS, d_ff, dropout=0.0, activation=activation, norm_first=norm_first, batch_first=True
    )
    final = nn.LayerNorm(d_model) if norm_first else None
    return randomise(nn.TransformerEncoder(layer, n_layers, norm=final, enable_nested_tensor=False)).double()


def as_ours(theirs: dict[str, torch.Tensor], n_layers: int) -> dict[str, torch.Tensor]:
    """torch's names for the same weights; its q, k and v lie in one matrix."""
    ours = {}
    for i in range(n_layers):
        for kind in ("weight", "bias"):
            fused = theirs[f"layers.{i}.self_attn.in_proj_{kind}"]
            for which, part in zip("qkv", fused.chunk(3), strict=True):
                ours[f"layers.{i}.mixer.{which}_proj.{kind}"] = part
            ours[f"layers.{i}.mixer.out_proj.{kind}"] = theirs[f"layers.{i}.self_attn.out_proj.{kind}"]
            ours[f"layers.{i}.ffn.up_proj.{kind}"] = theirs[f"layers.{i}.linear1.{kind}"]
            ours[f"layers.{i}.ffn.down_proj.{kind}"] = theirs[f"layers.{i}.linear2.{kind}"]
        for j in range(2):
            ours[f"layers.{i}.residual.norms.{j}.gain"] = theirs[f"layers.{i}.norm{j + 1}.weight"]
            ours[f"layers.{i}.residual.norms.{j}.shift"] = theirs[f"layers.{i}.norm{j + 1}.bias"]
    if "norm.weight" in theirs:
        ours["final_norm.gain"], ours["final_norm.shift"] = theirs["norm.weight"], theirs["norm.bias"]
    return ours


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(("residual", "norm_first"), [("pre", True), ("post", False)])
def test_agrees_with_torchs_transformer(residual, norm_first, activation):
    d_model, d_ff, n_layers = 60, 88, 3  # torch's head width is d_model / heads
    theirs = torchs_decoder(norm_first, activation, d_model, d_ff, n_layers)
    decoder = build(
        norm="layer", residual=residual, ffn=make("ffn", activation, bias=True), pos="none",
        mixer=make("mixer", "mha", qkv_bias=True, out_bias=True), d_model=d_model, n_layers=n_layers,
    )  # fmt: skip
    missing, unexpected = decoder.load_state_dict(as_ours(theirs.state_dict(), n_layers), strict=False)
    assert (sorted(missing), unexpected) == (["embedding.weight", "head.weight"], [])

    tokens = draw_tokens()
    logits = decoder(tokens)
    causal = nn.Transformer.generate_square_subsequent_mask(SEQ, dtype=torch.float64)
    expected = theirs(decoder.embedding(tokens), mask=causal) @ decoder.head.weight.T
    assert logits.shape == (BATCH, SEQ, VOCAB)
    torch.testing.assert_close(logits, expected, **MANY_LAYERS)

    named = dict(theirs.named_parameters())
    theirs_gradients = as_ours(dict(zip(named, gradients(expected, named.values()), strict=True)), n_layers)
    mine = dict(decoder.named_parameters())
    ours_gradients = dict(
        zip(theirs_gradients, gradients(logits, [mine[name] for name in theirs_gradients]), strict=True)
    )
    torch.testing.assert_close(ours_gradients, theirs_gradients, **MANY_LAYERS)


def test_chatglms_layout_is_deep_norm_with_a_norm_on_the_embeddings():
    """h1 = alpha a + attention(a), a = norm(h); h2 = alpha m + ffn(m), m = norm(h1); a final norm. arXiv:2210.02414."""
    n_layers, alpha = 6, 12**0.5
    decoder = build(residual="deep_glm", norm="layer", embed_norm=True, n_layers=n_layers)
    tokens = draw_tokens()
    context = decoder.read(tokens)[0]
    norms = [decoder.embed_norm, *(norm for layer in decoder.layers for norm in layer.residual.norms)]
    h = decoder.embedding(tokens)
    for i, layer in enumerate(decoder.layers):
        a = norms[2 * i](h)
        h1 = alpha * a + layer.mixer(a, context)
        m = norms[2 * i + 1](h1)
        h = alpha * m + layer.ffn(m)
    torch.testing.assert_close(decoder(tokens), decoder.head(norms[-1](h)), **MANY_LAYERS)
