"""Layers without a feed-forward network: the mixer is the one branch, and nothing is left of the other."""

import pytest
import torch
from oracles import built

import archlab
from archlab.base.errors import UserError
from archlab.blocks.activations import Accounting
from archlab.config.assemble import assemble_without_weights
from archlab.cost.activations import layer_terms
from archlab.cost.describe import parameters_by_part
from archlab.diagram.parts import sketch
from archlab.difference.ladder import ladder
from archlab.runs.named_model import named

D, LAYERS = 64, 2  # size=nano


@pytest.mark.parametrize(
    ("residual", "norms"), [("pre", 1), ("sandwich", 2), ("branch_norm", 1), ("scaled", 1), ("layer_scale", 1)]
)
def test_it_is_the_model_whose_networks_write_zeros(residual, norms):
    """Where a branch is added, and a norm of 0 is 0: an oracle with two branches, all of the second one's weights there."""
    alone = built("size=nano", "ffn=none", f"residual={residual}").double().eval()
    both = built("size=nano", f"residual={residual}").double().eval()
    with torch.no_grad():
        for name, weight in both.named_parameters():
            if name in (there := dict(alone.named_parameters())):
                there[name].copy_(weight)
            if "down_proj" in name:
                weight.zero_()
    tokens = torch.randint(256, (2, 11), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(alone(tokens), both(tokens), rtol=0, atol=1e-12)
    here, there = parameters_by_part(alone), parameters_by_part(both)
    assert "ffn" not in here and here["mixer"] == there["mixer"]
    assert here["norms"] == LAYERS * norms * D + D  # and the final one


def test_post_norm_and_no_stream_have_one_norm_and_one_branch():
    for residual, final in (("post", 0), ("none", D), ("mix", D)):
        decoder = assemble_without_weights(archlab.compose("size=nano", "ffn=none", f"residual={residual}"))
        assert parameters_by_part(decoder)["norms"] == LAYERS * D + final


def test_nothing_is_kept_drawn_or_divided_for_a_branch_that_is_not_there():
    decoder = built("size=nano", "ffn=none", "init=normal", "layers[1:].ffn=gelu")
    first, second = (layer_terms(decoder, depth, Accounting(e=2)) for depth in range(LAYERS))
    names = lambda terms: " ".join(term.what for term in terms)  # noqa: E731
    assert "ffn" not in names(first) and "ffn" in names(second)
    drawn = sketch(decoder).layers
    assert [[branch.name for branch in kind.layer.branches] for kind in drawn] == [["mixer"], ["mixer", "ffn"]]
    # 0.02 over the root of three branches; five standard errors of 4096 draws
    std = decoder.layers[0].mixer.out_proj.weight.std().item()
    assert std == pytest.approx(0.02 * 3**-0.5, rel=5 / (2 * 4096) ** 0.5)


def test_a_ladder_leads_to_a_model_without_networks_and_back():
    """The width that one of them has is typed, and is without effect in the other."""
    plain, alone = named("size=nano size.d_ff=88"), named("size=nano ffn=none")
    for first, last in ((plain, alone), (alone, plain)):
        *_, rung = ladder(first, last)
        assert archlab.compose(*rung.words).choices.ffn == last.cfg.choices.ffn


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ffn=none", "size.d_ff=88"], "size.d_ff=88: changes nothing under ffn=none"),
        (["ffn=none", "match=params"], "match=params: sets size.d_ff, which is the width of no layer under ffn=none"),
        (["ffn=none", "residual=parallel"], "residual=parallel: joins two branches, and with ffn=none a layer has one"),
        (["ffn=none", "residual=sub"], "residual=sub: joins two branches, and with ffn=none a layer has one"),
        (["ffn=none", "canon=AC"], "canon=AC: C is of what the feed-forward network is given, and with ffn=none"),
        (["ffn=none", "preflight.depths=[2,4]"], "preflight.depths=.2, 4.: compares gradients of the last layer's"),
        (
            ["layers[1:].ffn=none", "layers[1:].size.d_ff=44"],
            "layers.1:..size.d_ff=44: changes nothing: these layers have no feed-forward network",
        ),
    ],
)
def test_what_would_be_without_effect_is_refused(words, told):
    with pytest.raises(UserError, match=told):
        archlab.compose("size=nano", *words)
