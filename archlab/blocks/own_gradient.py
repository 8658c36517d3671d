"""A function whose gradient is computed as it says."""

import inspect
from typing import Any

import torch


class OwnGradient(torch.autograd.Function):
    """Called in a tenth of a small operation's time; torch's own `apply` takes as long as one, and a token is decoded by many.

    It asks for the signature of `forward` once, where torch does so at every call, and where no gradient is wanted calls
    `forward` alone. Inside of `torch.func`'s transforms, such as vmap, it is torch's.
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
