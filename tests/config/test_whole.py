"""What is composed once and then changed is what Hydra composes anew."""

import os
from collections.abc import Mapping

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from oracles import CONF, every_option, options

from archlab.base.errors import UserError
from archlab.config.assemble import maker
from archlab.config.overrides import normalise
from archlab.config.whole import by_hydra, whole

LISTED = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
GROUPS = sorted(group for entry in LISTED if entry != "_self_" for group in entry)


def alone(group, name):
    """Whether an option's file speaks of its group alone."""
    text = (CONF / group / f"{name}.yaml").read_text()
    return "@package" not in text and "defaults:" not in text


ALONE = {group: [name for name in options(group) if alone(group, name)] for group in GROUPS}

WORDS = [
    [],
    ["size.n_layers=3", "train.lr=1e-2", "seed=7"],
    ["norm=layer", "norm.eps=1e-3", "pos=alibi", "size=nano"],
    ["norm=rms", "norm=layer"],  # as a claim's word and then an arm's
    ["norm='layer'"],
    ["norm={eps: 1e-4}"],
    ["data=copy", "data.symbols=5", "norm=layer"],
    ["mask=prefix", "prefix=[0.25,0.75]", "ffn=gelu"],
    ["layers[1::2].pos=none", "layers[:1].size.d_ff=64", "pos=alibi"],
    ["tune={init.gain: [0.5, 1]}", "init=normal"],
    ["loggers=[wandb]", "memory.lora_targets=[q_proj]"],
    ["output='a=b, c'", "train.warmup=null"],
]


def same(words, own=()):
    quick, anew = whole(words, own), by_hydra(words, own)
    assert dict(quick.hydra.runtime.choices) == dict(anew.hydra.runtime.choices)
    with_references = [{key: cfg[key] for key in cfg if key != "hydra"} for cfg in (quick, anew)]
    assert OmegaConf.to_yaml(with_references[0]) == OmegaConf.to_yaml(with_references[1])  # and in their order
    values = [OmegaConf.to_container(cfg) for cfg in (quick, anew)]
    assert repr({**values[0], "hydra": 0}) == repr({**values[1], "hydra": 0})  # types of numbers included
    assert OmegaConf.is_struct(quick) and OmegaConf.is_struct(anew)


def every_other_row_slow():
    """Hydra takes a tenth of a second for each, and options that speak of their group alone are all put in alike."""
    return [pytest.param(row, marks=[pytest.mark.slow] * (row % 2)) for row in range(max(map(len, ALONE.values())))]


# Each row has another option of every group, and again the first once a group has no more.
@pytest.mark.parametrize("row", every_other_row_slow())
def test_options(row):
    same([f"{group}={names[row % len(names)]}" for group, names in ALONE.items()])


@pytest.mark.parametrize(("group", "name"), [each for each in every_option(*GROUPS) if not alone(*each)])
def test_an_option_that_speaks_of_other_groups(group, name):
    same([f"{group}={name}", "norm=layer"])


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_options_and_fields(words):
    same(normalise(words))


@pytest.mark.parametrize("name", options("preset")[::24])
def test_a_preset(name):
    same(normalise([f"preset={name}", "size.n_layers=2"]))


@pytest.mark.parametrize("words", [["norm.eps.a=1"], ["size.nonesuch=3"], ["loggers.0.x=1"]], ids=" ".join)
def test_what_hydra_refuses_is_refused_in_its_words(words):
    said = []
    for compose in (whole, by_hydra):
        with pytest.raises(UserError) as refused:
            compose(words, [])
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_options_of_ones_own_are_read_anew_once_they_change(tmp_path):
    (tmp_path / "norm").mkdir()
    mine = tmp_path / "norm" / "mine.yaml"
    for number, defaults in ((1, ""), (2, ""), (3, "defaults: [layer]\n"), (4, "# @package _global_\n")):
        mine.write_text(f"{defaults}eps: {number}\n")
        os.utime(mine, ns=(number, number))
        same(["norm=mine", "pos=alibi"], [tmp_path])
        assert (cfg := whole(["norm=mine"], [tmp_path])) and (cfg.eps if number == 4 else cfg.norm.eps) == number
    (tmp_path / "norm" / "new.yaml").write_text("eps: 5\n")
    assert whole(["norm=new"], [tmp_path]).norm.eps == 5


def test_a_copy_is_the_callers_own():
    cfg = whole(["norm=layer"], [])
    cfg.norm.eps = 3
    cfg.loggers.append("mine")
    assert whole(["norm=layer"], []).norm.eps == 1e-5 and whole([], []).loggers == []


@pytest.mark.parametrize(
    "parts", [{"a": {"_target_": "torch.nn.Identity"}}, [{"_target_": "torch.nn.Identity"}]], ids=["named", "listed"]
)
def test_a_block_within_an_options_fields_is_made_anew_for_each_model(parts):
    node = {"_target_": "archlab.blocks.norm.RMSNorm", "_partial_": True, "parts": parts}
    (one,), (other,) = (
        made.values() if isinstance(made, Mapping) else made
        for made in (maker("norm", node).keywords["parts"] for _ in range(2))
    )
    assert type(one) is torch.nn.Identity and one is not other
    plain = {"_target_": "archlab.blocks.norm.RMSNorm", "_partial_": True, "eps": 0.25}
    assert maker("norm", plain).keywords == {"eps": 0.25} and maker("norm", {**plain, "eps": 0.5}).keywords == {
        "eps": 0.5
    }
