"""Turns the values of a config.json into overrides."""

from collections.abc import Mapping
from typing import Any

from archlab.base.errors import UserError

Config = Mapping[str, Any]
Words = list[str]

GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_python": "geglu", "gelu_pytorch_tanh": "geglu_tanh",
         "gelu_new": "geglu_tanh", "gelu_fast": "geglu_tanh", "relu": "reglu"}  # fmt: skip
PLAIN = {"gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
         "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu2", "silu": "silu", "swish": "silu"}  # fmt: skip
SCALED = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "yarn": {"factor": "factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow", "attention_factor": "attention_factor",
             "mscale": "mscale", "mscale_all_dim": "mscale_all_dim", "truncate": "truncate"},
    "llama3": {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"},
    "longrope": {"factor": "factor", "attention_factor": "attention_factor", "short_factor": "short_factor",
                 "long_factor": "long_factor"},
}  # fmt: skip

ROPE_FIELDS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
               "mscale", "mscale_all_dim", "truncate", "attention_factor", "finetuned")  # fmt: skip
"""Other fields beside them, which are read, or which transformers ignores."""


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

    `fraction` is the family's default; where it is 1, RoPE rotates whole heads, and no field changes that.
    """
    entries: dict[str, Any] = dict(c.get("rope_scaling") or c.get("rope_parameters") or {})
    kind = entries.get("rope_type", entries.get("type", "default"))
    base: Any = entries.get("rope_theta", c.get("rope_theta", c.get("rotary_emb_base", 10000.0)))
    asked: Any = entries.get("partial_rotary_factor", c.get("partial_rotary_factor", c.get("rotary_pct", fraction)))
    name = f"{'rope_parameters.' if 'partial_rotary_factor' in entries else ''}partial_rotary_factor"
    if kind == "proportional":
        width = head_width(c)
        if width and int(float(asked) * width // 2) == 0:
            raise unsupported(name, asked, "one that rotates a pair of features or more")
        return [*proportional(entries, float(base), float(asked)), f"pos.layout={layout}"]
    share = fraction if fraction == 1 and kind == "default" else asked
    base, share = as_it_rotates(c, said := float(base), float(share))
    if fraction == 1 and share != 1:  # which transformers' class fails on: its cosines are narrower than its heads
        can = f"1 with rope_type={kind}, since this family rotates whole heads"
        raise unsupported(name, asked, can)
    if kind in ("dynamic", "yarn") and base != said:  # a power of the factor, and a ramp, that go by the odd number
        can = f"one that rotates an even number of features, with rope_type={kind}"
        raise unsupported(name, asked, can)
    words = ["pos=rope", f"pos.base={base}", f"pos.layout={layout}", f"pos.fraction={share}"]
    if kind == "default":
        return words
    if kind in UNSCALED_BY_ONE and entries.get("factor") == 1:
        if kind == "yarn" and entries.get("attention_factor") not in (None, 1):
            can = "attention_factor=1.0 with factor=1.0, which changes nothing"
            raise unsupported("rope_parameters.attention_factor", entries["attention_factor"], can)
        return words
    if kind not in SCALED:
        raise unsupported("rope_scaling", kind, f"one of default, {', '.join(SCALED)}, proportional")
    if unknown := sorted(set(entries) - {*SCALED[kind], *ROPE_FIELDS}):
        raise unsupported(f"rope_parameters.{unknown[0]}", entries[unknown[0]], f"one of {', '.join(SCALED[kind])}")
    longest = c.get(trained)
    length = c.get("original_max_position_embeddings") or entries.get("original_max_position_embeddings") or longest
    if kind == "dynamic":  # which goes by no other length
        length = longest
    if kind in ("yarn", "longrope") and entries.get("factor") is None:
        entries["factor"] = c[trained] / length
    if kind == "yarn":
        entries = without_what_yarn_ignores(entries)
    if kind == "longrope":
        entries = with_one_amplitude(entries)
    words += [f"pos.scaling={kind}"]
    words += [
        f"pos.{ours}={spelt(entries[theirs])}"
        for theirs, ours in SCALED[kind].items()
        if entries.get(theirs) is not None
    ]
    return words if kind == "linear" else [*words, f"pos.trained_len={c[trained] if length is None else length}"]


def proportional(entries: Config, base: float, share: float) -> Words:
    """A share of the frequencies rotates, from the highest; all are divided by a factor."""
    factor = entries.get("factor") or 1.0
    scaled = ["pos.scaling=linear", f"pos.factor={factor}"] if factor != 1 else []
    return ["pos=rope", f"pos.base={base}", *([f"pos.p={share}"] if share < 1 else []), *scaled]


def head_width(c: Config) -> int | None:
    """Features of a head, where the configuration says so in the usual fields."""
    heads, width = c.get("num_attention_heads"), c.get("head_dim")
    return c["hidden_size"] // heads if width is None and heads and c.get("hidden_size") else width


UNSCALED_BY_ONE = ("linear", "yarn", "llama3")
"""Scalings that change nothing by a factor of 1."""


def as_it_rotates(c: Config, base: float, share: float) -> tuple[float, float]:
    """The base and the share of a head's features by which we rotate what transformers does.

    It rotates the whole part of share * head_dim features; of an odd number also the one after them, and divides exponents
    by the odd number still.
    """
    width = head_width(c)
    if share == 1 or not width:
        return base, share
    part = int(share * width)
    even = part + part % 2
    return (base if part == even else base ** (even / part)), (even / width)


def without_what_yarn_ignores(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Of the factor on queries and keys: one of its two spellings, and DeepSeek's two fields together or not at all."""
    kept = dict(entries)
    if kept.get("attention_factor") or not (kept.get("mscale") and kept.get("mscale_all_dim")):
        kept |= {"mscale": None, "mscale_all_dim": None}
    return kept | {"truncate": None if kept.get("truncate", True) else False}  # null is no there, not the default


def with_one_amplitude(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The factor on queries and keys itself, or what it follows from; 1 where sequences get no longer."""
    if entries.get("attention_factor") is not None:
        return {**entries, "factor": None}
    return {**entries} if entries["factor"] > 1 else {**entries, "factor": None, "attention_factor": 1.0}


def spelt(value: object) -> str:
    """A value as it is typed in an override."""
    if isinstance(value, list):
        return f"[{','.join(map(spelt, value))}]"
    return word(value) if isinstance(value, bool) else str(value)


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
