"""DyT, nGPT's and ScaleNorm's norms, RMS without gain and Apertus' activation, against formulas and torch and transformers."""

import math

import pytest
import torch
import torch.nn.functional as F
from oracles import BATCH, D_FF, D_MODEL, SEQ, gradients, make, randomise
from torch import nn
from transformers.activations import XIELUActivation

from archlab.base.errors import UserError
from archlab.blocks.ffn import XIELU

EXACT = dict(rtol=1e-12, atol=1e-12)  # both sides in float64, sums of some hundred terms


def draw_input():
    return (2 * torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64) + 0.5).requires_grad_()


def norm(name: str, **changes) -> nn.Module:
    return randomise(make("norm", name, **changes)(d_model=D_MODEL)).double()


FORMULAS = {
    "dyt": lambda n, x: n.gain * (1 - 2 / (torch.exp(2 * n.alpha * x) + 1)) + n.shift,
    "l2": lambda n, x: x / (x**2).sum(-1, keepdim=True).add(0.3).sqrt(),
    "scale_norm": lambda n, x: n.gain * x / (x**2).sum(-1, keepdim=True).add(0.3).sqrt(),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name):
    ours, x = norm(name, **({} if name == "dyt" else {"eps": 0.3})), draw_input()
    out, expected = ours(x), FORMULAS[name](ours, x)
    torch.testing.assert_close(out, expected, **EXACT)
    leaves = [x, *ours.parameters()]
    torch.testing.assert_close(gradients(out, leaves), gradients(expected, leaves), **EXACT)


def test_what_they_start_at():
    dyt, scaled = make("norm", "dyt")(d_model=D_MODEL), make("norm", "scale_norm")(d_model=D_MODEL)
    assert (dyt.alpha.item(), dyt.gain.unique().item(), dyt.shift.unique().item()) == (0.5, 1.0, 0.0)
    x = draw_input()
    torch.testing.assert_close(scaled.double()(x).square().mean(-1), torch.ones(BATCH, SEQ).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(norm("l2", eps=1e-20)(x).norm(dim=-1), torch.ones(BATCH, SEQ).double(), **EXACT)


def test_rms_norm_without_gain_is_torchs_without_weight():
    ours, x = norm("rms", eps=0.3, affine=False), draw_input()
    assert not [*ours.parameters()]
    torch.testing.assert_close(ours(x), nn.RMSNorm(D_MODEL, eps=0.3, elementwise_affine=False)(x), **EXACT)
    with pytest.raises(UserError, match="norm.unit_offset=true: changes nothing under norm.affine=false"):
        norm("rms", affine=False, unit_offset=True)


def test_layer_norm_whose_factor_is_one_more_than_its_gain_is_nemotrons():
    from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P

    assert not make("norm", "layer", unit_offset=True)(d_model=D_MODEL).gain.any()
    ours, x = norm("layer", eps=0.3, unit_offset=True), draw_input()
    theirs = NemotronLayerNorm1P(D_MODEL, eps=0.3).double()
    theirs.weight.data.copy_(ours.gain.data)
    theirs.bias.data.copy_(ours.shift.data)
    mine, others = [x, ours.gain, ours.shift], [x, theirs.weight, theirs.bias]
    torch.testing.assert_close(ours(x), theirs(x), **EXACT)
    torch.testing.assert_close(gradients(ours(x), mine), gradients(theirs(x), others), **EXACT)
    with pytest.raises(UserError, match="norm.unit_offset=true: changes nothing under norm.affine=false"):
        norm("layer", affine=False, unit_offset=True)


def test_xielu_is_that_of_transformers():
    ours, theirs, x = XIELU().double(), XIELUActivation(dtype=torch.float64), draw_input()
    torch.testing.assert_close(ours.alpha_p.data, theirs.alpha_p.data, rtol=1e-6, atol=0)  # ours begins in float32
    torch.testing.assert_close(ours.alpha_n.data, theirs.alpha_n.data, rtol=1e-6, atol=0)
    for number, name in enumerate(("alpha_p", "alpha_n")):
        getattr(ours, name).data.fill_(0.7 - number)
        getattr(theirs, name).data.fill_(0.7 - number)
    out, expected = ours(x), theirs._xielu_python(x)
    torch.testing.assert_close(out, expected, **EXACT)
    mine, others = [x, ours.alpha_p, ours.alpha_n], [x, theirs.alpha_p, theirs.alpha_n]
    torch.testing.assert_close(gradients(out, mine), gradients(expected, others), **EXACT)
    large = torch.tensor([-1000.0, 1000.0], dtype=torch.float64, requires_grad=True)  # whose exponential is infinite
    (slope,) = torch.autograd.grad(ours(large).sum(), large)
    a, c = (math.log1p(math.exp(0.7 - number)) for number in (0, 1))
    assert slope.tolist() == pytest.approx([-(0.5 + c) + 0.5, 2 * a * 1000 + 0.5], rel=1e-12)
    ffn = randomise(make("ffn", "xielu")(d_model=D_MODEL, d_ff=D_FF)).double()
    hidden = F.linear(x, ffn.up_proj.weight)
    a, c = F.softplus(ffn.activation.alpha_p), 0.5 + F.softplus(ffn.activation.alpha_n)
    bent = torch.where(hidden > 0, a * hidden**2, c * (hidden.exp() - 1 - hidden)) + hidden / 2
    # Exponents above -1e-6 are cut there, which is off by half the square of that.
    torch.testing.assert_close(ffn(x), F.linear(bent, ffn.down_proj.weight), rtol=1e-9, atol=1e-9)
