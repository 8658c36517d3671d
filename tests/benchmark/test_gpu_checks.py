"""The checks of suite=gpu, carried out on the CPU at small sizes: each passes where all is well and fails where it is not."""

import itertools
import json
import math
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from archlab.base.errors import UserError
from archlab.benchmark.gpu import agreement, check, memory, packs, recurrences, short_runs, speed, suite, waits
from archlab.benchmark.gpu.backends import all_combinations, attention_backends, backends_of
from archlab.benchmark.gpu.check import Observed, carried_out
from archlab.benchmark.gpu.contracts import contracts
from archlab.benchmark.gpu.environment import environment
from archlab.benchmark.gpu.first_command import first_command
from archlab.benchmark.workload import Workload
from archlab.blocks import context, fla, mask
from archlab.blocks.recurrent import gated_sum
from archlab.config.compose import compose
from archlab.train.objective import Program
from archlab.train.runtime import Runtime

pytestmark = pytest.mark.slow
"""They carry the whole suite out; what they are made of is tested elsewhere, quickly."""

CPU = torch.device("cpu")
NANO = ("size=nano", "train.train_len=16", "train.batch_size=2")
FP32 = (torch.float32,)


# ---------------------------------------------------------------- how checks are carried out


def passes(device):
    """It passes.

    With more to say.
    """
    return Observed("fine", "fine", True)


def fails(device):
    """It fails."""
    return Observed("3", "at most 2", False)


def raises(device):
    """It raises."""
    raise ValueError("no such\nkernel")


def measures(device):
    """It measures."""
    return Observed("12 tokens/s", "", None)


def test_each_check_has_its_line_whatever_the_others_do():
    found = list(carried_out((passes, raises, fails, measures), CPU))
    assert [(one.name, one.verdict, one.figure) for one in found] == [
        ("It passes", "pass", "fine"),
        ("It raises", "fail", "ValueError: no such kernel"),
        ("It fails", "fail", "3"),
        ("It measures", "measured", "12 tokens/s"),
    ]


def test_what_there_is_no_time_for_was_not_run():
    def slow(device):
        """It takes long."""
        time.sleep(0.02)
        return Observed("", "", True)

    first, second = carried_out((slow, passes), CPU, limit=0.01)
    assert (first.verdict, second.verdict, second.figure) == ("pass", "not run", "no time left after 0.01 s")


def test_every_check_has_a_name_of_its_own_and_ten_minutes_are_enough():
    names = [check.title(one) for one in suite.CHECKS]
    assert len(set(names)) == len(names) and all(len(name) > 5 for name in names)
    assert check.LIMIT <= 9.5 * 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_is_one_line():
    with pytest.raises(
        UserError, match="suite=gpu: checks a CUDA device, and torch can use none here; run it on a machine"
    ):
        next(suite.gpu())


# ---------------------------------------------------------------- the checks


def test_environment(monkeypatch):
    seen = environment(CPU)
    assert seen.passed and torch.__version__ in seen.figure
    given = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: given(a, b) * (1.02 if a.dtype == torch.bfloat16 else 1)
    )
    assert not environment(CPU).passed


def test_attention_kernels():
    """torch takes the MATH kernel on a CPU where a bias has a gradient, and where it is told to."""
    fused = [("pos=rope",), ("pos=alibi", "mask=prefix"), ("mask=window", "mixer=gqa")]
    seen = attention_backends(CPU, fused, (torch.float32, torch.bfloat16))
    assert seen.passed and seen.data == {"kernels": {"FLASH_ATTENTION": 6}, "math": []}
    learned = attention_backends(CPU, [("pos=t5",), ("pos=rope",)], FP32)
    assert not learned.passed and learned.data["math"] == ["pos=t5 float32"]
    with sdpa_kernel(SDPBackend.MATH):
        assert not attention_backends(CPU, fused[:1], FP32).passed


