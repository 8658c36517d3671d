"""FlexAttention, uncompiled on the CPU, against plain loops and the explicit kernel in float64, forwards and backwards.

Torch refuses the uncompiled backward pass on a CPU though it has one; here the refusal is lifted, so that gradients are
those of FlexAttention's own rule. What it compiles for CUDA is not run here.
"""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from oracles import (
    BATCH,
    BIAS,
    HEADS,
    MAY_READ,
    attend,
    composed,
    every_pair_once,
    gradients,
    make_reading,
    options,
    randomise,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention as torchs

import archlab
from archlab.base.errors import UserError
from archlab.benchmark.memory import peak_bytes
from archlab.blocks import flex
from archlab.blocks import kernel as kernels
from archlab.blocks.flex import blocks_once, flex_kernel
from archlab.blocks.kernel import KERNELS, causal_kernel, explicit_kernel, fused_kernel
from archlab.blocks.softcap import leave, make_softcap
from archlab.runs import lab
from archlab.runs.load import load_run

SEQ, PREFIXES = 13, (4, 9)
EXACT = dict(rtol=1e-9, atol=1e-9)  # float64 throughout; sums in another order
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(autouse=True)
def with_a_backward_pass(monkeypatch):
    monkeypatch.setattr(torchs, "_validate_device", lambda q, k, v: None)
    # Traced, types that tests check at every call would be traced too; a test below traces without them.
    monkeypatch.setattr(torchs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def draw_qkv(kv_heads: int, head_dim: int = 10):
    shapes = [(BATCH, heads, SEQ, head_dim) for heads in (HEADS, kv_heads, kv_heads)]
    return tuple(torch.randn(shape, dtype=torch.float64).mul(2).requires_grad_() for shape in shapes)


def read_of(pos: str, mask: str):
    return make_reading(pos, mask, SEQ, PREFIXES if mask == "prefix" else 0)


def flex_of(context, softcap=leave):
    return flex_kernel(context.position, context.mask, softcap)


EVERY_USE = list(product(BIAS, MAY_READ, (6, 3, 1), (None, 1.5)))


@pytest.mark.parametrize(("pos", "mask", "kv_heads", "softcap"), every_pair_once(EVERY_USE))
def test_agrees_with_loops(pos, mask, kv_heads, softcap):
    qkv, context = draw_qkv(kv_heads), read_of(pos, mask)
    read = flex_of(context, make_softcap(softcap))(*qkv, context, 0.0)
    expected = attend(*qkv, lambda b, i, j: MAY_READ[mask](i, j, PREFIXES[b]), BIAS[pos], softcap)
    torch.testing.assert_close(read, expected, **EXACT)
    torch.testing.assert_close(gradients(read, qkv), gradients(expected, qkv), **EXACT)


def each_once():
    """Every position scheme and every mask; what one adds and what the other hides are two functions, so other pairs are slow."""
    for i, pos in enumerate(options("pos")):
        for j, mask in enumerate(options("mask")):
            yield pytest.param(pos, mask, marks=[pytest.mark.slow] * (i % len(options("mask")) != j))


@pytest.mark.parametrize(("pos", "mask"), list(each_once()))
def test_agrees_with_the_explicit_kernel(pos, mask):
    """For every option of conf/, one with no row above too."""
    context, qkv = read_of(pos, mask), draw_qkv(kv_heads=3)
    randomise(context.position)
    context = type(context)(context.position, context.mask, context.token_positions)
    read, expected = flex_of(context)(*qkv, context, 0.0), explicit_kernel(leave)(*qkv, context, 0.0)
    torch.testing.assert_close(read, expected, **EXACT)
    torch.testing.assert_close(gradients(read, qkv), gradients(expected, qkv), **EXACT)


@pytest.mark.parametrize("pos", options("pos"))
def test_the_score_of_one_pair_is_the_bias_there(pos):
    position = randomise(read_of(pos, "causal").position)
    if not position.pointwise:
        with pytest.raises(NotImplementedError):
            position.score((), torch.tensor(0), torch.tensor(1), torch.tensor(0))
        return
    places = [0, 3, 16, 77, 600]
    of_pairs = position.bias(torch.tensor(places).view(1, -1, 1), torch.tensor(places).view(1, 1, -1))[0]
    tables = position.bias_tables(torch.device("cpu"))
    assert all(table.is_contiguous() and table.dim() > 0 and table.dtype == torch.float32 for table in tables)
    for h in range(HEADS):
        for i, query in enumerate(places):
            for j, key in enumerate(places):
                one = position.score(tables, torch.tensor(h), torch.tensor(query), torch.tensor(key))
                assert one.shape == () and one == of_pairs[h, i, j]


def test_blocks_are_found_once_where_no_data_decides():
    mask = read_of("none", "window").mask
    cpu = torch.device("cpu")
    assert blocks_once(mask, SEQ, cpu) is blocks_once(mask, SEQ, cpu) is not blocks_once(mask, SEQ + 1, cpu)
    context = read_of("none", "prefix")
    kernel, qkv = flex_of(context), draw_qkv(kv_heads=3)
    kernel(*qkv, context, 0.0)
    blocks = context.kept["blocks"]
    kernel(*qkv, context, 0.0)
    assert context.kept["blocks"] is blocks


@pytest.mark.parametrize("mask", [name for name in options("mask") if name != "full"])
@pytest.mark.parametrize("seq_len", [13, 256, 300])
def test_blocks_are_those_that_torch_finds_by_a_table_of_all_pairs(mask, seq_len, monkeypatch):
    monkeypatch.setattr(flex, "PAIRS", 2 * BATCH * flex.SIDE**2)  # so that a long sequence is looked at in parts
    context = make_reading("none", mask, seq_len, (7, 290) if mask == "prefix" and seq_len == 300 else 0)
    q = torch.zeros(BATCH, 1, seq_len, 16)
    by_sequence = context.mask.uses_prefix or context.mask.uses_documents
    found = (flex.blocks_of_each_sequence if by_sequence else flex.blocks_of_all)(context, q)
    expected = torchs.create_block_mask(found.mask_mod, BATCH if by_sequence else None, None, seq_len, seq_len, "cpu")
    assert found.seq_lengths == expected.seq_lengths and found.BLOCK_SIZE == expected.BLOCK_SIZE
    for ours, theirs in zip(found.as_tuple()[2:10], expected.as_tuple()[2:10], strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("mask", ["window", "prefix"])
def test_finding_blocks_takes_no_table_of_all_pairs(mask, monkeypatch):
    monkeypatch.setattr(flex, "PAIRS", 2**17)
    cpu, peaks = torch.device("cpu"), []
    for seq_len in (1024, 4096):
        context, q = make_reading("none", mask, seq_len), torch.zeros(BATCH, 1, seq_len, 16)
        find = flex.blocks_by_sequence if mask == "prefix" else flex.blocks_once.__wrapped__
        given = (context, BATCH, seq_len) if mask == "prefix" else (context.mask, seq_len, cpu)
        peaks.append(peak_bytes(lambda find=find, given=given: find(*given), q.device))
    assert peaks[1] < 5 * peaks[0]


def test_blocks_that_were_found_for_decoding_serve_training():
    """Torch saves no tensor for a backward pass that was made in inference mode."""
    mask = read_of("none", "window").mask
    with torch.inference_mode():
        found = blocks_once(mask, SEQ, torch.device("cpu"))
    assert not any(part.is_inference() for part in found.as_tuple() if isinstance(part, torch.Tensor))


# --- which kernel a layer computes by


@pytest.mark.parametrize(
    ("pos", "mask", "by_flex"),
    [
        ("none", "causal", False),
        ("rope", "causal", False),
        ("learned", "full", False),
        ("fire", "causal", False),  # whose bias is a network's, and has to be tabled
        ("rope", "window", True),
        ("none", "prefix", True),
        ("alibi", "causal", True),
        ("t5", "full", True),
        ("kerple", "prefix", True),
    ],
)
def test_what_auto_takes(pos, mask, by_flex, monkeypatch):
    context, qkv, calls = read_of(pos, mask), draw_qkv(kv_heads=3), []
    monkeypatch.setattr(kernels, "flex_kernel", lambda *_: lambda *given: calls.append(given) or torch.zeros(()))
    for on_cuda in (True, False):
        monkeypatch.setattr(kernels, "takes_flex", lambda *_, on_cuda=on_cuda: on_cuda)
        calls.clear()
        KERNELS["auto"](context.position, context.mask, 16).plain(*qkv, context, 0.0)
        assert bool(calls) is (by_flex and on_cuda)
    assert KERNELS["auto"](context.position, context.mask, 15).plain is fused_kernel(context.position, context.mask)


@pytest.mark.parametrize("on_cuda", [True, False])
@pytest.mark.parametrize(
    ("name", "pos", "head_dim", "by_flex"),
    [("auto", "none", 16, True), ("auto", "alibi", 16, True), ("auto", "none", 15, False), ("flex", "none", 16, True)],
)
def test_soft_capped_scores_are_capped_by_whatever_kernel_takes_them(
    name, pos, head_dim, by_flex, on_cuda, monkeypatch
):
    context, qkv, calls = read_of(pos, "causal"), draw_qkv(3, head_dim), []

    def seen(position, mask, softcap):
        made = flex_kernel(position, mask, softcap)
        return lambda *given: calls.append(1) or made(*given)

    monkeypatch.setattr(kernels, "flex_kernel", seen)
    monkeypatch.setattr(kernels, "takes_flex", lambda *_: on_cuda)
    read = KERNELS[name](context.position, context.mask, head_dim).capped(make_softcap(1.5))(*qkv, context, 0.0)
    assert bool(calls) is (by_flex and on_cuda)
    expected = attend(*qkv, lambda b, i, j: MAY_READ["causal"](i, j, PREFIXES[b]), BIAS[pos], 1.5)
    torch.testing.assert_close(read, expected, **EXACT)


@pytest.mark.parametrize(
    ("device", "dtype", "dropout", "taken"),
    [
        ("cuda", torch.bfloat16, 0.0, True),
        ("cuda", torch.float32, 0.0, True),
        ("cuda", torch.float64, 0.0, False),
        ("cuda", torch.float32, 0.1, False),
        ("cpu", torch.float32, 0.0, False),
    ],
)
def test_where_flex_is_taken(device, dtype, dropout, taken):
    context = read_of("alibi", "causal")
    with FakeTensorMode():
        q = torch.empty(1, HEADS, SEQ, 16, device=device, dtype=dtype)
    assert kernels.takes_flex(q, context, dropout) is taken
    context.whole = False
    assert not kernels.takes_flex(q, context, dropout)


WORDS = [
    "",
    "pos=alibi",
    "pos=t5 mixer=gqa",
    "pos=kerple mask=prefix prefix=[0.25,0.75]",
    "mask=window mask.window=5 mixer=mqa",
    "mask=window mask.window=5 mixer.softcap=2 pos=alibi",
    "mixer.softcap=2 mixer.scale=0.5",
    "pos=xpos mask=prefix prefix=[0.25,0.75]",
    "pos=fire",
    "layers[1::2].mask=window layers[1::2].mask.window=4 layers[0].pos=alibi",
]


@pytest.mark.slow
def test_decoders_of_all_kernels_are_one():
    """Logits, and gradients of all weights, those of learned biases included."""
    kernels_of = {words: ["auto", "flex"] if "softcap" in words else ["auto", "sdpa", "flex"] for words in WORDS}
    cases = [f"{kernel} {words}" for words, names in kernels_of.items() for kernel in names]
    cases.sort(key=lambda case: case.startswith("flex"))  # last, since from the first on every kernel is asked
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "kernels.py"), *cases]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["case"] for one in seen] == cases
    # Biases and rotations are float32 in a model of any dtype.
    assert not [one for one in seen if not one["gap"] < 2e-5 or one["flex"] is not one["case"].startswith("flex")]


