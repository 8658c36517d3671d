"""The most that matrix products reach on this machine, against which a model's speed is measured."""

import torch

from archlab.benchmark.turns import Work
from archlab.train.runtime import Runtime

SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices: large enough that a product is bound by arithmetic, small enough to take milliseconds."""


def matrix_product(machine: Runtime) -> tuple[Work, float]:
    """A product of two square matrices to be timed, and its floating-point operations: 2 side^3, a multiply-add as two."""
    side = SIDE.get(machine.device.type, SIDE["cpu"])
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=draws).to(machine.device, machine.dtype) for _ in range(2))
    out = torch.empty_like(a)

    def product() -> torch.Tensor:
        with machine.in_force():
            return torch.mm(a, b, out=out)

    return product, 2.0 * side**3
