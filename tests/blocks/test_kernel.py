"""Kernels: each computes what plain loops in float64 compute, whole or block by block, forwards and backwards."""

from functools import cache
from itertools import product

import pytest
import torch
from oracles import BATCH, BIAS, HEAD_DIM, HEADS, MAY_READ, attend, every_pair_once, gradients, make_reading, options

from archlab.blocks import context as contexts
from archlab.blocks import kernel as kernels
from archlab.blocks.attention import leave
from archlab.blocks.kernel import biased_kernel, causal_kernel, explicit_kernel, fused_kernel, masked_kernel

SEQ = 13
PREFIXES = (4, 9)  # one for each sequence
EXACT = dict(rtol=1e-9, atol=1e-9)  # float64 throughout; sums in another order

KERNELS = {
    # kernel, the masks it is for, the position schemes it is for
    "causal": (causal_kernel, {"causal"}, {"none"}),
    "masked": (masked_kernel, set(MAY_READ), {"none"}),
    "biased": (biased_kernel, set(MAY_READ), set(BIAS)),
    "explicit": (explicit_kernel(leave), set(MAY_READ), set(BIAS)),
}
EVERY_USE = [
    (name, mask, pos)
    for name, (_, masks, positions) in KERNELS.items()
    for mask in sorted(masks)
    for pos in sorted(positions)
]


def draw_qkv(kv_heads: int, seq: int = SEQ, heads: int = HEADS, batch: int = BATCH):
    shapes = (batch, heads, seq, HEAD_DIM), (batch, kv_heads, seq, HEAD_DIM), (batch, kv_heads, seq, HEAD_DIM)
    return tuple(torch.randn(shape, dtype=torch.float64).mul(2).requires_grad_() for shape in shapes)


def read_of(pos: str, mask: str, seq: int = SEQ):
    return make_reading(pos, mask, seq, PREFIXES if mask == "prefix" else 0)


@cache
def by_loops(kv_heads: int, pos: str, mask: str, softcap=None):
    """Queries, keys and values with what loops make of them and its gradients, for every kernel and block of queries."""
    qkv = draw_qkv(kv_heads)
    read = attend(*qkv, lambda b, i, j: MAY_READ[mask](i, j, PREFIXES[b]), BIAS[pos], softcap)
    return qkv, read.detach(), gradients(read, qkv)


# kernel, mask, position scheme, key-value heads, queries in a block
ROWS = [(*use, kv_heads, block) for use, kv_heads, block in product(EVERY_USE, (6, 3, 1), (512, 5))]


@pytest.mark.parametrize(("name", "mask", "pos", "kv_heads", "block"), every_pair_once(ROWS))
def test_agrees_with_loops(name, mask, pos, kv_heads, block, monkeypatch):
    monkeypatch.setattr(contexts, "QUERY_BLOCK", block)
    qkv, expected, their_gradients = by_loops(kv_heads, pos, mask)
    read = KERNELS[name][0](*qkv, read_of(pos, mask), 0.0)
    torch.testing.assert_close(read.detach(), expected, **EXACT)
    torch.testing.assert_close(gradients(read, qkv), their_gradients, **EXACT)


@pytest.mark.parametrize("block", [512, 5], ids=["one-block", "blocks-of-5"])
@pytest.mark.parametrize("mask", MAY_READ)
@pytest.mark.parametrize("pos", BIAS)
def test_scores_are_squashed_before_the_bias(pos, mask, block, monkeypatch):
    monkeypatch.setattr(contexts, "QUERY_BLOCK", block)
    qkv, expected, their_gradients = by_loops(3, pos, mask, softcap=1.5)
    read = explicit_kernel(lambda scores: 1.5 * torch.tanh(scores / 1.5))(*qkv, read_of(pos, mask), 0.0)
    torch.testing.assert_close(read.detach(), expected, **EXACT)
    torch.testing.assert_close(gradients(read, qkv), their_gradients, **EXACT)


@pytest.mark.parametrize(
    ("pos", "mask", "expected"),
    [
        ("none", "causal", causal_kernel),
        ("rope", "causal", causal_kernel),
        ("none", "prefix", masked_kernel),
        ("sinusoidal", "window", masked_kernel),
        ("learned", "full", masked_kernel),
        ("alibi", "causal", biased_kernel),
        ("alibi", "prefix", biased_kernel),
    ],
)
def test_the_cheapest_kernel_that_will_do(pos, mask, expected):
    context = make_reading(pos, mask, SEQ)
    assert fused_kernel(context.position, context.mask) is expected


