"""Turns the values of a config.json into overrides."""

import math
from collections.abc import Mapping
from typing import Any

from archlab.base.errors import UserError

Config = Mapping[str, Any]
Words = list[str]

GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh", "relu": "reglu"}
PLAIN = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu"}  # fmt: skip
SCALED = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "yarn": {"factor": "factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow", "attention_factor": "attention_factor"},
    "llama3": {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"},
}  # fmt: skip

ROPE_FIELDS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
               "mscale", "mscale_all_dim", "truncate", "attention_factor")  # fmt: skip
"""Other fields beside them, which are read or hold a value that changes nothing."""


def sizes(
    c: Config, layers: str, width: str, heads: str, d_ff: int, kv: int | None = None, head_dim: int | None = None
) -> Words:
    n_heads, kv = c[heads], kv or c[heads]
    attn = "mha" if kv == n_heads else "mqa" if kv == 1 else "gqa"
    words = [f"size.n_layers={c[layers]}", f"size.d_model={c[width]}", f"size.n_heads={n_heads}", f"size.d_ff={d_ff}"]
    words += [f"size.vocab_size={c['vocab_size']}", f"mixer={attn}"]
    words += [f"size.n_kv_heads={kv}"] if attn == "gqa" else []
    return words + ([f"size.head_dim={head_dim}"] if head_dim else [])


def llama_sizes(c: Config) -> Words:
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    return sizes(c, *names, c["intermediate_size"], c.get("num_key_value_heads"), c.get("head_dim"))


def rope(c: Config, fraction: float = 1.0, layout: str = "half", trained: str = "max_position_embeddings") -> Words:
    """RoPE in either spelling of transformers: rope_theta and rope_scaling, which takes precedence, or rope_parameters.

    `fraction` is the family's default; where it is 1, whole heads are rotated and no field changes that.
    """
    entries: dict[str, Any] = dict(c.get("rope_scaling") or c.get("rope_parameters") or {})
    kind = entries.get("rope_type", entries.get("type", "default"))
    base: Any = entries.get("rope_theta", c.get("rope_theta", c.get("rotary_emb_base", 10000.0)))
    asked: Any = entries.get("partial_rotary_factor", c.get("partial_rotary_factor", c.get("rotary_pct", fraction)))
    share = fraction if fraction == 1 else asked
    words = ["pos=rope", f"pos.base={float(base)}", f"pos.layout={layout}", f"pos.fraction={float(share)}"]
    if kind == "default":
        return words
    if kind not in SCALED:
        raise unsupported("rope_scaling", kind, f"one of default, {', '.join(SCALED)}")
    if entries.get("truncate", True) is not True:
        raise unsupported("rope_parameters.truncate", entries["truncate"], "truncate=true")
    if unknown := sorted(set(entries) - {*SCALED[kind], *ROPE_FIELDS}):
        raise unsupported(f"rope_parameters.{unknown[0]}", entries[unknown[0]], f"one of {', '.join(SCALED[kind])}")
    entries["attention_factor"] = entries.get("attention_factor") or yarn_factor(entries)
    words += [f"pos.scaling={kind}"]
    words += [
        f"pos.{ours}={entries[theirs]}" for theirs, ours in SCALED[kind].items() if entries.get(theirs) is not None
    ]
    if kind != "linear":
        words += [f"pos.trained_len={entries.get('original_max_position_embeddings') or c[trained]}"]
    return words


def yarn_factor(entries: Mapping[str, Any]) -> float | None:
    """The ratio of 0.1 m ln(factor) + 1 at m = mscale and at m = mscale_all_dim, DeepSeek's fields; None without them."""
    both: tuple[Any, Any] = (entries.get("mscale"), entries.get("mscale_all_dim"))
    if not all(both):
        return None
    over, under = (0.1 * mscale * math.log(entries["factor"]) + 1 for mscale in both)
    return over / under


def ffn(c: Config, name: str, options: Mapping[str, str], bias: bool = False) -> Words:
    kind = c[name]
    if kind not in options:
        raise unsupported(name, kind, f"one of {', '.join(options)}")
    return [f"ffn={options[kind]}", f"ffn.bias={word(bias)}"]


def rms(c: Config, name: str = "rms_norm_eps", **options: bool) -> Words:
    return ["norm=rms", f"norm.eps={c[name]}", *(f"norm.{key}={word(value)}" for key, value in options.items())]


def layer_norm(c: Config, name: str = "layer_norm_epsilon", **options: bool) -> Words:
    return ["norm=layer", f"norm.eps={c[name]}", *(f"norm.{key}={word(value)}" for key, value in options.items())]


def biases(qkv: bool, out: bool) -> Words:
    return [f"mixer.qkv_bias={word(qkv)}", f"mixer.out_bias={word(out)}"]


def embedding(c: Config, scale: str = "none", tied: bool = True) -> Words:
    return [f"embed.tied={word(c.get('tie_word_embeddings', tied))}", f"embed.scale={scale}"]


def table(c: Config, positions: str, offset: int = 0) -> Words:
    words = ["pos=learned", f"pos.max_positions={c[positions]}", f"train.train_len={min(128, c[positions])}"]
    return words + ([f"pos.offset={offset}"] if offset else [])


def only(c: Config, **values: Any) -> Words:
    """No overrides. Raises UserError where one of these fields is present and holds another value."""
    for name, value in values.items():
        if c.get(name, value) != value:
            raise unsupported(name, c[name], f"{name}={value}")
    return []


def word(value: object) -> str:
    return str(bool(value)).lower()


def unsupported(name: str, value: Any, can: str) -> UserError:
    return UserError(f"config.json: {name}={str(value)[:60]}: no block of archlab does this; supported is {can}")
