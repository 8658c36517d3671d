"""Blocks put together: published models rebuilt from options, weights copied, and every combination of options.

Of a published model both logits and gradients are compared, through a list of which of its weights is which of ours.
"""

import random
from collections.abc import Callable
from functools import cache
from itertools import combinations, product

import pytest
import torch
import torch.nn.functional as F
import transformers
from omegaconf import OmegaConf
from oracles import (
    BATCH,
    D_FF,
    D_MODEL,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    VOCAB,
    admits,
    build,
    draw_tokens,
    embeddings_of,
    every_three,
    joins,
    make,
    node,
    options,
)
from torch import nn

from archlab.base.errors import UserError
from archlab.config.of_model import check_leaks, check_norms
from archlab.model.decoder import Decoder

LONG, LAYERS = 70, 2
SQUARE = HEADS * HEAD_DIM  # the width of models whose heads share d_model out

# --- which of their weights is which of ours ----------------------------------------------------


def whole(weight):
    return weight


def transposed(weight):
    return weight.T if weight.dim() == 2 else weight


def third(which: int):
    """q, k and v side by side, the matrix with its input first."""
    return lambda weight: transposed(weight.chunk(3, dim=-1)[which])


def third_of_each_head(which: int):
    """q, k and v of the first head, then of the second."""
    return lambda weight: weight.unflatten(0, (HEADS, 3, HEAD_DIM))[:, which].flatten(0, 1)


def half(which: int):
    return lambda weight: weight.chunk(2)[which]


def same(ours: str, theirs: str, take=whole):
    return [(ours, theirs, take)]


def linear(ours: str, theirs: str, take=whole):
    """With a bias."""
    return [(f"{ours}.weight", f"{theirs}.weight", take), (f"{ours}.bias", f"{theirs}.bias", take)]


def layer_norm(ours: str, theirs: str):
    return [(f"{ours}.gain", f"{theirs}.weight", whole), (f"{ours}.shift", f"{theirs}.bias", whole)]


def rms_norm(ours: str, theirs: str):
    return same(f"{ours}.gain", f"{theirs}.weight")


def projections(theirs: str, out: str = "o_proj"):
    names = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": out}
    return [
        row
        for ours, name in names.items()
        for row in same(f"layers.{{}}.mixer.{ours}.weight", f"{theirs}.{name}.weight")
    ]


