"""How the weights of linear maps lie in memory while a decoder is called with one token at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from archlab.model.decoder import Decoder

MOST_SEQUENCES = 2
"""Side by side: with more of them a product is bound by its multiplications, and the order in memory changes little."""

FEWEST_TOKENS = 16
"""New tokens: for fewer, moving the weights takes longer than it saves; at size=small the two are even at about 7."""

MOST_BYTES = 2**28
"""Of weights that are kept twice meanwhile. The gain of larger models is smaller: 1.2 times as fast a product at d_model 2048."""


@contextmanager
def laid_out_for(decoder: Decoder, n_sequences: int, n_tokens: int) -> Iterator[None]:
    """Inside, the matrices lie in memory column by column where that is faster; afterwards all is as it was.

    A matrix keeps its shape and its values. A vector times a matrix that lies row by row, as `nn.Linear` has it, is a sum for each
    row; column by column it is one pass over the memory that adds to all results at once. On one thread of an AVX-512
    CPU a product at d_model 256 or 512 takes half to two thirds of the time. On other devices nothing is moved: it was not measured there.
    """
    kept = {weight: weight.data for weight in matrices(decoder)}
    if not pays(list(kept.values()), n_sequences, n_tokens):
        yield
        return
    try:
        for weight, rows in kept.items():
            weight.data = rows.t().contiguous().t()
        yield
    finally:
        for weight, rows in kept.items():
            weight.data = rows


def matrices(decoder: Decoder) -> list[Tensor]:
    """The weights of the linear maps, of which the head is one, each once."""
    return list(dict.fromkeys(module.weight for module in decoder.modules() if isinstance(module, nn.Linear)))


def pays(weights: list[Tensor], n_sequences: int, n_tokens: int) -> bool:
    """Whether products of so many sequences and new tokens gain more than moving the weights takes."""
    on_cpu = all(weight.device.type == "cpu" for weight in weights)
    as_they_are = not torch.is_autocast_enabled("cpu")  # autocast makes matrices of its own of these
    bytes_ = sum(weight.nbytes for weight in weights)
    few = n_sequences <= MOST_SEQUENCES and n_tokens >= FEWEST_TOKENS
    return on_cpu and as_they_are and few and bytes_ <= MOST_BYTES
