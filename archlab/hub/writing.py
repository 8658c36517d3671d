"""Writes a decoder made here as the released family whose blocks it has."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from functools import cache
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError
from archlab.base.words import key_of, value_of
from archlab.blocks.attention import scale_of_scores
from archlab.blocks.rope_scaling import defaults_of, larger_base
from archlab.config.compose import in_turn
from archlab.config.groups import BLOCKS
from archlab.config.overrides import conf_dir, option_node
from archlab.config.plan import IN_LAYERS, SIZES_IN_LAYERS, Choice, LayerPlan, layer_plans, loop_of
from archlab.hub import llama4
from archlab.hub.experts import BALANCE_RATE, delta_widths, latent_widths
from archlab.hub.families import FAMILIES

TRIED = ("llama", "mistral", "qwen2", "qwen3", "glm", "glm4", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "olmo3", "smollm3",
         "stablelm", "cohere", "cohere2", "phi", "phi3", "gpt2", "gptj", "gpt_neox", "bloom", "mpt", "opt", "falcon", "mixtral",
         "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "glm4_moe", "gpt_oss", "qwen3_next", "starcoder2", "lfm2", "granite",
         "apertus", "nemotron", "nanochat", "mamba2", "llama4_text")  # fmt: skip
"""Families that transformers has a class for, the most common first."""

OTHERWISE: Mapping[str, Callable[[DictConfig], dict[str, Any]]] = {"llama4_text": llama4.fields}
"""What the config.json of a family calls otherwise than those of all others."""

WITH_HEAD_DIM = ("qwen3_moe", "glm4_moe")
"""Families whose class in transformers reads a head_dim that its configuration does not name among its fields."""

ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_pytorch_tanh", "reglu": "relu", "gelu": "gelu",
               "gelu_tanh": "gelu_new", "glm": "gelu_new", "relu": "relu", "silu": "silu", "relu2": "relu2", "xielu": "xielu"}  # fmt: skip

ELSEWHERE = ("dropout", "max_positions", "trained_len", "balance_loss", "z_loss")
"""Fields that do not change what a model computes in evaluation, or that a config.json writes by rules of its own."""


def as_released(ours: Mapping[str, Tensor], cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Tensor], DictConfig]:
    """A config.json that transformers' own class wrote, the weights that go with it, and their configuration.

    Families are tried in turn: a config.json that is read back must give exactly these blocks and sizes. The factor
    sqrt(d_model) on untied embeddings is multiplied into their table. Raises UserError where no family fits.
    """
    try:
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as ARCHITECTURES
    except ImportError:
        raise UserError(
            "transformers: is not installed, but its classes write config.json; pip install 'archlab[hub]'"
        ) from None
    ours, cfg = unscaled(dict(ours), without_ntk(cfg))
    differences: dict[str, list[str]] = {}
    passed_over: dict[str, Sequence[str]] = {}
    names_of_all = everything(cfg)
    transformers.logging.set_verbosity_error()  # no warnings about values that are only tried
    for kind in TRIED:
        config_class = transformers.CONFIG_MAPPING[kind]
        known = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
        try:
            known |= {"head_dim"} if kind in WITH_HEAD_DIM else set()
            said = names_of_all | OTHERWISE.get(kind, nothing)(cfg)
            # Copied, since a class may add to what it is given.
            config = config_class(**deepcopy({key: value for key, value in said.items() if key in known})).to_dict()
            words = FAMILIES[kind].words(config)
            if any(of_another_class(word, cfg) for word in words):
                passed_over[kind] = words
                continue
            again = in_turn(*words)
        except Exception:  # this family cannot express it; each class raises errors of its own
            continue
        if not (differing := list(unlike(cfg, again))):
            architecture = ARCHITECTURES[kind]
            return (
                config | {"architectures": [architecture], "dtype": str(ours["embedding.weight"].dtype)[6:]},
                ours,
                again,
            )
        differences[kind] = differing
    differences |= all_that_differs(passed_over, cfg)
    nearest = min(differences, key=lambda kind: len(differences[kind]))
    raise UserError(
        f"no released family has all of these blocks, so transformers could not load them; nearest is {nearest}, with"
        f" {'; '.join(differences[nearest][:4])}"
    )


def all_that_differs(words_of: Mapping[str, Sequence[str]], cfg: DictConfig) -> dict[str, list[str]]:
    """What would differ by family; a family whose words cannot be composed has none."""
    found = {}
    for kind, words in words_of.items():
        try:
            found[kind] = list(unlike(cfg, in_turn(*words)))
        except Exception:  # as where families are tried
            continue
    return found


def nothing(cfg: DictConfig) -> dict[str, Any]:
    return {}


def of_another_class(word: str, cfg: DictConfig) -> bool:
    """Whether an override chooses a block of another class than this configuration has; checked without composing."""
    group, option = key_of(word), value_of(word)
    return group in BLOCKS and group != "mixer" and class_of(group, option) != cfg[group]["_target_"]


@cache
def class_of(group: str, option: str) -> str:
    node = option_node(group, option, [conf_dir()])
    assert node is not None, f"{group}={option} is an option of archlab's own"
    return node["_target_"]


def unscaled(ours: dict[str, Tensor], cfg: DictConfig) -> tuple[dict[str, Tensor], DictConfig]:
    """Multiplies the embedding table by the factor on the embeddings, where that is possible, and drops the factor."""
    if cfg.embed.scale != "sqrt_d_model" or cfg.embed.tied:
        return ours, cfg
    plain = cfg.copy()
    plain.embed.scale = "none"
    return ours | {"embedding.weight": ours["embedding.weight"] * cfg.size.d_model**0.5}, plain


def unlike(cfg: DictConfig, again: DictConfig) -> Iterator[str]:
    """What would differ when read back, as overrides."""
    alike = layers_in_full(cfg) == layers_in_full(again)
    if not alike and cfg.layers != again.layers:
        yield "layers that differ in another way"
    if cfg.get("canon") != again.get("canon"):
        yield f"canon={spelt(again.get('canon'))}"
    if cfg.get("skips") != again.get("skips"):
        yield f"skips={spelt(again.get('skips'))}"
    yield from (f"loop.{name}={spelt(value)}" for name, value in loop_of(again).items() if value != loop_of(cfg)[name])
    of_layers = IN_LAYERS if alike and cfg.layers else ()  # then the model's own choice may be another's rule
    for group in (*(group for group in BLOCKS if group not in of_layers), "size", "embed"):
        one, other = (in_full(plain_dict(c[group]), c) for c in (cfg, again))
        of_another_kind = (
            one.get("_target_") != other.get("_target_") if group != "mixer" else options_apart(one, other)
        )
        if of_another_kind:  # so that none of its options could be set as things are
            yield f"{group}={again.choices[group]}"
            continue
        for key in dict.fromkeys((*one, *other)):
            if (
                key in ELSEWHERE or key == "_target_" or (alike and key in SIZES_IN_LAYERS)
            ):  # sizes say how keys are shared
                continue
            if one.get(key) != other.get(key):
                yield f"{group}.{key}={spelt(other.get(key))}"


def options_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether either block has an option that the other has no word for; attention by another name has the same ones."""
    return any(one.get(key) is not None or other.get(key) is not None for key in one.keys() ^ other.keys())


