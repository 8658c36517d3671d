"""The fields of a config.json: which are read, what type each has, and that none of them is ever parsed as a word."""

import ast
import json
import os
from pathlib import Path

import pytest
from transformers import Qwen2Config

import archlab
from archlab import hub
from archlab.base.errors import UserError
from archlab.hub.fields import TYPES
from archlab.hub.words import last_layers

HUB = Path(archlab.__file__).parent / "hub"

LLAMA = {
    "model_type": "llama", "vocab_size": 61, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8,
    "intermediate_size": 88, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False,
    "mlp_bias": False, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0, "original_max_position_embeddings": 16, "truncate": True},
}  # fmt: skip
"""Every field that a llama of this version has a say in."""


def names_read() -> set[str]:
    """The names that the readers of config.json ask for: subscripts, get(...), only(...), and the names they hand on."""
    found: set[str] = set()
    for where, node in (
        (file, node)
        for file in ("words.py", "reading.py", "experts.py", "llama4.py")
        for node in ast.walk(ast.parse((HUB / file).read_text()))
    ):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            # The last two files also write: there only `c` is what a config.json says.
            if where in ("words.py", "reading.py") or getattr(node.value, "id", "") == "c":
                found.add(node.slice.value)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [
                part.value for argument in node.args for part in ast.walk(argument) if isinstance(part, ast.Constant)
            ]
            if called == "get" and (where in ("words.py", "reading.py") or getattr(node.func.value, "id", "") == "c"):
                found |= set(texts[:1])
            elif called == "only":
                found |= {keyword.arg for keyword in node.keywords}
            elif called in ("ffn", "rms", "layer_norm", "table", "sizes"):
                found |= {text for text in texts if isinstance(text, str) and "_" in text}
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("widths", "names"):
            found |= {
                part.value
                for part in ast.walk(node.value)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            }
    return {name for name in found if isinstance(name, str) and name.isidentifier()}


