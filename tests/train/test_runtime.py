"""The machine a run asks for: what its options come to, and what torch is told for the whole process."""

import os
from contextlib import suppress

import pytest
import torch
from oracles import composed
from torch.nn.attention import SDPBackend

from archlab.base.errors import UserError
from archlab.claim.jobs import RunJob
from archlab.comparison.arms import SAME
from archlab.runs import tune
from archlab.train.runtime import Runtime, runtime, settled_precision

CUDA = torch.device("cuda")


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Torch says that there is one, with bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


@pytest.fixture
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("auto", Runtime(CUDA, torch.bfloat16)),
        ("fp32", Runtime(CUDA, torch.float32)),
        ("tf32", Runtime(CUDA, torch.float32, tf32=True)),
        ("fp16", Runtime(CUDA, torch.float16)),
    ],
)
def test_precision_on_a_gpu(precision, expected, on_a_gpu):
    assert runtime("auto", precision) == expected


@pytest.mark.parametrize(
    ("asked", "field", "instead"),
    [
        (("cpu", "tf32"), "precision=tf32", "use fp32"),
        (("cpu", "fp16"), "precision=fp16", "use bf16 or fp32"),
        (("cpu", "fp32", True), "train.deterministic=true", "leave it out"),
        (("cuda", "fp32"), "device=cuda", "use cpu, or auto"),
    ],
)
def test_what_this_machine_has_not_is_refused(asked, field, instead, on_a_cpu):
    with pytest.raises(UserError) as refusal:
        runtime(*asked)
    assert str(refusal.value).startswith(field) and instead in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_precision_comes_to_is_settled_by_the_machine(monkeypatch):
    found = []
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        found.append(settled_precision("auto", "auto"))
    assert found == ["bf16", "fp32"]
    assert settled_precision("cuda", "tf32") == "tf32"


def test_jobs_of_other_precision_are_other_jobs(monkeypatch, tmp_path):
    """On a machine with a GPU and on one without; asked for by name they are the same anywhere."""
    by_default, by_name = composed("size=nano"), composed("size=nano", "precision=bf16")
    folders, keys = [], []
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        folders.append([RunJob(cfg, tmp_path).folder for cfg in (by_default, by_name)])
        keys.append([tune.key(cfg) for cfg in (by_default, by_name)])
    for with_gpu, without in (folders, keys):
        assert with_gpu[0] == with_gpu[1] == without[1] != without[0]


def test_runs_in_tf32_are_not_compared_with_others():
    assert "precision=tf32" in SAME


# --- in force


def state() -> tuple:
    """What torch keeps for the whole process."""
    return (
        [SDPBackend(backend) for backend in torch._C._get_sdp_priority_order()],
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.mark.parametrize(("tf32", "deterministic"), [(False, False), (True, False), (False, True)])
def test_in_force_inside_and_as_before_after(tf32, deterministic, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = state()
    with suppress(KeyboardInterrupt), Runtime(CUDA, torch.float32, tf32, deterministic).in_force():
        (first, *others), products, repeats = state()
        assert first == SDPBackend.FLASH_ATTENTION
        assert others.index(SDPBackend.CUDNN_ATTENTION) > others.index(SDPBackend.EFFICIENT_ATTENTION)
        assert (products, repeats) == ("high" if tf32 else "highest", deterministic)
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is deterministic
        raise KeyboardInterrupt
    assert state() == before


def test_on_a_cpu_nothing_is_set():
    before = state()
    with Runtime(torch.device("cpu"), torch.float32).in_force():
        assert state() == before
    assert Runtime(torch.device("cpu"), torch.float32).attention is None


def test_the_order_is_recorded():
    assert Runtime(CUDA, torch.bfloat16).attention == (
        "flash_attention",
        "efficient_attention",
        "cudnn_attention",
        "math",
    )


@pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("cuda", 0)])
def test_a_machine_in_force_on_a_cpu_keeps_the_memory_it_frees(device, times, monkeypatch):
    """On another device torch's own allocator does; what the C library has there is little."""
    told = []
    monkeypatch.setattr("archlab.train.runtime.keep_freed_memory", lambda: told.append(True))
    with Runtime(torch.device(device), torch.float32).in_force():
        assert len(told) == times
