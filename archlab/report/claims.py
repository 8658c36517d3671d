"""Decided claims -> a table, a plot of every value that was compared, and a page in words."""

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.text import Text

from archlab.base.files import whole
from archlab.base.words import key_of, value_of
from archlab.report.plots import in_plot
from archlab.report.tables import Record, as_code, duration, in_markdown, make_table, number

COLORS = {
    "SUPPORTED": "green", "REFUTED": "red", "TIE": "cyan", "MIXED": "magenta", "INCONCLUSIVE": "yellow", "NOT RUN": "dim",
    "IDENTITY HOLDS": "green", "IDENTITY FAILS": "red",
}  # fmt: skip


DECIDED = ("SUPPORTED", "REFUTED", "TIE", "MIXED")
"""Verdicts that stand or fall beside those of other claims."""


def claims_table(records: Iterable[Record]) -> RenderableType:
    """A row for each claim: its verdict, and the effect and interval of the part that decided it."""
    table = make_table(("verdict", "left"))
    table.add_column("claim", overflow="fold", ratio=1)
    table.add_column("effect", justify="right", no_wrap=True)
    table.add_column("seeds", justify="right", no_wrap=True)
    for record in records:
        part = deciding(record)
        table.add_row(
            Text.assemble((record["verdict"], COLORS[record["verdict"]]), "\n", (survives(record), "dim")),
            Text.assemble((record["name"], "bold"), "\n", record["sentence"]),
            f"{number(part['effect'])}\n{interval(part)}" if part else "n/a",
            str(record["seeds"]),
        )
    return table


def survives(record: Record) -> str:
    """Whether a verdict survives beside those of all other claims at one error rate."""
    return {True: "survives", False: "does not survive", None: ""}[
        record.get("survives") if record["verdict"] in DECIDED else None
    ]


def at_rung(record: Record) -> str:
    """Of a ladder, which rung's numbers are shown."""
    return f" at {in_markdown(record['label'])}" if record.get("rungs") else ""


def claims_markdown(records: Iterable[Record], folder: str = "") -> str:
    """The same rows for a page; each claim's name links to the claim's own page, under `folder`."""
    lines = ["| claim | verdict | effect (interval) | seeds | beside all others |", "|---|---|---|---|---|"]
    for record in records:
        part = deciding(record)
        effect = f"{number(part['effect'])} ({interval(part)}){at_rung(record)}" if part else "not measured"
        name = f"[{in_markdown(record['name'])}]({folder}{quote(record['name'])}/README.md)"
        lines.append(
            f"| {name}: {in_markdown(record['sentence'])} | {record['verdict']} | {effect} | {record['seeds']} | {survives(record)} |"
        )
    return "\n".join(lines) + "\n"


def index_page(records: Sequence[Record], lines: Sequence[Record], known: Iterable[str]) -> str:
    """All claims; `lines` are those of verdicts.jsonl, the earlier ones included, and `known` the names of all claims there are."""
    at = lambda record: f", ladder {record['ladder']}" if record.get("ladder") else ""  # noqa: E731
    made = sorted({f"{record['date']}, budget {record['budget']}{at(record)}" for record in records})
    decided = [record for record in records if record["verdict"] in DECIDED]
    many = [f"{n} {word}" for word in COLORS if (n := sum(record["verdict"] == word for record in records))]
    standing = sum(bool(record.get("survives")) for record in decided)
    head = [
        "# Claims", "", f"Decided by `python -m archlab claims`: {'; '.join(made)}.", "",
        (f"{', '.join(many)}. Of {len(decided)} decided claims {standing} survive beside all others at one error rate (online"
        " e-BH at 5%). A verdict holds in its own regime: the sizes, steps and data on the claim's page."), "",
    ]  # fmt: skip
    waiting = sorted(set(known) - {record["name"] for record in records})
    rest = [f"Not run yet: {', '.join(waiting)}.", ""] if waiting else []
    return "\n".join(
        [*head, claims_markdown(records), *rest, *bought(records), *failed_here(records), *earlier(records, lines)]
    )


