"""NamedModel models: sizes equal to the published ones, blocks that stay at another size, words that are overruled."""

from functools import cache
from unittest.mock import patch

import pytest
import torch
import yaml
from oracles import CONF, options

from archlab.base.errors import UserError
from archlab.config import assemble as assembling
from archlab.config.assemble import assemble_without_weights, build
from archlab.config.compose import compose
from archlab.config.overrides import normalise
from archlab.config.presets import at_size
from archlab.cost.describe import count_active_parameters, count_parameters

PARAMETERS = {
    # Published, or computed from the published configuration where no class of transformers exists.
    "baichuan_7b": 7_000_559_616,
    "baichuan_13b": 13_264_901_120,
    "baichuan2_7b": 7_505_973_248,
    "baichuan2_13b": 27_793_336_320 // 2,  # bytes of its bf16 files
    "qwen_7b": 15_442_649_088 // 2,
    # Bytes of its fp16 files, which also hold RoPE's 32 frequencies; ChatGLM3-6B has the same tensors.
    "chatglm2_6b": (12_487_168_064 - 64) // 2,
    "chatglm3_6b": (12_487_168_064 - 64) // 2,
    # ChatGLM-6B by hand: table, 28 layers of 12 d^2 + 13 d, a norm before the first.
    "chatglm_6b": 130528 * 4096 + 28 * (12 * 4096**2 + 13 * 4096) + 2 * 4096,
    # GLM-10B: table, two tables of 1025 rows, 48 layers of 12 d^2 + 13 d, the last norm.
    "glm_10b": (50304 + 2 * 1025) * 4096 + 48 * (12 * 4096**2 + 13 * 4096) + 2 * 4096,
    # GLM-130B: attention 4 d^2 + 4 d, three matrices of d x 32768 with biases, two norms.
    "glm_130b": 150528 * 12288
    + 70 * (4 * 12288**2 + 4 * 12288 + 3 * 12288 * 32768 + 2 * 32768 + 12288 + 4 * 12288)
    + 2 * 12288,
    # PaLM: arXiv:2204.02311, table 1 gives 540.35 B; here with its 119 gains.
    "palm_540b": 256000 * 18432 + 118 * (2 * 18432 * 12288 + 2 * 18432 * 256 + 3 * 18432 * 73728) + 119 * 18432,
    # nGPT 0.5B by hand: two tables, 24 layers of 4 d^2 + 3 d 4d and their factors (alpha twice, s_qk, s_u and s_v), s_z.
    "ngpt_0_5b": 2 * 32000 * 1024 + 24 * (16 * 1024**2 + 3 * 1024 + 2 * 4096) + 32000,
    # transformers' class on the meta device: CLASSES below makes the same numbers again.
    "apertus_8b": 8_053_338_176,
    "bert_base": 109_514_298,
    "bloom_176b": 176_247_271_424,
    "bloom_560m": 559_214_592,
    "cohere_command_r": 34_980_831_232,
    "cohere_command_r_plus": 103_810_674_688,
    "cohere_command_r7b": 8_028_033_024,
    "falcon_7b": 6_921_720_704,
    "falcon_rw_1b": 1_311_625_216,
    "gemma_2b": 2_506_172_416,
    "gemma2_2b": 2_614_341_888,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
    "gemma3_12b": 11_766_034_176,
    "gemma3_27b": 27_009_346_304,
    "glm4_9b": 9_399_951_360,
    "glm4_9b_0414": 9_400_279_040,
    "gpt2": 124_439_808,
    "gpt_neox_20b": 20_554_567_680,
    "gptj_6b": 6_050_882_784,
    "granite_3_3_2b": 2_533_539_840,
    "lfm2_1_2b": 1_170_340_608,
    "llama_7b": 6_738_415_616,
    "llama2_7b": 6_738_415_616,
    "llama3_8b": 8_030_261_248,
    "mamba2_130m": 128_989_632,
    "mamba2_2_7b": 2_702_599_680,
    "minitron_4b": 4_190_509_056,
    "mistral_7b": 7_241_732_096,
    "mpt_7b": 6_649_286_656,
    "nanochat_d32": 1_879_048_192,
    "olmo_7b": 6_888_095_744,
    "olmo2_7b": 7_298_617_344,
    "olmo3_7b": 7_298_011_136,
    "opt_125m": 125_239_296,
    "opt_350m": 331_196_416,
    "phi_1_5": 1_418_270_720,
    "phi_3_mini": 3_821_079_552,
    "phi_4": 14_659_507_200,
    "phi_3_5_mini": 3_821_079_552,
    "phi_4_mini": 3_836_021_760,
    "llama4_scout": 107_769_861_120,
    "llama4_maverick": 400_711_848_960,
    "pythia_70m": 70_426_624,
    "pythia_12b": 11_846_072_320,
    "qwen2_7b": 7_615_616_512,
    "qwen2_0_5b": 494_032_768,
    "qwen3_8b": 8_190_735_360,
    "qwen3_0_6b": 596_049_920,
    "smollm2_135m": 134_515_008,
    "mixtral_8x7b": 46_702_792_704,
    "qwen3_30b_a3b": 30_532_122_624,
    "olmoe_1b_7b": 6_919_161_856,
    "deepseek_v2_lite": 15_706_484_224,
    "deepseek_v3": 671_026_404_352,
    "glm4_5_air": 106_852_245_504,
    "gpt_oss_20b": 20_914_757_184,
    "qwen3_next_80b_a3b": 79_674_391_296,
    "smollm3_3b": 3_075_098_624,
    "stablelm_3b": 2_795_443_200,
    "stablelm2_12b": 12_143_185_920,
    "starcoder2_3b": 3_030_371_328,
}

