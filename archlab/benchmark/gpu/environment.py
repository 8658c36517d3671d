"""What the device is."""

import torch

from archlab.benchmark.gpu.check import Observed
from archlab.benchmark.machine import machine_of


def environment(device: torch.device) -> Observed:
    """Environment.

    A product of two bfloat16 matrices should come out as float64 has it to bfloat16's eight bits, summed in float32.
    """
    about = machine_of(device)
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=draws).to(device, torch.bfloat16) for _ in range(2))
    exact = a.cpu().double() @ b.cpu().double()
    error = float(((a @ b).cpu().double() - exact).norm() / exact.norm())
    what = ", ".join(f"{about[name]}" for name in ("gpu", "processor") if name in about)
    versions = f"torch {about['torch']}" + (f", CUDA {about['cuda']}" if "cuda" in about else "")
    return Observed(f"{what}; {versions}; bf16 product off by {error:.1e}", "at most 4e-3", error <= 2**-8, about)
