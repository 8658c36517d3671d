"""Recurrences by flash-linear-attention: what it is called with and what is made of its answer, with a stand-in for its kernels.

The stand-in has the library's arguments and the order of its axes, and goes token by token, its gradient written out. The
kernels themselves are run by Triton's interpreter where they are installed; on a CUDA device `archlab bench suite=gpu` holds
them to `kernel=chunked`.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from oracles import BATCH, HEADS, composed, gradients
from torch import Tensor

from archlab.base.errors import UserError
from archlab.blocks import fla
from archlab.blocks.cache import Cache
from archlab.blocks.fla import RECURRENCES, as_operation, by_kernels, library, why_not
from archlab.blocks.recurrent import CHUNKED, unit
from archlab.cli import main as cli
from archlab.config.assemble import assemble, build

SEQ, KEY_HEADS, KEY_DIM, VALUE_DIM = 9, 3, 5, 7  # HEADS is 6; neither width is a multiple of what kernels are given
IN_FLOAT32 = dict(rtol=2e-5, atol=2e-5)  # sums over at most nine tokens in another order


class ByToken(torch.autograd.Function):
    """S_t = a_t S_(t-1) + k_t w_t^T and o_t = q_t S_t, w_t being v_t, or b_t (v_t - a_t k_t^T S_(t-1)) with a `beta`."""

    @staticmethod
    def forward(ctx, q, k, v, beta, g, state):
        ctx.save_for_backward(q, k, v, beta, g, state)
        (out, end), _ = through(q, k, v, beta, g, state)
        return out, end

    @staticmethod
    def backward(ctx, to_out, to_end):
        q, k, v, beta, g, _ = ctx.saved_tensors
        _, steps = through(*ctx.saved_tensors)
        dq, dk, dv, dg = (torch.zeros_like(x) for x in (q, k, v, g))
        db, ds = (None if beta is None else torch.zeros_like(beta)), to_end.clone()
        for t in reversed(range(q.shape[1])):
            before, now, wrote = steps[t]
            ds = ds + q[:, t, :, :, None] * to_out[:, t, :, None]
            dq[:, t] = (now * to_out[:, t, :, None]).sum(-1)
            dk[:, t], dw = (ds * wrote[..., None, :]).sum(-1), (ds * k[:, t, :, :, None]).sum(-2)
            dv[:, t] = dw
            if beta is not None:
                strong = beta[:, t, :, None] * dw
                db[:, t] = (dw * (v[:, t] - (k[:, t, :, :, None] * before).sum(-2))).sum(-1)
                dv[:, t], dk[:, t] = strong, dk[:, t] - (before * strong[..., None, :]).sum(-1)
                ds = ds - k[:, t, :, :, None] * strong[..., None, :]
            dg[:, t] = (ds * before).sum((-1, -2))
            ds = g[:, t, :, None, None].exp() * ds
        return dq, dk, dv, db, dg, ds


def through(q, k, v, beta, g, state):
    """Output and last state, and of each token the decayed state before it, the state after it, and what it wrote."""
    out, steps = [], []
    for t in range(q.shape[1]):
        before = g[:, t, :, None, None].exp() * state
        wrote = v[:, t]
        if beta is not None:
            wrote = beta[:, t, :, None] * (wrote - (k[:, t, :, :, None] * before).sum(-2))
        state = before + k[:, t, :, :, None] * wrote[..., None, :]
        out.append((q[:, t, :, :, None] * state).sum(-2))
        steps.append((before, state, wrote))
    return (torch.stack(out, dim=1), state.clone()), steps


def as_given(q, k, v, g, state, key_heads):
    """What the library says of its arguments: [B, T, H, K], [B, T, H, V], [B, T, H], [B, H, K, V]."""
    batch, seq, heads, value_dim = v.shape
    assert q.shape == k.shape == (batch, seq, key_heads, q.shape[-1]) and g.shape == (batch, seq, heads)
    assert state.shape == (batch, heads, q.shape[-1], value_dim)
    assert q.shape[-1] % 16 == 0 and value_dim % 16 == 0
    assert g.dtype == state.dtype == torch.float32


def chunk_simple_gla(q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False):
    as_given(q, k, v, g, initial_state, v.shape[2])
    assert scale == 1.0 and output_final_state and g_gamma is None
    return ByToken.apply(q, k, v, None, g, initial_state)


def chunk_gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False):
    as_given(q, k, v, g, initial_state, q.shape[2])
    assert scale == 1.0 and output_final_state and beta.shape == g.shape
    share = v.shape[2] // q.shape[2]  # this one is given fewer key heads as they are
    many = tuple(Shared.apply(x, share) for x in (q, k))
    return ByToken.apply(*many, v, beta, g, initial_state)


class Shared(torch.autograd.Function):
    """Each key head for as many consecutive heads."""

    @staticmethod
    def forward(ctx, x, share):
        ctx.share = share
        return x.repeat_interleave(share, dim=2)

    @staticmethod
    def backward(ctx, to_out):
        return to_out.unflatten(2, (-1, ctx.share)).sum(3), None


def stand_in_for_the_library(monkeypatch) -> None:
    """The library, and that its kernels take what a CPU has; float32 is what they multiply."""
    sums, rules = ModuleType("fla.ops.simple_gla"), ModuleType("fla.ops.gated_delta_rule")
    sums.chunk_simple_gla, rules.chunk_gated_delta_rule = chunk_simple_gla, chunk_gated_delta_rule
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", sums)
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", rules)
    monkeypatch.setattr(fla, "takes", several_tokens)
    library.cache_clear()


def several_tokens(q, products):
    return q.shape[2] > 1


@pytest.fixture
def stand_in(monkeypatch):
    stand_in_for_the_library(monkeypatch)
    yield
    library.cache_clear()


def given(rule: bool, key_heads: int) -> dict[str, Tensor]:
    """Decays of one sequence, as where they are the same for all."""
    tensors = {
        "q": torch.randn(BATCH, key_heads, SEQ, KEY_DIM),
        "k": unit(torch.randn(BATCH, key_heads, SEQ, KEY_DIM)),
        "v": torch.randn(BATCH, HEADS, SEQ, VALUE_DIM),
        "beta": torch.rand(BATCH, HEADS, SEQ),
        "log_decay": -3 * torch.rand(1, HEADS, SEQ),
        "state": torch.randn(BATCH, HEADS, KEY_DIM, VALUE_DIM),
    }
    if not rule:
        del tensors["beta"]
    return {name: x.requires_grad_() for name, x in tensors.items()}


@pytest.mark.parametrize("key_heads", [HEADS, KEY_HEADS])
@pytest.mark.parametrize("rule", [False, True], ids=["sum", "delta"])
def test_is_called_as_it_says_and_computes_what_chunks_do(stand_in, rule, key_heads):
    tensors = given(rule, key_heads)
    compute = "delta_rule" if rule else "gated_sum"
    (out, end), (expected, expected_end) = (
        getattr(recurrence, compute)(*tensors.values(), torch.float32) for recurrence in (by_kernels(), CHUNKED)
    )
    torch.testing.assert_close(out, expected, **IN_FLOAT32)
    torch.testing.assert_close(end, expected_end, **IN_FLOAT32)
    leaves = list(tensors.values())
    joined = [torch.cat((o.flatten(), e.flatten())) for o, e in ((out, end), (expected, expected_end))]
    torch.testing.assert_close(*(gradients(x, leaves) for x in joined), **IN_FLOAT32)


def test_one_token_alone_is_computed_by_chunks():
    """As is whatever is not bfloat16 on a CUDA device: here without the stand-in, so that the library would be missed."""
    tensors = given(False, HEADS)
    one = [x[:, :, :1] if name != "state" else x for name, x in tensors.items()]
    out, end = by_kernels().gated_sum(*one, torch.bfloat16)
    expected, expected_end = CHUNKED.gated_sum(*one, torch.bfloat16)
    assert torch.equal(out, expected) and torch.equal(end, expected_end)


# ---------------------------------------------------------------- whole models, and programs of torch.compile's


SMALL = ("size=nano", "size.n_layers=1", "size.d_model=24", "size.n_heads=2", "size.d_ff=20", "size.vocab_size=256")
MODELS = (
    "mixer=linear", "mixer=retnet", "mixer=mamba2 mixer.state_dim=5 mixer.n_groups=2", "mixer=deltanet",
    "mixer=gdn mixer.key_heads=1 mixer.heads=3 mixer.key_dim=6",
)  # fmt: skip


OF_A_MODEL = (
    2e-5  # of the norm: in float32 both are up to 5e-6 from float64, where a norm of small numbers widens rounding
)


def logits_and_gradients(decoder, call, tokens) -> tuple[Tensor, Tensor]:
    logits = call(tokens)
    weights = [weight for _, weight in sorted(decoder.named_parameters())]
    return logits.detach(), torch.cat([gradient.flatten() for gradient in gradients(logits, weights)])


def away(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def held_to_chunks(words: str, programs: bool) -> None:
    """Logits, gradients, and what is decoded, in a program of torch.compile's or out of one."""
    chunked, fused = (build(composed(*SMALL, *words.split(), f"kernel={kernel}")) for kernel in ("chunked", "fla"))
    tokens = torch.randint(0, 256, (2, SEQ))
    call = torch.compile(fused, backend="aot_eager", fullgraph=True, dynamic=False) if programs else fused
    expected = logits_and_gradients(chunked, chunked, tokens)
    found = logits_and_gradients(fused, call, tokens)
    assert all(away(ours, theirs) < OF_A_MODEL for ours, theirs in zip(found, expected, strict=True))
    with torch.no_grad():
        cache = Cache()
        parts = [fused(part, cache=cache) for part in tokens.split((SEQ - 2, 1, 1), dim=1)]
    assert away(torch.cat(parts, dim=1), expected[0]) < OF_A_MODEL