def bought(records: Iterable[Record]) -> list[str]:
    """What each choice changes the held-out loss by, the largest gain first: of claims that hold two arms against each other."""
    rows = []
    for record in records:
        part = next(iter(record["parts"]), None)
        if (
            part
            and part["metric"] == "val_loss"
            and part["form"] == "difference"
            and not part["over"]
            and part["effect"] is not None
        ):
            rows.append((part["effect"], record, part))
    if not rows:
        return []
    lines = [
        "## What choices bought",
        "",
        (
            "Held-out loss of the first arm less that of the second, nats per token, each at its own rate. Where the two do not cost"
            " the same, it says how much of the second's steps, tokens, parameters or FLOPs per token the first has: such a difference is not bought"
            " by the choice alone."
        ),
        "",
    ]
    lines += [
        "| first | second | difference (interval) | unequal cost | verdict | claim |",
        "|---|---|---|---|---|---|",
    ]
    for effect, record, part in sorted(rows, key=lambda row: row[0]):
        first, second = map(in_markdown, part["arms"])
        lines.append(
            f"| {first} | {second} | {effect:+.3f} ({interval(part)}) | {unequal_cost(record, part)} |"
            f" {told_verdict(record)} | {link(record)}{at_rung(record)} |"
        )
    return [*lines, ""]


ALIKE = 0.005
"""Costs that agree within half a percent count as equal, as they do where arms are matched."""

COSTS = {
    "steps": "steps",
    "tokens": "tokens",
    "n_params": "parameters",
    "flops_per_token": "FLOPs per token",
}


def unequal_cost(record: Record, part: Record) -> str:
    """0.25 x steps, 1.03 x parameters: what the first arm of a part has of the second's; nothing where they are equal."""
    first, second = (cost_of(record, label) for label in part["arms"])
    times = {name: first[name] / second[name] for name in COSTS if first.get(name) and second.get(name)}
    if "steps" in times and times.get("tokens") == times["steps"]:
        del times["tokens"]  # which says it twice
    return ", ".join(f"{x:.3g} x {COSTS[name]}" for name, x in times.items() if abs(x - 1) > ALIKE)


def cost_of(record: Record, label: str) -> Record:
    """What a run of an arm takes; of an older record, the steps and tokens that the arm's overrides come to."""
    if known := (record.get("costs") or {}).get(label):
        return known
    words = record["arms"].get(label, {"train": ()})["train"]
    given = {key_of(word): int(value) for word in words if (value := value_of(word)).isdigit()}
    return {name: math.prod(map(given.get, of)) for name, of in GIVEN.items() if given.keys() >= set(of)}


GIVEN = {"steps": ("train.steps",), "tokens": ("train.steps", "train.batch_size", "train.train_len")}


def failed_here(records: Iterable[Record]) -> list[str]:
    """Claims of the literature that do not hold at these sizes."""
    there = [record for record in records if record["verdict"] in ("REFUTED", "TIE", "MIXED")]
    lines = ["## Where the literature failed here", ""]
    lines += [
        f"- {link(record)}, {told_verdict(record)}: {in_markdown(record['sentence'])} Said in {in_markdown(record['source'])}."
        for record in there
    ]
    return [*lines, ""] if there else []


def told_verdict(record: Record) -> str:
    """REFUTED, survives; or, of a tie, that nothing shows that its runs would have told."""
    without = f"{record['verdict']}{' without a control' * uncontrolled_tie(record)}"
    return ", ".join(filter(None, (without, survives(record))))


