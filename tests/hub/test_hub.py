"""Released families against transformers' own classes, with random weights and odd sizes, in float64."""

import json
import re
import resource
import signal
from contextlib import nullcontext
from copy import deepcopy
from functools import cache

import pytest
import torch
from oracles import BLOCKS, built, every_option
from oracles import build as make_decoder
from torch.overrides import TorchFunctionMode

import archlab
from archlab import hub
from archlab.base.errors import NoRoom, UserError
from archlab.config.assemble import assemble
from archlab.hub.files import rows_of

transformers = pytest.importorskip("transformers")

NEW = dict(
    vocab_size=61,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=3,
    intermediate_size=88,
    max_position_embeddings=64,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
    attn_implementation="eager",
)
OLD = dict(
    vocab_size=61, n_embd=48, n_layer=3, n_head=6, attn_implementation="eager", bos_token_id=None, eos_token_id=None
)
MPT = dict(
    vocab_size=61, d_model=48, n_layers=3, n_heads=4, expansion_ratio=4, max_seq_len=64, attn_implementation="eager"
)
HD = dict(head_dim=10)
MANY = NEW | dict(num_hidden_layers=2, intermediate_size=28, moe_intermediate_size=20, num_experts_per_tok=3)
LATENT = dict(
    num_key_value_heads=6,
    kv_lora_rank=18,
    qk_nope_head_dim=10,
    qk_rope_head_dim=4,
    v_head_dim=12,
    first_k_dense_replace=1,
)
CASES = {
    "llama": ("Llama", NEW),
    "llama, head_dim": ("Llama", NEW | HD | dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "llama, linear": ("Llama", NEW | dict(rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=500.0))),
    "llama, llama3": (
        "Llama",
        NEW
        | dict(
            rope_parameters=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
                rope_theta=10000.0,
            )
        ),
    ),
    "llama, yarn": (
        "Llama",
        NEW
        | dict(
            rope_parameters=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, rope_theta=10000.0)
        ),
    ),
    "llama, yarn with mscale": (
        "Llama",
        NEW
        | dict(
            rope_parameters=dict(
                rope_type="yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                rope_theta=10000.0,
                mscale=1.3,
                mscale_all_dim=0.4,
            )
        ),
    ),
    "mistral": ("Mistral", NEW | dict(sliding_window=5, head_dim=8)),
    "granite": (
        "Granite",
        NEW
        | dict(
            embedding_multiplier=1.5,
            attention_multiplier=0.4,
            residual_multiplier=0.6,
            logits_scaling=3.0,
        ),
    ),
    "qwen2": ("Qwen2", NEW),
    "qwen3": ("Qwen3", NEW | HD),
    "glm": ("Glm", NEW | dict(head_dim=8, attention_bias=True)),
    "glm4": ("Glm4", NEW | dict(head_dim=8, attention_bias=True)),
    "gemma": ("Gemma", NEW | HD),
    "gemma2": ("Gemma2", NEW | HD | dict(sliding_window=4, query_pre_attn_scalar=7)),
    "gemma3_text": (
        "Gemma3Text",
        NEW
        | HD
        | dict(
            sliding_window=4,
            query_pre_attn_scalar=7,
            sliding_window_pattern=3,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        ),
    ),
    "gemma3_text, linear": (
        "Gemma3Text",
        NEW
        | HD
        | dict(
            sliding_window=4,
            query_pre_attn_scalar=7,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=100.0),
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=5000.0),
            ),
        ),
    ),
    "olmo": ("Olmo", NEW),
    "olmo, clipped": ("Olmo", NEW | dict(clip_qkv=0.8)),
    "olmo2": ("Olmo2", NEW),
    "smollm3": (
        "SmolLM3",
        NEW | dict(no_rope_layers=[1, 0, 1], rope_parameters=dict(rope_type="default", rope_theta=500.0)),
    ),
    "olmo3": (
        "Olmo3",
        NEW
        | dict(
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=500.0),
                full_attention=dict(
                    rope_type="yarn",
                    rope_theta=500.0,
                    factor=4.0,
                    original_max_position_embeddings=16,
                    attention_factor=1.2,
                    beta_fast=32.0,
                    beta_slow=1.0,
                ),
            ),
        ),
    ),
    "stablelm": ("StableLm", NEW | dict(use_qkv_bias=True)),
    "stablelm, parallel": ("StableLm", NEW | dict(use_parallel_residual=True)),
    "stablelm, norms of heads": ("StableLm", NEW | dict(use_parallel_residual=True, qk_layernorm=True)),
    "cohere": ("Cohere", NEW),
    "cohere, norms of heads": ("Cohere", NEW | dict(use_qk_norm=True, logit_scale=0.7)),
    "cohere2": (
        "Cohere2",
        NEW
        | dict(
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=dict(rope_type="default", rope_theta=500.0),
        ),
    ),
    "phi": ("Phi", NEW),
    "phi, norms of heads": ("Phi", NEW | dict(qk_layernorm=True, layer_norm_eps=3e-3)),
    "phi3": (
        "Phi3",
        NEW
        | dict(
            pad_token_id=0,
            sliding_window=6,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
        ),
    ),
    "phi3, longrope": (
        "Phi3",
        NEW
        | dict(
            pad_token_id=0,
            original_max_position_embeddings=16,
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=10000.0,
                partial_rotary_factor=0.75,
                short_factor=[1.0, 1.1, 1.3],
                long_factor=[1.0, 2.5, 4.0],
            ),
        ),
    ),
    "gpt2": ("GPT2", OLD | dict(n_positions=64)),
    "gptj": ("GPTJ", OLD | dict(rotary_dim=4, n_positions=64)),
    "gpt_neox": ("GPTNeoX", NEW),
    "gpt_neox, sequential": ("GPTNeoX", NEW | dict(use_parallel_residual=False)),
    "bloom": ("Bloom", dict(vocab_size=61, hidden_size=48, n_layer=3, n_head=6, attn_implementation="eager")),
    "mpt": ("Mpt", MPT),
    "mpt, clipped": ("Mpt", MPT | dict(attn_config=dict(clip_qkv=0.7))),
    "opt": ("OPT", NEW | dict(ffn_dim=88, word_embed_proj_dim=48)),
    "opt, post": ("OPT", NEW | dict(ffn_dim=88, word_embed_proj_dim=20, do_layer_norm_before=False)),
    "mixtral": ("Mixtral", MANY | dict(num_local_experts=5, sliding_window=7)),
    "qwen3_moe": ("Qwen3Moe", MANY | HD | dict(num_experts=7, norm_topk_prob=True, mlp_only_layers=[1])),
    "olmoe": ("Olmoe", MANY | dict(num_experts=7, clip_qkv=0.9)),
    "deepseek_v2": (
        "DeepseekV2",
        MANY | LATENT | dict(q_lora_rank=None, n_routed_experts=7, n_shared_experts=2, routed_scaling_factor=1.5),
    ),
    "deepseek_v3": (
        "DeepseekV3",
        MANY
        | LATENT
        | dict(
            q_lora_rank=14,
            n_routed_experts=6,
            n_shared_experts=1,
            n_group=3,
            topk_group=2,
            attention_bias=True,
            rope_parameters=dict(
                rope_type="yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                rope_theta=10000.0,
                mscale=0.7,
                mscale_all_dim=1.3,
            ),
        ),
    ),
    "glm4_moe": (
        "Glm4Moe",
        MANY
        | dict(
            head_dim=12,
            n_routed_experts=7,
            n_shared_experts=2,
            attention_bias=True,
            use_qk_norm=True,
            routed_scaling_factor=1.5,
        ),
    ),
    "gpt_oss": (
        "GptOss",
        MANY
        | HD
        | dict(
            num_local_experts=7,
            sliding_window=5,
            rope_parameters=dict(
                rope_type="yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                rope_theta=10000.0,
                beta_fast=3.0,
                truncate=False,
            ),
        ),
    ),
    "llama4_text": (
        "Llama4Text",
        MANY
        | dict(
            num_hidden_layers=5,
            head_dim=10,
            num_local_experts=7,
            num_experts_per_tok=1,
            intermediate_size_mlp=36,
            interleave_moe_layer_step=2,
            attention_chunk_size=9,
            floor_scale=6,
            attn_scale=0.7,
            rms_norm_eps=3e-4,
            rope_parameters=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
                rope_theta=500.0,
            ),
        ),
    ),
    "qwen3_next": (
        "Qwen3Next",
        MANY
        | dict(
            head_dim=8,
            num_experts=7,
            shared_expert_intermediate_size=40,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=10,
            linear_value_head_dim=14,
            layer_types=["linear_attention", "full_attention"],
            rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5),
        ),
    ),
    "falcon": (
        "Falcon",
        NEW | dict(ffn_hidden_size=88, multi_query=True, new_decoder_architecture=False, alibi=False, bias=False),
    ),
    "falcon, alibi": (  # slopes that bfloat16 has exactly, and heads of 4, whose root float32 divides by exactly
        "Falcon",
        NEW
        | dict(
            hidden_size=32,
            num_attention_heads=8,
            ffn_hidden_size=88,
            multi_query=False,
            parallel_attn=False,
            new_decoder_architecture=False,
            alibi=True,
            bias=True,
        ),
    ),
    "falcon, new": (
        "Falcon",
        NEW | dict(ffn_hidden_size=88, num_kv_heads=3, new_decoder_architecture=True, alibi=False, bias=True),
    ),
    "apertus": ("Apertus", NEW | dict(attention_bias=True)),
    "nemotron": ("Nemotron", NEW | dict(head_dim=12, mlp_bias=True)),
    "mamba2": (
        "Mamba2",
        dict(
            vocab_size=61,
            hidden_size=30,
            num_hidden_layers=3,
            num_heads=6,
            head_dim=10,
            expand=2,
            state_size=14,
            n_groups=3,
            conv_kernel=5,
            layer_norm_epsilon=1e-4,
            chunk_size=16,
            tie_word_embeddings=True,
        ),
    ),
    "nanochat": ("NanoChat", NEW | dict(attention_bias=True, final_logit_softcapping=7.0)),
    "starcoder2": ("Starcoder2", NEW | dict(sliding_window=6)),
    "lfm2": (
        "Lfm2",
        NEW
        | dict(
            layer_types=["conv", "full_attention", "conv"],
            conv_bias=True,
            conv_L_cache=4,
            block_multiple_of=20,
            intermediate_size=100,
        ),
    ),
}