@pytest.mark.parametrize("words", MODELS)
def test_models_are_the_same_by_either(stand_in, words):
    held_to_chunks(words, programs=False)


def in_programs() -> None:
    """What a test below has done in a process of its own, where no types are checked at every call, which cannot be traced."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        stand_in_for_the_library(monkeypatch)
        for words in MODELS:
            torch.manual_seed(7)
            torch._dynamo.reset()
            held_to_chunks(words, programs=True)


@pytest.mark.slow
def test_models_are_the_same_by_either_in_a_program():
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", "import test_fla; test_fla.in_programs()"], capture_output=True, text=True, cwd=here,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(here.parent), str(here.parents[1])))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("fla") and find_spec("triton")), reason="needs fla-core and triton")
def test_the_kernels_themselves_by_tritons_interpreter():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("interpreted_fla.py"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == 4 and max(errors.values()) < 1e-5  # float32, sums over 70 tokens


@pytest.mark.slow  # torch's check compiles it
def test_an_operation_says_of_itself_what_is_asked():
    """torch's own check, forwards and backwards, of the operation that a program has in a kernel's place."""
    operation = as_operation(
        "fla_tried", "q k v log_decay state", lambda q, k, v, g, state: ByToken.apply(q, k, v, None, g, state)
    )
    shapes = [(2, SEQ, 3, 4)] * 2 + [(2, SEQ, 3, 5), (2, SEQ, 3), (2, 3, 4, 5)]
    inputs = tuple(torch.randn(shape).requires_grad_() for shape in shapes)
    torch.library.opcheck(operation, inputs)


def test_in_a_pack_chunks_compute():
    (layer,) = assemble(composed(*SMALL, "mixer=gdn", "kernel=fla")).layers
    assert layer.mixer.recurrence is not CHUNKED
    layer.mixer.for_packs()
    assert layer.mixer.recurrence is CHUNKED


# ---------------------------------------------------------------- which of them, and what is refused


@pytest.mark.parametrize("kernel", ["auto", "chunked"])
def test_without_the_library_chunks_compute(kernel):
    (layer,) = assemble(composed(*SMALL, "mixer=gdn", f"kernel={kernel}")).layers
    assert layer.mixer.recurrence is CHUNKED


def on_a_gpu(monkeypatch, capability=(8, 0), triton="3.8.0", present=("fla", "triton")) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(fla, "find_spec", lambda name: name if name in present else None)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=triton))


def test_auto_takes_the_kernels_where_they_can_be_used(monkeypatch):
    on_a_gpu(monkeypatch)
    assert RECURRENCES["auto"]().gated_sum is fla.fused_sum
    assert RECURRENCES["sdpa"]() is CHUNKED


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"present": ()}, "pip install 'archlab"),
        ({"present": ("fla",)}, "pip install 'archlab"),
        ({"capability": (9, 0), "triton": "3.7.0"}, "Triton 3.7.0 computes a gradient wrongly on this device"),
        ({"capability": (9, 0), "triton": "3.4.0+git1"}, "use Triton 3.7.1 or newer"),
        ({"capability": (9, 0), "triton": "3.7.1"}, None),
        ({"capability": (9, 0), "triton": "3.3.1"}, None),
        ({"capability": (8, 9), "triton": "3.6.0"}, None),
    ],
)
def test_where_they_cannot_be_used_chunks_are_or_the_reason_is_said(monkeypatch, machine, said):
    on_a_gpu(monkeypatch, **machine)
    why = why_not(torch.device("cuda"), torch.bfloat16)
    assert (why is None) if said is None else (said in why)
    assert (RECURRENCES["auto"]() is CHUNKED) == (said is not None)
    assert "float32 on cuda" in why_not(torch.device("cuda"), torch.float32)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("mixer=gdn kernel=fla", "archlab: kernel=fla: its kernels multiply bfloat16 on CUDA devices alone, and this run is in float32 on cpu; use kernel=chunked or auto\n"),
        ("mixer=mha kernel=fla", "archlab: kernel=fla: is how recurrences are computed, and mixer=mha has none, so it would change nothing; leave it out\n"),
        ("mixer=shortconv pos=none kernel=chunked", "archlab: kernel=chunked: is how recurrences are computed, and mixer=shortconv has none, so it would change nothing; leave it out\n"),
        ("mixer=gdn kernel=fla mixer.key_dim=257", "archlab: kernel=fla: its delta rule takes keys of at most 256 features, and these have 257; use kernel=chunked or auto, or a smaller size.head_dim or mixer.key_dim\n"),
    ],
)  # fmt: skip
def test_refused_in_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["show", "device=cpu", "size=nano", *words.split()])
    assert ended.value.code == 2 and capsys.readouterr().err == said


def test_a_library_that_cannot_be_imported_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", None)
    library.cache_clear()
    with pytest.raises(UserError, match=r"kernel=fla: fla-core cannot be imported \(.*\); use kernel=chunked"):
        library()
