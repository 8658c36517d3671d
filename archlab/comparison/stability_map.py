"""Up to which learning rate, and how deep, an arm trains: runs over train.lr, size.n_layers and train.warmup -> a map.

A cell is one learning rate at one depth and warm-up, over its seeds. Losses are validation losses, nats per token.

    diverged    a loss or gradient of one of its seeds was not finite, or its last update left a model without a finite loss
    failed      one of its seeds ended within 0.05 nats of the unigram plateau (`unigram_loss`), or above it
    trained     every seed left the plateau

A row is all learning rates of one arm, depth and warm-up:

    best_loss           the least mean loss of a trained cell, else of a failed one
    lr_sensitivity      mean over the learning rates of min(loss, ln vocab_size), minus best_loss; a diverged run counts
                        as ln vocab_size, the loss of a model that knows nothing. Source: arXiv:2309.14322, sec. 2.2,
                        where the cap is the loss at initialisation. None where nothing trained; it is low too for a model
                        that hardly trains, so it is never to be shown without best_loss.
    largest_stable_lr   from the best learning rate upwards, the last before the first that is not stable. Stable is a
                        trained cell that keeps half of what the best one gained over the plateau:
                        loss <= best_loss + (plateau - best_loss) / 2. None where nothing trained.
    stable_up_to        where, between that rate and the next, a line of the loss over log lr passes that limit; a failed or
                        diverged cell counts as the plateau
    at_edge             whether that is the largest learning rate of the sweep, so that both are only lower bounds

Verdicts: every other arm against the first one in each row, seed by seed, of the best loss over the rates and of
log10(stable_up_to), by the rule of comparisons (archlab.comparison.judge), e-BH over all of them. Where an arm is stable up to
the largest rate at a seed, its number is a lower bound, and only what holds of whatever lies beyond is said. Where the step
that it lies in ends at a rate that learned nothing, it may be anywhere in that step, and a tie is one wherever it lies. Arms of
other corpora, budgets or protocols are shown side by side, and not judged against each other (`archlab.comparison.arms.SAME`).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from archlab.base.errors import UserError
from archlab.base.metrics import Direction
from archlab.base.nested import leaves, options_alone
from archlab.base.plateau import on_plateau
from archlab.comparison.arms import NOT_THE_ARM, SAME, UNSAID, renamed, spelt
from archlab.comparison.comparison import WORDS
from archlab.comparison.failure import broke
from archlab.comparison.judge import Judged, between, judge, of_bounds
from archlab.comparison.many import survivors
from archlab.comparison.rates import at_edge, learned, stable_up_to, stable_within
from archlab.comparison.rule import ALPHA, KEPT_GAIN, LEAST_RATES, LOOKS, RATE_MARGIN
from archlab.records.reader import Run
from archlab.records.summary import KINDS

Record = dict[str, Any]

MAPPED = ("train.lr", "train.steps", "train.warmup", "size.n_layers", "size.vocab_size")
"""What a run has to say to have a place on the map."""

SWEPT = ("train.lr", "size.n_layers", "train.warmup", "seed")
WITHOUT_MEANING = (*NOT_THE_ARM, "probe.every", "train.log_every")
"""What two runs of one arm may differ in."""


def stability_map(runs: Sequence[Run]) -> Record:
    """{arms: [{label, cells, rows}], verdicts, notes}, in the order in which the runs are given.

    A cell is {lr, n_layers, warmup, losses, seeds, loss, plateau, status}, where a diverged run's loss is None; a row
    {n_layers, warmup, lrs, best_loss, best_lr, lr_sensitivity, largest_stable_lr, stable_up_to, at_edge}. Raises UserError where no
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
    of_arm = {one["label"]: members for one, members in zip(charted, arms.values(), strict=True)}
    kept = [one for one in charted if one["rows"]]
    judged = [kept[0], *(one for one in kept[1:] if comparable_runs(kept[0]["label"], one["label"], of_arm, notes))]
    return {"arms": kept, "verdicts": verdicts(judged, notes), "notes": notes}


def left_out(runs: Sequence[Run], finished: Sequence[Run]) -> list[str]:
    n = len(runs) - len(finished)
    return (
        [
            f"{n} run{'s' * (n > 1)} left out: without a validation loss, as where it was interrupted, or without unigram_loss"
        ]
        if n
        else []
    )


# ---------------------------------------------------------------- verdicts


