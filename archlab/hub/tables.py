"""Where each family's tensors go: names in the released files on the left, ours on the right."""

from collections.abc import Mapping
from typing import Any

from archlab.hub.rows import (
    Table,
    by_group,
    constant,
    grouped,
    halves,
    halves_swapped,
    halves_swapped_back,
    joined_transposed,
    linear,
    norm,
    one_of_all,
    queries_keys_values,
    same,
    split_transposed,
    stacked,
    transposed,
    transposed_back,
)


def nothing_beyond(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a release whose weights predict the next token alone."""
    return ()


LAYER, ATTENTION = "layers.{}", "layers.{}.mixer"
OURS_QKV = tuple(f"{ATTENTION}.{name}_proj" for name in "qkv")
FIRST, SECOND = f"{LAYER}.residual.norms.0", f"{LAYER}.residual.norms.1"
AFTER_FIRST, AFTER_SECOND = f"{LAYER}.residual.branch_norms.0", f"{LAYER}.residual.branch_norms.1"
UP, DOWN, GATE = f"{LAYER}.ffn.up_proj", f"{LAYER}.ffn.down_proj", f"{LAYER}.ffn.gate_proj"
OUT = f"{ATTENTION}.out_proj"


def ends(table: str, final_norm: str, head: str = "lm_head") -> Table:
    return same(f"{table}.weight", "embedding.weight") + norm(final_norm, "final_norm") + linear(head, "head")


def separate(theirs: str, out: str) -> Table:
    q, k, v = (linear(f"{theirs}.{name}_proj", f"{ATTENTION}.{name}_proj") for name in "qkv")
    return q + k + v + linear(f"{theirs}.{out}", OUT)


ENDS = ends("model.embed_tokens", "model.norm")
SELF = "model.layers.{}.self_attn"
MLP = "model.layers.{}.mlp"
SEPARATE = separate(SELF, "o_proj")
QK_NORMS = norm(f"{SELF}.q_norm", f"{ATTENTION}.q_norm") + norm(f"{SELF}.k_norm", f"{ATTENTION}.k_norm")
STABLELM_QK_NORMS = norm(f"{SELF}.q_layernorm.norms.{{head}}", f"{ATTENTION}.q_norm.heads.{{head}}") + norm(
    f"{SELF}.k_layernorm.norms.{{kv_head}}", f"{ATTENTION}.k_norm.heads.{{kv_head}}"
)
COHERE_QK_NORMS = one_of_all(f"{SELF}.q_norm.weight", f"{ATTENTION}.q_norm.heads.{{head}}.gain") + one_of_all(
    f"{SELF}.k_norm.weight", f"{ATTENTION}.k_norm.heads.{{kv_head}}.gain"
)
GATED = linear(f"{MLP}.gate_proj", GATE) + linear(f"{MLP}.up_proj", UP) + linear(f"{MLP}.down_proj", DOWN)
FUSED_GATE = linear(f"{MLP}.gate_up_proj", GATE, UP, split=halves, join=stacked) + linear(f"{MLP}.down_proj", DOWN)
INPUT = norm("model.layers.{}.input_layernorm", FIRST)
PRE = INPUT + norm("model.layers.{}.post_attention_layernorm", SECOND)
LLAMA = ENDS + SEPARATE + GATED + PRE


def of_layers(theirs: str, **ours: str) -> Table:
    return tuple(row for name, mine in ours.items() for row in norm(f"{theirs}.{name}", mine))


GEMMA2_NORMS = of_layers(
    "model.layers.{}",
    input_layernorm=FIRST,
    post_attention_layernorm=AFTER_FIRST,
    pre_feedforward_layernorm=SECOND,
    post_feedforward_layernorm=AFTER_SECOND,
)
GLM4_NORMS = of_layers(
    "model.layers.{}",
    input_layernorm=FIRST,
    post_self_attn_layernorm=AFTER_FIRST,
    post_attention_layernorm=SECOND,
    post_mlp_layernorm=AFTER_SECOND,
)
OLMO2_NORMS = of_layers("model.layers.{}", post_attention_layernorm=FIRST, post_feedforward_layernorm=SECOND)


def plain(up: str, down: str) -> Table:
    return linear(up, UP) + linear(down, DOWN)


def megatron(attention: str, mlp: str) -> Table:
    """A layer's matrices as Megatron-LM names them; one matrix holds each head's query, key and value together."""
    return (
        linear(f"{attention}.query_key_value", *OURS_QKV, split=by_group, join=grouped)
        + linear(f"{attention}.dense", OUT)
        + plain(f"{mlp}.dense_h_to_4h", f"{mlp}.dense_4h_to_h")
    )


T = "transformer.h.{}"
GPT2_ROWS = (
    ends("transformer.wte", "transformer.ln_f")
    + same("transformer.wpe.weight", "position.table.weight")
    + linear(f"{T}.attn.c_attn", *OURS_QKV, split=split_transposed, join=joined_transposed)
    + linear(f"{T}.attn.c_proj", OUT, split=transposed, join=transposed_back)
    + linear(f"{T}.mlp.c_fc", UP, split=transposed, join=transposed_back)
    + linear(f"{T}.mlp.c_proj", DOWN, split=transposed, join=transposed_back)
    + of_layers(T, ln_1=FIRST, ln_2=SECOND)
)
GPTJ_ROWS = (
    ends("transformer.wte", "transformer.ln_f")
    + separate(f"{T}.attn", "out_proj")
    + plain(f"{T}.mlp.fc_in", f"{T}.mlp.fc_out")
    + of_layers(T, ln_1=FIRST)
)
N = "gpt_neox.layers.{}"
NEOX_ROWS = (
    ends("gpt_neox.embed_in", "gpt_neox.final_layer_norm")
    + megatron(f"{N}.attention", f"{N}.mlp")
    + of_layers(N, input_layernorm=FIRST, post_attention_layernorm=SECOND)
)
BLOOM_ROWS = (
    ends("transformer.word_embeddings", "transformer.ln_f")
    + norm("transformer.word_embeddings_layernorm", "embed_norm")
    + megatron(f"{T}.self_attention", f"{T}.mlp")
    + of_layers(T, input_layernorm=FIRST, post_attention_layernorm=SECOND)
)
FALCON_ROWS = (
    ends("transformer.word_embeddings", "transformer.ln_f")
    + megatron(f"{T}.self_attention", f"{T}.mlp")
    + of_layers(T, input_layernorm=FIRST, ln_attn=FIRST, ln_mlp=SECOND, post_attention_layernorm=SECOND)
    # Parallel branches have the first, or the second and the third; branches in turn the first and the last.
)
M = "transformer.blocks.{}"
MPT_ROWS = (
    ends("transformer.wte", "transformer.norm_f")
    + linear(f"{M}.attn.Wqkv", *OURS_QKV, split=queries_keys_values, join=stacked)
    + linear(f"{M}.attn.out_proj", OUT)
    + plain(f"{M}.ffn.up_proj", f"{M}.ffn.down_proj")
    + of_layers(M, norm_1=FIRST, norm_2=SECOND)
)
O = "model.decoder.layers.{}"  # noqa: E741
OPT_ROWS = (
    ends("model.decoder.embed_tokens", "model.decoder.final_layer_norm")
    + same("model.decoder.embed_positions.weight", "position.table.weight")
    + linear("model.decoder.project_in", "embed_proj")
    + linear("model.decoder.project_out", "head_proj")
    + separate(f"{O}.self_attn", "out_proj")
    + plain(f"{O}.fc1", f"{O}.fc2")
    + of_layers(O, self_attn_layer_norm=FIRST, final_layer_norm=SECOND)
)
PHI_ROWS = (
    ends("model.embed_tokens", "model.final_layernorm")
    + separate(SELF, "dense")
    + of_layers(SELF, q_layernorm=f"{ATTENTION}.q_norm", k_layernorm=f"{ATTENTION}.k_norm")
    + plain(f"{MLP}.fc1", f"{MLP}.fc2")
    + INPUT
)

PHI3_ROWS = (
    ENDS
    + linear(f"{SELF}.qkv_proj", *OURS_QKV, split=queries_keys_values, join=stacked)
    + linear(f"{SELF}.o_proj", OUT)
    + FUSED_GATE
    + PRE
)

ACT = f"{MLP}.act_fn"
APERTUS_ROWS = (
    ENDS
    + SEPARATE
    + QK_NORMS
    + plain(f"{MLP}.up_proj", f"{MLP}.down_proj")
    + tuple(row for name in ("alpha_p", "alpha_n") for row in same(f"{ACT}.{name}", f"{LAYER}.ffn.activation.{name}"))
    + of_layers("model.layers.{}", attention_layernorm=FIRST, feedforward_layernorm=SECOND)
)
XIELU_CONSTANTS = constant(f"{ACT}.beta", 0.5) + constant(f"{ACT}.eps", -1e-6)
NEMOTRON_ROWS = ENDS + SEPARATE + plain(f"{MLP}.up_proj", f"{MLP}.down_proj") + PRE
SWAPPED = tuple(
    row
    for name in ("q_proj", "k_proj")
    for row in linear(f"{SELF}.{name}", f"{ATTENTION}.{name}", split=halves_swapped, join=halves_swapped_back)
)
NANOCHAT_ROWS = (
    ENDS
    + SWAPPED
    + linear(f"{SELF}.v_proj", f"{ATTENTION}.v_proj")
    + linear(f"{SELF}.o_proj", OUT)
    + plain(f"{MLP}.fc1", f"{MLP}.fc2")
)
STARCODER2_ROWS = ENDS + SEPARATE + plain(f"{MLP}.c_fc", f"{MLP}.c_proj") + PRE
L = "model.layers.{}"
LFM2_ROWS = (
    ends("model.embed_tokens", "model.embedding_norm")
    + separate(SELF, "out_proj")
    + of_layers(SELF, q_layernorm=f"{ATTENTION}.q_norm", k_layernorm=f"{ATTENTION}.k_norm")
    + tuple(
        row for name in ("in_proj", "conv", "out_proj") for row in linear(f"{L}.conv.{name}", f"{ATTENTION}.{name}")
    )
    + linear(f"{L}.feed_forward.w1", GATE)
    + linear(f"{L}.feed_forward.w3", UP)
    + linear(f"{L}.feed_forward.w2", DOWN)
    + of_layers(L, operator_norm=FIRST, ffn_norm=SECOND)
)

B = "backbone.layers.{}"
MAMBA2_ROWS = (
    ends("backbone.embeddings", "backbone.norm_f")
    + linear(f"{B}.mixer.in_proj", f"{ATTENTION}.in_proj")
    + linear(f"{B}.mixer.conv1d", f"{ATTENTION}.conv")
    + tuple(row for name in ("A_log", "dt_bias", "D") for row in same(f"{B}.mixer.{name}", f"{ATTENTION}.{name}"))
    + norm(f"{B}.mixer.norm", f"{ATTENTION}.norm")
    + linear(f"{B}.mixer.out_proj", OUT)
    + of_layers(B, norm=FIRST)
)

W_PACK = linear(f"{SELF}.W_pack", *OURS_QKV, split=queries_keys_values, join=stacked)
BAICHUAN_ROWS = ENDS + W_PACK + linear(f"{SELF}.o_proj", OUT) + GATED + PRE
QWEN_ROWS = (
    ends("transformer.wte", "transformer.ln_f")
    + linear(f"{T}.attn.c_attn", *OURS_QKV, split=queries_keys_values, join=stacked)
    + linear(f"{T}.attn.c_proj", OUT)
    + linear(f"{T}.mlp.w2", GATE)
    + linear(f"{T}.mlp.w1", UP)
    + linear(f"{T}.mlp.c_proj", DOWN)
    + of_layers(T, ln_1=FIRST, ln_2=SECOND)
)
C = "transformer.layers.{}"
CHATGLM_ROWS = (  # each layer norms its own input, which is the output of the layer before it
    same("transformer.word_embeddings.weight", "embedding.weight")
    + norm("transformer.layers.0.input_layernorm", "embed_norm")
    + norm("transformer.layers.{next}.input_layernorm", SECOND)
    + norm("transformer.final_layernorm", "layers.{last}.residual.norms.1")
    + norm(f"{C}.post_attention_layernorm", FIRST)
    + megatron(f"{C}.attention", f"{C}.mlp")
)
G = "transformer.encoder.layers.{}"
CHATGLM2_ROWS = (
    ends("transformer.embedding.word_embeddings", "transformer.encoder.final_layernorm", "transformer.output_layer")
    + linear(f"{G}.self_attention.query_key_value", *OURS_QKV, split=queries_keys_values, join=stacked)
    + linear(f"{G}.self_attention.dense", OUT)
    + linear(f"{G}.mlp.dense_h_to_4h", GATE, UP, split=halves, join=stacked)
    + linear(f"{G}.mlp.dense_4h_to_h", DOWN)
    + of_layers(G, input_layernorm=FIRST, post_attention_layernorm=SECOND)
)
