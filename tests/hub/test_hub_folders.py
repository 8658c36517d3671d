"""Folders as they are found in the wild, read as transformers reads them: every row is a kind of fault that was once here."""

import json

import pytest
import torch
from oracles import built
from test_hub import LATENT, MANY, NEW, OLD, InFloat64, angles_of, changed, folder, refused, relative, tokens  # noqa: F401

from archlab import hub
from archlab.base.errors import UserError
from archlab.hub import classes, files

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
    eager = dict(attn_implementation="eager", experts_implementation="eager")
    again = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, **eager)
    for weight in again.parameters():  # some classes keep the router's in float32
        weight.data = weight.data.double()
    with torch.no_grad(), angles_of(again), InFloat64():
        return relative(hub.load(path).double()(tokens(length)), again(tokens(length), use_cache=False).logits)


GEMMA = NEW | HD | dict(sliding_window=4, query_pre_attn_scalar=7, layer_types=THREE_LOCAL)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, rope_theta=10000.0)
FOUND = {
    # name: (class, what it is made with, what config.json says beside it, what it leaves out)
    "gemma 3, global layers scaled": ("Gemma3Text", GEMMA, dict(rope_parameters=None, rope_scaling=dict(rope_type="linear", factor=8.0), rope_theta=1e6, rope_local_base_freq=1e4)),
    "gemma 3, fewer layers than the pattern": ("Gemma3Text", GEMMA | dict(layer_types=["sliding_attention"] * 3), {}),
    "gemma 2, layers in another order": ("Gemma2", GEMMA | dict(layer_types=["full_attention", *THREE_LOCAL[:2]]), {}),
    "gemma 2, no local layer": ("Gemma2", GEMMA | dict(layer_types=["full_attention"] * 3)),
    "gemma 3, a cap on scores that its class ignores": ("Gemma3Text", GEMMA | dict(attn_logit_softcapping=0.5)),
    "gemma 3, no local layer": ("Gemma3Text", GEMMA | dict(layer_types=["full_attention"] * 3)),
    "cohere 2, no local layer": ("Cohere2", NEW | dict(layer_types=["full_attention"] * 3)),
    "gemma, as released": ("Gemma", NEW | HD, dict(hidden_act="gelu", hidden_activation=None)),
    "dynamic goes by the longest": ("Llama", NEW, dict(rope_parameters=None, rope_scaling=dict(type="dynamic", factor=2.0, original_max_position_embeddings=8), max_position_embeddings=20)),
    "falcon without its activation": ("Falcon", NEW | dict(ffn_hidden_size=192, multi_query=True, alibi=False), {}, ("activation", "ffn_hidden_size")),
    "glm without attention_bias": ("Glm", NEW | dict(head_dim=8), {}, ("attention_bias",)),
    "gptj without rotary_dim": ("GPTJ", OLD | dict(n_embd=384, n_head=4, n_layer=1, rotary_dim=64), {}, ("rotary_dim",)),
    "gptj, a base and a scaling that its class has no fields for": ("GPTJ", OLD | dict(rotary_dim=4), dict(rope_scaling=dict(type="linear", factor=3.0), rope_theta=100.0, rotary_emb_base=50, rotary_pct=0.5, partial_rotary_factor=0.5, head_dim=4)),
    "glm, an odd number of features": ("Glm", NEW | HD, dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.75))),
    "phi, a part that is rounded down": ("Phi", NEW, dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.87))),
    "yarn, untruncated and finetuned": ("Llama", NEW, dict(rope_parameters=None, rope_scaling=YARN | dict(truncate=False, finetuned=True))),
    "yarn, untruncated by null": ("Llama", NEW, dict(rope_parameters=YARN | dict(truncate=None))),
    "yarn with half of DeepSeek's fields": ("Llama", NEW, dict(rope_parameters=YARN | dict(mscale=1.3))),
    "yarn with both of them and a factor": ("Llama", NEW, dict(rope_parameters=YARN | dict(mscale=1.3, mscale_all_dim=0.4, attention_factor=1.2))),
    "a factor of 1": ("Llama", NEW, dict(rope_parameters=dict(rope_type="linear", factor=1.0, rope_theta=1e4))),
    "olmo 3, as released": ("Olmo3", NEW | dict(sliding_window=4, layer_types=THREE_LOCAL), dict(rope_parameters=None, rope_scaling=YARN | dict(attention_factor=1.2), rope_theta=500.0)),
    "cohere 2, as released": ("Cohere2", NEW | dict(sliding_window=4, layer_types=THREE_LOCAL), dict(sliding_window_pattern=2), ("layer_types",)),
    "smollm3 by its interval": ("SmolLM3", NEW | dict(no_rope_layer_interval=2), {}, ("no_rope_layers", "layer_types")),
    "smollm3 without positions": ("SmolLM3", NEW | dict(no_rope_layers=[0, 0, 0])),
    "phi 3.5, as released": ("Phi3", NEW | dict(pad_token_id=0), dict(rope_parameters=None, rope_scaling=dict(type="longrope", short_factor=[1.0] * 4, long_factor=[1.5] * 4), original_max_position_embeddings=16)),
    "mistral, biases that its class has no field for": ("Mistral", NEW, dict(attention_bias=True, mlp_bias=True)),
    "lfm 2, convolutions alone": ("Lfm2", {key: value for key, value in NEW.items() if key != "attention_dropout"} | dict(layer_types=["conv"] * 3)),
    "another name for silu": ("Llama", NEW, dict(hidden_act="swish")),
    "another name for gelu": ("GPT2", OLD | dict(n_positions=64), dict(activation_function="gelu_python")),
    "stablelm, norms of heads with another eps": ("StableLm", NEW | dict(qk_layernorm=True, layer_norm_eps=3e-3)),
    "qwen 2, a window in its last layers": ("Qwen2", NEW | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1), {}, ("layer_types",)),
    "qwen 3, a window where layer_types says": ("Qwen3", NEW | HD | dict(use_sliding_window=True, sliding_window=4, layer_types=THREE_LOCAL)),
    "qwen 3 moe, a window in all layers": ("Qwen3Moe", NEW | dict(use_sliding_window=True, sliding_window=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=20), dict(layer_types=THREE_LOCAL)),
    "smollm3, a window without positions": ("SmolLM3", NEW | dict(use_sliding_window=True, sliding_window=4, no_rope_layers=[1, 0, 1]), {}, ("layer_types",)),
    "smollm3, layer_types without use_sliding_window": ("SmolLM3", NEW | dict(sliding_window=4, layer_types=THREE_LOCAL)),
    "llama, a share of the frequencies": ("Llama", NEW, dict(rope_parameters=dict(rope_type="proportional", partial_rotary_factor=0.5, factor=2.0, rope_theta=500.0))),
    "llama 3, an odd part of the features": ("Llama", NEW | dict(head_dim=4, num_attention_heads=3), dict(rope_parameters=dict(rope_type="llama3", factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16, partial_rotary_factor=0.75, rope_theta=50.0))),
    "llama 4, as released": ("Llama4Text", NEW | HD | dict(num_local_experts=3, intermediate_size_mlp=20), dict(rope_parameters=None, rope_scaling=dict(rope_type="llama3", factor=16.0, low_freq_factor=1.0, high_freq_factor=1.0, original_max_position_embeddings=16))),
    "yarn, a length beside another inside": ("Llama", NEW, dict(rope_parameters=None, rope_scaling=YARN, original_max_position_embeddings=8)),
    "yarn, a length beside its parameters alone": ("Llama", NEW, dict(rope_parameters=None, rope_scaling=dict(rope_type="yarn", factor=4.0), original_max_position_embeddings=8)),
    "llama 3, a length beside another inside": ("Qwen2", NEW, dict(rope_parameters=None, rope_scaling=dict(rope_type="llama3", factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32), rope_theta=50.0, original_max_position_embeddings=16)),
    "longrope, a length beside another inside": ("Llama", NEW, dict(rope_parameters=None, rope_scaling=dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[1.5] * 4, original_max_position_embeddings=48), original_max_position_embeddings=16)),
    "gemma 3, a length that its layer types do not read": ("Gemma3Text", GEMMA, dict(rope_parameters=dict(full_attention=YARN, sliding_attention=dict(rope_type="default", rope_theta=1e4)), original_max_position_embeddings=8)),
    "gemma 3, untruncated beside its layer types": ("Gemma3Text", GEMMA, dict(rope_parameters=dict(truncate=False, full_attention=YARN, sliding_attention=dict(rope_type="default", rope_theta=1e4)))),
    "deepseek 3 without shared experts": ("DeepseekV3", MANY | LATENT | dict(n_routed_experts=6, n_group=1, topk_group=1, n_shared_experts=0)),
    "relu squared": ("Phi", NEW, dict(hidden_act="relu2")),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_is_read_as_transformers_reads_it(name, tmp_path):
    # float32 angles; where the number of features is odd, a power of the base that is rounded otherwise
    assert error(written(tmp_path, *FOUND[name])) < (1e-5 if "odd" in name else 1e-9)