def test_attention_kernels_asks_for_every_combination():
    combinations = set(all_combinations())
    for one in itertools.product(("alibi", "rope_2d", "t5"), ("full", "prefix"), ("mqa", "mha")):
        assert (
            tuple(f"{group}={name}" for group, name in zip(("pos", "mask", "mixer"), one, strict=True)) in combinations
        )
    assert not attention_backends(CPU, [("pos=rope", "mask=none such")], FP32).passed, "nothing was asked"


def test_nothing_waits(monkeypatch):
    seen = waits.no_waiting(CPU, NANO)
    assert seen.passed and len(seen.data) == 10
    given = waits.make_step

    def reading(*args):
        step = given(*args)

        def read_at_once(state, batch):
            result = step(state, batch)
            float(result.loss)
            return result

        return read_at_once

    monkeypatch.setattr(waits, "make_step", reading)
    late = waits.no_waiting(CPU, NANO)
    assert not late.passed and late.figure == "step 4: _local_scalar_dense waits for the device"


@pytest.mark.parametrize(
    "wait", [lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: bool(x.any()), lambda x: x.sum().item()]
)
def test_what_waits_is_seen(wait):
    x = torch.tensor([1.0, -1.0])
    with waits.NothingIsRead(), pytest.raises(waits.Waiting):
        wait(x)
    with waits.NothingIsRead():
        assert (x.where(x > 0, 0) + x[torch.tensor([0, 1])]).shape == (2,)


def test_agreement(monkeypatch):
    words = [("norm=layer",), ("mask=prefix",), ("ffn=none such",)]
    seen = agreement.agreement(CPU, words)
    assert seen.passed and list(seen.data) == ["norm=layer", "mask=prefix"]
    assert all(fp32 < 1e-5 < bf16 == on_cpu for fp32, bf16, on_cpu in seen.data.values())
    given = agreement.logits_and_gradients

    def off(cfg, machine, dtype=torch.float32):
        logits, gradients = given(cfg, machine, dtype)
        wrong = dtype == torch.float32 and machine.dtype == torch.float32 and cfg.choices.norm == "layer"
        return [logits, gradients * (1.001 if wrong else 1)]

    monkeypatch.setattr(agreement, "logits_and_gradients", off)
    wrong = agreement.agreement(CPU, words)
    assert not wrong.passed and wrong.figure.startswith("norm=layer fp32 off by 1.0e-03; 2 options")


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ((1e-5, 0.02, 0.02), []),
        ((1e-5, 0.08, 0.03), []),
        ((1e-5, 0.10, 0.03), ["bf16 off by 1.0e-01"]),
        ((2e-4, 0.04, 0.01), ["fp32 off by 2.0e-04", "bf16 off by 4.0e-02"]),
        ((math.nan, 0.01, 0.01), ["fp32 off by nan"]),
    ],
)
def test_agreement_has_an_end(errors, said):
    assert list(agreement.too_far(*errors)) == said


def test_contracts_on_the_device(monkeypatch):
    seen = contracts(CPU, [(), ("mask=prefix",), ("mask=full",)])
    assert seen.passed and seen.figure == "10 hold", "two promises of decoding are not asked of a full mask"
    monkeypatch.setattr(mask.Window, "can_attend", lambda self, query, key, prefix_len: key <= query + 1)
    broken = contracts(CPU, [("mask=window",)])
    assert not broken.passed and broken.figure.startswith("1 broken: mask=window: ")


def test_speed_of_an_eager_step():
    seen = speed.eager(CPU, NANO, rounds=1)
    assert seen.passed is None and seen.data["launched"] > 100 and "operations a step" in seen.figure


@pytest.fixture(scope="module")
def compiled():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compiled.py"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_compiled_is_held_to_the_eager_losses(compiled):
    right, wrong = compiled["right"], compiled["wrong"]
    assert right["passed"] and right["data"]["again"] == right["data"]["skipped"] == 0
    assert right["data"]["apart"] <= 1e-4 < 1e-3 < wrong["data"]["apart"] and not wrong["passed"]


@pytest.mark.slow
def test_compiled_is_held_to_a_speed(compiled):
    assert not compiled["slow"]["passed"] and compiled["slow"]["data"]["times"] > 0
    assert compiled["slow"]["data"]["apart"] <= 1e-4


