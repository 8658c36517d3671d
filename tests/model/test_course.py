"""Looped layers and skips over layers, against the same model unrolled and the formula a second way."""

import copy
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from oracles import randomise
from training import CPU, Counting, settings

import archlab
from archlab.base.errors import UserError
from archlab.blocks.activations import Accounting
from archlab.blocks.cache import Cache
from archlab.blocks.roles import Role
from archlab.config.assemble import assemble_without_weights, build
from archlab.cost.activations import outer_terms
from archlab.cost.describe import count_parameters, parameters_by_part
from archlab.cost.estimate import activation_bytes
from archlab.cost.measure import decode_state, forward_flops_per_token
from archlab.cost.settings import MemorySettings
from archlab.diagram.drawing import svg
from archlab.diagram.parts import sketch
from archlab.model.course import course_of
from archlab.train.objective import Program
from archlab.train.state import TrainState
from archlab.train.step import make_step

EXACT = dict(rtol=1e-10, atol=1e-10)  # float64, sums in another order
VOCAB, SEQ = 31, 9
TOKENS = torch.randint(VOCAB, (2, SEQ), generator=torch.Generator().manual_seed(3))
SIZES = (
    "size.d_model=24",
    "size.n_layers=4",
    "size.n_heads=4",
    f"size.vocab_size={VOCAB}",
    "size.d_ff=40",
    "mixer=gqa",
)
MIDDLE = ("loop.times=3", "loop.layers=1:3")
UNROLLED = [0, 1, 2, 1, 2, 1, 2, 3]
"""The layers of MIDDLE in the order in which they are applied, written down by hand."""

STRUCTURES = {"loop": MIDDLE, "skips": ("skips=unet",), "both": (*MIDDLE, "skips=unet")}


def words_of(*words):
    """The sizes, and these words in the place of those that set the same."""
    taken = {word.partition("=")[0] for word in words}
    return [*(word for word in SIZES if word.partition("=")[0] not in taken), *words]


def built(*words):
    return randomise(archlab.build(*words_of(*words))).double().eval()


def shapes_of(*words):
    return assemble_without_weights(archlab.compose(*words_of(*words)))


def unrolled(looped, *words):
    """A model with a layer of its own for each application, with the looped one's weights copied."""
    plain = built(f"size.n_layers={len(UNROLLED)}", *words)
    for place, layer in enumerate(UNROLLED):
        plain.layers[place].load_state_dict(looped.layers[layer].state_dict())
    outside = {name: tensor for name, tensor in looped.state_dict().items() if not name.startswith("layers.")}
    plain.load_state_dict(outside, strict=False)
    return plain


def gradients_of(decoder):
    decoder.zero_grad()
    F.cross_entropy(decoder(TOKENS).flatten(0, 1), TOKENS.flip(1).flatten()).backward()
    return {name: weight.grad for name, weight in decoder.named_parameters()}


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("skips=unet",),
        ("residual=deep",),
        ("residual=sub",),
        ("residual=mhc",),
        ("layers[1].mixer=mqa", "layers[2].mask=window", "layers[2].mask.window=3"),
        ("pos=alibi",),
        ("canon=AC",),
    ],
    ids=" ".join,
)
def test_a_looped_model_is_the_unrolled_one(words):
    """Outputs are equal, and a looped weight's gradient is the sum of its copies'."""
    rules = [word.replace("layers[1]", "layers[1:7:2]").replace("layers[2]", "layers[2:7:2]") for word in words]
    looped = built(*MIDDLE, *words)
    plain = unrolled(looped, *rules)
    torch.testing.assert_close(looped(TOKENS), plain(TOKENS), **EXACT)
    ours, theirs = gradients_of(looped), gradients_of(plain)
    for name, gradient in ours.items():
        copies = [name]
        if name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            copies = [f"layers.{place}.{rest}" for place, which in enumerate(UNROLLED) if which == int(layer)]
        torch.testing.assert_close(gradient, sum(theirs[each] for each in copies), **EXACT, msg=name)