def comparable_runs(first: str, other: str, of_arm: Mapping[str, Sequence[Run]], notes: list[str]) -> bool:
    """Whether two arms share what a comparison's runs must share; what they do not is noted."""
    by_place = [{place_of(run)[:2]: run for run in of_arm[label]} for label in (first, other)]
    for place in by_place[0].keys() & by_place[1].keys():
        a, b = (must_share(runs[place]) for runs in by_place)
        for name in a:
            if a[name] != b[name]:
                notes.append(
                    f"{other}: not judged against {first}, since they differ in {name}: {spelt(b[name])} and {spelt(a[name])}"
                )
                return False
    return True


def must_share(run: Run) -> dict[str, Any]:
    """By name, None where an older run does not say it."""
    found = {}
    for name, get in SAME.items():
        try:
            found[name] = get(run)
        except KeyError:
            found[name] = None
    return found


def verdicts(arms: Sequence[Record], notes: list[str]) -> list[Record]:
    """Every other arm against the first, in each row that both have: {quantity, n_layers, warmup, arm, baseline, verdict, ...}.

    A seed counts where it was run once at every rate of the row. An arm that learned at no rate has failed at that seed.
    """
    first, *others = arms
    found: list[tuple[Record, Judged]] = []
    for other, (at, quantity) in ((one, of) for one in others for of in comparable(first, one)):
        a, b = (by_seed(one, at, quantity) for one in (other, first))
        if a.keys() & b.keys():
            better, margin = QUANTITIES[quantity]
            judged = seen = judge(a, b, better=better, margin=margin, alpha=ALPHA)
            place = dict(zip(("n_layers", "warmup"), at, strict=True))
            if quantity == "log10_stable_lr":
                judged, why = of_rates(seen, other, first, at)
                if judged.reading != seen.reading:
                    notes.append(
                        f"{other['label']}: at n_layers={at[0]} and warmup={at[1]} the stable rates that were seen say"
                        f" {WORDS[seen.reading]}, which is not concluded: {why}"
                    )
            found.append(({"quantity": quantity, **place, "arm": other["label"], "baseline": first["label"]}, judged))
    if found and not any(judged.decided for _, judged in found):
        pairs = sorted({judged.n for _, judged in found})
        more = ",".join(map(str, range(next((look for look in LOOKS if look > pairs[-1]), 0))))
        notes.append(
            f"{pairs[0]}{f' to {pairs[-1]}' if len(pairs) > 1 else ''} seeds decide nothing between the arms"
            + (f"; run more, such as seed={more}" if more else "")
        )
    survive = survivors([judged.e for _, judged in found], ALPHA)
    return [
        {
            **place,
            "verdict": WORDS[judged.reading],
            "survives": survives if judged.decided else None,
            "effect": judged.effect,
            "interval": judged.interval and list(judged.interval),
            "e": judged.e,
            "n": judged.n,
            "failed": [judged.failures.a, judged.failures.b],
            "seeds_needed": judged.needed,
        }
        for (place, judged), survives in zip(found, survive, strict=True)
    ]


QUANTITIES: Mapping[str, tuple[Direction, float]] = {
    "best_loss": ("lower", KINDS["val_loss"].smallest_effect),
    "log10_stable_lr": ("higher", RATE_MARGIN),
}
"""What is compared, which way is better, and the smallest difference of interest."""


def comparable(first: Record, arm: Record) -> list[tuple[tuple[int, int], str]]:
    """Rows that both have, of the same learning rates, and what is compared in them."""
    rows = [{(row["n_layers"], row["warmup"]): row["lrs"] for row in one["rows"]} for one in (first, arm)]
    return [(at, quantity) for at, lrs in rows[1].items() if rows[0].get(at) == lrs for quantity in QUANTITIES]


def by_seed(arm: Record, at: tuple[int, int], quantity: str) -> dict[int, float]:
    """nan where nothing was learned at any rate."""
    cells = cells_at(arm, at)
    found = {}
    for seed, losses in losses_by_seed(cells).items():
        plateau = cells[0]["plateau"]
        if not learned(losses, plateau):
            found[seed] = math.nan
        elif quantity == "best_loss":
            found[seed] = min(losses)
        else:
            found[seed] = math.log10(stable_up_to([one["lr"] for one in cells], losses, plateau))
    return found


