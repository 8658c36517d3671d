"""Experts: against loops over tokens, Hugging Face's modules with weights copied, and the papers' formulas of balance."""

import math

import pytest
import torch
import transformers as hf
from oracles import BATCH, D_FF, D_MODEL, SEQ, build, built, composed, gradients, make, node, randomise
from torch import nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from archlab.base.errors import UserError
from archlab.blocks import grouped
from archlab.blocks.roles import Role
from archlab.blocks.taps import Taps
from archlab.config.assemble import default_d_ff
from archlab.config.plan import Plan
from archlab.cost.describe import count_active_parameters, count_parameters
from archlab.cost.measure import forward_flops_per_token
from archlab.runs.assembled import open_source
from archlab.runs.packs import refusal
from archlab.train.runtime import Runtime
from archlab.train.settings import TrainSettings
from archlab.train.state import TrainState
from archlab.train.step import make_step

EXACT = dict(rtol=1e-10, atol=1e-10)  # float64, sums of 88 terms
N = 12
"""Experts: a number that differs from all sizes."""


def experts(**options) -> nn.Module:
    ffn = make("ffn", "experts", **{"n_experts": N, "top_k": 3, **options})(d_model=D_MODEL, d_ff=D_FF)
    return randomise(ffn).double().eval()


def draw_input():
    return torch.randn(BATCH, SEQ, D_MODEL, dtype=torch.float64, requires_grad=True)


# --- the formula, token by token ----------------------------------------------------------------

silu = nn.functional.silu
NETWORKS = {
    "swiglu": lambda gate, up: gate * torch.sigmoid(gate) * up,
    "geglu": lambda gate, up: gate * (1 + torch.erf(gate / math.sqrt(2))) / 2 * up,
    "reglu": lambda gate, up: gate.clamp(min=0) * up,
    "glu": lambda gate, up: up / (1 + torch.exp(-gate)),
    "bilinear": lambda gate, up: gate * up,
    "relu2": lambda up: up.clamp(min=0) ** 2,
    "silu": lambda up: up / (1 + torch.exp(-up)),
}


def by_hand(ffn, network, x, top_k=3, sigmoid=False, normalise=True, scale=1.0):
    """Each token by itself, through the experts with the largest scores."""
    y = torch.zeros_like(x)
    for b in range(BATCH):
        for i in range(SEQ):
            token = x[b, i]
            logits = [row @ token for row in ffn.router.weight]
            scores = [
                1 / (1 + torch.exp(-z)) if sigmoid else torch.exp(z) / sum(map(torch.exp, logits)) for z in logits
            ]
            chosen = sorted(range(N), key=lambda e, s=scores: -s[e].item())[:top_k]
            total = sum(scores[e] for e in chosen) if normalise else 1.0
            for e in chosen:
                read = [
                    getattr(ffn, f"{name}_proj")[e] @ token for name in ("gate", "up") if hasattr(ffn, f"{name}_proj")
                ]
                y[b, i] = y[b, i] + scale * scores[e] / total * (ffn.down_proj[e] @ NETWORKS[network](*read))
    return y


@pytest.mark.parametrize("network", NETWORKS)
def test_formula(network):
    ffn, x = experts(network=network), draw_input()
    out, expected = ffn(x), by_hand(ffn, network, x)
    torch.testing.assert_close(out, expected, **EXACT)
    leaves = [x, *ffn.parameters()]
    torch.testing.assert_close(gradients(out, leaves), gradients(expected, leaves), **EXACT)


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({"scores": "sigmoid", "scale": 2.5}, {"sigmoid": True, "scale": 2.5}),
        ({"normalise": False, "top_k": 1}, {"normalise": False, "top_k": 1}),
        ({"normalise": False, "scale": 0.6}, {"normalise": False, "scale": 0.6}),
    ],
    ids=["sigmoid", "switch", "scaled scores"],
)
def test_weights(options, written):
    ffn, x = experts(**options), draw_input()
    torch.testing.assert_close(ffn(x), by_hand(ffn, "swiglu", x, **written), **EXACT)