@pytest.mark.parametrize("mask", options("mask"))
@pytest.mark.parametrize("pos", options("pos"))
def test_the_fused_kernel_computes_what_the_explicit_one_does(pos, mask, monkeypatch):
    """For every option of conf/, one with no row above too."""
    monkeypatch.setattr(contexts, "QUERY_BLOCK", 5)
    qkv, context = draw_qkv(kv_heads=3), read_of(pos, mask)
    fused, explicit = fused_kernel(context.position, context.mask), explicit_kernel(leave)
    read, expected = fused(*qkv, context, 0.0), explicit(*qkv, context, 0.0)
    torch.testing.assert_close(read, expected, **EXACT)
    torch.testing.assert_close(gradients(read, qkv), gradients(expected, qkv), **EXACT)


def far_apart(rounded: bool):
    """Keys that grow with their distance from the last query exactly as fast as ALiBi's bias of the first head falls.

    Query and keys are exact in bfloat16; the weights turn on the small rest, which a bias in bfloat16 loses.
    """
    seq, slope = 700, 2.0**-2
    distance = torch.arange(seq - 1, -1, -1).double()
    q, k = (torch.zeros(1, HEADS, seq, HEAD_DIM, dtype=torch.float64) for _ in range(2))
    q[:, :, -1, 0] = 1
    k[..., 0] = (slope * distance * HEAD_DIM**0.5).bfloat16().double()
    v = torch.randn(1, HEADS, seq, HEAD_DIM, dtype=torch.float64).bfloat16().double()
    bias = -slope * distance
    bias = bias.bfloat16().double() if rounded else bias
    weights = (k[0, 0, :, 0] / HEAD_DIM**0.5 + bias).softmax(dim=0)
    return q, k, v, weights @ v[0, 0]


@pytest.mark.parametrize("name", ["biased", "explicit"])
def test_a_bias_stays_float32_under_bfloat16_autocast(name):
    q, k, v, expected = far_apart(rounded=False)
    with torch.autocast("cpu", torch.bfloat16):
        read = KERNELS[name][0](
            q.bfloat16(), k.bfloat16(), v.bfloat16(), make_reading("alibi", "causal", q.shape[2]), 0.0
        )
    assert read.dtype == torch.bfloat16
    # one rounding of the result, and of the weights where the values are summed in bfloat16
    torch.testing.assert_close(read[0, 0, -1].double(), expected, rtol=2**-7, atol=5e-3)


def test_a_bias_in_bfloat16_would_show():
    torch.manual_seed(0)
    *_, expected = far_apart(rounded=False)
    torch.manual_seed(0)
    *_, rounded = far_apart(rounded=True)
    assert (expected - rounded).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("name", "mask", "pos"), EVERY_USE)
def test_keeps_the_dtype(name, mask, pos, dtype):
    q, k, v = (x.to(dtype) for x in draw_qkv(kv_heads=3))
    assert KERNELS[name][0](q, k, v, read_of(pos, mask), 0.0).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_bias_is_float32_at_least(dtype):
    q, k, _ = (x.to(dtype) for x in draw_qkv(kv_heads=3))
    rows = make_reading("alibi", "causal", SEQ).everything
    assert rows.bias.dtype == torch.float32
    assert kernels.explicit_scores(q, k, rows, leave).dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("name", KERNELS)
def test_dropout_is_of_the_weights(name):
    """With values of one, each row reads the sum of its weights; the mean over many draws is one again."""
    kernel, rate = KERNELS[name][0], 0.4
    q, k, _ = draw_qkv(kv_heads=6, batch=200)
    v, context = torch.ones_like(q), make_reading("none", "causal", SEQ)
    first, last = kernel(q, k, v, context, rate)[:, :, [0, -1], 0].unbind(dim=-1)
    torch.testing.assert_close(
        first.unique(), torch.tensor([0.0, 1 / (1 - rate)]).double()
    )  # the first row has one weight
    # 1200 draws of a variable of a standard deviation of at most 0.82: five of the mean's
    assert abs(first.mean() - 1) < 0.12 and abs(last.mean() - 1) < 0.12
    assert torch.equal(kernel(q, k, v, context, 0.0), kernel(q, k, v, context, 0.0))