def test_an_override_holds_in_every_layer_that_has_it(tmp_path):
    """Fault found: layers of another base than the model's own were given neither, but the option's default."""
    path = written(tmp_path, "Gemma3Text", GEMMA)
    changed(path, rope_parameters={kind: dict(rope_type="default", rope_theta=99.0) for kind in set(THREE_LOCAL)})
    expected = hub.load(path)(tokens())
    changed(path, rope_parameters={kind: dict(rope_type="default", rope_theta=b) for kind, b in zip(THREE_LOCAL[:2], (1e4, 1e6), strict=True)})  # fmt: skip
    assert torch.equal(hub.load(path, "pos.base=99.0")(tokens()), expected)


def test_infinity_is_read_as_transformers_writes_it(tmp_path):
    """In the JSON that `save_pretrained` writes, Mamba 2's limits on a step are 0 and an object of one text."""
    path = written(tmp_path, "Mamba2", dict(vocab_size=61, hidden_size=30, num_hidden_layers=2, num_heads=6, head_dim=10, expand=2, state_size=14, n_groups=3))  # fmt: skip
    assert json.loads((path / "config.json").read_text())["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    assert error(path) < 1e-9


def test_a_mamba_2_is_what_its_file_holds_where_its_class_rescales_it_at_each_load(tmp_path):
    given = dict(vocab_size=61, hidden_size=30, num_hidden_layers=2, num_heads=6, head_dim=10, expand=2, state_size=14, n_groups=3)  # fmt: skip
    path = written(tmp_path, "Mamba2", given)
    before = hub.load(path)(tokens())
    changed(path, rescale_prenorm_residual=True)
    assert torch.equal(hub.load(path)(tokens()), before)


def test_a_number_for_llama_4s_switch_counts_as_true(tmp_path):
    """Its releases say 4, which their own class refuses."""
    path = written(tmp_path, "Llama4Text", NEW | HD | dict(num_local_experts=3, intermediate_size_mlp=20, no_rope_layers=[1, 0, 1], floor_scale=5))  # fmt: skip
    before = hub.load(path)(tokens())
    changed(path, attn_temperature_tuning=4)
    assert torch.equal(hub.load(path)(tokens()), before)
    changed(path, attn_temperature_tuning=False)
    assert not torch.equal(hub.load(path)(tokens()), before)


def test_what_is_not_causal_is_refused(folder):  # noqa: F811
    changed(folder, is_causal=False)
    refused(folder, "is_causal=False: no block of archlab does this; supported is is_causal=True")


def test_a_field_of_a_class_that_no_family_reads_is_refused_where_it_is_not_its_default(folder, monkeypatch):  # noqa: F811
    """As one that a later version of transformers adds: here one that is known to be of training alone."""
    changed(folder, initializer_range=0.5)
    hub.load(folder)
    monkeypatch.setattr(classes, "WITHOUT_EFFECT", classes.WITHOUT_EFFECT - {"initializer_range"})
    refused(folder, "initializer_range=0.5: no block of archlab does this; supported is initializer_range=0.02")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (dict(per_layer_config={"1": {"rms_norm_eps": 0.5}}), "per_layer_config={'1': {'rms_norm_eps': 0.5}}: no block of archlab does this; supported is the same fields for all layers"),
        (dict(per_layer_config={"9": {"rms_norm_eps": 0.5}}), "per_layer_config={'9': {'rms_norm_eps': 0.5}}: no block of archlab does this; supported is the same fields for all layers"),
        (dict(hidden_size=50, head_dim=8), "transformers has a class for llama, which refuses it: .*The hidden size .50. is not a multiple of the number of attention heads .6."),
    ],
    ids=["a field of one layer", "a layer that is none", "what its class refuses"],
)  # fmt: skip
def test_what_transformers_reads_and_no_family_is_refused_by_name(said, told, folder):  # noqa: F811
    changed(folder, **said)
    refused(folder, told)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (dict(rope_parameters=None, rope_theta=None), "rope_theta=null: a llama model goes by it; give a number, or leave the field out"),
        (dict(rope_parameters=dict(rope_type="default", rope_theta=None)), "rope_parameters.rope_theta=null: a llama model goes by it; give a number, or leave the field out"),
        (dict(rope_parameters=YARN | dict(factor=None)), None),
        (dict(rms_norm_eps=None), "rms_norm_eps=null: a llama model goes by it; give a number, or leave the field out"),
        (dict(num_attention_heads=None), "num_attention_heads=null: a llama model goes by it; give a whole number"),
        (dict(rms_norm_eps=0.0), "rms_norm_eps=0.0: norm.eps=0.0: should be greater than 0"),
        (dict(intermediate_size=0), "intermediate_size=0: size.d_ff=0: should be 'matched' or should be greater than or equal to 1"),
        (dict(rms_norm_eps=None, intermediate_size=None), "intermediate_size=null: a llama model goes by it"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused_has_the_name_that_it_has_in_config_json(said, told, folder):  # noqa: F811
    """A null too, but for one that transformers takes as left out."""
    changed(folder, **said)
    if told is None:
        hub.load(folder)
    else:
        refused(folder, f"^config.json: {told}")


@pytest.mark.parametrize("said", ["rms_norm_eps", "num_attention_heads", "hidden_size"])
def test_without_a_class_of_transformers_too(said):
    """Of Baichuan there is none."""
    c = dict(model_type="baichuan", vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, intermediate_size=40,
             hidden_act="silu", rms_norm_eps=1e-5, max_position_embeddings=64)  # fmt: skip
    with pytest.raises(UserError, match=f"^config.json: {said}=null: a baichuan model goes by it; give a"):
        files.assembled(c | {said: None}, {})


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


@pytest.mark.parametrize("kind", ["gpt_bigcode", "xglm"])
def test_another_family_is_no_slip_of_the_keyboard(kind, folder):  # noqa: F811
    changed(folder, model_type=kind)
    refused(folder, f"model_type={kind}: no such family; families: llama")


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        ("StableLm", dict(num_attention_heads=12), "partial_rotary_factor=0.25: .*; supported is one that rotates two features of a head"),
        ("Gemma3Text", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True: no block"),
        ("SmolLM3", dict(layer_types=THREE_LOCAL), "sliding_window=None: no block"),
        ("SmolLM3", dict(layer_types=["chunked_attention"] * 3), "layer_types=chunked_attention: no block"),
        ("Llama", dict(rope_parameters=YARN | dict(factor=1.0, attention_factor=1.3)), "attention_factor=1.3: .*; supported is attention_factor=1.0 with factor=1.0"),
        ("Glm", HD | dict(rope_parameters=dict(rope_type="dynamic", factor=2.0, partial_rotary_factor=0.5)), "partial_rotary_factor=0.5: .*; supported is one that rotates an even number of features"),
        ("Mixtral", dict(head_dim=4, rope_parameters=YARN | dict(partial_rotary_factor=0.75)), "partial_rotary_factor=0.75: .*; supported is one that rotates an even number of features, with rope_type=yarn"),
        ("Mixtral", dict(num_experts_per_tok=1), "num_experts_per_tok=1: .*; supported is 2 or more"),
        ("Glm4Moe", dict(num_experts_per_tok=4, n_routed_experts=4), "num_experts_per_tok=4: .*; supported is fewer than n_routed_experts=4"),
        ("Falcon", dict(new_decoder_architecture=True, parallel_attn=False), "parallel_attn=False: no block"),
        ("Falcon", dict(num_ln_in_parallel_attn=3), "num_ln_in_parallel_attn=3: .*; supported is 1 or 2"),
        ("Llama", dict(rope_parameters=dict(rope_type="linear", factor=2.0, partial_rotary_factor=0.5)), "rope_parameters.partial_rotary_factor=0.5: .*; supported is 1 with rope_type=linear, since this family rotates whole heads"),
        ("Nemotron", HD | dict(rope_parameters=dict(rope_type="proportional", rope_theta=50.0, partial_rotary_factor=0.01)), "rope_parameters.partial_rotary_factor=0.01: .*; supported is one that rotates a pair of features or more"),
        ("Qwen3Next", dict(num_hidden_layers=4, hidden_act="gelu_new", moe_intermediate_size=20, shared_expert_intermediate_size=20), "hidden_act=gelu_new: .*; supported is silu, which follows the convolutions"),
        ("Gemma3Text", GEMMA | dict(rope_parameters=dict(full_attention=YARN | dict(truncate=False))), "rope_parameters.full_attention.truncate=False: .*; supported is the truncate=True of rope_parameters, which is of all layers"),
        ("Olmo3", NEW | dict(sliding_window=4, rope_scaling=YARN | dict(truncate=False)), "rope_parameters.full_attention.truncate=False: .*; supported is the truncate=True"),
        ("GPTNeoX", HD, "head_dim=10: .*; supported is head_dim=8, which is hidden_size over num_attention_heads"),
        ("Gemma2", GEMMA | dict(hidden_activation="mish"), "hidden_activation=mish: .*; supported is one of silu"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_family_might_have_and_no_block_does_is_refused_by_name(kind, given, told):
    config = getattr(transformers, f"{kind}Config")(**NEW | given).to_dict()
    with pytest.raises(UserError, match=told) as refusal:
        hub.FAMILIES[config["model_type"]].words(config)
    assert "\n" not in str(refusal.value)


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


@pytest.mark.parametrize(
    ("name", "kind"),
    [("olmo3_7b", "Olmo3"), ("gemma3_4b", "Gemma3"), ("cohere_command_r7b", "Cohere2"), ("stablelm2_12b", "StableLm")],
)
def test_a_preset_is_written_as_its_own_family(name, kind, tmp_path):
    decoder = built(f"preset={name}", "size=nano", "size.n_layers=6").double().eval()
    hub.export(decoder, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float64, attn_implementation="eager"
    )
    assert type(again).__name__ == f"{kind}ForCausalLM"
    with torch.no_grad(), InFloat64():
        assert relative(again(tokens()).logits, decoder(tokens())) < 1e-9


def test_an_untruncated_yarn_of_some_layers_is_written_where_its_class_reads_it(tmp_path):
    wide = (
        "pos=rope",
        "pos.base=500000.0",
        "pos.scaling=yarn",
        "pos.factor=8",
        "pos.trained_len=16",
        "pos.truncate=false",
    )
    rules = [f"layers[1::2].{word}" for word in wide]
    decoder = built("preset=olmo3_7b", "size=nano", "size.n_layers=4", *rules).double().eval()
    hub.export(decoder, tmp_path / "out")
    with torch.no_grad(), InFloat64():
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64, attn_implementation="eager")  # fmt: skip
        assert relative(again(tokens()).logits, decoder(tokens())) < 1e-9
        assert relative(hub.load(tmp_path / "out")(tokens()), decoder(tokens())) < 1e-9


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_a_loaded_decoder_is_written_in_the_dtype_it_has_by_now(field, folder, tmp_path):  # noqa: F811
    """transformers makes a model in the dtype that config.json says."""
    said = json.loads((folder / "config.json").read_text())
    said = {name: value for name, value in said.items() if name != "dtype"} | {field: "bfloat16"}
    (folder / "config.json").write_text(json.dumps(said))
    hub.export(hub.load(folder).bfloat16(), tmp_path / "bf16")
    assert json.loads((tmp_path / "bf16" / "config.json").read_text()) == said
    decoder = hub.load(tmp_path / "bf16").float()
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.add_(torch.randn_like(weight) * 1e-3)
    hub.export(decoder, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert again.dtype == torch.float32
    with torch.no_grad():
        assert relative(again(tokens()).logits, decoder(tokens())) < 1e-5
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["dtype"] == "float32" and "torch_dtype" not in written
