"""The optimiser: AdamW, decaying matrices and leaving gains, shifts and biases alone."""

import torch
from torch import nn

from archlab.train.settings import TrainSettings


def adamw(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Source: arXiv:1711.05101, alg. 2; decay on tensors of two or more axes only, as GPT-3's successors do."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )
