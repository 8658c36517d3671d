"""What pages say of decided claims: when they were registered, what survives, what costs as much, and where there is no number."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from test_claims import SMALL, around, decided, part, whole, written
from test_ladder import made_up, wiggle  # noqa: F401 (a fixture)

from archlab.claim import ladder, ledger, session
from archlab.claim.jobs import RunJob
from archlab.claim.record import keep_index, part_record, seconds_of
from archlab.report.claims import bought, draw_part, earlier, failed_here, figure_of, part_lines, standing

TODAY = "2026-01-05"


class Day:
    """In place of datetime.date."""

    now = TODAY

    @classmethod
    def today(cls) -> str:
        return cls.now


@pytest.fixture
def day(monkeypatch):
    """Says which day it is to who registers and who decides."""
    monkeypatch.setattr("archlab.claim.ledger.date", Day)
    monkeypatch.setattr("archlab.claim.record.date", Day)
    monkeypatch.setattr(Day, "now", TODAY)
    return lambda now: monkeypatch.setattr(Day, "now", now)


def decide_mine(folder: Path, **changes) -> str:
    """The claim's page."""
    session.decide_claims(["mine"], "quick", folder / "runs", folder / "out", 1, folder, **changes)
    return (folder / "out" / "mine" / "README.md").read_text()


# --- when it was registered -----------------------------------------------------------------------


def test_a_claim_in_other_words_is_not_registered_before_its_first_run(tmp_path, day, made_up):  # noqa: F811
    """Fault found: the page said the first date, and that no run was there, of words that were written after the verdict."""
    made_up.of = lambda cfg: 2.0 + wiggle(cfg) + 0.5 * (cfg.choices.norm == "layer")
    mine = {"common": SMALL, "quick": {"seeds": 2}}
    written(tmp_path, **mine)
    assert "Registered on 2026-01-05, before its first run." in decide_mine(tmp_path)
    day("2026-01-07")
    assert "Registered on 2026-01-05, before its first run." in decide_mine(tmp_path), "decided once more"
    written(tmp_path, **mine, sentence="A is higher than B.", parts=[part(expect="above")])
    page = decide_mine(tmp_path, anew=True)
    assert "Registered anew on 2026-01-07, after it had been decided on 2026-01-05 in other words." in page
    assert "before its first run" not in page
    assert json.loads((tmp_path / "out" / "mine" / "result.json").read_text())["registered"] == "2026-01-07"


def test_a_registration_counts_the_runs_that_were_there(tmp_path, day, made_up):  # noqa: F811
    """A ledger in another folder knows nothing of them."""
    made_up.of = lambda cfg: 2.0 + wiggle(cfg)
    written(tmp_path, common=SMALL, quick={"seeds": 2})
    decide_mine(tmp_path)
    session.decide_claims(["mine"], "quick", tmp_path / "runs", tmp_path / "elsewhere", 1, tmp_path)
    page = (tmp_path / "elsewhere" / "mine" / "README.md").read_text()
    assert "Registered on 2026-01-05, when 4 of its runs and measurements were there." in page


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        ([], "Registered on 2026-01-02, before its first run."),
        ([{"date": "2026-01-02"}], "Registered on 2026-01-02, before its first run."),
        ([{"date": "2026-01-03", "ladder": "2x1"}], "Registered on 2026-01-02, before its first run."),
        ([{"date": "2026-01-01", "says": None}, {"date": "2026-01-02"}], "Registered on 2026-01-02; first decided on 2026-01-01."),
        ([{"date": "2026-01-02", "ladder": "2x1"}], "Registered on 2026-01-02; first decided on 2026-01-02."),
    ],
)  # fmt: skip
def test_only_where_no_verdict_is_older_was_a_claim_registered_before_its_first_run(tmp_path, verdicts, told):
    ledger.registrations(tmp_path).add({"claim": "mine", "says": "x", "date": "2026-01-02"})
    ledger.verdicts(tmp_path).add(*({"claim": "mine", "says": "x", "e": 1.0} | line for line in verdicts))
    record = {"name": "mine", "says": "x", "verdict": "INCONCLUSIVE"}
    assert standing(record | {"history": ledger.history(tmp_path, record)}) == [told, ""]