# --- tables as fused attention on CUDA takes them: seen in their strides, since none of it shows in the numbers


def check_table(table: torch.Tensor) -> None:
    """Keys next to each other, rows, heads and sequences a multiple of 16 entries apart: `aligned_tensor` in torch's sources."""
    *others, last = table.stride()
    assert last == 1
    assert not [stride for stride in others if stride % 16]


@pytest.mark.parametrize(
    ("pos", "mask", "seq"), every_pair_once(list(product(options("pos"), options("mask"), (13, 16, 40))))
)
def test_tables_are_laid_out_for_the_fused_kernels(pos, mask, seq, monkeypatch):
    for block_of in (512, 7):
        monkeypatch.setattr(contexts, "QUERY_BLOCK", block_of)
        for block in make_reading(pos, mask, seq, PREFIXES if mask == "prefix" else 0).blocks():
            check_table(block.bias)
            check_table(block.added_mask(torch.bfloat16))


def test_the_heads_last_in_memory_would_show():
    """What a table of learned numbers by bucket is before it is laid out: (query, key, heads), seen as heads first."""
    with pytest.raises(AssertionError):
        check_table(torch.zeros(1, 32, 32, 16).permute(0, 3, 1, 2))
    with pytest.raises(AssertionError):
        check_table(torch.zeros(1, 4, 13, 13))


def test_the_mask_is_made_once_for_all_layers():
    block = make_reading("none", "window", SEQ).everything
    assert block.added_mask(torch.float32) is block.added_mask(torch.float32)
    added = block.added_mask(torch.float64)
    assert added.dtype == torch.float64
    assert torch.equal(added[:, 0] == 0, block.can_attend) and torch.equal(added[:, 0].isneginf(), ~block.can_attend)


@pytest.mark.parametrize(
    ("device", "dtype", "as_they_are"),
    [
        ("cuda", torch.bfloat16, True),
        ("cuda", torch.float16, True),
        ("cuda", torch.float32, False),
        ("cuda", torch.float64, False),
        ("cpu", torch.float32, True),
        ("meta", torch.float32, True),
    ],
)
def test_where_key_value_heads_are_shared_by_the_fused_kernel(device, dtype, as_they_are):
    assert kernels.shares_heads(torch.device(device), dtype) is as_they_are


def test_heads_shared_beforehand_give_the_same(monkeypatch):
    qkv, context = draw_qkv(kv_heads=3), make_reading("none", "causal", SEQ)
    expected = causal_kernel(*qkv, context, 0.0)
    of_expected = gradients(expected, qkv)
    monkeypatch.setattr(kernels, "shares_heads", lambda device, dtype: False)
    read = causal_kernel(*qkv, context, 0.0)
    torch.testing.assert_close(read, expected, **EXACT)
    torch.testing.assert_close(gradients(read, qkv), of_expected, **EXACT)


@pytest.mark.parametrize("masked", [False, True])
def test_in_half_precision_a_cpu_attends_in_float32_where_it_takes_gradients(masked):
    drawn = torch.Generator().manual_seed(5)
    q, k, v, outer = (torch.randn(2, 3, 7, 8, generator=drawn).bfloat16() for _ in range(4))
    hidden = torch.ones(7, 7).tril().bool().logical_not()
    added = torch.zeros(7, 7).masked_fill(hidden, float("-inf"))
    options = {"attn_mask": added.bfloat16()} if masked else {"is_causal": True}
    given = [x.clone().requires_grad_() for x in (q, k, v)]
    with torch.autocast("cpu", torch.bfloat16):
        found = kernels.torchs_own(*given, **options)
    assert found.dtype == torch.bfloat16
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    expected = (wide[0] @ wide[1].mT / 8**0.5 + added).softmax(dim=-1) @ wide[2]
    # Rounded once, at the end: half of bfloat16's last of eight bits. Its own kernel also rounds the weights.
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)
    grads = (torch.autograd.grad(one, of, outer.to(one.dtype)) for one, of in ((found, given), (expected, wide)))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(kernels.torchs_own(q, k, v, **options).double(), expected, rtol=2**-5, atol=2**-6)
