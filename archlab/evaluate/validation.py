"""Held-out loss at one length, and what else can be read off the same pass."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from archlab.data.batch import Source
from archlab.model import Decoder
from archlab.train.objective import token_losses
from archlab.train.precision import Machine

TOKENS_AT_ONCE = 8192
"""Roughly how many tokens go through the model together, whatever their sequences' length."""


@dataclass(frozen=True)
class HeldOut:
    """Sums over held-out sequences of one length, by position of the target."""

    nats: Float[Tensor, " seq"]
    scored: Float[Tensor, " seq"]
    right: Float[Tensor, " seq"]
    n_sequences: int
    n_exact: int

    def loss(self, last: int | None = None) -> float | None:
        """Nats per scored token, over all positions or the last few; None where none of them is scored."""
        part = slice(None) if last is None else slice(-last, None)
        scored = float(self.scored[part].sum())
        return float(self.nats[part].sum()) / scored if scored else None

    @property
    def token_accuracy(self) -> float:
        """Share of the scored targets that were the likeliest token."""
        return float(self.right.sum() / self.scored.sum())

    @property
    def exact_match(self) -> float:
        """Share of the sequences whose every scored target was the likeliest token."""
        return self.n_exact / self.n_sequences


@torch.no_grad()
def held_out(
    decoder: Decoder, source: Source, machine: Machine, seq_len: int, n_tokens: int, stride: int | None = None
) -> HeldOut:
    """Runs about n_tokens held-out tokens through the model, in windows of seq_len."""
    was_training = decoder.training
    decoder.eval()
    sums = torch.zeros(3, seq_len, dtype=torch.float64, device=machine.device)
    n_sequences = n_exact = 0
    for batch in source.validation(seq_len, n_tokens, max(1, TOKENS_AT_ONCE // seq_len), stride):
        with machine.autocast():
            losses = token_losses(decoder, batch)
        right = losses.right & losses.scored
        sums += torch.stack(
            [(losses.nats * losses.scored).double().sum(0), losses.scored.double().sum(0), right.double().sum(0)]
        )
        n_sequences += len(right)
        n_exact += int((right == losses.scored).all(dim=1).sum())
    decoder.train(was_training)
    return HeldOut(*sums.cpu(), n_sequences, n_exact)