LAYER = "model.layers.{}"
EMBEDDING_AND_ATTENTION = [
    *same("embedding.weight", "model.embed_tokens.weight"),
    *projections(f"{LAYER}.self_attn"),
    *rms_norm("final_norm", "model.norm"),
]
SWIGLU = [
    *same("layers.{}.ffn.gate_proj.weight", f"{LAYER}.mlp.gate_proj.weight"),
    *same("layers.{}.ffn.up_proj.weight", f"{LAYER}.mlp.up_proj.weight"),
    *same("layers.{}.ffn.down_proj.weight", f"{LAYER}.mlp.down_proj.weight"),
]
HEAD = same("head.weight", "lm_head.weight")
LLAMA = [
    *EMBEDDING_AND_ATTENTION, *SWIGLU, *HEAD,
    *rms_norm("layers.{}.residual.norms.0", f"{LAYER}.input_layernorm"),
    *rms_norm("layers.{}.residual.norms.1", f"{LAYER}.post_attention_layernorm"),
]  # fmt: skip
QWEN3 = [
    *LLAMA,
    *rms_norm("layers.{}.mixer.q_norm", f"{LAYER}.self_attn.q_norm"),
    *rms_norm("layers.{}.mixer.k_norm", f"{LAYER}.self_attn.k_norm"),
]
OLMO2 = [
    *rms_norm("layers.{}.mixer.q_norm", f"{LAYER}.self_attn.q_norm"),
    *rms_norm("layers.{}.mixer.k_norm", f"{LAYER}.self_attn.k_norm"),
    *EMBEDDING_AND_ATTENTION, *SWIGLU, *HEAD,
    *rms_norm("layers.{}.residual.norms.0", f"{LAYER}.post_attention_layernorm"),
    *rms_norm("layers.{}.residual.norms.1", f"{LAYER}.post_feedforward_layernorm"),
]  # fmt: skip
GEMMA2 = [
    *EMBEDDING_AND_ATTENTION, *SWIGLU, *same("head.weight", "model.embed_tokens.weight"),
    *rms_norm("layers.{}.residual.norms.0", f"{LAYER}.input_layernorm"),
    *rms_norm("layers.{}.residual.branch_norms.0", f"{LAYER}.post_attention_layernorm"),
    *rms_norm("layers.{}.residual.norms.1", f"{LAYER}.pre_feedforward_layernorm"),
    *rms_norm("layers.{}.residual.branch_norms.1", f"{LAYER}.post_feedforward_layernorm"),
]  # fmt: skip
GLM = [
    *EMBEDDING_AND_ATTENTION, *HEAD,
    *same("layers.{}.mixer.q_proj.bias", f"{LAYER}.self_attn.q_proj.bias"),
    *same("layers.{}.mixer.k_proj.bias", f"{LAYER}.self_attn.k_proj.bias"),
    *same("layers.{}.mixer.v_proj.bias", f"{LAYER}.self_attn.v_proj.bias"),
    *same("layers.{}.ffn.gate_proj.weight", f"{LAYER}.mlp.gate_up_proj.weight", half(0)),
    *same("layers.{}.ffn.up_proj.weight", f"{LAYER}.mlp.gate_up_proj.weight", half(1)),
    *same("layers.{}.ffn.down_proj.weight", f"{LAYER}.mlp.down_proj.weight"),
    *rms_norm("layers.{}.residual.norms.0", f"{LAYER}.input_layernorm"),
    *rms_norm("layers.{}.residual.norms.1", f"{LAYER}.post_attention_layernorm"),
]  # fmt: skip
GPT2 = [
    *same("embedding.weight", "transformer.wte.weight"),
    *same("head.weight", "transformer.wte.weight"),
    *same("position.table.weight", "transformer.wpe.weight"),
    *(
        row
        for i, which in enumerate("qkv")
        for row in linear(f"layers.{{}}.mixer.{which}_proj", "transformer.h.{}.attn.c_attn", third(i))
    ),
    *linear("layers.{}.mixer.out_proj", "transformer.h.{}.attn.c_proj", transposed),
    *linear("layers.{}.ffn.up_proj", "transformer.h.{}.mlp.c_fc", transposed),
    *linear("layers.{}.ffn.down_proj", "transformer.h.{}.mlp.c_proj", transposed),
    *layer_norm("layers.{}.residual.norms.0", "transformer.h.{}.ln_1"),
    *layer_norm("layers.{}.residual.norms.1", "transformer.h.{}.ln_2"),
    *layer_norm("final_norm", "transformer.ln_f"),
]
GPTJ = [
    *same("embedding.weight", "transformer.wte.weight"),
    *linear("head", "lm_head"),
    *projections("transformer.h.{}.attn", out="out_proj"),
    *linear("layers.{}.ffn.up_proj", "transformer.h.{}.mlp.fc_in"),
    *linear("layers.{}.ffn.down_proj", "transformer.h.{}.mlp.fc_out"),
    *layer_norm("layers.{}.residual.norms.0", "transformer.h.{}.ln_1"),
    *layer_norm("final_norm", "transformer.ln_f"),
]


