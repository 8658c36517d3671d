"""Canon layers: short causal convolutions with a residual connection, before the branches and on queries, keys and values."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from oracles import randomise

import archlab
from archlab.base.errors import UserError
from archlab.blocks.activations import Accounting
from archlab.blocks.cache import Cache
from archlab.blocks.roles import Role
from archlab.config.assemble import assemble_without_weights
from archlab.cost.activations import layer_terms
from archlab.cost.describe import parameters_by_part
from archlab.cost.measure import decode_state, forward_flops_per_token
from archlab.diagram.parts import sketch

EXACT = dict(rtol=1e-10, atol=1e-10)  # float64, sums in another order
SIZES = ("size.d_model=24", "size.n_layers=2", "size.n_heads=4", "size.vocab_size=31", "size.d_ff=40", "mixer=gqa")
ALL = ("canon=AC", "mixer.conv=3", "mixer.conv_residual=true")


def built(*words):
    return randomise(archlab.build(*SIZES, *words)).double().eval()


def canon(part, x):
    """As `apply_canon` of the released code has it: torch's grouped convolution, cut off, and the input added."""
    width = part.conv.weight.shape[-1]
    return x + F.conv1d(x.mT, part.conv.weight, padding=width - 1, groups=x.shape[-1])[..., : x.shape[1]].mT


@pytest.mark.parametrize("places", ["A", "C", "AC"])
@pytest.mark.parametrize("residual", ["pre", "parallel"])
def test_a_layer_is_the_released_codes(places, residual):
    """Norm, then Canon, then the branch; forwards, and its gradient."""
    decoder = built(f"canon={places}", f"residual={residual}")
    layer, tokens = decoder.layers[1], torch.randint(31, (2, 9))
    assert set(layer.canons) == {f"canon_{place.lower()}" for place in places}
    context = decoder.read(tokens)[0]
    x = torch.randn(2, 9, 24, dtype=torch.float64, requires_grad=True)
    norms, a, c = layer.residual.norms, layer.canons.get("canon_a"), layer.canons.get("canon_c")

    def mixed(x):
        return layer.mixer(canon(a, x) if a else x, context)

    def transformed(x):
        return layer.ffn(canon(c, x) if c else x)

    if residual == "pre":
        expected = x + mixed(norms[0](x))
        expected = expected + transformed(norms[1](expected))
    else:
        expected = x + mixed(norms[0](x)) + transformed(norms[-1](x))
    out, along = layer(x, context), torch.randn_like(x)
    leaves = [x, *layer.parameters()]
    torch.testing.assert_close(out, expected, **EXACT)
    of_out, of_expected = (torch.autograd.grad(y, leaves, along) for y in (out, expected))
    torch.testing.assert_close(of_out, of_expected, **EXACT)


def test_queries_keys_and_values_are_added_to_their_convolutions():
    with_it, without = built("mixer.conv=3", "mixer.conv_residual=true"), built("mixer.conv=3")
    one, other = with_it.layers[0].mixer, without.layers[0].mixer
    other.load_state_dict({name.replace("_conv.conv.", "_conv."): tensor for name, tensor in one.state_dict().items()})
    for name in ("q_conv", "k_conv", "v_conv"):  # x + w * x is a convolution whose newest factor is one more
        getattr(other, name).weight.data[..., -1] += 1
    x, context = torch.randn(2, 9, 24, dtype=torch.float64), with_it.read(torch.zeros(2, 9, dtype=torch.long))[0]
    torch.testing.assert_close(one(x, context), other(x, context), **EXACT)


@torch.no_grad()
def test_it_decodes_and_pads():
    decoder = built(*ALL)
    tokens, cache = torch.randint(31, (2, 11)), Cache()
    whole, cuts = decoder(tokens), (0, 2, 3, 4, 11)
    pieces = [decoder(tokens[:, a:b], cache=cache) for a, b in pairwise(cuts)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **EXACT)
    padded = torch.cat((torch.randint(31, (2, 3)), tokens), dim=1)
    torch.testing.assert_close(decoder(padded, padding=torch.tensor([3, 3]))[:, 3:], whole, **EXACT)


def test_several_models_are_computed_as_one():
    both = [built(*ALL).train() for _ in range(2)]
    tokens = torch.randint(31, (2, 9))
    alone = torch.stack([decoder(tokens) for decoder in both])
    stacked, _ = torch.func.stack_module_state(both)
    both[0].for_packs()
    packed = torch.vmap(lambda weights: torch.func.functional_call(both[0], weights, (tokens,)))(stacked)
    torch.testing.assert_close(packed, alone, **EXACT)


def test_what_it_costs_is_counted():
    plain, with_it = (assemble_without_weights(archlab.compose(*SIZES, *words)) for words in ((), ("canon=AC",)))
    numbers = 2 * 2 * 24 * 4  # layers, places, channels, width
    assert parameters_by_part(with_it) == {**parameters_by_part(plain), "canon": numbers}
    assert forward_flops_per_token(with_it, 8) - forward_flops_per_token(plain, 8) == 2 * numbers
    assert decode_state(with_it).fixed == numbers * 3 // 4 and decode_state(plain).fixed == 0
    kept = [sum(term.token for term in layer_terms(decoder, 0, Accounting(e=4))) for decoder in (plain, with_it)]
    assert kept[1] - kept[0] == 2 * 4 * 24
    weights = {w.name: w for w in with_it.weights() if "canon" in w.name}
    assert len(weights) == 4 and all(w.role is Role.GAIN and w.starts_within == (-0.5, 0.5) for w in weights.values())


def test_it_is_drawn_below_its_branch():
    (layers,) = sketch(assemble_without_weights(archlab.compose(*SIZES, *ALL))).layers
    for name, branch in zip(("canon_a", "canon_c"), layers.layer.branches, strict=True):
        assert branch.graph[1].box.path == name and branch.graph[1].reads == (0,)
        assert all(0 not in node.reads for node in branch.graph[2:])
    assert sum(node.box.label == "+ conv 3" for node in layers.layer.branches[0].graph) == 3


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["canon=ABC"], "canon=ABC: B, .* use mixer.conv=4 mixer.conv_residual=true"),
        (["canon=AD"], "canon=AD: D would mix positions inside the feed-forward network"),
        (["canon=CA"], "canon=CA: .* use A, C or AC"),
        (["mixer.conv_residual=true"], "mixer.conv_residual=true: changes nothing under mixer.conv=null"),
    ],
)
def test_what_cannot_be_is_refused(words, part):
    with pytest.raises(UserError, match=part) as refusal:
        assemble_without_weights(archlab.compose(*SIZES, *words))
    assert "\n" not in str(refusal.value)
