"""Length extrapolation: the same held-out tokens in ever longer windows, up to 16 times what the model was trained at.

Protocols:
    disjoint   windows follow each other; every target is scored once, the early ones of a window with little context
    sliding    windows overlap and advance by a stride; a target is scored in the first window it falls in, so that all
               but the first window's have at least eval_len - stride tokens of context
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

from archlab.base.plateau import on_plateau
from archlab.blocks.token_positions import PositionLimit
from archlab.data.batch import Source, TooLong
from archlab.evaluate.settings import EvalSettings
from archlab.evaluate.sinks import TAP, first_token_share
from archlab.evaluate.validation import HeldOut, Longer, held_out, mean
from archlab.model.decoder import Decoder
from archlab.train.runtime import Runtime

Record = dict[str, Any]

IMPROVES, HOLDS, DEGRADES = 0.99, 1.02, 1.5
"""Upper limits of the ratio of the late targets' loss to their loss at train_len; beyond the last it collapses."""

FIRST = 4
"""Targets of a window that have next to no context."""

LEARNED, KEEPS, SOME = 0.1, 0.95, 0.5
"""For tasks, of exact match: the least at train_len that counts as learned, and lower limits of the ratio."""


def by_length(
    decoder: Decoder,
    source: Source,
    machine: Runtime,
    settings: EvalSettings,
    train_len: int,
    multiples: Iterable[int],
    as_trained: Decoder | None = None,
) -> tuple[list[Record], list[Record]]:
    """One record per length, and one curve of loss by position per length; where a length has no meaning, a note says so.

    Lengths are scored in the order of `multiples`, and returned from the shortest up. Given from the longest down, a
    window that a longer one begins with is computed once for both, where the model allows it (`Decoder.begins_alike`).

    `as_trained` is given where the decoder has another mask or other positions than its weights were trained with: the
    loss of late targets is set against its loss at train_len, since a change may hurt at every length.
    """
    found: dict[int, HeldOut] = {}
    notes: dict[int, str] = {}
    n_tokens, longer = held_out_tokens(settings, train_len), Longer()
    shares: dict[int, Record] = {}
    for multiple in multiples:
        eval_len = multiple * train_len
        try:
            found[eval_len] = held_out(
                decoder, source, machine, eval_len, n_tokens, stride(settings, train_len), longer
            )
            if settings.first_token_share:
                shares[eval_len] = {TAP: first_token_share(decoder, source, machine, eval_len, n_tokens)}
        except PositionLimit as refusal:
            notes[eval_len] = f"not defined beyond {refusal.limit}"
        except TooLong as refusal:
            notes[eval_len] = f"the data has nothing longer than {refusal.longest}"
    before = found.get(train_len)
    if as_trained is not None:
        before = held_out(as_trained, source, machine, train_len, n_tokens, stride(settings, train_len))
    lengths = [
        undefined(eval_len, settings, notes[eval_len])
        if eval_len in notes
        else record_of(eval_len, found[eval_len], before, source, settings, train_len) | shares.get(eval_len, {})
        for eval_len in sorted(found | notes)
    ]
    return lengths, [curve(eval_len, found[eval_len]) for eval_len in sorted(found)]


def record_of(
    eval_len: int, seen: HeldOut, at_train_len: HeldOut | None, source: Source, settings: EvalSettings, train_len: int
) -> Record:
    """What is written of a length, given what was found there and, where that is known, at train_len."""
    record = measured(eval_len, settings, seen, train_len)
    if source.exact:
        return record | {"exact_match": seen.exact_match, "token_accuracy": seen.token_accuracy}
    if not source.same_targets:
        return record | {"late_ratio": None}
    return record if at_train_len is None else record | against(at_train_len, seen, train_len)


