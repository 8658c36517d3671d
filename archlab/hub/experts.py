"""Families whose layers have many experts: their config.json as overrides, and their tensors.

In transformers' classes the experts of a layer share one tensor for each kind of matrix, as they do here, with gate and up
in one; released files have a tensor for each expert and kind.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from archlab.base.errors import UserError
from archlab.config.plan import layer_plans
from archlab.hub import reading as read
from archlab.hub import words as say
from archlab.hub.reading import Config, Words
from archlab.hub.rows import Join, Row, Split, Table, linear, norm, same, stacked
from archlab.hub.tables import ENDS, GATED, LAYER, MLP, OUT, PRE, QK_NORMS, SELF, SEPARATE

FFN = f"{LAYER}.ffn"
MIXER = f"{LAYER}.mixer"

# ---------------------------------------------------------------- where tensors go


def gates_and_ups(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
    """Each expert's gate above its up."""
    return tensor.chunk(2, dim=1)


def gate_above_up(tensors: Sequence[Tensor], sizes: Any) -> Tensor:
    return torch.cat(list(tensors), dim=1)


def shared(theirs: str) -> Table:
    """The network that every token gets besides."""
    return tuple(
        row
        for name in ("gate_proj", "up_proj", "down_proj")
        for row in linear(f"{theirs}.{name}", f"{FFN}.shared.{name}")
    )


ROWS: Table = (
    *same(f"{MLP}.gate.weight", f"{FFN}.router.weight"),
    Row(f"{MLP}.experts.gate_up_proj", (f"{FFN}.gate_proj", f"{FFN}.up_proj"), gates_and_ups, gate_above_up),
    *same(f"{MLP}.experts.down_proj", f"{FFN}.down_proj"),
)
"""A router and its experts; layers without experts have none of these weights."""


SHARED = shared(f"{MLP}.shared_experts")
CHOICE_BIAS = same(f"{MLP}.gate.e_score_correction_bias", f"{FFN}.biased.bias")
Q_A, KV_A, KV_B = f"{SELF}.q_a_proj", f"{SELF}.kv_a_proj_with_mqa", f"{SELF}.kv_b_proj"


