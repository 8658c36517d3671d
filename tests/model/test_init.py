"""Initial weights, against standard deviations written by hand and the promise that arms share their weights."""

import math
from functools import cache
from itertools import product

import pytest
import torch
from hydra.utils import instantiate
from oracles import VOCAB, build, every_option, make, node, options
from torch.nn.functional import cross_entropy

import archlab

N, D, F, V, Q, KV = 6, 144, 200, 160, 6 * 26, 3 * 26  # layers, d_model, d_ff, vocabulary, width of queries, of keys
LARGE = dict(n_layers=N, d_model=D, d_ff=F, vocab_size=V, head_dim=26, mixer="gqa", pos="learned")

SHAPES = {
    # (out, in)
    "mixer.q_proj": (Q, D), "mixer.k_proj": (KV, D), "mixer.v_proj": (KV, D), "mixer.out_proj": (D, Q),
    "ffn.gate_proj": (F, D), "ffn.up_proj": (F, D), "ffn.down_proj": (D, F),
}  # fmt: skip
TO_STREAM = ("mixer.out_proj", "ffn.down_proj")
UNGAINED = ("mixer.q_proj", "mixer.k_proj")

# (8 * 6)^(-1/4), (2 * 6)^(-1/2) and sqrt(ln(2 * 6)); one everywhere else
BETA = {"deep": 0.379918, "deep_glm": 0.288675, "sub": 1.576359}


def start(init="xavier", seed=0, **choices):
    """A decoder with its initial weights; `init` is an option's name or a scheme."""
    decoder = build(torch.float32, fresh=True, **choices)
    scheme = instantiate(node("init", init)) if isinstance(init, str) else init
    scheme(decoder, seed)
    return decoder


def glorot(out: int, into: int) -> float:
    return (2 / (out + into)) ** 0.5


OUTPUTS = {"hyper": 2.0}
"""By scheme, the factor on what writes to the stream: sqrt(4) of its four streams. Source: arXiv:2409.19606, sec. 4."""


def expected_stds(init: str, residual: str) -> dict[str, float]:
    """Of a matrix in a layer, and of the tables and the head."""
    stds = {}
    for name, (out, into) in SHAPES.items():
        std = {"xavier": glorot(out, into), "normal": 0.02}[init]
        if init == "normal" and name in TO_STREAM:
            std /= (2 * N) ** 0.5
        stds[name] = std * (1.0 if name in UNGAINED else BETA.get(residual, 1.0))
        stds[name] *= OUTPUTS.get(residual, 1.0) if name in TO_STREAM else 1.0
    table = {"xavier": D**-0.5, "normal": 0.02}[init]
    return stds | {"embedding": table, "position.table": table, "head": {"xavier": glorot(V, D), "normal": 0.02}[init]}


@pytest.mark.parametrize("residual", options("residual"))
@pytest.mark.parametrize("init", ["xavier", "normal"])
def test_every_matrix_has_the_spread_its_scheme_says(init, residual):
    decoder = start(init, residual=residual, **LARGE)
    expected = expected_stds(init, residual)
    seen = set()
    for name, weight in decoder.named_parameters():
        if weight.dim() < 2 or ".residual." in name:
            continue
        kind = (
            name.removesuffix(".weight").split(".", 2)[-1]
            if name.startswith("layers")
            else name.removesuffix(".weight")
        )
        seen.add(kind)
        # Five standard errors of the spread of n draws, sigma / sqrt(2n), and of their mean, sigma / sqrt(n).
        n, std = weight.numel(), expected[kind]
        assert weight.std().item() == pytest.approx(std, rel=5 / (2 * n) ** 0.5), name
        assert abs(weight.mean().item()) < 5 * std / n**0.5, name
    assert seen == set(expected)


def test_draws_are_normal():
    values = start(**LARGE).layers[0].ffn.up_proj.weight.flatten()
    fourth = (values / values.std()).pow(4).mean().item()
    assert fourth == pytest.approx(3, abs=5 * (96 / values.numel()) ** 0.5)  # 1.8 were it uniform; five standard errors


def test_options_of_the_schemes():
    half = start(instantiate(node("init", "xavier"), gain=0.5), **LARGE)
    assert half.head.weight.std().item() == pytest.approx(0.5 * glorot(V, D), rel=0.03)  # 0.5% is one standard error
    assert half.embedding.weight.std().item() == pytest.approx(D**-0.5, rel=0.03)
    flat = start(instantiate(node("init", "normal"), std=0.1, depth_scaled=False), **LARGE)
    for weight in (flat.head.weight, flat.layers[3].ffn.down_proj.weight, flat.layers[0].mixer.out_proj.weight):
        assert weight.std().item() == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize("init", options("init"))
