"""Norms, against torch's own modules, the papers' formulas, and the axes over which each takes its statistics."""

import pytest
import torch
import torch.nn.functional as F
from oracles import BATCH, D_MODEL, SEQ, build, draw_tokens, gradients, make, options, randomise
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

EPS = 0.3  # large, so that its place in the formula shows
EXACT = dict(rtol=1e-12, atol=1e-12)  # both sides in float64, sums of some hundred terms
CAUSAL_NORMS = ("layer", "rms", "none")


def draw_input(scale: float = 1.0, shift: float = 0.5):
    return (scale * torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64) + shift).requires_grad_()


def ours(name: str, **changes) -> nn.Module:
    return randomise(make("norm", name, **changes)(d_model=D_MODEL)).double()


def channels_first(module: nn.Module):
    """torch's convolutional norms want (batch, d_model, seq)."""
    return lambda x: module(x.mT).mT


def over_whole_sequence(weight, bias):
    return lambda x: F.layer_norm(x, (SEQ, D_MODEL), eps=EPS) * weight + bias


TORCH = {
    "layer": lambda gain, shift: copied(nn.LayerNorm(D_MODEL, eps=EPS), gain, shift),
    "rms": lambda gain, shift: copied(nn.RMSNorm(D_MODEL, eps=EPS), gain, shift),
    "batch": lambda gain, shift: channels_first(copied(nn.BatchNorm1d(D_MODEL, eps=EPS), gain, shift)),
    "instance": lambda gain, shift: channels_first(
        copied(nn.InstanceNorm1d(D_MODEL, eps=EPS, affine=True), gain, shift)
    ),
    "sequence": over_whole_sequence,
}


def copied(module: nn.Module, gain, shift) -> nn.Module:
    module.double()
    module.weight.data.copy_(gain)
    if shift is not None:
        module.bias.data.copy_(shift)
    return module


def gain_and_shift(norm: nn.Module):
    weights = [*norm.parameters()]
    return weights if len(weights) == 2 else (weights[0], None)


@pytest.mark.parametrize("name", TORCH)
def test_agrees_with_torch_in_output_and_gradient(name):
    norm, x = ours(name, eps=EPS), draw_input()
    gain, shift = gain_and_shift(norm)
    expected = TORCH[name](gain.data, None if shift is None else shift.data)(x)
    torch.testing.assert_close(norm(x), expected, **EXACT)
    torch.testing.assert_close(gradients(norm(x), [x]), gradients(expected, [x]), **EXACT)


def by_hand(features: list[float], centred: bool) -> list[float]:
    mean = sum(features) / len(features) if centred else 0.0
    variance = sum((feature - mean) ** 2 for feature in features) / len(features)
    return [(feature - mean) / (variance + EPS) ** 0.5 for feature in features]


@pytest.mark.parametrize(("name", "centred"), [("layer", True), ("rms", False)])
def test_agrees_with_the_papers_formula(name, centred):
    norm, x = ours(name, eps=EPS), draw_input()
    gain, shift = gain_and_shift(norm)
    expected = gain * torch.tensor([[by_hand(row, centred) for row in sequence] for sequence in x.tolist()]).double()
    torch.testing.assert_close(
        norm(x), expected + (0 if shift is None else shift), rtol=1e-6, atol=1e-6
    )  # lists pass through float32


def test_without_affine_layer_norm_learns_nothing():
    norm, x = ours("layer", affine=False), draw_input()
    assert not [*norm.parameters()]
    torch.testing.assert_close(norm(x), F.layer_norm(x, (D_MODEL,), eps=1e-5), **EXACT)


def test_layer_norm_without_shift_is_torchs_without_bias():
    norm, x = ours("layer", shift=False), draw_input()
    assert [name for name, _ in norm.named_parameters()] == ["gain"]
    theirs = copied(nn.LayerNorm(D_MODEL, bias=False), norm.gain.data, None)
    torch.testing.assert_close(norm(x), theirs(x), **EXACT)


def test_rms_norm_with_a_unit_offset_is_gemmas():
    norm, x = ours("rms", eps=EPS, unit_offset=True), draw_input()
    theirs = copied(GemmaRMSNorm(D_MODEL, eps=EPS), norm.gain.data, None)
    # Theirs works in float32: sums of 48 squares, each rounded to 2^-24.
    torch.testing.assert_close(norm(x), theirs(x), rtol=1e-5, atol=1e-5)
    by_hand = (1 + norm.gain) * x / (x.square().mean(dim=-1, keepdim=True) + EPS).sqrt()
    torch.testing.assert_close(norm(x), by_hand, **EXACT)


@pytest.mark.parametrize("unit_offset", [False, True])
def test_a_fresh_rms_norm_only_normalises(unit_offset):
    norm, x = make("norm", "rms", unit_offset=unit_offset)(d_model=D_MODEL).double(), draw_input()
    assert torch.equal(norm.gain, torch.full((D_MODEL,), 0.0 if unit_offset else 1.0).double())
    torch.testing.assert_close(norm(x), F.rms_norm(x, (D_MODEL,), eps=1e-6), **EXACT)


def test_none_changes_nothing():
    x = draw_input()
    assert ours("none")(x) is x


# --- which inputs an output depends on ----------------------------------------------------------

AXES = {  # (other features of the position, other positions of the sequence, other sequences)
    "none": (False, False, False),
    "layer": (True, False, False),
    "rms": (True, False, False),
    "instance": (False, True, False),
    "sequence": (True, True, False),
    "batch": (False, True, True),
}


