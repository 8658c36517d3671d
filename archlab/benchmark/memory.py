"""How much memory training steps take at their fullest moment.

On a CUDA device it is what torch's allocator had given out (`torch.cuda.max_memory_allocated`), beyond what it held before
the model was built. On the CPU nothing keeps such a count, and the resident set also holds what the allocator has not given
back, so `Alive` counts there: the bytes of all tensors that are alive at once, from the model's weights on. What a
kernel takes and gives back within one operation is in the first figure and not in the second.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from archlab.benchmark.workload import PackedWorkload, Workload
from archlab.train.runtime import Runtime

STEPS = 2
"""The optimiser's states are there from the first step on, so the second is the fullest."""

HOW = {
    "cuda": "most bytes that torch's allocator had given out, beyond what it held before",
    "cpu": "most bytes of tensors alive at once",
}


def peak_of_training(cfg: DictConfig, machine: Runtime) -> int:
    """Bytes at the fullest moment of two eager training steps: weights, gradients, optimiser states, activations."""
    return peak_of_steps(partial(Workload, cfg), machine)


def peak_of_pack(cfg: DictConfig, n_members: int, machine: Runtime) -> int:
    """The same of two eager steps of a pack of so many runs."""
    return peak_of_steps(partial(PackedWorkload, cfg, n_members), machine)


def peak_of_steps(make: Callable[[Runtime], Workload | PackedWorkload], machine: Runtime) -> int:
    """From before it is made to after its first steps, which are eager: of what is compiled, no operation is seen."""

    def train() -> None:
        work = make(replace(machine, compile="off"))
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
    with Alive(device) as alive:
        work()
    return alive.peak


class Alive(TorchDispatchMode):
    """Counts, inside of it, the bytes of the tensors that operations return, each memory once and until it is given back.

    torch's own MemTracker counts the same, to 0.2% at size=nano, but reads each module's weights as it is called, which
    cannot be done under `torch.vmap`, as in a pack.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.now = self.peak = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        returned = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device.type:
                self.count(tensor.untyped_storage())
        return returned

    def count(self, storage: torch.UntypedStorage) -> None:
        """Adds memory that has not been counted, until nothing holds it."""
        if storage not in self.known:
            self.known[storage] = size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.give_back, size)

    def give_back(self, size: int) -> None:
        """Takes off what was counted of memory that nothing holds any more."""
        self.now -= size