ACTIVE = {
    # What one token uses, with the whole table of embeddings: releases say 12.9B, 3.3B, 1.3B, 2.4B and 37B, and some of
    # them leave the table out, as gpt-oss with 3.6B does.
    "mixtral_8x7b": 12_879_925_248,
    "qwen3_30b_a3b": 3_353_032_704,
    "olmoe_1b_7b": 1_282_017_280,
    "deepseek_v2_lite": 2_661_150_208,
    "llama4_scout": 17_172_894_720,  # "17B"
    "llama4_maverick": 17_184_691_200,
    "deepseek_v3": 37_552_282_624,
    "glm4_5_air": 13_424_123_904,
    "gpt_oss_20b": 4_187_440_704,
    "qwen3_next_80b_a3b": 3_874_929_408,
}


def llama(layers, d, heads, kv, ff, vocab, **more):
    return (
        dict(
            num_hidden_layers=layers,
            hidden_size=d,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            intermediate_size=ff,
            vocab_size=vocab,
            pad_token_id=None,
        )
        | more
    )


def mamba2(layers, d):
    """Two heads of 64 features for every 64 of the stream, one B and one C, and 50277 tokens up to a multiple of 16."""
    return dict(num_hidden_layers=layers, hidden_size=d, num_heads=2 * d // 64, n_groups=1, vocab_size=50288, **ONE)


def plain(layers, d, heads, ff, vocab, **more):
    return (
        dict(num_hidden_layers=layers, hidden_size=d, num_attention_heads=heads, intermediate_size=ff, vocab_size=vocab)
        | more
    )


APART, ONE = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
CLASSES = {
    "llama_7b": ("Llama", llama(32, 4096, 32, 32, 11008, 32000, **APART)),
    "llama2_7b": ("Llama", llama(32, 4096, 32, 32, 11008, 32000, **APART)),
    "llama3_8b": ("Llama", llama(32, 4096, 32, 8, 14336, 128256, **APART)),
    "smollm2_135m": ("Llama", llama(30, 576, 9, 3, 1536, 49152, **ONE)),
    "mistral_7b": ("Mistral", llama(32, 4096, 32, 8, 14336, 32000, head_dim=128, **APART)),
    "qwen2_7b": ("Qwen2", llama(28, 3584, 28, 4, 18944, 152064, **APART)),
    "qwen2_0_5b": ("Qwen2", llama(24, 896, 14, 2, 4864, 151936, **ONE)),
    "qwen3_8b": ("Qwen3", llama(36, 4096, 32, 8, 12288, 151936, head_dim=128, **APART)),
    "qwen3_0_6b": ("Qwen3", llama(28, 1024, 16, 8, 3072, 151936, head_dim=128, **ONE)),
    "glm4_9b": ("Glm", llama(40, 4096, 32, 2, 13696, 151552, head_dim=128, attention_bias=True, **APART)),
    "glm4_9b_0414": ("Glm4", llama(40, 4096, 32, 2, 13696, 151552, head_dim=128, attention_bias=True, **APART)),
    "gemma_2b": ("Gemma", llama(18, 2048, 8, 1, 16384, 256000, head_dim=256, **ONE)),
    "gemma2_2b": ("Gemma2", llama(26, 2304, 8, 4, 9216, 256000, head_dim=256, **ONE)),
    "gemma3_1b": ("Gemma3Text", llama(26, 1152, 4, 1, 6912, 262144, head_dim=256, **ONE)),
    "gemma3_4b": ("Gemma3Text", llama(34, 2560, 8, 4, 10240, 262208, head_dim=256, **ONE)),
    "gemma3_12b": ("Gemma3Text", llama(48, 3840, 16, 8, 15360, 262208, head_dim=256, **ONE)),
    "gemma3_27b": ("Gemma3Text", llama(62, 5376, 32, 16, 21504, 262208, head_dim=128, **ONE)),
    "olmo_7b": ("Olmo", llama(32, 4096, 32, 32, 11008, 50304, **APART)),
    "olmo2_7b": ("Olmo2", llama(32, 4096, 32, 32, 11008, 100352, **APART)),
    "olmo3_7b": ("Olmo3", llama(32, 4096, 32, 32, 11008, 100278, **APART)),
    "smollm3_3b": ("SmolLM3", llama(36, 2048, 16, 4, 11008, 128256, **ONE)),
    "phi_3_mini": ("Phi3", llama(32, 3072, 32, 32, 8192, 32064, **APART)),
    "phi_4": ("Phi3", llama(40, 5120, 40, 10, 17920, 100352, **APART)),
    "phi_3_5_mini": ("Phi3", llama(32, 3072, 32, 32, 8192, 32064, **APART)),
    "phi_4_mini": ("Phi3", llama(32, 3072, 24, 8, 8192, 200064, **ONE)),
    "stablelm2_12b": (
        "StableLm",
        llama(40, 5120, 32, 8, 13824, 100352, qk_layernorm=True, use_parallel_residual=True, **APART),
    ),
    "stablelm_3b": ("StableLm", llama(32, 2560, 32, 32, 6912, 50304, use_qkv_bias=False, **APART)),
    "starcoder2_3b": ("Starcoder2", llama(30, 3072, 24, 2, 12288, 49152, **ONE)),
    "granite_3_3_2b": ("Granite", llama(40, 2048, 32, 8, 8192, 49159, **ONE)),
    "apertus_8b": ("Apertus", llama(32, 4096, 32, 8, 21504, 131072, **APART)),
    "minitron_4b": ("Nemotron", llama(32, 3072, 24, 8, 9216, 256000, head_dim=128, **APART)),
    "nanochat_d32": ("NanoChat", llama(32, 2048, 16, 16, 8192, 65536, **APART)),
    "lfm2_1_2b": ("Lfm2", llama(16, 2048, 32, 8, 12288, 65536, full_attn_idxs=[2, 5, 8, 10, 12, 14], **ONE)),
    "mamba2_130m": ("Mamba2", mamba2(24, 768)),
    "mamba2_2_7b": ("Mamba2", mamba2(64, 2560)),
    "cohere_command_r": ("Cohere", llama(40, 8192, 64, 64, 22528, 256000, use_qk_norm=False, **ONE)),
    "cohere_command_r_plus": ("Cohere", llama(64, 12288, 96, 8, 33792, 256000, use_qk_norm=True, **ONE)),
    "cohere_command_r7b": ("Cohere2", llama(32, 4096, 32, 8, 14336, 256000, **ONE)),
    "phi_1_5": ("Phi", llama(24, 2048, 32, 32, 8192, 51200, partial_rotary_factor=0.5, **APART)),
    # The defaults of these classes are the release, but for what is given.
    "mixtral_8x7b": ("Mixtral", {}),
    "qwen3_30b_a3b": ("Qwen3Moe", dict(num_hidden_layers=48, head_dim=128)),
    "olmoe_1b_7b": ("Olmoe", dict(intermediate_size=1024)),
    "deepseek_v2_lite": (
        "DeepseekV2",
        dict(
            num_hidden_layers=27,
            hidden_size=2048,
            num_attention_heads=16,
            intermediate_size=10944,
            q_lora_rank=None,
            moe_intermediate_size=1408,
            num_experts_per_tok=6,
            first_k_dense_replace=1,
        ),
    ),
    "deepseek_v3": ("DeepseekV3", {}),
    "llama4_scout": ("Llama4Text", {}),
    "llama4_maverick": ("Llama4Text", dict(num_local_experts=128, interleave_moe_layer_step=2, use_qk_norm=False)),
    "glm4_5_air": ("Glm4Moe", dict(head_dim=128, attention_bias=True)),
    "gpt_oss_20b": ("GptOss", dict(num_hidden_layers=24, num_local_experts=32)),
    "qwen3_next_80b_a3b": ("Qwen3Next", {}),
    "gpt2": ("GPT2", {}),
    "gptj_6b": ("GPTJ", dict(n_layer=28, n_embd=4096, n_head=16, rotary_dim=64, vocab_size=50400, **APART)),
    "gpt_neox_20b": ("GPTNeoX", plain(44, 6144, 64, 24576, 50432, **APART)),
    "pythia_70m": ("GPTNeoX", plain(6, 512, 8, 2048, 50304, **APART)),
    "pythia_12b": ("GPTNeoX", plain(36, 5120, 40, 20480, 50688, **APART)),
    "bloom_560m": ("Bloom", dict(n_layer=24, hidden_size=1024, n_head=16, vocab_size=250880, **ONE)),
    "bloom_176b": ("Bloom", dict(n_layer=70, hidden_size=14336, n_head=112, vocab_size=250880, **ONE)),
    "opt_125m": (
        "OPT",
        dict(
            num_hidden_layers=12,
            hidden_size=768,
            word_embed_proj_dim=768,
            num_attention_heads=12,
            ffn_dim=3072,
            vocab_size=50272,
            **ONE,
        ),
    ),
    "opt_350m": (
        "OPT",
        dict(
            num_hidden_layers=24,
            hidden_size=1024,
            word_embed_proj_dim=512,
            num_attention_heads=16,
            ffn_dim=4096,
            vocab_size=50272,
            do_layer_norm_before=False,
            **ONE,
        ),
    ),
    "mpt_7b": (
        "Mpt",
        dict(n_layers=32, d_model=4096, n_heads=32, expansion_ratio=4, vocab_size=50432, no_bias=True, **ONE),
    ),
    "falcon_rw_1b": (
        "Falcon",
        dict(
            num_hidden_layers=24,
            hidden_size=2048,
            num_attention_heads=32,
            vocab_size=50304,
            multi_query=False,
            parallel_attn=False,
            bias=True,
            new_decoder_architecture=False,
            alibi=True,
            **ONE,
        ),
    ),
    "falcon_7b": (
        "Falcon",
        dict(
            num_hidden_layers=32,
            hidden_size=4544,
            num_attention_heads=71,
            vocab_size=65024,
            multi_query=True,
            parallel_attn=True,
            bias=False,
            new_decoder_architecture=False,
            alibi=False,
            **ONE,
        ),
    ),
}


@cache
def whole(name):
    """A preset's choices, and its numbers of parameters and of active ones, which are None where all are active.

    They are counted in the decoder on which its configuration is checked: to make another of eighty layers takes as long.
    """
    decoders = []

    def kept(cfg):
        decoders.append(assemble_without_weights(cfg))
        return decoders[-1]

    with patch.object(assembling, "assemble_without_weights", kept):
        choices = compose(f"preset={name}").choices
    active = count_active_parameters(decoders[-1]) if name in ACTIVE else None  # takes as long as to make the decoder
    return {**choices}, count_parameters(decoders[-1]), active


@pytest.mark.parametrize("name", options("preset"))
def test_a_preset_has_exactly_the_published_number_of_parameters(name):
    _, parameters, active = whole(name)
    assert (parameters, active) == (PARAMETERS[name], ACTIVE.get(name))


def test_every_preset_has_a_published_number_and_only_they():
    assert set(PARAMETERS) == set(options("preset"))
    assert set(PARAMETERS) - set(CLASSES) == {
        "baichuan_7b",
        "baichuan_13b",
        "baichuan2_7b",
        "baichuan2_13b",
        "qwen_7b",
        "chatglm_6b",
        "chatglm2_6b",
        "chatglm3_6b",
        "glm_10b",
        "glm_130b",
        "palm_540b",
        "bert_base",
        "ngpt_0_5b",
    }


LIKE_ANOTHER = {"baichuan2_7b", "baichuan2_13b", "baichuan_7b", "bloom_176b", "chatglm3_6b", "gemma3_12b", "gemma3_27b", "gemma_2b", "glm_130b", "llama2_7b", "llama3_8b", "olmo_7b",
                "phi_4", "phi_4_mini", "llama4_maverick", "pythia_12b", "pythia_70m", "qwen2_7b", "qwen3_8b", "smollm2_135m", "stablelm_3b", "deepseek_v2_lite", "glm4_5_air",
                "mixtral_8x7b", "qwen3_30b_a3b"}  # fmt: skip
"""Of the same family as another, in other sizes or with one option that others have too."""


def those_like_another_slow(names):
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_ANOTHER)) for name in names]


