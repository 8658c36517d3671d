"""Up to which learning rate, and how deep, an arm trains: runs over train.lr, size.n_layers and train.warmup -> a map.

A cell is one learning rate at one depth and warm-up, over its seeds. Losses are validation losses, nats per token.

    diverged    a loss or gradient of one of its seeds was not finite
    failed      one of its seeds ended within 0.05 nats of the unigram plateau (`unigram_loss`), or above it
    trained     every seed left the plateau

A row is all learning rates of one arm, depth and warm-up:

    best_loss           the least mean loss of a trained cell, else of a failed one
    lr_sensitivity      mean over the learning rates of min(loss, ln vocab_size), minus best_loss; a diverged run counts
                        as ln vocab_size, the loss of a model that knows nothing. Source: arXiv:2309.14322,
                        where the cap is the loss at initialisation. It is low for a model that never trains at
                        any rate, so it is never to be shown without best_loss.
    largest_stable_lr   from the best learning rate upwards, the last before the first that is not stable. Stable is a
                        trained cell that keeps half of what the best one gained over the plateau:
                        loss <= best_loss + (plateau - best_loss) / 2. None where nothing trained.
    at_edge             whether that is the largest learning rate of the sweep, so that it is only a lower bound
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from archlab.base.errors import UserError
from archlab.base.nested import leaves, options_alone
from archlab.comparison.arms import spelt
from archlab.records.reader import Run

Record = dict[str, Any]

MAPPED = ("train.lr", "train.steps", "train.warmup", "size.n_layers", "size.vocab_size")
"""What a run has to say to have a place on the map."""

LEAST_RATES = 3
PLATEAU_MARGIN = 0.05
KEPT_GAIN = 0.5

SWEPT = ("train.lr", "size.n_layers", "train.warmup", "seed")
WITHOUT_MEANING = ("output", "probe.every", "train.log_every")
"""What two runs of one arm may differ in."""


def stability_map(runs: Sequence[Run]) -> Record:
    """{arms: [{label, cells, rows}], notes}, in the order in which the runs are given.

    A cell is {lr, n_layers, warmup, losses, seeds, loss, plateau, status}, where a diverged run's loss is None; a row
    {n_layers, warmup, lrs, best_loss, best_lr, lr_sensitivity, largest_stable_lr, at_edge}. Raises UserError where no
    arm has three learning rates.
    """
    finished = [run for run in runs if is_whole(run.summary)]
    notes = left_out(runs, finished)
    arms: dict[str, list[Run]] = {}
    for run in finished:
        arms.setdefault(repr(arm(run)), []).append(run)
    labels = labelled([arm(members[0]) for members in arms.values()])
    charted = [
        {"label": label, **chart(members, label, notes)} for label, members in zip(labels, arms.values(), strict=True)
    ]
    rows = [row for one in charted for row in one["rows"]]
    if not rows:
        rates = max((len({run.config["train"]["lr"] for run in members}) for members in arms.values()), default=0)
        raise UserError(
            f"train.lr: takes {rates} value{'s' * (rates != 1)} in these runs, and a stability map needs at least"
            f" {LEAST_RATES} with all else equal; sweep it, as in -m train.lr=1e-3,3e-3,1e-2"
        )
    if len({tuple(row["lrs"]) for row in rows}) > 1:
        notes.append("rows were swept over different learning rates, so their sensitivities do not compare")
    return {"arms": [one for one in charted if one["rows"]], "notes": notes}


def left_out(runs: Sequence[Run], finished: Sequence[Run]) -> list[str]:
    n = len(runs) - len(finished)
    return (
        [
            f"{n} run{'s' * (n > 1)} left out: without a validation loss, as where it was interrupted, or without unigram_loss"
        ]
        if n
        else []
    )


# ---------------------------------------------------------------- arms


def arm(run: Run) -> dict[str, Any]:
    """Everything that was set but for what is swept, by dotted name."""
    fields = dict(leaves(options_alone(run.config)))
    if fields.get("budget") is not None or fields.get("train.tokens") is not None:
        fields.pop("train.steps", None)  # follows from the budget and the depth
    kept = {name: value for name, value in fields.items() if name not in (*SWEPT, *WITHOUT_MEANING)}
    return {**kept, "corpus": run.summary["corpus_sha256"][:8]}


def labelled(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sets each arm apart from the others, as overrides; an option that follows from a choice is left out."""
    names = list(dict.fromkeys(name for fields in arms for name in fields))
    differing = [name for name in names if len({repr(fields.get(name)) for fields in arms}) > 1]
    chosen = [name.removeprefix("choices.") for name in differing if name.startswith("choices.")]
    named = [f"choices.{group}" for group in chosen]
    named += [name for name in differing if name.partition(".")[0] not in (*chosen, "choices")]
    return [
        " ".join(f"{name.removeprefix('choices.')}={spelt(fields.get(name))}" for name in named) or "all"
        for fields in arms
    ]