PUBLISHED = ("baichuan", "qwen", "chatglm", "chatglm2")
"""Families without a class in transformers: tests/hub/test_published.py holds them to their published definitions."""

HOW = {"falcon, alibi": "sdpa"}
"""Which of a class's two ways to compute attention, where it is not the eager one: with ALiBi Falcon's adds the biases twice."""

SHORT, LONG = 37, 331
"""Tokens; the second is five times the 64 that these models are configured for."""


def how(case):
    return dict(attn_implementation=HOW.get(case, "eager"), experts_implementation="eager")


"""Grouped products of experts take no float64."""


def theirs(case):
    kind, given = CASES[case]
    config = getattr(transformers, f"{kind}Config")(**given)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, **how(case)).eval()
    held = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model = model.double()
    for name, tensor in held.items():
        # RoPE's frequencies stay the float32 they are in the class; Gemma's sqrt(d_model) is no longer a rounded one.
        wide = torch.tensor(config.hidden_size**0.5, dtype=torch.float64) if name.endswith("embed_scale") else tensor
        if name.endswith("e_score_correction_bias"):  # of which 0 would change no choice
            wide = torch.randn_like(tensor) * 0.3
        wide = wide.double() if name in model.state_dict() else wide  # as loading has it: Apertus' two constants
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, wide)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Large enough for scores to be far from even, so that a wrong position or scale shows in the logits.
            weight.copy_(
                torch.randn_like(weight) * (0.3 if weight.ndim > 1 else 0.5) + (1.0 if weight.ndim == 1 else 0.0)
            )
            if name.endswith("mlp.gate.weight"):  # which some classes load as float32
                weight.copy_(weight.float())
    return model