def spelt(value: Any) -> Any:
    """As it is typed: null, true and false."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else value


def layers_in_full(cfg: DictConfig) -> list[list[Any]]:
    """Each layer's choices with their options, but for dropout, and its sizes."""
    return [[options_of(getattr(plan, part.name), cfg) for part in fields(plan)] for plan in layer_plans(cfg)]


def options_of(part: Choice | int, cfg: DictConfig) -> Any:
    if isinstance(part, int):
        return part
    apart = ("dropout", "balance_loss", "z_loss", *(["_target_"] if part.group == "mixer" else []))
    return {key: value for key, value in in_full(dict(part.node), cfg).items() if key not in apart}


def without_ntk(cfg: DictConfig) -> DictConfig:
    """The same model with its larger base written out: transformers has no word for how it was chosen."""
    if cfg.pos.get("scaling") != "ntk":
        return cfg
    plain_rope, rotated = cfg.copy(), round(cfg.pos.fraction * cfg.size.head_dim)
    plain_rope.pos.base = larger_base(cfg.pos.base, rotated, cfg.pos.factor)
    plain_rope.pos.scaling, plain_rope.pos.factor = "none", None
    return plain_rope


def in_full(node: dict[str, Any], cfg: DictConfig) -> dict[str, Any]:
    """A block's options, with what they mean in the place of those left out: RoPE's scaling, the scale of scores, a mixer's widths."""
    if "kv_lora_rank" in node:
        return node | latent_widths(node, cfg.size.head_dim)
    if "value_dim" in node:
        return node | delta_widths(node, cfg.size)
    if node.get("balance_rate"):  # how fast the bias on the choice moves changes nothing once it is trained
        return node | {"balance_rate": BALANCE_RATE}
    if "scale" in node and node["scale"] is None:
        return node | {"scale": cfg.size.head_dim**-0.5}
    return with_defaults(node)


