"""Inits by role and width: deviations by hand, what starts at zero, where a tied model starts, and muP's coordinates."""

import math

import pytest
import torch
from oracles import built, composed
from training import CPU, SMALL, Counting, settings

import archlab
from archlab.base.errors import UserError
from archlab.blocks.roles import Role
from archlab.runs.assembled import open_source
from archlab.train.objective import token_losses
from archlab.train.schedules import Constant
from archlab.train.state import TrainState
from archlab.train.step import make_step

D, L, F, V = 96, 3, 130, 150
WORDS = (
    f"size.d_model={D}", f"size.n_layers={L}", "size.n_heads=4", "size.head_dim=20", f"size.d_ff={F}", f"size.vocab_size={V}",
    "pos=learned",
)  # fmt: skip
SMALLER, NARROW = (2 / (5 * D)) ** 0.5, 2 / (L * D**0.5)
INTO = {"q_proj": D, "v_proj": D, "out_proj": 80, "up_proj": D, "down_proj": F}
BASE = 24  # a quarter of the width, so m = 4

STDS = {
    ("init=small",): dict.fromkeys((*INTO, "embedding", "head", "table"), SMALLER),
    ("init=small", "init.wang=true"): {"out_proj": NARROW, "down_proj": NARROW, "up_proj": SMALLER, "head": SMALLER},
    ("init=mup", f"init.base_width={BASE}", "init.gain=0.5"): {
        **{name: 0.5 * into**-0.5 for name, into in INTO.items()},
        "head": 0.5 * D**-0.5 / 2, "embedding": D**-0.5, "table": BASE**-0.5,
    },
    ("init=mup", f"init.base_width={BASE}", "embed.scale=none"): {"embedding": 1.0, "head": D**-0.5 / 2},
    # Twice as large where four streams are written to, by arXiv:2409.19606, sec. 4; what mixes them starts at zero.
    ("init=small", "residual=hyper", "residual.streams=4"): {
        "out_proj": 2 * SMALLER, "down_proj": 2 * SMALLER, "up_proj": SMALLER, "v_proj": SMALLER, "maps": 0.0,
    },
    ("init=small", "residual=hyper", "residual.scaled_outputs=false"): {"out_proj": SMALLER, "down_proj": SMALLER, "maps": 0.0},
    ("init=xavier", "init.zero=branches"): {"out_proj": 0.0, "down_proj": 0.0, "head": (2 / (V + D)) ** 0.5},
    ("init=normal", "init.zero=all"): {"out_proj": 0.0, "down_proj": 0.0, "head": 0.0, "up_proj": 0.02},
}  # fmt: skip


@pytest.mark.parametrize("words", STDS, ids=" ".join)
def test_matrices_have_the_spread_written_by_hand(words):
    decoder = built(*WORDS, *words)
    seen = set()
    for name, weight in decoder.named_parameters():
        kind = name.removesuffix(".weight").split(".")[-1]
        if kind in STDS[words]:
            seen.add(kind)
            # Five standard errors of the spread of n draws, sigma / sqrt(2n).
            assert weight.std().item() == pytest.approx(STDS[words][kind], rel=5 / (2 * weight.numel()) ** 0.5), name
    assert seen == set(STDS[words])


def test_rates_are_by_role():
    decoder = built(*SMALL, "init=mup", "init.base_width=6", "norm=layer", "ffn.bias=true")
    by_role = {role: {decoder.rates.get(w.name, 1.0) for w in decoder.weights() if w.role is role} for role in Role}
    assert by_role[Role.HIDDEN] == by_role[Role.TO_STREAM] == by_role[Role.HEAD] == {6 / 24}
    assert by_role[Role.EMBEDDING] == {6**0.5 / 24**0.5}  # its scale has doubled
    assert by_role[Role.GAIN] == by_role[Role.BIAS] == {1.0}
    assert not built(*SMALL).rates


@pytest.mark.parametrize(
    "words",
    [("init=small", "embed.scale=none"), ("init=small",), ("init=xavier",), ("init.zero=branches",)],
    ids=" ".join,
)
def test_a_tied_model_starts_near_the_log_of_its_vocabulary(words):
    cfg = composed("embed.tied=true", *words)
    with torch.no_grad():
        losses = token_losses(built("embed.tied=true", *words), open_source(cfg).train(0, 1, 2, 64))
    assert float(losses.total / losses.scored.sum()) == pytest.approx(math.log(256), abs=0.1)