def fused_by_head(layer: str, attention: str, mlp: str = "mlp"):
    """What GPT-NeoX and Bloom, from one code base, call alike."""
    return [
        *(
            row
            for i, which in enumerate("qkv")
            for row in linear(
                f"layers.{{}}.mixer.{which}_proj", f"{layer}.{attention}.query_key_value", third_of_each_head(i)
            )
        ),
        *linear("layers.{}.mixer.out_proj", f"{layer}.{attention}.dense"),
        *linear("layers.{}.ffn.up_proj", f"{layer}.mlp.dense_h_to_4h"),
        *linear("layers.{}.ffn.down_proj", f"{layer}.mlp.dense_4h_to_h"),
        *layer_norm("layers.{}.residual.norms.0", f"{layer}.input_layernorm"),
        *layer_norm("layers.{}.residual.norms.1", f"{layer}.post_attention_layernorm"),
    ]


NEOX = [
    *same("embedding.weight", "gpt_neox.embed_in.weight"),
    *HEAD,
    *fused_by_head("gpt_neox.layers.{}", "attention"),
    *layer_norm("final_norm", "gpt_neox.final_layer_norm"),
]
BLOOM = [
    *same("embedding.weight", "transformer.word_embeddings.weight"),
    *same("head.weight", "transformer.word_embeddings.weight"),
    *layer_norm("embed_norm", "transformer.word_embeddings_layernorm"),
    *fused_by_head("transformer.h.{}", "self_attention"),
    *layer_norm("final_norm", "transformer.ln_f"),
]


COHERE = [
    *EMBEDDING_AND_ATTENTION, *SWIGLU, *same("head.weight", "model.embed_tokens.weight"),
    *rms_norm("layers.{}.residual.norms.0", f"{LAYER}.input_layernorm"),
]  # fmt: skip
BERT_LAYER = "bert.encoder.layer.{}"
BERT = [
    *same("embedding.weight", "bert.embeddings.word_embeddings.weight"),
    *same("position.table.weight", "bert.embeddings.position_embeddings.weight"),
    *same("embed_types.weight", "bert.embeddings.token_type_embeddings.weight"),
    *layer_norm("embed_norm", "bert.embeddings.LayerNorm"),
    *linear("layers.{}.mixer.q_proj", f"{BERT_LAYER}.attention.self.query"),
    *linear("layers.{}.mixer.k_proj", f"{BERT_LAYER}.attention.self.key"),
    *linear("layers.{}.mixer.v_proj", f"{BERT_LAYER}.attention.self.value"),
    *linear("layers.{}.mixer.out_proj", f"{BERT_LAYER}.attention.output.dense"),
    *layer_norm("layers.{}.residual.norms.0", f"{BERT_LAYER}.attention.output.LayerNorm"),
    *linear("layers.{}.ffn.up_proj", f"{BERT_LAYER}.intermediate.dense"),
    *linear("layers.{}.ffn.down_proj", f"{BERT_LAYER}.output.dense"),
    *layer_norm("layers.{}.residual.norms.1", f"{BERT_LAYER}.output.LayerNorm"),
    *linear("head.dense", "cls.predictions.transform.dense"),
    *layer_norm("head.norm", "cls.predictions.transform.LayerNorm"),
    *same("head.weight", "cls.predictions.decoder.weight"),
    *same("head.bias", "cls.predictions.decoder.bias"),
]


def translate(rows, theirs: dict) -> dict:
    """Their tensors under our names; of weights and of gradients alike, since each is only rearranged."""
    ours = {}
    for name, their_name, take in rows:
        for i in range(LAYERS) if "{}" in name else [0]:
            ours[name.format(i)] = take(theirs[their_name.format(i)])
    return ours


# --- published models ---------------------------------------------------------------------------

LLAMA_SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=D_MODEL,
    intermediate_size=D_FF,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    head_dim=HEAD_DIM,
    num_key_value_heads=KV_HEADS,
    rms_norm_eps=1e-6,
    max_position_embeddings=128,
    tie_word_embeddings=False,
    pad_token_id=None,
    bos_token_id=0,
    eos_token_id=0,
)
GPT_SIZES = dict(
    vocab_size=VOCAB,
    n_embd=SQUARE,
    n_inner=D_FF,
    n_layer=LAYERS,
    n_head=HEADS,
    n_positions=128,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    pad_token_id=None,
    bos_token_id=0,
    eos_token_id=0,
)
SQUARE_SIZES = dict(d_model=SQUARE)
BIASED = dict(qkv_bias=True, out_bias=True)

