"""Each family's config.json as overrides."""

from collections.abc import Sequence

from archlab.hub import reading as read
from archlab.hub.reading import Config, Words


def llama(c: Config) -> Words:
    return [*without_positions(c), *read.rope(c)]


def without_positions(c: Config) -> Words:
    """A llama's blocks, for families that have positions of their own."""
    mlp = read.ffn(c, "hidden_act", read.GATED, c.get("mlp_bias", False))
    bias = c.get("attention_bias", False)
    return [*read.rms(c), "residual=pre", *mlp, "mask=causal", *read.llama_sizes(c),
            *read.biases(bias, bias), *read.embedding(c, tied=False)]  # fmt: skip


def without(words: Words, *groups: str) -> Words:
    return [word for word in words if word.split("=")[0].split(".")[0] not in groups]


def window(c: Config) -> Words:
    return ["mask=causal"] if c.get("sliding_window") is None else ["mask=window", f"mask.window={c['sliding_window']}"]


def some_windows(c: Config, has_window: Sequence[bool]) -> Words:
    """A window in these layers where use_sliding_window asks for one, or as layer_types says."""
    length, n_layers = c.get("sliding_window") if c.get("use_sliding_window") else None, c["num_hidden_layers"]
    if kinds := c.get("layer_types"):
        local = numbered(kinds, n_layers, "sliding_attention", "full_attention")
        has_window = [i in local for i in range(n_layers)]
    if length is None and c.get("layer_types") and any(has_window):
        raise read.unsupported("sliding_window", None, "the length of the window of sliding_attention")
    if length is None or not any(has_window):
        return ["mask=causal"]
    at = slices([not this for this in has_window])
    return [*window({"sliding_window": length}), *(f"{where}.mask=causal" for where in at)]


def last_layers(c: Config) -> list[bool]:
    """The layers from max_window_layers on."""
    first = c.get("max_window_layers", 28)
    return [i >= first for i in range(c["num_hidden_layers"])]


def mistral(c: Config) -> Words:
    return without(llama(c), "mask") + window(c)


def phi3(c: Config) -> Words:
    """Rotates the share of each head that the configuration says, and may have a window."""
    share = (c.get("rope_parameters") or {}).get("partial_rotary_factor", c.get("partial_rotary_factor", 1.0))
    words = without(without_positions({**c, "attention_bias": False, "mlp_bias": False}), "mask")
    return words + window(c) + read.rope({**c, "partial_rotary_factor": share}, 0.0)


def rotating(c: Config) -> list[bool]:
    """Which layers have positions: all but each fourth, or as no_rope_layers says, whose 0 is a layer without."""
    n_layers, period = c["num_hidden_layers"], c.get("no_rope_layer_interval", 4)
    said = c.get("no_rope_layers") or [(i + 1) % period != 0 for i in range(n_layers)]
    if len(said) < n_layers:
        raise read.unsupported("no_rope_layers", f"{len(said)} of them", f"one for each of {n_layers} layers")
    return [bool(turned) for turned in said[:n_layers]]


def smollm3(c: Config) -> Words:
    """The layers of which no_rope_layers says 0 have no positions, and the window where there is one."""
    bare = [not turned for turned in rotating(c)]
    asked = bool(c.get("layer_types")) or c.get("use_sliding_window", False)  # layer_types count without it
    words = [*without(llama(c), "mask"), *some_windows({**c, "use_sliding_window": asked}, bare)]
    if all(bare):
        return [*without(words, "pos"), "pos=none"]
    return [*words, *(f"{where}.pos=none" for where in slices(bare))]


def qwen2(c: Config) -> Words:
    words = without(llama({**c, "attention_bias": False}), "mask")
    return [*words, *some_windows(c, last_layers(c)), "mixer.qkv_bias=true"]


def qwen3(c: Config) -> Words:
    return [*without(llama(c), "mask"), *some_windows(c, last_layers(c)), "mixer.qk_norm=head"]


def glm(c: Config) -> Words:
    words = without_positions({**c, "attention_bias": False})
    return words + read.rope(c, 0.5, "interleaved") + [f"mixer.qkv_bias={read.word(c.get('attention_bias'))}"]


