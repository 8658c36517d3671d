"""What is timed is what is trained, its parts are where they are said to be, and memory is what is alive."""

import importlib
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import archlab
from archlab.base.signals import Stop
from archlab.benchmark import kinds, memory
from archlab.benchmark.machine import machine_of, processor
from archlab.benchmark.peak import matrix_product
from archlab.benchmark.speed import MODES, rates, speed
from archlab.benchmark.workload import OneBatch, Workload
from archlab.config.compose import compose, in_turn, plans
from archlab.data.batch import Batch
from archlab.runs.packs import bytes_each
from archlab.train.loop import train
from archlab.train.runtime import Runtime

NANO = ("size=nano", "train.train_len=16", "train.batch_size=2")
CPU = torch.device("cpu")


class Held(OneBatch):
    """The one batch is held out too."""

    def validation(self, seq_len: int, n_tokens: int, batch_size: int, stride: int | None = None) -> Iterator[Batch]:
        yield self.batch


def test_the_step_is_the_one_that_runs_take():
    """Two steps of a run change the weights as the timed step does at the same number and on the same batch."""
    words = (*NANO, "train.steps=9", "probe.every=null")
    work, twin = Workload(compose(*words)), Workload(compose(*words))
    stop = Stop()
    taken: list[int] = []

    def tick(step: int, *_: object) -> None:
        taken.append(step)
        stop.asked = signal.SIGINT if step == 2 else None

    train(
        twin.decoder, Held(twin.batch), twin.settings, twin.machine, seed=0,
        validate=lambda: None, report=lambda _: None, tick=tick, stop=stop,
    )  # fmt: skip
    work._step(work.state, work.batch)
    result = work.step()
    assert taken == [1, 2] and result.number == 2
    for one, other in zip(work.decoder.parameters(), twin.decoder.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_step_may_be_repeated_and_never_looks_closely():
    work = Workload(compose(*NANO, "probe.every=2"))
    results = [work.step() for _ in range(3)]
    assert {result.number for result in results} == {3}, "the second would be looked at closely"
    assert "attention_entropy" not in results[0].taps
    assert all(result.loss.isfinite() for result in results)


def test_decoding_goes_on_from_half_a_sequence():
    work = Workload(compose(*NANO))
    tokens = work.decode()
    assert tokens.shape == (1, 16) and work.n_decoded == 8
    assert torch.equal(tokens[:, :8], work.batch.inputs[:1, :8])
    assert work.decoder.training


def test_what_cannot_be_decoded_is_not_timed_and_says_why():
    found = speed(compose(*NANO, "mask=full", "data=masked", "head=mlm", "size.vocab_size=257"), rounds=1)
    assert list(found["modes"]) == [mode for mode in MODES if mode != "decode"]
    assert found["not_decoded"].startswith("mask=full")


def test_rates_and_shares_follow_from_the_seconds():
    """Nano, 16 tokens: by hand 2 FLOPs for each weight of a matrix, and 4 d_model for each pair of query and key."""
    work = Workload(compose(*NANO))
    matrices = 2 * (4 * 64 * 64 + 3 * 64 * 176) + 64 * 256
    forward = 2 * matrices + 2 * 16 * 4 * 64
    found = rates(work, "step", [0.5, 0.25, 1.0], peak=1e9)
    assert found["tokens_per_second"] == pytest.approx(32 / 0.5)
    assert found["low"] == pytest.approx(32 / 0.75) and found["high"] == pytest.approx(32 / 0.375)
    assert found["of_peak"] == pytest.approx(3 * forward * 64 / 1e9)
    assert rates(work, "decode", [1.0], peak=1e9)["of_peak"] is None


def test_a_matrix_product_has_two_operations_for_each_multiply_add():
    product, flops = matrix_product(Runtime(CPU, torch.bfloat16))
    out = product()
    assert out.dtype == torch.bfloat16 and flops == 2 * out.shape[0] ** 3


@pytest.mark.parametrize("mode", [*MODES, "eager_step", "product"])
def test_what_is_timed_is_timed_as_the_machine_computes_in_a_run(mode, monkeypatch):
    """Its choices for the whole process hold in a call, such as TF32 and the order of attention kernels, and not after it."""
    machine = Runtime(CPU, torch.float32, deterministic=True)
    work = Workload(compose(*NANO, "train.steps=3"), machine)
    seen = []
    work.decoder.layers[0].mixer.register_forward_hook(
        lambda *_: seen.append(torch.are_deterministic_algorithms_enabled())
    )
    monkeypatch.setattr(torch, "mm", lambda *_, **__: seen.append(torch.are_deterministic_algorithms_enabled()))
    call = matrix_product(machine)[0] if mode == "product" else getattr(work, mode)
    call()
    assert set(seen) == {True} and not torch.are_deterministic_algorithms_enabled()


def test_the_machine_is_described(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some Chip 3000\nprocessor\t: 1\n")
    assert processor(tmp_path / "cpuinfo") == "Some Chip 3000"
    assert processor(tmp_path / "none") != ""
    found = machine_of(CPU)
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads() and found["cores"] >= 1


# ---------------------------------------------------------------- where the time goes


class Sleep(torch.autograd.Function):
    """Its input, after a time in each direction."""

    FORWARD, BACKWARD = 0.01, 0.02

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        time.sleep(Sleep.FORWARD)
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        time.sleep(Sleep.BACKWARD)
        return gradient


def slow(module: nn.Module) -> None:
    given = module.forward
    module.forward = lambda *args, **kwargs: Sleep.apply(given(*args, **kwargs))


def stretches(work: Workload) -> tuple[dict[str, float], float]:
    """Of one step, the seconds by kind and in all."""
    timeline = kinds.Timeline(CPU)
    with kinds.hooked(work, timeline):
        since = time.perf_counter()
        timeline.alone("rest")
        work.step()
        timeline.alone("rest")
        total = time.perf_counter() - since
    return timeline.seconds(), total


@pytest.mark.parametrize(("kind", "n"), [("norm", 5), ("mixer", 2), ("ffn", 2), ("head", 1)])
def test_a_blocks_time_is_its_own_forward_and_backward(kind, n):
    """Nano has 2 layers, so 2 of each branch, 5 norms with the final one, and a head."""
    work = Workload(compose(*NANO))
    found = [module for module in work.decoder.modules() if kinds.kind_of(module) == kind]
    assert len(found) == n
    work.step()
    for module in found:
        slow(module)
    seconds, total = stretches(work)
    asleep = n * (Sleep.FORWARD + Sleep.BACKWARD)
    assert seconds[kind] >= asleep
    assert sum(seconds.values()) - seconds[kind] <= total - asleep, "the sleep is in no other kind"
    assert sum(seconds.values()) == pytest.approx(total, abs=0.05 * total + 0.01)


def test_norms_within_a_mixer_are_norms():
    work = Workload(compose(*NANO, "mixer.qk_norm=head"))
    slow(work.decoder.layers[0].mixer.q_norm)
    seconds, total = stretches(work)
    assert seconds["norm"] >= Sleep.FORWARD + Sleep.BACKWARD and sum(seconds.values()) <= total


def test_loss_gradients_and_optimizer_have_their_time(monkeypatch):
    work = Workload(compose(*NANO))
    work.step()

    def late(seconds, call):
        def called(*args, **kwargs):
            time.sleep(seconds)
            return call(*args, **kwargs)

        return called

    monkeypatch.setattr("archlab.train.step.clip_grad_norm_", late(0.02, torch.nn.utils.clip_grad_norm_))
    monkeypatch.setattr("archlab.train.objective.F.cross_entropy", late(0.03, torch.nn.functional.cross_entropy))
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "adam", late(0.04, adam.adam))
    seconds, _ = stretches(work)
    assert seconds["gradients"] >= 0.02 and seconds["loss"] >= 0.03 and seconds["optimizer"] >= 0.04


@pytest.mark.parametrize("words", [("residual=parallel",), ("residual=post",), ("train.checkpoint=true",), ("train.accumulate=2",), ("embed.tied=true",)])  # fmt: skip
def test_hooks_leave_no_gradient_otherwise_and_nothing_behind(words):
    work, twin = Workload(compose(*NANO, *words)), Workload(compose(*NANO, *words))
    seconds, _ = stretches(work)
    twin.step()
    for one, other in zip(work.decoder.parameters(), twin.decoder.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-7)  # what is added up comes in another order
    assert all(seconds[kind] > 0 for kind in kinds.KINDS)
    assert not any(module._forward_hooks or module._backward_hooks for module in work.decoder.modules())


def test_kinds_are_shares_of_a_step():
    found = kinds.by_kind(Workload(compose(*NANO)), rounds=1)
    assert sum(found["shares"].values()) == pytest.approx(1) and sum(found["seconds"].values()) == pytest.approx(
        found["step"]
    )
    assert found["times_plain"] > 0


# ---------------------------------------------------------------- memory


def test_the_fullest_moment_is_found_though_it_passed():
    def work() -> Tensor:
        both = [torch.zeros(250_000), torch.zeros(250_000)]
        del both
        return torch.zeros(250_000)

    assert memory.peak_bytes(work, CPU) == pytest.approx(2 * 4 * 250_000, rel=0.01)


def test_each_memory_is_counted_once_whatever_looks_into_it():
    def work() -> None:
        x = torch.zeros(1000)
        views = x.view(10, 100), x[::2], x.add_(1).unbind()
        del views
        values, places = x.sort()  # 1000 float32 numbers and 1000 int64 ones
        assert len(values) == len(places)
        torch.zeros(10**6, device="meta")

    assert memory.peak_bytes(work, CPU) == 4 * 1000 + 4 * 1000 + 8 * 1000


def test_memory_is_measured_of_eager_steps():
    """Of what is compiled, operations are not seen one by one."""
    seen, steps = [], []

    def make(machine: Runtime) -> SimpleNamespace:
        seen.append(machine.compile)
        return SimpleNamespace(step=lambda: steps.append(1))

    memory.peak_of_steps(make, Runtime(CPU, torch.float32, compile="on"))
    assert seen == ["off"] and len(steps) == memory.STEPS


def test_training_holds_weights_gradients_two_states_and_activations():
    """With one token nearly no activations: 4 float32 numbers for each parameter."""
    cfg = in_turn(*NANO, "train.train_len=2", "train.batch_size=1")
    work = Workload(cfg)
    states = 16 * sum(weight.numel() for weight in work.decoder.parameters())
    few, many = (memory.peak_of_training(one, work.machine) for one in (cfg, in_turn(*NANO, "train.batch_size=32")))
    assert states <= few <= 1.2 * states
    assert many > 2 * few


@pytest.mark.parametrize("average", ["average=ema", "average=tail"])
def test_an_average_of_the_weights_is_one_more_number_each_as_the_bill_says(average):
    short = (*NANO, "train.train_len=2", "train.batch_size=1", "memory.weights=fp32")
    plain, averaged = in_turn(*short), in_turn(*short, average)
    peaks = [memory.peak_of_training(cfg, Runtime(CPU, torch.float32)) for cfg in (plain, averaged)]
    bills = [archlab.memory(cfg) for cfg in (plain, averaged)]
    assert peaks[1] - peaks[0] == bills[1].total - bills[0].total == bills[1].to_pandas()["copies of the weights"] > 0
    assert f"a float32 copy of the trained weights for {average}" in bills[1].bill.assumptions


def test_the_best_weights_are_a_copy_too():
    cfg = in_turn(*NANO, "memory.weights=fp32", "average=ema", "train.patience=2", "train.eval_every=1")
    kept = archlab.memory(cfg).to_pandas()
    assert kept["copies of the weights"] == 2 * kept["weights"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pack_takes_no_more_than_what_its_size_goes_by(precision):
    (plan,) = plans("size=nano", "train.train_len=64", "train.batch_size=8", "device=cpu", f"precision={precision}")
    machine = Runtime(CPU, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    assert memory.peak_of_pack(plan.cfg, 4, machine) <= 4 * bytes_each(plan)
