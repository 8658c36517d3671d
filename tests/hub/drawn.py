"""Random small configurations of transformers' own classes: sizes, and every field that the class or its model reads."""

import inspect
import re
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB, LENGTH = 47, 29

OF_ALL = {field.name for field in fields(transformers.PreTrainedConfig)}

INERT = re.compile(
    r".*(dropout|drop|pdrop|token_id|initializer|init_std|init_device|aux_loss|jitter|output_|use_cache|num_labels|summary_).*"
    r"|vision_config|text_config|image_.*|mm_.*|get_text_config|pretraining_tp|_attn_implementation|_experts_implementation|num_mtp_layers"
    r"|num_nextn_predict_layers|vocab_size|model_type|torch_dtype|dtype|is_encoder_decoder|add_cross_attention|chunk_size_feed_forward"
)
"""Fields of training, of tokens, of what is returned, or of another model around this one."""

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "relu", "relu2", "quick_gelu", "mish",
               "tanh", "sigmoid", "gelu_10", "linear", "laplace", "relu6", "leaky_relu", "gelu_accurate", "xielu")  # fmt: skip

TEXTS = {
    "topk_method": ("greedy", "group_limited_greedy", "noaux_tc"),
    "scoring_func": ("softmax", "sigmoid"),
    "norm_type": ("low_precision_layernorm", "layernorm", "rmsnorm"),
    "time_step_rank": ("auto", 4),
}

FOREIGN = {
    "attention_bias": True, "mlp_bias": True, "bias": True, "use_qk_norm": True, "qk_layernorm": True, "qk_norm": False, "clip_qkv": 0.7,
    "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "logit_scale": 0.5, "attention_multiplier": 0.3,
    "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.0, "final_logit_softcapping": 2.0,
    "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 3, "use_parallel_residual": True, "parallel_attn": False, "alibi": True,
    "no_rope_layers": [0, 0, 0, 0], "no_rope_layer_interval": 2, "attention_chunk_size": 5, "attn_temperature_tuning": True, "floor_scale": 4,
    "attn_scale": 0.5, "use_bidirectional_attention": True, "is_causal": False, "is_decoder": True, "rope_theta": 100.0,
    "partial_rotary_factor": 0.5, "rotary_pct": 0.5, "rope_scaling": {"rope_type": "linear", "factor": 3.0}, "rope_local_base_freq": 50.0,
    "original_max_position_embeddings": 8, "sliding_window_pattern": 2, "use_mrope": True, "rope_interleave": False,
    "head_dim": 6, "num_key_value_heads": 1, "scale_attn_weights": False, "layer_norm_elementwise_affine": False, "use_bias": False,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "softmax", "topk_method": "greedy", "mlp_only_layers": [0],
    "moe_layer_freq": 2, "first_k_dense_replace": 1, "swiglu_limit": 3.0, "swiglu_alpha": 1.0, "attn_output_gate": True, "use_attention_sinks": True,
    "tie_embedding": True, "hidden_activation": "relu", "rms_norm_eps": 0.3, "layer_norm_eps": 0.3, "norm_eps": 0.3, "cla_share_factor": 2,
    "apply_residual_connection_post_layernorm": True, "rope_ratio": 3.0, "layer_scale": 0.5, "post_norm": True, "sandwich_norm": True,
}  # fmt: skip
"""Fields that some released configuration has, each at a value that would change a model which honoured it."""


def class_of(kind: str) -> Any:
    return transformers.CONFIG_MAPPING[kind]


def model_of(kind: str) -> Any:
    return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])