def test_every_name_of_a_network_is_that_options_own():
    """One expert of all, whose weight is then 1, is the dense network of that name."""
    for name in (
        "swiglu",
        "geglu",
        "geglu_tanh",
        "reglu",
        "glu",
        "bilinear",
        "relu",
        "relu2",
        "gelu",
        "gelu_tanh",
        "silu",
    ):
        ffn, x = experts(network=name, top_k=N), draw_input()
        dense = make("ffn", name)(d_model=D_MODEL, d_ff=D_FF).double()
        for part in dict(dense.named_parameters()):
            stacked = getattr(ffn, part.removesuffix(".weight"))
            stacked.data[:] = stacked.data[:1]
            dense.get_parameter(part).data = stacked.data[0]
        torch.testing.assert_close(ffn(x), dense(x), **EXACT)


# --- Hugging Face's ------------------------------------------------------------------------------

SIZES = {"hidden_size": D_MODEL, "num_experts_per_tok": 3}
MANY = {**SIZES, "moe_intermediate_size": D_FF, "num_experts": N}
DEEPSEEK = {**SIZES, "moe_intermediate_size": D_FF, "n_routed_experts": N, "n_shared_experts": 2, "routed_scaling_factor": 2.5, "n_group": 4, "topk_group": 2, "norm_topk_prob": True}  # fmt: skip
THEIRS = {
    "mixtral": (MixtralSparseMoeBlock, hf.MixtralConfig(**SIZES, intermediate_size=D_FF, num_local_experts=N), {}),
    "qwen3_moe": (Qwen3MoeSparseMoeBlock, hf.Qwen3MoeConfig(**MANY, norm_topk_prob=True), {}),
    "olmoe": (OlmoeSparseMoeBlock, hf.OlmoeConfig(**SIZES, intermediate_size=D_FF, num_experts=N), {"normalise": False}),
    "qwen2_moe": (
        Qwen2MoeSparseMoeBlock,
        hf.Qwen2MoeConfig(**MANY, shared_expert_intermediate_size=2 * D_FF, norm_topk_prob=False),
        {"normalise": False, "shared": 2, "shared_gate": True},
    ),
    "deepseek_v3": (
        DeepseekV3MoE,
        hf.DeepseekV3Config(**DEEPSEEK),
        {"scores": "sigmoid", "scale": 2.5, "shared": 2, "groups": 4, "top_groups": 2, "balance_rate": 0.001},
    ),
    "glm4_moe": (
        Glm4MoeMoE,
        hf.Glm4MoeConfig(**{**DEEPSEEK, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}),
        {"scores": "sigmoid", "scale": 2.5, "shared": 1, "balance_rate": 0.001},
    ),
    "gpt_oss": (
        GptOssMLP,
        hf.GptOssConfig(**SIZES, intermediate_size=D_FF, num_local_experts=N),
        {"network": "clamped_swiglu", "bias": True, "router_bias": True},
    ),
}  # fmt: skip


def copied(theirs, ours, gpt_oss: bool):
    """Their weights and ours are the same numbers."""
    gate = theirs.router if gpt_oss else theirs.gate
    given = theirs.experts
    with torch.no_grad():
        gate.weight.copy_(ours.router.weight)
        if gpt_oss:  # inputs first, gate and up in turn
            gate.bias.copy_(ours.router.bias)
            for which, name in enumerate(("gate", "up")):
                given.gate_up_proj[..., which::2] = getattr(ours, f"{name}_proj").mT
                given.gate_up_proj_bias[..., which::2] = getattr(ours, f"{name}_bias")
            given.down_proj.copy_(ours.down_proj.mT)
            given.down_proj_bias.copy_(ours.down_bias)
        else:
            given.gate_up_proj.copy_(torch.cat((ours.gate_proj, ours.up_proj), dim=1))
            given.down_proj.copy_(ours.down_proj)
        if hasattr(gate, "e_score_correction_bias"):
            gate.e_score_correction_bias.copy_(ours.biased.bias)
        for name in ("shared_expert", "shared_experts"):
            if hasattr(theirs, name):
                getattr(theirs, name).load_state_dict(ours.shared.state_dict())
        if hasattr(theirs, "shared_expert_gate"):
            theirs.shared_expert_gate.weight.copy_(ours.shared_gate.weight)
    return theirs


@pytest.mark.parametrize("name", THEIRS)
def test_agrees_with_hugging_face(name, monkeypatch):
    """In float64: where their code has float32 written in it, it is read as float64."""
    block, config, options = THEIRS[name]
    config._experts_implementation = "eager"
    ours, x = experts(**options), draw_input()
    if "balance_rate" in options:
        ours.biased.bias.copy_(torch.linspace(-0.3, 0.3, N))
    if name == "gpt_oss":
        x = (8 * x).detach().requires_grad_()  # some hidden features are beyond the limit of 7
    theirs = copied(block(config).double(), ours, name == "gpt_oss")
    out = ours(x)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        expected = theirs(x)
    expected = expected[0] if name == "gpt_oss" else expected
    torch.testing.assert_close(out, expected, **EXACT)
    torch.testing.assert_close(gradients(out, [x]), gradients(expected, [x]), **EXACT)


