"""The fields of a config.json that are read, and the type of each; a number written as a text is refused."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Strict, TypeAdapter, ValidationError

from archlab.base.errors import UserError
from archlab.hub.reading import Config

WHOLE = """
vocab_size padded_vocab_size hidden_size d_model n_embd n_embed num_hidden_layers n_layer n_layers num_layers
num_attention_heads n_head n_heads num_key_value_heads num_kv_heads multi_query_group_num head_dim kv_channels
intermediate_size inner_hidden_size ffn_hidden_size ffn_dim n_inner expansion_ratio word_embed_proj_dim
max_position_embeddings n_positions seq_length sliding_window sliding_window_pattern _sliding_window_pattern rotary_dim
num_ln_in_parallel_attn pre_seq_len original_max_position_embeddings no_rope_layer_interval
num_local_experts num_experts n_routed_experts num_experts_per_tok moe_intermediate_size n_shared_experts n_group
topk_group first_k_dense_replace decoder_sparse_step moe_layer_freq num_nextn_predict_layers num_mtp_layers
shared_expert_intermediate_size kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim
linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim linear_num_key_heads linear_num_value_heads
full_attention_interval max_window_layers
block_ff_dim block_multiple_of conv_L_cache
num_heads state_size n_groups expand conv_kernel
quantization_bit intermediate_size_mlp interleave_moe_layer_step attention_chunk_size floor_scale
""".split()

NUMBERS = """
rms_norm_eps layer_norm_eps layer_norm_epsilon layernorm_epsilon rope_theta rotary_emb_base rope_local_base_freq
rotary_pct partial_rotary_factor rope_ratio logit_scale query_pre_attn_scalar attn_logit_softcapping
final_logit_softcapping clip_qkv softmax_scale z_loss_weight factor beta_fast beta_slow attention_factor low_freq_factor
high_freq_factor mscale mscale_all_dim norm_eps norm_epsilon block_ffn_dim_multiplier routed_scaling_factor swiglu_alpha swiglu_limit
attn_scale embedding_multiplier attention_multiplier residual_multiplier logits_scaling
""".split()

FLAGS = """
tie_word_embeddings attention_bias mlp_bias bias enable_bias use_qkv_bias add_qkv_bias add_bias_linear no_bias
use_parallel_residual parallel_attn new_decoder_architecture multi_query multi_query_attention alibi qk_ln qk_layernorm
use_qk_norm use_sliding_window use_dynamic_ntk use_logn_attn do_layer_norm_before layer_norm_elementwise_affine
_remove_final_layer_norm apply_residual_connection_post_layernorm scale_attn_by_inverse_layer_idx scale_attn_weights
position_encoding_2d rmsnorm post_layer_norm original_rope truncate norm_topk_prob rope_interleave
use_bidirectional_attention use_bias conv_bias tie_embedding
block_auto_adjust_ff_dim block_use_swiglu qk_norm use_conv_bias
""".split()

WORDS = "model_type hidden_act hidden_activation activation activation_function rope_type type attn_type topk_method scoring_func _name_or_path".split()

WITHIN = ("rope_parameters", "rope_scaling", "attn_config", "full_attention", "sliding_attention")
"""Fields that hold other fields."""

TYPES: Mapping[str, Any] = {
    **dict.fromkeys(WHOLE, Annotated[int, Strict()]),
    **dict.fromkeys(NUMBERS, Annotated[float, Strict()]),
    **dict.fromkeys(FLAGS, Annotated[bool, Strict()]),
    **dict.fromkeys(WORDS, Annotated[str, Strict()]),
    **dict.fromkeys(WITHIN, dict[str, Any]),
    "attn_temperature_tuning": bool
    | Annotated[int, Strict()],  # Llama 4's own releases have a number that counts as true
    "moe_layers": list[Annotated[int, Strict()]],
    "layer_types": list[Annotated[str, Strict()]],
    "mlp_only_layers": list[Annotated[int, Strict()]],
    "no_rope_layers": list[Annotated[int, Strict()]],
    "time_step_limit": list[Annotated[float, Strict()]],
    "full_attn_idxs": list[Annotated[int, Strict()]],
    **dict.fromkeys(("short_factor", "long_factor"), list[Annotated[float, Strict()]]),
}


def check_fields(config: Config, kind: str, inside: str = "") -> None:
    """Raises UserError at the first field that is not of its type; a field that is null counts as missing."""
    for name in TYPES.keys() & config.keys():
        value, where = config[name], f"{inside}{name}"
        if value is None:
            continue
        try:
            TypeAdapter(TYPES[name]).validate_python(value)
        except ValidationError as error:
            wanted = error.errors()[0]["msg"].removeprefix("Input ").lower()
            raise UserError(
                f"config.json: holds a value of the wrong type for a {kind} model: {where}={str(value)[:60]!r}: {wanted}"
            ) from None
        if name in WITHIN:
            check_fields(value, kind, f"{where}.")
