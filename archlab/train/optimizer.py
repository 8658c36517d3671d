"""The optimiser: AdamW, decaying matrices and tables and leaving gains, biases and scalars alone."""

import torch

from archlab.blocks.roles import DECAYING
from archlab.model.decoder import Decoder
from archlab.train.settings import TrainSettings


def adamw(decoder: Decoder, settings: TrainSettings) -> torch.optim.AdamW:
    """Decay goes by what each weight is for. Source: arXiv:1711.05101, alg. 2."""
    weights = list(decoder.weights())
    groups = [
        {"params": [w.tensor for w in weights if w.role in DECAYING], "weight_decay": settings.weight_decay},
        {"params": [w.tensor for w in weights if w.role not in DECAYING], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )
