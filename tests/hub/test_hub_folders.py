"""Folders as they are found in the wild, read as transformers reads them: every row is a kind of fault that was once here."""

import json

import pytest
import torch
from oracles import built
from test_hub import NEW, OLD, InFloat64, changed, folder, refused, relative, tokens  # noqa: F401

from archlab import hub
from archlab.base.errors import UserError

transformers = pytest.importorskip("transformers")

HD = dict(head_dim=10)
THREE_LOCAL = ["sliding_attention", "full_attention", "sliding_attention"]


def written(tmp_path, kind: str, given: dict, said: dict = {}, without: tuple[str, ...] = ()):  # noqa: B006
    """A folder of a class's model with random weights; its config.json says more, or less, than the class wrote."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**given)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim == 2 else 0.5) + (weight.ndim == 1))
    model.save_pretrained(tmp_path / "it")
    file = tmp_path / "it" / "config.json"
    fields = json.loads(file.read_text()) | said
    file.write_text(json.dumps({name: value for name, value in fields.items() if name not in without}))
    return tmp_path / "it"


def error(path, length=37) -> float:
    """The largest difference of the logits to those of transformers, float64, relative."""
    again = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad(), InFloat64():
        return relative(hub.load(path).double()(tokens(length)), again(tokens(length)).logits)


GEMMA = NEW | HD | dict(sliding_window=4, query_pre_attn_scalar=7, layer_types=THREE_LOCAL)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, rope_theta=10000.0)
FOUND = {
    # name: (class, what it is made with, what config.json says beside it, what it leaves out)
    "gemma 3, global layers scaled": ("Gemma3Text", GEMMA, dict(rope_parameters=None, rope_scaling=dict(rope_type="linear", factor=8.0), rope_theta=1e6, rope_local_base_freq=1e4)),
    "gemma 3, fewer layers than the pattern": ("Gemma3Text", GEMMA | dict(layer_types=["sliding_attention"] * 3), {}),
    "gemma 2, layers in another order": ("Gemma2", GEMMA | dict(layer_types=["full_attention", *THREE_LOCAL[:2]]), {}),
    "gemma, as released": ("Gemma", NEW | HD, dict(hidden_act="gelu", hidden_activation=None)),
    "dynamic goes by the longest": ("Llama", NEW, dict(rope_parameters=None, rope_scaling=dict(type="dynamic", factor=2.0, original_max_position_embeddings=8), max_position_embeddings=20)),
    "falcon without its activation": ("Falcon", NEW | dict(ffn_hidden_size=192, multi_query=True, alibi=False), {}, ("activation", "ffn_hidden_size")),
    "glm without attention_bias": ("Glm", NEW | dict(head_dim=8), {}, ("attention_bias",)),
    "gptj without rotary_dim": ("GPTJ", OLD | dict(n_embd=384, n_head=4, n_layer=1, rotary_dim=64), {}, ("rotary_dim",)),
    "glm, an odd number of features": ("Glm", NEW | HD, dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.75))),
    "phi, a part that is rounded down": ("Phi", NEW, dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.87))),
    "yarn, untruncated and finetuned": ("Llama", NEW, dict(rope_parameters=None, rope_scaling=YARN | dict(truncate=False, finetuned=True))),
    "yarn with half of DeepSeek's fields": ("Llama", NEW, dict(rope_parameters=YARN | dict(mscale=1.3))),
    "yarn with both of them and a factor": ("Llama", NEW, dict(rope_parameters=YARN | dict(mscale=1.3, mscale_all_dim=0.4, attention_factor=1.2))),
    "a factor of 1": ("Llama", NEW, dict(rope_parameters=dict(rope_type="linear", factor=1.0, rope_theta=1e4))),
    "another name for silu": ("Llama", NEW, dict(hidden_act="swish")),
    "another name for gelu": ("GPT2", OLD | dict(n_positions=64), dict(activation_function="gelu_python")),
    "relu squared": ("Phi", NEW, dict(hidden_act="relu2")),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_is_read_as_transformers_reads_it(name, tmp_path):
    # float32 angles; where the number of features is odd, a power of the base that is rounded otherwise
    assert error(written(tmp_path, *FOUND[name])) < (1e-5 if "odd" in name else 1e-9)


@pytest.mark.parametrize("kind", ["GPT2", "Bloom"])
def test_weights_without_the_base_models_name(kind, tmp_path):
    """As in GPT-2's and BLOOM's own folders, and in those of models without a head."""
    sizes = OLD if kind == "GPT2" else dict(vocab_size=61, hidden_size=48, n_layer=3, n_head=6)
    path = written(tmp_path, kind, sizes)
    whole = hub.load(path)
    transformers.AutoModel.from_pretrained(path).save_pretrained(tmp_path / "base")
    bare = hub.load(tmp_path / "base")
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), bare.parameters(), strict=True))
    model = transformers.AutoModel.from_pretrained(path)
    assert torch.equal(hub.from_hf(model)(tokens()), bare(tokens()))


def test_models_that_were_compiled_or_have_no_numbers_or_no_head(folder):  # noqa: F811
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    compiled = torch.compile(model)
    assert torch.equal(hub.from_hf(compiled)(tokens()), hub.from_hf(model)(tokens()))
    with pytest.raises(UserError, match=r"embed_tokens.weight: is on the meta device"):
        hub.from_hf(model.to("meta"))
    with pytest.raises(UserError, match=r"head.weight of 1 missing; the weights are incomplete"):
        hub.from_hf(transformers.AutoModel.from_pretrained(folder))


def test_quantised_weights_are_refused_by_name(folder):  # noqa: F811
    changed(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    refused(folder, "quantization_config: the weights are quantised .fp8.")


@pytest.mark.parametrize("kind", ["gpt_bigcode", "gpt_oss", "smollm3"])
def test_another_family_is_no_slip_of_the_keyboard(kind, folder):  # noqa: F811
    changed(folder, model_type=kind)
    refused(folder, f"model_type={kind}: no such family; families: llama")


def test_the_tokenizer_goes_with_the_weights(folder, tmp_path):  # noqa: F811
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "notes.txt").write_text("mine")
    hub.export(hub.load(folder), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"a": 1}' and not (
        tmp_path / "out" / "notes.txt"
    ).exists()


# --- written ------------------------------------------------------------------------------------

SMALL = ("size=nano", "size.n_layers=1", "embed.scale=none", "init=normal")
MADE_HERE = {
    "pos.scaling=llama3 pos.factor=8 pos.trained_len=16": dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0),
    "pos.scaling=ntk pos.factor=4": dict(rope_type="default"),
    "pos.scaling=dynamic pos.factor=2 pos.trained_len=16": dict(rope_type="dynamic", factor=2.0),
    "pos.scaling=yarn pos.factor=4 pos.trained_len=16 pos.truncate=false": dict(rope_type="yarn", truncate=False),
}  # fmt: skip


@pytest.mark.parametrize("words", MADE_HERE)
def test_what_is_written_is_the_same_model(words, tmp_path):
    decoder = built(*SMALL, *words.split()).double().eval()
    hub.export(decoder, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float64, attn_implementation="eager"
    )
    with torch.no_grad(), InFloat64():
        assert relative(again(tokens()).logits, decoder(tokens())) < 1e-9
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["rope_parameters"].items() >= MADE_HERE[words].items()
    if "dynamic" in words:
        assert said["max_position_embeddings"] == 16