def test_biases_start_at_zero_and_gains_at_one(init):
    attn = make("mixer", "gqa", qkv_bias=True, out_bias=True, qk_norm="head")
    fresh = build(torch.float32, fresh=True, norm="layer", ffn="glm", mixer=attn)
    instantiate(node("init", init))(fresh, 0)
    vectors = {name: weight for name, weight in fresh.named_parameters() if weight.dim() == 1}
    assert len(vectors) == 4 * (4 + 2 + 4 + 4) + 2  # in a layer: norms, ffn biases, attention biases, q and k norms
    for name, weight in vectors.items():
        assert torch.equal(weight, torch.full_like(weight, 1.0 if name.endswith("gain") else 0.0)), name


# --- seeds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", options("init"))
def test_same_seed_same_weights_other_seed_others(init):
    first, again, other = (start(init, seed, pos="learned").state_dict() for seed in (3, 3, 4))
    for name in first:
        if first[name].dim() >= 2:
            assert torch.equal(first[name], again[name])
            assert (first[name] != other[name]).float().mean() > 0.99


def test_a_configurations_seed_is_the_schemes():
    small = (
        "size.n_layers=2",
        "size.d_model=32",
        "size.n_heads=4",
        "size.d_ff=40",
        "size.vocab_size=50",
        "pos=learned",
    )
    whole = archlab.build(*small, "init=normal", "residual=deep", "seed=5")
    drawn = start(
        "normal",
        5,
        residual="deep",
        n_layers=2,
        d_model=32,
        n_heads=4,
        head_dim=8,
        d_ff=40,
        vocab_size=50,
        pos="learned",
    )
    for name, weight in whole.named_parameters():
        if weight.dim() >= 2:
            assert torch.equal(weight, drawn.get_parameter(name))


def test_no_two_matrices_start_alike():
    matrices = [weight.flatten()[:500] for weight in start(pos="learned").parameters() if weight.dim() == 2]
    directions = torch.nn.functional.normalize(torch.stack(matrices), dim=1)
    overlap = directions @ directions.T - torch.eye(len(matrices))
    assert overlap.abs().max() < 0.3  # a standard deviation of 0.045 between unrelated draws


def test_weights_do_not_depend_on_the_dtype():
    wide = build(dtype=torch.float64)
    instantiate(node("init", "xavier"))(wide, 0)
    assert torch.equal(wide.head.weight, start().head.weight.double())


PLACE = {
    "norm": "residual",
    "residual": "residual",
    "ffn": "ffn",
    "pos": "position",
    "mask": "mask",
    "mixer": "mixer",
    "head": "head",
}


@cache
def default_weights():
    return start(n_layers=N).state_dict()


@pytest.mark.parametrize(("group", "name"), every_option(*PLACE))
def test_arms_that_differ_in_one_block_share_all_other_weights(group, name):
    default, arm = default_weights(), start(**{group: name}, n_layers=N).state_dict()
    elsewhere = {
        key
        for key in default.keys() | arm.keys()
        if PLACE[group] not in key.split(".") and "final_norm" not in key and "residual" not in key
    }
    assert {"embedding.weight", "head.weight"} - ({"head.weight"} if group == "head" else set()) < elsewhere
    for key in elsewhere:
        if "inner_norm" in key:
            continue  # the norms that sub-norm has within its branches
        gained = group == "residual" and name in BETA and ("ffn" in key or "v_proj" in key or "out_proj" in key)
        ratio = BETA[name] if gained else 1.0
        if group == "residual" and key.removesuffix(".weight").split(".")[-1] in ("out_proj", "down_proj"):
            ratio *= OUTPUTS.get(name, 1.0)
        torch.testing.assert_close(
            arm[key], ratio * default[key], rtol=1e-5 if gained else 0, atol=0
        )  # beta to six digits


def test_matrices_around_the_layers_have_the_spread_their_scheme_says():
    sizes = dict(d_model=D, n_layers=1, vocab_size=V, head="mlm", embed_width=100, embed_types=80)
    decoder = start("xavier", **sizes)
    expected = {
        "embedding": 100**-0.5, "embed_proj": glorot(D, 100), "embed_types": D**-0.5,
        "head_proj": glorot(100, D), "head.dense": glorot(100, 100), "head": glorot(V, 100),
    }  # fmt: skip
    for name, std in expected.items():
        weight = decoder.get_submodule(name).weight
        # five standard errors of the spread of n draws, sigma / sqrt(2n)
        assert weight.std().item() == pytest.approx(std, rel=5 / (2 * weight.numel()) ** 0.5), name
    assert not decoder.head.bias.any() and not decoder.head.dense.bias.any()
    tied = start("xavier", **sizes, tied=True)
    assert tied.head.weight is tied.embedding.weight and torch.equal(tied.embedding.weight, decoder.embedding.weight)