@cache
def both(case):
    """The class's model and the decoder made of it, to be computed with and left as they are."""
    model = theirs(case)
    return model, hub.from_hf(model)


def loaded(folder, case=""):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **how(case))
    for weight in model.parameters():  # some classes keep the router's in float32
        weight.data = weight.data.double()
    return model


class InFloat64(TorchFunctionMode):
    """Leaves float64 as it is where a class asks for float32, so that what is left to compare is the function itself.

    transformers' norms and softmax take float32 whatever the model's dtype. RoPE's angles are float32 here and there, by
    the same operations on the same numbers, and stay so.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.polar:  # whose cosines and sines are rounded otherwise than those of float32
            return torch.complex(args[0] * args[1].cos(), args[0] * args[1].sin())
        wide = isinstance(args[0] if args else None, torch.Tensor) and args[0].dtype == torch.float64
        if wide and (
            func is torch.Tensor.float
            or (func in (torch.Tensor.to, torch.Tensor.type) and torch.float32 in (*args[1:], kwargs.get("dtype")))
        ):
            return args[0]
        if wide and kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


class WideAngles(TorchFunctionMode):
    """Takes cosines and sines of RoPE's float32 angles in float64.

    For NanoChat and Llama 4, on both sides: their norm after the rotation undoes by how much cos^2 + sin^2 of float32 is not 1, which a
    norm before it does not.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        wide = func in (torch.Tensor.cos, torch.Tensor.sin)
        return func(*((args[0].double(), *args[1:]) if wide else args), **(kwargs or {}))