def glm4(c: Config) -> Words:
    return [*without(glm(c), "residual"), "residual=sandwich"]


def gemma(c: Config, activation: str = "hidden_act") -> Words:
    """Of the first Gemma hidden_act alone counts, and gelu means its approximation by a tanh there."""
    asked = c.get(activation) or "gelu_pytorch_tanh"
    meant = "gelu_pytorch_tanh" if (activation, asked) == ("hidden_act", "gelu") else asked
    words = without(llama({**c, "hidden_act": "silu"}), "embed", "norm", "ffn")
    words += read.ffn({activation: meant}, activation, read.GATED, c.get("mlp_bias", False))
    return words + read.rms(c, unit_offset=True) + read.embedding(c, "sqrt_d_model")


def capped(c: Config) -> Words:
    words = [f"mixer.scale={c['query_pre_attn_scalar'] ** -0.5}"]
    words += [f"mixer.softcap={cap}"] if (cap := c.get("attn_logit_softcapping")) is not None else []
    return words + (["head=linear", *caps] if (caps := capped_logits(c)) else [])


def capped_logits(c: Config) -> Words:
    """A cap of 0 is said too, and refused as the option that it is: only null is none."""
    return [f"head.softcap={cap}"] if (cap := c.get("final_logit_softcapping")) is not None else []


def slices(chosen: list[bool]) -> Words:
    """The chosen layers as slices of rules: one where they are the last of each period, otherwise one for each layer."""
    n_layers = len(chosen)
    period = chosen.index(True) + 1 if any(chosen) else n_layers + 1
    if chosen == [(i + 1) % period == 0 for i in range(n_layers)]:
        return [f"layers[{period - 1}::{period}]"] if period <= n_layers else []
    return [f"layers[{i}::{n_layers}]" for i, this in enumerate(chosen) if this]


def global_layers(c: Config, period: int) -> Words:
    """The layers that attend to everything, as slices of rules: the last of each period, or as `layer_types` has them."""
    n_layers = c["num_hidden_layers"]
    every = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(n_layers)]
    kinds = c.get("layer_types") or every
    of_kind = numbered(kinds, n_layers, "full_attention", "sliding_attention")
    return slices([i in of_kind for i in range(n_layers)])


def numbered(kinds: Sequence[str], n_layers: int, kind: str, other: str) -> list[int]:
    """The layers of one kind, where each is of that or of the other."""
    if unknown := sorted(set(kinds) - {kind, other}):
        raise read.unsupported("layer_types", unknown[0], f"{kind} or {other}")
    if len(kinds) != n_layers:
        raise read.unsupported("layer_types", f"{len(kinds)} of them", f"one for each of {n_layers} layers")
    return [i for i, one in enumerate(kinds) if one == kind]


def alternating(c: Config, period: int) -> Words:
    """Local layers, and global ones between them."""
    if all_global(c):
        return ["mask=causal"]
    local = ["mask=window", f"mask.window={c['sliding_window']}"]
    return [*local, *(f"{where}.mask=causal" for where in global_layers(c, period))]


def all_global(c: Config) -> bool:
    """Whether `layer_types` names no local layer."""
    return set(c.get("layer_types") or ()) == {"full_attention"}


def gemma2(c: Config) -> Words:
    words = without(gemma(c, "hidden_activation"), "residual", "mask")
    return [*words, "residual=sandwich", *alternating(c, 2), *capped(c)]


BESIDE_TWO_ROPES = ("rope_scaling", "rope_theta", "original_max_position_embeddings")
"""Fields beside rope_parameters that do not count where each layer type has its own."""


