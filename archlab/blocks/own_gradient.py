"""A function whose gradient is computed as it says."""

import inspect
from typing import Any

import torch


class OwnGradient(torch.autograd.Function):
    """Asks for the signature of `forward` once. torch does so at every call, which takes a quarter of a small one."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]
