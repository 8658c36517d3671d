"""Whether training waits for the device between two steps whose numbers are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from archlab.benchmark.gpu.check import Observed
from archlab.benchmark.workload import Workload
from archlab.config.compose import compose
from archlab.runs.assembled import training_seed
from archlab.train.runtime import Runtime, runtime
from archlab.train.step import make_step, read

FIRST, LAST = 3, 10
"""Steps that are watched: the first two set things up."""


class Waiting(RuntimeError):
    """An operation whose result the processor has to know before it goes on."""


class NothingIsRead(TorchDispatchMode):
    """Inside, what would wait for a device raises Waiting: a number that is read, a shape that the values decide.

    It stands in on the CPU for torch.cuda.set_sync_debug_mode, which sees copies too.
    """

    WAITS = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2"}
    )

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in self.WAITS or by_mask:
            raise Waiting(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))


@contextmanager
def without_waiting(device: torch.device) -> Iterator[None]:
    """Inside, what waits for the device raises RuntimeError."""
    if device.type != "cuda":
        with NothingIsRead():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def no_waiting(device: torch.device, words: tuple[str, ...] = (), machine: Runtime | None = None) -> Observed:
    """Nothing waits between logged steps.

    Steps 3 to 10 of a run with the default settings, each with its own batch, under a mode in which whatever waits for
    the device is an error; then their numbers are read, in one transfer.
    """
    cfg = compose(*words)
    work = Workload(cfg, machine or runtime(str(device), cfg.precision))
    step = make_step(work.decoder, work.settings, work.machine, cfg.probe.every)
    batches = [
        work.source.train(training_seed(cfg), number, work.settings.batch_size, work.settings.train_len)
        for number in range(1, LAST + 1)
    ]
    try:
        with work.machine.in_force():
            results = [step(work.state, batch) for batch in batches[: FIRST - 1]]
            with without_waiting(device):
                results += [step(work.state, batch) for batch in batches[FIRST - 1 :]]
    except RuntimeError as error:
        return Observed(f"step {work.state.step + 1}: {' '.join(str(error).split())[:200]}", "no wait", False)
    seen = read(results)
    losses, finite = [one.loss for one in seen], all(one.finite for one in seen)
    figure = f"steps {FIRST} to {LAST} without a wait; losses {losses[0]:.3f} to {losses[-1]:.3f}"
    return Observed(figure, "no wait", finite, losses)