def test_all_layers_are_looped_by_default():
    looped = built("loop.times=2")
    assert [layer for layer, _ in looped.course] == [0, 1, 2, 3, 0, 1, 2, 3]
    x = looped.embedding(TOKENS) * looped.embed_scale
    context = looped.read(TOKENS)[0]
    for layer in (*looped.layers, *looped.layers):
        x = layer(x, context)
    torch.testing.assert_close(looped(TOKENS), looped.head(looped.final_norm(x)), **EXACT)


@pytest.mark.parametrize("n_layers", [2, 4, 5, 6])
def test_unet_skips_are_the_released_codes(n_layers):
    """First half: each output is pushed. Second half: each layer pops one and is given it beside the stream."""
    decoder = built("skips=unet", f"size.n_layers={n_layers}")
    factors = decoder.skips.factors.tolist()
    assert len(set(factors)) == n_layers // 2 and 1 not in factors  # all drawn, and all different
    x = decoder.embedding(TOKENS) * decoder.embed_scale
    (context,) = decoder.read(TOKENS)
    half, stack = n_layers // 2, []
    for layer in decoder.layers[:half]:
        x = layer(x, context)
        stack.append(x)
    for layer in decoder.layers[half : n_layers - half]:
        x = layer(x, context)
    for layer in decoder.layers[n_layers - half :]:
        factor = factors[len(stack) - 1]  # that of the layer whose output is popped
        x = layer(x + factor * stack.pop(), context)
    torch.testing.assert_close(decoder(TOKENS), decoder.head(decoder.final_norm(x)), **EXACT)


def test_factors_start_at_one_do_not_decay_and_learn():
    decoder = archlab.build(*SIZES, "skips=unet")
    (weight,) = (weight for weight in decoder.weights() if weight.name.startswith("skips"))
    assert weight.role is Role.SCALAR and weight.tensor.tolist() == [1.0, 1.0]
    assert gradients_of(decoder.double())["skips.factors"].abs().min() > 0


# ---------------------------------------------------------------- each way of running it


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    "mixer", ["mixer=gqa", "mixer=mamba2", "mixer=mla", "mixer.forget=true", "mixer.value_residual=true", "canon=A"]
)
@torch.no_grad()
def test_it_decodes_token_by_token(structure, mixer):
    """Each application has a cache of its own."""
    decoder = built(mixer, *STRUCTURES[structure])
    cache, cuts = Cache(), (0, 2, 3, 4, SEQ)
    whole = decoder(TOKENS)
    pieces = [decoder(TOKENS[:, a:b], cache=cache) for a, b in pairwise(cuts)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **EXACT)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_several_models_are_computed_as_one(structure):
    both = [built(*STRUCTURES[structure]).train() for _ in range(2)]
    randomise(both[1])
    alone = torch.stack([decoder(TOKENS) for decoder in both])
    assert not torch.allclose(alone[0], alone[1])
    stacked, _ = torch.func.stack_module_state(both)
    both[0].for_packs()
    packed = torch.vmap(lambda weights: torch.func.functional_call(both[0], weights, (TOKENS,)))(stacked)
    torch.testing.assert_close(packed, alone, **EXACT)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_recomputing_activations_changes_no_gradient(structure):
    decoder = built(*STRUCTURES[structure])
    before = copy.deepcopy(gradients_of(decoder))
    decoder.recompute_activations()
    for name, gradient in gradients_of(decoder).items():
        assert torch.equal(gradient, before[name]), name


# ---------------------------------------------------------------- by application and by weight


def test_costs_count_weights_once_and_applications_each():
    """Against the model of as many layers as there are applications, and the one of as many as there are weights."""
    looped, deep, shallow = shapes_of(*MIDDLE), shapes_of("size.n_layers=8"), shapes_of()
    assert count_parameters(looped) == count_parameters(shallow)
    assert forward_flops_per_token(looped, 8) == forward_flops_per_token(deep, 8)
    assert decode_state(looped) == decode_state(deep) != decode_state(shallow)
    for checkpointing in ("none", "full"):
        settings = MemorySettings(batch=2, seq_len=16, checkpointing=checkpointing)
        assert activation_bytes(looped, settings, 16) == activation_bytes(deep, settings, 16)