@pytest.mark.parametrize("top_k", [1, 4])
def test_inputs_are_weighed_as_llama_4_does(top_k, monkeypatch):
    sizes = dict(hidden_size=D_MODEL, intermediate_size=D_FF, num_local_experts=N, num_experts_per_tok=top_k)
    theirs, x = Llama4TextMoe(hf.Llama4TextConfig(**sizes)).double(), draw_input()
    ours = experts(top_k=top_k, scores="sigmoid", normalise=False, weights_on="input", shared=1)
    with torch.no_grad():
        theirs.router.weight.copy_(ours.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat((ours.gate_proj, ours.up_proj), dim=1).mT)
        theirs.experts.down_proj.copy_(ours.down_proj.mT)
    theirs.shared_expert.load_state_dict(ours.shared.state_dict())
    out = ours(x)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        expected = theirs(x)[0].view_as(x)
    torch.testing.assert_close(out, expected, **EXACT)
    leaves = [x, ours.router.weight]
    of_theirs = gradients(expected, [x, theirs.router.weight])
    torch.testing.assert_close(gradients(out, leaves), of_theirs, **EXACT)
    on_outputs = experts(top_k=top_k, scores="sigmoid", normalise=False, shared=1)
    on_outputs.load_state_dict(ours.state_dict())
    assert not torch.allclose(on_outputs(x), out)


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_inputs_are_weighed_by_scaled_scores(scale):
    """y = sum of f_i(scale * w_i x), each token and expert by itself, with biases, which nothing weighs."""
    ffn, x = experts(normalise=False, weights_on="input", scale=scale, bias=True), draw_input()
    scores = (x @ ffn.router.weight.T).softmax(-1)
    rows = []
    for token, of_token in zip(x.flatten(0, 1), scores.flatten(0, 1), strict=True):
        y = 0
        for e in of_token.topk(3).indices.tolist():
            read = scale * of_token[e] * token
            gate, up = (getattr(ffn, f"{of}_proj")[e] @ read + getattr(ffn, f"{of}_bias")[e] for of in ("gate", "up"))
            y = y + ffn.down_proj[e] @ (silu(gate) * up) + ffn.down_bias[e]
        rows.append(y)
    torch.testing.assert_close(ffn(x).flatten(0, 1), torch.stack(rows), **EXACT)


@pytest.mark.parametrize("weights_on", ["input", "output"])
def test_weights_are_drawn_where_they_multiply(weights_on):
    steps = experts(normalise=False, weights_on=weights_on).steps()
    (weighing,) = (number for number, step in enumerate(steps, start=1) if step.kind == "mul")
    matrices = [number for number, step in enumerate(steps, start=1) if step.kind == "linear"]
    picked = next(number for number, step in enumerate(steps, start=1) if step.label.startswith("top "))
    assert picked in steps[weighing - 1].reads
    if weights_on == "input":
        assert weighing < min(matrices) and 0 in steps[weighing - 1].reads
        assert sum(weighing in steps[number - 1].reads for number in matrices) == 2  # gate and up
    else:
        assert weighing > max(matrices) and matrices[-1] in steps[weighing - 1].reads


# --- ties, experts without tokens ----------------------------------------------------------------


def test_of_experts_with_equal_scores_the_first_are_chosen_and_the_others_get_no_gradient():
    ffn, x = experts(), draw_input()
    ffn.router.weight.data.zero_()
    out = ffn(x)
    read, expected = [ffn.gate_proj, ffn.up_proj], 0
    for e in range(3):
        expected = expected + (silu(x @ read[0][e].T) * (x @ read[1][e].T)) @ ffn.down_proj[e].T / 3
    torch.testing.assert_close(out, expected, **EXACT)
    out.square().sum().backward()
    for weight in (*read, ffn.down_proj):
        assert weight.grad.isfinite().all() and weight.grad[:3].any() and not weight.grad[3:].any()


# --- balance -------------------------------------------------------------------------------------


def seen(ffn, x):
    taps = Taps(ffn.taps)
    ffn(x, taps)
    return taps


