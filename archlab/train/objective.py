"""What is minimised: the cross-entropy of the targets that count."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from archlab.data.batch import Batch
from archlab.model.decoder import Decoder, Output
from archlab.model.further import Trunk, next_alone
from archlab.model.layer import Layer, LayerCall
from archlab.probe.look import Columns, columns
from archlab.train.options import LossOptions
from archlab.train.runtime import Runtime


class TokenLosses(NamedTuple):
    """By target: its loss in nats, whether it is scored, and whether the likeliest token was the right one, where that is asked."""

    nats: Float[Tensor, "batch seq"]
    scored: Bool[Tensor, "batch seq"]
    right: Bool[Tensor, "batch seq"] | None

    @property
    def total(self) -> Tensor:
        """The sum over all scored targets, nats."""
        return total(self.nats, self.scored)


def total(nats: Float[Tensor, "batch seq"], scored: Bool[Tensor, "batch seq"]) -> Tensor:
    """The sum over all scored targets; by a mask, so that no shape depends on how many there are."""
    return nats.where(scored, 0).sum()


class LossParts(NamedTuple):
    """A batch's loss, summed over its scored targets in nats, and their number; tensors, so that nothing waits for the device."""

    total: Tensor
    n_scored: Tensor

    added: dict[str, Tensor]
    """What is minimised besides it, by name, such as a router's balance: a mean over the batch."""

    terms: dict[str, Tensor]
    """What `loss` adds to every scored target, by name: a sum over them, like the total."""

    counts: tuple[dict[str, Tensor], ...] = ()
    """By layer, what its network's `after_step` is given: sums over the batch."""

    further: Mapping[str, Float[Tensor, "2"]] = MappingProxyType({})
    """Of each token after the next, by name: its loss, summed over its targets in nats, and their number. What is minimised
    of it is in `terms`."""


Term = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (n, vocab), targets (n), their losses (n)) -> what is added to the loss of each."""

NO_TERMS: Mapping[str, Term] = MappingProxyType({})


def terms_of(options: LossOptions) -> dict[str, Term]:
    """What these options add to each target's cross-entropy while training; validation never does."""
    terms: dict[str, Term] = {}
    if options.z:
        terms["z"] = partial(z_term, options.z)
    if options.label_smoothing:
        terms["label_smoothing"] = partial(smoothing_term, options.label_smoothing)
    return terms


def z_term(share: float, logits: Tensor, targets: Tensor, nats: Tensor) -> Tensor:
    """share * log(Z)^2, where Z is the sum of exp(logits): keeps logits from drifting.

    Source: arXiv:2204.02311, sec. 5; arXiv:2309.14322, sec. 3.1.2.
    """
    return share * logits.logsumexp(dim=-1).square()


def smoothing_term(share: float, logits: Tensor, targets: Tensor, nats: Tensor) -> Tensor:
    """What the loss has more where `share` of each target is spread evenly over the vocabulary. Source: arXiv:1512.00567, sec. 7."""
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=share) - nats


class Inputs(NamedTuple):
    """A batch as the model is given it, on the model's device."""

    tokens: Int[Tensor, "batch seq"]
    targets: Int[Tensor, "batch seq"]
    scored: Bool[Tensor, "batch seq"]
    prefix_len: Int[Tensor, " batch"] | None
    positions: Int[Tensor, "batch *axes seq"] | None
    document_starts: Int[Tensor, "batch seq"] | None = None


class Program(nn.Module):
    """What a step computes, as a pure function of weights and a batch: LossParts, and each layer's recorded quantities.

    So `torch.func.functional_call(program, weights, inputs)` may be compiled as one graph, and mapped over the stacked
    weights of several runs, with ordinary autograd outside.
    """

    def __init__(
        self,
        decoder: Decoder,
        wanted: Collection[str] = (),
        call: LayerCall = Layer.watched,
        terms: Mapping[str, Term] = NO_TERMS,
    ):
        super().__init__()
        self.decoder, self.wanted, self.call, self.terms = decoder, tuple(wanted), call, dict(terms)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        scored: Tensor,
        prefix_len: Tensor | None,
        positions: Tensor | None,
        document_starts: Tensor | None = None,
    ) -> tuple[LossParts, tuple[dict[str, Tensor], ...]]:
        """Takes the fields of Inputs, in their order."""
        inputs = Inputs(tokens, targets, scored, prefix_len, positions, document_starts)
        nats, output = nats_of(self.decoder, inputs, self.wanted, self.call, self.decoder.ahead)
        terms = self.added(output.logits, targets, nats, scored)
        further, heads = {}, self.decoder.further_tokens
        share = 0.0 if heads is None else heads.factor
        for by, logits in enumerate(output.further, start=1):
            its_targets, counts = targets_ahead(targets, scored, by)
            its_nats = losses_of(logits, its_targets)
            sums = total(its_nats, counts)
            beside = self.added(logits, its_targets, its_nats, counts)
            terms[further_name(by)] = share * (sums + sum(beside.values()))
            further[further_name(by)] = torch.stack((sums, counts.sum().type_as(sums)))
        return LossParts(total(nats, scored), scored.sum(), output.losses, terms, output.counts, further), output.taps

    def added(self, logits: Tensor, targets: Tensor, nats: Tensor, scored: Tensor) -> dict[str, Tensor]:
        """What `loss` adds to these targets, by name."""
        flat = flat_logits(logits), targets.flatten(), nats.flatten()
        return {name: total(term(*flat).view_as(targets), scored) for name, term in self.terms.items()}


