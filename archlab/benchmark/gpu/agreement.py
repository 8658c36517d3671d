"""Whether the device computes what the processor computes in float64."""

from collections.abc import Iterable, Iterator

import torch
from omegaconf import DictConfig
from torch import Tensor

from archlab.benchmark.gpu.check import Observed, composed_or_none, named
from archlab.benchmark.workload import Workload
from archlab.config.groups import BLOCKS
from archlab.config.overrides import groups
from archlab.train.runtime import Runtime

SMALL = (
    "size.d_model=64", "size.n_layers=2", "size.n_heads=2", "size.d_ff=96", "train.train_len=48", "train.batch_size=4",
    "allow_leak=true",
)  # fmt: skip
FP32, BF16, TIMES = 1e-4, 3e-2, 3.0
"""Largest relative errors in float32 and in bfloat16; or, where rounding to eight bits alone costs more than a third of
that, three times what it costs on the CPU."""

CPU = torch.device("cpu")


def agreement(device: torch.device, words: Iterable[tuple[str, ...]] | None = None) -> Observed:
    """Every option agrees with float64.

    Logits and gradients of one batch, for each option of each block put into the default model, against the CPU in
    float64: ||a - b|| / ||b||, the larger of the two. In float32 at most 1e-4; under bfloat16 autocast at most 3e-2, or
    three times the error that the CPU has under the same autocast.
    """
    errors: dict[str, tuple[float, float, float]] = {}
    for combination in each_option() if words is None else words:
        cfg = composed_or_none(*SMALL, *combination)
        if cfg is not None:
            exact = logits_and_gradients(cfg, Runtime(CPU, torch.float32), torch.float64)
            errors[" ".join(combination)] = (
                away(logits_and_gradients(cfg, Runtime(device, torch.float32)), exact),
                away(logits_and_gradients(cfg, Runtime(device, torch.bfloat16)), exact),
                away(logits_and_gradients(cfg, Runtime(CPU, torch.bfloat16)), exact),
            )
    wrong = [f"{name} {said}" for name, found in errors.items() for said in too_far(*found)]
    worst = [max(errors, key=lambda name: errors[name][place]) for place in (0, 1)]
    figure = f"{len(errors)} options; fp32 up to {errors[worst[0]][0]:.1e} ({worst[0]}), bf16 up to {errors[worst[1]][1]:.1e} ({worst[1]})"
    return Observed(
        f"{named(wrong)}; {figure}" if wrong else figure,
        f"fp32 {FP32:g}, bf16 {BF16:g} or {TIMES:g}x the CPU's",
        not wrong,
        errors,
    )


def too_far(fp32: float, bf16: float, cpu_bf16: float) -> Iterator[str]:
    """What is wrong with an option's errors, in words; not a number is wrong too."""
    if not fp32 <= FP32:
        yield f"fp32 off by {fp32:.1e}"
    if not bf16 <= max(BF16, TIMES * cpu_bf16):
        yield f"bf16 off by {bf16:.1e}"


def each_option() -> Iterator[tuple[str, ...]]:
    known = groups()
    for group in BLOCKS:
        for option in known[group]:
            yield (f"{group}={option}",)


def logits_and_gradients(cfg: DictConfig, machine: Runtime, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Of the first batch, at the initial weights; float64 vectors on the CPU. Gradients are joined, sorted by name."""
    work = Workload(cfg, machine)
    work.decoder.to(dtype)
    logits = work.forward()
    work.forward_backward()
    gradients = [
        weight.grad.flatten() for _, weight in sorted(work.decoder.named_parameters()) if weight.grad is not None
    ]
    return [part.detach().cpu().double() for part in (logits.flatten(), torch.cat(gradients))]


def away(found: list[Tensor], exact: list[Tensor]) -> float:
    """The larger of the relative errors."""
    return max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(found, exact, strict=True))