def test_the_balance_loss_is_switchs_and_a_top_k_th_of_transformers():
    ffn, x = experts(balance_loss=0.3, z_loss=0.2), draw_input()
    logits = (x @ ffn.router.weight.T).flatten(0, 1)
    theirs = load_balancing_loss_func((logits,), N, 3)
    taps = seen(ffn, x)
    assert taps.losses["balance"].item() == pytest.approx(0.3 * theirs.item() / 3, rel=1e-6)  # their counts are float32
    z = sum(math.log(sum(math.exp(v) for v in row)) ** 2 for row in logits.tolist()) / (BATCH * SEQ)
    assert taps.losses["router_z"].item() == pytest.approx(0.2 * z, rel=1e-12)
    p = logits.softmax(dim=-1)
    assert taps.seen["router_entropy"].item() == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-12)
    load = torch.bincount(logits.topk(3).indices.flatten(), minlength=N).double()
    torch.testing.assert_close(taps.counts["load"], load, rtol=0, atol=0)
    assert taps.seen["max_load"].item() == pytest.approx(load.max().item() / (BATCH * SEQ * 3 / N), rel=1e-12)
    assert taps.seen["min_load"].item() == pytest.approx(load.min().item() / (BATCH * SEQ * 3 / N), rel=1e-12)
    assert Taps().losses == seen(experts(balance_loss=0.0), x).losses == {}


def test_of_sigmoids_the_balance_loss_and_the_entropy_are_of_each_experts_share():
    """arXiv:2412.19437, eq. 17 to 20, over the batch: sum of f_i P_i, P_i the mean of s_i / sum of s, f_i = N / (K T) times the count."""
    ffn, x = experts(scores="sigmoid", balance_loss=0.3), draw_input()
    tokens = [[1 / (1 + math.exp(-v)) for v in row] for row in (x @ ffn.router.weight.T).flatten(0, 1).tolist()]
    counts, shares, entropy = [0] * N, [0.0] * N, 0.0
    for scores in tokens:
        for i in sorted(range(N), key=lambda i: -scores[i])[:3]:
            counts[i] += 1
        for i in range(N):
            share = scores[i] / sum(scores)
            shares[i] += share / len(tokens)
            entropy -= share * math.log(share) / len(tokens)
    taps = seen(ffn, x)
    balance = sum(N / (3 * len(tokens)) * n * share for n, share in zip(counts, shares, strict=True))
    assert taps.losses["balance"].item() == pytest.approx(0.3 * balance, rel=1e-12)
    assert taps.seen["router_entropy"].item() == pytest.approx(entropy, rel=1e-12)


WORDS = ("size=nano", "size.d_model=24", "size.n_heads=3", "ffn=experts", "ffn.n_experts=6", "size.d_ff=20", "ffn.balance_rate=0.1", "device=cpu")  # fmt: skip
CPU = Runtime(torch.device("cpu"), torch.float32)


def one_step(accumulate: int, recompute: bool):
    """The bias of each layer after a step, and by which load it moved."""
    cfg = composed(*WORDS)
    decoder, source = built(*WORDS).train(), open_source(cfg)
    if recompute:
        decoder.recompute_activations()
    settings = TrainSettings(**{**cfg.train, "batch_size": 4, "train_len": 16, "accumulate": accumulate})
    state = TrainState.begin(decoder, settings, CPU, 0)
    batch = source.train(0, 1, 4, 16)
    output = decoder.compute(batch.inputs, decoder.read(batch.inputs))
    make_step(decoder, settings, CPU)(state, batch)
    return state, [layer.ffn.biased.bias for layer in decoder.layers], [counted["load"] for counted in output.counts]


@pytest.mark.parametrize(("accumulate", "recompute"), [(1, False), (2, False), (1, True)])
def test_a_step_moves_each_bias_by_the_sign_of_its_error_in_load(accumulate, recompute):
    """By all tokens of the step, in however many pieces, and once where layers are computed twice."""
    state, biases, loads = one_step(accumulate, recompute)
    for bias, load in zip(biases, loads, strict=True):
        assert load.sum() == 4 * 16 * 2
        expected = [0.1 if n < load.sum() / 6 else -0.1 if n > load.sum() / 6 else 0.0 for n in load.tolist()]
        torch.testing.assert_close(bias, torch.tensor(expected), rtol=0, atol=0)
    saved, _ = state.state_dict()
    assert torch.equal(saved["weights/layers.1.ffn.biased.bias"], biases[1]) and biases[1].any()


