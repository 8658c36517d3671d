"""One row of a family's table: a released tensor and the weights of our decoder that it holds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from archlab.base.errors import UserError

Split = Callable[[Tensor, Any], Sequence[Tensor]]
Join = Callable[[Sequence[Tensor], Any], Tensor]


@dataclass(frozen=True)
class Row:
    """The tensor `theirs` holds the weights `ours`; `split` separates and `join` combines them; both also get the sizes.

    {} is the layer's number, {next} the number after it and {last} the number of the last layer. {head} counts query
    heads and {kv_head} key-value heads: rows for each head, or where it is in `ours` alone, the weights of all heads in one row.
    """

    theirs: str
    ours: tuple[str, ...]
    split: Split
    join: Join

    def in_model(self, sizes: Any) -> Iterator["Row"]:
        """One row, or one per layer, or one per layer and head; a row with {next} is left out for the last layer."""
        n_layers = sizes.n_layers
        repeated = "{next}" in self.theirs or "{}" in self.theirs
        for layer in range(n_layers - ("{next}" in self.theirs) if repeated else 1):
            numbers = {"next": layer + 1, "last": n_layers - 1}
            ours = [name for template in self.ours for name in for_heads(template, sizes, layer, numbers)]
            theirs = for_heads(self.theirs, sizes, layer, numbers)
            if len(theirs) == 1:
                yield Row(theirs[0], tuple(ours), self.split, self.join)
            else:
                yield from (Row(one, (our,), self.split, self.join) for one, our in zip(theirs, ours, strict=True))


Table = tuple[Row, ...]


def for_heads(template: str, sizes: Any, layer: int, numbers: Mapping[str, int]) -> list[str]:
    """The name in this layer; of a name that counts heads, one for each."""
    for counted, n in (("head", sizes.n_heads), ("kv_head", sizes.n_kv_heads)):
        if f"{{{counted}}}" in template:
            return [template.format(layer, **numbers, **{counted: head}) for head in range(n)]
    return [template.format(layer, **numbers)]


def alone(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
    return (tensor,)


def only(tensors: Sequence[Tensor], sizes: Any) -> Tensor:
    return tensors[0]


def same(theirs: str, ours: str) -> Table:
    return (Row(theirs, (ours,), alone, only),)


def norm(theirs: str, ours: str) -> Table:
    """Their weight is a gain, their bias a shift."""
    return same(f"{theirs}.weight", f"{ours}.gain") + same(f"{theirs}.bias", f"{ours}.shift")


def one_of_all(theirs: str, ours: str) -> Table:
    """A tensor with a row for each head."""
    return (Row(theirs, (ours,), by_row, rows_together),)


def by_row(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
    return tensor.unbind(0)


def rows_together(tensors: Sequence[Tensor], sizes: Any) -> Tensor:
    return torch.stack(list(tensors))


def linear(theirs: str, *ours: str, split: Split = alone, join: Join = only) -> Table:
    """Weights and biases of a projection, or of several that the release stores as one."""
    return tuple(
        Row(f"{theirs}.{part}", tuple(f"{name}.{part}" for name in ours), split, join) for part in ("weight", "bias")
    )


def stacked(tensors: Sequence[Tensor], sizes: Any) -> Tensor:
    return torch.cat(list(tensors))


def halves(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
    return tensor.chunk(2)


def queries_keys_values(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
    """Queries of all heads, then keys, then values."""
    kv = sizes.n_kv_heads * sizes.head_dim
    return tensor.split([sizes.n_heads * sizes.head_dim, kv, kv])


def by_group(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
    """Per key-value head: its queries, its key and its value; where no heads share a key: all three per head."""
    grouped = rearrange(
        tensor,
        "(kv_heads parts head_dim) ... -> kv_heads parts head_dim ...",
        kv_heads=sizes.n_kv_heads,
        head_dim=sizes.head_dim,
    )
    parts = grouped.split([sizes.n_heads // sizes.n_kv_heads, 1, 1], dim=1)
    return [rearrange(part, "kv_heads parts head_dim ... -> (kv_heads parts head_dim) ...") for part in parts]


def grouped(tensors: Sequence[Tensor], sizes: Any) -> Tensor:
    parts = [
        rearrange(
            part,
            "(kv_heads parts head_dim) ... -> kv_heads parts head_dim ...",
            kv_heads=sizes.n_kv_heads,
            head_dim=sizes.head_dim,
        )
        for part in tensors
    ]
    return rearrange(torch.cat(parts, dim=1), "kv_heads parts head_dim ... -> (kv_heads parts head_dim) ...")


def halves_swapped(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
    """The two halves of each head's features in turn; by that a rotation of pairs becomes the one the other way round."""
    of_heads = rearrange(tensor, "(heads half each) ... -> heads half each ...", half=2, each=sizes.head_dim // 2)
    return (rearrange(of_heads.flip(1), "heads half each ... -> (heads half each) ..."),)


def halves_swapped_back(tensors: Sequence[Tensor], sizes: Any) -> Tensor:
    return halves_swapped(tensors[0], sizes)[0]


def constant(theirs: str, value: float) -> Table:
    """A number that the release stores and that is fixed here; UserError where it is another, but for rounding to a 16-bit type.

    Of bf16 that is a relative step; of fp16 so near to 0 an absolute one, 2**-24.
    """

    def checked(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
        rounding = max(abs(value) / 128, 2**-25)
        if tensor.numel() != 1 or abs(float(tensor) - value) > rounding:
            raise UserError(f"is not {value}, which it always is in archlab; these weights cannot be used")
        return ()

    return (Row(theirs, (), checked, lambda tensors, sizes: torch.tensor(value)),)


def transposed(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
    """GPT-2 stores a projection's weight as (in, out)."""
    return (tensor.t() if tensor.ndim == 2 else tensor,)


def transposed_back(tensors: Sequence[Tensor], sizes: Any) -> Tensor:
    return transposed(tensors[0], sizes)[0].contiguous()


def split_transposed(tensor: Tensor, sizes: Any) -> Sequence[Tensor]:
    return queries_keys_values(transposed(tensor, sizes)[0], sizes)


def joined_transposed(tensors: Sequence[Tensor], sizes: Any) -> Tensor:
    return transposed_back((stacked(tensors, sizes),), sizes)