def with_defaults(node: dict[str, Any]) -> dict[str, Any]:
    """A position scheme's options, with the defaults of its scaling in the place of those left out."""
    left_out = defaults_of(node["scaling"]) if node.get("scaling") else {}
    return node | {name: default for name, default in left_out.items() if node.get(name) is None}


def plain(value: Any) -> Any:
    """A number, a word, or a list of numbers."""
    return [float(number) for number in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def everything(cfg: DictConfig) -> dict[str, Any]:
    """The configuration under the field names of all families; each class takes the fields it knows."""
    size, pos, norm = cfg.size, cfg.pos, cfg.norm
    attn, kv_heads = attention_of(cfg)
    parallel = "norms" in cfg.residual
    stretched = (pos.get("trained_len") or cfg.train.train_len) * (
        1 if pos.get("scaling") == "dynamic" else pos.get("factor") or 2
    )
    longest = pos.get("max_positions") or math.ceil(stretched)
    ffn, ffn_name, d_ff = dense_network(cfg)
    activation = ACTIVATIONS.get(ffn.get("network", ffn_name))
    fraction, base = pos.get("fraction", 1.0), pos.get("base", 10000.0)
    of_scores, of_logits = scale_of_scores(attn.get("scale"), size.head_dim), cfg.head.get("scale") or 1.0
    entries = {
        "vocab_size": size.vocab_size,
        **dict.fromkeys(("hidden_size", "n_embd", "d_model"), size.d_model),
        **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), size.n_layers),
        **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), size.n_heads),
        **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), kv_heads),
        **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"), d_ff),
        **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"), norm.get("eps")),
        **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function", "activation"), activation),
        **dict.fromkeys(("n_positions", "max_position_embeddings", "max_seq_len"), longest),
        **dict.fromkeys(("attention_bias", "use_qkv_bias"), attn.get("qkv_bias")),
        **dict.fromkeys(("mlp_bias", "bias", "enable_bias", "use_bias"), cfg.ffn.get("bias", False)),
        **experts_fields(cfg),
        **latent_fields(cfg),
        **delta_fields(cfg),
        **state_space_fields(cfg),
        "use_qk_norm": attn.get("qk_norm", "none") != "none",
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
        "head_dim": size.head_dim,
        "rope_parameters": rope_by_layer_type(cfg) or rope_parameters(pos, base, fraction),
        "original_max_position_embeddings": pos.get("trained_len") if pos.get("scaling") == "longrope" else None,
        "rotary_dim": round(fraction * size.head_dim),
        "tie_word_embeddings": cfg.embed.tied,
        "sliding_window": cfg.mask.get("window"),
        "use_sliding_window": "window" in cfg.mask,
        "clip_qkv": attn.get("clip"),
        "attn_config": {"clip_qkv": attn.get("clip")},
        "use_parallel_residual": parallel,
        "parallel_attn": parallel,
        "num_ln_in_parallel_attn": cfg.residual.get("norms"),
        "multi_query": kv_heads == 1,
        "new_decoder_architecture": kv_heads not in (1, size.n_heads) or cfg.residual.get("norms") == 2,
        "alibi": cfg.choices.pos == "alibi",
        "do_layer_norm_before": cfg.choices.residual == "pre",
        "layer_norm_elementwise_affine": norm.get("affine", True),
        "word_embed_proj_dim": cfg.embed.width or size.d_model,
        "qk_layernorm": attn.get("qk_norm") in ("head", "each_head"),
        "no_rope_layers": [int(plan.pos.name != "none") for plan in layer_plans(cfg)],
        "logit_scale": of_logits,
        "embedding_multiplier": 1.0 if isinstance(cfg.embed.scale, str) else cfg.embed.scale,
        "attention_multiplier": of_scores,
        "residual_multiplier": cfg.residual.get("scale", 1.0),
        "logits_scaling": whole(1 / of_logits),
        "layer_types": layer_types(cfg),
        "query_pre_attn_scalar": whole(of_scores**-2) if attn.get("scale") else size.head_dim,
        "attn_logit_softcapping": attn.get("softcap"),
        "final_logit_softcapping": cfg.head.get("softcap"),
        "block_auto_adjust_ff_dim": False,
        **of_convolutions(cfg),
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "dropout": 0.0, "attention_dropout": 0.0, "hidden_dropout": 0.0,
        "residual_dropout": 0.0, "embedding_dropout": 0.0,
    }  # fmt: skip
    return {key: value for key, value in entries.items() if value is not None or key.endswith("_id") or key in OFF}


