"""Models that transformers has no class of, against their published definitions, step by step in float64.

ChatGLM-6B, Baichuan-13B and Baichuan 2, Qwen-7B, ChatGLM2/3, GLM-10B and GLM-130B: small, with odd sizes and large
random weights. Where a family's files can be read, the weights here bear the names that those files give them, and
the definition works on these; where none can (GLM-10B, GLM-130B) it works on the decoder's own. RoPE's angles are
taken in float32, as all of these programs take them.

Sources: arXiv:2103.10360 (GLM), arXiv:2210.02414, sec. 2.1 (GLM-130B), arXiv:2309.10305, sec. 2 (Baichuan 2),
arXiv:2309.16609, sec. 2 (Qwen), arXiv:2108.12409 (ALiBi) and the models' published programs.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from archlab import hub
from archlab.base.errors import UserError
from archlab.config.assemble import assemble
from archlab.config.compose import compose
from archlab.hub.families import FAMILIES, kind_of
from archlab.hub.files import rows_of

LAYERS, HEADS, HEAD_DIM, WIDTH, HIDDEN, VOCAB, SEQ = 3, 6, 8, 48, 88, 61, 23
PREFIX = 9
CLOSE = {"Qwen-7B": 1e-6}  # its larger base and log-n in float32 here and in double in its program
"""Elsewhere 1e-9: float64 throughout, and what is float32 is the same operations on the same numbers."""


def tokens(seq=SEQ) -> Tensor:
    return torch.randint(VOCAB, (2, seq), generator=torch.Generator().manual_seed(1))


class Weights(dict):
    """Random tensors by name, drawn at first asking; gains are around one."""

    def __init__(self, seed: int = 2):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, name: str, *shape: int) -> Tensor:
        scale, shift = (0.3, 0.0) if len(shape) == 2 else (0.5, 1.0)
        self[name] = torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale + shift
        return self[name]

    def linear(self, name: str, x: Tensor, out: int, bias: bool = False) -> Tensor:
        weight = self[f"{name}.weight"] if f"{name}.weight" in self else self.draw(f"{name}.weight", out, x.shape[-1])
        y = x @ weight.T
        if not bias:
            return y
        return y + (self[f"{name}.bias"] if f"{name}.bias" in self else self.draw(f"{name}.bias", out))

    def rms_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        gain = self[f"{name}.weight"] if f"{name}.weight" in self else self.draw(f"{name}.weight", x.shape[-1])
        return gain * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    def layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        gain = self[f"{name}.weight"] if f"{name}.weight" in self else self.draw(f"{name}.weight", x.shape[-1])
        shift = self[f"{name}.bias"] if f"{name}.bias" in self else self.draw(f"{name}.bias", x.shape[-1])
        centred = x - x.mean(-1, keepdim=True)
        return gain * centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() + shift


def heads_of(x: Tensor, n_heads: int) -> Tensor:
    """(batch, seq, heads * head_dim) -> (batch, heads, seq, head_dim)"""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, readable: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Softmax attention; readable (seq, seq) says which key each query may read."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
    weights = (
        (scores - scores.masked_fill(~readable, float("-inf")).amax(-1, keepdim=True)).exp().masked_fill(~readable, 0.0)
    )
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights @ v).transpose(1, 2).flatten(2)


def angles(positions: Tensor, width: int, base: float = 10000.0) -> Tensor:
    frequencies = 1.0 / base ** (torch.arange(0, width, 2).float() / width)
    return positions.float()[..., None] * frequencies


def turn_halves(x: Tensor, angle: Tensor) -> Tensor:
    """Feature i with feature i + width / 2, as the two parts of a complex number."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angle.cos().double(), angle.sin().double()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def turn_neighbours(x: Tensor, angle: Tensor) -> Tensor:
    """Feature 2i with feature 2i + 1."""
    cos, sin = angle.cos().double(), angle.sin().double()
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def causal(seq: int = SEQ) -> Tensor:
    return torch.ones(seq, seq).tril().bool()


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


# ---------------------------------------------------------------- definitions