@pytest.mark.parametrize("name", those_like_another_slow(sorted(CLASSES)))
def test_the_published_number_is_that_of_transformers_class(name):
    transformers = pytest.importorskip("transformers")
    kind, given = CLASSES[name]
    config = getattr(transformers, f"{kind}Config")(**given)
    suffix = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    with torch.device("meta"):
        model = getattr(
            transformers, kind.removesuffix("Text") + suffix if kind != "Gemma3Text" else "Gemma3ForCausalLM"
        )(config)
    assert sum(p.numel() for p in {id(p): p for p in model.parameters()}.values()) == PARAMETERS[name]
    if name in ACTIVE:
        in_experts = sum(p.numel() for path, p in model.named_parameters() if ".experts." in path)
        picked = config.num_experts_per_tok
        there = next(m.num_experts for path, m in model.named_modules() if path.endswith(".experts"))
        assert PARAMETERS[name] - in_experts + in_experts * picked // there == ACTIVE[name]


def test_berts_number_is_that_of_transformers_class():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.BertForMaskedLM(transformers.BertConfig())
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS["bert_base"]


WITH_FACTORS = {"phi_3_5_mini": ["size.head_dim=96"], "phi_4_mini": ["size.head_dim=128"]}
"""LongRoPE has a factor for each pair of a head's features, so that heads of another width need others."""