def test_a_verdict_on_other_words_was_given_up_for_the_words():
    record = {
        "name": "mine", "kind": "trained", "verdict": "SUPPORTED", "says": "new", "registered": "2026-01-07", "reason": "it is lower",
    }  # fmt: skip
    line = {"claim": "mine", "verdict": "REFUTED", "date": "2026-01-01", "seeds": 6}
    (of_other_words,) = [row for row in earlier([record], [line | {"says": "old"}]) if "REFUTED" in row]
    assert of_other_words.endswith(
        "| SUPPORTED | the claim itself: it was changed, and registered anew on 2026-01-07 |"
    )
    (of_these,) = [row for row in earlier([record], [line | {"says": "new"}]) if "REFUTED" in row]
    assert of_these.endswith("| SUPPORTED | it is lower |")


# --- what survives --------------------------------------------------------------------------------


@pytest.mark.parametrize("survives", [True, False])
def test_a_page_says_whether_its_verdict_survives_as_of_a_day(survives):
    record = {
        "name": "mine", "verdict": "REFUTED", "e": 25.0, "would_change": "other sizes", "survives": survives, "as_of": "2026-01-09",
        "kind": "trained", "needed": 60.2, "seeds": 8, "most_seeds": 24,
    }  # fmt: skip
    told, _ = standing(record)
    says = "survives" if survives else "does not survive"
    assert (
        f"Beside all claims registered by 2026-01-09 the verdict {says} at one error rate (online e-BH at 5%)" in told
    )
    more = "With an e-value of 61 it would survive, the others as they are; "
    assert (f"{more}`evidence=61` lets it go on for that, up to 24 seeds." in told) is not survives
    for used in ({"kind": "initial"}, {"seeds": 24}):
        assert (f"{more}all its seeds are used." in standing(record | used)[0]) is not survives
    open_ = " ".join(standing(record | {"verdict": "INCONCLUSIVE"}))
    assert "Beside all claims" not in open_ and "With an e-value" not in open_


def test_a_decided_claim_has_on_its_page_what_the_index_says(tmp_path, day, made_up):  # noqa: F811
    """With six of six runs each and differences far beyond their spread: one claim alone, which needs 40."""
    made_up.of = lambda cfg: 2.0 + wiggle(cfg) - 0.5 * (cfg.choices.norm == "layer")
    written(tmp_path, common=SMALL, quick={"seeds": 12})
    page = decide_mine(tmp_path)
    (record,) = [json.loads((tmp_path / "out" / "mine" / "result.json").read_text())]
    survives = record["e"] >= 40
    says = "survives" if survives else "does not survive"
    assert record["verdict"] == "SUPPORTED" and f"by 2026-01-05 the verdict {says} at one error rate" in page
    keep_index(tmp_path / "out")
    index = (tmp_path / "out" / "README.md").read_text()
    assert f"| SUPPORTED, {says} | [mine](mine/README.md) |" in index


def test_where_the_literature_failed_says_what_survives():
    record = {"name": "mine", "sentence": "It is so.", "source": "nobody", "verdict": "REFUTED", "controls": []}
    told = [failed_here([record | {"survives": one}])[2] for one in (True, False)]
    assert told == [
        f"- [mine](mine/README.md), REFUTED, {says}: It is so. Said in nobody."
        for says in ("survives", "does not survive")
    ]


# --- what was bought ------------------------------------------------------------------------------

EQUAL = {"steps": 100, "tokens": 6400, "n_params": 1000, "flops_per_token": 2000.0}


def row_of(**changes) -> str:
    """The row of a claim whose arms are a and b."""
    measured = {
        "metric": "val_loss", "form": "difference", "over": {}, "effect": 0.25, "interval": [0.1, 0.4], "arms": ["a", "b"],
    }  # fmt: skip
    record = {"name": "mine", "verdict": "REFUTED", "survives": True, "parts": [measured], "arms": {}} | changes
    return bought([record])[-2]