def earlier(records: Iterable[Record], lines: Iterable[Record]) -> list[str]:
    """Verdicts that were given up, with what was found since, or that the claim says otherwise since."""
    now = {record["name"]: record for record in records}
    rows = []
    for line in lines:
        record = now.get(line["claim"])
        if record and record["kind"] != "identity" and line["verdict"] != record["verdict"]:
            said = f"{line['date']}, {line['seeds']} seeds"
            rows.append(
                f"| {link(record)} | {line['verdict']} ({said}) | {record['verdict']} | {since(line, record)} |"
            )
    if not rows:
        return []
    return [
        "## Earlier verdicts that were given up",
        "",
        "| claim | earlier | now | what came since |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def since(line: Record, record: Record) -> str:
    """What was found since an earlier verdict; unless it is of other words than the claim has now."""
    if line.get("says") and record.get("says") and line["says"] != record["says"]:
        return f"the claim itself: it was changed, and registered anew on {record['registered']}"
    return in_markdown(record["reason"])


def link(record: Record) -> str:
    return f"[{in_markdown(record['name'])}]({quote(record['name'])}/README.md)"


def deciding(record: Record) -> Record | None:
    """The part that decided a claim; None where nothing was measured."""
    parts: Sequence[Record] = record["parts"]
    if (place := record.get("decided_by")) is not None:
        return [*parts, *record["controls"]][place]
    # Older records, and those of ladders, do not say.
    return next((part for part in parts if part["verdict"] == record["verdict"]), parts[0] if parts else None)


def interval(part: Record) -> str:
    if part["interval"] is None:
        return "no interval"
    low, high = part["interval"]
    return "exact" if low == high else f"{number(low)} to {number(high)}"


def draw_claim(record: Record, path: Path) -> Path | None:
    """Saves the `figure_of` a claim; None where there is nothing to draw."""
    figure = figure_of(record)
    if figure is None:
        return None
    with whole(path) as part:
        figure.savefig(part, dpi=110)
    return path


def figure_of(record: Record) -> Figure | None:
    """One panel per part: a dot for each arm and seed, the dots of a seed joined, and the value they are compared with; and
    one of the losses at each rate that was tried, where rates were."""
    everything = [*record["parts"], *record.get("controls", [])]
    parts = [part for part in everything if any(value is not None for of in part["values"].values() for value in of)]
    rates = record.get("rates") or {}
    rungs = record.get("rungs") or []
    scales = [scale for scale in SCALES if len({rung[scale] for rung in rungs}) > 1]
    n = len(parts) + bool(rates) + len(scales)
    if not n:
        return None
    figure = Figure(figsize=(4.2 * n, 3.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, n))
    for axes, scale in zip(panels, scales, strict=False):
        draw_ladder(axes, rungs, scale)
    for axes, part in zip(panels[len(scales) :], parts, strict=False):
        draw_part(axes, part)
    if rates:
        draw_rates(panels[-1], rates)
    return figure


TITLE = 54
"""Characters of a line of a panel's title: matplotlib itself wraps at the figure's edge, so that two titles would overlap."""


def entitle(axes: Axes, *sentences: str) -> None:
    lines = (line for sentence in sentences for line in textwrap.wrap(sentence, TITLE))
    axes.set_title(in_plot("\n".join(lines)), fontsize=8.5)


SCALES = {"n_params": ("parameters", "steps"), "tokens": ("tokens", "width")}
"""What the rungs of a ladder are drawn against: its name, and what the rungs of one line share."""


def draw_ladder(axes: Axes, rungs: Sequence[Record], scale: str) -> None:
    """The effect of the first part at each rung, with its interval; a line through the rungs that are alike in all else."""
    name, shared = SCALES[scale]
    for times, corpus in dict.fromkeys((rung[shared], rung.get("corpus")) for rung in rungs):
        line = [
            rung
            for rung in rungs
            if (rung[shared], rung.get("corpus")) == (times, corpus)
            and rung["parts"][0]["effect"] is not None
            and rung[scale]
        ]
        effects = [rung["parts"][0]["effect"] for rung in line]
        bounds = [
            rung["parts"][0]["interval"] or (math.nan, math.nan) for rung, effect in zip(line, effects, strict=True)
        ]
        below, above = ([abs(effect - ends[i]) for effect, ends in zip(effects, bounds, strict=True)] for i in (0, 1))
        axes.errorbar(
            [rung[scale] for rung in line], effects, [below, above], marker="o", markersize=4, linewidth=1, capsize=3,
            label=f"{shared} x{times}" + (f", {corpus}" if corpus else ""),
        )  # fmt: skip
    first = rungs[0]["parts"][0]
    axes.axhline(first["than"], color="0.4", linestyle="--", linewidth=0.9)
    axes.set_xscale("log", base=2)
    axes.set_xlabel(name)
    axes.set_ylabel(in_plot(quantity(first)), wrap=True, fontsize=8)
    entitle(axes, f"{first['text']}, by {name}")
    axes.legend(fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def draw_rates(axes: Axes, rates: Record) -> None:
    """Loss against learning rate, of each arm; a line through the means, and a dot for the one that was taken.

    Where there was a second axis, an arm has a line for each of its values, the one that was taken drawn solid. Losses more
    than two nats above that of the arm that ends worst at its best rate are cut off, or none of the others could be told apart.
    """
    every: list[float] = []
    bests: list[float] = []
    for arm, (label, search) in enumerate(rates.items()):
        for name, taken, trials in lines_of_search(label, search):
            rows = [(rate, [loss for loss in losses if loss is not None]) for rate, losses in trials]
            there = [(rate, losses) for rate, losses in rows if losses]
            means = [sum(losses) / len(losses) for _, losses in there]
            xs, style, color = [rate for rate, _ in there], "-" if taken else ":", f"C{arm}"
            axes.plot(xs, means, style, linewidth=1, color=color, label=in_plot(name))
            for rate, losses in there:
                axes.scatter([rate] * len(losses), losses, s=12, color=color)
            best = [mean for rate, mean in zip(xs, means, strict=True) if taken and rate == search["lr"]]
            axes.scatter([search["lr"]] * len(best), best, s=60, facecolors="none", edgecolors=color)
            every += [loss for _, losses in there for loss in losses]
            bests += best
    highest = max(bests, default=math.inf) + 2
    cut = max(every, default=0.0) > highest
    if cut:
        axes.set_ylim(0.95 * min(every), highest)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss on the tuning part (nats per token)" + "\nhigher ones are cut off" * cut, fontsize=8)
    entitle(axes, "the rate of each arm, found on seeds of its own")
    axes.legend(fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def lines_of_search(label: str, search: Record) -> list[tuple[str, bool, list]]:
    """Of an arm, or of each value of its second axis: a name, whether that was taken, and the trials by rate."""
    second = search.get("second")
    if second is None:
        return [(label, True, search["rates"])]
    field = second["field"]
    return [(f"{label}, {field}={value:g}", value == second["value"], trials) for value, trials in second["rates"]]


def draw_part(axes: Axes, part: Record) -> None:
    arms = list(part["values"])
    rows = list(zip(*(part["values"][arm] for arm in arms), strict=True))
    for row in rows:
        there = [(x, value) for x, value in enumerate(row) if value is not None]
        axes.plot(*zip(*there, strict=True), color="0.75", linewidth=0.8, zorder=1) if there else None
    for x, arm in enumerate(arms):
        values = [value for value in part["values"][arm] if value is not None]
        axes.scatter([x] * len(values), values, s=22, zorder=2)
        missing = Counter(nothing(part, arm, seed) for seed, value in enumerate(part["values"][arm]) if value is None)
        if missing:
            told = "\n".join(
                f"{n} {what}" if what == "diverged" else f"{n} without a number" for what, n in missing.items()
            )
            axes.annotate(told, (x, 0.98), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8)
    if part["form"] == "value":
        axes.axhline(part["than"], color="0.4", linestyle="--", linewidth=0.9)
    axes.set_xticks(range(len(arms)), [in_plot(arm) for arm in arms])
    axes.set_xlim(-0.6, len(arms) - 0.4)
    axes.set_ylabel(in_plot(measured(part)))
    entitle(axes, part["text"], part["verdict"])
    axes.spines[["top", "right"]].set_visible(False)


def measured(part: Record) -> str:
    over = ", ".join(f"{name} {xs[0]} to {xs[-1]}" for name, xs in part["over"].items())
    return f"{part['reduce'].replace('_', ' ')} of {part['metric']} over {over}" if over else part["metric"]


def readme(record: Record, picture: Path | None) -> str:
    """The claim's page, in Markdown."""
    lines = [
        f"# {in_markdown(record['sentence'])}",
        "",
        f"**{record['verdict']}**: {in_markdown(record['reason'])}.",
        "",
        f"Claimed in: {in_markdown(record['source'])}",
        "",
    ]
    if record["parts"]:
        trials = f" and {record['trials']} trials of rates" if record.get("trials") else ""
        lines += [
            (
                f"Regime: {record['regime']}; {record['seeds']} seeds, {record.get('runs', 0)} runs{trials}, "
                f"{duration(record['seconds'])} of one process."
            ),
            "",
        ]
    lines += standing(record)
    lines += ladder_lines(record)
    if picture:
        lines += [f"![every value that was compared]({picture.name})", ""]
    for part in record["parts"]:
        lines += part_lines(part)
    for control in record.get("controls", []):
        lines += part_lines(control, "Control: ")
    for rung in record.get("rungs") or [record]:
        lines += rate_lines(rung, f" at {rung['label']}" if record.get("rungs") else "")
    if record["arms"]:
        lines += [
            "## Arms",
            "",
            *(
                f"- **{in_markdown(label)}**: {as_code(' '.join(arm['train']))}{then(arm)}"
                for label, arm in record["arms"].items()
            ),
            "",
        ]
    return "\n".join([*lines, *made(record)]) + "\n"


def standing(record: Record) -> list[str]:
    """When it was registered, how strong the evidence is, whether it survives, and what would change the verdict."""
    lines = registered(record)
    if record.get("e") is not None and record["verdict"] in DECIDED:
        lines.append(f"E-value of the evidence: {number(record['e'])} (20 decides one claim by itself, at 5%).")
    if told := survives(record):
        lines.append(
            f"Beside all claims registered by {record['as_of']} the verdict {told} at one error rate (online e-BH at 5%); the"
            " [page of all claims](../README.md) says whether it still does."
        )
    if record.get("tune") not in (None, "lr"):
        lines.append(f"Arms are not tuned: {in_markdown(record['tune'])}.")
    if uncontrolled_tie(record):
        lines.append(
            "No control of this claim finds a difference: the tie says that the difference is smaller than the margin here, and"
            " not that these runs would show one where there is one."
        )
    if record.get("would_change"):
        lines.append(f"What would change the verdict: {in_markdown(record['would_change'])}.")
        if record.get("survives") is False and record["verdict"] in DECIDED:
            lines.append(more_evidence(record))
    return [" ".join(lines), ""] if lines else []


def more_evidence(record: Record) -> str:
    """What it takes for a decided claim to survive, and whether it can be had."""
    e, most = math.ceil(record["needed"]), record["most_seeds"] if record["kind"] == "trained" else 0
    how = (
        f"`evidence={e}` lets it go on for that, up to {most} seeds"
        if record["seeds"] < most
        else "all its seeds are used"
    )
    return f"With an e-value of {e} it would survive, the others as they are; {how}."


def registered(record: Record) -> list[str]:
    """When a claim was registered as it stands, and what was there by then (`archlab.claim.ledger.history`)."""
    known = record.get("history") or {}
    if not known.get("registered"):
        return []
    if known["anew"]:
        there = (
            f", after it had been decided on {known['decided']} in other words"
            if known["decided"]
            else ", in other words than before"
        )
        return [f"Registered anew on {known['registered']}{there}."]
    if known["decided"]:
        return [f"Registered on {known['registered']}; first decided on {known['decided']}."]
    if known["made"]:
        return [f"Registered on {known['registered']}, when {known['made']} of its runs and measurements were there."]
    return [f"Registered on {known['registered']}, before its first run."]


def uncontrolled_tie(record: Record) -> bool:
    """Whether a claim of a side ended in a tie, and nothing was planted in its runs that they were seen to find."""
    found = (one["expect"] != "equal" and one["verdict"] == "SUPPORTED" for one in record.get("controls") or [])
    return record["verdict"] == "TIE" and not any(found)


def ladder_lines(record: Record) -> list[str]:
    """A row for each rung of a ladder: its size, what the first part came to, and its verdict."""
    rungs = record.get("rungs") or []
    if not rungs:
        return []
    rows = []
    for rung in rungs:
        first = rung["parts"][0]
        effect = "n/a" if first["effect"] is None else f"{number(first['effect'])} ({interval(first)})"
        cells = (
            rung["label"],
            number(rung["n_params"]),
            number(rung["tokens"]),
            effect,
            number(rung["e"]),
            rung["seeds"],
        )
        rows.append(f"| {' | '.join(map(str, cells))} | {rung['verdict']} |")
    return [
        "## Ladder",
        "",
        in_markdown(
            f"{quantity(rungs[0]['parts'][0])}, at each rung; its interval holds at any number of seeds. What follows the table is"
            f" of {record['label']}."
        ),
        "",
        "| rung | parameters | tokens | effect (interval) | e | seeds | verdict |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def rate_lines(record: Record, where: str = "") -> list[str]:
    """The loss of each trial of a rate."""
    rates = record.get("rates") or {}
    if not rates:
        return []
    rows = [(search["lr"], *line) for label, search in rates.items() for line in lines_of_search(label, search)]
    tried = sorted({rate for *_, trials in rows for rate, _ in trials})  # arms may start apart, at rates of their own
    lines = [
        f"## Rates{where}",
        "",
        "Loss on the tuning part, of each trial.",
        "",
        f"| arm | {' | '.join(f'{rate:g}' for rate in tried)} | taken |",
        "|---" * (len(tried) + 2) + "|",
    ]
    for lr, name, taken, trials in rows:
        found = dict(trials)
        cells = [
            ", ".join("diverged" if loss is None else f"{loss:.4g}" for loss in found.get(rate, ())) for rate in tried
        ]
        lines.append(f"| {in_markdown(name)} | {' | '.join(cells)} | {format(lr, 'g') if taken else ''} |")
    return [*lines, "", *fewer_trials(rates)]


def fewer_trials(rates: Record) -> list[str]:
    """What fewer of these cells would have come to, by arm."""
    known = {label: best for label, search in rates.items() if (best := search.get("expected_best"))}
    if not known:
        return []
    told = "; ".join(
        f"{in_markdown(label)} {', '.join(f'{loss:.4g} of {k}' for k, loss in best)}" for label, best in known.items()
    )
    return [f"Expected lowest loss of so many of these cells, drawn at random (arXiv:1909.03004): {told}.", ""]


def part_lines(part: Record, before: str = "") -> list[str]:
    header = [
        f"## {before}{in_markdown(part['text'])}: {part['verdict']}",
        "",
        in_markdown(f"{quantity(part)}; {part['told']}."),
        "",
    ]
    rows = [f"| {in_markdown(label)} | {', '.join(seen(part, label))} |" for label in part["values"]]
    return [*header, f"| arm | {in_markdown(measured(part))}, by seed |", "|---|---|", *rows, ""]


def seen(part: Record, label: str) -> list[str]:
    """An arm's numbers by seed; a run that never left the plateau has one, and failed nevertheless."""
    failed = part.get("failed_seeds", {}).get(label, ())
    return [
        nothing(part, label, seed) if value is None else f"{value:.5g}" + " (failed)" * (seed in failed)
        for seed, value in enumerate(part["values"][label])
    ]


def nothing(part: Record, label: str, seed: int) -> str:
    """What is said where there is no number: that the run diverged, or that nothing comes of these runs."""
    runs = not part["reduce"] and seed in part.get("failed_seeds", {label: (seed,)}).get(label, ())
    return "diverged" if runs else "no such number"


def quantity(part: Record) -> str:
    first, *rest = part["arms"]
    name = measured(part)
    match part["form"]:
        case "difference":
            return f"{name} of {first} less that of {rest[0]}"
        case "ratio":
            return f"{name} of {first} over that of {rest[0]}"
        case "between":
            return f"{name} between {first} and {rest[0]}"
        case _:
            return f"{name} of {first}"


def then(arm: Record) -> str:
    return f", its weights then evaluated under {as_code(' '.join(arm['then']))}" if arm["then"] else ""


def made(record: Record) -> list[str]:
    commits = ", ".join(record.get("commits") or [])
    made_at = f" Runs were made at commit {commits}." if commits else ""
    return [
        "## Again",
        "",
        "```bash",
        record["command"],
        "```",
        "",
        f"Written by that command on {record['date']}, torch {record['versions']['torch']}.{made_at}",
    ]
