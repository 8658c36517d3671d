"""Records of a run -> tables for a terminal or a file, and all formats of numbers.

The tables fit 80 columns; what may grow long wraps, and no number is cut short.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

Record = Mapping[str, Any]

VERDICTS = {
    "improves": ("green", "longer sequences are predicted better than those of the training length"),
    "holds": ("green", "longer sequences are predicted as well as those of the training length"),
    "degrades": ("yellow", "longer sequences are predicted worse than those of the training length"),
    "collapses": ("red", "prediction breaks down on sequences longer than those of training"),
    "undecided": ("yellow", "these measurements do not tell how longer sequences are predicted"),
}

STATUSES = {
    "completed": ("green", "Completed: every step was taken."),
    "stopped": ("yellow", "Stopped: training ended before its last step."),
    "diverged": ("red", "Diverged: a number was no longer finite, and training ended there."),
}


QUANTITIES = {
    "activation_rms": "activation RMS",
    "grad_norm": "gradient norm",
    "attention_entropy": "attention entropy",
    "max_score": "largest attention score",
    "update_ratio": "update/weight ratio",
    "state_rms": "state RMS",
    "mean_decay": "mean decay of the state",
    "router_entropy": "router entropy",
    "max_load": "largest load of an expert",
    "min_load": "smallest load of an expert",
}
"""What is measured by layer, in words."""


# Numbers.


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits: 0.0123, 1.23e+06; n/a for None."""
    return "n/a" if value is None else f"{value:.{digits}g}"


def nats(value: float | None, sign: str = "") -> str:
    """Nats per token to four places, 2.3456, or, once too large for that, 1.23e+04; `sign="+"` always writes one."""
    if value is None:
        return "n/a"
    return f"{value:{sign}.4f}" if abs(value) < 1000 or not math.isfinite(value) else f"{value:{sign}.3g}"


def percent(share: float | None) -> str:
    """A share of one: 12.5%."""
    return "n/a" if share is None else f"{100 * share:.1f}%"


def ratio(value: float | None) -> str:
    """How many times as large, to three places: 1.012."""
    return "n/a" if value is None else f"{value:.3f}"


def count(value: float | None) -> str:
    """How many: 512, 12.3k, 1.23M."""
    return _scaled(value, 1000, ("", "k", "M", "B", "T"))


def flop(value: float | None) -> str:
    """Floating-point operations: 4.5 GFLOP."""
    return _scaled(value, 1000, (" FLOP", " kFLOP", " MFLOP", " GFLOP", " TFLOP", " PFLOP", " EFLOP", " ZFLOP"))


