"""How much memory training steps take at their fullest moment.

On a CUDA device it is what torch's allocator had given out (`torch.cuda.max_memory_allocated`), beyond what it held before
the model was built. On the CPU nothing keeps such a count, and the resident set also holds what the allocator has not given
back, so torch's MemTracker counts there: the bytes of all tensors that are alive at once, from the model's weights on. What a
kernel takes and gives back within one operation is in the first figure and not in the second.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from omegaconf import DictConfig
from torch.distributed._tools.mem_tracker import MemTracker

from archlab.benchmark.workload import Workload
from archlab.train.runtime import Runtime

STEPS = 2
"""The optimiser's states are there from the first step on, so the second is the fullest."""

HOW = {
    "cuda": "most bytes that torch's allocator had given out, beyond what it held before",
    "cpu": "most bytes of tensors alive at once, as torch's MemTracker counts them",
}


def peak_of_training(cfg: DictConfig, machine: Runtime) -> int:
    """Bytes at the fullest moment of two eager training steps: weights, gradients, optimiser states, activations."""
    eager = replace(machine, compile="off")  # MemTracker sees no tensors inside of what is compiled

    def train() -> None:
        work = Workload(cfg, eager)
        for _ in range(STEPS):
            work.step()

    return peak_bytes(train, machine.device)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Bytes that `work` has on the device at its fullest moment, beyond what was there before it began."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    tracker = MemTracker()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Module is None", UserWarning)  # said of each module that is gone by then
        with tracker:
            work()
    peak = tracker.get_tracker_snapshot("peak")
    return sum(by_kind["Total"] for place, by_kind in peak.items() if place.type == device.type)