@pytest.mark.slow
def test_share_of_peak_has_a_reach(compiled):
    """No step does all its products and all else in a twentieth of the time that the products alone take."""
    assert not compiled["impossible"]["passed"] and compiled["anything"]["passed"]


def test_recurrences_are_held_to_chunks(monkeypatch):
    """Off CUDA chunks compute, whatever is asked for, so that all agrees; and nothing is said of a library that cannot be used."""
    absent = recurrences.recurrences(CPU)
    assert absent.passed is None and absent.figure.startswith("not used here: its kernels multiply bfloat16 on CUDA")
    monkeypatch.setattr(recurrences, "why_not", lambda device, dtype: None)
    mixers = (("mixer=linear",), ("mixer=gdn", "mixer.key_heads=1"))
    one_layer = (*NANO, "size.n_layers=1")
    tried = partial(recurrences.recurrences, CPU, small=one_layer, large=one_layer, programs=False)
    seen = tried(mixers)
    assert seen.passed and seen.figure.startswith("2 agree; mixer=linear ")
    errors = seen.data["errors"]["mixer=linear"]
    assert len(errors) == 2 and all(by_kernels == by_chunks > 0 for by_kernels, by_chunks in errors.values())
    monkeypatch.setitem(fla.RECURRENCES, "fla", lambda: fla.by_kernels()._replace(gated_sum=a_little_off))
    wrong = tried(mixers[:1])
    assert wrong.passed is False and wrong.figure.startswith("mixer=linear: states or what is decoded off by 5.0e-01")


def a_little_off(q, k, v, log_decay, state, products):
    out, state = gated_sum(q, k, v, log_decay, state)
    return out, 1.5 * state


def test_memory_is_linear_in_length(monkeypatch):
    lengths = (1024, 2048, 4096)
    seen = memory.linear_in_length(CPU, [("pos=alibi",), ("mask=window", "mask.window=128")], lengths)
    assert seen.passed and set(seen.data) == {"pos=alibi", "mask=window mask.window=128"}
    monkeypatch.setattr(context, "QUERY_BLOCK", 10**6)  # a table of all queries and keys at once
    table = memory.linear_in_length(CPU, [("pos=alibi",)], lengths)
    assert not table.passed and table.data["pos=alibi"] > 1.5


def test_the_bill_is_held_to_what_is_measured(monkeypatch):
    words = ("size=tiny", "train.batch_size=16")
    seen = memory.bill(CPU, words)
    assert seen.data["measured"] == pytest.approx(seen.data["said"], rel=0.2), (
        "within a fifth, all copies of logits included"
    )
    assert seen.passed == (abs(seen.data["measured"] / seen.data["said"] - 1) <= 0.1)
    for factor, passed in ((1.05, True), (0.95, True), (1.2, False), (0.8, False)):
        monkeypatch.setattr(memory, "peak_of_training", lambda *_, by=factor: by * seen.data["said"])
        assert memory.bill(CPU, words).passed is passed


def test_repeatable(monkeypatch):
    words = (*NANO, "train.steps=3")
    assert short_runs.repeatable(CPU, words).passed
    assert not torch.are_deterministic_algorithms_enabled()
    gaps = itertools.count()
    monkeypatch.setattr(short_runs, "losses_of", lambda *_: [1.0, 1.0 + 1e-7 * next(gaps)])
    assert not short_runs.repeatable(CPU, words).passed


def test_an_overflow_is_survived(monkeypatch):
    seen = short_runs.overflow(CPU, NANO)
    assert seen.passed and seen.figure.startswith("weights kept, scale 2^59, goes on")
    without = partial(torch.amp.GradScaler, "cpu", enabled=False)
    monkeypatch.setattr(Runtime, "scaler", lambda self: without())
    assert not short_runs.overflow(CPU, NANO, steps=2).passed