def size(value: float | None) -> str:
    """Bytes: 12.3 KiB."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def duration(seconds: float | None) -> str:
    """1.23 s, 12.3 s, 4 min 5 s, 2 h 3 min."""
    if seconds is None or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _scaled(value: float | None, base: int, units: Sequence[str]) -> str:
    """Three digits and the unit that leaves at most three before the point."""
    if value is None or not math.isfinite(value):
        return number(value)
    # A number that would round up to the base is already one of the next unit.
    place = next((i for i in range(len(units)) if abs(value) / base**i < min(base, 1000) - 0.5), len(units) - 1)
    scaled = value / base**place
    return (f"{scaled:.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}") + units[place]


# Text that comes from files.


def in_markdown(text: object) -> str:
    """A text in one line, escaped so that Markdown takes nothing in it for markup."""
    return re.sub(r"([\\`*\[\]<>|~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", " ".join(str(text).split()))


def as_code(text: object) -> str:
    """A text between as many backquotes as it takes."""
    words = " ".join(str(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
    blank = " " if "`" in words else ""
    return f"{fence}{blank}{words}{blank}{fence}"


# Tables.


def assembled(
    rows: Iterable[tuple[str, str, str]], costs: Record | None = None, layers: Sequence[tuple[str, str]] = ()
) -> RenderableType:
    """The parts of a model, in rows of (group, option, what it is), then its costs.

    `layers` are rows of (which, how they differ), where not all layers are alike.
    """
    table = make_table(("group", "left"), ("option", "left"))
    table.add_column("what it is", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    by_layer = [make_pairs("Layers", layers)] if layers else []
    return spaced([table, *by_layer, make_pairs("Cost", _costs(costs))]) if costs else table


def result(summary: Record) -> RenderableType:
    """All results of a run, as they are printed when it ends."""
    ended = _outcome(summary) + _costs(summary) + _setting(summary)
    stability = _stability(summary.get("stability") or {})
    parts = [
        _leak(summary),
        _status(summary),
        Text(" ".join(f"{group}={option}" for group, option in (summary.get("choices") or {}).items())),
        make_pairs("Result", ended) if ended else None,
        make_pairs("Stability", stability) if stability else None,
        Text(f"Autopsy: {autopsy(findings)}.") if (findings := summary.get("autopsy")) else None,
        _lengths(summary.get("length") or [], summary.get("train_len")),
        _verdict(summary.get("length_verdict")),
    ]
    return spaced(part for part in parts if part)


def divergence(first: Record) -> str:
    """Where and when a number was first not finite, in words."""
    layer = re.fullmatch(r"layers\.(\d+)(?:\.(.+))?", str(first["where"]))
    if layer is None:
        place = "" if first["where"] == first["quantity"] else f" in {first['where']}"
    else:
        place = f" in the {layer[2] or 'output'} of layer {layer[1]} (counted from 0)"
    return f"at step {first['step']} the {first['quantity']}{place} was no longer finite"


def autopsy(findings: Record) -> str:
    """What moved first in a run that spiked or diverged, in words."""
    step, first = findings["loss_moved"], findings["first"]
    loss = "the loss had not moved" if step is None else f"the loss moved at step {step}"
    event = f"{findings['event']} at step {findings['event_step']}, {loss}"
    if first is None:
        return f"{event}; {findings['note']}"
    until, steps = "the end" if step is None else "the loss", first["steps_before"]
    lead = f"{steps} step{'s' * (steps > 1)} before {until}" if steps else f"the step of {until}"
    return f"{event}; {moved_first(first)}, {lead}"


def moved_first(move: Record) -> str:
    """The quantity, the layer and the step, in words."""
    quantity = QUANTITIES.get(move["quantity"], move["quantity"])
    return f"{quantity} of layer {move['layer']} (counted from 0) moved first, at step {move['step']}"


def _leak(summary: Record) -> Text | None:
    if not summary.get("leaking"):
        return None
    reason = "a norm of this model sees later positions, so its losses are too low to compare with any other run's."
    return Text(f"LEAKING: {reason}", style="bold red")


def _status(summary: Record) -> Text:
    color, words = STATUSES.get(summary["status"], ("yellow", str(summary["status"])))
    first = (summary.get("stability") or {}).get("first_nonfinite")
    if summary["status"] == "diverged" and first:
        words = f"Diverged: {divergence(first)}, and training ended there."
    return Text(words, style=color)


def _outcome(summary: Record) -> list[tuple[str, str]]:
    rows = [
        ("training loss", _in("nats per token", nats(summary.get("train_loss")))),
        ("validation loss", _in("nats per token", nats(summary.get("val_loss")))),
        ("speed", _in("tokens/s", count(summary.get("tokens_per_second")))),
    ]
    if tuned := summary.get("tuned"):
        edge = ", at the edge of the rates that were tried" if tuned["edge"] else ""
        tried = tuned.get("rates") or tuned["losses"]  # as older runs have it
        rows.append(
            ("learning rate", f"{number(tuned['lr'])}, best of {', '.join(number(lr) for lr, _ in tried)}{edge}")
        )
        if second := tuned.get("second"):
            edge = ", at the edge of the values that were tried" if second["edge"] else ""
            tried = ", ".join(number(value) for value, _ in second["rates"])
            rows.append((second["field"], f"{number(second['value'])}, best of {tried}{edge}"))
    wall, first = summary.get("wall_seconds"), summary.get("first_step_seconds")
    return [*rows, ("time", f"{duration(wall)}, of which the first step {duration(first)}")]


def _costs(record: Record) -> list[tuple[str, str]]:
    cached = f" in {record['dtype']}" if record.get("dtype") else ""
    return [
        ("parameters", count(record.get("n_params"))),
        *_active_parameters(record),
        *_further_heads(record),
        ("forward pass", _in("per token", flop(record.get("flops_per_token")))),
        ("forward + backward", _in("per token", flop(record.get("train_flops_per_token")))),
        *_decode_state(record, cached),
    ]


def _active_parameters(record: Record) -> Iterable[tuple[str, str]]:
    """What one token uses of the parameters, where it does not use all."""
    if active := record.get("n_active_params"):
        yield "active parameters", _in("per token, the table of embeddings among them", count(active))


def _further_heads(record: Record) -> Iterable[tuple[str, str]]:
    """The parameters of heads that predict tokens after the next."""
    if further := record.get("n_mtp_params"):
        yield "heads of further tokens", f"{count(further)} parameters more in training, none in inference"


def _decode_state(record: Record, cached: str) -> Iterable[tuple[str, str]]:
    """What decoding caches per token, or per sequence of any length; or that it cannot decode from a cache."""
    per_token, fixed = record.get("kv_bytes_per_token"), record.get("state_bytes")
    if "state_bytes" in record and fixed is None:
        yield "decode state", "none: a mixer keeps no state to continue from"
    if per_token or (fixed is None and "state_bytes" not in record):
        yield "key-value cache", _in(f"per token{cached}", size(per_token))
    if fixed:
        run = f", the run{cached}" if cached else ""  # it may be wider itself
        yield "recurrent state", f"{size(fixed)} per sequence{run}"


def _setting(summary: Record) -> list[tuple[str, str]]:
    dtype = f"{summary.get('dtype', 'n/a')}{' with products in TF32' if summary.get('tf32') else ''}"
    dtype += ", compiled" if summary.get("compiled") else ""
    rows = [
        ("trained on", _in("tokens a sequence", f"{summary.get('train_len', 'n/a')}")),
        ("ran on", f"{summary.get('device', 'n/a')}, {dtype}, seed {summary.get('seed', 'n/a')}"),
    ]
    corpus = summary.get("corpus_sha256")
    return [*rows, ("corpus (sha256)", corpus[:16])] if corpus else rows


def _stability(stability: Record) -> list[tuple[str, str]]:
    """The known quantities in words, then any other single number under its own name."""
    known: dict[str, tuple[str, Callable[[Any], str]]] = {
        "max_grad_norm": ("largest gradient norm", number),
        "median_grad_norm": ("median gradient norm", number),
        "clipped_share": ("steps that were clipped", percent),
        "loss_spike_score": ("loss spike score", number),
        "max_activation_rms": ("largest activation RMS", number),
        "max_update_ratio": ("largest update/weight ratio", number),
        "min_attention_entropy": ("smallest attention entropy", lambda value: _in("nats", number(value))),
        "max_attention_score": ("largest attention score", number),
        "first_nonfinite": ("first not finite", lambda first: divergence(first) if first else "none"),
    }
    rows = [(words, write(stability[key])) for key, (words, write) in known.items() if key in stability]
    if stability and "max_attention_score" not in stability:
        rows.append(("attention scores", "none: no mixer here has a softmax"))
    others = {key: value for key, value in stability.items() if key not in known}
    return rows + [(key.replace("_", " "), number(value)) for key, value in others.items() if _is_number(value)]


def _lengths(length: Sequence[Record], train_len: int | None) -> RenderableType | None:
    """A row for each evaluation length, and below them why some hold no numbers."""
    if not length:
        return None
    protocols = dict.fromkeys(str(record["protocol"]) for record in length if record.get("protocol"))
    title = Text(f"Held-out loss by length ({', '.join([*protocols, ''])}nats per token)", style="bold")
    table = make_table(*((words, "right") for words in ("tokens", "x train", "loss", "at the end")))
    optional: dict[str, tuple[str, Callable[[Any], str]]] = {
        "late_ratio": ("same tokens vs 1x", ratio),
        "exact_match": ("exact", percent),
        "token_accuracy": ("tokens right", percent),
        "first_token_share": ("on the first token", percent),
    }
    there = {key: column for key, column in optional.items() if any(record.get(key) is not None for record in length)}
    for heading, _ in there.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for record in length:
        table.add_row(*_length_row(record, train_len), *(write(record.get(key)) for key, (_, write) in there.items()))
    notes = dict.fromkeys(record["note"] for record in length if record.get("note"))
    return Group(title, table, *(Text(f"{_tokens_with(length, note)} tokens: {note}") for note in notes))


def _length_row(record: Record, train_len: int | None) -> list[str]:
    multiple = f"{record['eval_len'] / train_len:g}x" if train_len else "n/a"
    return [f"{record['eval_len']}", multiple, nats(record.get("loss")), nats(record.get("loss_last"))]


def _tokens_with(length: Sequence[Record], note: str) -> str:
    return ", ".join(str(record["eval_len"]) for record in length if record.get("note") == note)


def _verdict(verdict: Record | None) -> Text | None:
    if not verdict:
        return None
    color, words = VERDICTS.get(verdict["verdict"], ("yellow", "a verdict without words of its own"))
    reason = f" ({verdict['reason']})" if verdict.get("reason") else ""
    return Text.assemble((f"Length {verdict['verdict']}", f"bold {color}"), f": {words}{reason}.")


WIDEST_NAME = 48
"""Of 80 columns, so that what stands beside it has room."""


def make_pairs(title: str, rows: Sequence[tuple[str, str]]) -> Group:
    """Names on the left, values on the right; long values wrap, and names that would leave them no room."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
    longest = max((Text(name).cell_len for name, _ in rows), default=0)
    table.add_column(no_wrap=longest <= WIDEST_NAME, max_width=WIDEST_NAME)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return Group(Text(title, style="bold"), table)