@cache
def attributes(kind: str) -> dict[str, tuple[str, Any]]:
    """What the class and its model read, with type and default; "" and None for what it does not declare."""
    config = class_of(kind)
    declared = {f.name: (str(f.type), None if f.default is MISSING else f.default) for f in fields(config)}
    code = inspect.getsource(inspect.getmodule(model_of(kind)))
    read = set(re.findall(r"\bconfig\.([a-z_A-Z]\w*)", code)) | set(
        re.findall(r'getattr\(\s*(?:self\.)?config,\s*"(\w+)"', code)
    )
    read |= set(re.findall(r'kwargs\.(?:get|pop)\(\s*"(\w+)"', inspect.getsource(inspect.getmodule(config))))
    found = {name: ("", None) for name in sorted(read) if not callable(getattr(config, name, None))} | declared
    return {
        name: said
        for name, said in found.items()
        if name not in OF_ALL and name not in config.attribute_map and not INERT.fullmatch(name)
    }


SIZES = ("num_hidden_layers", "n_layer", "n_layers", "num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "num_kv_heads",
         "hidden_size", "n_embd", "d_model", "n_embed", "head_dim", "intermediate_size", "intermediate_size_mlp", "ffn_dim", "n_inner",
         "ffn_hidden_size", "max_position_embeddings", "n_positions", "max_seq_len", "num_local_experts", "num_experts",
         "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size", "kv_lora_rank",
         "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "linear_conv_kernel_dim", "linear_key_head_dim",
         "linear_value_head_dim", "linear_num_key_heads", "linear_num_value_heads", "num_heads", "state_size", "expand", "n_groups",
         "n_shared_experts", "n_group", "topk_group", "rotary_dim", "word_embed_proj_dim", "expansion_ratio")  # fmt: skip