PUBLISHED = {
    # name: (their class, their options, our blocks, which weight is which)
    "llama": ("Llama", LLAMA_SIZES, dict(mixer="gqa"), LLAMA),
    "llama-mha": ("Llama", LLAMA_SIZES | dict(num_key_value_heads=HEADS), dict(mixer="mha"), LLAMA),
    "llama-mqa": ("Llama", LLAMA_SIZES | dict(num_key_value_heads=1), dict(mixer="mqa"), LLAMA),
    "llama-base": (
        "Llama",
        LLAMA_SIZES | dict(rope_parameters=dict(rope_type="default", rope_theta=500.0)),
        dict(mixer="gqa", pos=("rope", dict(base=500.0))),
        LLAMA,
    ),
    "mistral": (
        "Mistral",
        LLAMA_SIZES | dict(sliding_window=4),
        dict(mixer="gqa", mask=("window", dict(window=4))),
        LLAMA,
    ),
    "qwen3": ("Qwen3", LLAMA_SIZES, dict(mixer=("gqa", dict(qk_norm="head"))), QWEN3),
    "olmo2": (
        "Olmo2",
        LLAMA_SIZES | dict(hidden_size=SQUARE),
        dict(residual="branch_norm", mixer=("gqa", dict(qk_norm="width")), d_model=SQUARE),
        OLMO2,
    ),
    "gemma2": (
        "Gemma2",
        LLAMA_SIZES
        | dict(
            attn_logit_softcapping=3.0,
            final_logit_softcapping=2.0,
            query_pre_attn_scalar=17,
            hidden_activation="gelu",
            tie_word_embeddings=True,
            attn_implementation="eager",
            layer_types=["full_attention"] * LAYERS,
        ),
        dict(
            norm=("rms", dict(unit_offset=True)),
            residual="sandwich",
            ffn="geglu",
            mixer=("gqa", dict(softcap=3.0, scale=17**-0.5)),
            head=("linear", dict(softcap=2.0)),
            embed_scale="sqrt_d_model",
            tied=True,
        ),
        GEMMA2,
    ),
    "glm4": (
        "Glm",
        LLAMA_SIZES
        | dict(
            attention_bias=True,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.4),
        ),
        dict(mixer=("gqa", dict(qkv_bias=True)), pos=("rope", dict(layout="interleaved", fraction=0.4)), mask="prefix"),
        GLM,
    ),
    "gpt2": (
        "GPT2",
        GPT_SIZES,
        dict(
            norm="layer",
            ffn=("gelu_tanh", dict(bias=True)),
            pos=("learned", dict(max_positions=128)),
            mixer=("mha", BIASED),
            tied=True,
        )
        | SQUARE_SIZES,
        GPT2,
    ),
    "gptj": (
        "GPTJ",
        GPT_SIZES | dict(rotary_dim=4, attn_implementation="eager"),
        dict(
            norm="layer",
            residual="parallel",
            ffn=("gelu_tanh", dict(bias=True)),
            pos=("rope", dict(layout="interleaved", fraction=0.4)),
            head=("linear", dict(bias=True)),
        )
        | SQUARE_SIZES,
        GPTJ,
    ),
    "neox": (
        "GPTNeoX",
        LLAMA_SIZES
        | dict(
            hidden_size=SQUARE,
            use_parallel_residual=False,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.4),
        ),
        dict(norm="layer", ffn=("gelu", dict(bias=True)), pos=("rope", dict(fraction=0.4)), mixer=("mha", BIASED))
        | SQUARE_SIZES,
        NEOX,
    ),
    "neox-parallel": (
        "GPTNeoX",
        LLAMA_SIZES
        | dict(
            hidden_size=SQUARE,
            use_parallel_residual=True,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.4),
        ),
        dict(
            norm="layer",
            residual=("parallel", dict(norms=2)),
            ffn=("gelu", dict(bias=True)),
            pos=("rope", dict(fraction=0.4)),
            mixer=("mha", BIASED),
        )
        | SQUARE_SIZES,
        NEOX,
    ),
    "cohere": (
        "Cohere",
        {key: value for key, value in LLAMA_SIZES.items() if key not in ("head_dim", "rms_norm_eps")}
        | dict(
            hidden_size=SQUARE,
            logit_scale=0.0625,
            tie_word_embeddings=True,
            use_qk_norm=False,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        ),
        dict(
            norm=("layer", dict(shift=False)),
            residual="parallel",
            pos=("rope", dict(layout="interleaved")),
            mixer="gqa",
            head=("linear", dict(scale=0.0625)),
            tied=True,
        )
        | SQUARE_SIZES,
        COHERE,
    ),
    "bert": (
        "Bert",
        {
            key: value
            for key, value in LLAMA_SIZES.items()
            if "key_value" not in key and "rms" not in key and "head_dim" not in key
        }
        | dict(
            hidden_size=SQUARE,
            type_vocab_size=3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            tie_word_embeddings=True,
        ),
        dict(
            norm=("layer", dict(eps=1e-12)),
            residual="post",
            ffn=("gelu", dict(bias=True)),
            pos=("learned", dict(max_positions=128)),
            mask="full",
            mixer=("mha", BIASED),
            head="mlm",
            embed_norm=True,
            embed_types=3,
            tied=True,
        )
        | SQUARE_SIZES,
        BERT,
    ),
    "bloom": (
        "Bloom",
        dict(
            vocab_size=VOCAB,
            hidden_size=SQUARE,
            n_layer=LAYERS,
            n_head=HEADS,
            pad_token_id=None,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="eager",
        ),
        dict(
            norm="layer",
            ffn=("gelu_tanh", dict(bias=True)),
            pos="alibi",
            mixer=("mha", BIASED),
            embed_norm=True,
            tied=True,
            d_ff=4 * SQUARE,
        )
        | SQUARE_SIZES,
        BLOOM,
    ),
}


