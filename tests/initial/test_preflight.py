"""A model's start: each figure against torch's own, and the papers' predictions at toy size."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from oracles import built, composed
from scipy.special import log_softmax

import archlab
from archlab.base.errors import UserError
from archlab.cli import main as cli
from archlab.initial.measure import InitialMeasures, exponent, last_ffn_gradient, look_at_start, update_size
from archlab.initial.warn import warnings
from archlab.runs.assembled import open_source
from archlab.train.runtime import Runtime

SMALL = ("size=nano", "train.train_len=24")
BATCH, SEQ = 3, 24


def made(*overrides):
    cfg = composed(*SMALL, *overrides)
    return built(*SMALL, *overrides).eval(), open_source(cfg)


def loss_by_hand(decoder, batch):
    logits = decoder(batch.tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten())


# --- figures ------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_first_batch_beside_ln_v():
    decoder, source = made("seed=3")
    start = look_at_start(decoder, source, 3, BATCH, SEQ)
    batch = source.train(3, 1, BATCH, SEQ)
    logits = decoder(batch.tokens[:, :-1]).detach().double().numpy()
    nats = -log_softmax(logits, axis=-1)
    expected = sum(nats[b, i, batch.tokens[b, i + 1]] for b in range(BATCH) for i in range(SEQ)) / (BATCH * SEQ)
    assert start.loss == pytest.approx(expected, rel=1e-5)  # float32 against float64
    assert start.uniform_loss == pytest.approx(math.log(256), abs=1e-12)
    assert start.logit_std == pytest.approx(logits.std(), rel=1e-3)


@pytest.mark.parametrize("residual", ["pre", "post", "parallel"])
def test_gradients_by_matrix_are_the_losss(residual):
    decoder, source = made(f"residual={residual}")
    layers = look_at_start(decoder, source, 0, BATCH, SEQ).layers
    names = {"q_proj": "mixer", "v_proj": "mixer", "out_proj": "mixer", "up_proj": "ffn", "down_proj": "ffn"}
    weights = [getattr(getattr(layer, part), name).weight for layer in decoder.layers for name, part in names.items()]
    expected = torch.autograd.grad(loss_by_hand(decoder, source.train(0, 1, BATCH, SEQ)), weights)
    measured = [layer[name] for layer in layers for name in names]
    assert measured == pytest.approx([float(g.double().square().sum() ** 0.5) for g in expected], rel=1e-4)
    assert last_ffn_gradient(decoder, source, 0, BATCH, SEQ) == pytest.approx(layers[-1]["down_proj"], rel=1e-6)


def test_the_update_after_one_step_is_adams_by_hand():
    """Adam's first step is lr * g / (|g| + 1e-8) for each number, whatever its betas."""
    decoder, source = made()
    lr = 1e-3
    moved = copy.deepcopy(decoder)
    gradients = torch.autograd.grad(loss_by_hand(moved, source.train(5, 1, BATCH, SEQ)), list(moved.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
            parameter -= lr * gradient / (gradient.abs() + 1e-8)
    held_out = next(source.validation(SEQ, BATCH * SEQ, BATCH)).tokens[:, :-1]
    read = []
    for model in (decoder, moved):
        model.head.register_forward_pre_hook(lambda head, inputs: read.append(inputs[0].detach().double()))
        model(held_out)
    change = read[1] - read[0]
    by_token = [
        math.sqrt(float((change[b, i] ** 2).sum())) / math.sqrt(64) for b in range(len(held_out)) for i in range(SEQ)
    ]
    assert update_size(decoder, source, 1, lr, 5, BATCH, SEQ) == pytest.approx(sum(by_token) / len(by_token), rel=1e-3)


def test_more_steps_move_a_model_further_and_no_learning_rate_is_forgotten():
    decoder, source = made()
    once, twice, fast = (
        update_size(decoder, source, steps, lr, 0, BATCH, SEQ) for steps, lr in ((1, 1e-5), (5, 1e-5), (1, 1e-4))
    )
    assert once < twice and fast == pytest.approx(10 * once, rel=0.05)


def test_a_preflight_leaves_no_trace():
    decoder, source = made("dropout=0.2")
    decoder.train()
    for parameter in decoder.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before, state = copy.deepcopy(decoder.state_dict()), torch.random.get_rng_state()
    look_at_start(decoder, source, 0, BATCH, SEQ)
    last_ffn_gradient(decoder, source, 0, BATCH, SEQ)
    update_size(decoder, source, 2, 1e-2, 0, BATCH, SEQ)
    assert decoder.training and torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    assert all((parameter.grad == 7).all() for parameter in decoder.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in decoder.modules())


@pytest.mark.parametrize("p", [-0.5, 0.0, 1.3])
def test_the_exponent_of_a_power_is_its_power(p):
    assert exponent([2, 5, 11], [3 * x**p for x in (2, 5, 11)]) == pytest.approx(p, abs=1e-9)


def test_there_is_no_exponent_of_one_point_or_of_zeros():
    assert exponent([3], [1.0]) is None and exponent([1, 2], [0.0, 1.0]) is None


# --- the papers ---------------------------------------------------------------------------------


def gradients_at(residual, depths, seed):
    """Xiong's network: LayerNorm, ReLU, a sinusoid; 64 wide."""
    choices = (
        f"residual={residual}",
        "norm=layer",
        "ffn=relu",
        "pos=sinusoidal",
        f"seed={seed}",
        "size.d_model=64",
        "train.train_len=64",
    )
    found = []
    for depth in depths:
        cfg = composed(*choices, f"size.n_layers={depth}")
        found.append(last_ffn_gradient(built(*choices, f"size.n_layers={depth}"), open_source(cfg), seed, 8, 64))
    return found


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_last_gradient_is_flat_in_depth_with_post_norm_and_falls_with_its_root_with_pre_norm(seed):
    """Xiong, theorem 1. Half way between 0 and -1/2 tells the two apart."""
    depths = (2, 6, 18)
    assert abs(exponent(depths, gradients_at("post", depths, seed))) < 0.2
    assert -0.7 < exponent(depths, gradients_at("pre", depths, seed)) < -0.3


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_update_grows_faster_with_depth_under_post_norm_than_under_deepnorm(seed):
    """DeepNet, fig. 5: a 64-128-2 network, five steps of Adam without warm-up."""

    def update(residual, depth):
        choices = (f"residual={residual}", "norm=layer", "ffn=relu", "size.d_model=64", "size.d_ff=128", "size.n_heads=2", f"size.n_layers={depth}",
                   f"seed={seed}", "train.train_len=32")  # fmt: skip
        return update_size(built(*choices), open_source(composed(*choices)), seed=seed, batch_size=4, seq_len=32)

    post, deep = ([update(residual, depth) for depth in (3, 12)] for residual in ("post", "deep"))
    assert post[1] / post[0] > 1.5 * deep[1] / deep[0]
    assert post[1] > 3 * deep[1]


# --- warnings -----------------------------------------------------------------------------------

SOUND = InitialMeasures(
    loss=5.7, uniform_loss=5.545, logit_std=0.8,
    layers=[{"activation_rms": 1.1, "grad_norm": 1.5}, {"activation_rms": 1.4, "grad_norm": 1.2}],
)  # fmt: skip


def layers(rms=(1.1, 1.4), gradient=(1.5, 1.2)):
    return [{"activation_rms": r, "grad_norm": g} for r, g in zip(rms, gradient, strict=True)]


@pytest.mark.parametrize(
    ("start", "update", "words"),
    [
        (replace(SOUND, loss=6.6), 0.1, "The loss starts 1.05 nats above ln V"),
        (
            replace(SOUND, layers=layers(gradient=(11, 1))),
            0.1,
            "The first layer's gradient is 11 times the last one's: it grows",
        ),
        (
            replace(SOUND, layers=layers(gradient=(1, 20))),
            0.1,
            "The first layer's gradient is 0.05 times the last one's: it vanishes",
        ),
        (replace(SOUND, layers=layers(rms=(1, 12))), 0.1, "The stream grows from 1 to 12"),
        (replace(SOUND, layers=layers(rms=(1, 0.05))), 0.1, "The stream shrinks from 1 to 0.05"),
        (SOUND, 0.0, "A few steps of Adam change nothing"),
        (replace(SOUND, loss=math.nan), 0.1, "A number is not finite"),
    ],
)
def test_each_warning_is_given_for_its_reason_alone(start, update, words):
    (warning,) = warnings(start, update)
    assert warning.startswith(words)


def test_a_sound_start_is_not_warned_of():
    assert not list(warnings(SOUND, 0.1))


def test_a_head_that_is_too_large_is_warned_of():
    decoder, source = made()
    decoder.head.weight.data *= 10
    assert any("above ln V" in line for line in warnings(look_at_start(decoder, source, 0, BATCH, SEQ), 0.1))


# --- the verb -----------------------------------------------------------------------------------


def test_the_verb_tells_layers_placements_and_draws_a_picture(tmp_path, capsys):
    picture = tmp_path / "start.png"
    cli.main(
        [
            "preflight",
            *SMALL,
            "residual=sandwich",
            "preflight.depths=[1,3]",
            f"preflight.plot={picture}",
            "preflight.batch_size=2",
        ]
    )
    page = capsys.readouterr().out
    for words in (
        "ln V is 5.5452",
        "1 layers",
        "3 layers",
        "post",
        "pre",
        "deep",
        "sandwich",
        "bounded",
        "grows",
        "-0.5",
        "Update after a few steps",
    ):
        assert words in page
    assert picture.stat().st_size > 10_000


def test_without_norms_there_is_one_placement_to_look_at(capsys):
    start = archlab.preflight(*SMALL, "norm=none", "preflight.depths=[1,2]", "preflight.batch_size=1")
    assert "post" not in str(start) and "sandwich" not in str(start) and start.depths


HYBRID = ("size.n_layers=4", "mixer=gdn", "layers[3::4].mixer=mha")


@pytest.mark.parametrize(
    ("words", "placements", "note"),
    [
        (
            ("preset=ngpt_0_5b", "size=nano"),
            ["post", "pre", "ngpt"],
            "residual=deep is left out: init=unit: under a residual scheme with a gain",
        ),
        (HYBRID, [], "not compared across depths: this model cannot have 2 layers: pos: RoPE rotates queries and keys"),
    ],
)
def test_what_cannot_be_compared_is_left_out_and_said(words, placements, note, capsys):
    """By depths that nobody asked for; the model itself is looked at all the same."""
    cfg = archlab.compose(*words)
    cfg.preflight.update(depths=[2, 3], batch_size=1, seq_len=9, steps=1)
    start = archlab.preflight(cfg)
    assert [row["placement"] for row in start.depths] == placements and start.record["layers"]
    assert capsys.readouterr().err.count(f"archlab: note: {note}") == 1


def test_depths_that_were_asked_for_and_cannot_be_are_refused():
    with pytest.raises(UserError, match=r"^preflight.depths=\[2, 3\]: this model cannot have 2 layers: pos: RoPE"):
        archlab.preflight("size=nano", *HYBRID, "preflight.depths=[2,3]")


REFUSED = {
    "preflight.depths=[4]": "preflight.depths=[4]: an exponent takes two depths or more, such as [4,16]; or null, for none",
    "preflight.depths=[4,2]": "preflight.depths=[4, 2]: should rise from one to the next; use [2,4]",
    "preflight.plot=start": "preflight.plot=start: should end in .png, .svg or .pdf",
    "preflight.lr=0": "preflight.lr=0: should be greater than 0",
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_setting_that_cannot_be_is_refused(override):
    with pytest.raises(UserError) as refusal:
        archlab.compose(override)
    assert str(refusal.value) == REFUSED[override]


def test_another_verb_makes_no_use_of_preflight(capsys):
    from archlab.cli.main import main

    with pytest.raises(SystemExit) as leaving:
        main(["show", "preflight.steps=2"])
    assert leaving.value.code == 2
    assert "show does not use preflight; leave it out, or use archlab preflight" in capsys.readouterr().err


# --- in other numbers than float32


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_measures_in_mixed_precision_follow_those_in_float32(dtype, tolerance):
    """Each to some roundings through the layers: 8 and 11 bits. Unscaled, gradients this small are subnormal in float16."""
    decoder, source = made()
    decoder.head.weight.data *= 2e-5
    kinds = [Runtime(torch.device("cpu"), kind) for kind in (torch.float32, dtype)]
    expected, seen = (look_at_start(decoder, source, 0, BATCH, SEQ, where).layers[0]["grad_norm"] for where in kinds)
    assert seen == pytest.approx(expected, rel=tolerance)
    expected, seen = (update_size(decoder, source, 2, 1e-3, 0, BATCH, SEQ, where) for where in kinds)
    assert seen == pytest.approx(expected, rel=2 * tolerance)


def test_a_loss_whose_gradient_would_overflow_is_scaled_less(monkeypatch):
    tries = []
    real = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, **options: tries.append(0) or real(self, **options))
    decoder, source = made()
    decoder.final_norm.gain.data *= 3000
    kinds = [Runtime(torch.device("cpu"), kind) for kind in (torch.float32, torch.float16)]
    expected, seen = (look_at_start(decoder, source, 0, BATCH, SEQ, where).layers[0]["grad_norm"] for where in kinds)
    assert seen == pytest.approx(expected, rel=0.02) and len(tries) > 2


def test_the_backward_pass_is_outside_autocast(monkeypatch):
    inside = []
    real = torch.Tensor.backward

    def backward(self, *args, **options):
        inside.append(torch.is_autocast_enabled("cpu"))
        return real(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    where = Runtime(torch.device("cpu"), torch.bfloat16)
    decoder, source = made()
    look_at_start(decoder, source, 0, BATCH, SEQ, where)
    update_size(decoder, source, 1, 1e-3, 0, BATCH, SEQ, where)
    assert inside == [False, False]
