"""Where a computation must not be done in half precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

WIDE = (torch.float32, torch.float64)


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers in float32, or untouched where they are already float32 or float64."""
    return x if x.dtype in WIDE else x.to(torch.promote_types(x.dtype, torch.float32))


def in_dtype_of(x: Tensor, like: Tensor) -> Tensor:
    """`x.type_as(like)`, without a call of torch where the two are of one dtype: decoding a token is mostly calls."""
    return x if x.dtype == like.dtype else x.type_as(like)


def in_range_of_float32(x: Tensor, like: Tensor) -> Tensor:
    """In the dtype of `like`, or in float32 where that is float16, whose largest number is 65504."""
    return x.to(torch.float32 if like.dtype == torch.float16 else like.dtype)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Operations keep the dtype of what they are given. The meta device, on which shapes are tried, has no autocast."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def dtype_of_products(x: Tensor) -> torch.dtype:
    """The dtype that a matrix product with x has: autocast's where it is on, x's own elsewhere."""
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if autocast else x.dtype
