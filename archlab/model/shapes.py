"""Running a model where there are shapes and no numbers, without what torch imports for it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten


class Unwrapped:
    """What a mode does at each operation, as `called`.

    A `__torch_dispatch__` in a mode's own class is wrapped by torch in what imports its compiler, which takes half as
    long as `import torch`; an inherited one is not.
    """

    called: Callable[..., Any]

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return self.called(op, args, kwargs or {})


class Shapes(Unwrapped, TorchDispatchMode):
    """What operations on the meta device return.

    Torch knows the shapes of views and of products in C++. For nearly everything else its meta device runs Python code,
    which imports the compiler too. An operation that combines axes or takes them away is therefore carried out on the
    CPU, with a small size in the place of each true one; for some there is a rule below. All that is left goes to torch.
    """

    def called(self, op: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        if op.overloadpacket in RULES:
            return RULES[op.overloadpacket](op, *args, **kwargs)
        along_axes = op.overloadpacket in ALONG_AXES or not TAGS.isdisjoint(op.tags)
        if along_axes and not op._schema.is_mutable:
            return as_if_small(op, *args, **kwargs)
        in_place = along_axes and op.overloadpacket.__name__.endswith("_")
        return args[0] if in_place else op(*args, **kwargs)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Inside, tensors are made on the meta device."""
    with torch.device("meta"), Shapes():
        yield


TAGS = {torch.Tag.pointwise, getattr(torch.Tag, "reduction", torch.Tag.pointwise)}
"""Of operations that combine axes of equal size, or take axes away; torch 2.9 does not mark the latter."""

ALONG_AXES = {
    aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten._softmax, aten._safe_softmax, aten._log_softmax, aten.tril, aten.triu,
    aten.cumsum, aten.sort, aten.floor_divide, aten.linalg_solve_triangular, aten.empty_like, aten.zeros_like, aten.ones_like,
    aten.full_like,
}  # fmt: skip
"""Others whose results have axes of sizes that they were given."""


def as_if_small(op: Any, *args: Any, numbers: Callable[..., Tensor] = torch.ones, **kwargs: Any) -> Any:
    """What an operation returns, found with other sizes: the smallest above 1 is 2, the next is 3; equal ones stay equal."""
    given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor) and tensor.is_meta]
    if not given:
        return op(*args, **kwargs)
    sizes = [0, 1, *sorted({size for tensor in given for size in tensor.shape if size > 1})]
    small = {size: number for number, size in enumerate(sizes)}

    def shrunk(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        return laid_out_as(tensor, [small[size] for size in tensor.shape], "cpu", numbers)

    args, kwargs = tree_map_only(Tensor, shrunk, (args, kwargs))
    if "device" in kwargs:
        kwargs["device"] = "cpu"
    return tree_map_only(
        Tensor, lambda out: laid_out_as(out, [sizes[n] for n in out.shape], "meta", torch.empty), op(*args, **kwargs)
    )


def laid_out_as(tensor: Tensor, shape: Sequence[int], device: str, make: Callable[..., Tensor]) -> Tensor:
    """A tensor of another shape, whose axes lie in memory in the order of the given one's; expanded ones are expanded."""
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
    dense = make([shape[axis] if strides[axis] else 1 for axis in order], dtype=tensor.dtype, device=device)
    return dense.permute([order.index(axis) for axis in range(tensor.ndim)]).expand(shape)


# ---------------------------------------------------------------- rules


def counted(op: Any, *args: Any, **kwargs: Any) -> Tensor:
    return op(*args, **{**kwargs, "device": "cpu"}).to("meta")


def drawn(op: Any, shape: Sequence[int], **kwargs: Any) -> Tensor:
    return torch.empty(shape, **kwargs)


def joined(op: Any, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    first, shape = tensors[0], list(tensors[0].shape)
    if any(tensor.ndim != first.ndim or tensor.dtype != first.dtype for tensor in tensors):
        return op(tensors, dim)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return first.new_empty(shape)


def stacked(op: Any, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return joined(aten.cat.default, [tensor.unsqueeze(dim) for tensor in tensors], dim)


def layer_normed(op: Any, x: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers normed, and the mean and the reciprocal deviation they are normed with."""
    kept = [*x.shape[: x.ndim - len(shape)], *(1 for _ in shape)]
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), x.new_empty(kept, dtype=wide), x.new_empty(kept, dtype=wide)


def looked_up(op: Any, table: Tensor, index: Tensor, *_: Any) -> Tensor:
    return table.new_empty((*index.shape, table.shape[-1]))


def padded(op: Any, x: Tensor, more: Sequence[int], *_: Any) -> Tensor:
    """By so many before and after, the last axis first."""
    shape = list(x.shape)
    for axis, (before, after) in enumerate(zip(more[::2], more[1::2], strict=True), start=1):
        shape[-axis] += before + after
    return x.new_empty(shape) if any(more) else laid_out_as(x, shape, "meta", torch.empty)


def picked(op: Any, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
        return op(x, indices)  # as many as are true, which shapes do not say
    return as_if_small(op, x, indices, numbers=torch.zeros)


RULES: dict[Any, Callable[..., Any]] = {
    aten.arange: counted,
    aten.randn: drawn,
    aten.cat: joined,
    aten.stack: stacked,
    aten.native_layer_norm: layer_normed,
    aten.embedding: looked_up,
    aten.constant_pad_nd: padded,
    aten.index: picked,
    aten.scatter: partial(as_if_small, numbers=torch.zeros),
}
"""Of results whose sizes are none that were given, or that were given as numbers."""