def reads(name: str) -> tuple[bool, bool, bool]:
    """Measured by the gradient of one output feature at the middle of the first sequence."""
    x = draw_input()
    (gradient,) = torch.autograd.grad(ours(name)(x)[0, SEQ // 2, 0], x)
    touched = gradient != 0
    before_and_after = touched[0, : SEQ // 2].any() and touched[0, SEQ // 2 + 1 :].any()
    return bool(touched[0, SEQ // 2, 1:].any()), bool(before_and_after), bool(touched[1:].any())


@pytest.mark.parametrize("name", AXES)
def test_takes_its_statistics_over_these_axes(name):
    assert reads(name) == AXES[name]


@pytest.mark.parametrize("name", options("norm"))
def test_says_which_axes_it_reduces_over(name):
    features, positions, sequences = reads(name)
    norm = ours(name)
    assert set(norm.reduces) == {
        axis for axis, read in zip(("d_model", "seq", "batch"), (features, positions, sequences), strict=True) if read
    }
    assert norm.sees_future == (positions or sequences)


@pytest.mark.parametrize("name", options("norm"))
def test_the_future_reaches_the_past_through_seq_and_batch_alone(name):
    x, norm = draw_input(), ours(name)
    (gradient,) = torch.autograd.grad(norm(x)[:, :3].square().sum(), x)
    leak = gradient[:, 3:].abs().max()
    if {"seq", "batch"} & set(norm.reduces):
        assert leak > 1e-3  # the statistics are means over at most 7 x 2 positions
    else:
        assert leak == 0


def test_layer_norm_of_language_is_instance_norm_with_positions_as_channels():
    x = draw_input()
    fresh = make("norm", "layer")(d_model=D_MODEL).double()
    torch.testing.assert_close(fresh(x), F.instance_norm(x, eps=1e-5), **EXACT)


# --- invariances --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rms", "layer"])
def test_scale_of_a_position_does_not_matter(name):
    norm, x = ours(name, eps=1e-30), draw_input()
    factors = torch.rand(BATCH, SEQ, 1).double() * 9 + 1
    torch.testing.assert_close(norm(factors * x), norm(x), **EXACT)


def test_layer_norm_takes_out_what_all_features_share_and_rms_norm_does_not():
    x, shift = draw_input(), torch.randn(BATCH, SEQ, 1).double()
    norm = ours("layer")
    torch.testing.assert_close(norm(x + shift), norm(x), **EXACT)
    norm = ours("rms")
    assert (norm(x + shift) - norm(x)).abs().max() > 0.1


@pytest.mark.parametrize("name", [name for name in TORCH if name != "batch"])
def test_statistics_of_a_half_precision_input_are_taken_in_float32(name):
    # A square of a thousand is beyond float16, and a mean of a hundred rounded to float16 is off by 0.03.
    x = (1000 * torch.randn(BATCH, SEQ, D_MODEL) + 100).half()
    norm = make("norm", name)(d_model=D_MODEL)
    assert norm(x).dtype == torch.float16
    torch.testing.assert_close(
        norm(x).double(), norm.double()(x.double()), rtol=2**-10, atol=2**-10
    )  # the last rounding alone


def test_batch_norm_too_takes_half_precision_statistics_in_float32():
    x = (1000 * torch.randn(BATCH, SEQ, D_MODEL) + 100).half()
    norm = make("norm", "batch")(d_model=D_MODEL)
    torch.testing.assert_close(norm(x).double(), norm.double()(x.double()), rtol=2**-10, atol=2**-10)


def test_layer_norm_of_bfloat16_far_from_zero():
    x = (100 + torch.randn(BATCH, SEQ, D_MODEL)).bfloat16()
    norm = make("norm", "layer")(d_model=D_MODEL)
    expected = F.layer_norm(x.double(), (D_MODEL,), eps=1e-5)
    torch.testing.assert_close(
        norm(x).double(), expected, rtol=2**-8, atol=2**-8
    )  # a mean in bfloat16 would be off by 0.25


def test_batch_norm_evaluates_with_running_statistics():
    norm, torchs = ours("batch", momentum=0.25), nn.BatchNorm1d(D_MODEL, momentum=0.25).double()
    torchs.weight.data, torchs.bias.data = (weight.data.clone() for weight in gain_and_shift(norm))
    for _ in range(3):
        x = draw_input(scale=3.0, shift=2.0)
        norm(x), torchs(x.mT)
    torch.testing.assert_close(norm.eval()(x), torchs.eval()(x.mT).mT, **EXACT)
    (gradient,) = torch.autograd.grad(norm(x)[:, :3].sum(), x)
    assert gradient[:, 3:].abs().max() == 0


# --- Jiang et al. 2305.14858: pre-norm with LayerNorm is pre-norm with RMSNorm of centred weights ---


def test_centred_pre_rms_norm_is_pre_layer_norm():
    layer = build(norm=make("norm", "layer", eps=1e-6))
    centred = build(norm="rms")
    weights = {name: weight for name, weight in layer.state_dict().items() if not name.endswith("shift")}
    centred.load_state_dict(weights)
    for name, weight in layer.named_parameters():
        if name.endswith("shift"):
            weight.data.zero_()
    with torch.no_grad():
        centred.embedding.weight -= centred.embedding.weight.mean(dim=1, keepdim=True)
        for each in centred.layers:
            each.mixer.out_proj.weight -= each.mixer.out_proj.weight.mean(dim=0)
            each.ffn.down_proj.weight -= each.ffn.down_proj.weight.mean(dim=0)
    tokens = draw_tokens()
    torch.testing.assert_close(centred(tokens), layer(tokens), rtol=1e-10, atol=1e-10)  # float64 through four layers


@pytest.mark.parametrize("name", CAUSAL_NORMS)
def test_a_causal_norm_leaves_a_prefix_as_it_was(name):
    x, norm = draw_input(), ours(name)
    assert torch.equal(norm(x)[:, :3], norm(x[:, :3]))