# --- what is asked by kernel=


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("kernel=sdpa mixer.softcap=5", ["kernel=sdpa", "soft-cap", "use kernel=dense"]),
        ("kernel=flex size.head_dim=8", ["kernel=flex", "size.head_dim=8", "16"]),
        ("kernel=flex mixer.dropout=0.1", ["kernel=flex", "mixer.dropout=0.1", "use kernel=dense"]),
        ("kernel=flex dropout=0.2", ["kernel=flex", "mixer.dropout=0.2", "use kernel=dense"]),
        ("kernel=fused", ["kernel=fused", "'dense'"]),
    ],
)
def test_what_cannot_be_computed_so_is_refused(words, parts):
    with pytest.raises(UserError) as refusal:
        archlab.compose("size=tiny", *words.split())
    assert "\n" not in str(refusal.value)
    assert not [part for part in parts if part not in str(refusal.value)], str(refusal.value)


def test_flex_is_refused_where_there_is_no_cuda_device(capsys, monkeypatch, tmp_path):
    from archlab.cli import main as cli

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        cli.main(["size=tiny", "kernel=flex", f"output={tmp_path}/runs"])
    assert left.value.code == 2 and not (tmp_path / "runs").exists()
    assert (
        "kernel=flex: has its backward pass on CUDA devices alone, and this run is on cpu; use"
        in capsys.readouterr().err
    )


