"""A preset starts as the class it names does, or as its release says: the spread of every tensor, one by one."""

import json
from math import sqrt

import pytest
import torch
import transformers
from oracles import CONF
from safetensors.torch import load_file

from archlab import hub
from archlab.config.assemble import build
from archlab.config.compose import compose

LAYERS, WIDTH = 6, 64
SMALL = ("size=nano", f"size.n_layers={LAYERS}", f"size.d_model={WIDTH}")
ENOUGH = 2000
"""Numbers in a tensor whose spread is asked for: its standard error is then below 1.6% of it."""
NEAR = 0.08
"""Five such errors; without the factor for depth a projection back to the stream is 3.5 times off."""

NO_CLASS = {"baichuan_7b", "baichuan_13b", "baichuan2_7b", "baichuan2_13b", "qwen_7b", "chatglm2_6b", "chatglm3_6b"}
"""Whose class is in their own folder: all matrices and tables by its initializer_range, 0.02."""
FACTORS_BY_WIDTH = {"phi_3_5_mini", "phi_4_mini"}
"""LongRoPE has a factor for each pair of a head's features; Phi-3's other presets are of their class too."""
SAYS_CLASS = sorted(
    {
        f.stem
        for f in (CONF / "preset").glob("*.yaml")
        if "initializer_range" in f.read_text() and "class" in f.read_text()
    }
    - NO_CLASS
    - FACTORS_BY_WIDTH
    - {"bert_base"}  # no decoder of transformers
    - {"nanochat_d32"}  # whose class scales one of two
)
OTHER_ROWS = {"gemma_2b", "llama2_7b", "llama3_8b", "mistral_7b", "phi_3_mini", "phi_4", "qwen2_7b", "qwen3_8b"}
"""Of a family that another preset here is of."""


def spreads(tensors) -> dict[str, float]:
    """But of convolutions, which start as their blocks say."""
    return {
        name: float(x.double().std())
        for name, x in tensors.items()
        if x.ndim > 1 and x.numel() >= ENOUGH and "conv" not in name
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in OTHER_ROWS)) for name in SAYS_CLASS],
)
def test_a_preset_starts_as_the_class_it_names(name, tmp_path):
    hub.export(build(compose(f"preset={name}", *SMALL)), tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    said.pop("initializer_range", None), said.pop("init_std", None)  # the class has its own
    ours = spreads(load_file(tmp_path / "out" / "model.safetensors"))
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(said.pop("model_type"), **said)
    theirs = spreads(transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).state_dict())
    assert len(ours) > 3 * LAYERS
    assert {k: v for k, v in ours.items() if k in theirs} == pytest.approx(
        {k: theirs[k] for k in ours if k in theirs}, rel=NEAR
    )
    assert len(ours.keys() & theirs.keys()) > 3 * LAYERS


def megatrons(std: float):
    return std, std / sqrt(2 * LAYERS)


SMALL_INIT = sqrt(2 / (5 * WIDTH))
RELEASED = {
    # Matrices and tables; what is written to the stream.
    "bloom_176b": megatrons(0.0048),  # --init-method-std of its training script
    "bloom_560m": megatrons(0.0048),
    "gpt2": megatrons(0.02),  # Radford et al. 2019, sec. 2.3
    "gpt_neox_20b": (SMALL_INIT, 2 / (LAYERS * sqrt(WIDTH))),  # arXiv:2204.06745, sec. 2.1.3
    "minitron_4b": megatrons(0.0134),
    "nanochat_d32": megatrons(0.02),  # its class: of attention's projection alone
    "olmo2_7b": (0.02, 0.02),  # init_fn: normal, init_std: 0.02
    "olmoe_1b_7b": (0.02, 0.02),
    "opt_125m": megatrons(0.006),  # arXiv:2205.01068, sec. 2.2
    "opt_350m": megatrons(0.006),
    "pythia_12b": megatrons(0.02),  # GPT-NeoX's defaults: normal, scaled_normal, init_method_std: 0.02
    "pythia_70m": (SMALL_INIT, 2 / (LAYERS * sqrt(WIDTH))),  # small_init, wang_init
    "smollm2_135m": (1 / 24, 1 / 24),  # initializer_range of its config.json
    "stablelm2_12b": megatrons(0.01),  # init_method_std: 0.01, scaled_normal
    "stablelm_3b": megatrons(0.02),
    **dict.fromkeys(sorted(NO_CLASS), (0.02, 0.02)),
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_a_preset_starts_as_its_release_says(name):
    decoder = build(compose(f"preset={name}", *SMALL))
    inside, to_the_stream = RELEASED[name]
    asked = 0
    for weight in decoder.weights():
        if weight.tensor.ndim > 1 and weight.tensor.numel() >= ENOUGH:
            spread = to_the_stream if weight.writes_to_stream else inside
            assert float(weight.tensor.double().std()) == pytest.approx(spread, rel=NEAR), weight.name
            asked += weight.writes_to_stream
    assert asked >= 2 * LAYERS