def angles_of(model):
    return WideAngles() if model.config.model_type in ("nanochat", "llama4_text") else nullcontext()


def tokens(length=SHORT):
    return torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(5))


def relative(ours, expected):
    return float((ours - expected).detach().abs().max() / expected.detach().abs().max())


def compared(model, decoder, ids):
    """The largest relative error of the logits, and of the gradient of any weight."""
    with angles_of(model), InFloat64():
        expected = model(ids).logits
    with angles_of(model):
        ours = decoder(ids)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(7), dtype=ours.dtype)
    model.zero_grad(), decoder.zero_grad()
    with InFloat64():
        (expected * weights).sum().backward()
    (ours * weights).sum().backward()
    their_gradients = {name: weight.grad for name, weight in model.named_parameters()}
    cfg = decoder.hub_origin[1]
    our_gradients = {name: weight.grad for name, weight in decoder.named_parameters(remove_duplicate=False)}
    family = hub.FAMILIES[model.config.model_type]
    largest = max(float(gradient.abs().max()) for gradient in their_gradients.values())
    gradients = {}
    for row in rows_of(family, our_gradients, cfg):
        if row.theirs in their_gradients:
            joined = row.join([our_gradients[name] for name in row.ours], cfg.size)
            # A bias on keys has a gradient of 0 by softmax's own symmetry, so what is there is rounding.
            scale = max(largest * 1e-6, float(their_gradients[row.theirs].abs().max()))
            gradients[row.theirs] = float((joined - their_gradients[row.theirs]).abs().max()) / scale
    assert set(gradients) == set(their_gradients)
    return relative(ours, expected), max(gradients.values())


@pytest.mark.parametrize("case", CASES)
def test_logits_and_every_gradient_are_those_of_transformers_class(case, record_property):
    logits, gradients = compared(*both(case), tokens())
    record_property("parity", (case.split(",")[0], logits, gradients))
    assert logits < 1e-9 and gradients < 1e-8  # through softmaxes whose scores are in the hundreds


@pytest.mark.parametrize(
    "case",
    [
        case
        for case, (kind, given) in CASES.items()
        if kind not in ("GPT2", "OPT", "GPTJ", "Mpt") and not given.get("alibi")
    ],
)
def test_positions_beyond_those_a_model_is_configured_for(case):
    """Where there is no table of them: GPT-2 and OPT have one, and GPT-J's and MPT's classes for angles and biases.

    Falcon's class has ALiBi's biases in bfloat16, which are exact for slopes of 8 heads up to position 256 alone.
    """
    (model, decoder), one = both(case), tokens(LONG)[:1]
    with torch.no_grad(), angles_of(model), InFloat64():
        error = relative(decoder(one), model(one).logits)
    assert error < 1e-9


def test_a_prefix_mask_is_glms_class_with_a_mask_of_four_axes():
    """GLM-4's weights under mask=prefix, against transformers' class told who may read whom."""
    (model, decoder), prefix = both("glm"), 9
    cfg = decoder.hub_origin[1].copy()
    cfg.mask = archlab.compose("mask=prefix").mask
    prefixed = assemble(cfg).double().eval()
    prefixed.load_state_dict(decoder.state_dict())
    index = torch.arange(SHORT)
    readable = (index[None] <= index[:, None]) | (index[None] < prefix)
    mask = torch.where(readable, 0.0, float("-inf")).double()[None, None].expand(2, 1, SHORT, SHORT)
    with torch.no_grad(), InFloat64():
        expected = model(tokens(), attention_mask=mask).logits
        assert relative(prefixed(tokens(), prefix_len=prefix), expected) < 1e-9
        assert relative(decoder(tokens()), expected) > 0.1


UNLIKE = ("llama", "gemma2", "gpt2", "falcon, new", "gpt_oss", "deepseek_v3", "qwen3_next")