def test_what_skips_cost_is_counted():
    plain, with_it, odd = shapes_of(), shapes_of("skips=unet"), shapes_of("skips=unet", "size.n_layers=5")
    assert parameters_by_part(with_it) == {**parameters_by_part(plain), "skips": 2}
    assert forward_flops_per_token(with_it, 8) == forward_flops_per_token(plain, 8)  # its sums are no matrix products
    rules = Accounting(e=4)
    outside = [sum(term.token for term in outer_terms(decoder, rules)) for decoder in (plain, with_it, odd)]
    # The outer skips' streams are other layers' inputs; the innermost's is none where layers are even in number.
    assert outside[1] - outside[0] == 4 * 24 and outside[2] == outside[0]


def test_layers_are_recorded_by_application_and_weights_by_layer():
    decoder = built(*MIDDLE).train()
    given = TOKENS, TOKENS.flip(1), torch.ones(2, SEQ, dtype=torch.bool), None, None
    parts, taps = Program(decoder, decoder.taps)(*given)
    assert len(taps) == len(parts.counts) == len(UNROLLED)
    seen = [float(layer["activation_rms"]) for layer in taps]
    assert len(set(seen)) == len(UNROLLED)
    plain = unrolled(decoder).train()
    _, expected = Program(plain, plain.taps)(*given)
    for ours, theirs in zip(taps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # some quantities are float32
    assert decoder.by_application([10, 11, 12, 13]) == [10 + layer for layer in UNROLLED]


def test_a_step_records_gradients_and_updates_by_application():
    """Those of the layer's weights, at each of its places."""
    chosen = settings(train_len=SEQ, clip=None, weight_decay=0.0)
    decoder = archlab.build(*words_of("size.vocab_size=17", *MIDDLE))
    before = copy.deepcopy(decoder)
    step = make_step(decoder, chosen, CPU, probe_every=1)
    seen = step(
        TrainState.begin(decoder, chosen, CPU, 0), Counting().train(0, 1, chosen.batch_size, chosen.train_len)
    ).taps

    def length(tensors):
        return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))

    pairs = [
        list(zip(a.parameters(), b.parameters(), strict=True))
        for a, b in zip(decoder.layers, before.layers, strict=True)
    ]
    gradients = [length(weight.grad for weight in layer.parameters()) for layer in decoder.layers]
    moves = [length(now - old for now, old in both) / length(old for _, old in both) for both in pairs]
    assert len(set(gradients)) == len(set(moves)) == 4
    assert list(map(float, seen["grad_norm"])) == pytest.approx([gradients[layer] for layer in UNROLLED], rel=1e-5)
    assert list(map(float, seen["update_ratio"])) == pytest.approx([moves[layer] for layer in UNROLLED], rel=1e-4)


def test_a_router_learns_of_all_its_applications():
    decoder = built("ffn=experts", "loop.times=2").train()
    output, given = decoder.compute(TOKENS, decoder.read(TOKENS)), []
    for layer in decoder.layers:
        layer.ffn.after_step = given.append
    decoder.after_step(output.counts)
    assert len(output.counts) == 8 and len(given) == 4 and all(given)
    for depth, one in enumerate(given):
        for name, value in one.items():
            assert torch.equal(value, output.counts[depth][name] + output.counts[depth + 4][name])


# ---------------------------------------------------------------- by depth


def test_depth_counts_a_layer_as_often_as_it_is_applied():
    """DeepNorm's numbers, and GPT-2's smaller projections, of 8 layers where 4 are applied 8 times in all."""
    (alpha,) = {layer.residual.alpha for layer in built(*MIDDLE, "residual=deep").layers}
    assert alpha == pytest.approx((2 * 8) ** 0.25)
    shallow, looped = (build(archlab.compose(*SIZES, "init=normal", *words)) for words in ((), MIDDLE))
    ratio = looped.layers[0].ffn.down_proj.weight / shallow.layers[0].ffn.down_proj.weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.sqrt(4 / 8)))
    assert torch.equal(looped.layers[0].ffn.up_proj.weight, shallow.layers[0].ffn.up_proj.weight)