class Fitted(Table):
    """A table that cuts no number: columns that may wrap shrink first; where even that is too wide, rows are stacked."""

    UNBROKEN = 18
    """In letters. A word up to this long is never broken over two lines."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width - 3 * (len(self.columns) - 1)  # between two columns stand two blanks and the border
        bounds = [self._bounds(column, console, options) for column in self.columns]
        spare = width - sum(least for least, _ in bounds)
        if spare < 0:
            yield from self._stacked(options.max_width // 2)
            return
        left = len(bounds)
        for column, (least, most) in sorted(
            zip(self.columns, bounds, strict=True), key=lambda pair: pair[1][1] - pair[1][0]
        ):
            column.width = least + min(most - least, spare // left)
            spare, left = spare - (column.width - least), left - 1
        yield from super().__rich_console__(console, options)

    def _bounds(self, column: Column, console: Console, options: ConsoleOptions) -> tuple[int, int]:
        """The smallest and the largest useful width of a column, in letters."""
        wide = options.update(max_width=10_000, no_wrap=False)
        measured = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
        most = max(one.maximum for one in measured)
        least = most if column.no_wrap else max(min(one.minimum, self.UNBROKEN) for one in measured)
        return min(most, max(least, column.min_width or 0)), most

    def _stacked(self, room: int) -> RenderResult:
        """Each row as a list of its own, a line for each column; headings are up to `room` wide."""
        headings = [str(column.header).replace("-\n", "").replace("\n", " ") for column in self.columns]
        for row in zip(*(column.cells for column in self.columns), strict=True):
            pairs = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
            pairs.add_column(overflow="fold", width=min(room, max(map(len, headings))))
            pairs.add_column(overflow="fold")
            for heading, cell in zip(headings, row, strict=True):
                pairs.add_row(Text(heading, style="bold"), cell)
            yield pairs
            yield Text()


def make_table(*columns: tuple[str, Any]) -> Fitted:
    """A table of (heading, alignment) columns that are never cut."""
    table = Fitted(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for heading, alignment in columns:
        table.add_column(heading, justify=alignment, no_wrap=True)
    return table


def spaced(parts: Iterable[RenderableType]) -> Group:
    """The parts with an empty line after each."""
    return Group(*(piece for part in parts for piece in (part, "")))


def _in(unit: str, written: str) -> str:
    """What is written, with its unit if there is a number."""
    return written if written == "n/a" else f"{written} {unit}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
