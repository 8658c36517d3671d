"""How the weights of linear maps lie in memory, and which are one product, while a decoder is called with one token at a time."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archlab.model.decoder import Decoder

MOST_SEQUENCES = 2
"""Side by side: with more of them a product is bound by its multiplications, and the order in memory changes little."""

FEWEST_TOKENS = 16
"""New tokens: for fewer, moving the weights takes longer than it saves; at size=small the two are even at about 7."""

MOST_BYTES = 2**28
"""Of weights that are kept twice meanwhile. The gain of larger models is smaller: 1.2 times as fast a product at d_model 2048."""

Maps = list[nn.Linear]


@contextmanager
def side_by_side(decoder: Decoder) -> Iterator[list[Maps]]:
    """After a forward pass inside, the list holds the decoder's linear maps: together those that read the same tensor."""
    groups: list[Maps] = []
    read: list[ref[Tensor]] = []  # what each group read; a tensor that is gone is nobody's

    def note(linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if linear in seen or not isinstance(linear, nn.Linear) or not has_its_matrix(linear):
            return
        seen.add(linear)
        if read and read[-1]() is inputs[0] and is_plain(linear) and is_plain(groups[-1][0]):
            groups[-1].append(linear)
        else:
            groups.append([linear])
            read.append(ref(inputs[0]))

    seen: set[nn.Module] = set()
    with ExitStack() as hooks:
        for linear in linears(decoder):
            hooks.callback(linear.register_forward_pre_hook(note).remove)
        yield groups


@contextmanager
def laid_out_for(groups: Sequence[Maps], n_sequences: int, n_tokens: int) -> Iterator[None]:
    """Inside, maps of one tensor are one product, whose matrix lies in memory as is faster; afterwards all is as it was.

    Each matrix keeps its shape and its values, and each map what it returns, from a product that is computed when the first of its group
    is asked for. A vector times a matrix that lies row by row, as `nn.Linear` has it, is a sum for each row; column by
    column it is one pass over the memory that adds to all results at once. On one thread of an AVX-512 CPU a product with
    at least as many results as features takes half to two thirds of the time at d_model 256 or 512. On other devices
    nothing is moved: it was not measured there.
    """
    weights = list(dict.fromkeys(linear.weight for maps in groups for linear in maps))
    if not pays(weights, n_sequences, n_tokens):
        yield
        return
    kept = {weight: weight.data for weight in weights}
    joined = [linear for maps in groups if len(maps) > 1 for linear in maps]
    try:
        for maps in groups:
            lay_out(maps)
        yield
    finally:
        for weight, rows in kept.items():
            weight.data = rows
        for linear in joined:
            vars(linear).pop("forward", None)


def lay_out(maps: Maps) -> None:
    """Lays out the matrices of maps that read the same tensor; several of them become parts of one product."""
    product = JointProduct(maps)
    for i, (linear, part) in enumerate(zip(maps, product.weight.split(product.sizes), strict=True)):
        linear.weight.data = part
        if len(maps) > 1:
            vars(linear)["forward"] = partial(product.result, i)


class JointProduct:
    """Linear maps of one tensor as one; a map that is given another tensor begins anew, so what each returns is its own.

    What was read and what came of it are replaced together, since another thread may be calling the same model.
    """

    def __init__(self, maps: Maps):
        weight = torch.cat([linear.weight.detach() for linear in maps])
        self.weight = weight.t().contiguous().t() if len(weight) >= weight.shape[1] else weight
        self.bias = joint_bias(maps)
        self.sizes = [linear.out_features for linear in maps]
        self.last: tuple[Any, tuple[Tensor, ...]] = None, ()

    def result(self, i: int, input: Tensor) -> Tensor:
        """What map i makes of the tensor."""
        read, results = self.last
        if input is not read:
            results = F.linear(input, self.weight, self.bias).split(self.sizes, dim=-1)
            self.last = input, results
        return results[i]


def joint_bias(maps: Maps) -> Tensor | None:
    """Their biases one after the other, 0 where a map has none; None where none of them has one."""
    if all(linear.bias is None for linear in maps):
        return None
    return torch.cat(
        [linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in maps]
    )


def linears(decoder: Decoder) -> Maps:
    """The linear maps, of which the head is one."""
    return [module for module in decoder.modules() if isinstance(module, nn.Linear)]


def is_plain(linear: nn.Linear) -> bool:
    """Whether it computes what torch's own does: a head, or what a library has put into its place, may do more."""
    return type(linear).forward is nn.Linear.forward and "forward" not in vars(linear)


def has_its_matrix(linear: nn.Linear) -> bool:
    """Whether its weight is the matrix that it multiplies by: a library that quantises puts packed numbers there."""
    weight = linear.weight
    return weight.is_floating_point() and weight.shape == (linear.out_features, linear.in_features)


def pays(weights: Sequence[Tensor], n_sequences: int, n_tokens: int) -> bool:
    """Whether products of so many sequences and new tokens gain more than moving the weights takes."""
    on_cpu = all(weight.device.type == "cpu" for weight in weights)
    as_they_are = not torch.is_autocast_enabled("cpu")  # autocast makes matrices of its own of these
    bytes_ = sum(weight.nbytes for weight in weights)
    few = n_sequences <= MOST_SEQUENCES and n_tokens >= FEWEST_TOKENS
    return on_cpu and as_they_are and few and bytes_ <= MOST_BYTES
