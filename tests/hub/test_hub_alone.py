"""Where transformers is not installed, a config.json is read as its classes would read it, or refused."""

import json

import pytest
from test_hub import CASES, first_of_each_family

from archlab.base.errors import UserError
from archlab.config.compose import in_turn
from archlab.hub import classes
from archlab.hub.families import FAMILIES
from archlab.hub.saying import MISREAD, words_of
from archlab.hub.writing import unlike

transformers = pytest.importorskip("transformers")


def read(config, monkeypatch, alone):
    """Overrides, or None where it is refused."""
    with monkeypatch.context() as at:
        if alone:
            at.setattr(classes, "classes", dict)
        try:
            return words_of(FAMILIES[config["model_type"]], config)
        except (UserError, *MISREAD):
            return None


def composed(words):
    try:
        return in_turn(*words)
    except UserError:
        return None


def in_the_older_spelling(config):
    """RoPE's parameters beside each other, and its scaling in rope_scaling."""
    rope = dict(config.get("rope_parameters") or {})
    if not rope or "full_attention" in rope:
        return config
    beside = {name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    scaling = {} if rope.get("rope_type", "default") == "default" else {"rope_scaling": rope}
    return {name: value for name, value in config.items() if name != "rope_parameters"} | beside | scaling


@pytest.mark.parametrize("case", first_of_each_family())
def test_each_field_that_is_left_out_is_what_its_class_has(case, monkeypatch):
    kind, given = CASES[case]
    config = json.loads(json.dumps(getattr(transformers, f"{kind}Config")(**given).to_dict(), default=str))
    rope = [name for name in ("rope_parameters", "rope_scaling", "rope_theta") if name in config]
    tried = [config, in_the_older_spelling(config)]
    tried += [{n: v for n, v in config.items() if n != name} for name in config if name != "model_type"]
    tried += [{n: v for n, v in config.items() if n not in rope} | {"rope_theta": 77.0}] if rope else []
    equal = 0
    for said in tried:
        alone, by_class = (read(said, monkeypatch, alone) for alone in (True, False))
        if alone is None:
            continue
        if alone != by_class and (ours := composed(alone)) is not None:
            theirs = by_class and composed(by_class)
            left_out = set(config) - set(said)
            assert theirs is not None and not list(unlike(theirs, ours)), (left_out, alone, by_class)
        equal += 1
    assert equal > len(tried) // 2