def test_a_layer_after_the_loop_has_the_place_that_it_is_applied_at():
    decoder = built(*MIDDLE, "layers[3].residual=scaled", "mixer=diff")
    assert decoder.layers[3].residual.scale == pytest.approx(8**-0.5)
    assert decoder.layers[3].mixer.lambda_of.initial == pytest.approx(0.8 - 0.6 * math.exp(-0.3 * 7))
    assert decoder.layers[2].mixer.lambda_of.initial == pytest.approx(0.8 - 0.6 * math.exp(-0.3 * 2))


@pytest.mark.parametrize(
    ("times", "looped", "order"),
    [
        (None, None, [0, 1, 2, 3]),
        (2, None, [0, 1, 2, 3, 0, 1, 2, 3]),
        (2, "1:-1", [0, 1, 2, 1, 2, 3]),
        (3, -1, [0, 1, 2, 3, 3, 3]),
        (2, ":2", [0, 1, 0, 1, 2, 3]),
    ],
)
def test_the_order_of_layers(times, looped, order):
    course = course_of(4, times, looped)
    assert [layer for layer, _ in course] == order
    for layer in range(4):
        assert [visit for which, visit in course if which == layer] == list(range(order.count(layer)))


# ---------------------------------------------------------------- shown


def test_the_loop_and_the_skips_are_drawn():
    drawn = sketch(shapes_of(*MIDDLE))
    assert [layers.indices for layers in drawn.layers] == [(0,), (1, 2), (3,)]
    assert [(edge.start, edge.end) for edge in drawn.edges] == [(1, 1)]
    assert "layers 1-2 in turn, 3 times" in svg(drawn)
    drawn = sketch(shapes_of("skips=unet"))
    assert [layers.indices for layers in drawn.layers] == [(0, 1), (2, 3)]
    assert [(edge.start, edge.end) for edge in drawn.edges] == [(0, 1)]
    assert "0 → 3, 1 → 2" in svg(drawn)


def test_show_says_what_is_looped_and_what_skips():
    shown = " ".join(str(archlab.show(*SIZES, *MIDDLE, "skips=unet")).split())
    assert "applied 3 times in turn, so that 8 follow each other with the weights of 4" in shown
    assert "0 → 7, 1 → 6, 2 → 5, 3 → 4" in shown


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["loop.times=1"], "loop.times=1: applies the layers once"),
        (["loop.layers=1:3"], "loop.layers=1:3: changes nothing without loop.times"),
        (["loop.times=2", "loop.layers=::2"], "loop.layers=::2: layers 0, 2 do not follow each other"),
        (["loop.times=2", "loop.layers=7"], "loop.layers=7: matches none of the size.n_layers=4 layers"),
        (["loop.times=2", "loop.layers=0:4"], "loop.layers=0:4: are all layers"),
        (["loop.times=2", "loop.layers=middle"], "loop.layers=middle: should be a slice"),
        (["loop.times=300"], "loop.times=300: makes 1200 layers"),
        (["loop.times=2", "residual=scaled"], "residual=scaled: goes by a layer's number, and layer 0 has several"),
        (["loop.times=2", "residual=hyper"], "residual=hyper: goes by a layer's number"),
        (
            ["loop.times=2", "mixer.value_residual=true"],
            "mixer: layer 0 leaves the .* each time that loop.times applies",
        ),
        (["skips=unet", "residual=mhc"], "skips=unet: adds one stream to another, and residual=mhc has 4"),
        (["skips=unet", "size.n_layers=1"], "skips=unet: one layer has no other"),
        (["skips=dense"], "skips=dense: should be 'unet'"),
        (["loop.times=2", "preflight.depths=[2,4]"], "there are looped layers, whose gradients are sums"),
    ],
)
def test_what_cannot_be_is_refused(words, part):
    with pytest.raises(UserError, match=part) as refusal:
        archlab.compose(*words_of(*words))
    assert "\n" not in str(refusal.value)


def test_values_of_the_first_layer_reach_each_application():
    decoder = built(*MIDDLE, "mixer.value_residual=true")
    plain = unrolled(decoder, "mixer.value_residual=true")
    torch.testing.assert_close(decoder(TOKENS), plain(TOKENS), **EXACT)
