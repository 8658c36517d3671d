"""Folders of models of many experts: tensors in the pieces that releases have them in, and what is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_hub import CASES, changed, refused, theirs, tokens

from archlab import hub
from archlab.base.errors import UserError
from archlab.hub.files import assembled

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("case", ["mixtral", "deepseek_v3", "qwen3_next"])
def test_tensors_are_read_and_written_in_the_pieces_that_transformers_writes(case, tmp_path):
    model = theirs(case)
    model.save_pretrained(tmp_path / "theirs")
    hub.export(hub.from_hf(model), tmp_path / "ours")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert {name: weight.shape for name, weight in one.items()} == {
        name: weight.shape for name, weight in other.items()
    }
    assert any(".experts.1." in name for name in one)
    assert torch.equal(hub.load(tmp_path / "theirs")(tokens()), hub.from_hf(model)(tokens()))


@pytest.mark.parametrize(
    ("case", "further"), [("deepseek_v3", "model.layers.2.eh_proj.weight"), ("qwen3_next", "mtp.fc.weight")]
)
def test_weights_that_predict_further_tokens_are_left_out_as_transformers_does(case, further, tmp_path):
    hub.export(hub.from_hf(theirs(case)), tmp_path / "it")
    file = tmp_path / "it" / "model.safetensors"
    before, tensors = hub.load(tmp_path / "it")(tokens()), load_file(file)
    save_file(tensors | {further: torch.ones(48, 96)}, file, metadata={"format": "pt"})
    assert torch.equal(hub.load(tmp_path / "it")(tokens()), before)
    if case == "deepseek_v3":
        changed(tmp_path / "it", num_nextn_predict_layers=0)
        refused(tmp_path / "it", r"model.layers.2.eh_proj.weight \(1 in all\) do not belong to this family")


def test_a_piece_of_another_shape_or_that_is_missing_is_told_of(tmp_path):
    hub.export(hub.from_hf(theirs("olmoe")), tmp_path / "it")
    file = tmp_path / "it" / "model.safetensors"
    tensors = load_file(file)
    piece = "model.layers.1.mlp.experts.4.up_proj.weight"
    save_file(tensors | {piece: torch.ones(28, 47)}, file, metadata={"format": "pt"})
    refused(tmp_path / "it", r"layers.1.mlp.experts.gate_up_proj: its experts' matrices have the shapes .*\(28, 47\)")
    del tensors[piece]
    save_file(tensors, file, metadata={"format": "pt"})
    refused(tmp_path / "it", "weights: layers.1.ffn.gate_proj, layers.1.ffn.up_proj of 2 missing")


@pytest.mark.parametrize(
    ("case", "said", "told"),
    [
        (
            "deepseek_v2",
            dict(topk_method="group_limited_greedy"),
            "topk_method=group_limited_greedy.*topk_method=greedy",
        ),
        ("deepseek_v2", dict(norm_topk_prob=True), "norm_topk_prob=True.*norm_topk_prob=False"),
        ("deepseek_v3", dict(scoring_func="softmax"), "scoring_func=softmax.*scoring_func=sigmoid"),
        ("deepseek_v3", dict(first_k_dense_replace=2), "num_hidden_layers=2.*some layers with experts"),
        ("glm4_moe", dict(moe_layer_freq=2), "moe_layer_freq=2.*moe_layer_freq=1"),
        ("glm4_moe", dict(n_group=1, topk_group=0), "topk_group=0: .*supported is 1 to n_group=1"),
        ("deepseek_v3", dict(n_group=2, topk_group=3), "topk_group=3: .*supported is 1 to n_group=2"),
        ("deepseek_v3", dict(n_group=0), "n_group=0: .*supported is 1 or more"),
        ("gpt_oss", dict(swiglu_limit=5.0), "swiglu_limit=5.0.*swiglu_limit=7.0"),
        ("qwen3_moe", dict(num_experts_per_tok="3"), "holds a value of the wrong type.*num_experts_per_tok='3'"),
        ("qwen3_next", dict(shared_expert_intermediate_size=30), "=30.*a multiple of moe_intermediate_size=20"),
        ("qwen3_next", dict(layer_types=["full_attention"] * 2), "layer_types=full_attention.*both of them"),
    ],
    ids=str,
)
def test_what_no_block_does_is_refused_by_name(case, said, told):
    kind, given = CASES[case]
    config = json.loads(json.dumps(getattr(transformers, f"{kind}Config")(**given).to_dict(), default=str)) | said
    with pytest.raises(UserError, match=told) as error:
        assembled(config, {})
    assert "\n" not in str(error.value)