@pytest.mark.parametrize(
    ("costs", "told"),
    [
        (EQUAL, ""),
        (EQUAL | {"n_params": 1004}, ""),
        (EQUAL | {"n_params": 1030}, "1.03 x parameters"),
        (EQUAL | {"steps": 25, "tokens": 1600}, "0.25 x steps"),
        (EQUAL | {"steps": 25, "tokens": 6400}, "0.25 x steps"),
        (EQUAL | {"flops_per_token": 2180.0}, "1.09 x FLOPs per token"),  # at equal parameters: it stood there as equal
        ({name: EQUAL[name] for name in ("steps", "tokens", "n_params")}, ""),  # as older records have it
        (EQUAL | {"tokens": 12800, "n_params": 500}, "2 x tokens, 0.5 x parameters"),
    ],
)
def test_arms_of_unequal_cost_say_so(costs, told):
    expected = f"| a | b | +0.250 (0.1 to 0.4) | {told} | REFUTED, survives | [mine](mine/README.md) |"
    assert row_of(costs={"a": costs, "b": EQUAL}) == expected


def test_of_an_older_record_the_overrides_say_what_an_arm_costs():
    """Fault found: a quarter of the steps stood in one list with as many."""
    words = ["size=nano", "train.batch_size=8", "train.train_len=64"]
    given = lambda *more: {"train": [*words, *more], "then": []}  # noqa: E731
    few, many, short = (
        given("train.steps=100"),
        given("train.steps=400"),
        given("train.steps=400", "train.train_len=32"),
    )
    assert "| 0.25 x steps | REFUTED" in row_of(arms={"a": few, "b": many})
    assert "| 0.5 x tokens | REFUTED" in row_of(arms={"a": short, "b": many})
    assert "|  | REFUTED" in row_of(arms={"a": many, "b": many}) == row_of(arms={"a": given(), "b": many})


def test_a_ladder_says_which_rung_it_shows():
    row = row_of(rungs=[{}], label="width x2, steps x1")
    assert row.endswith("| [mine](mine/README.md) at width x2, steps x1 |")


def test_what_the_arms_of_a_claim_cost_is_kept(tmp_path, made_up):  # noqa: F811
    """LayerNorm has a shift beside each gain: of two layers with two norms each, and one before the head, 5 x d_model more."""
    written(tmp_path, common=SMALL, quick={"seeds": 2})
    decide_mine(tmp_path)
    costs = json.loads((tmp_path / "out" / "mine" / "result.json").read_text())["costs"]
    assert [costs[arm]["steps"] for arm in "ab"] == [4, 4] and costs["a"]["tokens"] == 4 * 4 * 16
    assert costs["a"]["n_params"] - costs["b"]["n_params"] == 5 * 64
    assert costs["a"]["flops_per_token"] == costs["b"]["flops_per_token"] > 0


# --- where there is no number ---------------------------------------------------------------------

NONE = {"a": [None, 2.5, None], "b": [2.0, 3.0, 2.0]}


@pytest.mark.parametrize(
    ("changes", "cells", "drawn"),
    [
        ({"failed_seeds": {"a": [0, 2], "b": [1]}}, "diverged, 2.5, diverged", "2 diverged"),
        ({"failed_seeds": {"a": [0, 1], "b": []}}, "diverged, 2.5 (failed), no such number", "1 diverged\n1 without a number"),
        ({"failed_seeds": {"a": [], "b": []}, "reduce": "best_x"}, "no such number, 2.5, no such number", "2 without a number"),
        ({}, "diverged, 2.5, diverged", "2 diverged"),  # an older record, which does not say
    ],
)  # fmt: skip
def test_only_a_run_that_diverged_is_said_to_have(changes, cells, drawn):
    """Fault found: what learned at no rate, or has no logarithm, was printed and drawn as diverged."""
    made = part_record(decided("below", a=around(1.0), b=[2.0] * 8))
    made = {name: value for name, value in made.items() if name != "failed_seeds"} | {"values": NONE} | changes
    assert any(line == f"| a | {cells} |" for line in part_lines(made))
    axes = Figure().subplots()
    draw_part(axes, made)
    assert [text.get_text() for text in axes.texts] == [drawn]