def test_plain_causal_scores_stay_with_torchs_own_kernel():
    context = read_of("rope", "causal")
    assert KERNELS["auto"](context.position, context.mask, 64).plain is causal_kernel
    assert composed("size=nano").kernel == "auto"


def test_a_run_from_before_there_was_a_choice_is_read(tmp_path):
    """Its config.yaml names neither the kernel nor whether it was deterministic."""
    words = (
        "size=nano",
        "train.steps=1",
        "train.train_len=8",
        "train.batch_size=1",
        "eval.tokens=16",
        "eval.lengths=[1]",
    )
    directory = lab.run(composed(*words, f"output={tmp_path}", "device=cpu"), words, plots=False)
    file = directory / "config.yaml"
    lines = file.read_text().splitlines(keepends=True)
    older = [line for line in lines if not line.lstrip().startswith(("kernel:", "deterministic:"))]
    assert len(older) == len(lines) - 2
    file.write_text("".join(older))
    cfg, decoder = load_run(directory)
    assert (cfg.kernel, cfg.train.deterministic) == ("auto", False)
    tokens = torch.randint(0, 50, (1, 8))
    torch.testing.assert_close(decoder(tokens), load_run(directory, "kernel=dense")[1](tokens), rtol=1e-4, atol=1e-5)