# Of those with a class in transformers the blocks are held to it in tests/hub, at other sizes.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in CLASSES and name not in {*ACTIVE, *WITH_FACTORS}))
        for name in options("preset")
    ],
)
def test_at_tiny_size_a_preset_keeps_its_blocks_and_computes(name):
    narrow = ["size.d_ff=8"] if name in ACTIVE else []  # of hundreds of experts
    narrow += WITH_FACTORS.get(name, [])
    (choices, *_), tiny = whole(name), compose(f"preset={name}", "size=tiny", *narrow)
    assert {**tiny.choices, "size": None} == {**choices, "size": None}
    ids = 257 if tiny.choices.data == "masked" else 256  # [MASK] is one more
    assert (tiny.size.d_model, tiny.size.n_layers, tiny.size.vocab_size) == (128, 4, ids)
    decoder = build(tiny).eval()
    prefix = {"prefix_len": 3} if decoder.mask.uses_prefix else {}
    logits = decoder(torch.arange(22).view(2, 11), **prefix)
    assert logits.shape == (2, 11, ids) and logits.isfinite().all()


@pytest.mark.parametrize("name", options("preset"))
def test_a_preset_chooses_every_block_itself_and_says_where_from(name):
    file = CONF / "preset" / f"{name}.yaml"
    words = yaml.safe_load(file.read_text())
    assert {"norm", "residual", "ffn", "pos", "mask", "mixer", "head", "init", "embed.tied", "embed.scale"} <= set(
        words
    )
    comment = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert len(comment) >= 2
    assert any(
        source in " ".join(comment) for source in ("arXiv:", "configuration", "class", "config.json", "code", "card")
    )


