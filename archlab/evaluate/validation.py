"""Held-out loss at one length, and what else can be read off the same pass."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from archlab.data.batch import Batch, Source
from archlab.data.corpus import slices, where_windows_start
from archlab.model.decoder import Decoder
from archlab.train.objective import scored_targets, token_losses
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
    right: Bool[Tensor, "window seq"] | None
    """None of data without exact answers, since it takes as long to find as the losses do."""

    step: int

    def loss(self, last: int | None = None) -> float | None:
        """Nats per scored target, over all positions or the last few; None where none of them is scored."""
        part = slice(None) if last is None else slice(-last, None)
        return mean(self.nats[:, part][self.scored[:, part]])

    def by_window(self) -> list[float | None]:
        """Nats per scored target of each window, in the order of the text; None where none of a window's is scored."""
        counts = self.scored.sum(dim=1)
        sums = (self.nats.double() * self.scored).sum(dim=1)
        return [total / count if count else None for total, count in zip(sums.tolist(), counts.tolist(), strict=True)]

    def loss_at(self, targets: Bool[Tensor, "window seq"], longer: "HeldOut") -> tuple[float | None, float | None]:
        """Nats on those of a longer evaluation's targets that are scored here too: here, and there.

        The same tokens are compared, so what is left is what the length does.
        """
        here, counts_here = self.along_the_tokens(self.scored)
        there, counts_there = longer.along_the_tokens(longer.scored & targets)
        n = min(len(here), len(there))
        both = counts_here[:n] & counts_there[:n]
        return mean(here[:n][both]), mean(there[:n][both])

    def along_the_tokens(
        self, counted: Bool[Tensor, "window seq"]
    ) -> tuple[Float[Tensor, " token"], Bool[Tensor, " token"]]:
        """Nats laid out by the token they belong to, finite or not, and whether it is among those that are counted."""
        n_windows, seq_len = counted.shape
        starts = torch.from_numpy(where_windows_start(n_windows, seq_len, self.step))
        token = starts[:, None] + torch.arange(seq_len)
        nats = torch.full((int(starts[-1]) + seq_len,), torch.nan)
        nats[token[counted]] = self.nats[counted]
        there = torch.zeros(len(nats), dtype=torch.bool)
        there[token[counted]] = True
        return nats, there

    @property
    def token_accuracy(self) -> float:
        """Share of the scored targets that were the likeliest token."""
        assert self.right is not None
        return float(self.right[self.scored].double().mean())

    @property
    def exact_match(self) -> float:
        """Share of the windows whose every scored target was the likeliest token."""
        assert self.right is not None
        return float((self.right | ~self.scored).all(dim=1).double().mean())


def unigram_entropy(source: Source, seq_len: int, n_tokens: int) -> float:
    """The loss, nats per target, of knowing nothing but how often each held-out target occurs."""
    scored = [batch.to_predict[batch.scored] for batch in source.validation(seq_len, n_tokens, n_tokens)]
    shares = torch.bincount(torch.cat(scored)).double()
    return float(torch.special.entr(shares / shares.sum()).sum())


def mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


class Longer:
    """What longer windows came to, for shorter ones that a longer one begins with: these need not be computed again."""

    def __init__(self) -> None:
        self.known: list[tuple[Int[Tensor, "window seq_plus_1"], HeldOut]] = []

    def add(self, tokens: Int[Tensor, "window seq_plus_1"], seen: HeldOut) -> None:
        self.known.append((tokens, seen))

    def begin_with(
        self, tokens: Int[Tensor, "window seq_plus_1"]
    ) -> tuple[Bool[Tensor, " window"], Float[Tensor, "found seq"]]:
        """Which of these windows a longer one begins with, and the nats of those."""
        seq_len = tokens.shape[1] - 1
        where = {
            beginning: nats
            for longer, seen in self.known
            if longer.shape[1] > seq_len
            for beginning, nats in zip(rows_of(longer[:, : seq_len + 1]), seen.nats[:, :seq_len], strict=True)
        }
        found = [where.get(row) for row in rows_of(tokens)]
        there = [nats for nats in found if nats is not None]
        nats = torch.stack(there) if there else torch.empty(0, seq_len)
        return torch.tensor([nats is not None for nats in found]), nats


def rows_of(tokens: Int[Tensor, "window seq_plus_1"]) -> list[bytes]:
    """Each window as a key of a table."""
    return [row.tobytes() for row in tokens.numpy()]


@torch.no_grad()
def held_out(
    decoder: Decoder,
    source: Source,
    machine: Runtime,
    seq_len: int,
    n_tokens: int,
    stride: int | None = None,
    longer: Longer | None = None,
) -> HeldOut:
    """Runs about n_tokens held-out tokens through the model, in windows of seq_len.

    What is found stays on the device until all of it is there, and is read in one copy. Windows that `longer` ones begin
    with are taken from there where the model `begins_alike`, and what is found here is added.
    """
    at_once = max(1, TOKENS_AT_ONCE // seq_len)
    batches = source.validation(seq_len, n_tokens, at_once, stride)
    if longer is None or source.exact or not source.same_targets or not decoder.begins_alike:
        return HeldOut(*computed(decoder, machine, batches, source.exact), stride or seq_len)
    whole = joined(list(batches))
    if whole.targets is not None or whole.positions is not None:
        return HeldOut(*computed(decoder, machine, in_batches(whole, at_once)), stride or seq_len)
    scored = scored_targets(decoder, whole)
    found, known = longer.begin_with(whole.tokens)
    nats = torch.empty(scored.shape)
    nats[found] = known
    if not found.all():
        rest = Batch._make(None if column is None else column[~found] for column in whole)
        nats[~found] = computed(decoder, machine, in_batches(rest, at_once))[0]
    seen = HeldOut(nats, scored, None, stride or seq_len)
    longer.add(whole.tokens, seen)
    return seen


def computed(
    decoder: Decoder, machine: Runtime, batches: Iterable[Batch], exact: bool = False
) -> tuple[Float[Tensor, "window seq"], Bool[Tensor, "window seq"], Bool[Tensor, "window seq"] | None]:
    """What HeldOut has of each window, by running all of them through the model in evaluation mode."""
    was_training = decoder.training
    decoder.eval()
    with machine.in_force(), machine.autocast():
        pieces = [token_losses(decoder, batch.to(machine.device), exact) for batch in batches]
    decoder.train(was_training)
    columns = (torch.cat(column).float() for column in zip(*pieces, strict=True) if column[0] is not None)
    nats, scored, *right = torch.stack(list(columns)).cpu()
    return nats, scored.bool(), right[0].bool() if right else None


def joined(batches: list[Batch]) -> Batch:
    """All sequences in one batch."""
    return Batch._make(None if column[0] is None else torch.cat(column) for column in zip(*batches, strict=True))


def in_batches(batch: Batch, at_once: int) -> Iterable[Batch]:
    """So many sequences at a time."""
    return (batch.rows(rows) for rows in slices(len(batch.tokens), at_once))
