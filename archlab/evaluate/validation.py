"""Held-out loss at one length, and what else can be read off the same pass."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from archlab.data.batch import Source
from archlab.data.corpus import where_windows_start
from archlab.model.decoder import Decoder
from archlab.train.objective import token_losses
from archlab.train.runtime import Runtime

TOKENS_AT_ONCE = 8192
"""Roughly how many tokens go through the model together, whatever their sequences' length."""


@dataclass(frozen=True)
class HeldOut:
    """By window and position of its targets: the loss in nats, whether it counts, whether the likeliest token was right.

    Windows of one length follow each other along the same held-out tokens, `step` tokens apart; the last may be nearer.
    """

    nats: Float[Tensor, "window seq"]
    scored: Bool[Tensor, "window seq"]
    right: Bool[Tensor, "window seq"]
    step: int

    def loss(self, last: int | None = None) -> float | None:
        """Nats per scored target, over all positions or the last few; None where none of them is scored."""
        part = slice(None) if last is None else slice(-last, None)
        return mean(self.nats[:, part][self.scored[:, part]])

    def loss_at(self, targets: Bool[Tensor, "window seq"], longer: "HeldOut") -> tuple[float | None, float | None]:
        """Nats on those of a longer evaluation's targets that are scored here too: here, and there.

        The same tokens are compared, so what is left is what the length does.
        """
        here = self.along_the_tokens(self.nats.where(self.scored, torch.nan))
        there = longer.along_the_tokens(longer.nats.where(longer.scored & targets, torch.nan))
        n = min(len(here), len(there))
        both = here[:n].isfinite() & there[:n].isfinite()
        return mean(here[:n][both]), mean(there[:n][both])

    def along_the_tokens(self, values: Float[Tensor, "window seq"]) -> Float[Tensor, " token"]:
        """Values laid out by the token they belong to; NaN where it has none."""
        n_windows, seq_len = values.shape
        starts = torch.from_numpy(where_windows_start(n_windows, seq_len, self.step))
        token = starts[:, None] + torch.arange(seq_len)
        laid_out = torch.full((int(starts[-1]) + seq_len,), torch.nan)
        there = values.isfinite()
        laid_out[token[there]] = values[there]
        return laid_out

    @property
    def token_accuracy(self) -> float:
        """Share of the scored targets that were the likeliest token."""
        return float(self.right[self.scored].double().mean())

    @property
    def exact_match(self) -> float:
        """Share of the windows whose every scored target was the likeliest token."""
        return float((self.right | ~self.scored).all(dim=1).double().mean())


def unigram_entropy(source: Source, seq_len: int, n_tokens: int) -> float:
    """The loss, nats per target, of knowing nothing but how often each held-out target occurs."""
    scored = [batch.to_predict[batch.scored] for batch in source.validation(seq_len, n_tokens, n_tokens)]
    shares = torch.bincount(torch.cat(scored)).double()
    return float(torch.special.entr(shares / shares.sum()).sum())


def mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


@torch.no_grad()
def held_out(
    decoder: Decoder, source: Source, machine: Runtime, seq_len: int, n_tokens: int, stride: int | None = None
) -> HeldOut:
    """Runs about n_tokens held-out tokens through the model, in windows of seq_len.

    What is found stays on the device until all of it is there, and is read in one copy.
    """
    was_training = decoder.training
    decoder.eval()
    with machine.in_force(), machine.autocast():
        batches = source.validation(seq_len, n_tokens, max(1, TOKENS_AT_ONCE // seq_len), stride)
        pieces = [token_losses(decoder, batch.to(machine.device)) for batch in batches]
    decoder.train(was_training)
    nats, scored, right = torch.stack([torch.cat(column).float() for column in zip(*pieces, strict=True)]).cpu()
    return HeldOut(nats, scored.bool(), right.bool(), stride or seq_len)