def two_ropes(c: Config, period: int, base: float, local_base: float) -> Words:
    """RoPE's parameters in local layers and, as rules, in global ones; rope_scaling is of the global ones alone.

    Whether YaRN truncates is said once, beside the two.
    """
    both = c.get("rope_parameters") or {}
    wide = both.get("full_attention") or {**(c.get("rope_scaling") or {}), "rope_theta": base}
    local = both.get("sliding_attention") or {"rope_theta": local_base}
    truncate = bool(both.get("truncate", True))
    for kind, parameters in (("full_attention", wide), ("sliding_attention", local)):
        if parameters.get("truncate", truncate) != truncate:
            can = f"the truncate={truncate} of rope_parameters, which is of all layers"
            raise read.unsupported(f"rope_parameters.{kind}.truncate", parameters["truncate"], can)
    pos, elsewhere = (
        read.rope({**c, **dict.fromkeys(BESIDE_TWO_ROPES), "rope_parameters": {**parameters, "truncate": truncate}})
        for parameters in (local, wide)
    )
    if pos == elsewhere:
        return pos
    if all_global(c):
        return elsewhere
    return [*pos, *(f"{where}.{word}" for where in global_layers(c, period) for word in elsewhere)]


def gemma3(c: Config) -> Words:
    if c.get("use_bidirectional_attention"):
        raise read.unsupported("use_bidirectional_attention", True, "use_bidirectional_attention=False")
    kinds = c.get("layer_types") or ()
    period = c.get("sliding_window_pattern", c.get("_sliding_window_pattern", 6))
    period = kinds.index("full_attention") + 1 if "full_attention" in kinds else period
    words = without(gemma({**c, "rope_parameters": None}, "hidden_activation"), "residual", "mask", "pos")
    uncapped = {**c, "attn_logit_softcapping": None}  # its class has the field and caps no scores
    pos = two_ropes(c, period, c.get("rope_theta", 1e6), c.get("rope_local_base_freq", 10000.0))
    return [*words, "residual=sandwich", *alternating(c, period), *pos, "mixer.qk_norm=head", *capped(uncapped)]


def clipped(c: Config) -> Words:
    """Queries, keys and values clamped, where the configuration says so."""
    return [f"mixer.clip={cap}"] if (cap := c.get("clip_qkv")) is not None else []


def olmo(c: Config) -> Words:
    words = without(llama({**c, "rms_norm_eps": 1e-5}), "norm")
    return [*words, "norm=layer", "norm.eps=1e-5", "norm.affine=false", *clipped(c)]


def olmo2(c: Config) -> Words:
    return [*without(llama(c), "residual"), "residual=branch_norm", "mixer.qk_norm=width"]


def olmo3(c: Config) -> Words:
    base, local_base = c.get("rope_theta", 500000.0), 500000.0
    words = without(olmo2({**c, "rope_parameters": None, "rope_scaling": None}), "mask", "pos")
    return [*words, *alternating(c, 4), *two_ropes(c, 4, base, local_base)]