def published(family: str, sizes: dict) -> nn.Module:
    """One of theirs with weights at which conventions show: sharp attention, gains off one, biases off zero."""
    config = getattr(transformers, f"{family}Config")(**{"attn_implementation": "sdpa", **sizes})
    name = {"GPT2": "GPT2LMHeadModel", "Bert": "BertForMaskedLM"}.get(family, f"{family}ForCausalLM")
    model = getattr(transformers, name)(config).double().eval()
    for name, weight in model.named_parameters():
        sharp = any(part in name for part in ("q_proj", "k_proj", "c_attn", "query_key_value"))
        with torch.no_grad():
            if weight.dim() > 1:
                weight.normal_().mul_(min(weight.shape) ** -0.5 * (2 if sharp else 1))
            else:
                weight.normal_().mul_(0.3)
                if name.endswith("weight") and family != "Gemma2":  # whose norms add one themselves
                    weight.add_(1)
    return model


def ours(choices: dict, weights: dict) -> Decoder:
    parts = {
        key: make(key, choice[0], **choice[1]) if isinstance(choice, tuple) else choice
        for key, choice in choices.items()
    }
    decoder = build(n_layers=LAYERS, **parts)
    decoder.load_state_dict(weights)
    return decoder


def close(actual, expected, name: str):
    """Theirs take norms, angles and some softmaxes in float32: 6e-8 of each, and some hundred such roundings."""
    scale = max(
        1.0, expected.abs().max().item()
    )  # what is zero but for rounding, as a key's bias has it, is zero beside one
    assert (actual - expected).abs().max().item() < 2e-5 * scale, name


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_model(name):
    family, sizes, choices, rows = PUBLISHED[name]
    theirs = published(family, sizes)
    decoder = ours(choices, translate(rows, theirs.state_dict()))
    tokens, direction = draw_tokens(seq=LONG), torch.randn(BATCH, LONG, VOCAB).double()

    their_mask, prefix_len = None, None
    if name == "glm4":
        prefix_len = torch.tensor([30, 55])
        query, key = torch.arange(LONG).view(1, 1, -1, 1), torch.arange(LONG).view(1, 1, 1, -1)
        readable = (key <= query) | (key < prefix_len.view(-1, 1, 1, 1))
        their_mask = torch.zeros(BATCH, 1, LONG, LONG).double().masked_fill(~readable, -1e9)

    expected = theirs(tokens, attention_mask=their_mask, **({} if name == "bert" else {"use_cache": False})).logits
    logits = decoder(tokens, prefix_len)
    close(logits, expected, "logits")

    (expected * direction).sum().backward()
    (logits * direction).sum().backward()
    gradients = translate(rows, {name: weight.grad for name, weight in theirs.named_parameters(remove_duplicate=False)})
    named = dict(decoder.named_parameters(remove_duplicate=False))
    assert named.keys() == gradients.keys()
    for weight_name, weight in named.items():
        close(weight.grad, gradients[weight_name], weight_name)