def test_deepseek_v3_starts_as_its_report_says():
    # arXiv:2412.19437, sec. 4.2: all learnable parameters with a standard deviation of 0.006.
    init = compose("preset=deepseek_v3").init
    assert (init.std, init.depth_scaled) == (0.006, False)


def test_the_command_line_wins_in_any_order():
    for words in (
        ("preset=gemma_2b", "norm=layer", "size.n_layers=3"),
        ("norm=layer", "size.n_layers=3", "+preset=gemma_2b"),
    ):
        cfg = compose(*words)
        assert cfg.choices.norm == "layer" and not cfg.norm.unit_offset  # which is gemma_2b's of rms
        assert (cfg.size.n_layers, cfg.size.d_model, cfg.choices.ffn) == (3, 2048, "geglu_tanh")
    assert compose("preset=llama_7b", "norm.eps=1e-3").norm.eps == 1e-3


def test_another_attention_leaves_the_presets_key_value_heads_behind():
    assert compose("preset=chatglm2_6b", "mixer=mha").size.n_kv_heads == 32
    assert compose("preset=chatglm2_6b").size.n_kv_heads == 2


def test_words_spelt_out_are_spelt_out_once():
    words = normalise(["preset=qwen_7b", "size=tiny"])
    assert not any(word.startswith("preset") for word in words) and normalise(words) == words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["preset=lama_7b"], r"preset=lama_7b: no such preset; did you mean llama_7b\? presets: .*qwen3_8b"),
        (["preset="], r"preset=: no such preset; .*presets: "),
        (["preset=llama_7b", "preset=gpt2"], r"preset=llama_7b preset=gpt2: a model has one preset"),
        (["preset=llama_7b,gpt2"], r"preset=llama_7b,gpt2: a model has one preset"),
    ],
)
def test_a_preset_that_cannot_be_is_answered_in_one_line(words, told):
    with pytest.raises(UserError, match=told) as error:
        compose(*words)
    assert "\n" not in str(error.value)