@pytest.mark.parametrize(
    "case", [case if case in UNLIKE else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_decoder_made_here_is_exported_as_the_family_that_has_its_blocks(case, tmp_path):
    """Its configuration alone is known: the family, its config.json and the class follow from the blocks."""
    model, decoder = both(case)
    decoder = deepcopy(decoder)
    del decoder.hub_origin
    hub.export(decoder, tmp_path / "out")
    again = loaded(tmp_path / "out", case)
    assert type(again) is type(model)
    assert [
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, again.state_dict()[name])
    ] == []
    with torch.no_grad(), InFloat64():
        assert relative(again(tokens()).logits, model(tokens()).logits) < 1e-9


def test_the_default_model_is_exported_as_llama_with_its_embeddings_multiplied(tmp_path):
    decoder = built("size=nano").double().eval()
    hub.export(decoder, tmp_path / "out")
    again = loaded(tmp_path / "out")
    assert type(again).__name__ == "LlamaForCausalLM"
    with torch.no_grad(), InFloat64():
        assert relative(again(tokens()).logits, decoder(tokens())) < 1e-9


def test_what_no_family_has_is_refused_by_name(tmp_path):
    with pytest.raises(
        UserError, match="no released family has all of these blocks.*; nearest is llama, with residual=pre"
    ):
        hub.export(built("size=nano", "residual=deep"), tmp_path / "out")
    with pytest.raises(
        UserError, match="made by calling its class, so its options are not known; make it with archlab.build"
    ):
        hub.export(make_decoder(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("mixer=gdn", "llama, with pos=rope; mixer=mha"),
        ("mixer=diff", "llama, with mixer=mha"),
        ("mixer=mla", "llama, with mixer=mha"),
        ("residual=hyper", "llama, with residual=pre"),
        ("canon=A", "llama, with canon=null"),
        ("mixer=mamba2 ffn=none", "mamba2, with mixer.eps=1e-06"),
    ],
)
def test_the_nearest_family_is_told_by_all_that_differs(words, nearest, tmp_path):
    with pytest.raises(UserError) as refused:
        hub.export(built("size=nano", *words.split()), tmp_path / "out")
    assert str(refused.value).endswith(f"; nearest is {nearest}")


BEYOND_FAMILIES = ["preset=ngpt_0_5b", "head=ngpt", "mixer.scale=sqrt_head_dim"]
"""Fault found: a scale that is a word or null was computed with as a number while the families' names were filled in."""


def every_option_alone():
    words = [f"{group}={name}" for group, name in every_option(*BLOCKS)]
    return BEYOND_FAMILIES + [
        pytest.param(word, marks=pytest.mark.slow) for word in words if word not in BEYOND_FAMILIES
    ]


@pytest.mark.parametrize("word", every_option_alone())
def test_every_option_is_written_as_some_family_or_refused_in_one_line(word, tmp_path):
    two_axes = ["mask=prefix", "prefix=[0.2,0.5]"] if word.endswith("_2d") else []
    decoder = built("size=nano", "allow_leak=true", word, *two_axes)
    try:
        hub.export(decoder, tmp_path / "out")
    except UserError as error:
        assert "\n" not in str(error) and "nearest is" in str(error)
        assert not (tmp_path / "out").exists() and word not in ("norm=rms", "pos=rope", "mixer=mha", "ffn=swiglu")
    else:
        assert word not in BEYOND_FAMILIES and (tmp_path / "out" / "config.json").exists()


def first_of_each_family():
    """The others are slow: with their options, tests/hub/test_hub_folders.py and the random configurations are written too."""
    return [pytest.param(case, marks=[pytest.mark.slow] * ("," in case)) for case in CASES]


@pytest.mark.parametrize("case", first_of_each_family())
def test_a_decoder_goes_out_as_it_came_in_bit_for_bit(case, tmp_path):
    model, decoder = both(case)
    hub.export(decoder, tmp_path / "out")
    again = loaded(tmp_path / "out", case)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    with torch.no_grad():
        assert torch.equal(hub.load(tmp_path / "out")(tokens()), decoder(tokens()))


def test_every_family_has_a_case():
    assert {case.split(",")[0] for case in CASES} | set(PUBLISHED) == set(hub.FAMILIES)


@pytest.mark.parametrize(
    "said",
    [
        {"rope_theta": 500.0},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 500.0},
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 500.0},
        {"partial_rotary_factor": 0.5},
        {"sliding_window": 8},
    ],
    ids=str,
)
def test_what_config_json_says_twice_or_in_vain_is_read_as_transformers_reads_it(said, folder):
    changed(folder, **said)
    again = loaded(folder)
    with torch.no_grad(), InFloat64():
        assert (
            relative(hub.load(folder)(tokens()), again(tokens()).logits) < 1e-6
        )  # frequencies were widened by loading


