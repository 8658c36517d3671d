"""What is minimised: the cross-entropy of the targets that count."""

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from archlab.data.batch import Batch
from archlab.model import Decoder, Output
from archlab.probe.look import Columns, columns
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

    added: dict[str, Tensor]
    """What is minimised beside it, by name, such as a router's balance: a mean over the batch."""


def compute(
    decoder: Decoder, batch: Batch, machine: Machine, wanted: Collection[str] = ()
) -> tuple[LossParts, Columns]:
    """The loss of a batch, and by name what was asked for of each layer: tensors alone, and nothing on the side."""
    with machine.autocast():
        losses, output = run(decoder, batch, wanted)
    return LossParts(losses.total, losses.scored.sum(), output.losses), columns(output.taps)


def run(decoder: Decoder, batch: Batch, wanted: Collection[str] = ()) -> tuple[TokenLosses, Output]:
    """The losses of a batch's targets, float32, with what the layers let be seen and what they add to the loss.

    A target counts where the data scores it and the mask does not let its position attend to it.
    """
    device = decoder.embedding.weight.device
    inputs, targets, scored = (
        column.to(device, non_blocking=True)
        for column in (batch.inputs, batch.to_predict, scored_targets(decoder, batch))
    )
    prefix_len = batch.prefix_len.to(device) if batch.prefix_len is not None and decoder.mask.uses_prefix else None
    output = decoder.compute(inputs, decoder.read(inputs, prefix_len, positions_for(decoder, batch)), wanted)
    logits = output.logits.float()
    nats = F.cross_entropy(
        rearrange(logits, "batch seq vocab -> (batch seq) vocab"), targets.flatten(), reduction="none"
    )
    return TokenLosses(nats.view_as(targets), scored, logits.detach().argmax(dim=-1) == targets), output


def token_losses(decoder: Decoder, batch: Batch) -> TokenLosses:
    """The losses of a batch's targets alone."""
    return run(decoder, batch)[0]


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