def test_the_bias_decides_who_is_chosen_and_not_by_which_weight():
    ffn, x = experts(balance_rate=0.1, top_k=N - 1), draw_input()
    ffn.biased.bias.copy_(torch.linspace(5, -5, N))  # the last is left out, by every token
    expected = experts(top_k=N - 1)
    expected.load_state_dict(ffn.state_dict(), strict=False)
    expected.router = nn.Linear(D_MODEL, N, bias=True).double()
    expected.router.weight.data, expected.router.bias.data = ffn.router.weight.data, torch.zeros(N).double()
    expected.router.bias.data[-1] = -1e9
    torch.testing.assert_close(ffn(x), expected(x), **EXACT)


# --- cost, roles ---------------------------------------------------------------------------------


def costs_of(ffn, **sizes):
    """Parameters, those of them that a token uses, and FLOPs per token, of a decoder of two layers."""
    with torch.device("meta"):
        decoder = build(torch.float32, fresh=True, ffn=ffn, n_layers=2, **sizes)
    return count_parameters(decoder), count_active_parameters(decoder), forward_flops_per_token(decoder, 8)


def test_a_token_uses_its_own_experts_alone_in_parameters_and_flops():
    few, many = (costs_of(make("ffn", "experts", n_experts=n, shared=1), d_ff=40) for n in (4, 16))
    plain = costs_of("swiglu", d_ff=120)  # as wide as a token's two experts and the shared one
    matrices, router = 3 * D_MODEL * 40, D_MODEL
    assert few[0] - plain[0] == 2 * (2 * matrices + 4 * router)  # in two layers, two experts that it does not use
    assert (few[1] - plain[1], few[2] - plain[2]) == (2 * 4 * router, 2 * 2 * 4 * router)
    assert many[0] - few[0] == 2 * 12 * (matrices + router)
    assert (many[1] - few[1], many[2] - few[2]) == (2 * 12 * router, 2 * 2 * 12 * router)


def test_the_first_layers_may_have_one_dense_network():
    decoder = built(*WORDS, "layers[:1].ffn=swiglu", "layers[:1].size.d_ff=44")
    assert [layer.ffn.summary for layer in decoder.layers] == ["Gated, d_ff 44", "RoutedExperts, 2 of 6, d_ff 20"]


