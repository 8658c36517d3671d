"""A configuration as plain data is what OmegaConf makes of it, in a fraction of the time."""

import pytest
from omegaconf import OmegaConf

from archlab.base.configuration import copied, has_references, plain_dict
from archlab.config.compose import composed

AS_TYPED = {
    "numbers": [1, 2.5, -0.0, True, None],
    "nested": {"list": [{"a": [[]]}, {}], "text": "x", "nothing": None, 3: "a number's name"},
    "missing": "???",
    "reference": "${nested.text}",
    "within": ["${numbers}", "a ${nested.text} b"],
    "whole": "${nested}",
    "written": "\\${nested}",
}


def test_values_of_every_kind():
    cfg = OmegaConf.create(AS_TYPED)
    assert plain_dict(cfg) == OmegaConf.to_container(cfg) | {}
    assert plain_dict(cfg, resolve=True) == OmegaConf.to_container(cfg, resolve=True)
    assert plain_dict(cfg, resolve=True)["whole"] == AS_TYPED["nested"]


@pytest.mark.parametrize("words", [[], ["preset=qwen3_next_80b_a3b"], ["size=nano", "layers[1::2].mask=window"]])
def test_a_composed_configuration(words):
    cfg, _ = composed(words)
    assert has_references(cfg)
    for resolve in (False, True):
        assert plain_dict(cfg, resolve) == OmegaConf.to_container(cfg, resolve=resolve)
    OmegaConf.resolve(cfg)
    assert not has_references(cfg)
    assert copied(cfg) == cfg
    assert plain_dict(cfg, resolve=True) == OmegaConf.to_container(cfg, resolve=True)


def test_what_is_given_is_a_copy():
    cfg = OmegaConf.create({"a": {"b": [1]}})
    plain_dict(cfg)["a"]["b"].append(2)
    copied(cfg).a.b.append(3)
    assert cfg.a.b == [1]
