"""Length extrapolation: the same held-out tokens in ever longer windows, up to 16 times what the model was trained at.

Protocols:
    disjoint   windows follow each other; every target is scored once, the early ones of a window with little context
    sliding    windows overlap and advance by a stride; a target is scored in the first window it falls in, so that all
               but the first window's have at least eval_len - stride tokens of context
"""

from collections.abc import Iterable

from archlab.data.batch import Source, TooLong
from archlab.evaluate.settings import EvalSettings
from archlab.evaluate.validation import HeldOut, held_out
from archlab.model import Decoder, PositionLimit
from archlab.train.precision import Machine

Record = dict[str, object]

IMPROVES, HOLDS, DEGRADES = 0.99, 1.05, 1.5
"""Upper limits of the ratio of the late loss at the longest length to that at train_len; beyond the last it collapses."""

LEARNED, KEEPS, SOME = 0.1, 0.95, 0.5
"""For tasks, of exact match: the least at train_len that counts as learned, and lower limits of the ratio."""


def by_length(
    decoder: Decoder, source: Source, machine: Machine, settings: EvalSettings, train_len: int, multiples: Iterable[int]
) -> tuple[list[Record], list[Record]]:
    """One record a length, and one curve of loss by position a length; a length without a meaning says so in a note."""
    lengths: list[Record] = []
    curves: list[Record] = []
    for multiple in multiples:
        eval_len = multiple * train_len
        try:
            seen = held_out(decoder, source, machine, eval_len, settings.tokens, stride(settings, train_len))
        except PositionLimit as refusal:
            lengths.append(undefined(eval_len, settings, f"not defined beyond {refusal.limit}"))
        except TooLong as refusal:
            lengths.append(undefined(eval_len, settings, f"the data has nothing longer than {refusal.longest}"))
        else:
            lengths.append(measured(eval_len, settings, source, seen, train_len))
            curves.append(curve(eval_len, seen))
    return lengths, curves


def stride(settings: EvalSettings, train_len: int) -> int | None:
    if settings.protocol == "disjoint":
        return None
    return settings.stride or train_len // 2


def measured(eval_len: int, settings: EvalSettings, source: Source, seen: HeldOut, train_len: int) -> Record:
    """`loss` over all scored targets, `loss_last` over the last train_len / 2 positions; nats per token."""
    record: Record = {
        "eval_len": eval_len,
        "loss": seen.loss(),
        "loss_last": seen.loss(last=train_len // 2),
        "protocol": settings.protocol,
        "n_sequences": seen.n_sequences,
    }
    if source.exact:
        record |= {"exact_match": seen.exact_match, "token_accuracy": seen.token_accuracy}
    return record


def undefined(eval_len: int, settings: EvalSettings, note: str) -> Record:
    return {"eval_len": eval_len, "loss": None, "loss_last": None, "protocol": settings.protocol, "note": note}


def curve(eval_len: int, seen: HeldOut) -> Record:
    """Mean loss at each position that has a scored target."""
    there = seen.scored.nonzero().flatten()
    return {"eval_len": eval_len, "position": there.tolist(), "loss": (seen.nats[there] / seen.scored[there]).tolist()}


def verdict(lengths: list[Record], train_len: int, exact: bool) -> Record:
    """improves, holds, degrades or collapses at the longest length there is a figure for, with the ratio that decided it.

    For text the ratio is of `loss_last`, for tasks of exact match, each against the figure at train_len. `undecided`
    where there is nothing to compare.
    """
    defined = [record for record in lengths if record["loss"] is not None]
    at_train_len = next((record for record in defined if record["eval_len"] == train_len), None)
    longest = max(defined, key=lambda record: record["eval_len"], default=None)
    if at_train_len is None or longest is at_train_len:
        return {"verdict": "undecided", "ratio": None, "reason": "no figure both at train_len and beyond it"}
    by = judge_exact_match if exact else judge_loss
    return by(at_train_len, longest, longest["eval_len"] // train_len)


def judge_loss(at_train_len: Record, longest: Record, multiple: int) -> Record:
    before, after = at_train_len["loss_last"], longest["loss_last"]
    if not before or after is None:
        return {"verdict": "undecided", "ratio": None, "reason": "no late position is scored"}
    ratio = after / before
    word = (
        "improves"
        if ratio <= IMPROVES
        else "holds"
        if ratio <= HOLDS
        else "degrades"
        if ratio <= DEGRADES
        else "collapses"
    )
    reason = f"late loss {after:.3f} at {multiple}x train_len against {before:.3f} at 1x"
    return {"verdict": word, "ratio": ratio, "reason": reason}


def judge_exact_match(at_train_len: Record, longest: Record, multiple: int) -> Record:
    before, after = at_train_len["exact_match"], longest["exact_match"]
    if before < LEARNED:
        return {"verdict": "undecided", "ratio": None, "reason": f"not learned: exact match {before:.2f} at train_len"}
    ratio = after / before
    word = (
        "improves" if ratio > 1 / KEEPS else "holds" if ratio >= KEEPS else "degrades" if ratio >= SOME else "collapses"
    )
    return {
        "verdict": word,
        "ratio": ratio,
        "reason": f"exact match {after:.2f} at {multiple}x train_len against {before:.2f} at 1x",
    }