def deepseek(cfg: DictConfig) -> Table:
    """Latent attention: one matrix makes the latent vector and the rotated key, and one each head's key and value."""
    widths = latent_widths(cfg.mixer, cfg.size.head_dim)
    rank, nope, v = (widths[name] for name in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim"))

    def key_and_value(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
        by_head = tensor.unflatten(0, (sizes.n_heads, nope + v)).split((nope, v), dim=1)
        return [part.flatten(0, 1) for part in by_head]

    def head_by_head(tensors: Sequence[Tensor], sizes: Any) -> Tensor:
        return torch.cat([part.unflatten(0, (sizes.n_heads, -1)) for part in tensors], dim=1).flatten(0, 1)

    def latent_and_rotated(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
        return tensor.split((rank, sizes.head_dim))

    attention = (
        *linear(f"{SELF}.q_proj", f"{MIXER}.q_proj"),
        *linear(Q_A, f"{MIXER}.q_a_proj"),
        *norm(f"{SELF}.q_a_layernorm", f"{MIXER}.q_a_norm"),
        *linear(f"{SELF}.q_b_proj", f"{MIXER}.q_b_proj"),
        *linear(KV_A, f"{MIXER}.kv_a_proj", f"{MIXER}.k_rope_proj", split=latent_and_rotated, join=stacked),
        *norm(f"{SELF}.kv_a_layernorm", f"{MIXER}.kv_a_norm"),
        *linear(KV_B, f"{MIXER}.k_b_proj", f"{MIXER}.v_b_proj", split=key_and_value, join=head_by_head),
        *linear(f"{SELF}.o_proj", OUT),
    )
    return ENDS + attention + GATED + PRE + ROWS + CHOICE_BIAS + SHARED


def latent_widths(mixer: Mapping[str, Any], head_dim: int) -> dict[str, int]:
    """The widths of latent attention, those that were left out as well."""
    own = {"kv_lora_rank": 4 * head_dim, "qk_nope_head_dim": head_dim, "v_head_dim": head_dim}
    return {name: mixer[name] or width for name, width in own.items()}


def interleaved(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
    """gpt-oss stores matrices as (in, out), and gates and ups by turns."""
    return tuple(out_first(part) for part in (tensor[..., 0::2], tensor[..., 1::2]))


def by_turns(tensors: Sequence[Tensor], sizes: Any) -> Tensor:
    return torch.stack([out_first(tensor) for tensor in tensors], dim=-1).flatten(-2)


def out_first(tensor: Tensor) -> Tensor:
    """Each expert's matrix transposed; a bias as it is."""
    return tensor.mT if tensor.ndim == 3 else tensor


def each_transposed(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
    return (tensor.mT,)


def each_transposed_back(tensors: Sequence[Tensor], sizes: Any) -> Tensor:
    return tensors[0].mT


THEIR_EXPERTS = f"{MLP}.experts"
GPT_OSS_ROWS: Table = (
    *ENDS,
    *SEPARATE,
    *same(f"{SELF}.sinks", f"{MIXER}.weigh.sinks"),
    *PRE,
    *linear(f"{MLP}.router", f"{FFN}.router"),
    Row(f"{THEIR_EXPERTS}.gate_up_proj", (f"{FFN}.gate_proj", f"{FFN}.up_proj"), interleaved, by_turns),
    Row(f"{THEIR_EXPERTS}.gate_up_proj_bias", (f"{FFN}.gate_bias", f"{FFN}.up_bias"), interleaved, by_turns),
    Row(f"{THEIR_EXPERTS}.down_proj", (f"{FFN}.down_proj",), each_transposed, each_transposed_back),
    *same(f"{THEIR_EXPERTS}.down_proj_bias", f"{FFN}.down_bias"),
)
DELTA = "model.layers.{}.linear_attn"


def qwen3_next_rows(cfg: DictConfig) -> Table:
    """Two kinds of mixers; their fused matrices go key head by key head, or head by head."""
    sizes_of = delta_widths(cfg.mixer, cfg.size)
    key_heads, key_dim = sizes_of["key_heads"], sizes_of["key_dim"]
    shared_by = sizes_of["heads"] // key_heads
    values = shared_by * sizes_of["value_dim"]

    def split_by_key_head(*widths: int) -> Split:
        return lambda tensor, sizes: [
            part.flatten(0, 1) for part in tensor.unflatten(0, (key_heads, -1)).split(widths, dim=1)
        ]

    def join_by(n_heads: int | None) -> Join:
        return lambda tensors, sizes: torch.cat(
            [tensor.unflatten(0, (n_heads or sizes.n_heads, -1)) for tensor in tensors], dim=1
        ).flatten(0, 1)

    def query_and_gate(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
        return [part.flatten(0, 1) for part in tensor.unflatten(0, (sizes.n_heads, -1)).chunk(2, dim=1)]

    to_keys, by_keys = split_by_key_head(key_dim, key_dim, values, values), join_by(key_heads)
    delta = (
        *linear(f"{DELTA}.in_proj_qkvz", *(f"{MIXER}.{n}_proj" for n in "qkvg"), split=to_keys, join=by_keys),
        *linear(f"{DELTA}.in_proj_ba", *(f"{MIXER}.{n}_proj" for n in "ba"),
                split=split_by_key_head(shared_by, shared_by), join=by_keys),
        *same(f"{DELTA}.conv1d.weight", f"{MIXER}.conv.weight"),
        *same(f"{DELTA}.A_log", f"{MIXER}.A_log"),
        *same(f"{DELTA}.dt_bias", f"{MIXER}.dt_bias"),
        *norm(f"{DELTA}.norm", f"{MIXER}.norm"),
        *linear(f"{DELTA}.out_proj", OUT),
    )  # fmt: skip
    attention = (
        *linear(f"{SELF}.q_proj", f"{MIXER}.q_proj", f"{MIXER}.gate.proj", split=query_and_gate, join=join_by(None)),
        *(row for name in "kv" for row in linear(f"{SELF}.{name}_proj", f"{MIXER}.{name}_proj")),
        *linear(f"{SELF}.o_proj", OUT),
        *QK_NORMS,
    )
    gate = same(f"{MLP}.shared_expert_gate.weight", f"{FFN}.shared_gate.weight")
    mixers = tuple(
        row
        for layer, plan in enumerate(layer_plans(cfg))
        for row in numbered(attention if "qk_norm" in plan.mixer.node else delta, layer)
    )  # since the two have weights of one name
    return ENDS + mixers + GATED + PRE + ROWS + shared(f"{MLP}.shared_expert") + gate


def numbered(table: Table, layer: int) -> Iterator[Row]:
    """The rows of this layer alone."""
    for row in table:
        yield Row(row.theirs.format(layer), tuple(name.format(layer) for name in row.ours), row.split, row.join)


def delta_widths(mixer: Mapping[str, Any], size: Any) -> dict[str, int]:
    """The heads and widths of a gated delta rule, those that were left out as well."""
    key_heads = mixer["key_heads"] or size.n_heads
    return {
        "key_heads": key_heads,
        "heads": mixer["heads"] or key_heads,
        "key_dim": mixer["key_dim"] or size.head_dim,
        "value_dim": mixer["value_dim"] or size.head_dim,
    }


# ---------------------------------------------------------------- released files


@dataclass(frozen=True)
class InFiles:
    """The tensor whose name ends in `whole`, and how the names of its pieces end; {} is an expert's number.

    Without a number a piece is the same tensor by another name. Else an expert's pieces are stacked along fan_out, and then
    the experts along a new first axis.
    """

    whole: str
    pieces: tuple[str, ...]


FILES = (
    InFiles("mlp.experts.gate_up_proj", ("mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight")),
    InFiles("mlp.experts.down_proj", ("mlp.experts.{}.down_proj.weight",)),
)
SPARSE = "block_sparse_moe"
MIXTRAL_FILES = (
    InFiles("mlp.gate.weight", (f"{SPARSE}.gate.weight",)),
    InFiles("mlp.experts.gate_up_proj", (f"{SPARSE}.experts.{{}}.w1.weight", f"{SPARSE}.experts.{{}}.w3.weight")),
    InFiles("mlp.experts.down_proj", (f"{SPARSE}.experts.{{}}.w2.weight",)),
)


def in_one_piece(files: Sequence[InFiles], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as transformers' class has them; pieces of which some are missing stay as they are, and are told of by name.

    Raises UserError where the files hold the whole beside its pieces.
    """
    left = dict(tensors)
    for file in files:
        for before, names in pieces_of(file, left).items():
            whole = f"{before}{file.whole}"
            if whole in left:
                piece = min(names.values())
                raise UserError(f"{piece}: is of {whole} under another name, and the files hold both; leave one out")
            if "{}" not in file.pieces[0]:
                left[whole] = left.pop(names[0, 0])
            elif complete(names, len(file.pieces)):
                left[whole] = together(whole, {place: left.pop(name) for place, name in names.items()})
    return left


def together(whole: str, pieces: Mapping[tuple[int, int], Tensor]) -> Tensor:
    """(expert, place) -> the one tensor. Raises UserError where their shapes do not go together."""
    in_order = [pieces[place] for place in sorted(pieces)]
    n_pieces = 1 + max(place for _, place in pieces)
    try:
        return torch.stack([torch.cat(in_order[at : at + n_pieces]) for at in range(0, len(in_order), n_pieces)])
    except RuntimeError:
        shapes = ", ".join(dict.fromkeys(str(tuple(piece.shape)) for piece in in_order))
        raise UserError(f"{whole}: its experts' matrices have the shapes {shapes[:120]}; the file is damaged") from None


def complete(places: Collection[tuple[int, int]], n_pieces: int) -> bool:
    """Whether each expert up to the last has all its pieces."""
    experts = range(len(places) // n_pieces)
    return set(places) == {(expert, piece) for expert in experts for piece in range(n_pieces)}


def pieces_of(file: InFiles, names: Collection[str]) -> dict[str, dict[tuple[int, int], str]]:
    """For each layer, named by what stands before, the names of the pieces by expert and place."""
    found: dict[str, dict[tuple[int, int], str]] = {}
    for place, piece in enumerate(file.pieces):
        pattern = re.compile(r"(.*\.)?" + re.escape(piece).replace(r"\{\}", r"(\d+)"))
        for name in names:
            if match := pattern.fullmatch(name):
                before, *number = match.groups()
                found.setdefault(before or "", {})[int(number[0]) if number else 0, place] = name
    return found


def in_pieces(files: Sequence[InFiles], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as released files have them."""
    return {piece: part for name, tensor in tensors.items() for piece, part in pieces(files, name, tensor)}


def pieces(files: Sequence[InFiles], name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    file = next((file for file in files if name.endswith(f".{file.whole}")), None)
    if file is None:
        yield name, tensor
        return
    before = name.removesuffix(file.whole)
    if "{}" not in file.pieces[0]:
        yield f"{before}{file.pieces[0]}", tensor
        return
    for expert, whole in enumerate(tensor.unbind()):
        for piece, part in zip(file.pieces, whole.chunk(len(file.pieces)), strict=True):
            yield f"{before}{piece.format(expert)}", part.contiguous().clone()


# ---------------------------------------------------------------- config.json


def experts(c: Config, d_ff: int, normalise: bool, **options: Any) -> Words:
    """ffn=experts in the place of the network that `say.llama` chose, of width d_ff each."""
    if c["hidden_act"] not in read.GATED:
        raise read.unsupported("hidden_act", c["hidden_act"], f"one of {', '.join(read.GATED)}")
    if normalise and c["num_experts_per_tok"] == 1:
        can = "2 or more, since the weight of one, divided by itself, teaches a router nothing"
        raise read.unsupported("num_experts_per_tok", 1, can)
    said = {
        "n_experts": of_any(c, "num_local_experts", "num_experts", "n_routed_experts"),
        "top_k": c["num_experts_per_tok"],
        "network": read.GATED[c["hidden_act"]],
        "normalise": normalise,
        **options,
    }
    return ["ffn=experts", *(f"ffn.{name}={read.spelt(value)}" for name, value in said.items()), f"size.d_ff={d_ff}"]


def of_any(c: Config, *names: str) -> Any:
    """The first of these fields that there is; KeyError names the first where there is none."""
    return c[next((name for name in names if name in c), names[0])]


def with_experts(words: Words, in_experts: Words) -> Words:
    """The same model with another feed-forward network."""
    return [word for word in say.without(words, "ffn") if not word.startswith("size.d_ff=")] + in_experts


def dense(c: Config, layers: Sequence[int]) -> Words:
    """Rules for the layers that have one network instead of experts, `intermediate_size` wide."""
    n_layers = c["num_hidden_layers"]
    if len(layers) >= n_layers:
        raise read.unsupported("num_hidden_layers", n_layers, "some layers with experts; there are none here")
    first = list(layers) == list(range(len(layers)))
    slices = ([f"layers[:{len(layers)}]"] if layers else []) if first else [f"layers[{i}::{n_layers}]" for i in layers]
    width, chosen = c["intermediate_size"], [f"ffn={read.GATED[c['hidden_act']]}"]
    chosen += [f"size.d_ff={width}"] if width != c["moe_intermediate_size"] else []
    return [f"{at}.{word}" for at in slices for word in chosen]


def mixtral(c: Config) -> Words:
    words = say.without(say.llama({**c, "attention_bias": False, "mlp_bias": False}), "mask") + say.window(c)
    return with_experts(words, experts(c, c["intermediate_size"], normalise=True))


def sparse_steps(c: Config) -> list[int]:
    """Qwen's layers without experts."""
    step, listed = c.get("decoder_sparse_step", 1), c.get("mlp_only_layers") or []
    return [i for i in range(c["num_hidden_layers"]) if i in listed or (i + 1) % step]


def qwen3_moe(c: Config) -> Words:
    c = {**c, "layer_types": None, "max_window_layers": 0}  # where there is a window, all layers have it
    words = with_experts(
        say.qwen3({**c, "mlp_bias": False}), experts(c, c["moe_intermediate_size"], c.get("norm_topk_prob", False))
    )
    return words + dense(c, sparse_steps(c))


def olmoe(c: Config) -> Words:
    words = with_experts(
        say.llama({**c, "mlp_bias": False}), experts(c, c["intermediate_size"], c.get("norm_topk_prob", False))
    )
    return [*words, "mixer.qk_norm=width", *say.clipped(c)]


LATENT = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim")


def latent(c: Config, layout: str) -> Words:
    """Everything but the feed-forward network of a model with latent attention."""
    c = {**c, "head_dim": c["qk_rope_head_dim"], "num_key_value_heads": None, "attention_bias": False}
    words = say.without(say.without_positions({**c, "mlp_bias": False}), "mixer")
    widths = [f"mixer.{name}={c[name]}" for name in LATENT if c.get(name) is not None]
    return [*words, *read.rope(c, layout=layout), "mixer=mla", *widths, *latent_scale(c)]


def latent_scale(c: Config) -> Words:
    """YaRN's second factor on scores, which goes with mscale_all_dim."""
    entries = c.get("rope_scaling") or c.get("rope_parameters") or {}
    m, factor = entries.get("mscale_all_dim") or 0, entries.get("factor", 1)
    if entries.get("rope_type", entries.get("type", "default")) == "default" or not m or factor <= 1:
        return []
    scale = (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5 * (0.1 * m * math.log(factor) + 1) ** 2
    return [f"mixer.scale={scale}"]


def with_dense_first(c: Config, words: Words, d_ff: int, normalise: bool, **options: Any) -> Words:
    """Experts in all layers but the first few."""
    return with_experts(words, experts(c, d_ff, normalise, **options)) + dense(c, range(c["first_k_dense_replace"]))


def biases_of_latent(c: Config) -> Words:
    return [f"mixer.bias={read.word(c.get('attention_bias'))}"]


def deepseek_v2(c: Config) -> Words:
    """Its class takes the experts' scores as they are, and so does the release of V2-Lite."""
    read.only(c, topk_method="greedy", scoring_func="softmax", norm_topk_prob=False, mlp_bias=False, moe_layer_freq=1)
    options = {"scale": float(c["routed_scaling_factor"]), "shared": c["n_shared_experts"]}
    return with_dense_first(
        c, latent(c, "interleaved") + biases_of_latent(c), c["moe_intermediate_size"], normalise=False, **options
    )


def sigmoid_router(c: Config) -> dict[str, Any]:
    """The router of DeepSeek-V3: sigmoids, a bias on the choice alone, groups, a constant."""
    read.only(c, topk_method="noaux_tc", scoring_func="sigmoid", moe_layer_freq=1)
    if c["num_experts_per_tok"] == c["n_routed_experts"]:
        can = f"fewer than n_routed_experts={c['n_routed_experts']}, since a bias on the choice changes nothing there"
        raise read.unsupported("num_experts_per_tok", c["num_experts_per_tok"], can)
    groups, top_groups = (1 if c.get(name) is None else c[name] for name in ("n_group", "topk_group"))
    if groups < 1:
        raise read.unsupported("n_group", groups, "1 or more")
    if not 1 <= top_groups <= groups:
        raise read.unsupported("topk_group", top_groups, f"1 to n_group={groups}")
    grouped = {"groups": groups, "top_groups": top_groups} if top_groups < groups else {}
    return {
        "scores": "sigmoid",
        "scale": float(c["routed_scaling_factor"]),
        "shared": c["n_shared_experts"],
        "balance_rate": BALANCE_RATE,
        **grouped,
    }


BALANCE_RATE = 0.001
"""Of the bias on the choice of experts, which is trained by this alone; arXiv:2412.19437, sec. 4.2."""


def deepseek_v3(c: Config) -> Words:
    words = latent(c, "interleaved" if c.get("rope_interleave", True) else "half") + biases_of_latent(c)
    return with_dense_first(c, words, c["moe_intermediate_size"], c["norm_topk_prob"], **sigmoid_router(c))


def layers_beyond(c: Config) -> tuple[str, ...]:
    """Layers after the last, which predict tokens further on."""
    n_layers, further = c["num_hidden_layers"], c.get("num_nextn_predict_layers") or 0
    return tuple(f"model.layers.{n_layers + i}." for i in range(further))


def glm4_moe(c: Config) -> Words:
    bias = c.get("attention_bias", False)
    words = say.without_positions({**c, "attention_bias": False, "mlp_bias": False})
    words += [*read.rope(c, 0.5), *read.biases(bias, False), *(["mixer.qk_norm=head"] if c.get("use_qk_norm") else [])]
    return with_dense_first(c, words, c["moe_intermediate_size"], c["norm_topk_prob"], **sigmoid_router(c))


def gpt_oss(c: Config) -> Words:
    read.only(c, swiglu_alpha=1.702, swiglu_limit=7.0, hidden_act="silu")
    bias = c.get("attention_bias", True)
    words = say.without(say.llama({**c, "attention_bias": bias, "mlp_bias": False}), "mask")
    options = {"network": "clamped_swiglu", "router_bias": True, "bias": True}
    in_experts = experts(c, c["intermediate_size"], normalise=True, **options)
    return [*with_experts(words, in_experts), *say.alternating(c, 2), "mixer.sinks=true"]


def qwen3_next(c: Config) -> Words:
    """Layers of the gated delta rule, and between them some of gated attention."""
    d_ff, shared_width, bias = c["moe_intermediate_size"], c["shared_expert_intermediate_size"], c.get("attention_bias")
    if not shared_width or shared_width % d_ff:
        can = f"a multiple of moe_intermediate_size={d_ff}"
        raise read.unsupported("shared_expert_intermediate_size", shared_width, can)
    if c["hidden_act"] not in ("silu", "swish"):
        can = "silu, which follows the convolutions of its delta rule too"
        raise read.unsupported("hidden_act", c["hidden_act"], can)
    plain = {**c, "attention_bias": False, "mlp_bias": False, "num_key_value_heads": None}
    words = (
        say.without(say.without_positions(plain), "norm", "mixer") + read.rms(c, unit_offset=True) + read.rope(c, 0.25)
    )
    delta = {
        "key_heads": c["linear_num_key_heads"],
        "heads": c["linear_num_value_heads"],
        "key_dim": c["linear_key_head_dim"],
        "value_dim": c["linear_value_head_dim"],
        "conv_size": c["linear_conv_kernel_dim"],
        "eps": c["rms_norm_eps"],
    }
    words += ["mixer=gdn", *(f"mixer.{name}={value}" for name, value in delta.items())]
    of_experts = {"shared": shared_width // d_ff, "shared_gate": True}
    words = with_experts(words, experts(c, d_ff, c.get("norm_topk_prob", True), **of_experts))
    rules = [word for at in attending(c) for word in of_attention(c, at, bool(bias))]
    return words + rules + dense(c, sparse_steps(c))


def attending(c: Config) -> Words:
    """The layers of full attention among those of the delta rule, as slices: the last of each four, or as they are listed."""
    n_layers, kinds = c["num_hidden_layers"], c.get("layer_types")
    period = c.get("full_attention_interval", 4)
    every = ["linear_attention" if (i + 1) % period else "full_attention" for i in range(n_layers)]
    kinds = kinds or every
    if set(kinds) != {"linear_attention", "full_attention"} or len(kinds) != n_layers:
        can = f"linear_attention and full_attention, both of them, one for each of {n_layers} layers"
        raise read.unsupported("layer_types", ", ".join(dict.fromkeys(map(str, kinds))), can)
    return say.slices([kind == "full_attention" for kind in kinds])


def of_attention(c: Config, at: str, bias: bool) -> Words:
    """Attention's options for these layers."""
    heads, kv = c["num_attention_heads"], c.get("num_key_value_heads") or c["num_attention_heads"]
    name = "mha" if kv == heads else "mqa" if kv == 1 else "gqa"
    said = {"qk_norm": "head", "gate": "elementwise", "qkv_bias": read.word(bias), "out_bias": read.word(bias)}
    words = [f"{at}.mixer={name}", *(f"{at}.mixer.{option}={value}" for option, value in said.items())]
    return words + ([f"{at}.size.n_kv_heads={kv}"] if name == "gqa" else [])


def multi_token(c: Config) -> tuple[str, ...]:
    """Qwen's weights that predict tokens further on."""
    return ("mtp.",)