def of_rates(seen: Judged, other: Record, first: Record, at: tuple[int, int]) -> tuple[Judged, str]:
    """What is concluded of the stable rates of two arms, of which some are bounds, and some known to a step of the sweep; and why."""
    ends, of_first = (rates_within(one, at) for one in (other, first))
    shared = ends.keys() & of_first.keys()
    larger, smaller = (bool(stable_throughout(one, at) & shared) for one in (other, first))
    if larger or smaller:
        which = " and ".join([other["label"]] * larger + [first["label"]] * smaller)
        why = f"at some seed the largest rate swept is stable still in {which}, and so a lower bound; sweep larger ones"
    else:
        step = 10 ** max(high - low for one in (ends, of_first) for low, high in (one[seed] for seed in shared))
        why = (
            f"no more is known of them than the step of the sweep, up to a factor of {step:.3g}, at whose end nothing was learned;"
            " sweep rates between"
        )
    least, most = (
        judge(
            {seed: ends[seed][mine] for seed in shared},
            {seed: of_first[seed][its] for seed in shared},
            better=seen.better,
            margin=seen.margin,
            alpha=seen.alpha,
        )
        for mine, its in ((0, 1), (1, 0))
    )
    return between(of_bounds(seen, at_least=larger, at_most=smaller), least, most), why


def rates_within(arm: Record, at: tuple[int, int]) -> dict[int, tuple[float, float]]:
    """By seed, log10 of the two rates between which it stops being stable; nan where nothing was learned at any rate."""
    cells = cells_at(arm, at)
    swept, plateau = [one["lr"] for one in cells], cells[0]["plateau"]
    ends = {seed: stable_within(swept, losses, plateau) for seed, losses in losses_by_seed(cells).items()}
    return {seed: (math.log10(low), math.log10(high)) for seed, (low, high) in ends.items()}


def stable_throughout(arm: Record, at: tuple[int, int]) -> set[int]:
    """Seeds at which it is stable up to the largest rate swept, so that its stable rate is a lower bound."""
    cells = cells_at(arm, at)
    return {seed for seed, losses in losses_by_seed(cells).items() if at_edge(losses, cells[0]["plateau"])}


def cells_at(arm: Record, at: tuple[int, int]) -> list[Record]:
    """One row's cells, in rising order of the rate."""
    return [one for one in arm["cells"] if (one["n_layers"], one["warmup"]) == at]


def losses_by_seed(cells: Sequence[Record]) -> dict[int, list[float]]:
    """Of each seed that was run once at every rate; infinite where it diverged."""
    once = [{seed for seed in one["seeds"] if one["seeds"].count(seed) == 1} for one in cells]
    told = {
        seed: [one["losses"][one["seeds"].index(seed)] for one in cells] for seed in sorted(set.intersection(*once))
    }
    return {seed: [math.inf if loss is None else loss for loss in losses] for seed, losses in told.items()}


# ---------------------------------------------------------------- arms


def arm(run: Run) -> dict[str, Any]:
    """Everything that was set but for what is swept and what follows from it, by dotted name; null is as good as not set."""
    fields = {**UNSAID, **{renamed(name): value for name, value in leaves(options_alone(run.config))}}
    if fields.get("match") is not None:  # the width that matches goes by the depth
        fields = {
            name: value for name, value in fields.items() if name != "size.d_ff" and not name.startswith("matched.")
        }
    if fields.get("budget") is not None or fields.get("train.tokens") is not None:
        fields.pop("train.steps", None)  # follows from the budget and the depth
    apart = {
        name: value for name, value in fields.items() if name not in (*SWEPT, *WITHOUT_MEANING) and value is not None
    }
    return {**dict(sorted(apart.items())), "corpus": run.summary["corpus_sha256"][:8]}


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
    losses = [None if broke(run.summary) else run.summary["val_loss"] for run in runs]
    plateau = runs[0].summary["unigram_loss"]
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(losses):
        status = "diverged"
    else:
        status = "failed" if on_plateau(max(known), plateau) else "trained"
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
    ended = [one["loss"] if one["status"] == "trained" else math.inf for one in cells]
    return {
        "lrs": [one["lr"] for one in cells],
        "best_loss": best and best["loss"],
        "best_lr": best and best["lr"],
        "lr_sensitivity": mean(capped) - best["loss"] if best and trained else None,
        "largest_stable_lr": stable and stable["lr"],
        "stable_up_to": stable_up_to([one["lr"] for one in cells], ended, best["plateau"])
        if best and trained
        else None,
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
    ended = is_number(summary["val_loss"]) or (broke(summary) and summary["status"] != "stopped")
    return ended and is_number(summary.get("unigram_loss"))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