def sizes(kind: str, draw: Any) -> dict[str, Any]:
    """Sizes that go together, of all names; each class is given those that it has."""
    layers, heads = draw.randint(1, 4), draw.choice((2, 3, 4, 6, 8))
    kv = draw.choice([n for n in range(1, heads + 1) if heads % n == 0])
    head_dim = draw.choice((4, 6, 8, 10))
    known, width = attributes(kind), heads * head_dim
    own_head_dim = known.get("head_dim", ("", None))[0] != "" and kind != "lfm2"
    if own_head_dim and draw.random() < 0.5:
        width += draw.choice((2, 6))
    groups = draw.choice((1, 2, 3))
    experts = groups * draw.choice((2, 3))
    top_groups = draw.randint(1, groups)
    moe = draw.choice((8, 12, 14))
    key_heads, key_dim = draw.choice((1, 2, 3)), draw.choice((4, 6, 10))
    said: dict[str, Any] = {
        **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), layers),
        **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), heads),
        **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), kv),
        **dict.fromkeys(("hidden_size", "n_embd", "d_model"), width),
        "word_embed_proj_dim": draw.choice((width, 10)),
        **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "intermediate_size_mlp"), draw.choice((10, 26, 40))),
        **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), draw.choice((16, 32, 64))),
        **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), experts),
        "num_experts_per_tok": draw.randint(1, top_groups * experts // groups),
        "moe_intermediate_size": moe, "shared_expert_intermediate_size": moe * draw.choice((1, 2)),
        "n_shared_experts": draw.choice((1, 2)), "n_group": groups, "topk_group": top_groups,
        "kv_lora_rank": draw.choice((6, 14)), "q_lora_rank": draw.choice((None, 10)), "qk_nope_head_dim": draw.choice((4, 8)),
        "qk_rope_head_dim": head_dim, "v_head_dim": draw.choice((6, 8)), "first_k_dense_replace": draw.randint(0, layers - (draw.random() < 0.9)),
        "linear_num_key_heads": key_heads, "linear_num_value_heads": key_heads * draw.choice((1, 2)), "linear_key_head_dim": key_dim,
        "linear_value_head_dim": draw.choice((4, 6)), "linear_conv_kernel_dim": draw.choice((2, 4)),
        "num_heads": 6, "n_groups": draw.choice((1, 2, 3)), "state_size": draw.choice((6, 10)), "rotary_dim": draw.choice((2, head_dim)),
        "expand": 2,
    }  # fmt: skip
    if own_head_dim:
        said["head_dim"] = head_dim
    if kind in ("gpt2", "gptj", "opt"):  # which have a table of them
        said |= dict.fromkeys(("max_position_embeddings", "n_positions"), 40)
    if kind == "mpt":
        said |= {"n_heads": (heads := draw.choice((2, 4, 8))), "d_model": heads * head_dim}
    if kind == "mamba2":
        said |= {"num_heads": 6, "head_dim": head_dim, "hidden_size": 3 * head_dim}
    if kind in ("qwen3_moe", "glm4_moe"):
        said["hidden_size"] = width
    said["vocab_size"] = VOCAB
    extra = {"vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "n_layer", "n_head"}
    names = {field.name for field in fields(class_of(kind))}
    return {name: value for name, value in said.items() if name in names or (name in extra and name in known)} | dict(
        pad_token_id=None, bos_token_id=None, eos_token_id=None
    )


def ropes(kind: str, draw: Any, pairs: int, longest: int) -> dict[str, Any]:
    """RoPE's parameters, of any type that transformers has."""
    said: dict[str, Any] = {"rope_theta": draw.choice((50.0, 500.0, 10000.0))}
    if draw.random() < 0.4:
        said["partial_rotary_factor"] = draw.choice((0.25, 0.4, 0.5, 0.75))
    said["rope_type"] = name = draw.choice(
        ("default", "linear", "dynamic", "yarn", "llama3", "longrope", "proportional")
    )
    if name != "default":
        said["factor"] = draw.choice((1.0, 2.0, 3.5, 8.0))
    if name in ("yarn", "llama3", "longrope"):
        said["original_max_position_embeddings"] = draw.choice((8, 16, longest))
    if name == "yarn":
        for key, of in {"beta_fast": (4.0, 32.0), "beta_slow": (0.5, 1.0), "attention_factor": (0.7, 1.3), "mscale": (0.7, 1.0),
                        "mscale_all_dim": (0.5, 1.0), "truncate": (True, False)}.items():  # fmt: skip
            if draw.random() < 0.3:
                said[key] = draw.choice(of)
    if name == "llama3":
        said |= {"low_freq_factor": draw.choice((1.0, 2.0)), "high_freq_factor": draw.choice((4.0, 6.0))}
    if name == "longrope":
        said |= {key: [draw.choice((1.0, 1.5, 2.0)) for _ in range(pairs)] for key in ("short_factor", "long_factor")}
        if draw.random() < 0.3:
            said["attention_factor"] = 1.2
        if draw.random() < 0.5:
            del said["factor"]
    return said


def pairs_of(said: dict[str, Any], share: float) -> int:
    heads = said.get("num_attention_heads") or said.get("n_head") or 1
    width = (
        said.get("qk_rope_head_dim") or said.get("head_dim") or said.get("hidden_size", said.get("n_embd", 8)) // heads
    )
    return (int(width * share) + 1) // 2


def value(kind: str, name: str, said: dict[str, Any], draw: Any) -> Any:
    """Another value of this field."""
    type_, default = attributes(kind)[name]
    layers = next(said[n] for n in ("num_hidden_layers", "n_layer", "n_layers") if n in said)
    if name in ("hidden_act", "hidden_activation", "activation", "activation_function"):
        return draw.choice(
            ACTIVATIONS if draw.random() < 0.3 else ("silu", "gelu", "gelu_new", "relu", "gelu_pytorch_tanh")
        )
    if name in ("rope_parameters", "rope_scaling"):
        longest = said.get("max_position_embeddings", 32)
        both = kind in ("gemma3_text", "olmo3")
        made = ropes(kind, draw, 0, longest)
        share = made.get("partial_rotary_factor", DEFAULT_SHARE.get(kind, 1.0))
        again = ropes(kind, draw, pairs_of(said, share), longest)
        again = {k: v for k, v in again.items() if k != "partial_rotary_factor"} | {
            k: made[k] for k in ("partial_rotary_factor",) if k in made
        }
        if both and draw.random() < 0.8:
            return {
                "full_attention": again,
                "sliding_attention": {"rope_type": "default", "rope_theta": draw.choice((30.0, 100.0))},
            }
        return again
    if name == "layer_types":
        kinds = KINDS.get(kind, ("full_attention", "sliding_attention"))
        return [draw.choice(kinds) for _ in range(layers)]
    if name in ("no_rope_layers",):
        return [draw.choice((0, 1)) for _ in range(layers)]
    if name in ("mlp_only_layers", "moe_layers", "full_attn_idxs") or type_.startswith("list[int]"):
        return [layer for layer in range(layers) if draw.random() < 0.5]
    if name == "time_step_limit":
        return draw.choice(([0.0, 0.3], [0.2, 5.0]))
    if name == "attn_config":
        options = {"alibi": False, "clip_qkv": 0.6, "softmax_scale": 0.3, "qk_ln": True, "attn_type": "multiquery_attention",
                   "prefix_lm": True, "attn_uses_sequence_id": True, "alibi_bias_max": 4, "attn_pdrop": 0.5}  # fmt: skip
        key = draw.choice(list(options))
        return {key: options[key]}
    if name in TEXTS:
        return draw.choice(TEXTS[name])
    if isinstance(default, bool) or "bool" in type_:
        return draw.random() < 0.5 if default is None else not default
    if name in ("clip_qkv",):
        return draw.choice((0.5, 1.5))
    if "float" in type_ or isinstance(default, float):
        scale = draw.choice((0.3, 0.6, 1.7, 3.0))
        return float(default * scale) if default else scale
    if "window" in name or "chunk" in name or "floor_scale" in name:
        return draw.choice((3, 5, 8))
    if "int" in type_ or isinstance(default, int):
        return draw.choice((1, 2, 3, 4))
    if name == "head_dim":
        return draw.choice((4, 6, 12))
    if name in FOREIGN:
        return FOREIGN[name]
    return draw.choice((True, False, 2, 0.5))


DEFAULT_SHARE = {
    "glm": 0.5,
    "glm4": 0.5,
    "glm4_moe": 0.5,
    "phi": 0.5,
    "stablelm": 0.25,
    "gpt_neox": 0.25,
    "nemotron": 0.5,
    "qwen3_next": 0.25,
}
KINDS = {
    "lfm2": ("full_attention", "conv"),
    "qwen3_next": ("full_attention", "linear_attention"),
    "llama4_text": ("full_attention", "chunked_attention"),
}


def drawn(kind: str, draw: Any) -> tuple[dict[str, Any], list[str]]:
    """A configuration's fields, and the names of those that are neither sizes nor tokens."""
    said = sizes(kind, draw)
    small = {
        "sliding_window": draw.choice((3, 7)),
        "attention_chunk_size": draw.choice((3, 8)),
        "floor_scale": draw.choice((3, 8)),
    }
    said |= {k: v for k, v in small.items() if k in attributes(kind) and draw.random() < 0.8}
    if kind in ("phi3", "mixtral", "starcoder2") and draw.random() < 0.5:
        said["sliding_window"] = None
    switches = [name for name in attributes(kind) if name not in SIZES and name not in ("n_embed",)]
    chosen = draw.sample(switches, min(len(switches), draw.choice((0, 1, 1, 2, 2, 3, 4))))
    made = {name: value(kind, name, said, draw) for name in chosen}
    if draw.random() < 0.3:
        name = draw.choice(sorted(FOREIGN))
        if name not in attributes(kind) and name not in class_of(kind).attribute_map:
            made[name] = FOREIGN[name]
    if draw.random() < 0.3 and "attention_bias" in attributes(kind):
        made["attention_bias"] = True
    if draw.random() < 0.3:
        made["tie_word_embeddings"] = draw.random() < 0.5
    return said | made, sorted(made)
