"""Timings as tables and pictures: one architecture, two, beside other libraries, by size, and a GPU's checks."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from archlab.base.files import write_text
from archlab.report.tables import count, duration, flop, make_pairs, make_table, percent, size, spaced

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

MODES = {
    "forward": "forward",
    "forward_backward": "forward + backward",
    "step": "training step",
    "decode": "decoding, batch 1",
}
KINDS = {"gradients": "gradient norms, clipping", "rest": "rest (embeddings, residual additions, batch)"}
FAR = 0.1
"""Of a step's time: hooks that cost more leave it unsaid what the shares are worth."""


# ---------------------------------------------------------------- tables


def speed(record: Record) -> RenderableType:
    table = make_table(("", "left"), ("tokens/s", "right"), ("quartiles", "right"), ("of matrix peak", "right"))
    for mode, found in record["modes"].items():
        table.add_row(MODES[mode], count(found["tokens_per_second"]), between(found), share(found["of_peak"]))
    kinds = record["kinds"]
    by_kind = make_table(("where a step's time goes", "left"), ("share", "right"), ("time", "right"), ("", "left"))
    for kind, seconds in sorted(kinds["seconds"].items(), key=lambda found: -found[1]):
        part = kinds["shares"][kind]
        by_kind.add_row(KINDS.get(kind, kind), percent(part), milliseconds(seconds), "█" * round(30 * part))
    off = kinds["times_plain"] - 1
    note = f"The parts add up to {milliseconds(kinds['step'])}. The hooks that measure them change a step's time by {off:+.0%}."
    wary = [Text(note, style="yellow" if abs(off) > FAR else "")]
    if compiled := record.get("compiled"):
        where = f"{compiled['made']} graphs made, {compiled['on_disk']} found on disk"
        first = f"Compiled: the first step took {duration(compiled['seconds'])} ({where})"
        wary.append(
            Text(f"{first}; an eager step takes {compiled['times_eager']:.2f} times as long as a compiled one.")
        )
    if record["not_decoded"]:
        wary.append(Text(f"Not decoded: {record['not_decoded']}"))
    return spaced([heading(record), table, by_kind, Group(*wary), setting(record)])


def versus(record: Record) -> RenderableType:
    first, second = record["names"]
    table = make_table(("tokens/s", "left"), ("first", "right"), ("second", "right"), ("ratio", "right"), ("95%", "right"), ("the first is", "left"))  # fmt: skip
    for mode, found in record["modes"].items():
        rates = (count(arm["tokens_per_second"]) for arm in found["arms"])
        table.add_row(MODES[mode], *rates, f"{found['ratio']:.3f}", interval(found), verdict(found))
    arms = make_table(("arm", "left"), ("parameters", "right"), ("FLOPs per token", "right"), ("peak memory", "right"))
    for name, arm in zip(record["names"], record["arms"], strict=True):
        arms.add_row(name, count(arm["n_params"]), flop(arm["flops_per_token"]), size(arm["memory"]["bytes"]))
    title = Text(f"{first}  beside  {second}", style="bold")
    return spaced([title, table, arms, machine({**record["arms"][0], **record})])


def peers(record: Record) -> RenderableType:
    table = make_table(("training step", "left"), ("tokens/s", "right"), ("ratio", "right"), ("95%", "right"), ("archlab is", "left"))  # fmt: skip
    for name, found in record["peers"].items():
        ratio = found.get("archlab")
        compared = [f"{ratio['ratio']:.3f}", interval(ratio), verdict(ratio)] if ratio else ["", "", ""]
        table.add_row(f"{name} {found['version']}", count(found["tokens_per_second"]), *compared)
    notes = [Text(f"{name} did not run: {why}", style="yellow") for name, why in record["failed"].items()]
    if record["not_installed"]:
        notes.append(Text(f"Not installed: {', '.join(record['not_installed'])}"))
    return spaced([heading(record), table, *notes, machine(record)])


