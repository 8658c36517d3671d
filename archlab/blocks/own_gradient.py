"""A function whose gradient is computed as it says."""

import inspect
from typing import Any

import torch


class OwnGradient(torch.autograd.Function):
    """Costs little to call, as operations need that a decoder calls for every token; torch's `apply` takes as long as a small one.

    Asks for the signature of `forward` once, where torch does so at every call, and calls `forward` alone where no
    gradient is wanted. Inside of `torch.func`'s transforms, such as vmap, it is torch's.
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """What `forward` returns, with its gradient where one is wanted."""
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return cls.forward(*args)
