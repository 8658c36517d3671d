"""Llama 4's text models: their config.json as overrides, their tensors, and the fields that are theirs alone.

Layers with positions attend within blocks of tokens; the others have no positions and attend to everything.
"""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from archlab.config.plan import layer_plans
from archlab.hub import reading as read
from archlab.hub import words as say
from archlab.hub.experts import FFN, dense, experts, gate_above_up, gates_and_ups, shared, with_experts
from archlab.hub.reading import Config, Words
from archlab.hub.rows import Row, Table, linear, same
from archlab.hub.tables import ENDS, LAYER, PRE, SEPARATE

THEIRS = "model.layers.{}.feed_forward"


def out_first(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
    """(expert, in, out) -> each expert's gate and up as (expert, out, in)."""
    return gates_and_ups(tensor.mT, sizes)


def in_first(tensors: Sequence[Tensor], sizes: Any) -> Tensor:
    return gate_above_up(tensors, sizes).mT


ROWS: Table = (
    *ENDS,
    *SEPARATE,
    *PRE,
    *(row for name in ("gate", "up", "down") for row in linear(f"{THEIRS}.{name}_proj", f"{LAYER}.ffn.{name}_proj")),
    *same(f"{THEIRS}.router.weight", f"{FFN}.router.weight"),
    Row(f"{THEIRS}.experts.gate_up_proj", (f"{FFN}.gate_proj", f"{FFN}.up_proj"), out_first, in_first),
    Row(f"{THEIRS}.experts.down_proj", (f"{FFN}.down_proj",), lambda t, sizes: (t.mT,), lambda ts, sizes: ts[0].mT),
    *shared(f"{THEIRS}.shared_expert"),
)


def llama4(c: Config) -> Words:
    """Each expert's input is multiplied by its sigmoid; norms of queries and keys without gain where there are positions.

    Queries and keys are normed after they are rotated, which is the same before it: a rotation keeps their length. A
    scaling of RoPE that makes them longer is refused.
    """
    rotates = say.rotating(c)
    kind = (c.get("rope_scaling") or c.get("rope_parameters") or {}).get("rope_type", "default")
    normed = c.get("use_qk_norm", True) and any(rotates)
    if normed and kind in ("yarn", "longrope"):
        raise read.unsupported("rope_type", kind, "one that leaves the length of queries and keys as it is")
    words = say.without(say.without_positions({**c, "mlp_bias": False}), "mask")
    options = {"weights_on": "input", "scores": "sigmoid", "shared": 1}
    words = with_experts(words, experts(c, c["intermediate_size"], normalise=False, **options))
    widths = {"intermediate_size": c["intermediate_size_mlp"], "moe_intermediate_size": c["intermediate_size"]}
    words += dense({**c, **widths}, layers_without_experts(c))
    norms = ["mixer.qk_norm=head", "mixer.qk_norm_kind=rms_no_gain", f"mixer.qk_norm_eps={c['rms_norm_eps']}"]
    bare = temperature(c)
    if not any(rotates):
        return [*words, "pos=none", *bare, *chunks(c, rotates)]
    words += [*read.rope(c, layout="interleaved"), *(norms if normed else [])]
    without_norms = ["mixer.qk_norm=none", "mixer.qk_norm_kind=model", "mixer.qk_norm_eps=null"] if normed else []
    elsewhere = ["pos=none", *without_norms, *bare]
    at = say.slices([not turned for turned in rotates])
    return [*words, *(f"{where}.{word}" for where in at for word in elsewhere), *chunks(c, rotates)]


def temperature(c: Config) -> Words:
    """How queries get sharper in layers without positions."""
    if not c.get("attn_temperature_tuning", True) or not c.get("attn_scale", 0.1):
        return []
    return [f"mixer.temperature={c.get('attn_scale', 0.1)}", f"mixer.temperature_every={c.get('floor_scale', 8192)}"]


def chunks(c: Config, rotates: Sequence[bool]) -> Words:
    """The masks: blocks of tokens in layers with positions, or as layer_types says."""
    n_layers, chunk = c["num_hidden_layers"], c.get("attention_chunk_size", 8192)
    by_positions = ["chunked_attention" if turned and chunk else "full_attention" for turned in rotates]
    whole = say.numbered(c.get("layer_types") or by_positions, n_layers, "full_attention", "chunked_attention")
    if len(whole) == n_layers:
        return ["mask=causal"]
    if chunk is None:
        raise read.unsupported("attention_chunk_size", None, "the number of tokens in a block of chunked_attention")
    at = say.slices([i in whole for i in range(n_layers)])
    return ["mask=chunked", f"mask.chunk={chunk}", *(f"{where}.mask=causal" for where in at)]


def layers_without_experts(c: Config) -> list[int]:
    n_layers, step = c["num_hidden_layers"], c.get("interleave_moe_layer_step", 1)
    with_them = c.get("moe_layers")
    with_them = range(step - 1, n_layers, step) if with_them is None else with_them
    return [i for i in range(n_layers) if i not in with_them]


def fields(cfg: DictConfig) -> dict[str, Any]:
    """What a config.json of Llama 4 calls otherwise than those of other families."""
    plans = layer_plans(cfg)
    dense_widths = [plan.d_ff for plan in plans if "n_experts" not in plan.ffn.node]
    tuned = next((p.mixer.node for p in plans if p.mixer.node.get("temperature")), {})
    chunk = next((p.mask.node["chunk"] for p in plans if "chunk" in p.mask.node), None)
    return {
        "intermediate_size": cfg.size.d_ff,
        "intermediate_size_mlp": dense_widths[0] if dense_widths else cfg.size.d_ff,
        "moe_layers": [i for i, plan in enumerate(plans) if "n_experts" in plan.ffn.node],
        "attention_chunk_size": chunk,
        "layer_types": ["chunked_attention" if "chunk" in plan.mask.node else "full_attention" for plan in plans],
        "attn_temperature_tuning": bool(tuned),
        "attn_scale": tuned.get("temperature", 0.1),
        "floor_scale": tuned.get("temperature_every", 8192),
    }
