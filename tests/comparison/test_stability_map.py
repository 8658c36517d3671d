"""Stability maps: every figure against one worked out by hand, and what a failed run may not pass for."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from archlab.base.errors import UserError
from archlab.cli import main as cli
from archlab.comparison.stability_map import stability_map
from archlab.records.reader import Run
from archlab.report import stability_map as report
from archlab.report.page import page
from archlab.report.page.stability import stability_section

PLATEAU = 3.0
IGNORANT = math.log(256)


def config(residual="pre", lr=1e-3, n_layers=6, warmup=0, seed=0, **more):
    residuals = {"pre": {"_target_": "PreNorm"}, "deep": {"_target_": "DeepNorm", "alpha": 2.0}}
    return {
        "choices": {"residual": residual, "norm": "rms"}, "residual": residuals[residual], "norm": {"eps": 1e-6},
        "train": {"lr": lr, "warmup": warmup, "steps": 150, "log_every": 10, "tokens": None, **more.pop("train", {})},
        "size": {"n_layers": n_layers, "vocab_size": 256}, "probe": {"every": 20}, "output": f"runs-{seed}", "budget": None,
        "seed": seed, **more,
    }  # fmt: skip


def run(loss=2.0, status="completed", corpus="c0ffee00d", **where):
    summary = {"status": status, "val_loss": loss, "unigram_loss": PLATEAU, "corpus_sha256": corpus}
    return Run(Path("run"), config(**where), summary)


def diverged(**where):
    return run(None, "diverged", **where)


def swept(losses, **where):
    """A run for each learning rate; None diverged."""
    return [diverged(lr=lr, **where) if loss is None else run(loss, lr=lr, **where) for lr, loss in losses.items()]


def only_row(runs):
    ((arm,), _, _) = stability_map(runs).values()
    (row,) = arm["rows"]
    return row, arm["cells"]


@pytest.mark.parametrize(
    "more", [{"device": "cuda"}, {"sink_token": None}, {"kernel": "auto"}, {"eval": {"part": "test"}}]
)
def test_one_arm_is_one_on_any_device_and_with_runs_that_are_older_than_an_option(more):
    """Fault found: each of these made two arms, which were then judged against each other."""
    losses = {1e-3: 2.4, 3e-3: 2.0, 1e-2: 2.3}
    (arm,) = stability_map(swept(losses, seed=0) + swept(losses, seed=1, **more))["arms"]
    assert arm["label"] == "all" and [cell["seeds"] for cell in arm["cells"]] == [[0, 1]] * 3


# ---------------------------------------------------------------- figures


def test_a_row_by_hand():
    row, cells = only_row(swept({1e-3: 2.4, 3e-3: 2.0, 1e-2: 2.3, 3e-2: 2.98, 1e-1: None}))
    assert [cell["status"] for cell in cells] == ["trained", "trained", "trained", "failed", "diverged"]
    assert (row["best_loss"], row["best_lr"]) == (2.0, 3e-3)
    assert (row["largest_stable_lr"], row["at_edge"]) == (1e-2, False)
    assert row["lr_sensitivity"] == pytest.approx((0.4 + 0 + 0.3 + 0.98 + (IGNORANT - 2)) / 5)
    assert cells[-1]["loss"] is None and cells[0]["losses"] == [2.4]


def test_sensitivity_by_the_papers_formula_where_losses_exceed_the_cap():
    losses = {1e-3: 5.0, 3e-3: 2.5, 1e-2: 9.0}
    row, _ = only_row(swept(losses))
    expected = 0.0
    for loss in losses.values():
        expected += min(loss, IGNORANT) - min(losses.values())
    assert row["lr_sensitivity"] == pytest.approx(expected / 3)


def test_a_model_that_never_trains_has_no_sensitivity_and_no_stable_rate():
    """It was 0.04, less than that of any arm that trains: the arm that beat every other learned nothing."""
    row, cells = only_row(swept({1e-3: 2.96, 3e-3: 2.99, 1e-2: 3.05}))
    assert {cell["status"] for cell in cells} == {"failed"}
    assert row["largest_stable_lr"] is None and row["at_edge"] is False
    assert row["best_loss"] == 2.96 and row["lr_sensitivity"] is row["stable_up_to"] is None


def test_a_run_that_its_last_update_broke_has_diverged():
    """It was completed and had no validation loss, and was left out as if somebody had stopped it, so that 1e-2 was no rate swept."""
    row, cells = only_row([*swept({1e-3: 2.2, 3e-3: 2.0}), run(None, "completed", lr=1e-2)])
    assert [cell["status"] for cell in cells] == ["trained", "trained", "diverged"]
    assert (row["largest_stable_lr"], row["at_edge"]) == (3e-3, False)
    assert row["lr_sensitivity"] == pytest.approx((0.2 + 0 + IGNORANT - 2) / 3)


def test_where_everything_diverged_there_is_no_best():
    row, _ = only_row(swept(dict.fromkeys((1e-3, 3e-3, 1e-2))))
    assert (row["best_loss"], row["best_lr"], row["lr_sensitivity"], row["largest_stable_lr"]) == (None,) * 4


@pytest.mark.parametrize(("loss", "status"), [(2.949, "trained"), (2.951, "failed"), (3.5, "failed")])
def test_within_a_twentieth_of_a_nat_of_the_plateau_is_failed(loss, status):
    _, cells = only_row(swept({1e-3: 2.0, 3e-3: 2.1, 1e-2: loss}))
    assert cells[-1]["status"] == status


@pytest.mark.parametrize(("at_top", "largest", "at_edge"), [(2.49, 1e-2, True), (2.51, 3e-3, False)])
def test_stable_is_what_keeps_half_of_the_gain_over_the_plateau(at_top, largest, at_edge):
    row, _ = only_row(swept({1e-3: 2.2, 3e-3: 2.0, 1e-2: at_top}))  # half of the gain of 1.0 is kept up to 2.5
    assert (row["largest_stable_lr"], row["at_edge"]) == (largest, at_edge)


def test_a_rate_that_trains_above_one_that_does_not_is_not_stable():
    row, _ = only_row(swept({1e-3: 2.0, 3e-3: 2.99, 1e-2: 2.1}))
    assert (row["largest_stable_lr"], row["at_edge"]) == (1e-3, False)


def test_a_cell_is_as_stable_as_its_worst_seed():
    first = swept({1e-3: 2.0, 3e-3: 2.2, 1e-2: 2.1}, seed=3)
    second = swept({1e-3: 2.2, 3e-3: 2.99, 1e-2: None}, seed=1)
    row, cells = only_row(first + second)
    assert [(cell["status"], cell["losses"], cell["seeds"]) for cell in cells] == [
        ("trained", [2.2, 2.0], [1, 3]), ("failed", [2.99, 2.2], [1, 3]), ("diverged", [None, 2.1], [1, 3])
    ]  # fmt: skip
    assert row["best_loss"] == pytest.approx(2.1) and row["largest_stable_lr"] == 1e-3
    means = (2.1, (2.99 + 2.2) / 2, (IGNORANT + 2.1) / 2)
    assert row["lr_sensitivity"] == pytest.approx(sum(means) / 3 - 2.1)


@pytest.mark.parametrize("top", [2.45, 2.6, 2.8, 2.94])
def test_stable_up_to_is_where_the_line_loses_half_of_the_gain(top):
    row, _ = only_row(swept({1e-3: 2.2, 3e-3: 2.0, 1e-2: top}))
    crossing = 3e-3 * (1e-2 / 3e-3) ** (0.5 / (top - 2.0))
    assert row["stable_up_to"] == pytest.approx(min(crossing, 1e-2))
    assert row["at_edge"] == (top < 2.5)


# ---------------------------------------------------------------- verdicts


def two_arms(n_seeds, scatter=(0.01, -0.012, 0.004, 0.0, -0.007, 0.013, -0.006, 0.002)):
    """The other arm is better by 0.1, and stable for about a factor of 2.6 longer."""
    runs = []
    for seed in range(n_seeds):
        w = scatter[seed]
        runs += swept({1e-3: 2.3 + w, 3e-3: 2.0 + w, 1e-2: 2.4 - w, 3e-2: None}, residual="pre", seed=seed)
        runs += swept({1e-3: 2.2 - w, 3e-3: 1.9 - w, 1e-2: 2.0 + w, 3e-2: 2.2 + w}, residual="deep", seed=seed)
    return runs


def test_arms_of_a_map_are_judged_by_the_rule_of_comparisons():
    found = {one["quantity"]: one for one in stability_map(two_arms(8))["verdicts"]}
    assert {name: (one["arm"], one["baseline"], one["verdict"], one["survives"], one["n"]) for name, one in found.items()} == {
        "best_loss": ("residual=deep", "residual=pre", "better", True, 8),
        "log10_stable_lr": ("residual=deep", "residual=pre", "better", True, 8),
    }  # fmt: skip
    assert found["best_loss"]["effect"] == pytest.approx(-0.1, abs=0.002)
    assert found["log10_stable_lr"]["effect"] > math.log10(2)


@pytest.mark.parametrize(
    ("pre", "deep", "verdict"),
    [
        (
            {1e-3: 2.3, 3e-3: 2.0, 1e-2: 2.1},
            {1e-3: 2.3, 3e-3: 2.0, 1e-2: 2.2},
            "open",
        ),  # both to the last rate: it was a tie
        ({1e-3: 2.0, 3e-3: 2.1, 1e-2: 2.6}, {1e-3: 2.3, 3e-3: 2.0, 1e-2: 2.2}, "not worse"),  # it was a tie too
        ({1e-3: 2.0, 3e-3: None, 1e-2: None}, {1e-3: 2.3, 3e-3: 2.0, 1e-2: 2.2}, "better"),  # whatever lies beyond
        ({1e-3: 2.3, 3e-3: 2.0, 1e-2: 2.2}, {1e-3: 2.0, 3e-3: None, 1e-2: None}, "worse"),
    ],
)
def test_a_rate_that_is_only_a_lower_bound_decides_only_what_holds_beyond_it(pre, deep, verdict):
    runs = []
    for seed in range(8):
        for residual, losses in (("pre", pre), ("deep", deep)):
            runs += swept(
                {lr: loss and loss + seed / 1000 for lr, loss in losses.items()}, residual=residual, seed=seed
            )
    chart = stability_map(runs)
    rate = chart["verdicts"][1]
    assert (rate["quantity"], rate["verdict"], rate["interval"]) == ("log10_stable_lr", verdict, None)
    told = "residual=deep: at n_layers=6 and warmup=0 the stable rates that were seen say tie, which is not concluded: "
    assert any(note.startswith(told) for note in chart["notes"]) is (verdict in ("open", "not worse"))
    assert (rate["e"] >= 20) is (verdict in ("better", "worse"))


TENFOLD = (1e-3, 1e-2, 1e-1)
FINE = tuple(1e-2 * 1.3**i for i in range(-2, 11))


@pytest.mark.parametrize(
    ("rates", "breaks_at", "verdict", "told"),
    [
        (TENFOLD, {"pre": 0.0125, "deep": 0.08}, "open", True),  # it was a tie, of rates that lie a factor of 6.4 apart
        (TENFOLD, {"pre": 0.02, "deep": 0.02}, "open", True),  # which nothing tells from the one above
        (FINE, {"pre": 0.0125, "deep": 0.08}, "better", False),
        (FINE, {"pre": 0.02, "deep": 0.02}, "tie", False),
        ((1e-3, 1e-2, 1e-1, 1.0), {"pre": 0.02, "deep": 0.2}, "better", False),
    ],
)
def test_a_step_at_whose_end_nothing_was_learned_is_too_coarse_for_a_tie(rates, breaks_at, verdict, told):
    """A run learns below the rate that breaks it and ends above the plateau beyond, so that its loss does not say where that is."""
    runs = []
    for seed in range(8):
        for residual, breaks in breaks_at.items():
            losses = {rate: (2.0 if rate < breaks else 3.1) + (rate * 37 + seed) % 1 / 1000 for rate in rates}
            runs += swept(losses, residual=residual, seed=seed)
    chart = stability_map(runs)
    rate = chart["verdicts"][1]
    assert (rate["quantity"], rate["verdict"]) == ("log10_stable_lr", verdict)
    assert any("up to a factor of 10, at whose end nothing was learned" in note for note in chart["notes"]) is told
    assert (rate["seeds_needed"] is None) and (rate["e"] >= 20) is (verdict != "open")


def test_a_step_between_two_rates_that_learned_is_read_off_its_line():
    runs = []
    for seed in range(8):
        for residual in ("pre", "deep"):
            losses = {1e-3: 2.2, 1e-2: 2.0, 1e-1: 2.8 + seed / 1000}
            runs += swept(losses, residual=residual, seed=seed)
    assert stability_map(runs)["verdicts"][1]["verdict"] == "tie"


@pytest.mark.parametrize(("n_seeds", "advice"), [(2, range(6)), (6, range(8)), (7, range(8)), (24, None)])
def test_the_seeds_that_are_advised_are_more_than_there_are(n_seeds, advice):
    """At six seeds that decided nothing it advised these six."""
    runs = []
    for seed in range(n_seeds):
        sign = (-1) ** seed
        for residual, less in (("pre", 0.0), ("deep", 0.3 * sign)):
            runs += swept({1e-3: 2.2, 1e-2: 2.0 - less, 1e-1: 3.1}, residual=residual, seed=seed)
    (note,) = (note for note in stability_map(runs)["notes"] if "decide nothing" in note)
    wanted = "" if advice is None else f"; run more, such as seed={','.join(map(str, advice))}"
    assert note == f"{n_seeds} seeds decide nothing between the arms{wanted}"


def test_two_seeds_of_a_map_decide_nothing_and_say_so():
    chart = stability_map(two_arms(2))
    assert [one["verdict"] for one in chart["verdicts"]] == ["open", "open"]
    assert "2 seeds decide nothing between the arms; run more, such as seed=0,1,2,3,4,5" in chart["notes"]
    assert "Against residual=pre, seed by seed" in printed(chart)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"corpus": "decade000"}, "corpus_sha256: decade000 and c0ffee00d"),
        ({"train": {"steps": 600, "batch_size": 4, "train_len": 8}}, "tokens (train.steps x batch_size x train_len): 19200 and 4800"),
    ],
)  # fmt: skip
def test_arms_of_other_corpora_or_budgets_are_shown_and_not_judged(other, told):
    """They got a verdict, better by a nat, where `compare` refuses."""
    runs = []
    for seed in range(8):
        runs += swept({1e-3: 2.3, 3e-3: 2.0, 1e-2: None}, seed=seed, train={"batch_size": 4, "train_len": 8})
        more = {"train": {"batch_size": 4, "train_len": 8}} | other
        runs += swept({1e-3: 1.3, 3e-3: 1.0, 1e-2: None}, residual="deep", seed=seed, **more)
    chart = stability_map(runs)
    assert len(chart["arms"]) == 2 and chart["verdicts"] == []
    (note,) = chart["notes"]
    assert "not judged against residual=pre" in note and note.endswith(f"since they differ in {told}")


def test_a_width_that_matches_makes_no_arm_of_each_depth():
    """What matches is counted anew at each depth, and each depth had an arm of its own that nothing was judged against."""
    runs = []
    for n_layers, width in ((2, 176), (4, 168)):
        matched = {"to": "params", "reference": 1000 * n_layers, "d_ff_before": 176, "d_ff": width}
        size = {"n_layers": n_layers, "vocab_size": 256, "d_ff": width}
        for residual in ("pre", "deep"):
            runs += swept(RATES, residual=residual, match="params", matched=matched, size=size)
    chart = stability_map(runs)
    assert [arm["label"] for arm in chart["arms"]] == ["residual=pre", "residual=deep"]
    assert sorted({one["n_layers"] for one in chart["verdicts"]}) == [2, 4]


def test_an_arm_that_trains_at_no_rate_loses_whatever_its_sensitivity():
    runs = two_arms(6)
    for seed in range(6):
        runs += swept(dict.fromkeys((1e-3, 3e-3, 1e-2, 3e-2), 2.98), residual="deep", n_layers=8, seed=seed)
        runs += swept({1e-3: 2.3, 3e-3: 2.0, 1e-2: 2.4, 3e-2: None}, residual="pre", n_layers=8, seed=seed)
    dead = [one for one in stability_map(runs)["verdicts"] if one["n_layers"] == 8]
    assert [(one["verdict"], one["failed"]) for one in dead] == [("worse", [6, 0])] * 2


# ---------------------------------------------------------------- arms, rows, what is left out


RATES = {1e-3: 2.0, 3e-3: 2.1, 1e-2: 2.2}


def test_arms_are_told_apart_by_what_differs_but_for_what_is_swept():
    runs = swept(RATES, residual="pre") + swept(RATES, residual="deep") + swept(RATES, residual="deep", n_layers=12)
    chart = stability_map(runs)
    assert [arm["label"] for arm in chart["arms"]] == ["residual=pre", "residual=deep"]
    assert [[row["n_layers"] for row in arm["rows"]] for arm in chart["arms"]] == [[6], [6, 12]]


def test_a_field_or_a_corpus_that_differs_makes_an_arm():
    runs = swept(RATES) + swept(RATES, norm={"eps": 1e-3}) + swept(RATES, corpus="decade000")
    assert [arm["label"] for arm in stability_map(runs)["arms"]] == [
        "norm.eps=1e-06 corpus=c0ffee00", "norm.eps=0.001 corpus=c0ffee00", "norm.eps=1e-06 corpus=decade00"
    ]  # fmt: skip


def test_labels_are_spelt_as_they_are_typed():
    runs = swept(RATES, embed={"norm": True, "width": None}) + swept(RATES, embed={"norm": False, "width": 8})
    assert [arm["label"] for arm in stability_map(runs)["arms"]] == [
        "embed.norm=true embed.width=null", "embed.norm=false embed.width=8"
    ]  # fmt: skip


def test_one_arm_alone_is_called_all():
    assert stability_map(swept(RATES))["arms"][0]["label"] == "all"


def test_warm_ups_are_rows_of_their_own_and_one_left_open_is_a_tenth():
    chart = stability_map(swept(RATES, warmup=0) + swept(RATES, warmup=None))
    assert [(row["warmup"], row["n_layers"]) for row in chart["arms"][0]["rows"]] == [(0, 6), (15, 6)]


def test_steps_that_follow_from_a_budget_make_no_arm():
    shallow = swept(RATES, budget="chinchilla", n_layers=2)
    deep = [run(loss, lr=lr, budget="chinchilla", n_layers=4, train={"steps": 300}) for lr, loss in RATES.items()]
    assert len(stability_map(shallow + deep)["arms"]) == 1


def test_two_rates_are_refused_in_a_line():
    with pytest.raises(UserError, match=r"train.lr: takes 2 values .* at least 3 .*-m train.lr=1e-3,3e-3,1e-2$"):
        stability_map([run(lr=1e-3), run(lr=3e-3)])
    with pytest.raises(UserError, match="takes 1 value in"):
        stability_map([run()])


def test_what_cannot_be_compared_is_said():
    runs = swept(RATES) + swept({1e-3: 2.0}, n_layers=12) + swept({1e-3: 2, 1e-2: 2, 1e-1: 2}, n_layers=24)
    runs += [run(None, "stopped"), run(2.0, lr=1e-3)]
    chart = stability_map(runs)
    notes = " | ".join(chart["notes"])
    assert "1 run left out: without a validation loss" in notes
    assert "n_layers=12 and warmup=0 too few learning rates: 1" in notes
    assert "cells where a seed was run more than once: 1" in notes
    assert "swept over different learning rates, so their sensitivities do not compare" in notes
    assert {cell["n_layers"] for cell in chart["arms"][0]["cells"]} == {6, 24}


# ---------------------------------------------------------------- table, file, picture


def mixed():
    failing = {1e-3: 2.98, 3e-3: 3.02, 1e-2: 3.01}
    breaking = {1e-3: 2.0, 3e-3: 2.1, 1e-2: None}
    return stability_map(swept(RATES) + swept(failing, residual="deep") + swept(breaking, residual="deep", n_layers=12))


def printed(chart):
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table(chart))
    return console.file.getvalue()


def test_the_table_shows_sensitivity_beside_the_best_loss_and_a_bound_as_a_bound():
    text = printed(mixed()).partition("Against ")[0]
    rows = {tuple(line.split()[:3]): line.split()[3:] for line in text.splitlines() if line.startswith("residual=")}
    assert rows["residual=pre", "0", "6"] == ["2.0000", "0.1000", "0.001", ">=", "0.01"]
    assert rows["residual=deep", "0", "6"] == ["2.9800", "n/a", "plateau", "none"]
    # From 2.1 at 3e-3 to the plateau at 1e-2 the line passes 2.5 after four of nine parts of the way, on a scale of log lr.
    assert rows["residual=deep", "0", "12"][-1] == f"{3e-3 * (10 / 3) ** (4 / 9):.3g}"
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


def test_the_csv_holds_every_cell(tmp_path):
    report.write_csv(mixed(), tmp_path / "map.csv")
    with (tmp_path / "map.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    last = rows[-1]
    assert (last["arm"], last["n_layers"], last["lr"], last["status"]) == ("residual=deep", "12", "0.01", "diverged")
    assert (last["loss"], last["losses"], last["seeds"]) == ("", "diverged", "0")
    assert float(rows[0]["loss"]) == 2.0


def test_the_picture_has_a_panel_an_arm_and_marks_failed_and_diverged_cells():
    figure = report.figure(mixed())
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["residual=pre", "residual=deep"]
    deep = panels[1]
    assert [bool(cell.get_hatch()) for cell in deep.patches] == [True] * 3 + [False] * 3
    assert [text.get_text() for text in deep.texts] == ["2.98", "3.02", "3.01", "2.00", "2.10", "x"]
    assert [tick.get_text() for tick in deep.get_yticklabels()] == ["6", "12"]
    assert [list(line.get_xdata()) for line in deep.lines] == [[1.5, 1.5]]  # after the second of three learning rates
    assert panels[0].lines == [] or not list(panels[0].lines)  # stable to the edge, so no step is drawn
    faces = [cell.get_facecolor() for cell in deep.patches]
    assert faces[1] == faces[2]  # both above the plateau: clipped to the same colour


def test_the_picture_says_each_rate_as_it_was_swept():
    """Rounded to a digit, 1.2e-2 and 9.6e-2 stood there as 1e-2 and 1e-1, and 1.5e-3 and 2.5e-3 both as 2e-3."""
    rates = (1.5e-3, 2.5e-3, 1.2e-2, 9.6e-2, 10.0)
    (panel,) = (
        axes for axes in report.figure(stability_map(swept(dict.fromkeys(rates, 2.0)))).axes if axes.get_title()
    )
    assert [float(tick.get_text()) for tick in panel.get_xticklabels()] == list(rates)


def test_a_page_has_a_maps_notes_and_which_verdicts_stand_alone_only():
    """It showed "better" of a verdict that does not survive among the others, and none of the notes."""
    chart = stability_map(two_arms(8))
    chart["verdicts"][0] |= {"survives": False}
    text = page([stability_section(chart | {"notes": ["rows were swept over different learning rates"]})], "map")
    assert ">better (alone)</span>" in text and ">better</span>" in text
    assert "Note: rows were swept over different learning rates." in text


def test_a_pages_colours_end_at_the_plateau_as_the_pictures_do():
    """A cell that ended at 60 nats, which is failed as one at 3.0 is, gave all the others one colour."""
    chart = stability_map(swept({1e-3: 2.2, 3e-3: 2.0, 1e-2: 60.0}))
    (heat_map,) = (view.traces[0] for view in stability_section(chart).parts[0].views)
    assert (heat_map["zmin"], heat_map["zmax"]) == (2.0, PLATEAU)
    assert heat_map["text"] == [["2.2000", "2.0000", "\u00d7 60.0000"]]


# ---------------------------------------------------------------- the verb


def write(folder, runs):
    for number, one in enumerate(runs):
        directory = folder / f"run-{number}"
        directory.mkdir(parents=True)
        (directory / "config.yaml").write_text(yaml.safe_dump(one.config))
        (directory / "summary.json").write_text(json.dumps(one.summary))


def test_the_verb_maps_runs_that_are_there(tmp_path, capsys):
    write(tmp_path / "runs", swept(RATES))
    cli.main(["stability_map", f"{tmp_path}/runs"])
    out = capsys.readouterr().out
    folder = Path(out.strip().splitlines()[-1])
    assert folder.parent == tmp_path / "runs" / "stability_map"
    assert {file.name for file in folder.iterdir()} == {"stability_map.json", "stability_map.csv", "stability_map.png"}
    assert json.loads((folder / "stability_map.json").read_text())["arms"][0]["rows"][0]["best_loss"] == 2.0
    assert "Stability map" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "stability_map: takes directories of runs, as in archlab stability_map 'experiments/runs/*'"),
        (["/nowhere/*"], "/nowhere/*: no such run"),
        (["{runs}/run-0", "{runs}/run-1"], "train.lr: takes 2 values in these runs"),
        (["{runs}/run-0/config.yaml"], "neither a run nor a folder of runs"),
    ],
)
def test_what_the_verb_cannot_map_is_a_line(words, says, tmp_path, capsys):
    write(tmp_path, swept(RATES))
    with pytest.raises(SystemExit) as leaving:
        cli.main(["stability_map", *(word.format(runs=tmp_path) for word in words)])
    complaint = capsys.readouterr().err
    assert leaving.value.code == 2 and complaint.count("\n") == 1 and says in complaint
    assert not (tmp_path / "stability_map").exists()