UNIFORM = {
    # scheme: its weights, between which numbers: the authors' published code
    "kerple": {"r1": (0, 2), "r2": (0, 1)},
    "kerple_power": {"r1": (0, 1), "r2": (0, 2)},
    "fire": {"up_proj.weight": (-1, 1), "up_proj.bias": (-1, 1), "down_proj.weight": (-(32**-0.5), 32**-0.5)},
}


@pytest.mark.parametrize("init", options("init"))
@pytest.mark.parametrize("pos", UNIFORM)
def test_learned_biases_start_where_their_authors_start_them(pos, init):
    sizes = dict(n_layers=1, d_model=32, d_ff=40, n_heads=400, head_dim=4)
    first, again, other = (start(init, seed, pos=pos, **sizes).position for seed in (3, 3, 4))
    for name, (low, high) in UNIFORM[pos].items():
        values = first.get_parameter(name).flatten()
        assert low <= values.min() and values.max() < high
        # a uniform distribution's mean and spread, within five standard errors of n draws
        n, width = values.numel(), high - low
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=5 * width / (12 * n) ** 0.5)
        assert values.std().item() == pytest.approx(width / 12**0.5, rel=5 / (2 * n) ** 0.5)
        assert (
            torch.equal(values, again.get_parameter(name).flatten())
            and (values != other.get_parameter(name).flatten()).any()
        )


@pytest.mark.parametrize(("init", "std"), [("xavier", 32**-0.5), ("normal", 0.02)])
def test_t5s_table_starts_as_wide_as_the_models_other_tables(init, std):
    """Hugging Face's T5: normal with d_model^(-1/2)."""
    table = start(init, pos="t5", n_layers=1, d_model=32, d_ff=40, n_heads=64, head_dim=4).position.table.weight
    assert table.std().item() == pytest.approx(std, rel=5 / (2 * table.numel()) ** 0.5)  # five standard errors


TIED = ("", "residual=post", "residual=sandwich", "embed.norm=true", "embed.width=48")


@pytest.mark.parametrize(
    ("size", "word"),
    [
        pytest.param(size, word, marks=[pytest.mark.slow] * (size in ("small", "base") and bool(word)))
        for size, word in product(("nano", "tiny", "small", "base"), TIED)
    ],
)
@torch.no_grad()
def test_a_tied_model_starts_by_knowing_nothing(size, word):
    """With the default scale: the loss of any tokens is that of equal chances, log 256, and no token expects itself."""
    decoder = archlab.build(f"size={size}", *word.split(), "embed.tied=true").eval()
    assert decoder.embed_scale == decoder.d_model**0.5
    tokens = torch.randint(256, (2, 129), generator=torch.Generator().manual_seed(1))
    logits = decoder(tokens[:, :-1])
    assert cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item() == pytest.approx(math.log(256), abs=0.1)
    itself = cross_entropy(logits.flatten(0, 1), tokens[:, :-1].flatten()).item()
    assert itself == pytest.approx(math.log(256), abs=1.5)  # a logit of 1.5 at the most, where it was sqrt(d_model)


def test_a_tied_table_is_otherwise_as_wide_as_its_scheme_says():
    """GPT-2 and Gemma draw theirs as all else, and without a scale there is nothing to divide by."""
    sizes = dict(n_layers=1, d_model=100, vocab_size=400, tied=True)  # five standard errors of 40,000 draws: 1.8%
    for init, scale, std in (
        ("normal", "sqrt_d_model", 0.02),
        ("normal", "none", 0.02),
        ("xavier", "none", 0.1),
        ("xavier", "sqrt_d_model", 0.01),
    ):
        table = start(init, embed_scale=scale, **sizes).embedding.weight
        assert table.std().item() == pytest.approx(std, rel=0.018), (init, scale)


def test_a_tied_head_is_the_embedding_table():
    tied, untied = start(tied=True), start()
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight
    assert torch.equal(tied.embedding.weight, untied.embedding.weight)
    count = [sum(weight.numel() for weight in model.parameters()) for model in (tied, untied)]
    assert count[1] - count[0] == VOCAB * 48
