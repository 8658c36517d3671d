"""Drawings are of the model as it was built: norms where they sit, what is added to what."""

import xml.etree.ElementTree as ET
from functools import partial

import pytest
import torch
from oracles import build, make, options

import archlab
from archlab.blocks.contracts import Residual
from archlab.config.assemble import assemble_without_weights
from archlab.diagram import draw
from archlab.diagram.parts import sketch
from archlab.diagram.words import details

SVG = "{http://www.w3.org/2000/svg}"

NORMS_A_LAYER = {
    "pre": 2,
    "post": 2,
    "deep": 2,
    "deep_glm": 2,
    "branch_norm": 2,
    "none": 2,
    "sandwich": 4,
    "parallel": 1,
    "sub": 4,
    "scaled": 2,
    "mix": 4,
    "rezero": 0,
    "layer_scale": 2,
    "hyper": 2,
    "mhc": 2,
    "ngpt": 4,
}
"""Of each residual scheme, from the papers; sub-LN has one before each branch and one inside, Mix-LN two in each of two kinds of layer."""


def texts(decoder, title: str = "") -> list[str]:
    root = ET.fromstring(draw.svg(decoder, title))
    return [" ".join("".join(element.itertext()).split()) for element in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("scheme", options("residual"))
def test_every_residual_scheme_is_drawn_with_its_norms_and_its_final_one(scheme):
    drawn = texts(assemble_without_weights(archlab.compose("size=nano", f"residual={scheme}", "norm=layer")))
    final = scheme not in ("post", "deep", "deep_glm", "ngpt")
    assert drawn.count("LayerNorm") == NORMS_A_LAYER[scheme] + final
    assert ("× alpha" in drawn) == (scheme in ("deep", "deep_glm", "rezero"))


@pytest.mark.parametrize("group", ["norm", "ffn", "pos", "mask", "mixer"])
def test_every_block_can_be_drawn(group):
    for option in options(group):
        extra = ["allow_leak=true", "train.train_len=64"] if group == "norm" else []
        decoder = assemble_without_weights(archlab.compose("size=nano", f"{group}={option}", *extra))
        assert len(texts(decoder)) > 10, option


def test_a_title_is_text_and_nothing_else():
    assert "<b>&" in texts(assemble_without_weights(archlab.compose("size=nano")), "<b>&")


def test_a_residual_scheme_of_ones_own_is_drawn_as_it_is():
    class Doubled(Residual):
        def __init__(self, norm, n_layers):
            super().__init__()
            self.norms = torch.nn.ModuleList(norm() for _ in range(3))

        def forward(self, x, branches):
            first, second = branches
            x = self.norms[1](x + first(self.norms[0](x)))
            return self.norms[2](x + second(x))

    decoder = assemble_without_weights(archlab.compose("size=nano", "norm=layer"))
    with torch.device("meta"):
        for layer in decoder.layers:
            layer.residual = Doubled(partial(type(layer.residual.norms[0]), d_model=64), 2)
    assert texts(decoder).count("LayerNorm") == 3 + 1


def test_layers_that_take_turns_are_drawn_apart_each_with_its_own_mask():
    decoder = archlab.build("size=nano", "size.n_layers=4", "mask=window", "mask.window=4", "layers[1::2].mask=causal")
    drawn = sketch(decoder)
    assert [layers.indices for layers in drawn.layers] == [(0, 2), (1, 3)]
    assert [matrix.title for matrix in drawn.matrices] == ["mask: Window", "mask: Causal"]


def test_what_surrounds_the_tables_is_drawn():
    decoder = build(head="mlm", embed_types=3, embed_width=20, d_model=48)
    drawn = sketch(decoder)
    assert [node.box.label for node in drawn.embedding[1:]][:3] == ["embedding", "embed_proj", "+ embed_types"]
    assert [node.box.label for node in drawn.head[1:]] == ["RMSNorm", "head_proj", "dense", "gelu", "RMSNorm", "head"]
    assert "head, rows changed" in [node.box.label for node in sketch(build(head="norm_head")).head]


def test_scales_and_caps_are_drawn_as_they_are():
    decoder = assemble_without_weights(
        archlab.compose("mixer.scale=0.5", "pos.fraction=0.25", "head.softcap=5", "head.scale=3")
    )
    told = texts(decoder)
    assert "scores q · k × 0.5" in told and any("fraction 0.25" in text for text in told)
    assert "× 3" in " ".join(told) and "tanh" in " ".join(told)


def test_ropes_scaling_is_drawn_where_there_is_one():
    told = {
        scaling: details(make("pos", "rope", scaling=scaling, **options)(d_model=48, n_heads=6, head_dim=10))
        for scaling, options in {
            "none": {},
            "linear": {"factor": 2.0},
            "ntk": {"factor": 2.0},
            "dynamic_qwen": {"trained_len": 9},
        }.items()
    }
    assert "none" not in told["none"] and "scaled" not in told["none"]
    assert all(f"scaled {scaling}" in words for scaling, words in told.items() if scaling != "none")
