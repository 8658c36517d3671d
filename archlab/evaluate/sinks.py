"""How much of attention's weight the first token of a sequence is given: an attention sink, where it is much."""

from statistics import fmean

import torch

from archlab.data.batch import Source
from archlab.model.decoder import Decoder
from archlab.train.objective import run
from archlab.train.runtime import Runtime

TAP = "first_token_share"

SEQUENCES = 64
"""The most that are looked at: one after the other, since what is recorded in a layer is of one sequence."""


def first_token_share(decoder: Decoder, source: Source, machine: Runtime, seq_len: int, n_tokens: int) -> float:
    """The mean over layers of `first_token_shares`, which is that over all heads, queries and sequences.

    Source: arXiv:2505.06708, fig. 2 (attention's score of the first token, averaged over layers).
    """
    return fmean(
        share for share in first_token_shares(decoder, source, machine, seq_len, n_tokens) if share is not None
    )


@torch.no_grad()
def first_token_shares(
    decoder: Decoder, source: Source, machine: Runtime, seq_len: int, n_tokens: int
) -> list[float | None]:
    """By application of a layer, the share of a query's weights that the first token has; None of a layer without weights.

    A mean over heads, queries and held-out sequences of seq_len, as many as n_tokens hold, up to SEQUENCES; of a sequence
    longer than 512 over its last queries. Were each query's weights even over the tokens it attends to, it would be the
    mean of 1 / n over n = 1 .. seq_len under a causal mask: 0.074 of 64 tokens.
    """
    was_training = decoder.training
    decoder.eval()
    seen: list[list[torch.Tensor]] = [[] for _ in decoder.course]
    with machine.in_force(), machine.autocast():
        for batch in source.validation(seq_len, min(n_tokens, SEQUENCES * seq_len), 1):
            _, output = run(decoder, batch.to(machine.device), [TAP])
            for of_layer, taps in zip(seen, output.taps, strict=True):
                of_layer += [taps[TAP]] if TAP in taps else []
    decoder.train(was_training)
    return [float(torch.stack(of_layer).mean()) if of_layer else None for of_layer in seen]
