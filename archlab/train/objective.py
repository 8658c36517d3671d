"""What is minimised: the cross-entropy of the targets that count."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from archlab.data.batch import Batch
from archlab.model import Decoder
from archlab.probe.look import Look
from archlab.train.precision import Machine


class TokenLosses(NamedTuple):
    """By target: its loss in nats, whether it counts, and whether the likeliest token was the right one."""

    nats: Float[Tensor, "batch seq"]
    scored: Bool[Tensor, "batch seq"]
    right: Bool[Tensor, "batch seq"]

    @property
    def total(self) -> Tensor:
        """Nats over all scored targets; a masked sum, whose shape no number of scored targets decides."""
        return self.nats.where(self.scored, 0).sum()


class LossParts(NamedTuple):
    """What a batch comes to: nats over its scored targets, and how many those are. Tensors, which nobody waits for."""

    total: Tensor
    n_scored: Tensor


def compute(
    decoder: Decoder, batch: Batch, machine: Machine, taps: Sequence[str] = ()
) -> tuple[LossParts, dict[str, Float[Tensor, " layer"]]]:
    """The loss of a batch, and by name what the forward pass showed in each layer."""
    look = Look(decoder, taps)
    with machine.autocast(), look.forward():
        losses = token_losses(decoder, batch)
    return LossParts(losses.total, losses.scored.sum()), look.taps()


def token_losses(decoder: Decoder, batch: Batch) -> TokenLosses:
    """A target counts where the data scores it and the mask does not let its position read it. float32."""
    device = decoder.embedding.weight.device
    inputs, targets, scored = (
        column.to(device, non_blocking=True)
        for column in (batch.inputs, batch.to_predict, scored_targets(decoder, batch))
    )
    prefix_len = batch.prefix_len.to(device) if batch.prefix_len is not None and decoder.mask.uses_prefix else None
    logits = decoder(inputs, prefix_len=prefix_len, positions=positions_for(decoder, batch)).float()
    nats = F.cross_entropy(
        rearrange(logits, "batch seq vocab -> (batch seq) vocab"), targets.flatten(), reduction="none"
    )
    return TokenLosses(nats.view_as(targets), scored, logits.detach().argmax(dim=-1) == targets)


def positions_for(decoder: Decoder, batch: Batch) -> Int[Tensor, "batch axes seq"] | None:
    """Those the data gives, for a scheme of as many axes; any other numbers the tokens as it does."""
    if batch.positions is None or batch.positions.shape[1] != decoder.position.axes:
        return None
    return batch.positions.to(decoder.embedding.weight.device)


def scored_targets(decoder: Decoder, batch: Batch) -> Bool[Tensor, "batch seq"]:
    """Targets the data gives are its own affair; of next tokens those count that their position cannot read."""
    if batch.targets is not None:
        return batch.scored
    prefix_len = torch.zeros(len(batch.tokens), dtype=torch.long) if batch.prefix_len is None else batch.prefix_len
    return batch.scored & decoder.mask.may_score(batch.scored.shape[1], prefix_len)