def check_rotated(c: Config, share: float) -> None:
    """Raises UserError where a class that cuts the rotated features off by their number rotates one: it then rotates two copies."""
    asked = (c.get("rope_parameters") or {}).get("partial_rotary_factor", c.get("partial_rotary_factor", share))
    if int(asked * (c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"])) == 1:
        raise read.unsupported("partial_rotary_factor", asked, "one that rotates two features of a head or more")


def stablelm(c: Config) -> Words:
    """The norms of queries and keys have no shift."""
    check_rotated(c, 0.25)
    per_head = bool(c.get("qk_layernorm"))
    words = without(without_positions({**c, "rms_norm_eps": 0, "attention_bias": False}), "norm", "residual")
    residual = "parallel" if c.get("use_parallel_residual") else "pre"
    return words + read.layer_norm(c, "layer_norm_eps") + [f"residual={residual}", *read.rope(c, 0.25),
            f"mixer.qkv_bias={read.word(c.get('use_qkv_bias'))}",
            *(["mixer.qk_norm=each_head", "mixer.qk_norm_kind=layer_no_shift", f"mixer.qk_norm_eps={c['layer_norm_eps']}"] if per_head else [])]  # fmt: skip


def cohere(c: Config) -> Words:
    words = without(without_positions({**c, "rms_norm_eps": 0}), "norm", "residual", "embed")
    norms = read.layer_norm(c, "layer_norm_eps", shift=False)
    head = ["head=linear", f"head.scale={c.get('logit_scale', 0.0625)}"]
    words += ["mixer.qk_norm=each_head"] if c.get("use_qk_norm") else []
    return words + norms + ["residual=parallel", *read.rope(c, layout="interleaved"), *head, *read.embedding(c)]


def cohere2(c: Config) -> Words:
    """Local layers with RoPE; the global ones have no positions."""
    read.only(c, use_qk_norm=False)
    period = c.get("sliding_window_pattern") or 4
    if all_global(c):
        return [*without(cohere(c), "pos"), "pos=none"]
    bare = [f"{where}.pos=none" for where in global_layers(c, period)]
    return [*without(cohere(c), "mask"), *alternating(c, period), *bare]


def phi(c: Config) -> Words:
    check_rotated(c, 0.5)
    return [*read.layer_norm(c, "layer_norm_eps"), "residual=parallel", *read.ffn(c, "hidden_act", read.PLAIN, True),
            *read.rope(c, 0.5), "mask=causal", *read.llama_sizes(c), *read.biases(True, True), "head=linear",
            *(["mixer.qk_norm=head"] if c.get("qk_layernorm") else []), "head.bias=true", *read.embedding(c, tied=False)]  # fmt: skip


def gpt2(c: Config) -> Words:
    read.only(c, scale_attn_by_inverse_layer_idx=False, scale_attn_weights=True)
    d_ff = c.get("n_inner") or 4 * c["n_embd"]
    return [*read.layer_norm(c), "residual=pre", *read.ffn(c, "activation_function", read.PLAIN, True),
            *read.table(c, "n_positions"), "mask=causal", *read.sizes(c, "n_layer", "n_embd", "n_head", d_ff),
            *read.biases(True, True), *read.embedding(c)]  # fmt: skip


def gptj(c: Config) -> Words:
    """Of positions its class reads rotary_dim alone."""
    d_ff, head_dim = c.get("n_inner") or 4 * c["n_embd"], c["n_embd"] // c["n_head"]
    fraction = (c.get("rotary_dim") or head_dim) / head_dim
    return [*read.layer_norm(c), "residual=parallel", *read.ffn(c, "activation_function", read.PLAIN, True),
            *read.rope({}, fraction, "interleaved"), "mask=causal", *read.sizes(c, "n_layer", "n_embd", "n_head", d_ff),
            *read.biases(False, False), "head=linear", "head.bias=true", *read.embedding(c, tied=False)]  # fmt: skip


def gpt_neox(c: Config) -> Words:
    """Its class makes the angles by a head_dim, if there is one, and heads as wide as hidden_size over their number.

    Of the base and the rotated share it reads its own names for them, or those inside rope_parameters.
    """
    width = c["hidden_size"] // c["num_attention_heads"]
    if (c.get("head_dim") or width) != width:
        can = f"head_dim={width}, which is hidden_size over num_attention_heads"
        raise read.unsupported("head_dim", c["head_dim"], can)
    residual = ["residual=parallel", "residual.norms=2"] if c.get("use_parallel_residual", True) else ["residual=pre"]
    bias = c.get("attention_bias", True)
    foreign = ("rope_theta", "partial_rotary_factor")
    c = {name: value for name, value in c.items() if name not in foreign} | {
        "num_key_value_heads": None,
        "head_dim": None,
    }
    return [*read.layer_norm(c, "layer_norm_eps"), *residual, *read.ffn(c, "hidden_act", read.PLAIN, True),
            *read.rope(c, 0.25), "mask=causal", *read.llama_sizes(c), *read.biases(bias, bias),
            *read.embedding(c, tied=False)]  # fmt: skip


def bloom(c: Config) -> Words:
    read.only(c, apply_residual_connection_post_layernorm=False)
    width = "hidden_size" if "hidden_size" in c else "n_embed"
    return [*read.layer_norm(c), "residual=pre", "ffn=gelu_tanh", "ffn.bias=true", "pos=alibi", "mask=causal",
            *read.sizes(c, "n_layer", width, "n_head", 4 * c[width]), *read.biases(True, True), "embed.norm=true",
            *read.embedding(c)]  # fmt: skip


def mpt(c: Config) -> Words:
    attention = c.get("attn_config") or {}
    read.only(attention, alibi=True, qk_ln=False, attn_type="multihead_attention", softmax_scale=None)
    read.only(c, expansion_ratio=4)
    if (heads := c["n_heads"]) & (heads - 1):
        raise read.unsupported("n_heads", heads, "a power of two, for which ALiBi's slopes are those of archlab")
    return [*read.layer_norm(c, shift=False), "residual=pre", "ffn=gelu", "ffn.bias=false", "pos=alibi", "mask=causal",
            *read.sizes(c, "n_layers", "d_model", "n_heads", 4 * c["d_model"]), *read.biases(False, False),
            *(clipped(attention) if attention.get("clip_qkv") else []), *read.embedding(c)]  # fmt: skip


def opt(c: Config) -> Words:
    read.only(c, _remove_final_layer_norm=False)
    bias, narrow = c.get("enable_bias", True), c["word_embed_proj_dim"] != c["hidden_size"]
    widths = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    return ["norm=layer", f"norm.affine={read.word(c.get('layer_norm_elementwise_affine', True))}",
            f"residual={'pre' if c.get('do_layer_norm_before', True) else 'post'}",
            *read.ffn(c, "activation_function", read.PLAIN, bias), *read.table(c, "max_position_embeddings", 2),
            "mask=causal", *read.sizes(c, *widths, c["ffn_dim"]), *read.biases(bias, bias), *read.embedding(c),
            *([f"embed.width={c['word_embed_proj_dim']}"] if narrow else [])]  # fmt: skip


def granite(c: Config) -> Words:
    """A llama with factors on embeddings, scores, what branches add, and logits."""
    scale, head_dim = (
        c.get("attention_multiplier", 1.0),
        c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
    )
    embed = c.get("embedding_multiplier", 1.0)
    return [*without(llama(c), "embed"), f"residual.scale={float(c.get('residual_multiplier', 1.0))}",
            *([] if scale == head_dim**-0.5 else [f"mixer.scale={float(scale)}"]),
            "head=linear", f"head.scale={1 / c.get('logits_scaling', 1.0)}",
            *read.embedding(c, "none" if embed == 1 else str(float(embed)), tied=False)]  # fmt: skip


def apertus(c: Config) -> Words:
    read.only(c, qk_norm=True, mlp_bias=False)
    words = without(llama({**c, "hidden_act": "silu"}), "ffn")
    return [*words, *read.ffn(c, "hidden_act", {**read.PLAIN, "xielu": "xielu"}), "mixer.qk_norm=head"]


def nemotron(c: Config) -> Words:
    words = without(without_positions({**c, "rms_norm_eps": 0, "hidden_act": "silu"}), "norm", "ffn")
    return [*words, *read.layer_norm(c, "norm_eps", unit_offset=True), *read.rope(c, 0.5),
            *read.ffn(c, "hidden_act", read.PLAIN, c.get("mlp_bias", False))]  # fmt: skip


def nanochat(c: Config) -> Words:
    """Queries and keys are normed after they are rotated, which is the same before it: a rotation keeps their length.

    A scaling of RoPE that makes them longer is undone by that norm, and refused.
    """
    kind = (c.get("rope_scaling") or c.get("rope_parameters") or {}).get("rope_type", "default")
    if kind in ("yarn", "longrope"):
        raise read.unsupported("rope_type", kind, "one that leaves the length of queries and keys as it is")
    words = without(llama({**c, "hidden_act": "silu", "mlp_bias": False}), "norm", "ffn")
    return [*words, *read.rms(c, affine=False), *read.ffn(c, "hidden_act", read.PLAIN), "embed.norm=true",
            "mixer.qk_norm=head", "head=linear", *capped_logits(c)]  # fmt: skip


def starcoder2(c: Config) -> Words:
    bias, heads = c.get("use_bias", True), ("num_hidden_layers", "hidden_size", "num_attention_heads")
    return [*read.layer_norm(c, "norm_epsilon"), "residual=pre", *read.ffn(c, "hidden_act", read.PLAIN, bias),
            *read.rope(c), *window(c), *read.sizes(c, *heads, c["intermediate_size"], c.get("num_key_value_heads")),
            *read.biases(bias, bias), *read.embedding(c)]  # fmt: skip


def lfm2(c: Config) -> Words:
    """Layers of attention, and of a short convolution where `layer_types` says conv."""
    read.only(c, block_use_swiglu=True)
    n_layers, wide = c["num_hidden_layers"], range(c["num_hidden_layers"])
    of_attention = wide if c.get("full_attn_idxs") is None else c["full_attn_idxs"]
    kinds = c.get("layer_types") or ["full_attention" if i in of_attention else "conv" for i in wide]
    convolved = numbered(kinds, n_layers, "conv", "full_attention")
    width = lfm2_width(c, c.get("block_ff_dim") or c["intermediate_size"])
    tied = {"tie_word_embeddings": c.get("tie_embedding", c.get("tie_word_embeddings", True))}
    options = ("mixer=shortconv", f"mixer.conv_size={c['conv_L_cache']}", f"mixer.bias={read.word(c.get('conv_bias'))}")
    sizes = read.llama_sizes({**c, "intermediate_size": width, "head_dim": None})
    words = [*read.rms(c, "norm_eps"), "residual=pre", "ffn=swiglu", "mask=causal", *read.embedding(tied)]
    if len(convolved) == n_layers:
        kv_heads = f"size.n_kv_heads={c.get('num_key_value_heads')}"
        return [*words, *(word for word in without(sizes, "mixer") if word != kv_heads), "pos=none", *options]
    return [*words, *read.rope(c), *sizes, "mixer.qk_norm=head",
            *(f"layers[{i}::{n_layers}].{word}" for i in convolved for word in options)]  # fmt: skip


def lfm2_width(c: Config, d_ff: int) -> int:
    """The width of the network: 2/3 of what is said, times a factor, rounded up to a multiple, where it is to be adjusted."""
    if not c.get("block_auto_adjust_ff_dim", True):
        return d_ff
    d_ff, factor, of = int(2 * d_ff / 3), c.get("block_ffn_dim_multiplier"), c.get("block_multiple_of", 256)
    return d_ff if factor is None else of * -(-int(factor * d_ff) // of)


def mamba2(c: Config) -> Words:
    """Layers of a state space model alone; as many heads as the class says, size.n_heads times mixer.expand."""
    read.only(c, use_bias=False, use_conv_bias=True, hidden_act="silu")
    limits = c.get("time_step_limit") or MAMBA2_LIMITS
    if tuple(limits) != MAMBA2_LIMITS:
        raise read.unsupported("time_step_limit", limits, f"time_step_limit={list(MAMBA2_LIMITS)}")
    heads, times = c["num_heads"], c.get("expand", 2)
    times = 1 if heads % times else times
    eps = c.get("layer_norm_epsilon", 1e-5)
    return ["norm=rms", f"norm.eps={eps}", "residual=pre", "ffn=none", "pos=none", "mask=causal", "mixer=mamba2",
            f"mixer.expand={times}", f"mixer.state_dim={c['state_size']}", f"mixer.n_groups={c['n_groups']}",
            f"mixer.conv_size={c['conv_kernel']}", f"mixer.eps={eps}", f"size.n_layers={c['num_hidden_layers']}",
            f"size.d_model={c['hidden_size']}", f"size.n_heads={heads // times}", f"size.head_dim={c['head_dim']}",
            f"size.vocab_size={c['vocab_size']}", *read.embedding(c, tied=False)]  # fmt: skip


MAMBA2_LIMITS = (0.0, float("inf"))
"""Of a token's step: none beside that it is positive."""


def falcon(c: Config) -> Words:
    """ALiBi's biases are divided by sqrt(head_dim) as scores are; here they stay float32, which Falcon's code rounds to bfloat16."""
    wide = c.get("new_decoder_architecture", False)
    if wide:
        read.only(c, parallel_attn=True)
    kv = c.get("num_kv_heads") if wide else 1 if c.get("multi_query", True) else c["num_attention_heads"]
    norms = c.get("num_ln_in_parallel_attn") or (2 if wide else 1)
    if norms not in (1, 2):
        raise read.unsupported("num_ln_in_parallel_attn", norms, "1 or 2")
    widths = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    bias = c.get("bias", False)
    residual = ["residual=parallel", f"residual.norms={norms}"] if c.get("parallel_attn", True) else ["residual=pre"]
    pos = ["pos=alibi", "pos.scaled=true"] if c.get("alibi") else read.rope(c)
    return [*read.layer_norm(c), *residual, *read.ffn(c, "activation", read.PLAIN, bias), *pos, "mask=causal",
            *read.sizes(c, *widths, c.get("ffn_hidden_size") or 4 * c["hidden_size"], kv), *read.biases(bias, bias),
            *read.embedding(c)]  # fmt: skip


def baichuan(c: Config) -> Words:
    """A configuration without max_position_embeddings is of the 13B models, which have ALiBi.

    Its code has one base of RoPE and no scaling, whatever config.json says.
    """
    read.only(c, rope_theta=10000.0, rope_scaling=None, rope_parameters=None)
    words = llama(c)
    if "max_position_embeddings" not in c:
        words = [*without(words, "pos"), "pos=alibi"]
    return words + (["head=norm_head"] if "z_loss_weight" in c else [])  # only Baichuan 2 has this field


def qwen(c: Config) -> Words:
    """intermediate_size counts both of the hidden projections."""
    read.only(c, no_bias=True, rotary_pct=1.0, scale_attn_weights=True)
    widths = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    pos = ["pos=rope", f"pos.base={float(c.get('rotary_emb_base', 10000))}"]
    pos += ["pos.scaling=dynamic_qwen", f"pos.trained_len={c['seq_length']}"] if c.get("use_dynamic_ntk", True) else []
    pos += [f"pos.logn={c['seq_length']}"] if c.get("use_logn_attn", True) else []
    return [*read.rms(c, "layer_norm_epsilon"), "residual=pre", "ffn=swiglu", *pos, "mask=causal",
            *read.sizes(c, *widths, c["intermediate_size"] // 2, head_dim=c.get("kv_channels")),
            *read.biases(True, False), *read.embedding(c, tied=False)]  # fmt: skip


def chatglm(c: Config) -> Words:
    """The first generation."""
    read.only(c, position_encoding_2d=True, pre_seq_len=None, quantization_bit=0)
    sizes = read.sizes(c, "num_layers", "hidden_size", "num_attention_heads", c["inner_hidden_size"])
    return [*read.layer_norm(c, "layernorm_epsilon"), "residual=deep_glm", "ffn=glm", "ffn.dropout=0", "pos=rope_2d",
            "mask=prefix", *sizes, *read.biases(True, True), "embed.norm=true", *read.embedding(c)]  # fmt: skip


def chatglm2(c: Config) -> Words:
    """The second and third generation, and GLM-4-9B as it was first released.

    Where heads do not share keys and values, which is its class's default, it has their queries, keys and values in turns.

    ChatGLM2-6B-32k divides positions by rope_ratio, by which the later ones multiply the base; no field but the name tells
    them apart.
    """
    if not (shared := c.get("multi_query_attention", False)):
        can = "multi_query_attention=True, where all queries come before all keys"
        raise read.unsupported("multi_query_attention", shared, can)
    read.only(c, rmsnorm=True, post_layer_norm=True, apply_residual_connection_post_layernorm=False,
              add_bias_linear=False, original_rope=True, pre_seq_len=None, quantization_bit=0)  # fmt: skip
    kv, widths = c["multi_query_group_num"], ("num_layers", "hidden_size", "num_attention_heads")
    sizes = read.sizes({**c, "vocab_size": c["padded_vocab_size"]}, *widths, c["ffn_hidden_size"], kv, c["kv_channels"])
    ratio, pos = c.get("rope_ratio", 1), ["pos=rope", "pos.layout=interleaved", "pos.fraction=0.5"]
    interpolates = ratio != 1 and "chatglm2" in (c.get("_name_or_path") or "").lower()
    pos += [f"pos.base={10000.0 if interpolates else 10000.0 * ratio}"]
    pos += ["pos.scaling=linear", f"pos.factor={float(ratio)}"] if interpolates else []
    return [*read.rms(c, "layernorm_epsilon"), "residual=pre", "ffn=swiglu", *pos, "mask=causal", *sizes,
            *read.biases(c.get("add_qkv_bias", False), False), *read.embedding(c, tied=False)]  # fmt: skip