def test_every_field_that_is_read_has_a_type():
    missing = names_read() - set(TYPES) - {"gelu_pytorch_tanh", "sliding_attention", "full_attention"}
    assert not missing and len(names_read()) > 60


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """config.json alone: what it says is refused before any weight is looked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    return tmp_path / "llama"


def refused(folder, config, match):
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if not list(folder.glob("*.safetensors*")):
        (folder / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    with pytest.raises(UserError, match=match) as refusal:
        hub.load(folder)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 700
    assert not os.path.exists("hurt")


NUMBERS = [key for key, value in LLAMA.items() if isinstance(value, int | float)]
CALL = "{_target_: os.mkdir, _args_: [hurt]}"


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [CALL, "${oc.env:HOME}", "16", [16], {"a": 1}, "1 norm=layer"], ids=str)
def test_a_text_is_no_number_or_flag(key, value, folder):
    refused(folder, LLAMA | {key: value}, f"the wrong type for a llama model: {key}=")


@pytest.mark.parametrize("key", ["factor", "rope_theta", "original_max_position_embeddings", "truncate"])
def test_nor_is_one_within_a_field(key, folder):
    refused(
        folder,
        LLAMA | {"rope_parameters": LLAMA["rope_parameters"] | {key: CALL}},
        f"the wrong type for a llama model: rope_parameters.{key}=",
    )


@pytest.mark.parametrize("key", ["hidden_act", "model_type"])
def test_a_name_is_one_of_those_that_are_known(key, folder):
    refused(folder, LLAMA | {key: CALL}, "no block of archlab does this|no such family")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ("[" * 100_000, "deep in each other"), ('{"a":' * 2000 + "1" + "}" * 2000, "deep in each other"), ("[1, 2]", "should hold one object"),
        ('{"model_type": "llama", "vocab_size": ' + "9" * 5000 + "}", "is not JSON"), (json.dumps(LLAMA | {"hidden_size": 10**9}), "size.d_model=1000000000: should be less than or equal to 1048576"),
        (json.dumps(LLAMA | {"hidden_size": 10**9, "intermediate_size": 10**15}), "size.d_model=1000000000: should be less than or equal to 1048576"),
        (json.dumps(LLAMA | {"num_hidden_layers": 10**9}), "size.n_layers=1000000000: should be less than or equal to 1000"),
        (json.dumps(LLAMA | {"rms_norm_eps": float("nan")}), "norm.eps"), (json.dumps(LLAMA | {"num_attention_heads": 0}), "n_heads"),
        (json.dumps(LLAMA | {"head_dim": -8}), "head_dim"), (json.dumps(LLAMA | {"vocab_size": None}), "vocab_size"),
    ],
    ids=["brackets", "objects", "a list", "digits", "wide", "wider", "deep", "no number", "no heads", "negative", "null"],
)  # fmt: skip
def test_what_no_model_can_be_made_of_is_one_line(config, match, folder):
    refused(folder, config, match)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "../other/model.safetensors"}}, {"weight_map": {"a": "/etc/hostname"}}, {"weight_map": {"a": ".."}}, {"weight_map": {"a": ""}},
        {"weight_map": {"a": "pytorch_model.bin"}}, {"weight_map": ["model.safetensors"]}, {"weight_map": None}, {"weight_map": {"a": ["model.safetensors"]}},
        {"weight_map": {"a": None}}, {"weight_map": {"a": "a\\..\\b.safetensors"}}, {"weight_map": {}}, {}, {"weight_map": "model.safetensors"},
    ],
    ids=str,
)  # fmt: skip
def test_an_index_names_files_beside_it_and_nothing_else(index, folder):
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "model.safetensors").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(
        folder, LLAMA, "model.safetensors.index.json: .*(should hold a weight_map|names no safetensors file beside it)"
    )


SMALL = {"vocab_size": 61, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 88}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"model_type": "lfm2", "layer_types": ["conv", "sliding_attention"]}, "layer_types=sliding_attention: no block .*; supported is conv or full_attention"),
        ({"model_type": "lfm2", "block_use_swiglu": False}, "block_use_swiglu=False: no block of archlab does this; supported is block_use_swiglu=True"),
        ({"model_type": "apertus", "qk_norm": False}, "qk_norm=False: no block of archlab does this; supported is qk_norm=True"),
        ({"model_type": "nemotron", "hidden_act": "mish"}, "hidden_act=mish: no block of archlab does this"),
        ({"model_type": "nanochat", "rope_parameters": YARN}, "rope_type=yarn: no block .*; supported is one that leaves the length of queries and keys"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 0.0}, "mixer.softcap=0.0: should be greater than 0"),
        ({"model_type": "gemma2", "final_logit_softcapping": 0.0}, "head.softcap=0.0: should be greater than 0"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 0.0}, "head.softcap=0.0: should be greater than 0"),
        ({"model_type": "nanochat", "final_logit_softcapping": 0.0}, "head.softcap=0.0: should be greater than 0"),
        ({"model_type": "llama", "attention_bias": None}, "attention_bias=null: a llama model goes by it; give true or false, or leave the field out"),
        ({"model_type": "llama", "hidden_size": None}, "hidden_size=null: a llama model goes by it; give a whole number"),
        ({"model_type": "granite", "embedding_multiplier": "12"}, "the wrong type for a granite model: embedding_multiplier='12'"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_newer_families_say_and_no_block_does_is_refused_by_name(said, match, folder):
    refused(folder, SMALL | said, match)


@pytest.mark.parametrize(("first", "windowed"), [(0, 4), (1, 3), (3, 1), (4, 0), (28, 0)])
def test_layers_have_a_window_from_max_window_layers_on_as_in_qwen2s_class(first, windowed):
    """`layer_types` as Qwen2Config makes them: sliding where i >= max_window_layers, counted from 0."""
    kinds = Qwen2Config(
        num_hidden_layers=4, max_window_layers=first, use_sliding_window=True, sliding_window=8
    ).layer_types
    found = last_layers({"num_hidden_layers": 4, "max_window_layers": first})
    assert found == [kind == "sliding_attention" for kind in kinds] and sum(found) == windowed
