"""Whether short runs on the device come out as they should: in each precision, twice, and after an overflow."""

import math

import torch
from omegaconf import DictConfig

from archlab.benchmark.gpu.check import Observed
from archlab.benchmark.workload import Workload
from archlab.config.compose import compose
from archlab.runs.assembled import training_seed
from archlab.train.runtime import DTYPES, Runtime, runtime
from archlab.train.step import make_step, read

STEPS, SAME_LOSS = 60, 2e-2


def precisions(
    device: torch.device,
    names: tuple[str, ...] = tuple(DTYPES),
    words: tuple[str, ...] = (f"train.steps={STEPS}",),
) -> Observed:
    """Precisions train alike.

    The same run in float32, with TF32 products, in bfloat16, and in float16 with its loss scaling: the mean loss of the
    last ten steps within 2% of float32's.
    """
    cfg = compose(*words)
    losses = {name: trained(cfg, Runtime(device, DTYPES[name], tf32=name == "tf32")) for name in names}
    apart = max(abs(loss / losses["fp32"] - 1) for loss in losses.values())
    figure = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    return Observed(f"{figure} nats per token", f"within {SAME_LOSS:.0%} of fp32", apart <= SAME_LOSS, losses)


def trained(cfg: DictConfig, machine: Runtime) -> float:
    """The mean loss of the last ten steps, nats per token."""
    return sum(losses_of(cfg, machine)[-10:]) / 10


def losses_of(cfg: DictConfig, machine: Runtime) -> list[float]:
    """A run's training losses by step, nats per token, each step on its own batch."""
    work = Workload(cfg, machine)
    settings = work.settings
    step = make_step(work.decoder, settings, machine)
    with machine.in_force():
        results = [
            step(work.state, work.source.train(training_seed(cfg), number, settings.batch_size, settings.train_len))
            for number in range(1, settings.steps + 1)
        ]
    return [seen.loss for seen in read(results)]


def repeatable(device: torch.device, words: tuple[str, ...] = ("train.steps=20",)) -> Observed:
    """Repeatable.

    Two runs of one seed under torch's deterministic algorithms have the same losses to the last bit. Without them the gap
    is measured: fused backward passes may add up in any order.
    """
    cfg = compose(*words)
    machine = runtime(str(device), cfg.precision)
    gap = largest_gap(cfg, machine)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        deterministic = largest_gap(cfg, machine)
    finally:
        torch.use_deterministic_algorithms(before)
    figure = f"losses differ by {deterministic:.1e} when deterministic, {gap:.1e} otherwise"
    return Observed(
        figure, "0 when deterministic", deterministic == 0, {"deterministic": deterministic, "otherwise": gap}
    )


def largest_gap(cfg: DictConfig, machine: Runtime) -> float:
    """Between the losses of two runs, nats per token."""
    one, other = losses_of(cfg, machine), losses_of(cfg, machine)
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


SCALE = 2.0**60
"""A loss scale under which every gradient of a float16 product overflows, and float32 does not."""


def overflow(device: torch.device, words: tuple[str, ...] = (), steps: int = 60) -> Observed:
    """An overflow in float16 is survived.

    With a loss scale of 2^60 the first step's gradients overflow: the step changes no weight, the scale is halved, and
    the run is not taken for diverged. After as many halvings as it takes, training goes on.
    """
    machine = Runtime(device, torch.float16)
    work = Workload(compose(*words), machine)
    step = make_step(work.decoder, work.settings, machine)
    work.state.scaler.scale(torch.zeros((), device=device))  # makes the scale, which begins at its own value
    work.state.scaler.update(SCALE)
    before = [weight.detach().clone() for weight in work.decoder.parameters()]
    first = step(work.state, work.batch)
    kept = all(torch.equal(old, new) for old, new in zip(before, work.decoder.parameters(), strict=True))
    scale, diverged = work.state.scaler.get_scale(), bool(work.state.broken)
    results = [first, *(step(work.state, work.batch) for _ in range(steps))]
    last = read(results)[-1].loss
    moved = not all(torch.equal(old, new) for old, new in zip(before, work.decoder.parameters(), strict=True))
    passed = kept and scale == SCALE / 2 and not diverged and moved and math.isfinite(last) and last < float(first.loss)
    figure = (
        f"weights {'kept' if kept else 'changed'}, scale 2^{math.log2(scale):g}, {'diverged' if diverged else 'goes on'};"
        f" after {steps} steps more the scale is 2^{math.log2(work.state.scaler.get_scale()):g}, loss"
        f" {float(first.loss):.3f} to {last:.3f}"
    )
    return Observed(figure, "kept, 2^59, goes on, loss falls", passed)