def test_roles():
    weights = {weight.name: weight for weight in experts(shared=1, shared_gate=True, bias=True).weights()}
    assert {name for name, weight in weights.items() if weight.role is Role.ROUTER} == {
        "router.weight",
        "shared_gate.weight",
    }
    assert {name for name, weight in weights.items() if weight.role is Role.EXPERT} == {
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    gained = {name for name, weight in weights.items() if weight.branch_gain}
    assert gained == {"gate_proj", "up_proj", "down_proj", "shared.gate_proj.weight", "shared.up_proj.weight", "shared.down_proj.weight"}  # fmt: skip
    assert (weights["down_proj"].fan_in, weights["down_proj"].fan_out) == (D_FF, D_MODEL)


@pytest.mark.parametrize(("network", "width"), [("gelu", 4 * 48), ("swiglu", 128)])
def test_experts_are_as_wide_as_a_dense_network_of_their_kind(network, width):
    assert default_d_ff({**node("ffn", "experts"), "network": network}, 48) == width


BIAS_KEPT = "ffn=experts keeps what it counted in earlier steps, which a pack does not"


# --- packed, without asking how many ---------------------------------------------------


def groups_of_rows():
    ends = torch.tensor([3, 3, 10, 11])
    x, weight, y = (torch.randn(*shape, dtype=torch.float64) for shape in ((11, 5), (4, 7, 5), (11, 7)))
    of_groups = [slice(0, 3), slice(3, 3), slice(3, 10), slice(10, 11)]
    mapped = torch.cat([x[rows] @ weight[g].T for g, rows in enumerate(of_groups)])
    outer = torch.stack([y[rows].T @ x[rows] for rows in of_groups])
    return x, weight, y, ends, mapped, outer


def test_rows_are_mapped_by_their_groups_matrix():
    """By slices, as on a CPU, and by equal blocks, as elsewhere, where nobody may wait for how many rows there are."""
    x, weight, y, ends, mapped, outer = groups_of_rows()
    for linear in (grouped.grouped_linear, grouped.in_blocks):
        torch.testing.assert_close(linear(x, weight, ends), mapped, **EXACT)
    for product in (grouped.grouped_outer, grouped.outer_in_blocks):
        torch.testing.assert_close(product(y, x, ends), outer, **EXACT)


def test_packed_members_have_experts_of_their_own():
    ffns, x = [experts(bias=True) for _ in range(2)], torch.randn(2, BATCH, SEQ, D_MODEL, dtype=torch.float64)
    weights = {name: torch.stack([ffn.get_parameter(name).detach() for ffn in ffns]).requires_grad_() for name, _ in ffns[0].named_parameters()}  # fmt: skip

    def of_one(weights, x):
        return torch.func.functional_call(ffns[0], weights, (x,))

    packed = torch.vmap(of_one)(weights, x)
    alone = torch.stack([ffn(one) for ffn, one in zip(ffns, x, strict=True)])
    torch.testing.assert_close(packed, alone, **EXACT)
    (gradient,) = gradients(packed, [weights["up_proj"]])
    expected = gradients(alone, [ffn.up_proj for ffn in ffns])
    torch.testing.assert_close(gradient, torch.stack(expected), **EXACT)


# --- what there is no such thing as --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"top_k": 9}, "ffn.top_k=9: is more than the experts that there are, ffn.n_experts=8; use at most 8"),
        ({"n_experts": 1}, "ffn.n_experts=1: leaves a router nothing to choose; use 2 or more, or ffn=swiglu"),
        ({"top_k": 1}, "ffn.top_k=1: the one weight, divided by itself, is always 1, so the loss would teach the router nothing; use ffn.normalise=false, or a larger top_k"),
        ({"top_k": 8, "balance_rate": 0.1}, "ffn.balance_rate=0.1: changes nothing at ffn.top_k=8, where every token gets every expert; leave it out, or use a smaller top_k"),
        ({"groups": 3}, "ffn.groups=3: 8 experts are not so many equal groups of two or more; use a divisor of ffn.n_experts up to half of it"),
        ({"groups": 2, "top_groups": 2}, "ffn.top_groups=2: of ffn.groups=2 groups leaves none out, so groups would change nothing; use fewer than 2, or leave both out"),
        ({"groups": 4, "top_k": 3}, "ffn.top_k=3: is more than the 2 experts in ffn.top_groups=1 groups; use at most 2, or more groups"),
        ({"shared_gate": True}, "ffn.shared_gate=true: changes nothing at ffn.shared=0, since it gates the shared experts; leave it out, or use ffn.shared=1"),
        ({"network": "clamped_swiglu", "shared": 1}, "ffn.shared=1: gpt-oss's clamped_swiglu has no shared experts; use ffn.shared=0, or ffn.network=swiglu"),
    ],
)  # fmt: skip
def test_one_line_says_what_there_is_no_such_thing_as(options, line):
    with pytest.raises(UserError) as refusal:
        experts(**{"n_experts": 8, "top_k": 2, **options})
    assert str(refusal.value) == line


@pytest.mark.parametrize(("words", "why"), [((), None), (("ffn.balance_rate=0.1",), BIAS_KEPT)])
def test_a_bias_that_moves_after_a_step_is_not_packed(words, why):
    plan = Plan(overrides=(), cfg=composed(*WORDS[:6], "device=cpu", *words), layers=())
    assert refusal(plan) == why


def test_sub_norm_norms_what_an_experts_last_matrix_is_given():
    """Equal matrices in all experts make a dense network of them, whose norm is at the same place."""
    ffn = make("ffn", "experts", n_experts=N, top_k=3)(d_model=D_MODEL, d_ff=D_FF, inner_norm=make("norm", "layer"))
    dense = randomise(make("ffn", "swiglu")(d_model=D_MODEL, d_ff=D_FF, inner_norm=make("norm", "layer"))).double()
    ffn, x = randomise(ffn).double(), draw_input()
    for name in ("gate_proj", "up_proj", "down_proj"):
        getattr(ffn, name).data[:] = getattr(dense, name).weight.data
    ffn.inner_norm.load_state_dict(dense.inner_norm.state_dict())
    torch.testing.assert_close(ffn(x), dense(x), **EXACT)


def test_an_inner_norm_over_positions_keeps_to_each_sequences_own_assignments():
    ffn = make("ffn", "experts", n_experts=N, top_k=3)(d_model=D_MODEL, d_ff=D_FF, inner_norm=make("norm", "instance"))
    ffn, x = randomise(ffn).double(), draw_input()
    torch.testing.assert_close(ffn(x), torch.cat([ffn(one[None]) for one in x]), **EXACT)