def test_precisions_train_alike(monkeypatch):
    words = (*NANO, "train.steps=12")
    seen = short_runs.precisions(CPU, ("fp32", "bf16"), words)
    assert seen.passed and seen.data["fp32"] != seen.data["bf16"]
    losses = iter([2.0, 2.03, 2.05])
    monkeypatch.setattr(short_runs, "trained", lambda *_: next(losses))
    off = short_runs.precisions(CPU, ("fp32", "tf32", "bf16"), words)
    assert not off.passed and off.figure == "fp32 2.0000, tf32 2.0300, bf16 2.0500 nats per token"
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_first_command():
    """After three steps the loss is still near ln 256, and two lengths that differ by nothing hold or leave it open."""
    words = (*NANO, "train.steps=3", "eval.lengths=[1,2]", "eval.tokens=64")
    near = partial(first_command, CPU, words, loss=math.log(256), within=1.0)
    verdicts = {verdict: near(verdict=verdict).passed for verdict in ("holds", "undecided", "collapses")}
    assert sum(verdicts.values()) == 1 and not verdicts["collapses"]
    (verdict,) = (name for name, passed in verdicts.items() if passed)
    assert not first_command(CPU, words, loss=1.0, within=1.0, verdict=verdict).passed


def test_results_are_plain_data():
    records = [one.to_record() for one in carried_out((environment, partial_named(waits.no_waiting)), CPU)]
    assert json.loads(json.dumps(records)) == records


def partial_named(function):
    def small(device):
        return function(device, NANO)

    small.__doc__ = function.__doc__
    return small


# ---------------------------------------------------------------- packs


def test_members_of_a_pack_are_compared_with_runs_by_themselves(monkeypatch):
    words = (*NANO, "train.steps=17")
    assert packs.members_alone(CPU, words).passed
    real = packs.by_itself
    monkeypatch.setattr(packs, "UNLIKE", ({"lr": 1e-2}, {}))
    assert packs.members_alone(CPU, words).passed

    def at_another_rate(member, machine):
        member.settings = packs.replace(member.settings, lr=2e-2)
        return real(member, machine)

    monkeypatch.setattr(packs, "by_itself", at_another_rate)
    assert packs.members_alone(CPU, words).passed is False


def test_a_pack_is_timed_beside_a_run_and_weighed(monkeypatch):
    # What counts bytes on a CPU cannot look into stacked tensors; a CUDA device's allocator counts whatever they are.
    monkeypatch.setattr(packs, "peak_bytes", lambda work, device: work() or 12345)
    seen = packs.many(CPU, (*NANO, "train.steps=2"), sizes=(2, 3), at=3)
    assert seen.data["packed"].keys() == {2, 3} and seen.data["peak"] == 12345 and seen.data["bill"] > 0
    monkeypatch.setattr(packs, "TIMES", 0.0)
    monkeypatch.setattr(packs, "WITHIN", 1e9)
    assert packs.many(CPU, (*NANO, "train.steps=2"), sizes=(2,), at=2).passed
    monkeypatch.setattr(packs, "TIMES", 1e9)
    assert packs.many(CPU, (*NANO, "train.steps=2"), sizes=(2,), at=2).passed is False


def by_backends(work: Workload) -> None:
    backends_of(work.decoder, work.machine, lengths=(8,))


def by_decoding(work: Workload) -> None:
    recurrences.decoded(work, torch.float64)


def by_a_program(work: Workload) -> None:
    speed.program_step(work, Program(work.decoder))()


@pytest.mark.parametrize("compute", [by_backends, by_decoding, by_a_program])
def test_a_check_computes_as_a_run_does(compute):
    """What a run has torch do in the whole process, such as the order of attention kernels, holds in it and not after it."""
    work = Workload(compose(*NANO, "mixer=linear", "pos=none"), Runtime(CPU, torch.float32, deterministic=True))
    seen = []
    work.decoder.layers[0].mixer.register_forward_hook(
        lambda *_: seen.append(torch.are_deterministic_algorithms_enabled())
    )
    compute(work)
    assert set(seen) == {True} and not torch.are_deterministic_algorithms_enabled()
