"""Presets against the config.json of the release that each is named after: not the sizes alone, every option."""

import pytest
import yaml
from oracles import CONF

import archlab
from archlab.config.compose import in_turn
from archlab.hub.classes import as_its_class_has_it
from archlab.hub.families import FAMILIES
from archlab.hub.writing import unlike

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip

FACTORS = {
    name: [
        yaml.safe_load((CONF / "preset" / f"{name}.yaml").read_text())[f"pos.{which}_factor"]
        for which in ("short", "long")
    ]
    for name in ("phi_3_5_mini", "phi_4_mini")
}
"""LongRoPE's, 48 numbers each, as the preset has them: their order and number are held here, their values to the release by hand."""


def sizes(kind, layers, d_model, heads, kv_heads, d_ff, vocab, **more):
    return {"model_type": kind, "num_hidden_layers": layers, "hidden_size": d_model, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "intermediate_size": d_ff, "vocab_size": vocab, **more}  # fmt: skip


RELEASED = {
    "apertus_8b": sizes("apertus", 32, 4096, 32, 8, 21504, 131072, hidden_act="xielu", rms_norm_eps=1e-5, max_position_embeddings=65536,
                        attention_bias=False, mlp_bias=False, qk_norm=True, tie_word_embeddings=False, rope_theta=12e6, rope_scaling=LLAMA3),
    "granite_3_3_2b": sizes("granite", 40, 2048, 32, 8, 8192, 49159, rms_norm_eps=1e-5, max_position_embeddings=131072, rope_theta=1e7,
                            rope_scaling=None, tie_word_embeddings=True, attention_bias=False, mlp_bias=False, embedding_multiplier=12.0,
                            attention_multiplier=0.015625, residual_multiplier=0.22, logits_scaling=8.0),
    "lfm2_1_2b": sizes("lfm2", 16, 2048, 32, 8, 12288, 65536, norm_eps=1e-5, rope_theta=1e6, conv_bias=False, conv_L_cache=3, block_multiple_of=256,
                       block_ffn_dim_multiplier=1.0, block_auto_adjust_ff_dim=True, full_attn_idxs=[2, 5, 8, 10, 12, 14]),
    "llama4_scout": sizes("llama4_text", 48, 5120, 40, 8, 8192, 202048, intermediate_size_mlp=16384, head_dim=128, num_local_experts=16,
                          num_experts_per_tok=1, interleave_moe_layer_step=1, attention_chunk_size=8192, attn_temperature_tuning=4, attn_scale=0.1,
                          floor_scale=8192, use_qk_norm=True, no_rope_layers=[], rms_norm_eps=1e-5, rope_theta=500000.0, rope_scaling=LLAMA3,
                          router_aux_loss_coef=0.001, max_position_embeddings=262144, tie_word_embeddings=False, hidden_act="silu"),
    "llama4_maverick": sizes("llama4_text", 48, 5120, 40, 8, 8192, 202048, intermediate_size_mlp=16384, head_dim=128, num_local_experts=128,
                             num_experts_per_tok=1, interleave_moe_layer_step=2, attention_chunk_size=8192, use_qk_norm=False, rms_norm_eps=1e-5,
                             rope_theta=500000.0, rope_scaling=None, max_position_embeddings=1048576, hidden_act="silu"),
    "phi_3_5_mini": sizes("phi3", 32, 3072, 32, 32, 8192, 32064, rms_norm_eps=1e-5, max_position_embeddings=131072, rope_theta=10000.0,
                          original_max_position_embeddings=4096, sliding_window=262144, tie_word_embeddings=False,
                          rope_scaling={"type": "longrope", "short_factor": FACTORS["phi_3_5_mini"][0], "long_factor": FACTORS["phi_3_5_mini"][1]}),
    "phi_4_mini": sizes("phi3", 32, 3072, 24, 8, 8192, 200064, rms_norm_eps=1e-5, max_position_embeddings=131072, rope_theta=10000.0,
                        original_max_position_embeddings=4096, sliding_window=262144, tie_word_embeddings=True, partial_rotary_factor=0.75,
                        rope_scaling={"type": "longrope", "short_factor": [1.0] * 48, "long_factor": FACTORS["phi_4_mini"][1]}),
    "mamba2_130m": {"model_type": "mamba2", "num_hidden_layers": 24, "hidden_size": 768, "num_heads": 24, "head_dim": 64, "expand": 2, "n_groups": 1,
                    "state_size": 128, "conv_kernel": 4, "layer_norm_epsilon": 1e-5, "vocab_size": 50288, "tie_word_embeddings": True},
    "minitron_4b": sizes("nemotron", 32, 3072, 24, 8, 9216, 256000, head_dim=128, norm_eps=1e-5, hidden_act="relu2", rope_theta=10000,
                         partial_rotary_factor=0.5, max_position_embeddings=4096, tie_word_embeddings=False),
    "nanochat_d32": sizes("nanochat", 32, 2048, 16, 16, 8192, 65536, hidden_act="relu2", rms_norm_eps=1e-6, final_logit_softcapping=15.0,
                          rope_theta=10000.0, max_position_embeddings=2048),
    "starcoder2_3b": sizes("starcoder2", 30, 3072, 24, 2, 12288, 49152, norm_epsilon=1e-5, hidden_act="gelu_pytorch_tanh", use_bias=True,
                           max_position_embeddings=16384, sliding_window=4096, rope_theta=999999.4420358813),
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_a_preset_is_the_model_that_its_release_describes(name):
    words = FAMILIES[RELEASED[name]["model_type"]].words(as_its_class_has_it(RELEASED[name]))
    assert list(unlike(archlab.compose(f"preset={name}"), in_turn(*words))) == []
