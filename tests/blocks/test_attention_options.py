"""Options of softmax attention, against Hugging Face's attention with copied weights and loops over queries and keys."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
import transformers
from oracles import (  # fmt: skip
    BATCH,
    BIAS,
    D_MODEL,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    MAY_READ,
    SEQ,
    attend,
    built,
    composed,
    gradients,
    make_attention,
    make_reading,
    randomise,
    scores_of,
)
from torch import nn
from torch.func import functional_call, stack_module_state
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention
from transformers.models.stablelm.modeling_stablelm import StableLmLayerNormPerHead

import archlab
from archlab.base.errors import UserError
from archlab.blocks import context as contexts
from archlab.blocks.activations import Accounting
from archlab.blocks.causal_conv import CausalConv
from archlab.blocks.roles import Role
from archlab.config.assemble import assemble_without_weights
from archlab.contract import decoder as contract
from archlab.contract.subject import SMALL, Subject
from archlab.cost.measure import decode_state, measured
from archlab.report.preflight import start_figure

PREFIXES = (3, 5)
EXACT = dict(rtol=1e-9, atol=1e-9)  # float64 throughout, sums in another order
FLOAT32 = dict(rtol=1e-5, atol=1e-6)  # the oracle has a step in float32

SOFTMAX = ["gate=elementwise", "sinks=true", "weighting=scalable_softmax", "forget=true", "value_residual=true", "conv=3", "qk_norm=each_head", "qk_norm_kind=layer", "qk_norm_eps=0.01"]  # fmt: skip
SIGMOID = ["gate=head", "weighting=sigmoid", "forget=true", "softcap=2.0", "conv=2", "clip=0.9", "temperature=0.3", "temperature_every=2"]  # fmt: skip
MANY = {
    "softmax": [*(f"mixer.{option}" for option in SOFTMAX), "mixer=gqa", "mask=causal"],
    "sigmoid": [
        *(f"mixer.{option}" for option in SIGMOID),
        "mixer=mqa",
        "mask=prefix",
        "prefix=[0.2,0.5]",
        "pos=alibi",
    ],
    "diff": ["mixer=diff", "mask=window"],
    "mla": ["mixer=mla", "mixer.q_lora_rank=7", "mixer.v_head_dim=5", "mixer.scale=0.2"],
}


def draw_input(seq: int = SEQ):
    return torch.randn(BATCH, seq, D_MODEL, dtype=torch.float64).requires_grad_()


def read_of(pos: str, mask: str, seq: int = SEQ):
    return make_reading(pos, mask, seq, PREFIXES if mask == "prefix" else 0)


# --- against Hugging Face's classes -----------------------------------------------------------------


def not_rotated(seq: int = SEQ):
    return torch.ones(1, seq, HEAD_DIM).double(), torch.zeros(1, seq, HEAD_DIM).double()


def agree(ours, theirs, x, *arguments, tolerances=EXACT):
    expected = theirs(x, *arguments)[0]
    out = ours(x, make_reading("none", "causal", SEQ))
    torch.testing.assert_close(out, expected, **tolerances)
    torch.testing.assert_close(gradients(out, [x]), gradients(expected, [x]), **tolerances)


SIZES_OF_THEIRS = dict(hidden_size=D_MODEL, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM)


@pytest.mark.parametrize("biases", [False, True])
def test_the_elementwise_gate_is_qwen3_nexts(biases):
    config = transformers.Qwen3NextConfig(**SIZES_OF_THEIRS, attention_bias=biases, attn_implementation="sdpa")
    theirs = randomise(Qwen3NextAttention(config, 0)).double()
    theirs.q_norm = theirs.k_norm = nn.Identity()  # norms in float32, which have their own test
    ours = make_attention("gqa", gate="elementwise", qkv_bias=biases, out_bias=biases).double()
    copied = {"k_proj": theirs.k_proj, "v_proj": theirs.v_proj, "out_proj": theirs.o_proj}
    for part in ("weight", "bias")[: 1 + biases]:
        q_and_gate = getattr(theirs.q_proj, part).data.unflatten(0, (HEADS, 2, HEAD_DIM))
        getattr(ours.q_proj, part).data, getattr(ours.gate.proj, part).data = (
            q_and_gate[:, 0].flatten(0, 1),
            q_and_gate[:, 1].flatten(0, 1),
        )
        for name, module in copied.items():
            getattr(getattr(ours, name), part).data = getattr(module, part).data
    agree(ours, theirs, draw_input(), not_rotated(), None)


def test_a_gate_for_each_head_is_an_elementwise_one_whose_rows_are_alike():
    one = make_attention("gqa", gate="head").double()
    each = make_attention("gqa", gate="elementwise").double()
    weights = one.state_dict()
    weights["gate.proj.weight"] = weights["gate.proj.weight"].repeat_interleave(HEAD_DIM, dim=0)
    each.load_state_dict(weights)
    x, context = draw_input(), make_reading("none", "causal", SEQ)
    torch.testing.assert_close(one(x, context), each(x, context), **EXACT)


def test_sinks_are_gpt_ossis():
    config = transformers.GptOssConfig(
        **SIZES_OF_THEIRS, attention_bias=True, layer_types=["full_attention"], num_hidden_layers=1
    )
    config._attn_implementation = "eager"
    theirs = randomise(GptOssAttention(config, 0)).double()
    ours = make_attention("gqa", sinks=True, qkv_bias=True, out_bias=True).double()
    names = {"o_proj": "out_proj", "sinks": "weigh.sinks"}
    ours.load_state_dict(
        {names.get(part, part) + rest: w for name, w in theirs.state_dict().items() for part, rest in [split(name)]}
    )
    hidden = torch.full((SEQ, SEQ), -math.inf).double().triu(1)
    agree(ours, theirs, draw_input(), tuple(table.chunk(2, dim=-1)[0] for table in not_rotated()), hidden)


def split(name: str) -> tuple[str, str]:
    part, dot, rest = name.partition(".")
    return part, dot + rest


@pytest.mark.parametrize(("theirs", "tolerances"), [(StableLmLayerNormPerHead, EXACT), (CohereLayerNorm, FLOAT32)])
def test_norms_of_each_head_are_stablelms_and_coheres(theirs, tolerances):
    ours = make_attention("gqa", qk_norm="each_head", qk_norm_kind="layer_no_shift").double()
    x, context = draw_input(), make_reading("none", "causal", SEQ)
    for out, norm, projection, n in zip(
        ours.queries_and_keys(x, context), (ours.q_norm, ours.k_norm), (ours.q_proj, ours.k_proj), (HEADS, KV_HEADS), strict=True
    ):  # fmt: skip
        of_heads, heads = [one.gain.data for one in norm.heads], projection(x).unflatten(-1, (n, HEAD_DIM))
        if theirs is CohereLayerNorm:
            other = theirs((n, HEAD_DIM)).double()
            other.weight.data = torch.stack(of_heads)
            expected = other(heads).transpose(1, 2)
        else:
            other = theirs(HEAD_DIM, n).double()
            for one, gain in zip(other.norms, of_heads, strict=True):
                one.weight.data = gain
            expected = other(heads.transpose(1, 2))
        torch.testing.assert_close(out, expected, **tolerances)


def test_a_layer_norm_of_all_heads_is_phis():
    """`PhiAttention` norms by torch's LayerNorm over head_dim, one for all heads; in a model whose own norm is RMS."""
    ours = make_attention("mha", qk_norm="head", qk_norm_kind="layer").double()
    x, context = draw_input(), make_reading("none", "causal", SEQ)
    for out, norm, projection in zip(
        ours.queries_and_keys(x, context), (ours.q_norm, ours.k_norm), (ours.q_proj, ours.k_proj), strict=True
    ):
        expected = F.layer_norm(
            projection(x).unflatten(-1, (HEADS, HEAD_DIM)), (HEAD_DIM,), norm.gain, norm.shift, 1e-5
        )
        torch.testing.assert_close(out, expected.transpose(1, 2), **EXACT)


