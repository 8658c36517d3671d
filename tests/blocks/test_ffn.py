"""Feed-forward networks, against formulas in plain Python, Hugging Face's modules and the paper's width rule."""

import math

import pytest
import torch
from oracles import BATCH, D_FF, D_MODEL, SEQ, gradients, make, options, randomise
from transformers import GPT2Config, LlamaConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP

import archlab
from archlab.blocks.ffn import PositionWise

EXACT = dict(rtol=1e-10, atol=1e-10)  # float64, sums of 88 terms


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: float) -> float:
    return x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


ACTIVATIONS = {
    "relu": lambda x: max(0.0, x),
    "relu2": lambda x: max(0.0, x) ** 2,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "glm": gelu_tanh,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "swiglu": lambda x: x / (1 + math.exp(-x)),
    "geglu": gelu,
    "geglu_tanh": gelu_tanh,
    "reglu": lambda x: max(0.0, x),
    "glu": lambda x: 1 / (1 + math.exp(-x)),
    "bilinear": lambda x: x,
}
DENSE = [name for name in options("ffn") if issubclass(make("ffn", name).func, PositionWise)]
GATED = ("swiglu", "geglu", "geglu_tanh", "reglu", "glu", "bilinear")


def make_ffn(name: str, **changes):
    return randomise(make("ffn", name, **changes)(d_model=D_MODEL, d_ff=D_FF)).double().eval()


def draw_input():
    return (2 * torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64)).requires_grad_()


def each(function, x):
    return torch.tensor([function(value) for value in x.flatten().tolist()], dtype=torch.float64).view(x.shape)


def by_hand(ffn, activation, gated, x):
    """Matrices as they are in the papers; the activation one number at a time."""

    def project(name, x):
        layer = getattr(ffn, name)
        return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)

    if gated:
        return project("down_proj", each(activation, project("gate_proj", x)) * project("up_proj", x))
    return project("down_proj", each(activation, project("up_proj", x)))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_formula(name, bias):
    ffn, x = make_ffn(name, bias=bias), draw_input()
    torch.testing.assert_close(ffn(x), by_hand(ffn, ACTIVATIONS[name], name in GATED, x), **EXACT)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_only_glm_has_biases_and_only_the_gated_have_a_gate(name):
    names = {weight for weight, _ in make_ffn(name).named_parameters()}
    expected = {"up_proj.weight", "down_proj.weight"}
    expected |= {"up_proj.bias", "down_proj.bias"} if name == "glm" else set()
    expected |= {"gate_proj.weight"} if name in GATED else set()
    assert names == expected


def test_swiglu_is_llamas():
    ours, x = make_ffn("swiglu"), draw_input()
    theirs = LlamaMLP(LlamaConfig(num_attention_heads=6, hidden_size=D_MODEL, intermediate_size=D_FF)).double()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), **EXACT)
    torch.testing.assert_close(gradients(ours(x), [x]), gradients(theirs(x), [x]), **EXACT)


@pytest.mark.parametrize("name", ["glm", "gelu_tanh"])
def test_glms_network_is_gpt2s(name):
    """Linear, GELU, Linear with biases; the gate that GLM's class is named after is not there."""
    ours, x = make_ffn(name, bias=True), draw_input()
    theirs = GPT2MLP(D_FF, GPT2Config(n_embd=D_MODEL, resid_pdrop=0.0)).double()
    theirs.c_fc.weight.data, theirs.c_fc.bias.data = ours.up_proj.weight.data.T, ours.up_proj.bias.data
    theirs.c_proj.weight.data, theirs.c_proj.bias.data = ours.down_proj.weight.data.T, ours.down_proj.bias.data
    torch.testing.assert_close(ours(x), theirs(x), **EXACT)
    torch.testing.assert_close(gradients(ours(x), [x]), gradients(theirs(x), [x]), **EXACT)


@pytest.mark.parametrize("name", [name for name in options("ffn") if make("ffn", name).func.acts])
def test_dropout_is_of_the_output_and_in_training_only(name):
    ffn, x = make_ffn(name, dropout=0.4), draw_input()
    whole = ffn(x)
    assert torch.equal(whole, ffn(x))
    dropped = ffn.train()(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.6, **EXACT)
    assert 0.5 < kept.double().mean() < 0.7  # 672 draws: a standard deviation of 0.019


@pytest.mark.parametrize("d_model", [64, 192])
@pytest.mark.parametrize("name", DENSE)
def test_matched_width_gives_a_gated_network_the_parameters_of_a_plain_one(name, d_model):
    cfg = archlab.compose(f"ffn={name}", f"size.d_model={d_model}")
    with torch.device("meta"):
        ffn = make("ffn", name)(d_model=d_model, d_ff=cfg.size.d_ff)
    weights = sum(weight.numel() for weight in ffn.parameters() if weight.dim() == 2)
    surplus = weights - 2 * d_model * 4 * d_model
    assert 0 <= surplus < 3 * d_model * 8  # the width is rounded up to a multiple of 8
    assert cfg.size.d_ff % 8 == 0


def test_a_width_given_as_a_number_is_taken_as_it_is():
    assert archlab.compose("ffn=swiglu", "size.d_ff=100").size.d_ff == 100