def experts_fields(cfg: DictConfig) -> dict[str, Any]:
    """What there is to say of experts, under the names of all families."""
    ffn, size = cfg.ffn, cfg.size
    if "n_experts" not in ffn:
        return {}
    dense = [i for i, plan in enumerate(layer_plans(cfg)) if "n_experts" not in plan.ffn.node]
    return {
        **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), ffn.n_experts),
        "num_experts_per_tok": ffn.top_k,
        "moe_intermediate_size": size.d_ff,
        "norm_topk_prob": ffn.normalise,
        "mlp_only_layers": dense,
        "first_k_dense_replace": len(dense),
        "n_shared_experts": ffn.shared,
        "shared_expert_intermediate_size": ffn.shared * size.d_ff,
        "routed_scaling_factor": ffn.scale,
        "n_group": ffn.groups,
        "topk_group": ffn.top_groups,
    }


def attention_of(cfg: DictConfig) -> tuple[Mapping[str, Any], int]:
    """Attention's options and its key-value heads, of the layers that have it where the model's own mixer is another."""
    if "conv_size" in cfg.mixer:
        for plan in layer_plans(cfg):
            if "qk_norm" in plan.mixer.node:
                return plan.mixer.node, plan.n_kv_heads
    return cfg.mixer, cfg.size.n_kv_heads


def delta_fields(cfg: DictConfig) -> dict[str, Any]:
    """What there is to say of the gated delta rule."""
    if "value_dim" not in cfg.mixer:
        return {}
    widths = delta_widths(cfg.mixer, cfg.size)
    return {
        "linear_num_key_heads": widths["key_heads"],
        "linear_num_value_heads": widths["heads"],
        "linear_key_head_dim": widths["key_dim"],
        "linear_value_head_dim": widths["value_dim"],
        "linear_conv_kernel_dim": cfg.mixer.conv_size,
    }


def state_space_fields(cfg: DictConfig) -> dict[str, Any]:
    """What there is to say of Mamba 2."""
    mixer, size = cfg.mixer, cfg.size
    if "state_dim" not in mixer:
        return {}
    heads = mixer.expand * size.n_heads
    return {
        "num_heads": heads,
        "expand": heads * size.head_dim // size.d_model,
        "state_size": mixer.state_dim,
        "n_groups": mixer.n_groups,
        "conv_kernel": mixer.conv_size,
        "hidden_act": "silu",
    }


