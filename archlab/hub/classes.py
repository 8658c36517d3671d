"""What transformers' own configuration classes make of a config.json: defaults, older spellings, renamed fields."""

import copy
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from archlab.base.errors import UserError
from archlab.hub.fields import TYPES
from archlab.hub.reading import Config, only, unsupported

MOST_LAYERS = 1000
"""Beyond it a class is not asked: some write a list of a word for each layer."""


WITHOUT_EFFECT = frozenset(
    """
initializer_range init_std init_device time_step_min time_step_max time_step_floor time_step_rank rescale_prenorm_residual
use_cache chunk_size pad_token_id bos_token_id eos_token_id image_token_id
attention_dropout attn_pdrop resid_pdrop embd_pdrop emb_pdrop hidden_dropout classifier_dropout dropout layerdrop
residual_dropout embedding_dropout summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
output_router_logits router_aux_loss_coef router_jitter_noise
pretraining_tp slow_but_exact reorder_and_upcast_attn residual_in_fp32 is_decoder
max_seq_len learned_pos_emb embedding_fraction norm_type
""".split()
)
"""Fields of a class that change no logits: of training, of tokens, of rounding, and what MPT's class has and does not read."""


def known_to_transformers(kind: str) -> bool:
    """Whether transformers has a class for this model_type; False where it is not installed."""
    return kind in classes()


def as_its_class_has_it(config: Config) -> Mapping[str, Any]:
    """The fields as the class of its model_type has them, which is what transformers builds the model by.

    RoPE's are put in order twice, as they are there: by the class, and once more when the model's frequencies are made.
    A length beside rope_parameters is an attribute by then, and takes the place of the one inside.

    The config.json itself where transformers is not installed or has no such class. Raises UserError where its class
    refuses it.
    """
    kind = str(config.get("model_type"))
    depths = [config.get(name) for name in ("num_hidden_layers", "n_layer", "n_layers")]
    if not known_to_transformers(kind) or any(isinstance(depth, int) and depth > MOST_LAYERS for depth in depths):
        return with_defaults(config)
    import transformers

    if isinstance(
        config.get("attn_temperature_tuning"), int
    ):  # a number in Llama 4's releases, which its class refuses
        config = {**config, "attn_temperature_tuning": bool(config["attn_temperature_tuning"])}
    said = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)  # what it refuses is said in one line below
    try:
        made = classes()[kind].from_dict(copy.deepcopy(dict(config)))
        if getattr(made, "rope_parameters", None):
            made.standardize_rope_params()
        return without_foreign_biases(made.to_dict())
    except Exception as error:  # each class raises errors of its own
        why = " ".join(str(error).split())[:200]
        raise UserError(f"config.json: transformers has a class for {kind}, which refuses it: {why}") from None
    finally:
        transformers.logging.set_verbosity(said)


def with_defaults(config: Config) -> Config:
    """The same with what its class has for fields that it leaves out, and for RoPE's that are null."""
    said = {name: value for name, value in config.items() if value is not None or not name.startswith("rope_")}
    defaults = dict(LEFT_OUT.get(str(config.get("model_type")), {}))
    if "rope_scaling" in said:
        defaults.pop("rope_parameters", None)
    return {**defaults, **said}


LEFT_OUT: Mapping[str, Mapping[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "smollm3": {"num_key_value_heads": 4, "tie_word_embeddings": True, "rope_theta": 2e6},
    "phi3": {"original_max_position_embeddings": 4096},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "mixtral": {"num_key_value_heads": 8, "rope_theta": 1e6},
    "qwen3_moe": {"num_key_value_heads": 4},
    "deepseek_v2": {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "v_head_dim": 128},
    "deepseek_v3": {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "v_head_dim": 128, "n_group": 8, "topk_group": 4},
    "glm4_moe": {"num_key_value_heads": 8},
    "gpt_oss": {"head_dim": 64, "num_key_value_heads": 8, "rope_theta": 150000.0,
                "rope_parameters": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                                    "original_max_position_embeddings": 4096}},
    "llama4_text": {"num_key_value_heads": 8, "head_dim": 128, "rope_theta": 5e5},
    "qwen3_next": {"num_key_value_heads": 2, "head_dim": 256},
    "glm": {"num_key_value_heads": 2, "head_dim": 128, "attention_bias": True},
    "glm4": {"num_key_value_heads": 2, "head_dim": 128, "attention_bias": True},
    "gemma": {"num_key_value_heads": 16, "head_dim": 256},
    "gemma2": {"num_key_value_heads": 4, "head_dim": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {"num_key_value_heads": 4, "head_dim": 256},
    "stablelm": {"num_key_value_heads": 32},
    "cohere": {"rope_theta": 5e5},
    "gptj": {"rotary_dim": 64},
    "apertus": {"rope_theta": 12e6,
                "rope_parameters": {"rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "low_freq_factor": 1.0,
                                    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
    "nanochat": {"final_logit_softcapping": 15.0},
    "starcoder2": {"num_key_value_heads": 2},
    "lfm2": {"num_key_value_heads": 8, "rope_theta": 1e6, "block_ffn_dim_multiplier": 1.0},
}  # fmt: skip
"""By family, what its class has where a field is left out, and reading it by its words alone would take for something else."""


def without_foreign_biases(config: Config) -> Mapping[str, Any]:
    """The same without what a class keeps of biases that it has no field for: its model has none."""
    known = {field.name for field in fields(classes()[str(config["model_type"])])}
    return {
        name: value for name, value in config.items() if name in known or name not in ("attention_bias", "mlp_bias")
    }


def check_nothing_left_out(config: Config) -> None:
    """Raises UserError where a field that no family reads differs from what its class has by default.

    So a field of a newer version of transformers is never passed over.
    """
    only(config, is_causal=True, add_cross_attention=False)
    if apart := config.get("per_layer_config"):
        raise unsupported("per_layer_config", apart, "the same fields for all layers")
    kind = str(config.get("model_type"))
    if not known_to_transformers(kind):
        return
    of_every_class = {field.name for field in fields(base_class())}
    for field in fields(classes()[kind]):
        if (
            field.name in TYPES
            or field.name in WITHOUT_EFFECT
            or field.name in of_every_class
            or field.default is MISSING
        ):
            continue
        if (value := config.get(field.name, field.default)) != field.default:
            raise unsupported(field.name, value, f"{field.name}={field.default}")


def base_class() -> Any:
    """What all configuration classes of transformers have in common."""
    import transformers

    return transformers.PreTrainedConfig


def classes() -> Mapping[str, Any]:
    """transformers' configuration classes by model_type; none where it is not installed."""
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        return {}
    return CONFIG_MAPPING
