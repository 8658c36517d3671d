"""Counts and costs, against Hugging Face's models and formulas written out by hand."""

import pytest
import torch
import torchinfo
from oracles import composed, options
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import archlab
from archlab.blocks.cache import Cache
from archlab.config.assemble import assemble_without_weights
from archlab.config.compose import compose
from archlab.cost.describe import count_parameters, folded, tree
from archlab.cost.measure import costs, forward_flops_per_token


def test_parameters_of_a_llama():
    with torch.device("meta"):
        theirs = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=211,
                hidden_size=48,
                intermediate_size=104,
                num_hidden_layers=3,
                num_attention_heads=6,
                num_key_value_heads=2,
            )
        )
    ours = archlab.build(
        "size.d_model=48",
        "size.n_layers=3",
        "size.n_heads=6",
        "mixer=gqa",
        "size.n_kv_heads=2",
        "size.d_ff=104",
        "size.vocab_size=211",
    )
    assert count_parameters(ours) == theirs.num_parameters()


def test_parameters_of_a_gpt2_with_its_tied_head_counted_once():
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(GPT2Config(vocab_size=211, n_embd=48, n_layer=3, n_head=6, n_positions=37))
    ours = archlab.build(
        "size.d_model=48", "size.n_layers=3", "size.n_heads=6", "size.vocab_size=211", "norm=layer", "ffn=gelu_tanh", "ffn.bias=true",
        "mixer.qkv_bias=true", "mixer.out_bias=true", "pos=learned", "pos.max_positions=37", "train.train_len=37", "embed.tied=true",
    )  # fmt: skip
    assert count_parameters(ours) == theirs.num_parameters()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("pos=alibi",),
        ("mixer=mqa",),
        ("mixer.softcap=30",),
        ("mask=prefix",),
        ("ffn=relu",),
        ("pos=alibi", "train.train_len=640"),
    ],
)
def test_flops_by_hand(overrides):
    cfg = archlab.compose("size=nano", *overrides)
    size, seq = cfg.size, cfg.train.train_len
    matrices = 3 if "ffn=relu" not in overrides else 2
    projections = 2 * size.d_model * size.n_heads * size.head_dim + 2 * size.d_model * size.n_kv_heads * size.head_dim
    layer = 2 * (projections + matrices * size.d_model * size.d_ff)
    attention = 4 * seq * size.n_heads * size.head_dim  # scores and their sum over all pairs
    expected = size.n_layers * (layer + attention) + 2 * size.d_model * size.vocab_size
    assert forward_flops_per_token(assemble_without_weights(cfg), seq) == expected


def test_kv_cache_of_llama_2_70b():
    # 80 layers, 8 key-value heads of 128, float16: 2 * 80 * 8 * 128 * 2 bytes.
    words = ("size.n_layers=80", "size.d_model=8192", "size.n_heads=64", "mixer=gqa", "size.n_kv_heads=8")
    seen = costs(assemble_without_weights(composed(*words)), 128, 2)
    assert seen["kv_bytes_per_token"] == 327_680 and seen["state_bytes"] == 0


@pytest.mark.parametrize(
    "overrides",
    [("pos=rope",), ("pos=alibi",), ("mixer.softcap=30",), ("mask=prefix", "prefix=[0.25,0.75]"), ("mask=window",)],
)
def test_flops_are_the_same_beyond_the_length_at_which_kernels_cut_queries_into_blocks(overrides):
    """All query-key pairs, whatever kernel runs: 1024 tokens take twice as much attention per token as 512."""
    costs = [
        forward_flops_per_token(assemble_without_weights(composed("size=nano", *overrides)), seq)
        for seq in (256, 512, 1024)
    ]
    assert costs[2] - costs[1] == 2 * (costs[1] - costs[0])


def test_the_tree_names_modules_and_leaves_totals_out():
    text = tree(archlab.build("size=nano", "embed.tied=true"))
    assert "MultiHead" in text and "RMSNorm" in text
    assert "Total" not in text and "====" not in text