def moved(*words: str) -> float:
    """How far logits have moved after four steps, root mean square."""
    decoder, chosen = (
        built(*words, "size.vocab_size=17"),
        settings(steps=4, clip=None, weight_decay=0.0, schedule=Constant()),
    )
    state, step = TrainState.begin(decoder, chosen, CPU, 0), make_step(decoder, chosen, CPU)
    tokens = Counting().train(9, 9, 6, 11).tokens
    with torch.no_grad():
        before = decoder(tokens)
    for _ in range(4):
        step(state, Counting().train(3, state.step + 1, 6, 11))
    with torch.no_grad():
        return (decoder(tokens) - before).square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("words", "part", "rate"),
    [
        ("mixer=mla mixer.kv_lora_rank=5 mixer.q_lora_rank=7", "mixer.q_a_proj", 1 / 4),  # of the stream
        (
            "mixer=mla mixer.kv_lora_rank=5 mixer.q_lora_rank=7",
            "mixer.q_b_proj",
            1,
        ),  # of a latent, as wide at every width
        ("mixer=mla mixer.kv_lora_rank=5", "mixer.k_b_proj", 1),
        ("mixer=mla mixer.kv_lora_rank=5", "mixer.v_b_proj", 1),
        ("pos=fire", "position.up_proj", 1),  # of a distance
        ("pos=fire", "position.down_proj", 1),
        ("residual=hyper", "residual.mixings.1.maps", 1 / 4),  # no matrix by its role, and of the stream
        ("residual=hyper", "residual.mixings.1.keep", 1),
        ("residual=mhc", "residual.mixings.1.mix", 1 / 4),
        ("ffn=experts", "ffn.router", 1 / 4),
        ("ffn=experts", "ffn.down_proj", 1 / 4),
    ],
)
def test_rates_under_mup_go_by_whether_the_input_grows_with_the_model(words, part, rate):
    """Adam's rates of arXiv:2203.03466, table 3: by what fan_in grows by, and as they are for inputs of one width."""
    decoder = built(*WORDS[:-1], "init=mup", f"init.base_width={BASE}", *words.split())
    (found,) = {
        decoder.rates.get(w.name, 1.0) for w in decoder.weights() if f".{part}" in f".{w.name}" and "bias" not in w.name
    }
    assert found == pytest.approx(rate)


def test_mup_is_refused_where_a_width_stays():
    with pytest.raises(UserError, match="^init=mup: embeddings of embed.width=6 would be as wide in a wider model"):
        built(*WORDS, "init=mup", "embed.width=6")


def test_a_wider_model_learns_as_much_a_step_under_mup_alone():
    """The coordinate check of arXiv:2203.03466, app. D.1, at four times the width."""
    narrow, wide = (("size=nano", f"size.d_model={d}", f"size.n_heads={d // 16}") for d in (32, 128))
    mup = ("init=mup", "init.base_width=32")
    assert 0.6 < moved(*wide, *mup) / moved(*narrow, *mup) < 1.2
    assert moved(*wide) / moved(*narrow) > 1.6


@pytest.mark.parametrize(
    ("words", "weight", "std"),
    [
        (("init.wang=true",), "layers.0.ffn.down_proj.weight", 2 / (2 * 64**0.5)),
        (("init.wang=true", "loop.times=3"), "layers.0.ffn.down_proj.weight", 2 / (6 * 64**0.5)),
        (("embed.tied=false",), "embedding.weight", (2 / (5 * 64)) ** 0.5),
        (("embed.tied=true",), "embedding.weight", 1 / 64),
    ],
)
def test_small_init_counts_applications_and_shares_smaller_tables(words, weight, std):
    """Two layers, 64 wide. Of ten thousand numbers the deviation is known to 0.7%."""
    drawn = archlab.build("size=nano", "init=small", *words).get_parameter(weight)
    assert drawn.std().item() == pytest.approx(std, rel=0.03)