# --- a change of side -----------------------------------------------------------------------------


def part_of(form: str, than: float | None, mean: float):
    values = {
        "value": {"a": around(mean)},
        "difference": {"a": around(2 + mean), "b": [2.0] * 8},
        "ratio": {"a": around(2 * mean), "b": [2.0] * 8},
    }
    return decided("below", form, by=0.0, than=than, **values[form])


@pytest.mark.parametrize(
    ("form", "than", "means", "told"),
    [
        ("difference", None, (0.5, -0.5), "changes its sign between x1 (+0.5"),
        ("difference", 0.5, (0.75, 0.25), "crosses +0.5 between x1 (+0.75"),
        ("ratio", None, (1.25, 0.75), "crosses 1 between x1 (1.25"),
        ("value", 0.5, (0.75, 0.25), "crosses 0.5 between x1 (0.75"),
    ],
)
def test_only_a_difference_changes_its_sign(form, than, means, told):
    """Fault found: a ratio that fell from 1.1 to 0.9 was said to have changed its sign."""
    found = [whole([part_of(form, than, mean)]) for mean in means]
    rungs = [SimpleNamespace(rung=SimpleNamespace(label=f"x{n}")) for n in (1, 2)]
    reason = ladder.why(ladder.together(found), found, rungs, {})
    assert f"the effect {told}" in reason and ("sign" in reason) is (form == "difference" and than is None)


def test_a_rate_that_broke_leaves_the_others_to_be_told_apart():
    """Fault found: one loss of 430 made a line along the axis of all losses near 2.5."""
    from matplotlib.figure import Figure

    from archlab.report.claims import draw_rates

    axes = Figure().subplots()
    draw_rates(axes, {"a": {"lr": 1e-2, "rates": [[1e-2, [2.5, 2.6]], [2e-2, [430.0, 50.0]]]}})
    assert axes.get_ylim() == pytest.approx((0.95 * 2.5, 2.55 + 2)) and "cut off" in axes.get_ylabel()
    axes = Figure().subplots()
    draw_rates(axes, {"a": {"lr": 1e-2, "rates": [[1e-2, [2.5, 2.6]], [2e-2, [3.0, 2.9]]]}})
    assert axes.get_ylim()[1] < 3.1 and "cut off" not in axes.get_ylabel()
    axes = Figure().subplots()
    draw_rates(axes, {"a": {"lr": 1e-2, "rates": [[5e-3, [0.4, 0.5]], [1e-2, [0.05, 0.1]]]}})  # a task that is learned
    assert axes.get_ylim()[1] > 0.5 and "cut off" not in axes.get_ylabel()


@pytest.mark.parametrize(("pack", "seconds"), [(None, 30.0), (3, 10.0)])
def test_the_time_that_a_claim_took_counts_a_pack_once(pack, seconds):
    job = object.__new__(RunJob)
    job.__dict__["record"] = {"wall_seconds": 30.0, "pack": pack}
    assert seconds_of(job) == seconds


KEPT = sorted(Path(__file__).parents[2].glob("experiments/claims/*/result.json"))


@pytest.mark.parametrize("kept", [pytest.param(file, id=file.parent.name) for file in KEPT])
def test_no_title_of_a_plot_overlaps_another_or_leaves_the_picture(kept):
    figure = figure_of(json.loads(kept.read_text()))
    if figure is None:
        return
    figure.draw_without_rendering()
    titles = sorted((axes.title.get_window_extent() for axes in figure.axes), key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in pairwise(titles))
    assert (
        titles[0].x0 >= 0 and titles[-1].x1 <= figure.bbox.width and max(box.y1 for box in titles) <= figure.bbox.height
    )
