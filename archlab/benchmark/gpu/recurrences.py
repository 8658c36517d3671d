"""Recurrent mixers by flash-linear-attention's kernels, beside the same by chunks of torch's operations."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from archlab.benchmark.gpu.agreement import BF16, CPU, TIMES, away, logits_and_gradients
from archlab.benchmark.gpu.check import Observed, named
from archlab.benchmark.ratio import FEWEST, SpeedRatio, speed_ratio
from archlab.benchmark.turns import in_turns
from archlab.benchmark.workload import Workload
from archlab.blocks.cache import Cache
from archlab.blocks.fla import why_not
from archlab.config.compose import compose
from archlab.train.runtime import Runtime

MIXERS = (
    ("mixer=linear",), ("mixer=retnet",), ("mixer=mamba2", "mixer.n_groups=2"), ("mixer=deltanet",), ("mixer=gdn",),
    ("mixer=gdn", "mixer.key_heads=1", "mixer.heads=2", "mixer.value_dim=65"),
)  # fmt: skip
SMALL = (
    "size.d_model=64", "size.n_layers=2", "size.n_heads=2", "size.d_ff=96", "train.train_len=150", "train.batch_size=3",
)  # fmt: skip
"""Two chunks and a part of one."""

LARGE = (
    "size.d_model=1024", "size.n_layers=4", "size.n_heads=8", "size.d_ff=2048", "train.train_len=2048",
    "train.batch_size=8",
)  # fmt: skip
"""Heads of 128 features, at which such kernels are used."""

AFTER = 6
"""Tokens that are decoded one at a time, after the others were given at once."""


def recurrences(
    device: torch.device,
    mixers: Sequence[tuple[str, ...]] = MIXERS,
    small: tuple[str, ...] = SMALL,
    large: tuple[str, ...] = LARGE,
    programs: bool = True,
) -> Observed:
    """Recurrences by flash-linear-attention.

    Under bfloat16, for each recurrent mixer: logits, gradients, the same of compiled layers, the state after most of a
    sequence and what is decoded from it, each against the CPU in float64 by chunks: ||a - b|| / ||b|| at most 3e-2, or
    three times that of chunks on this device. How many times as fast a forward and backward pass is as by chunks is
    measured. Where the library cannot be used nothing is. `programs=False` compiles nothing.
    """
    machine = Runtime(device, torch.bfloat16)
    if why := why_not(device, machine.dtype):
        return Observed(f"not used here: {why}", "", None)
    errors, times = {}, {}
    for words in mixers:
        name = " ".join(words)
        errors[name] = errors_of((*small, *words), machine, programs)
        times[name] = times_as_fast((*large, *words), machine)
    wrong = [
        f"{name}: {what} off by {by_kernels:.1e}"
        for name, found in errors.items()
        for what, (by_kernels, by_chunks) in found.items()
        if not by_kernels <= max(BF16, TIMES * by_chunks)
    ]
    speeds = ", ".join(f"{name} {ratio.median:.2f}x" for name, ratio in times.items())
    figure = f"{named(wrong)}; {speeds}" if wrong else f"{len(errors)} agree; {speeds}"
    data = {"errors": errors, "times": {name: ratio.to_record() for name, ratio in times.items()}}
    return Observed(figure, f"{BF16:g}, or {TIMES:g}x the error of chunks", not wrong and bool(errors), data)


def errors_of(words: tuple[str, ...], machine: Runtime, programs: bool) -> dict[str, tuple[float, ...]]:
    """Relative errors by the kernels and by chunks, of each thing that is compared."""
    exact_machine = Runtime(CPU, torch.float32)
    chunked, fused = (compose(*words, f"kernel={kernel}") for kernel in ("chunked", "fla"))
    exact = logits_and_gradients(chunked, exact_machine, torch.float64)
    exact_decoded = decoded(Workload(chunked, exact_machine), torch.float64)
    machines = {"logits or gradients": machine}
    if programs:
        machines["logits or gradients of compiled layers"] = replace(machine, compile="on")
    errors = {
        what: tuple(away(logits_and_gradients(cfg, its), exact) for cfg in (fused, chunked))
        for what, its in machines.items()
    }
    by_either = (decoded(Workload(cfg, machine), torch.float32) for cfg in (fused, chunked))
    return errors | {"states or what is decoded": tuple(away(found, exact_decoded) for found in by_either)}


def decoded(work: Workload, dtype: torch.dtype) -> list[Tensor]:
    """The mixers' states after all but the last AFTER tokens, and the logits of those, decoded one at a time; float64 vectors."""
    decoder, cache = work.decoder.to(dtype).eval(), Cache()
    tokens = work.batch.inputs.to(work.machine.device)
    n_first = tokens.shape[1] - AFTER
    with work.machine.in_force(), torch.no_grad(), work.machine.autocast():
        decoder(tokens[:, :n_first], cache=cache)
        states = torch.cat([cache.states[layer.mixer][0].flatten() for layer in decoder.layers])
        logits = [decoder(one, cache=cache).flatten() for one in tokens[:, n_first:].split(1, dim=1)]
    return [part.cpu().double() for part in (states, torch.cat(logits))]


def times_as_fast(words: tuple[str, ...], machine: Runtime) -> SpeedRatio:
    """How many times as fast a forward and backward pass by the kernels is as one by chunks."""
    work = {kernel: Workload(compose(*words, f"kernel={kernel}"), machine) for kernel in ("fla", "chunked")}
    seconds = in_turns({kernel: one.forward_backward for kernel, one in work.items()}, FEWEST)
    return speed_ratio(seconds["fla"], seconds["chunked"])