def test_a_tree_shows_layers_that_are_alike_once():
    told = tree(assemble_without_weights(compose("size.n_layers=5")))
    layers = [line for line in told.splitlines() if "Layer: " in line]
    assert len(layers) == 1 and layers[0].endswith("(5 layers alike)")
    assert "Gated" in told and told.splitlines()[-1].startswith("├─LinearHead")


def test_only_runs_of_equal_layers_are_folded():
    layers = [[f"│    └─Layer: 2-{i}      --", f"│    │    └─Gated: 3-{i}     {n}"] for i, n in enumerate((7, 7, 9, 7))]
    lines = ["Decoder  --", "├─ModuleList: 1-1  --", *(line for layer in layers for line in layer), "├─Head: 1-2  5"]
    kept = [line.split("└─")[-1] for line in folded(lines)]
    assert kept[0] == "Decoder  --" and kept[-1].endswith("Head: 1-2  5")
    assert [line[-16:] for line in kept if "Layer" in line] == [
        "(2 layers alike)",
        "Layer: 2-2      --"[-16:],
        "Layer: 2-3      --"[-16:],
    ]
    assert [line.split()[-1] for line in kept if "Gated" in line] == ["7", "9", "7"]


def test_a_tree_of_one_layer_is_torchinfos_own():
    decoder = assemble_without_weights(compose("size.n_layers=1"))
    theirs = str(torchinfo.summary(decoder, depth=3, verbose=0, col_names=("num_params",)))
    assert tree(decoder) in theirs


UNLIKE = ("size=nano", "size.n_layers=5", "layers[1::2].mixer=gqa", "layers[0].ffn=gelu", "layers[4].size.d_ff=56")


def test_a_model_of_unlike_layers_costs_what_all_of_them_cost():
    """Costs are measured on one layer of each kind; here by torch on every layer, and by what a cache really holds."""
    decoder, seq = archlab.build(*UNLIKE), 24
    assert len(set(decoder.kinds)) == 4 and len(decoder.layers) == 5
    found = costs(decoder, seq, bytes_per_number=4)
    # Of the CPU's fused attention torch counts nothing; the plain kernel multiplies matrices, which it counts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder(torch.zeros(1, seq, dtype=torch.long))
    assert found["flops_per_token"] == counter.get_total_flops() / seq
    held = []
    for length in (3, 8):
        cache = Cache()
        with torch.no_grad():
            decoder.eval()(torch.zeros(1, length, dtype=torch.long), cache=cache)
        held.append(sum(tensor.numel() for state in cache.states.values() for tensor in state))
    assert found["kv_bytes_per_token"] == 4 * (held[1] - held[0]) / 5 and found["state_bytes"] == 0
    assert not decoder.training and all(not tensor.is_meta for tensor in decoder.parameters())


def bytes_in(cache: Cache) -> int:
    own = sum(tensor.numel() * tensor.element_size() for kept in cache.states.values() for tensor in kept)
    return own + sum(bytes_in(later) for later in cache.later.values())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "words",
    [
        *([f"mixer={name}"] for name in options("mixer")),
        ["mixer=mha", "mixer.forget=true", "mixer.conv=4"],
        ["mixer=gdn", "loop.times=3"],
        ["mixer=mamba2", "layers[1::2].mixer=gqa", "canon=AC"],
    ],
    ids=" ".join,
)
def test_a_cache_has_the_bytes_that_are_said_of_it(words, dtype):
    """A recurrence's state is float32 in half precision too, so its bytes do not follow from how many numbers it has."""
    decoder, cache = assemble_without_weights(composed("size=nano", *words)), Cache()
    said = costs(decoder, 16, dtype.itemsize)
    real = decoder.to_empty(device="cpu").to(dtype).eval()
    for weight in real.parameters():
        weight.fill_(0.01)
    for n_tokens in (7, 4):
        real(torch.zeros(1, n_tokens, dtype=torch.long), cache=cache)
    assert bytes_in(cache) == said["state_bytes"] + 11 * said["kv_bytes_per_token"]