@pytest.fixture
def folder(tmp_path):
    hub.export(both("llama")[1], tmp_path / "llama")
    return tmp_path / "llama"


def changed(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def refused(path, told):
    with pytest.raises(UserError, match=told) as error:
        hub.load(path)
    assert "\n" not in str(error.value)


def test_what_cannot_be_read_is_answered_in_one_line(folder, tmp_path):
    refused(tmp_path / "nowhere", "nowhere: no such folder; give one with config.json")
    refused(tmp_path / "nowhere.gguf", "no such file; give a .gguf file")
    changed(folder, model_type="lama")
    refused(folder, r"model_type=lama: no such family; did you mean llama\? families: llama, mistral")
    changed(folder, model_type="llama", rope_parameters={"rope_type": "mrope", "rope_theta": 1.0})
    refused(folder, "rope_scaling=mrope: no block of archlab does this; supported is one of default, linear")
    changed(folder, tie_word_embeddings=True, rope_parameters=None)
    refused(folder, "lm_head.weight: differs from the embedding table, but config.json says that the two are tied")
    changed(folder, tie_word_embeddings=False)
    yarn = {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}
    changed(folder, rope_parameters=yarn | {"sections": [2, 2]})
    refused(folder, r"rope_parameters.sections=\[2, 2\]: no block of archlab does this")
    changed(folder, rope_parameters=None, hidden_act="mish")
    refused(folder, "hidden_act=mish: no block of archlab does this")
    changed(folder, hidden_act="silu", intermediate_size=90)
    refused(folder, r"model.layers.0.mlp.gate_proj.weight: has shape \(88, 48\), but config.json means \(90, 48\)")
    changed(folder, intermediate_size=88, num_hidden_layers=4)
    refused(folder, "layers.3.mixer.q_proj.weight, .* missing")
    changed(folder, num_hidden_layers=2)
    refused(folder, "model.layers.2.* do not belong to this family")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json: is not JSON")
    (folder / "config.json").unlink()
    refused(folder, "config.json: no such file")


def test_damaged_weights_are_answered_in_one_line(folder):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    refused(folder, "model.norm.weight: holds a number that is not finite")
    file.write_bytes(file.read_bytes()[:5000])
    refused(folder, "model.safetensors: cannot be read: .*; the file is damaged")
    file.unlink()
    refused(folder, "only safetensors and GGUF are read, no pickles")


def test_weights_in_several_files_are_read_by_their_index(folder):
    from safetensors.torch import load_file, save_file

    whole = hub.load(folder)(tokens())
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file(
            {name: tensors[name] for name in files if files[name] == file}, folder / file, metadata={"format": "pt"}
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert torch.equal(hub.load(folder)(tokens()), whole)
    second = folder / "model-00002-of-00002.safetensors"
    held = load_file(second)
    once = next(name for name in tensors if name not in held)
    save_file(held | {once: tensors[once] * 2}, second, metadata={"format": "pt"})
    refused(folder, f"model-00002-of-00002.safetensors: holds {once}, which another file .*holds too")
    second.unlink()
    refused(folder, "model-00002-of-00002.safetensors: no such file")


def test_weights_keep_their_dtype_and_are_the_decoders_own():
    model = theirs("llama").bfloat16()
    before = model.model.norm.weight.detach().clone()
    decoder = hub.from_hf(model)
    assert {weight.dtype for weight in decoder.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.zero_()
    assert torch.equal(model.model.norm.weight, before)


MIXED = {
    # which tensors stay in float32 where all others are in bf16, and the types of numbers that the decoder has then
    "the head": ("llama", "lm_head", {torch.float32}),
    "the table": ("llama", "embed_tokens", {torch.float32}),
    "a matrix": ("gpt2", "layers.1.mlp|h.1.mlp.c_fc.weight", {torch.float32}),
    "biases": ("qwen2", "bias", {torch.float32}),
    "gains": ("llama", "norm", {torch.float32, torch.bfloat16}),
    "gains and shifts": ("gpt_neox", "norm", {torch.float32, torch.bfloat16}),
    "routers": ("qwen3_moe", "mlp.gate.weight", {torch.float32, torch.bfloat16}),
    "a bias on the choice": ("deepseek_v3", "e_score_correction_bias", {torch.float32, torch.bfloat16}),
}


@pytest.mark.parametrize("name", MIXED)
def test_weights_of_several_dtypes_that_multiply_each_other_are_read_in_the_widest(name, tmp_path):
    from safetensors.torch import load_file, save_file

    case, wide, have = MIXED[name]
    theirs(case).float().save_pretrained(tmp_path / "it")
    file = tmp_path / "it" / "model.safetensors"
    bf16 = {name: t if re.search(wide, name) else t.bfloat16() for name, t in load_file(file).items()}
    assert {tensor.dtype for tensor in bf16.values()} == {torch.bfloat16, torch.float32}
    save_file(bf16, file, metadata={"format": "pt"})
    decoder = hub.load(tmp_path / "it")
    assert {weight.dtype for weight in decoder.state_dict().values()} == have
    save_file({name: tensor.float() for name, tensor in bf16.items()}, file, metadata={"format": "pt"})
    whole = hub.load(tmp_path / "it")(tokens())
    # float32 throughout is the same computation; where matrices stay bf16, products are rounded to 2**-9 in a few layers
    assert relative(decoder(tokens()).float(), whole) < (1e-6 if have == {torch.float32} else 0.1)


def test_the_same_weights_under_other_options(folder):
    plain, other = hub.load(folder), hub.load(folder, "pos=alibi")
    assert type(other.position).__name__ == "ALiBi" and not torch.allclose(other(tokens()), plain(tokens()))
    assert torch.equal(hub.load(folder, "mask=window", "mask.window=64")(tokens()), plain(tokens()))
    with pytest.raises(UserError, match="preset: config.json already describes"):
        hub.load(folder, "preset=gpt2")
    for word in ("train.lr=1", "init=xavier", "seed=3", "optimizer.betas=[0.8,0.9]", "init.std=1"):
        with pytest.raises(
            UserError, match=f"^{word.split('=')[0]}: changes nothing of a decoder whose weights are loaded"
        ):
            hub.load(folder, word)


def test_what_is_no_model_or_no_number_is_answered_in_one_line(folder):
    from safetensors.torch import load_file, save_file

    with pytest.raises(UserError, match="Linear: is not a transformers model"):
        hub.from_hf(torch.nn.Linear(2, 2))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].int()
    save_file(tensors, file, metadata={"format": "pt"})
    refused(folder, "model.norm.weight: holds int32, but weights are floating-point numbers")
    changed(folder, rope_parameters="x")
    refused(folder, "config.json: holds a value of the wrong type for a llama model")


@pytest.mark.parametrize("loaded_from", [True, False], ids=["loaded", "made here"])
def test_a_decoder_that_was_changed_by_hand_is_not_written_as_what_it_was(loaded_from, folder, tmp_path):
    def again():
        return hub.load(folder) if loaded_from else built("size=nano", "size.n_layers=2", "embed.scale=none")

    def refusal(decoder):
        with pytest.raises(UserError) as error:
            hub.export(decoder, tmp_path / "out")
        assert not (tmp_path / "out").exists() and "\n" not in str(error.value)
        return str(error.value)

    pruned, wider = again(), again()
    pruned.layers = pruned.layers[:1]
    assert re.match(r"layers.1.\S+: is not there in this decoder, but by its options it has shape", refusal(pruned))
    wider.layers[0].mixer.q_proj.weight = torch.nn.Parameter(torch.zeros(2, 2))
    assert refusal(wider).startswith(
        "layers.0.mixer.q_proj.weight: has shape (2, 2) in this decoder, but by its options"
    )
    assert refusal(again().to("meta")).endswith(
        "is on the meta device and has no numbers; give the decoder its weights first"
    )


def test_export_leaves_what_is_there_alone(folder, tmp_path):
    decoder = hub.load(folder)
    with pytest.raises(UserError, match="exists already"):
        hub.export(decoder, folder)
    with pytest.raises(UserError, match="is not a folder; make it first"):
        hub.export(decoder, tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("room", [50, 2000], ids=["not even config.json fits", "the weights don't fit"])
def test_an_export_that_finds_the_disk_full_leaves_nothing(room, folder, tmp_path):
    """A limit on the size of a file is answered as a full disk is."""
    decoder, out = hub.load(folder), tmp_path / "here"
    out.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        with pytest.raises(NoRoom, match=f"{out}.*: cannot be written: .*; make room, then do it again"):
            hub.export(decoder, out / "llama")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(out.iterdir()) == []


def test_the_name_that_older_files_give_gpt_neoxs_head_is_read_too(tmp_path):
    from safetensors.torch import load_file, save_file

    model = theirs("gpt_neox")
    hub.export(hub.from_hf(model), tmp_path / "neox")
    file = tmp_path / "neox" / "model.safetensors"
    tensors = load_file(file)
    tensors["embed_out.weight"] = tensors.pop("lm_head.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    assert torch.equal(hub.load(tmp_path / "neox")(tokens()), hub.from_hf(model)(tokens()))


def test_weights_that_transformers_would_take_instead_or_add_are_refused(folder, tmp_path):
    """A field that names another file, and an adapter beside the weights."""
    changed(folder, transformers_weights="consolidated.safetensors")
    refused(folder, "transformers_weights=consolidated.safetensors: the weights are read from model.safetensors")
    changed(folder, transformers_weights="model.safetensors")
    decoder = hub.load(folder)
    hub.export(decoder, tmp_path / "out")
    assert "transformers_weights" not in json.loads((tmp_path / "out" / "config.json").read_text())
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "adapter_config.json: an adapter is not added to the weights, as transformers does; merge it")


def test_one_file_goes_before_an_index(folder):
    """As in transformers, which does not look for an index then."""
    from safetensors.torch import load_file, save_file

    whole = hub.load(folder)(tokens())
    tensors = load_file(folder / "model.safetensors")
    other = "model-00001-of-00001.safetensors"
    save_file({name: weight / 2 for name, weight in tensors.items()}, folder / other, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, other)}))
    assert torch.equal(hub.load(folder)(tokens()), whole)


