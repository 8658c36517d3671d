"""Masks and biases as matrices, computed by the blocks' own functions of positions."""

import torch
from torch import Tensor

from archlab.blocks.contracts import Mask, Position
from archlab.diagram.sketch import Matrix
from archlab.model.decoder import Decoder

CELLS = 24
FARTHEST = 2**20


def matrices(decoder: Decoder) -> tuple[Matrix, ...]:
    """For each kind of layer its mask, and the bias of the first and the last head where scores have one.

    A learned bias is left out where its weights have no values.
    """
    pictured = [picture for position, mask in decoder.pairs for picture in of_layer(position, mask)]
    return tuple(dict.fromkeys(pictured))


def of_layer(position: Position, mask: Mask) -> tuple[Matrix, ...]:
    stride = stride_of(mask)
    prefix_len = CELLS // 3 * stride if mask.uses_prefix else 0
    query, key = positions(stride)
    attended = can_attend(mask, query, key, prefix_len)
    through_prefix = attended & ~can_attend(mask, query, key, 0)
    cells = [
        ["prefix" if prefix else "allowed" if allowed else "forbidden" for prefix, allowed in zip(*lines, strict=True)]
        for lines in zip(through_prefix.tolist(), attended.tolist(), strict=True)
    ]
    scale = "a cell is a token" if stride == 1 else f"a cell is {stride} tokens"
    note = f"{scale}; blue by the prefix" if prefix_len else scale
    pictured = Matrix(f"mask: {type(mask).__name__}", note, tuple(map(tuple, cells)))
    return (pictured, *biases(position, query, key, attended))


def positions(stride: int) -> tuple[Tensor, Tensor]:
    steps = torch.arange(CELLS, device="cpu") * stride
    return steps.view(CELLS, 1), steps.view(1, CELLS)


def can_attend(mask: Mask, query: Tensor, key: Tensor, prefix_len: int) -> Tensor:
    with torch.device("cpu"):
        return mask.can_attend(query[None], key[None], torch.tensor([[[prefix_len]]]))[0].expand(CELLS, CELLS)


def stride_of(mask: Mask) -> int:
    """How many tokens a cell stands for: one, or as many as it takes to show that some of the past is masked."""
    stride = 1
    while stride < FARTHEST:
        query, key = positions(stride)
        if not (can_attend(mask, query, key, 0) | (key > query)).all():
            return stride
        stride *= 2
    return 1


def biases(position: Position, query: Tensor, key: Tensor, attended: Tensor) -> tuple[Matrix, ...]:
    if not position.biases_scores or any(parameter.is_meta for parameter in position.parameters()):
        return ()
    device = next((parameter.device for parameter in position.parameters()), query.device)
    with torch.no_grad(), torch.device(device):
        bias = position.bias(query[None].to(device), key[None].to(device))[0].float().cpu()
    tables = bias.expand(len(bias), CELLS, CELLS)
    return tuple(_bias(tables[head], attended, head, len(tables)) for head in sorted({0, len(tables) - 1}))


def _bias(table: Tensor, attended: Tensor, head: int, n_heads: int) -> Matrix:
    """Biases scaled to [0, 1], from the smallest to the largest one of the keys that are not masked."""
    seen = table[attended]
    low, high = seen.min().item() + 0.0, seen.max().item() + 0.0  # no -0
    shares = ((table - low) / max(high - low, 1e-12)).clamp(0, 1)
    cells = [
        [share if allowed else "forbidden" for share, allowed in zip(*lines, strict=True)]
        for lines in zip(shares.tolist(), attended.tolist(), strict=True)
    ]
    name = f"bias of head {head + 1} of {n_heads}"
    return Matrix(name, f"{low:.3g} dark to {high:.3g} light", tuple(map(tuple, cells)))
