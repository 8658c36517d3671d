"""A model's weights by name, each once however many names it has."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and the buffers that are saved with them, without their gradients; of a tied pair the first name."""
    seen: dict[int, str] = {}
    named = model.state_dict(keep_vars=True).items()
    return {name: tensor.detach() for name, tensor in named if seen.setdefault(id(tensor), name) == name}


def saved_buffers(model: nn.Module) -> list[Tensor]:
    """The buffers among them, such as running statistics: a forward pass in training may change these."""
    saved = own_tensors(model)
    return [buffer for name, buffer in model.named_buffers() if name in saved]


@torch.no_grad()
def put_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies `own_tensors` of an equal model into this one; a tied pair stays tied."""
    own = own_tensors(model)
    if own.keys() != tensors.keys():
        raise ValueError(f"weights of another model: {sorted(own.keys() ^ tensors.keys())[:3]}")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