def latent_fields(cfg: DictConfig) -> dict[str, Any]:
    """What there is to say of latent attention."""
    attn, rope_dim = cfg.mixer, cfg.size.head_dim
    if "kv_lora_rank" not in attn:
        return {}
    return {
        **latent_widths(attn, rope_dim),
        "q_lora_rank": attn.q_lora_rank,
        "qk_rope_head_dim": rope_dim,
        "attention_bias": attn.bias,
        "rope_interleave": cfg.pos.get("layout") == "interleaved",
    }


def dense_network(cfg: DictConfig) -> tuple[Mapping[str, Any], str, int]:
    """The feed-forward network of the layers without experts, its name and its width; the model's where there are none."""
    plans = [plan for plan in layer_plans(cfg) if "n_experts" not in plan.ffn.node]
    if "n_experts" in cfg.ffn and plans:
        return plans[0].ffn.node, plans[0].ffn.name, plans[0].d_ff
    return cfg.ffn, cfg.choices.ffn, cfg.size.d_ff


OFF = ("sliding_window", "q_lora_rank", "attn_logit_softcapping", "final_logit_softcapping")
"""Fields in which null means none; if left out, they would get their class's default."""


def layer_types(cfg: DictConfig) -> list[str] | None:
    """Each layer's type of attention, or what it has instead, where layers differ in that."""
    plans = layer_plans(cfg)
    if "value_dim" in cfg.mixer:
        return ["full_attention" if "qk_norm" in plan.mixer.node else "linear_attention" for plan in plans]
    if any(map(convolves, plans)):
        return ["conv" if convolves(plan) else "full_attention" for plan in plans]
    names = [plan.mask.name for plan in plans]
    if set(names) != {"causal", "window"}:
        return None
    return ["full_attention" if name == "causal" else "sliding_attention" for name in names]


def convolves(plan: LayerPlan) -> bool:
    """Whether the layer has a short convolution in the place of attention."""
    return plan.mixer.name == "shortconv"


def of_convolutions(cfg: DictConfig) -> dict[str, Any]:
    """The options of layers that have a short convolution in the place of attention."""
    found = next((plan.mixer.node for plan in layer_plans(cfg) if convolves(plan)), None)
    return {} if found is None else {"conv_L_cache": found["conv_size"], "conv_bias": found["bias"]}


def whole(value: float) -> float:
    """As an integer, where the value differs from one only by rounding."""
    return round(value) if math.isclose(value, round(value), rel_tol=1e-12) else value


def rope_by_layer_type(cfg: DictConfig) -> dict[str, Any] | None:
    """RoPE's parameters for each type of layer, where they differ; beside them, whether YaRN truncates."""
    kinds = layer_types(cfg)
    if kinds is None or {"linear_attention", "conv"} & set(kinds):  # which have no positions
        return None
    of_kinds = {
        kind: plan.pos.node for kind, plan in zip(kinds, layer_plans(cfg), strict=True) if "base" in plan.pos.node
    }
    both = {kind: rope_parameters(node, node.get("base", 10000.0), 1.0) for kind, node in of_kinds.items()}
    if len(both) < 2 or len({str(one) for one in both.values()}) < 2:
        return None
    left_out = ("partial_rotary_factor", "truncate")
    inner = {kind: {name: v for name, v in one.items() if name not in left_out} for kind, one in both.items()}
    truncates = all(one.get("truncate", True) for one in both.values())
    return inner if truncates else inner | {"truncate": False}


def rope_parameters(pos: Mapping[str, Any], base: float, fraction: float) -> dict[str, Any]:
    scaling = pos.get("scaling", "none")
    names = ("factor", "beta_fast", "beta_slow", "attention_factor", "low_freq_factor", "high_freq_factor", "mscale",
             "mscale_all_dim", "truncate", "short_factor", "long_factor")  # fmt: skip
    given = with_defaults(dict(pos))
    entries = {name: plain(given[name]) for name in names if given.get(name) is not None}
    if pos.get("trained_len") is not None and scaling != "dynamic":  # whose length is max_position_embeddings
        entries["original_max_position_embeddings"] = pos["trained_len"]
    kind = "default" if scaling == "none" else scaling
    return {"rope_type": kind, "rope_theta": base, "partial_rotary_factor": fraction, **entries}
