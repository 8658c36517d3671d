"""Which machine computes, and in which numbers."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from archlab.base.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """A device and the dtype that matrix products run in; weights, norms and losses stay in float32."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager:
        """Mixed precision: matrix products in `dtype`, what needs the range or the digits in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales losses up where gradients would otherwise underflow; does nothing outside float16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def runtime(device: str, precision: str) -> Runtime:
    """The machine these two options ask for; raises UserError where there is no such machine here."""
    found = find_device(device)
    return Runtime(found, find_dtype(precision, found))


def find_device(device: str) -> torch.device:
    available = ["cpu"]
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    elif torch.backends.mps.is_available():
        available.insert(0, "mps")
    if device == "auto":
        # Apple's GPU is taken only where it is asked for by name: nothing here has been run on one.
        return torch.device("cuda" if "cuda" in available else "cpu")
    if device not in available:
        raise UserError(
            f"device={device}: this machine has none that torch can use; use {' or '.join(available)}, or auto"
        )
    return torch.device(device)


def find_dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"precision=fp16: needs the loss scaling of a CUDA device, and this run is on {device.type}; use bf16 or fp32"
        )
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return DTYPES[precision]