def held_out_tokens(settings: EvalSettings, train_len: int) -> int:
    """How many are scored, the same at every length: of those asked for as many as make whole windows of each, or one of the longest.

    Where so few are asked for that only the windows of the longest are whole, shorter ones may leave out the last of them.
    """
    longest, of_each = train_len * max(settings.lengths), train_len * math.lcm(*settings.lengths)
    whole = of_each if of_each <= settings.tokens else longest
    return max(settings.tokens // whole, 1) * whole


def stride(settings: EvalSettings, train_len: int) -> int | None:
    if settings.protocol == "disjoint":
        return None
    return settings.stride or train_len // 2


def measured(eval_len: int, settings: EvalSettings, seen: HeldOut, train_len: int) -> Record:
    """`loss` over all scored targets, `loss_last` over the last train_len / 2 positions; nats per token."""
    return {
        "eval_len": eval_len,
        "loss": seen.loss(),
        "loss_last": seen.loss(last=train_len // 2),
        "context_gain": context_gain(seen),
        "protocol": settings.protocol,
        "n_sequences": len(seen.nats),
    }


def context_gain(seen: HeldOut) -> float | None:
    """The loss of a window's first targets less that of its last quarter: what the tokens between are worth, nats per token.

    A model that goes by the token before alone has none, whatever its loss. None where either is not scored.
    """
    first = mean(seen.nats[:, :FIRST][seen.scored[:, :FIRST]])
    late = seen.loss(last=max(1, seen.nats.shape[1] // 4))
    return None if first is None or late is None else first - late


def against(at_train_len: HeldOut, seen: HeldOut, train_len: int) -> Record:
    """The late targets' loss over the loss the same targets have in windows of train_len."""
    late = torch.zeros_like(seen.scored)
    late[:, -(train_len // 2) :] = True
    before, after = at_train_len.loss_at(late, seen)
    return {"late_ratio": after / before if before and after is not None else None}


def undefined(eval_len: int, settings: EvalSettings, note: str) -> Record:
    return {"eval_len": eval_len, "loss": None, "loss_last": None, "protocol": settings.protocol, "note": note}


def curve(eval_len: int, seen: HeldOut) -> Record:
    """Mean loss at each position that has a scored target, and in each window where windows don't overlap."""
    counts = seen.scored.sum(dim=0)
    there = counts.nonzero().flatten()
    means = (seen.nats * seen.scored).double().sum(dim=0)[there] / counts[there]
    by_window = {"windows": seen.by_window()} if seen.step == eval_len else {}
    return {"eval_len": eval_len, "position": there.tolist(), "loss": means.tolist(), **by_window}


def verdict(lengths: list[Record], train_len: int, exact: bool, unigram: float) -> Record:
    """improves, holds, degrades or collapses at the longest length there is a figure for, with the ratio that decided it.

    For text it is the ratio of the late targets' loss there to the loss of the very same targets at train_len, for
    tasks the ratio of exact match. `undecided` where there is nothing to compare: no second figure, a loss at train_len that is
    not finite, or a model that has not learned. That is exact match below 0.1, or a loss within 0.05 nats of `unigram`, the held-out targets' entropy.
    """
    defined = [record for record in lengths if record["loss"] is not None]
    at_train_len = next((record for record in defined if record["eval_len"] == train_len), None)
    longest = max(defined, key=lambda record: record["eval_len"], default=None)
    if at_train_len is None or longest is None or longest is at_train_len:
        return undecided("no figure both at train_len and beyond it")
    if not math.isfinite(at_train_len["loss"]):
        return undecided("the loss at train_len is not finite")
    if on_plateau(at_train_len["loss"], unigram):
        loss = at_train_len["loss"]
        return undecided(f"not learned: loss {loss:.3f} at train_len, {unigram:.3f} for token frequencies alone")
    multiple = longest["eval_len"] // train_len
    if exact:
        return judge_exact_match(at_train_len["exact_match"], longest["exact_match"], multiple)
    return judge_loss(longest["loss_last"], longest["late_ratio"], multiple)


def undecided(reason: str) -> Record:
    return {"verdict": "undecided", "ratio": None, "reason": reason}


def judge_loss(late_loss: float | None, ratio: float | None, multiple: int) -> Record:
    if ratio is None:
        return undecided("no late target is scored at both lengths")
    limits = {"improves": IMPROVES, "holds": HOLDS, "degrades": DEGRADES}
    word = next((word for word, limit in limits.items() if ratio <= limit), "collapses")
    reason = f"late loss {late_loss:.3f} at {multiple}x train_len, {ratio:.3f} times that of the same targets at 1x"
    return {"verdict": word, "ratio": ratio, "reason": reason}


def judge_exact_match(before: float, after: float, multiple: int) -> Record:
    if before < LEARNED:
        return undecided(f"not learned: exact match {before:.2f} at train_len")
    ratio = after / before
    limits = {"improves": 1 / KEEPS, "holds": KEEPS, "degrades": SOME}
    word = next((word for word, limit in limits.items() if ratio >= limit), "collapses")
    reason = f"exact match {after:.2f} at {multiple}x train_len against {before:.2f} at 1x"
    return {"verdict": word, "ratio": ratio, "reason": reason}
