"""Counting the FLOPs of what is run, without what torch imports for its own counter."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from archlab.model.shapes import Unwrapped


class Flops(Unwrapped, TorchDispatchMode):
    """Counts the floating-point operations of products by torch's formulas, and by others beside them."""

    def __init__(self, others: Mapping[Any, Callable[..., int]]):
        super().__init__()
        self.total = 0
        self.formulas = {**flop_registry, **others}

    def called(self, op: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        out = op(*args, **kwargs)
        if op.overloadpacket in self.formulas:
            self.total += self.formulas[op.overloadpacket](*args, **kwargs, out_val=out)
        return out