def baichuan(w: Weights, ids: Tensor, alibi: bool, normed_head: bool) -> Tensor:
    """LLaMA with one matrix for queries, keys and values; in the 13B models ALiBi, in Baichuan 2 a head of unit rows."""
    seq = ids.shape[1]
    index = torch.arange(seq)
    slopes = torch.tensor(
        [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
    ).double()  # of 6 heads: of 4, then of 8
    bias = -slopes[:, None, None] * (index[:, None] - index[None]).abs() if alibi else 0.0
    x = w.get("model.embed_tokens.weight", None)
    x = (w.draw("model.embed_tokens.weight", VOCAB, WIDTH) if x is None else x)[ids]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        packed = w.linear(f"{name}.self_attn.W_pack", w.rms_norm(f"{name}.input_layernorm", x, 1e-6), 3 * WIDTH)
        q, k, v = (heads_of(part, HEADS) for part in packed.chunk(3, dim=-1))
        if not alibi:
            q, k = (turn_halves(part, angles(index, HEAD_DIM)) for part in (q, k))
        x = x + w.linear(f"{name}.self_attn.o_proj", attend(q, k, v, causal(seq), bias), WIDTH)
        y = w.rms_norm(f"{name}.post_attention_layernorm", x, 1e-6)
        gate, up = (w.linear(f"{name}.mlp.{part}_proj", y, HIDDEN) for part in ("gate", "up"))
        x = x + w.linear(f"{name}.mlp.down_proj", silu(gate) * up, WIDTH)
    x = w.rms_norm("model.norm", x, 1e-6)
    logits = w.linear("lm_head", x, VOCAB)
    return logits / w["lm_head.weight"].pow(2).sum(-1).sqrt() if normed_head else logits


BAICHUAN = dict(model_type="baichuan", vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
                num_attention_heads=HEADS, hidden_act="silu", rms_norm_eps=1e-6, tie_word_embeddings=False)  # fmt: skip

QWEN_LEN = 16  # what seq_length says the model was trained at


def qwen(w: Weights, ids: Tensor) -> Tensor:
    """LLaMA with biases on queries, keys and values; beyond the trained length a larger base and sharper queries."""
    seq = ids.shape[1]
    alpha = max(2.0 ** math.ceil(math.log2(seq / QWEN_LEN) + 1) - 1, 1.0)
    base = 10000.0 * alpha ** (HEAD_DIM / (HEAD_DIM - 2))
    turn = angles(torch.arange(seq), HEAD_DIM, base)
    sharper = torch.tensor([math.log(i, QWEN_LEN) if i > QWEN_LEN else 1.0 for i in range(1, seq + 1)]).double()
    x = (
        w["transformer.wte.weight"] if "transformer.wte.weight" in w else w.draw("transformer.wte.weight", VOCAB, WIDTH)
    )[ids]
    for layer in range(LAYERS):
        name = f"transformer.h.{layer}"
        packed = w.linear(f"{name}.attn.c_attn", w.rms_norm(f"{name}.ln_1", x, 1e-6), 3 * WIDTH, bias=True)
        q, k, v = (heads_of(part, HEADS) for part in packed.split(WIDTH, dim=-1))
        q, k = turn_halves(q, turn) * sharper[:, None], turn_halves(k, turn)
        x = x + w.linear(f"{name}.attn.c_proj", attend(q, k, v, causal(seq)), WIDTH)
        y = w.rms_norm(f"{name}.ln_2", x, 1e-6)
        up, gate = (w.linear(f"{name}.mlp.{part}", y, HIDDEN) for part in ("w1", "w2"))
        x = x + w.linear(f"{name}.mlp.c_proj", up * silu(gate), WIDTH)
    return w.linear("lm_head", w.rms_norm("transformer.ln_f", x, 1e-6), VOCAB)


QWEN = dict(model_type="qwen", vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, kv_channels=HEAD_DIM, layer_norm_epsilon=1e-6, rotary_emb_base=10000, rotary_pct=1.0,
            seq_length=QWEN_LEN, use_dynamic_ntk=True, use_logn_attn=True, no_bias=True, tie_word_embeddings=False)  # fmt: skip


def chatglm(w: Weights, ids: Tensor) -> Tensor:
    """DeepNorm around its own norms, x alpha + f(x) with x = norm(input); two positions, each in half of a head."""
    seq, alpha = ids.shape[1], (2 * LAYERS) ** 0.5
    index = torch.arange(seq)
    readable = causal(seq) | (index[None] < PREFIX)
    first = torch.where(index < PREFIX, index, PREFIX - 1)  # after the context all stand where the mask token stands
    second = torch.where(index < PREFIX, 0, index - PREFIX + 1)
    name = "transformer.word_embeddings.weight"
    x = (w[name] if name in w else w.draw(name, VOCAB, WIDTH))[ids]
    for layer in range(LAYERS):
        name = f"transformer.layers.{layer}"
        x = w.layer_norm(f"{name}.input_layernorm", x, 1e-5)
        packed = heads_of(w.linear(f"{name}.attention.query_key_value", x, 3 * WIDTH, bias=True), HEADS)
        q, k, v = packed.chunk(3, dim=-1)  # for each head its query, its key, its value
        q, k = (
            torch.cat(
                [
                    turn_halves(half, angles(at, HEAD_DIM // 2))
                    for half, at in zip(part.chunk(2, -1), (first, second), strict=True)
                ],
                -1,
            )
            for part in (q, k)
        )
        x = x * alpha + w.linear(f"{name}.attention.dense", attend(q, k, v, readable), WIDTH, bias=True)
        x = w.layer_norm(f"{name}.post_attention_layernorm", x, 1e-5)
        hidden = gelu_tanh(w.linear(f"{name}.mlp.dense_h_to_4h", x, HIDDEN, bias=True))
        x = x * alpha + w.linear(f"{name}.mlp.dense_4h_to_h", hidden, WIDTH, bias=True)
    return w.layer_norm("transformer.final_layernorm", x, 1e-5) @ w["transformer.word_embeddings.weight"].T


CHATGLM = dict(model_type="chatglm", vocab_size=VOCAB, hidden_size=WIDTH, inner_hidden_size=HIDDEN, num_layers=LAYERS,
               num_attention_heads=HEADS, layernorm_epsilon=1e-5, position_encoding_2d=True, max_sequence_length=64)  # fmt: skip

GROUPS = 2


def chatglm2(w: Weights, ids: Tensor) -> Tensor:
    """Grouped heads, RoPE on the first half of each in neighbouring pairs, SwiGLU from one matrix."""
    seq = ids.shape[1]
    turn = angles(torch.arange(seq), HEAD_DIM // 2)
    name = "transformer.embedding.word_embeddings.weight"
    x = (w[name] if name in w else w.draw(name, VOCAB, WIDTH))[ids]
    for layer in range(LAYERS):
        name = f"transformer.encoder.layers.{layer}"
        y = w.rms_norm(f"{name}.input_layernorm", x, 1e-5)
        packed = w.linear(f"{name}.self_attention.query_key_value", y, (HEADS + 2 * GROUPS) * HEAD_DIM, bias=True)
        q, k, v = packed.split([HEADS * HEAD_DIM, GROUPS * HEAD_DIM, GROUPS * HEAD_DIM], dim=-1)
        q, k, v = heads_of(q, HEADS), heads_of(k, GROUPS), heads_of(v, GROUPS)
        q, k = (
            torch.cat((turn_neighbours(part[..., : HEAD_DIM // 2], turn), part[..., HEAD_DIM // 2 :]), -1)
            for part in (q, k)
        )
        x = x + w.linear(f"{name}.self_attention.dense", attend(q, k, v, causal(seq)), WIDTH)
        y = w.rms_norm(f"{name}.post_attention_layernorm", x, 1e-5)
        gate, up = w.linear(f"{name}.mlp.dense_h_to_4h", y, 2 * HIDDEN).chunk(2, dim=-1)
        x = x + w.linear(f"{name}.mlp.dense_4h_to_h", silu(gate) * up, WIDTH)
    return w.linear("transformer.output_layer", w.rms_norm("transformer.encoder.final_layernorm", x, 1e-5), VOCAB)


CHATGLM2 = dict(model_type="chatglm", padded_vocab_size=VOCAB, hidden_size=WIDTH, ffn_hidden_size=HIDDEN, num_layers=LAYERS,
                num_attention_heads=HEADS, kv_channels=HEAD_DIM, multi_query_attention=True, multi_query_group_num=GROUPS,
                layernorm_epsilon=1e-5, rmsnorm=True, add_qkv_bias=True, add_bias_linear=False, post_layer_norm=True,
                apply_residual_connection_post_layernorm=False, original_rope=True, tie_word_embeddings=False)  # fmt: skip

RELEASED = {
    "Baichuan-7B": (BAICHUAN | {"max_position_embeddings": 64}, lambda w, ids: baichuan(w, ids, False, False)),
    "Baichuan-13B": (BAICHUAN | {"model_max_length": 64}, lambda w, ids: baichuan(w, ids, True, False)),
    "Baichuan2-7B": (
        BAICHUAN | {"max_position_embeddings": 64, "z_loss_weight": 0},
        lambda w, ids: baichuan(w, ids, False, True),
    ),
    "Baichuan2-13B": (
        BAICHUAN | {"model_max_length": 64, "z_loss_weight": 0},
        lambda w, ids: baichuan(w, ids, True, True),
    ),
    "Qwen-7B": (QWEN, qwen),
    "ChatGLM-6B": (CHATGLM, chatglm),
    "ChatGLM2-6B": (CHATGLM2, chatglm2),
}


@pytest.fixture(params=RELEASED)
def released(request, tmp_path):
    """A folder as it would be downloaded, the published definition's logits, and the weights that gave them."""
    config, definition = RELEASED[request.param]
    weights = Weights()
    expected = definition(weights, tokens())
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    return request.param, tmp_path, expected, weights


def logits_of(decoder, ids):
    return decoder(ids, prefix_len=PREFIX if decoder.mask.uses_prefix else None)


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).detach().abs().max() / expected.detach().abs().max())


def test_logits_are_those_of_the_published_definition(released, record_property):
    name, folder, expected, _ = released
    decoder = hub.load(folder)
    error = relative(logits_of(decoder, tokens()), expected)
    record_property("parity", (kind_of(json.loads((folder / "config.json").read_text())), error, None))
    assert error < CLOSE.get(name, 1e-9)


def test_every_gradient_is_that_of_the_published_definition(released, record_property):
    name, folder, _, weights = released
    for tensor in weights.values():
        tensor.requires_grad_()
    direction = torch.randn(2, SEQ, VOCAB, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (RELEASED[name][1](weights, tokens()) * direction).sum().backward()
    decoder = hub.load(folder)
    (logits_of(decoder, tokens()) * direction).sum().backward()
    ours, cfg = (
        {key: weight.grad for key, weight in decoder.named_parameters(remove_duplicate=False)},
        decoder.hub_origin[1],
    )
    kind = kind_of(json.loads((folder / "config.json").read_text()))
    errors = {
        row.theirs: relative(row.join([ours[part] for part in row.ours], cfg.size), weights[row.theirs].grad)
        for row in rows_of(hub.FAMILIES[kind], ours, cfg)
    }
    assert errors.keys() == weights.keys()
    record_property("parity", (kind, None, max(errors.values())))
    assert max(errors.values()) < 10 * CLOSE.get(name, 1e-9)


def test_goes_out_as_it_came_in_bit_for_bit(released, tmp_path):
    _, folder, _, weights = released
    hub.export(hub.load(folder), tmp_path / "out")
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == weights.keys()
    assert [name for name in again if not torch.equal(again[name], weights[name])] == []
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )


@pytest.mark.parametrize(
    ("name", "field", "value", "told"),
    [
        ("Qwen-7B", "no_bias", False, "no_bias=False"),
        ("Qwen-7B", "rotary_pct", 0.5, "rotary_pct=0.5"),
        ("Qwen-7B", "scale_attn_weights", False, "scale_attn_weights=False"),
        ("Baichuan-7B", "rope_theta", 5e5, "rope_theta=500000.0"),
        (
            "Baichuan-7B",
            "rope_scaling",
            {"type": "linear", "factor": 2.0},
            "rope_scaling={'type': 'linear', 'factor': 2.0}",
        ),
        ("ChatGLM-6B", "quantization_bit", 8, "quantization_bit=8"),
        ("ChatGLM2-6B", "quantization_bit", 4, "quantization_bit=4"),
        ("ChatGLM-6B", "position_encoding_2d", False, "position_encoding_2d=False"),
        ("ChatGLM2-6B", "rmsnorm", False, "rmsnorm=False"),
        ("ChatGLM2-6B", "multi_query_attention", False, "multi_query_attention=False"),
        ("ChatGLM2-6B", "multi_query_attention", None, "multi_query_attention=None"),
    ],
)
def test_what_no_block_does_is_refused(name, field, value, told, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED[name][0] | {field: value}))
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"config.json: {told}: no block of archlab does this"):
        hub.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "base", "scaled"),
    [
        ("THUDM/chatglm2-6b-32k", 10000.0, ("linear", 4.0)),
        ("THUDM/chatglm3-6b-32k", 40000.0, ("none", None)),
        (None, 40000.0, ("none", None)),
    ],
)
def test_the_second_generation_divides_positions_and_the_third_multiplies_the_base(name, base, scaled):
    config = RELEASED["ChatGLM2-6B"][0] | {"rope_ratio": 4, "_name_or_path": name}
    cfg = compose(*FAMILIES["chatglm2"].words(config))
    assert (cfg.pos.base, (cfg.pos.scaling, cfg.pos.factor)) == (base, scaled)


# ---------------------------------------------------------------- GLM-10B and GLM-130B


def small(preset: str):
    """The preset's blocks at a small size, with random weights, and these by name."""
    words = f"size.n_layers={LAYERS} size.d_model={WIDTH} size.n_heads={HEADS} size.head_dim={HEAD_DIM} size.d_ff={HIDDEN} size.vocab_size={VOCAB}"
    table = ["pos.max_positions=64", "train.train_len=64"] if preset == "glm_10b" else []
    cfg = compose(f"preset={preset}", *words.split(), *table)
    decoder = assemble(cfg).double().eval()
    weights = Weights()
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            weight.copy_(weights.draw(name, *weight.shape))
    return decoder, dict(decoder.named_parameters())


def layer_norm(p, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return p[f"{name}.gain"] * centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() + p[f"{name}.shift"]


def linear(p, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


@torch.no_grad()
def test_glm_10b_is_its_published_definition():
    """Pre-norm, two tables of positions: where in the text, and where in the blank; the last prefix token is the blank."""
    decoder, p = small("glm_10b")
    ids, index = tokens(), torch.arange(SEQ)
    readable = causal() | (index[None] < PREFIX)
    first, second = torch.where(index < PREFIX, index, PREFIX - 1), torch.where(index < PREFIX, 0, index - PREFIX + 1)
    x = p["embedding.weight"][ids] + p["position.tables.0.weight"][first] + p["position.tables.1.weight"][second]
    for layer in range(LAYERS):
        name = f"layers.{layer}"
        y = layer_norm(p, f"{name}.residual.norms.0", x, 1e-5)
        q, k, v = (heads_of(linear(p, f"{name}.mixer.{part}_proj", y), HEADS) for part in "qkv")
        x = x + linear(p, f"{name}.mixer.out_proj", attend(q, k, v, readable))
        y = layer_norm(p, f"{name}.residual.norms.1", x, 1e-5)
        x = x + linear(p, f"{name}.ffn.down_proj", gelu_tanh(linear(p, f"{name}.ffn.up_proj", y)))
    expected = layer_norm(p, "final_norm", x, 1e-5) @ p["embedding.weight"].T
    assert relative(decoder(ids, prefix_len=PREFIX), expected) < 1e-9


@torch.no_grad()
def test_glm_130b_is_its_published_definition():
    """DeepNorm(x) = LayerNorm(alpha x + f(x)) with alpha = (2N)^(1/2), RoPE of one position, GeGLU with biases."""
    decoder, p = small("glm_130b")
    ids, index, alpha = tokens(), torch.arange(SEQ), (2 * LAYERS) ** 0.5
    readable, turn = causal() | (index[None] < PREFIX), angles(index, HEAD_DIM)
    x = layer_norm(p, "embed_norm", p["embedding.weight"][ids], 1e-5)
    for layer in range(LAYERS):
        name = f"layers.{layer}"
        q, k, v = (heads_of(linear(p, f"{name}.mixer.{part}_proj", x), HEADS) for part in "qkv")
        read = attend(turn_halves(q, turn), turn_halves(k, turn), v, readable)
        x = layer_norm(p, f"{name}.residual.norms.0", alpha * x + linear(p, f"{name}.mixer.out_proj", read), 1e-5)
        gated = gelu(linear(p, f"{name}.ffn.gate_proj", x)) * linear(p, f"{name}.ffn.up_proj", x)
        x = layer_norm(p, f"{name}.residual.norms.1", alpha * x + linear(p, f"{name}.ffn.down_proj", gated), 1e-5)
    expected = x @ p["embedding.weight"].T
    assert relative(decoder(ids, prefix_len=PREFIX), expected) < 1e-9