def scaling(record: Record) -> RenderableType:
    parts: list[RenderableType] = [heading(record)]
    for name, found in record["swept"].items():
        table = make_table(
            (name, "right"), ("a training step", "right"), ("quartiles apart", "right"), ("peak memory", "right")
        )
        for row in zip(found["values"], found["seconds"], found["spread"], found["bytes"], strict=True):
            table.add_row(str(row[0]), milliseconds(row[1]), percent(row[2] / row[1]), size(row[3]))
        table.add_section()
        table.add_row(f"~ {name}^", power(found["time"]), "", power(found["memory"]))
        parts.append(table)
        if "alone" in found:
            parts.append(Text(of_packs(found)))
    if why := record.get("not_packed"):
        parts.append(Text(f"K, runs packed as one, was not measured: {why}", style="yellow"))
    return spaced([*parts, machine(record)])


def of_packs(found: Record) -> str:
    """What the exponents of packs are to be held to, and the largest one beside its runs one after the other."""
    times, most = found["times_alone"], found["values"][-1]
    return (
        f"K runs packed as one: runs one after the other have exponent 1, a pack that takes no longer than one run has 0. A run"
        f" by itself takes {milliseconds(found['alone'])} a step; at K={most} a pack is {times['ratio']:.2f} times as fast as its runs"
        f" one after the other (quartiles {times['low']:.2f} to {times['high']:.2f})."
    )


def gpu(record: Record) -> RenderableType:
    table = make_table(("check", "left"), ("", "left"), ("figure", "left"), ("reach", "left"), ("time", "right"))
    for column in table.columns[2:4]:
        column.no_wrap, column.overflow = False, "fold"
    colors = {"pass": "green", "fail": "red", "not run": "red", "measured": ""}
    for check in record["checks"]:
        mark = Text(check["verdict"], style=colors[check["verdict"]])
        table.add_row(check["name"], mark, check["figure"], check["reach"], duration(check["seconds"]))
    failed = [check["name"] for check in record["checks"] if check["verdict"] in ("fail", "not run")]
    verdict = f"{len(failed)} of {len(record['checks'])} failed: {', '.join(failed)}" if failed else "No check failed."
    return spaced([table, Text(verdict, style="red" if failed else "green"), machine(record)])


def heading(record: Record) -> Text:
    choices = " ".join(f"{group}={option}" for group, option in record["choices"].items())
    return Text(choices, style="bold")


def between(found: Record) -> str:
    return f"{count(found['low'])} to {count(found['high'])}"


def interval(found: Record) -> str:
    return f"{found['low']:.3f} to {found['high']:.3f}"


def verdict(found: Record) -> str:
    """Which way, and by how much; a ratio below 1 says how many times as slow."""
    if found["verdict"] == "faster":
        return f"faster by {found['ratio']:.2f}x"
    return f"slower by {1 / found['ratio']:.2f}x" if found["verdict"] == "slower" else "within noise"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def exponent(found: Record | None) -> str:
    """Without its error; of one value alone there is none."""
    return "n/a" if found is None else f"{found['exponent']:.2f}"


def power(found: Record | None) -> str:
    if found is None:
        return "n/a"
    return exponent(found) + (f" ± {found['error']:.2f}" if found["error"] is not None else "")


def setting(record: Record) -> RenderableType:
    bytes_ = record["memory"]["bytes"]
    rows = [
        ("parameters", count(record["n_params"])),
        ("forward pass", f"{flop(record['flops_per_token'])} per token, of all pairs of query and key"),
        ("matrix peak", f"{flop(record['peak_flops'])} per second, of one square product"),
        (
            "peak memory",
            f"{size(bytes_)} in a training step ({record['memory']['how']})" if bytes_ else record["memory"]["how"],
        ),
    ]
    return Group(make_pairs("Costs", rows), machine(record))


