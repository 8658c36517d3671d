"""What is said of bfloat16 where it is slower than float32, and where it is faster."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import archlab
from archlab.runs import bf16
from archlab.runs.bf16 import faster_in_bf16, slower_in_bf16
from archlab.train.runtime import runtime


def never(*_: object) -> float:
    raise AssertionError("timed")


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch):
    monkeypatch.setattr(bf16, "TRIED", {})


def asked(*words):
    """A run that is long enough to ask about, with its decoder."""
    cfg = archlab.compose("size=nano", "train.steps=100000", "device=cpu", *words)
    return cfg, runtime(cfg.device, cfg.precision), archlab.build(cfg)


@pytest.mark.parametrize(
    ("times", "said"), [(1 / 14, "took 14 times as long"), (1 / 1.25, "took 1.25 times"), (1 / 1.1, None), (2.0, None)]
)
def test_bf16_is_said_to_be_slower_where_it_is(times, said):
    line = slower_in_bf16(*asked("precision=bf16"), lambda *_: times)
    assert line is None if said is None else said in line and "\n" not in line


def test_elsewhere_nothing_is_timed():
    cfg, where, decoder = asked("precision=fp32")
    assert slower_in_bf16(cfg, where, decoder, never) is None
    on_a_gpu = replace(runtime("cpu", "bf16"), device=torch.device("cuda"))
    assert slower_in_bf16(cfg, on_a_gpu, decoder, never) is None


# ---------------------------------------------------------------- precision=auto on a CPU


@pytest.mark.parametrize(("times", "said"), [(1.84, "1.8 times as fast in bf16"), (1.1, None), (0.2, None)])
def test_bf16_is_said_to_be_faster_where_it_is_and_auto_stays_float32(times, said):
    cfg, where, decoder = asked("precision=auto")
    line = faster_in_bf16(cfg, where, decoder, lambda *_: times, lambda: ["amx_bf16"])
    assert where.dtype == torch.float32
    assert line is None if said is None else said in line and "amx_bf16" in line and "\n" not in line


@pytest.mark.parametrize("words", [("precision=fp32",), ("precision=bf16",), ("train.steps=400",)])
def test_what_was_asked_for_and_what_is_short_is_not_tried(words):
    cfg = archlab.compose("size=nano", *(() if "steps" in words[0] else ("train.steps=100000",)), "device=cpu", *words)
    assert faster_in_bf16(cfg, runtime("cpu", cfg.precision), archlab.build(cfg), never, lambda: ["amx_bf16"]) is None


def test_the_first_command_is_too_short_for_a_trial():
    cfg = archlab.compose("+norm=rms", "+pos=alibi", "device=cpu")
    assert faster_in_bf16(cfg, runtime("cpu", "auto"), archlab.build(cfg), never, lambda: ["amx_bf16"]) is None


def test_without_a_unit_or_on_a_gpu_nothing_is_tried():
    cfg, where, decoder = asked()
    assert faster_in_bf16(cfg, where, decoder, never, list) is None
    on_a_gpu = replace(where, device=torch.device("cuda"))
    assert faster_in_bf16(cfg, on_a_gpu, decoder, never, lambda: ["amx_bf16"]) is None


def test_a_sweep_asks_once_for_each_model():
    tried = []

    def trial(decoder, cfg):
        tried.append(cfg.choices.norm)
        return 2.0

    for words in (("norm=rms",), ("norm=rms", "seed=3"), ("norm=rms", "train.lr=1e-4"), ("norm=layer",)):
        assert faster_in_bf16(*asked(*words), trial, lambda: ["avx512_bf16"])
    assert tried == ["rms", "layer"]
    for words in (("size.d_ff=90",), ("train.train_len=24",), ("train.batch_size=6",), ("pos=alibi",)):
        assert faster_in_bf16(*asked("norm=layer", *words), trial, lambda: ["avx512_bf16"])
    assert tried == ["rms", *["layer"] * 5]


def test_a_trial_times_forward_and_backward_of_each_kind_after_a_first_round(monkeypatch):
    """By a clock that only layers move: 5 and 4 s in float32, 1 and 2 s in bfloat16, a first call of which takes 100 more."""
    cfg, _, decoder = asked()
    now, halves = [0.0], []
    monkeypatch.setattr(bf16, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def forward(*_: object) -> None:
        half = torch.is_autocast_enabled("cpu")
        now[0] += (1.0 if half else 5.0) + 100 * (half and not any(halves))
        halves.append(half)

    def backward(*_: object) -> None:
        now[0] += 2.0 if halves[-1] else 4.0

    decoder.layers[0].register_forward_hook(forward)
    decoder.layers[0].register_full_backward_hook(backward)
    assert bf16.times_in_bf16(decoder, cfg) == pytest.approx((5 + 4) / (1 + 2))


@pytest.mark.parametrize("words", [("dropout=0.1",), ("residual=hyper",), ("pos=alibi", "mask=window"), ("mixer=gdn", "pos=none"), ("ffn=experts",)])  # fmt: skip
def test_a_trial_leaves_no_trace(words):
    cfg, _, decoder = asked(*words)
    state, weights = torch.get_rng_state(), {name: w.detach().clone() for name, w in decoder.state_dict().items()}
    assert bf16.times_in_bf16(decoder, cfg) > 0
    assert torch.equal(state, torch.get_rng_state()) and all(w.grad is None for w in decoder.parameters())
    assert all(torch.equal(w, weights[name]) for name, w in decoder.state_dict().items())


def test_units_are_those_that_torch_reports(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": True, "avx512_bf16": False})
    assert bf16.units() == ["amx_bf16"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert bf16.units() == []