def test_own_presets_are_found_beside_archlabs(tmp_path):
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "mine.yaml").write_text("norm: layer\nsize: nano\n")
    cfg = compose("preset=mine", config_dir=tmp_path)
    assert (cfg.choices.norm, cfg.size.d_model) == ("layer", 64)


@pytest.mark.parametrize("text", ["norm: {eps: 1e-5}\n", "- norm\n", "norm: [\n", ""])
def test_an_own_preset_that_is_no_list_of_overrides_is_answered_in_one_line(tmp_path, text):
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "mine.yaml").write_text(text)
    with pytest.raises(
        UserError, match=r"mine.yaml: (a preset holds one line per override|cannot be read as YAML)"
    ) as error:
        compose("preset=mine", config_dir=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "at_its_own", "at_another"),
    [
        ("layers[5::6].mask", "layers[5::6].mask", "layers[1::2].mask"),
        ("layers[0::4].mixer.bias", "layers[0::4].mixer.bias", "layers[0::2].mixer.bias"),
        ("layers[:3].ffn", "layers[:3].ffn", "layers[:3].ffn"),
        ("norm.eps", "norm.eps", "norm.eps"),
    ],
)
def test_a_rule_by_turns_is_for_every_second_layer_of_another_size(key, at_its_own, at_another):
    """The first of each turn stays the first, so that the kinds of layers follow each other as they did."""
    assert (at_size(key, {"norm"}), at_size(key, {"size"})) == (at_its_own, at_another)