def machine(record: Record) -> RenderableType:
    about = record["machine"]
    rows = [
        (
            "processor",
            f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, {about['instructions']}",
        ),
        ("device", " ".join(str(about[name]) for name in ("device", "gpu") if name in about)),
        ("torch", about["torch"]),
    ]
    if "dtype" in record:
        sizes = [f"{record[name]} {words}" for name, words in (("batch_size", "sequences"), ("seq_len", "tokens each")) if name in record]  # fmt: skip
        rows.append(("measured in", f"{record['dtype']}, {' of '.join(sizes)}"))
    if "rounds" in record:
        rows.append(("rounds", str(record["rounds"])))
    if git := record.get("git"):
        rows.append(("commit", git["commit"][:12] + (", changed since" if git["changed"] else "")))
    return make_pairs("Measured on", rows)


# ---------------------------------------------------------------- rows


def speed_rows(record: Record) -> list[Record]:
    modes: list[Record] = [{"what": mode, **without(found, "seconds")} for mode, found in record["modes"].items()]
    kinds = record["kinds"]
    return modes + [
        {"what": f"time: {kind}", "seconds_per_step": seconds, "share": kinds["shares"][kind]}
        for kind, seconds in kinds["seconds"].items()
    ]


def versus_rows(record: Record) -> list[Record]:
    rows: list[Record] = []
    for mode, found in record["modes"].items():
        rates = [arm["tokens_per_second"] for arm in found["arms"]]
        rows.append({"what": mode, "first": rates[0], "second": rates[1], **without(found, "arms")})
    return rows


def peers_rows(record: Record) -> list[Record]:
    return [
        {
            "what": name,
            **without(found, "seconds", "archlab", "of_peak"),
            **{f"archlab_{key}": value for key, value in found.get("archlab", {}).items()},
        }
        for name, found in record["peers"].items()
    ]


def scaling_rows(record: Record) -> list[Record]:
    columns = ("values", "seconds", "spread", "bytes")
    return [
        {"what": name, "value": value, "seconds": seconds, "spread": spread, "bytes": bytes_}
        for name, found in record["swept"].items()
        for value, seconds, spread, bytes_ in zip(*(found[column] for column in columns), strict=True)
    ]


def gpu_rows(record: Record) -> list[Record]:
    return [without(check, "data") for check in record["checks"]]


def without(found: Record, *names: str) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in names}


# ---------------------------------------------------------------- pictures


def figure(record: Record) -> "Figure":
    """A picture of what the tables say."""
    import matplotlib
    from matplotlib.figure import Figure

    from archlab.report.plots import STYLE

    suite = SUITES[record["suite"]]
    panels = len(record["swept"]) if record["suite"] == "scaling" else 1
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(max(9, 4.5 * panels), 4.2), layout="constrained")
        suite.draw(drawn, record)
        drawn.suptitle(suite.title)
    return drawn


def draw_speed(drawn: "Figure", record: Record) -> None:
    from archlab.report.plots import BLUE

    kinds = sorted(record["kinds"]["shares"].items(), key=lambda found: found[1])
    axes = drawn.subplots()
    bars = axes.barh([KINDS.get(kind, kind) for kind, _ in kinds], [100 * part for _, part in kinds], color=BLUE)
    axes.bar_label(bars, fmt="%.1f%%", padding=3)
    axes.set(xlabel="share of a training step's time (%)", xlim=(0, 115 * max(part for _, part in kinds)))
    axes.grid(axis="y", visible=False)


def draw_versus(drawn: "Figure", record: Record) -> None:
    rows = {MODES[mode]: found for mode, found in record["modes"].items()}
    draw_ratios(drawn.subplots(), rows, f"{record['names'][0]}, times as fast as {record['names'][1]}")


def draw_peers(drawn: "Figure", record: Record) -> None:
    rows = {name: found["archlab"] for name, found in record["peers"].items() if "archlab" in found}
    draw_ratios(drawn.subplots(), rows, "archlab's training step, times as fast")