# --- every combination --------------------------------------------------------------------------

TINY = dict(d_model=8, n_layers=1, n_heads=2, head_dim=4, d_ff=12, vocab_size=11)
SHORT, PREFIXES = 4, (0, 2, 4)
BLOCKS = ("norm", "residual", "ffn", "pos", "mask", "mixer")  # a head comes after all layers: its contract is enough
PARTS = tuple(options(group) for group in BLOCKS)


@cache
def part(group: str, name: str):
    return make(group, name, **({"max_positions": SHORT} if name == "learned" else {}))


def refusal(norm: str, residual: str, mask: str) -> str | None:
    """What archlab has against these together."""
    return refused(check_leaks, norm=norm, mask=mask) or refused(check_norms, (), norm=norm, residual=residual)


@cache
def refused(check: Callable[..., None], *more: object, **choices: str) -> str | None:
    cfg = {"allow_leak": False, "embed": {"norm": False}, "choices": choices}
    try:
        check(OmegaConf.create(cfg | {group: node(group, name) for group, name in choices.items()}), *more)
    except UserError as error:
        return str(error)
    return None


@cache
def leaks(norm: str) -> bool:
    """Measured: whether a position's output moves with a later one, or with another sequence."""
    x = torch.randn(BATCH, SHORT, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(part("norm", norm)(d_model=8)(x)[0, 1].square().sum(), x)
    return bool(gradient[0, 2:].any() or gradient[1].any())


@cache
def reads_all(mask: str) -> bool:
    return not part("mask", mask)().may_score(SHORT, torch.zeros(1, dtype=torch.long))[0, :-1].any()


@cache
def indistinct(norm: str, residual: str) -> bool:
    """Measured: whether, with this norm, a scheme computes what pre-norm computes."""
    x = torch.randn(1, SHORT, 8)

    def run(scheme):
        """Two whole layers, since a scheme may have norms within its branches, or know its depth; weights are drawn alike."""
        torch.manual_seed(0)
        blocks = {
            "norm": norm,
            "residual": scheme,
            "ffn": "swiglu",
            "pos": "none",
            "mask": "causal",
            "mixer": "mha",
            "head": "linear",
        }
        sizes = {**TINY, "n_layers": 2, "n_kv_heads": 2}
        decoder = Decoder(**sizes, **{group: part(group, name) for group, name in blocks.items()})
        context, (first, second) = decoder.read(torch.zeros(1, SHORT, dtype=torch.long))[0], decoder.layers
        return second.residual.leave(second(first(first.residual.enter(x), context), context))

    return residual != "pre" and torch.equal(run(residual), run("pre"))


each_norm_and_mask = pytest.mark.parametrize(("norm", "mask"), list(product(options("norm"), options("mask"))))


@each_norm_and_mask
def test_refused_are_what_leaks_and_what_is_another_option_under_a_new_name(norm, mask):
    for residual in options("residual"):
        leaking, same_as_pre = leaks(norm) and not reads_all(mask), indistinct(norm, residual)
        message = refusal(norm, residual, mask)
        assert bool(message) == (leaking or same_as_pre), residual
        if leaking:
            assert f"norm={norm}" in message and f"mask={mask}" in message and "allow_leak=true" in message
        elif same_as_pre:
            assert f"residual={residual}" in message and f"norm={norm}" in message and "use residual=pre" in message


SIDES = (("norm", "residual"), ("pos", "mixer"))
"""What may be refused beside a mask, and by each other."""


@cache
def admitted() -> dict[str, tuple[list, list]]:
    """By mask: the norms and residual schemes, and the positions and mixers, that can be built with it."""
    return {
        mask: (
            [(norm, scheme) for norm, scheme in product(*PARTS[:2]) if not refusal(norm, scheme, mask)],
            [(pos, mixer) for pos, mixer in product(PARTS[3], PARTS[5]) if admits(pos, mask, mixer)],
        )
        for mask in PARTS[4]
    }


Part = tuple[str, str]
"""A group and its option."""


def pairs_of(parts: list[Part]) -> set[tuple[Part, ...]]:
    return set(combinations(sorted(parts), 2))


def every_pair() -> set[tuple[Part, ...]]:
    """Every pair of options that some combination holds."""
    pairs, ffns = set(), {("ffn", name) for name in PARTS[2]}
    for mask, rows in admitted().items():
        sides = [[list(zip(groups, row, strict=True)) for row in rows[i]] for i, groups in enumerate(SIDES)]
        here = [{part for row in side for part in row} for side in sides]
        pairs |= {pair for side in sides for row in side for pair in pairs_of([*row, ("mask", mask)])}
        pairs |= {
            tuple(sorted(pair)) for pair in (*product(*here), *product(ffns, here[0] | here[1] | {("mask", mask)}))
        }
    return {pair for pair in pairs if can_be(dict(pair))}


def can_be(choice: dict[str, str]) -> bool:
    return not {"residual", "ffn"} <= choice.keys() or joins(choice["residual"], choice["ffn"])


def pairwise() -> list[tuple[str, ...]]:
    """Combinations that hold every pair of options which any combination holds, each the best of some that hold one of them."""
    draw, todo, chosen = random.Random(0), every_pair(), []
    while todo:
        wanted = dict(min(todo))
        candidates = [
            (*norming, wanted.get("ffn") or draw.choice(PARTS[2]), mixing[0], mask, mixing[1])
            for mask, (normings, mixings) in admitted().items()
            if wanted.get("mask", mask) == mask
            for norming, mixing in product(
                some(normings, SIDES[0], wanted, draw), some(mixings, SIDES[1], wanted, draw)
            )
        ]
        candidates = [choice for choice in candidates if can_be(dict(named(choice)))]
        if not candidates:  # of what was drawn none joins the branches that there are
            continue
        best = max(candidates, key=lambda choice: len(pairs_of(named(choice)) & todo))
        todo -= pairs_of(named(best))
        chosen.append(best)
    return chosen


def named(choice: tuple[str, ...]) -> list[Part]:
    return list(zip(BLOCKS, choice, strict=True))


def fit(rows: list, groups: tuple[str, ...], wanted: dict[str, str]) -> list:
    """Those of these rows that have what is wanted."""
    at = [(place, wanted[group]) for place, group in enumerate(groups) if group in wanted]
    return [row for row in rows if all(row[place] == name for place, name in at)]


def some(rows: list, groups: tuple[str, ...], wanted: dict[str, str], draw: random.Random) -> list:
    """A few of them."""
    found = fit(rows, groups, wanted)
    return draw.sample(found, k=min(9, len(found)))


def check_combination(choice: tuple[str, ...]) -> None:
    """Forward, backward, a step; what may be scored has no gradient towards what comes later or to another sequence."""
    parts = {group: part(group, name) for group, name in zip(BLOCKS, choice, strict=True)}
    decoder = Decoder(**TINY, n_kv_heads=parts["mixer"].func.default_kv_heads(2), head=part("head", "linear"), **parts)

    # A sequence for each position that may be scored, under each prefix: one backward pass then looks at all of them.
    prefixes = PREFIXES if decoder.mask.uses_prefix else (0,)
    scored = decoder.mask.may_score(SHORT, torch.tensor(prefixes))
    assert scored.any(dim=1).all()
    which, position = scored.nonzero().unbind(dim=1)
    prefix_len = torch.tensor(prefixes)[which]
    tokens, targets = torch.randint(11, (len(which), SHORT)), torch.randint(11, (len(which),))

    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2, foreach=True)
    kept = embeddings_of(decoder)
    logits = decoder(tokens, prefix_len if decoder.mask.uses_prefix else None)
    assert logits.isfinite().all()
    alone = F.cross_entropy(logits[torch.arange(len(which)), position], targets)
    (towards,) = torch.autograd.grad(alone, kept, retain_graph=True)
    later = torch.arange(SHORT) > position[:, None]
    assert not towards[later].any(), "the future reaches a position that is scored"
    assert towards.any()

    alone.backward()
    optimizer.step()
    assert all(weight.isfinite().all() for weight in decoder.parameters())
    assert all(weight.grad is not None for weight in decoder.layers.parameters())


