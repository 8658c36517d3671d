"""How fast the device trains: eagerly, and as one compiled program with CUDA graphs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.autograd.profiler import profile

from archlab.benchmark.gpu.check import Observed
from archlab.benchmark.peak import matrix_product
from archlab.benchmark.speed import PASSES
from archlab.benchmark.turns import in_turns
from archlab.benchmark.workload import Workload
from archlab.config.compose import compose
from archlab.cost.measure import forward_flops_per_token
from archlab.train.objective import Program, placed
from archlab.train.runtime import runtime

ROUNDS = 7
GRAPHS = {"mode": "reduce-overhead", "fullgraph": True}
"""What torch.compile is given: one program, replayed as a CUDA graph."""


def eager(device: torch.device, words: tuple[str, ...] = (), rounds: int = ROUNDS) -> Observed:
    """Speed of an eager step.

    Tokens per second, kernels launched (on a CPU: operations), and the share of the time in which the device computes.
    """
    cfg = compose(*words)
    work = Workload(cfg, runtime(str(device), cfg.precision))
    seconds = in_turns({"step": work.step}, rounds)
    one = float(np.median(seconds["step"]))
    on_gpu = device.type == "cuda"
    with profile(use_device="cuda" if on_gpu else None, use_kineto=on_gpu) as profiled:
        work.step()
    events = profiled.function_events or []
    kernels = [event for event in events if event.device_type.name == "CUDA"] if on_gpu else events
    busy = sum(event.self_device_time_total for event in kernels) / 1e6 / one if on_gpu else None
    share = f", busy {busy:.0%} of the time" if busy is not None else ""
    figure = f"{work.tokens / one:.0f} tokens/s, {len(kernels)} {'kernels' if on_gpu else 'operations'} a step{share}"
    return Observed(figure, "", None, {"seconds": seconds["step"], "launched": len(kernels), "busy": busy})


def program_step(work: Workload, program: Callable[..., Any]) -> Callable[[], Tensor]:
    """A step of the loss as a pure function of its inputs, compiled or not: forward, backward, AdamW. Returns the loss."""
    inputs, optimizer = placed(work.decoder, work.batch), work.state.optimizer

    def step() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        with work.machine.in_force():
            with work.machine.autocast():
                parts, _ = program(*inputs)
            loss = parts.total / parts.n_scored
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach().clone()  # the graph's own memory is written again by the next step

    return step


STEPS, SAME, FASTER = 50, 1e-3, 4.0


def compiled(
    device: torch.device,
    words: tuple[str, ...] = (),
    steps: int = STEPS,
    faster: float | None = FASTER,
    options: dict[str, Any] = GRAPHS,
) -> Observed:
    """Compiled with CUDA graphs.

    The step of the default model, 50 times, compiled and eager from the same weights: the losses within 1e-3 of each
    other, no part left out of the graph, nothing compiled again after the third step, and at least 4 times as fast.
    `faster=None` asks for no speed.
    """
    cfg = compose(*words)
    machine = runtime(str(device), cfg.precision)
    one, other = Workload(cfg, machine), Workload(cfg, machine)
    torch._dynamo.reset()
    counters.clear()
    fast = program_step(one, torch.compile(Program(one.decoder), **options))
    slow = program_step(other, Program(other.decoder))
    losses, graphs = [], 0
    for number in range(steps):
        losses.append((fast(), slow()))
        if number == 2:
            graphs = counters["stats"]["unique_graphs"]
    apart = max(float((a - b).abs() / b.abs()) for a, b in losses)
    again, skipped = counters["stats"]["unique_graphs"] - graphs, counters["inductor"]["cudagraph_skips"]
    figure = f"losses {apart:.1e} apart, {again} compiled again, {skipped} skipped"
    passed, times = apart <= SAME and again == 0 and skipped == 0, None
    if faster is not None:
        seconds = in_turns({"compiled": fast, "eager": slow}, ROUNDS)
        times = float(np.median(np.divide(seconds["eager"], seconds["compiled"])))
        figure, passed = f"{times:.1f}x eager; {figure}", passed and times >= faster
    torch._dynamo.reset()
    reach = f"{SAME:g}, 0, 0" + (f", at least {faster:g}x" if faster is not None else "")
    return Observed(figure, reach, passed, {"times": times, "apart": apart, "again": again, "skipped": skipped})


SHARE = 0.45


def share_of_peak(
    device: torch.device,
    words: tuple[str, ...] = ("size=base", "train.train_len=512", "train.batch_size=32"),
    reach: float = SHARE,
    options: dict[str, Any] = GRAPHS,
) -> Observed:
    """Share of the matrix peak at size base, compiled.

    Floating-point operations of a compiled step, by `archlab.cost`, beside those of one large product in the same dtype,
    timed in turns.
    """
    cfg = compose(*words)
    work = Workload(cfg, runtime(str(device), cfg.precision))
    torch._dynamo.reset()
    step = program_step(work, torch.compile(Program(work.decoder), **options))
    product, flops = matrix_product(work.machine)
    step()
    seconds = in_turns({"step": step, "product": product}, ROUNDS)
    one, peak = float(np.median(seconds["step"])), flops / float(np.median(seconds["product"]))
    of_step = PASSES["step"] * forward_flops_per_token(work.decoder, work.settings.train_len) * work.tokens
    torch._dynamo.reset()
    share = of_step / one / peak
    figure = f"{share:.2f} of {peak / 1e12:.3g} TFLOP/s, {work.tokens / one:.0f} tokens/s"
    return Observed(figure, f"at least {reach:g}", share >= reach, {"share": share, "peak_flops": peak})