# --- against loops ----------------------------------------------------------------------------------


def by_loops(attention, x, mask, pos, weigh, own_bias=lambda h, b, i, j: 0.0):
    """The whole block; `weigh` makes weights of a query's scores over the keys it may attend to, by the head."""
    projected = (module(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for module in (attention.q_proj, attention.k_proj, attention.v_proj))  # fmt: skip
    q, k, v = projected
    group = HEADS // k.shape[1]
    read = torch.zeros_like(q)
    for b, h, i in product(range(BATCH), range(HEADS), range(SEQ)):
        keys = [j for j in range(SEQ) if MAY_READ[mask](i, j, PREFIXES[b])]
        products = k[b, h // group, keys] @ q[b, h, i] / math.sqrt(HEAD_DIM)
        biases = torch.stack([torch.as_tensor(BIAS[pos](h, i, j) + own_bias(h, b, i, j)).double() for j in keys])
        read[b, h, i] = weigh(products, biases, h, len(keys)) @ v[b, h // group, keys]
    return attention.out_proj(read.transpose(1, 2).flatten(2))


def with_sink(attention):
    def weigh(products, biases, h, n):
        exponentials = (products + biases).exp()
        return exponentials / (attention.weigh.sinks[h].exp() + exponentials.sum())

    return weigh


WEIGH = {
    "sinks": (dict(sinks=True), with_sink),
    "scalable": (dict(weighting="scalable_softmax"), lambda a: lambda p, b, h, n: (a.sharpen.s[h] * math.log(n) * p + b).softmax(0)),
    "sigmoid": (dict(weighting="sigmoid"), lambda a: lambda p, b, h, n: 1 / (1 + n * (-p - b).exp())),
    "forget": (dict(forget=True), lambda a: lambda p, b, h, n: (p + b).softmax(0)),
}  # fmt: skip


@pytest.mark.parametrize("mask", MAY_READ)
@pytest.mark.parametrize("what", WEIGH)
def test_weights_are_those_of_loops(what, mask, monkeypatch):
    """Under a bias, whole and by blocks of queries, forwards and backwards."""
    options, weigh = WEIGH[what]
    attention, x = make_attention("gqa", pos="alibi", mask=mask, **options).double(), draw_input()
    own_bias = forgotten(attention, x) if what == "forget" else lambda h, b, i, j: 0.0
    expected = by_loops(attention, x, mask, "alibi", weigh(attention), own_bias)
    leaves = [x, *attention.parameters()]
    of_expected = gradients(expected, leaves)
    for block in (512, 3):
        monkeypatch.setattr(contexts, "QUERY_BLOCK", block)
        out = attention(x, read_of("alibi", mask))
        torch.testing.assert_close(out, expected, **EXACT)
        torch.testing.assert_close(gradients(out, leaves), of_expected, **EXACT)


@pytest.mark.parametrize("mask", MAY_READ)
def test_a_temperature_is_a_factor_on_each_querys_scores(mask, monkeypatch):
    """The same block with the scores of query i times 1 + 0.4 log(1 + floor((i + 1) / 3)), by a softmax of its own."""
    tuned = make_attention("gqa", mask=mask, temperature=0.4, temperature_every=3).double()
    x, query = draw_input(), iter([i for _ in range(BATCH * HEADS) for i in range(SEQ)])

    def weigh(products, biases, h, n):
        steps = sum(1 for p in range(next(query) + 1) if (p + 1) % 3 == 0)
        return (products * (1 + 0.4 * math.log(1 + steps)) + biases).softmax(0)

    expected = by_loops(tuned, x, mask, "none", weigh)
    for block in (512, 3):
        monkeypatch.setattr(contexts, "QUERY_BLOCK", block)
        torch.testing.assert_close(tuned(x, read_of("none", mask)), expected, **FLOAT32)  # a factor in float32


def test_a_temperature_counts_from_where_a_document_starts():
    decoder = built(*SMALL, "mask=document", "mixer.temperature=0.5", "mixer.temperature_every=2", "pos=none").double()
    tokens = torch.randint(61, (1, SEQ))
    starts = torch.tensor([[0] * 4 + [4] * (SEQ - 4)])
    whole = decoder(tokens, document_starts=starts)
    torch.testing.assert_close(whole[:, 4:], decoder(tokens[:, 4:]), **FLOAT32)


def test_a_temperature_counts_from_where_the_sequence_begins_in_a_layer_that_keeps_no_documents_apart():
    words = ("mask=document", "layers[1].mask=causal", "mixer.temperature=0.5", "mixer.temperature_every=2")
    decoder, factors = built(*SMALL, *words).double(), []
    for layer in decoder.layers:
        layer.mixer.tune.register_forward_hook(
            lambda tune, given, tuned: factors.append((tuned / given[0])[0, 0, :, 0])
        )
    starts = torch.tensor([[0] * 4 + [4] * (SEQ - 4)])
    decoder(torch.randint(61, (1, SEQ)), document_starts=starts)
    assert len(factors) == len(decoder.layers) > 2
    for depth, seen in enumerate(factors):
        begins = [0] * SEQ if depth == 1 else starts[0].tolist()
        expected = [1 + 0.5 * math.log(1 + (i - begin + 1) // 2) for i, begin in enumerate(begins)]
        torch.testing.assert_close(seen, torch.tensor(expected).double(), **FLOAT32)


def test_queries_keys_and_values_are_clamped_after_their_norms():
    clamped = make_attention("gqa", clip=0.6, qk_norm="head").double()
    x = draw_input()
    weights = {name: w.detach() for name, w in clamped.state_dict().items()}
    q, k, v = (heads(x @ weights[f"{name}_proj.weight"].T) for name in "qkv")
    normed = [F.rms_norm(p, (HEAD_DIM,), weights[f"{name}_norm.gain"], 1e-6) for name, p in (("q", q), ("k", k))]
    q, k, v = (part.clamp(-0.6, 0.6) for part in (*normed, v))
    group = HEADS // k.shape[1]
    k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
    gathered = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    expected = gathered @ weights["out_proj.weight"].T
    torch.testing.assert_close(clamped(x, make_reading("none", "causal", SEQ)), expected, **EXACT)


def forgotten(attention, x):
    """The sum of log f over the tokens after the earlier of the two, up to the later."""
    f = 1 / (1 + (-(x @ attention.own_bias.proj.weight.T + attention.own_bias.proj.bias)).exp())
    return lambda h, b, i, j: f[b, min(i, j) + 1 : max(i, j) + 1, h].log().sum()


def test_scores_are_shown_with_the_sums_of_the_layers_own_gates():
    attention, x = make_attention("gqa", forget=True).double(), draw_input()
    context = make_reading("none", "causal", SEQ)
    shown = scores_of(attention, x, context, context.everything)
    q, k = (proj(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for proj in (attention.q_proj, attention.k_proj))
    sums = forgotten(attention, x)
    for b, h, i, j in product(range(BATCH), range(HEADS), range(SEQ), range(SEQ)):
        expected = q[b, h, i] @ k[b, h * k.shape[1] // HEADS, j] / math.sqrt(HEAD_DIM) + sums(h, b, i, j)
        assert shown[b, h, i, j].item() == pytest.approx(expected.item() if j <= i else -math.inf, rel=1e-10, abs=1e-10)


def test_scalable_softmax_keeps_its_fused_kernel_and_so_does_a_gate():
    words = composed("size=nano", "mixer.weighting=scalable_softmax", "mixer.gate=head", "kernel=sdpa")
    assert assemble_without_weights(words).layers[0].mixer.kernel.__name__ == "causal_kernel"


def test_a_short_convolution_is_torchs():
    conv = randomise(CausalConv(D_MODEL, 4)).double()
    x, context = draw_input(), make_reading("none", "causal", SEQ)
    expected = F.conv1d(x.mT, conv.weight, padding=3, groups=D_MODEL)[..., :SEQ].mT
    leaves = [x, conv.weight]
    torch.testing.assert_close(conv(x, context), expected, **EXACT)
    torch.testing.assert_close(gradients(conv(x, context), leaves), gradients(expected, leaves), **EXACT)
    with_it, without = make_attention("gqa", conv=2, qk_norm="head").double(), make_attention("gqa", qk_norm="head").double()  # fmt: skip
    without.load_state_dict(with_it.state_dict(), strict=False)
    for name in ("q", "k", "v"):
        weight = getattr(with_it, f"{name}_conv").weight
        weight.data = torch.stack((torch.zeros(len(weight)), torch.ones(len(weight))), dim=1)[:, None].double()
    torch.testing.assert_close(with_it(x, context), without(x, context), **EXACT)


def heads(projected):
    return projected.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)


def test_values_are_mixed_with_those_of_the_first_layer():
    first, later = (make_attention("gqa", value_residual=True, depth=depth).double() for depth in (0, 5))
    x0, x, context = draw_input(), draw_input(), make_reading("none", "causal", SEQ)
    of_first, own = later.mix_values.factors
    v = of_first * heads(first.v_proj(x0)) + own * heads(later.v_proj(x))
    read = attend(heads(later.q_proj(x)), heads(later.k_proj(x)), v, lambda b, i, j: j <= i, BIAS["none"])
    expected = later.out_proj(read.transpose(1, 2).flatten(2))
    first(x0, context)
    out, leaves = later(x, context), [x0, x, *later.parameters(), first.v_proj.weight]
    torch.testing.assert_close(out, expected, **EXACT)
    torch.testing.assert_close(gradients(out, leaves), gradients(expected, leaves), **EXACT)


def test_layers_of_other_masks_and_positions_share_the_first_layers_values():
    decoder = built(*SMALL, "mixer.value_residual=true", "layers[1::2].mask=window", "layers[1::2].pos=none").double().eval()  # fmt: skip
    tokens = torch.randint(61, (BATCH, SEQ))
    before = decoder(tokens)
    decoder.layers[0].mixer.v_proj.weight.data *= 2
    decoder.layers[0].mixer.out_proj.weight.data /= 2  # of the first layer's own output nothing changes
    assert len(decoder.pairs) == 2 and (decoder(tokens) - before).abs().max() > 1e-3


# --- what every option keeps to, several at once ----------------------------------------------------


@pytest.mark.parametrize("holds", [contract.future, contract.gradients, contract.recomputed, contract.decoding, contract.padded], ids=lambda check: check.__name__)  # fmt: skip
@pytest.mark.parametrize("words", [MANY["softmax"], MANY["sigmoid"]], ids=["softmax", "sigmoid"])
def test_many_options_at_once_hold_the_contract(words, holds, monkeypatch):
    monkeypatch.setattr(contexts, "QUERY_BLOCK", 4)
    assert holds(Subject(composed(*SMALL, *words)))


@pytest.mark.parametrize("words", MANY.values(), ids=MANY)
def test_packs_compute_what_each_decoder_computes_alone(words):
    both = [randomise(built(*SMALL, "size.n_layers=2", *words)).double() for _ in range(2)]
    tokens, prefix = torch.randint(61, (BATCH, SEQ)), torch.tensor(PREFIXES) if both[0].mask.uses_prefix else None
    alone = [decoder(tokens, prefix).square().mean() for decoder in both]
    expected = [
        torch.autograd.grad(loss, list(decoder.parameters())) for loss, decoder in zip(alone, both, strict=True)
    ]
    stacked, _ = stack_module_state(both)
    both[0].for_packs()
    packed = torch.vmap(lambda weights: functional_call(both[0], weights, (tokens, prefix)).square().mean())(stacked)
    found = torch.autograd.grad(packed.sum(), list(stacked.values()))
    torch.testing.assert_close(packed, torch.stack(alone), **EXACT)
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*expected, strict=True))), **EXACT)


# --- what it says of itself -------------------------------------------------------------------------


def test_weights_are_what_they_are_for():
    decoder = archlab.build(*SMALL, *MANY["softmax"])
    roles = {weight.name: weight.role for weight in decoder.layers[1].mixer.weights()}
    assert roles["gate.proj.weight"] == roles["own_bias.proj.weight"] == Role.HIDDEN
    assert roles["weigh.sinks"] == roles["sharpen.s"] == roles["mix_values.factors"] == Role.SCALAR
    assert roles["q_conv.weight"] == roles["q_norm.heads.0.gain"] == Role.GAIN
    assert (
        decoder.layers[1].mixer.q_conv.weight.abs().max() <= 3**-0.5 and not decoder.layers[1].mixer.weigh.sinks.any()
    )


RULES = Accounting(4)


def kept(*words):
    """By the formula and by autograd, bytes for each token and for each pair, of the second layer's mixer."""
    decoder = assemble_without_weights(composed(*SMALL, "pos=none", "kernel=dense", *words))
    terms = list(decoder.layers[1].mixer.saved_activations(RULES)), measured(decoder, 1, "mixer", RULES)
    return [torch.tensor([sum(t.token for t in of), sum(t.pair for t in of)]) for of in terms]


@pytest.mark.parametrize("words", MANY.values(), ids=MANY)
def test_a_copy_computes_with_its_own_weights(words):
    contract.copied(Subject(composed(*SMALL, *words)))


def test_options_keep_what_autograd_keeps():
    """But for a few numbers for each head and token: log n, s log n, and what the logarithm of a forget gate is made of."""
    options = ("gate=elementwise", "sinks=true", "conv=4", "forget=true", "weighting=scalable_softmax")
    more = [
        with_it - without
        for with_it, without in zip(kept(*(f"mixer.{option}" for option in options)), kept(), strict=True)
    ]
    torch.testing.assert_close(more[1] - more[0], torch.tensor([4.0 * (1 + HEADS + HEADS), 0.0]), rtol=0, atol=1e-2)


def test_what_decoding_keeps_is_counted_with_convolutions_and_forget_gates():
    decoder = assemble_without_weights(composed(*SMALL, "mixer=gqa", "mixer.conv=3", "mixer.forget=true"))
    state, kv = decode_state(decoder), KV_HEADS * HEAD_DIM
    assert state.per_token == 4 * (2 * kv + HEADS)  # four layers
    assert state.fixed == 4 * 2 * (HEADS * HEAD_DIM + 2 * kv)


def test_the_first_tokens_share_is_recorded_for_who_asks():
    decoder = built(*SMALL, "mixer.sinks=true").double()
    tokens = torch.randint(61, (1, SEQ))
    assert "first_token_share" not in decoder.taps
    seen = decoder.compute(tokens, decoder.read(tokens), ["first_token_share"]).taps[0]
    context, read = decoder.read(tokens)[0], {}
    decoder.layers[0].mixer.register_forward_pre_hook(lambda module, given: read.update(x=given[0]))
    decoder(tokens)
    attention = decoder.layers[0].mixer
    exponentials = scores_of(attention, read["x"], context, context.everything).exp()
    weights = exponentials / (exponentials.sum(-1, keepdim=True) + attention.weigh.sinks.view(-1, 1, 1).exp())
    torch.testing.assert_close(seen["first_token_share"], weights[..., 0].mean(), **EXACT)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["mixer.qk_norm_kind=rms"], "mixer.qk_norm_kind=rms: changes nothing under mixer.qk_norm=none"),
        (["mixer.qk_norm=head", "mixer.qk_norm_eps=0.1"], "mixer.qk_norm_eps=0.1: changes nothing under mixer.qk_norm_kind=model"),
        (["mixer.temperature=0.1"], "mixer.temperature=0.1: needs mixer.temperature_every"),
        (["mixer.temperature_every=8"], "mixer.temperature_every=8: changes nothing under mixer.temperature=null"),
        (["mixer.sinks=true", "mixer.weighting=sigmoid"], "mixer.sinks=true: a sink is a term"),
        (["mixer.sinks=true", "kernel=sdpa"], "kernel=sdpa: .* does not compute what mixer.sinks=true asks for; use kernel=dense"),
        (["mixer.forget=true", "kernel=flex"], "kernel=flex: .* does not compute what mixer.forget=true"),
        (["mixer.value_residual=true", "size.n_layers=1"], "no layer uses the values of the first layer"),
        (["layers[1:].mixer.value_residual=true"], "layer 1 needs the values of the first layer"),
        (["mixer.conv=1"], "mixer.conv=1: "),
        (["mixer.qk_norm=each_head", "norm=l2"], "mixer.qk_norm=each_head: differs from head in the gains alone, and L2Norm"),
        (["mixer=mla", "size.n_kv_heads=2"], "size.n_kv_heads=2: mixer=mla"),
        (["mixer=diff", "size.n_heads=3", "size.head_dim=10"], "takes heads in pairs"),
    ],
)  # fmt: skip
def test_what_goes_together(words, part):
    with pytest.raises(UserError, match=part) as refusal:
        archlab.build("size=nano", *words)
    assert "\n" not in str(refusal.value)


def test_a_picture_of_the_start_leaves_out_what_sigmoid_weights_have_not():
    seen = {"layers": [{"activation_rms": 1.0, "grad_norm": 2.0}] * 2}
    lines = [axes.lines[0].get_ydata() for axes in start_figure(seen).axes]
    assert (lines[0] == 1).all() and (lines[1] == 2).all() and all(math.isnan(value) for value in lines[2])


def test_a_drawing_has_every_option_in_its_place():
    decoder = assemble_without_weights(composed(*SMALL, *MANY["softmax"]))
    attention = decoder.layers[1].mixer
    labels = [step.label for step in attention.steps(decoder.position, decoder.mask)]
    in_order = ["conv 3", "+ layer 0's", "by head", "RoPE rotates q, k", "× s ln n", "scores  q · k / √10", "+ sums of log forget gates",
                "mask: Causal", "softmax, with a sink", "weights · v", "× sigmoid gate", "out_proj"]  # fmt: skip
    assert sorted(in_order, key=labels.index) == in_order