@pytest.mark.parametrize(
    ("case", "name", "another"),
    [
        ("llama", "model.norm.weight", "norm.weight"),
        ("gpt_neox", "lm_head.weight", "embed_out.weight"),
        ("qwen3_moe", "model.layers.0.mlp.experts.0.gate_proj.weight", "model.layers.0.mlp.experts.gate_up_proj"),
    ],
)
def test_two_names_of_one_tensor_are_refused_by_name(case, name, another, tmp_path):
    from safetensors.torch import load_file, save_file

    hub.export(hub.from_hf(theirs(case)), tmp_path / "it")
    file = tmp_path / "it" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {another: tensors[name] * 3}, file, metadata={"format": "pt"})
    refused(tmp_path / "it", f"(?=.*{name})(?=.*{another}).*under another name, and the files hold both; leave one out")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.int8], ids=str)
@pytest.mark.parametrize("case", ["llama", "qwen3_moe"])
def test_numbers_that_are_not_read_are_refused_by_name(case, dtype, tmp_path):
    from safetensors.torch import load_file, save_file

    hub.export(hub.from_hf(theirs(case)), tmp_path / "it")
    file = tmp_path / "it" / "model.safetensors"
    tensors = load_file(file)
    name = min(name for name in tensors if "up_proj" in name)
    save_file(tensors | {name: tensors[name].to(dtype)}, file, metadata={"format": "pt"})
    told = (
        f"{name}: holds {str(dtype)[6:]}, but weights are floating-point numbers: float16, bfloat16, float32, float64"
    )
    refused(tmp_path / "it", told)


def test_apertus_is_refused_where_what_is_fixed_here_is_another_number(tmp_path):
    from safetensors.torch import load_file, save_file

    hub.export(hub.from_hf(theirs("apertus")), tmp_path / "apertus")
    file = tmp_path / "apertus" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.act_fn.beta"] += 0.25
    save_file(tensors, file, metadata={"format": "pt"})
    refused(tmp_path / "apertus", "model.layers.1.mlp.act_fn.beta: is not 0.5, which it always is in archlab")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_apertus_is_read_in_each_type_of_numbers(dtype, tmp_path):
    """Its -1e-6 is -1.0133e-6 in fp16 and -9.98e-7 in bf16."""
    theirs("apertus").to(dtype).save_pretrained(tmp_path / "it")
    assert hub.load(tmp_path / "it").embedding.weight.dtype == dtype
