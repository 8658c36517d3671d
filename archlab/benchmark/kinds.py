"""Where a training step's time goes, by kind of block.

Hooks on the decoder's modules cut a step into stretches: from where a block begins to where it ends or another begins
within it, in the forward pass and, by hooks on the gradients, in the backward pass, which autograd goes through in exactly
the opposite order. Every moment belongs to one stretch and every stretch to one kind, so the kinds add up to the step by
construction. What may be off is the step itself, which the hooks slow down: a step with hooks takes turns with one
without, and `times_plain` is how many times as long it takes, median beside median. Compiled layers have no blocks to hang
hooks on, so the steps that are cut are eager ones.

On the CPU a stretch is measured by the clock, on a CUDA device by events in its stream: where the device waits for Python
to launch the next kernel, the wait counts for the kind that is to be launched.

    norm        every norm, also those inside a mixer, a feed-forward network or a head
    mixer, ffn  without the norms within them
    head        from what the final norm returns to the logits
    loss        cross-entropy, and all else between the head's forward and its backward pass
    gradients   their norms, clipping, and the test that they are finite
    optimizer   its update
    rest        embeddings, residual additions, the batch on its way to the device, positions, bookkeeping
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from archlab.benchmark.turns import in_turns
from archlab.benchmark.workload import Workload
from archlab.blocks.contracts import FeedForward, Head, Mixer, Norm

KINDS = ("norm", "mixer", "ffn", "head", "loss", "gradients", "optimizer", "rest")
OF_CLASS: Mapping[type, str] = {Norm: "norm", Mixer: "mixer", FeedForward: "ffn", Head: "head"}


class Timeline:
    """Stretches of a step: from each mark to the next, all of one kind."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[tuple[str, Any]] = []
        self.open: list[tuple[nn.Module | None, str]] = []
        """The blocks begun and not ended, outermost first; a None stands for what is no block."""

    def now(self) -> Any:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.perf_counter()

    def mark(self) -> None:
        """From now on the time is that of the innermost open block."""
        self.marks.append((self.open[-1][1] if self.open else "rest", self.now()))

    def begin(self, module: nn.Module, kind: str) -> None:
        self.open.append((module, kind))
        self.mark()

    def end(self, module: nn.Module) -> None:
        """Ends a block and whatever within it was not ended; one that is not open ends nothing."""
        places = [place for place, (opened, _) in enumerate(self.open) if opened is module]
        if places:
            del self.open[places[-1] :]
        self.mark()

    def alone(self, kind: str) -> None:
        """No block is open any more."""
        self.open = [] if kind == "rest" else [(None, kind)]
        self.mark()

    def seconds(self) -> dict[str, float]:
        """By kind, in all; the last mark ends the last stretch."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        total = dict.fromkeys(KINDS, 0.0)
        for (kind, begun), (_, ended) in zip(self.marks, self.marks[1:], strict=False):
            total[kind] += begun.elapsed_time(ended) / 1000 if self.device.type == "cuda" else ended - begun
        return total


def kind_of(module: nn.Module) -> str | None:
    """The kind of block a module is, by its contract; None where it is none of these."""
    return next((kind for contract, kind in OF_CLASS.items() if isinstance(module, contract)), None)


@contextmanager
def hooked(work: Workload, timeline: Timeline) -> Iterator[None]:
    """Inside, steps leave their marks on the timeline."""
    with ExitStack() as hooks:

        def keep(handle: RemovableHandle) -> None:
            hooks.callback(handle.remove)

        for module in work.decoder.modules():
            if (kind := kind_of(module)) is not None:
                for handle in on_block(module, kind, timeline):
                    keep(handle)
        embedding, optimizer = work.decoder.embedding, work.state.optimizer
        keep(embedding.register_forward_pre_hook(lambda *_: timeline.alone("rest")))
        # The table of embeddings is the first that a forward pass uses, so its gradient is the last that is there.
        if embedding.weight.requires_grad:
            keep(embedding.weight.register_post_accumulate_grad_hook(lambda _: timeline.alone("gradients")))
        keep(optimizer.register_step_pre_hook(lambda *_: timeline.alone("optimizer")))
        keep(optimizer.register_step_post_hook(lambda *_: timeline.alone("rest")))
        yield


def on_block(module: nn.Module, kind: str, timeline: Timeline) -> Iterator[RemovableHandle]:
    def begin(module: nn.Module, *_: Any) -> None:
        timeline.begin(module, kind)

    def end(module: nn.Module, *_: Any) -> None:
        timeline.end(module)

    def end_of_head(module: nn.Module, *_: Any) -> None:
        timeline.alone("loss")

    def begin_of_head(module: nn.Module, *_: Any) -> None:
        timeline.alone("rest")
        timeline.begin(module, kind)

    is_head = kind == "head"
    yield module.register_forward_pre_hook(begin)
    yield module.register_forward_hook(end_of_head if is_head else end)
    yield module.register_full_backward_pre_hook(begin_of_head if is_head else begin)
    yield module.register_full_backward_hook(end)


def by_kind(work: Workload, rounds: int) -> dict[str, Any]:
    """Seconds of a step by kind: means over the middle half of all steps with hooks, by how long they took."""
    seen: list[dict[str, float]] = []

    def with_hooks() -> None:
        timeline = Timeline(work.machine.device)
        with hooked(work, timeline):
            timeline.alone("rest")
            work.eager_step()
            timeline.alone("rest")
        seen.append(timeline.seconds())

    plain = in_turns({"plain": work.eager_step, "hooked": with_hooks}, rounds)["plain"]
    totals = [sum(kinds.values()) for kinds in seen]
    order = np.argsort(totals)[len(seen) // 4 : len(seen) - len(seen) // 4]
    seconds = {kind: float(np.mean([seen[place][kind] for place in order])) for kind in KINDS}
    total = sum(seconds.values())
    return {
        "seconds": seconds,
        "shares": {kind: value / total for kind, value in seconds.items()},
        "step": total,
        "times_plain": float(np.median(totals) / np.median(plain)),  # without the time it takes to set the hooks
        "steps": len(seen),
    }