def draw_ratios(axes: "Axes", rows: Mapping[str, Record], label: str) -> None:
    """Each ratio with its interval, beside 1."""
    from archlab.report.plots import BLUE, GREY, in_plot

    for place, found in enumerate(rows.values()):
        errors = [[found["ratio"] - found["low"]], [found["high"] - found["ratio"]]]
        axes.errorbar(found["ratio"], place, xerr=errors, fmt="o", color=BLUE, capsize=4)
    axes.axvline(1, color=GREY, linestyle="--")
    axes.set_yticks(range(len(rows)), [in_plot(name) for name in rows])
    axes.set(xlabel=in_plot(label), ylim=(len(rows) - 0.5, -0.5))


def draw_scaling(drawn: "Figure", record: Record) -> None:
    from archlab.report.plots import BLUE, VERMILLION

    panels = drawn.subplots(1, len(record["swept"]), squeeze=False)[0]
    for axes, (name, found) in zip(panels, record["swept"].items(), strict=True):
        base = found["seconds"][0]
        axes.loglog(found["values"], [s / base for s in found["seconds"]], "o-", color=BLUE, label=f"time ~ {name}^{exponent(found['time'])}")  # fmt: skip
        if found["memory"] is not None:
            label = f"memory ~ {name}^{exponent(found['memory'])}"
            axes.loglog(found["values"], [b / found["bytes"][0] for b in found["bytes"]], "s-", color=VERMILLION, label=label)  # fmt: skip
        axes.set(xlabel=name, ylabel="times that of the smallest")
        axes.set_xticks(found["values"], [str(value) for value in found["values"]])
        axes.minorticks_off()
        axes.legend()


def draw_gpu(drawn: "Figure", record: Record) -> None:
    from archlab.report.plots import BLUE, GREEN, VERMILLION

    colors = {"pass": GREEN, "measured": BLUE, "fail": VERMILLION, "not run": VERMILLION}
    checks = record["checks"][::-1]
    axes = drawn.subplots()
    bars = axes.barh(
        [check["name"] for check in checks], [check["seconds"] for check in checks],
        color=[colors[check["verdict"]] for check in checks],
    )  # fmt: skip
    axes.bar_label(bars, [check["verdict"] for check in checks], padding=3)
    axes.set(xlabel="seconds that the check took")
    axes.grid(axis="y", visible=False)


# ---------------------------------------------------------------- by suite


class SuiteReport(NamedTuple):
    """How one suite's record is shown."""

    title: str
    table: Callable[[Record], RenderableType]
    rows: Callable[[Record], list[Record]]
    draw: Callable[["Figure", Record], None]


SUITES = {
    "speed": SuiteReport("Where a training step's time goes", speed, speed_rows, draw_speed),
    "versus": SuiteReport("Two architectures in turns, 95% intervals", versus, versus_rows, draw_versus),
    "peers": SuiteReport("Beside other libraries, 95% intervals", peers, peers_rows, draw_peers),
    "scaling": SuiteReport("A training step by size", scaling, scaling_rows, draw_scaling),
    "gpu": SuiteReport("Checks of the device", gpu, gpu_rows, draw_gpu),
}


def tables(record: Record) -> RenderableType:
    """The record as a person reads it."""
    return SUITES[record["suite"]].table(record)


def rows(record: Record) -> "pd.DataFrame":
    """A row for each thing that was measured, numbers unrounded."""
    import pandas as pd

    return pd.DataFrame(SUITES[record["suite"]].rows(record))


def write_all(record: Record, written: str, folder: Path) -> None:
    """bench.json, the whole record; bench.csv, its rows; bench.txt, what was printed; bench.png, the picture."""
    write_text(folder / "bench.json", json.dumps(record, indent=2) + "\n")
    write_text(folder / "bench.csv", rows(record).to_csv(index=False))
    write_text(folder / "bench.txt", written + "\n")
    figure(record).savefig(folder / "bench.png")
