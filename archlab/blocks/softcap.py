"""A soft bound on scores and logits, chosen when a block is built."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Softcap = Callable[[Tensor], Tensor]


def soft_cap(scores: Tensor, softcap: float) -> Tensor:
    """softcap * tanh(scores / softcap). Source: arXiv:2408.00118, sec. 2."""
    return softcap * torch.tanh(scores / softcap)


def leave(scores: Tensor) -> Tensor:
    """The scores as they are."""
    return scores


def make_softcap(softcap: float | None) -> Softcap:
    """The function that soft-caps its input to within +-softcap; without a softcap, one that leaves it as it is."""
    return leave if softcap is None else partial(soft_cap, softcap=softcap)