@pytest.mark.parametrize("choice", pairwise(), ids="-".join)
def test_pairwise(choice):
    check_combination(choice)


def completed(wanted: dict[str, str], draw: random.Random) -> dict[str, str] | None:
    """A combination that holds what is wanted; None where there is none."""
    ffns = [wanted["ffn"]] if "ffn" in wanted else draw.sample(PARTS[2], k=len(PARTS[2]))
    for mask in draw.sample(PARTS[4], k=len(PARTS[4])):
        if wanted.get("mask", mask) == mask:
            normings, mixings = (fit(rows, side, wanted) for rows, side in zip(admitted()[mask], SIDES, strict=True))
            for norming, ffn in product(draw.sample(normings, k=len(normings)), ffns):
                if mixings and joins(norming[1], ffn):
                    mixing = draw.choice(mixings)
                    return dict(named((*norming, ffn, mixing[0], mask, mixing[1])))
    return None


@cache
def by_norm() -> dict[str, list[tuple[str, ...]]]:
    chosen = {norm: [] for norm in PARTS[0]}
    for choice in every_three(dict(zip(BLOCKS, PARTS, strict=True)), completed):
        chosen[choice["norm"]].append(tuple(choice.values()))
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("norm", options("norm"))
def test_every_three_options(norm):
    chosen = by_norm()[norm]
    assert chosen
    for choice in chosen:
        check_combination(choice)


@pytest.mark.parametrize(
    ("wanted", "why_not"),
    [
        ({"norm": "batch", "mask": "full", "mixer": "mamba2"}, "a recurrence is causal by nature"),
        ({"norm": "none", "residual": "post", "ffn": "gelu"}, "differs from pre-norm only in where its norms sit"),
        ({"norm": "batch", "mask": "causal", "pos": "rope"}, "sees what comes later"),
        ({"norm": "none", "residual": "pre", "mask": "causal"}, None),
        ({"ffn": "none", "mask": "prefix", "pos": "rope_2d"}, None),
    ],
)
def test_three_options_that_nothing_completes_are_in_no_combination(wanted, why_not):
    choice = completed(wanted, random.Random(0))
    assert choice is None if why_not else wanted.items() <= choice.items()


def test_a_leaking_combination_is_caught():
    """The check above has teeth: a norm over positions under a causal mask does not pass it."""
    with pytest.raises(AssertionError, match="the future"):
        check_combination(("instance", "pre", "swiglu", "rope", "causal", "mha"))