# ---------------------------------------------------------------- cells and rows


def chart(runs: Sequence[Run], label: str, notes: list[str]) -> Record:
    """One arm's cells and rows; rows of fewer than three learning rates are left out."""
    cells = [cell(place, list(members)) for place, members in groupby(sorted(runs, key=place_of), key=place_of)]
    repeated = [one for one in cells if len(set(one["seeds"])) < len(one["seeds"])]
    if repeated:
        notes.append(
            f"{label}: cells where a seed was run more than once: {len(repeated)}; all of its runs are averaged"
        )
    rows = []
    for (n_layers, warmup), members in groupby(cells, key=lambda one: (one["n_layers"], one["warmup"])):
        swept = list(members)
        if len(swept) >= LEAST_RATES:
            rows.append(
                {"n_layers": n_layers, "warmup": warmup, **measure(swept, runs[0].config["size"]["vocab_size"])}
            )
        else:
            notes.append(
                f"{label}: at n_layers={n_layers} and warmup={warmup} too few learning rates: {len(swept)}; left out"
            )
    kept = {(row["n_layers"], row["warmup"]) for row in rows}
    return {"cells": [one for one in cells if (one["n_layers"], one["warmup"]) in kept], "rows": rows}


def place_of(run: Run) -> tuple[int, int, float]:
    """Depth, warm-up steps and learning rate; a warm-up that was left open is a tenth of the steps."""
    train = run.config["train"]
    warmup = train["steps"] // 10 if train["warmup"] is None else train["warmup"]
    return run.config["size"]["n_layers"], warmup, float(train["lr"])


def cell(place: tuple[int, int, float], runs: Sequence[Run]) -> Record:
    n_layers, warmup, lr = place
    runs = sorted(runs, key=lambda run: run.seed)
    losses = [None if run.diverged else run.summary["val_loss"] for run in runs]
    plateau = runs[0].summary["unigram_loss"]
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(losses):
        status = "diverged"
    else:
        status = "failed" if max(known) >= plateau - PLATEAU_MARGIN else "trained"
    return {
        "lr": lr,
        "n_layers": n_layers,
        "warmup": warmup,
        "seeds": [run.seed for run in runs],
        "losses": losses,
        "loss": None if status == "diverged" else mean(known),
        "plateau": plateau,
        "status": status,
    }


def measure(cells: Sequence[Record], vocab_size: int) -> Record:
    """What a row says, of its cells in rising order of the learning rate."""
    ignorant = math.log(vocab_size)
    trained = [one for one in cells if one["status"] == "trained"]
    finite = [one for one in cells if one["loss"] is not None]
    best = min(trained or finite, key=lambda one: one["loss"], default=None)
    stable = stable_from(best, cells) if best and trained else None
    capped = [mean([min(ignorant, ignorant if loss is None else loss) for loss in one["losses"]]) for one in cells]
    return {
        "lrs": [one["lr"] for one in cells],
        "best_loss": best and best["loss"],
        "best_lr": best and best["lr"],
        "lr_sensitivity": mean(capped) - min(best["loss"], ignorant) if best else None,
        "largest_stable_lr": stable and stable["lr"],
        "at_edge": stable is cells[-1],
    }


def stable_from(best: Record, cells: Sequence[Record]) -> Record:
    """The last cell upwards from the best that is stable, as are all between."""
    limit = best["loss"] + (best["plateau"] - best["loss"]) * KEPT_GAIN
    last = best
    for one in cells[cells.index(best) + 1 :]:
        if one["status"] != "trained" or one["loss"] > limit:
            break
        last = one
    return last


def is_whole(summary: Mapping[str, Any]) -> bool:
    """Whether a run says how well it ended, and how well one would that knows token frequencies alone."""
    ended = summary["status"] == "diverged" or is_number(summary["val_loss"])
    return ended and is_number(summary.get("unigram_loss"))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
