"""A linear map for each group of rows, in one operation: what the experts of a feed-forward network compute.

    y[r] = weight[g] x[r]    for the rows r of group g, which lie between ends[g - 1] and ends[g]

Torch's own `grouped_mm` takes no float64, no float32 on the meta device, and has no rule for vmap, so the operation is
one of archlab's. It says of itself what code around it asks: its gradient, its shapes without numbers, how it is mapped
over stacked weights, and how many FLOPs it has, which are those of the rows that there are and not of every expert.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op("archlab::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """(rows, fan_in), (groups, fan_out, fan_in), (groups,) -> (rows, fan_out); `ends` counts the rows up to each group's end."""
    return in_blocks(x, weight, ends)


@grouped_linear.register_kernel("cpu")
def _by_slices(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    # Where rows and their number are in the same memory, nobody waits for it.
    y = x.new_empty(x.shape[0], weight.shape[1])
    start = 0
    for group, end in enumerate(ends.tolist()):
        torch.mm(x[start:end], weight[group].T, out=y[start:end])
        start = end
    return y


@torch.library.custom_op("archlab::grouped_outer", mutates_args=())
def grouped_outer(y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """(rows, fan_out), (rows, fan_in), (groups,) -> (groups, fan_out, fan_in): y^T x of each group's rows; 0 of none."""
    return outer_in_blocks(y, x, ends)


@grouped_outer.register_kernel("cpu")
def _outer_by_slices(y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    weight = x.new_empty(ends.shape[0], y.shape[1], x.shape[1])
    start = 0
    for group, end in enumerate(ends.tolist()):
        torch.mm(y[start:end].T, x[start:end], out=weight[group])
        start = end
    return weight


# ---------------------------------------------------------------- without asking how many rows a group has


def block_rows(n_rows: int, n_groups: int) -> int:
    """Rows of a block: about as many as a group has where all have the same number."""
    return max(1, -(-n_rows // n_groups))


def places(n_rows: int, ends: Int[Tensor, " groups"]) -> tuple[int, Tensor, Tensor]:
    """How many blocks there are, whose group each is, and where each row stands in them.

    A group is given as many whole blocks as hold its rows, so that a block has rows of one group alone. All shapes
    follow from the numbers of rows and groups, so nothing waits for the device.
    """
    n_groups = ends.shape[0]
    size = block_rows(n_rows, n_groups)
    n_blocks = n_rows // size + n_groups
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    last_blocks = ((ends - starts + size - 1) // size).cumsum(0)
    row = torch.arange(n_rows, device=ends.device)
    group = torch.searchsorted(ends, row, right=True)
    first_blocks = torch.cat((ends.new_zeros(1), last_blocks[:-1]))
    place = first_blocks[group] * size + row - starts[group]
    block = torch.arange(n_blocks, device=ends.device)
    return n_blocks, torch.searchsorted(last_blocks, block, right=True).clamp(max=n_groups - 1), place


def put_in_blocks(x: Tensor, n_blocks: int, size: int, place: Tensor) -> Tensor:
    """(rows, width) -> (blocks, size, width), zeros where no row stands."""
    return x.new_zeros(n_blocks * size, x.shape[1]).index_copy(0, place, x).unflatten(0, (n_blocks, size))


def in_blocks(
    x: Float[Tensor, "rows fan_in"], weight: Float[Tensor, "groups fan_out fan_in"], ends: Int[Tensor, " groups"]
) -> Float[Tensor, "rows fan_out"]:
    """The map by products of equal blocks, of which at most twice as many are computed as there are rows."""
    size = block_rows(x.shape[0], weight.shape[0])
    n_blocks, group_of_block, place = places(x.shape[0], ends)
    y = torch.bmm(put_in_blocks(x, n_blocks, size, place), weight[group_of_block].mT)
    return y.flatten(0, 1)[place]


def outer_in_blocks(
    y: Float[Tensor, "rows fan_out"], x: Float[Tensor, "rows fan_in"], ends: Int[Tensor, " groups"]
) -> Float[Tensor, "groups fan_out fan_in"]:
    """The products y^T x of each group's rows, of equal blocks that are then added up."""
    n_groups = ends.shape[0]
    size = block_rows(x.shape[0], n_groups)
    n_blocks, group_of_block, place = places(x.shape[0], ends)
    of_blocks = torch.bmm(put_in_blocks(y, n_blocks, size, place).mT, put_in_blocks(x, n_blocks, size, place))
    return x.new_zeros(n_groups, y.shape[1], x.shape[1]).index_add(0, group_of_block, of_blocks)


# ---------------------------------------------------------------- what the operation says of itself


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_outer.register_fake
def _(y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], y.shape[1], x.shape[1])


def keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight, ends = ctx.saved_tensors
    return grouped_linear(grad, weight.mT, ends), grouped_outer(grad, x, ends), None


grouped_linear.register_autograd(linear_backward, setup_context=keep)


def stacked(n_members: int, tensor: Tensor, dim: int | None) -> Tensor:
    """Along a first axis of all members, which a tensor that they share is repeated along."""
    return tensor.expand(n_members, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def one_after_the_other(ends: Int[Tensor, "members groups"], n_rows: int) -> Int[Tensor, " all_groups"]:
    """Where the groups end once the rows of all members follow each other."""
    before = n_rows * torch.arange(ends.shape[0], device=ends.device)
    return (ends + before[:, None]).flatten()


@grouped_linear.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, int]:
    # The groups of all members are so many groups of one operation.
    x, weight, ends = (stacked(info.batch_size, *one) for one in zip((x, weight, ends), in_dims, strict=True))
    y = grouped_linear(x.flatten(0, 1), weight.flatten(0, 1), one_after_the_other(ends, x.shape[1]))
    return y.unflatten(0, x.shape[:2]), 0


@grouped_outer.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], y: Tensor, x: Tensor, ends: Tensor) -> tuple[Tensor, int]:
    y, x, ends = (stacked(info.batch_size, *one) for one in zip((y, x, ends), in_dims, strict=True))
    weight = grouped_outer(y.flatten(0, 1), x.flatten(0, 1), one_after_the_other(ends, x.shape[1]))
    return weight.unflatten(0, ends.shape), 0


@register_flop_formula(torch.ops.archlab.grouped_linear)
def linear_flops(x: tuple[int, int], weight: tuple[int, int, int], ends: Any, *, out_shape: Any = None) -> int:
    """Two for each row and each number of one group's matrix."""
    return 2 * x[0] * weight[1] * weight[2]


@register_flop_formula(torch.ops.archlab.grouped_outer)
def outer_flops(y: tuple[int, int], x: tuple[int, int], ends: Any, *, out_shape: Any = None) -> int:
    """Two for each row and each number of one group's matrix."""
    return 2 * x[0] * x[1] * y[1]