def further_name(by: int) -> str:
    """The name of the loss of the token `by` after the next."""
    return f"mtp_loss_{by + 1}"


def targets_ahead(
    targets: Int[Tensor, "batch seq"], scored: Bool[Tensor, "batch seq"], by: int
) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
    """The targets that stand `by` after these, and where they count: where all targets up to them do.

    So none is of another document than its position, none is one that the position attends to, and none is beyond the sequence.
    """
    counts = scored
    for step in range(1, by + 1):
        counts = counts & F.pad(scored[:, step:], (0, step))
    return targets.roll(-by, dims=1), counts


def compute(
    decoder: Decoder,
    batch: Batch,
    machine: Runtime,
    wanted: Collection[str] = (),
    call: LayerCall = Layer.watched,
    terms: Mapping[str, Term] = NO_TERMS,
) -> tuple[LossParts, Columns]:
    """The loss of a batch, and the quantities named in `wanted`, each with a value per layer; `call` calls each layer."""
    with machine.autocast():
        parts, taps = Program(decoder, wanted, call, terms)(*placed(decoder, batch))
    return parts, columns(taps)


def token_losses(decoder: Decoder, batch: Batch, exact: bool = True) -> TokenLosses:
    """The losses of a batch's targets alone; `exact`: with whether the likeliest token was the right one."""
    return run(decoder, batch, exact=exact)[0]


def run(
    decoder: Decoder, batch: Batch, wanted: Collection[str] = (), exact: bool = False
) -> tuple[TokenLosses, Output]:
    """The losses of a batch's targets, with the decoder's output."""
    inputs = placed(decoder, batch)
    nats, output = nats_of(decoder, inputs, wanted)
    right = output.logits.detach().argmax(dim=-1) == inputs.targets if exact else None
    return TokenLosses(nats, inputs.scored, right), output


def placed(decoder: Decoder, batch: Batch) -> Inputs:
    """The batch on the model's device. A target is scored where the data scores it and its position can't attend to it."""
    device = decoder.embedding.weight.device
    columns = batch.inputs, batch.to_predict, scored_targets(decoder, batch)
    tokens, targets, scored = (column.to(device, non_blocking=True) for column in columns)
    given = (
        batch.prefix_len if decoder.mask.uses_prefix else None,
        batch.document_starts if decoder.mask.uses_documents else None,
    )
    prefix_len, starts = (None if column is None else column.to(device, non_blocking=True) for column in given)
    return Inputs(tokens, targets, scored, prefix_len, positions_for(decoder, batch), starts)


def nats_of(
    decoder: Decoder,
    inputs: Inputs,
    wanted: Collection[str] = (),
    call: LayerCall = Layer.watched,
    ahead: Callable[[Trunk], list[Tensor]] = next_alone,
) -> tuple[Tensor, Output]:
    """By target its loss in nats, float32, with the decoder's output: recorded quantities, and what is added to the loss."""
    contexts = decoder.read(inputs.tokens, inputs.prefix_len, inputs.positions, document_starts=inputs.document_starts)
    output = decoder.compute(inputs.tokens, contexts, wanted, call, ahead)
    return losses_of(output.logits, inputs.targets), output


def losses_of(
    logits: Float[Tensor, "batch seq vocab"], targets: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq"]:
    """By target its loss in nats, float32."""
    return F.cross_entropy(flat_logits(logits), targets.flatten(), reduction="none").view_as(targets)


def flat_logits(logits: Float[Tensor, "batch seq vocab"]) -> Float[Tensor, "targets vocab"]:
    """float32, one row for each target."""
    return rearrange(logits.float(), "batch seq vocab -> (batch seq) vocab")


def positions_for(decoder: Decoder, batch: Batch) -> Int[Tensor, "batch axes seq"] | None:
    """The data's positions for a scheme of as many axes; None for another scheme, which has its own."""
    if batch.positions is None or batch.positions.shape[1] != decoder.position.axes:
        return None
    return batch.positions.to(decoder.embedding.weight.device, non_blocking=True)


def scored_targets(decoder: Decoder, batch: Batch) -> Bool[Tensor, "batch seq"]:
    """True at targets that count: those that the data says or, of next tokens, those that their position can't attend to."""
    if batch.targets is not None:
        return batch.scored
    prefix_len = batch.tokens.new_zeros(len(batch.tokens)) if batch.prefix_len is None else batch.prefix_len
    return batch.scored & decoder.mask.may_score(batch.scored.shape[1], prefix_len)
