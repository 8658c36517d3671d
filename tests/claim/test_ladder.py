"""Ladders: a claim at several sizes and horizons, each rung tuned and decided by itself, and what they come to together.

Runs are made up where they are of no interest: a run's file says what its configuration is told to come to.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from test_claims import SMALL, look_early, part, written

from archlab.base.errors import UserError
from archlab.claim import course, ladder, ledger, rung
from archlab.claim.claim import read_claim
from archlab.claim.decide import Decision
from archlab.claim.jobs import RunJob
from archlab.claim.pace import Pace
from archlab.claim.session import decide_claims
from archlab.claim.store import JobStore, composed
from archlab.report.claims import draw_claim, rate_lines

COMMON = [word for word in SMALL if not word.startswith("train.lr")]


@pytest.fixture
def made_up(monkeypatch):
    """Runs cost nothing; `losses.of` says what a configuration comes to."""

    class Losses:
        made: list = []

        @staticmethod
        def of(cfg) -> float:
            return 2.0

    losses = Losses()
    losses.made = []

    def do(job: RunJob) -> None:
        cfg, folder = job.cfg, job.folder / "run"
        folder.mkdir(parents=True)
        losses.made.append(cfg)
        record = {
            "status": "completed", "wall_seconds": 1.0, "val_loss": losses.of(cfg), "unigram_loss": 9.0,
            "n_params": 1000 * cfg.size.d_model, "length": [],
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(record))

    look_early(monkeypatch)
    monkeypatch.setattr(RunJob, "do", do)
    monkeypatch.setattr("archlab.claim.record.draw_claim", lambda record, file: None)  # but where a test looks at it
    monkeypatch.setattr("archlab.claim.session.measured", lambda *_: Pace(0.0, 1.0))
    return losses


def wiggle(cfg) -> float:
    """What a seed adds: not the same for both arms."""
    return 0.001 * math.sin(7 * cfg.seed + (cfg.choices.norm == "layer"))


def decided(folder: Path, asked: str | None = "2x2", **changes):
    written(folder, **{"common": COMMON, "quick": {"seeds": 3}, **changes})
    (record,) = decide_claims(["mine"], "quick", folder / "runs", folder / "out", 1, folder, ladder=asked)
    return record


# --- rungs --------------------------------------------------------------------------------------


def test_a_rung_multiplies_the_width_at_a_constant_head_dim_and_the_steps(tmp_path):
    plain = ("size=nano", "train.steps=30", "mixer=gqa")
    for words in (plain, (*plain, "size.n_kv_heads=2", "size.d_ff=96", "embed.width=32"), (*plain, "size.head_dim=24")):
        once, wide = composed(words, None), composed((*words, *rung.ClaimRung(4, 2).words(words, None)), None)
        assert wide.size.head_dim == once.size.head_dim and wide.train.steps == 60
        for name in ("d_model", "n_heads", "n_kv_heads"):
            assert wide.size[name] == 4 * once.size[name]
        assert (wide.embed.width or 0) == 4 * (once.embed.width or 0)
        if "size.d_ff=96" in words:
            assert wide.size.d_ff == 4 * 96
        assert wide.size.n_layers == once.size.n_layers and wide.train.lr == once.train.lr
    assert rung.ClaimRung(1, 1).words(plain, None) == ()
    assert rung.ClaimRung(1, 4).words(("size=nano", "train.tokens=4000"), None) == ("train.tokens=16000",)
    # Nano's d_ff is matched to the width, so it is left to that rule.
    assert rung.ClaimRung(2).words(plain, None) == ("size.d_model=128", "size.n_heads=8")


def test_a_ladder_is_every_size_at_every_horizon():
    assert [(one.width, one.steps) for one in rung.rungs_of("3x2")] == [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)]
    assert rung.rungs_of(None) == (rung.AS_CLAIMED,)


@pytest.mark.parametrize(
    ("asked", "changes", "told"),
    [
        ("3", {}, "ladder=3: is not sizes x horizons; write it as ladder=3x2, each at most 4"),
        ("0x2", {}, "ladder=0x2: is not sizes x horizons"),
        ("1x1xtext", {}, "ladder=1x1xtext: text is not two corpora or more; corpora: text, python"),
        ("1x1xtext+text", {}, "ladder=1x1xtext+text: text+text is not two corpora or more"),
        ("2x1xtext+recall", {}, "ladder=2x1xtext+recall: text+recall is not two corpora or more; corpora: text, python"),
        ("1x1xtext+python", {"arms": {"a": ["data=recall"], "b": []}}, "ladder=1x1xtext+python: claim/mine.yaml: parts.0: data=recall says what the claim is about"),
        ("1x1xtext+python", {"common": ["size=nano", "data.valid_share=0.2"]}, "ladder=1x1xtext+python: claim/mine.yaml: parts.0: data.valid_share=0.2 says what"),
        ("5x1", {}, "ladder=5x1: is above 4x4, 8 times the width and the steps; use less"),
        ("1x1", {}, "ladder=1x1: is each claim as it stands, so it would change nothing; leave it out"),
        ("2x1", {"kind": "initial", "tune": None, "parts": [part(measure="parameters")]}, "ladder=2x1: mine trains nothing, so that it has no rungs"),
        ("2x1", {"parts": [part(over={"size.d_model": [64, 128]}, reduce="best")]}, "ladder=2x1: mine runs over size.d_model itself"),
        ("1x2", {"parts": [part(over={"train.steps": [4, 8]}, reduce="best")]}, "ladder=1x2: mine runs over train.steps itself"),
        ("2x1", {"arms": {"a": ["layers[1:].size.d_ff=96"], "b": []}}, "ladder=2x1: claim/mine.yaml: parts.0: layers[1:].size.d_ff=96 sets the size of some layers alone"),
        ("1x2", {"common": ["size=nano", "budget=chinchilla"]}, "ladder=1x2: claim/mine.yaml: parts.0: budget=chinchilla says how long"),
    ],
)  # fmt: skip
def test_a_ladder_that_cannot_be_is_one_line_before_anything_runs(asked, changes, told, tmp_path, made_up):
    with pytest.raises(UserError) as refused:
        decided(tmp_path, asked, **changes)
    assert str(refused.value).startswith(told) and "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists() and not made_up.made


def test_a_rung_beyond_this_machines_memory_is_refused_by_its_size(tmp_path, made_up, monkeypatch):
    monkeypatch.setattr("archlab.claim.ladder.memory_of", lambda plan: 8e6)
    with pytest.raises(UserError, match=r"ladder=4x1: at 8 times the width a run of mine takes about \d+\.\d GB, and"):
        decided(tmp_path, "4x1")
    monkeypatch.setattr("archlab.claim.ladder.memory_of", lambda plan: 8e12)
    assert decided(tmp_path, "2x1")["ladder"] == "2x1"


# --- a session ----------------------------------------------------------------------------------


def test_each_rung_is_decided_and_kept_whole_and_the_claim_covers_all(tmp_path, made_up, monkeypatch):
    monkeypatch.setattr("archlab.claim.record.draw_claim", draw_claim)
    made_up.of = lambda cfg: (
        2.0 + wiggle(cfg) - (cfg.choices.norm == "layer") * (0.5 + 0.1 * math.log2(cfg.size.d_model / 64))
    )
    record = decided(tmp_path, "2x2")
    assert len(record["rungs"]) == 4 and [one["label"] for one in record["rungs"]][1] == "width x1, steps x2"
    for one, (width, steps) in zip(record["rungs"], ((1, 1), (1, 2), (2, 1), (2, 2)), strict=True):
        assert one["n_params"] == 64_000 * width and one["tokens"] == 4 * steps * 4 * 16
        assert one["parts"][0]["effect"] == pytest.approx(-0.5 - 0.1 * (width == 2), abs=0.01)
        assert one["seeds"] in (2, 3)
        assert f"size.d_model={64 * width}" in one["arms"]["a"]["train"] or width == 1
    assert record["seconds"] == sum(one["seconds"] for one in record["rungs"]) == len(made_up.made)
    kept = json.loads((tmp_path / "out" / "mine" / "result.json").read_text())
    assert kept["rungs"] == json.loads(json.dumps(record["rungs"]))
    page = (tmp_path / "out" / "mine" / "README.md").read_text()
    assert "ladder=2x2" in page and "| width x2, steps x2 | 1.28e+05 | 512 | -0.6" in page
    assert (tmp_path / "out" / "mine" / "plot.png").stat().st_size > 5000
    assert "per doubling of parameters" in record["reason"] and record["slopes"]["parameters"][
        "per_doubling"
    ] == pytest.approx(-0.1, abs=0.01)


def test_each_rung_finds_rates_of_its_own(tmp_path, made_up):
    """The best rate falls with the width, as here it is made to."""
    best = lambda cfg: 3e-3 * 64 / cfg.size.d_model  # noqa: E731
    made_up.of = lambda cfg: 2.0 + 0.1 * math.log2(cfg.train.lr / best(cfg)) ** 2 + wiggle(cfg)
    record = decided(tmp_path, "2x1", tune=None, quick={"seeds": 2})
    assert [one["rates"]["a"]["lr"] for one in record["rungs"]] == pytest.approx([3e-3, 1.5e-3])
    assert [one["trials"] for one in record["rungs"]] == [2 * 2 * 3, 2 * 2 * 4], (
        "two arms, two seeds, three rates and four"
    )
    page = (tmp_path / "out" / "mine" / "README.md").read_text()
    assert "## Rates at width x1, steps x1" in page and "## Rates at width x2, steps x1" in page


def test_the_plan_that_is_announced_is_of_all_rungs(tmp_path, made_up, capsys):
    decided(tmp_path, "2x1", quick={"seeds": 2})
    told = capsys.readouterr().err
    assert "1 claim needs 8 runs that are not there" in told and len(made_up.made) == 8
    decided(tmp_path, "2x2", quick={"seeds": 2})
    assert len(made_up.made) == 16, "rungs that are there are found again"


def test_a_ladder_is_registered_before_its_first_run_and_its_verdict_says_it(tmp_path, made_up):
    decided(tmp_path, None)
    for asked in ("2x1", "2x1", None):
        decided(tmp_path, asked)
    lines = ledger.registrations(tmp_path / "out").records()
    assert [line.get("ladder") for line in lines] == [None, "2x1"] and lines[0]["says"] == lines[1]["says"]
    assert [line["ladder"] for line in ledger.verdicts(tmp_path / "out").records()] == [None, "2x1", None]


def test_without_a_ladder_a_claim_is_as_it_was(tmp_path, made_up):
    record = decided(tmp_path, None)
    assert record["ladder"] is None and "rungs" not in record and "label" not in record
    claim = read_claim(tmp_path / "claim" / "mine.yaml")
    made = course.course(claim, "quick", JobStore(tmp_path / "runs", tmp_path))
    assert made.words("a") == (*COMMON, "norm=layer")


# --- what rungs come to together ----------------------------------------------------------------


def found(verdict: str, e_for: float = 0.1, e_against: float = 0.1) -> Decision:
    return Decision(verdict, max(e_for, e_against), (), (), e_for, e_against)


YES, NO, TIE, OPEN = (
    found("SUPPORTED", 40),
    found("REFUTED", 0.0, 90),
    found("TIE", 0.0, 60),
    found("INCONCLUSIVE", 3, 1),
)


@pytest.mark.parametrize(
    ("rungs", "verdict", "e"),
    [
        ([YES, found("SUPPORTED", 25), YES], "SUPPORTED", 25),
        ([NO, found("REFUTED", 0.0, 30)], "REFUTED", 30),
        ([TIE, TIE], "TIE", 60),
        ([TIE, NO], "REFUTED", 60),
        ([YES, OPEN], "INCONCLUSIVE", 3),
        ([YES, NO], "MIXED", (40 + 0) / 2),
        ([YES, found("REFUTED", 0.0, 30)], "INCONCLUSIVE", 0.1),  # (0.1 + 30) / 2 < 20: one of two, and not clear enough for it
        ([found("SUPPORTED", 90), found("REFUTED", 0.0, 60), OPEN], "MIXED", (0.1 + 60 + 1) / 3),
    ],
)  # fmt: skip
def test_a_verdict_covers_every_rung(rungs, verdict, e):
    whole = ladder.together(rungs)
    assert whole.verdict == verdict and whole.e == pytest.approx(e)


def test_where_it_holds_and_where_not_is_told():
    labels = ["narrow", "middle", "wide"]
    assert (
        ladder.verdicts_in_words([YES, YES, NO], labels) == "supported at 2 of 3 rungs, refuted at 1 of 3 rungs (wide)"
    )
    assert ladder.verdicts_in_words([TIE, TIE, TIE], labels) == "a tie at each of 3 rungs"


def test_a_change_of_sign_is_a_result(tmp_path, made_up, monkeypatch):
    monkeypatch.setattr("archlab.claim.course.LOOKS", (8,))
    made_up.of = lambda cfg: (
        2.0 + wiggle(cfg) + (cfg.choices.norm == "layer") * (-0.5 if cfg.size.d_model < 256 else 0.4)
    )
    record = decided(tmp_path, "3x1", quick={"seeds": 8})
    assert [one["parts"][0]["effect"] for one in record["rungs"]] == pytest.approx([-0.5, -0.5, 0.4], abs=0.01)
    assert [one["verdict"] for one in record["rungs"]] == ["SUPPORTED", "SUPPORTED", "REFUTED"]
    assert record["verdict"] == "MIXED" and record["label"] == "width x4, steps x1"
    assert "supported at 2 of 3 rungs, refuted at 1 of 3 rungs (width x4, steps x1)" in record["reason"]
    assert re.search(
        r"the effect changes its sign between width x2, steps x1 \(-0\.[45]\d*\) and width x4, steps x1 \(\+0\.[34]\d*\)",
        record["reason"],
    )


def on_corpora(folder, made_up, monkeypatch, effects: dict[str, float], asked: str = "1x1xtext+python"):
    """What a claim comes to whose first arm has these effects on the two corpora."""
    monkeypatch.setattr("archlab.claim.course.LOOKS", (8,))
    made_up.of = lambda cfg: 2.0 + wiggle(cfg) + (cfg.choices.norm == "layer") * effects[cfg.choices.data]
    return decided(folder, asked, quick={"seeds": 8})


def test_a_verdict_on_two_corpora_covers_both_and_says_so(tmp_path, made_up, monkeypatch):
    record = on_corpora(tmp_path, made_up, monkeypatch, {"text": -0.5, "python": -0.3})
    assert record["verdict"] == "SUPPORTED" and record["reason"].startswith("supported at each of 2 rungs; at width x1")
    assert [one["corpus"] for one in record["rungs"]] == ["text", "python"]
    assert [one["parts"][0]["effect"] for one in record["rungs"]] == pytest.approx([-0.5, -0.3], abs=0.01)
    assert sorted({(cfg.choices.data, cfg.size.d_model) for cfg in made_up.made}) == [("python", 64), ("text", 64)]
    assert "tokens of python" in record["rungs"][1]["regime"]
    page = (tmp_path / "out" / "mine" / "README.md").read_text()
    assert "| width x1, steps x1, python |" in page and "ladder=1x1xtext+python" in page


def test_where_corpora_differ_with_evidence_it_is_mixed(tmp_path, made_up, monkeypatch):
    record = on_corpora(tmp_path, made_up, monkeypatch, {"text": -0.5, "python": 0.4})
    assert record["verdict"] == "MIXED"
    assert "refuted at 1 of 2 rungs (width x1, steps x1, python)" in record["reason"]
    assert "the effect changes its sign between" in record["reason"]


def test_each_size_is_made_on_each_corpus(tmp_path, made_up, monkeypatch):
    record = on_corpora(tmp_path, made_up, monkeypatch, {"text": -0.5, "python": -0.3}, "2x1xtext+python")
    assert [(one["width"], one["corpus"]) for one in record["rungs"]] == [
        (1, "text"), (2, "text"), (1, "python"), (2, "python"),
    ]  # fmt: skip
    # Each corpus has both sizes, so that what they differ by moves no slope.
    assert record["slopes"]["parameters"]["per_doubling"] == pytest.approx(0.0, abs=0.002)


# --- ties -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", [None, -0.5])
def test_a_tie_says_whether_these_runs_were_seen_to_find_a_difference(planted, tmp_path, made_up, monkeypatch):
    """Arms that differ by nothing but noise; and, as a control, one that is worse by half a nat."""
    monkeypatch.setattr("archlab.claim.course.LOOKS", (8,))
    made_up.of = lambda cfg: 2.0 + wiggle(cfg) + (cfg.choices.norm == "l2") * 0.5
    controls = [] if planted is None else [part(difference=["b", "worse"])]
    arms = {"a": ["norm=layer"], "b": ["norm=rms"], "worse": ["norm=l2"]}
    record = decided(tmp_path, None, quick={"seeds": 8}, arms=arms, controls=controls)
    assert record["verdict"] == "TIE"
    page, pages = ((tmp_path / "out" / where / "README.md").read_text() for where in ("mine", "."))
    assert ("No control of this claim finds a difference" in page) is (planted is None)
    assert ("TIE without a control" in pages) is (planted is None)


# --- slopes -------------------------------------------------------------------------------------


def test_slopes_are_those_of_least_squares():
    """The normal equations in float64, written out; the interval by Student's t of 5 - 3 degrees of freedom."""
    params, tokens = [1e4, 4e4, 9e4, 2e5, 1e4], [100, 100, 100, 200, 400]
    effects = [0.31, 0.2, 0.12, 0.15, 0.4]
    x = np.column_stack([np.ones(5), np.log2(params), np.log2(tokens)])
    inverse = np.linalg.inv(x.T @ x)
    expected = inverse @ x.T @ np.array(effects)
    left = np.array(effects) - x @ expected
    errors = np.sqrt(np.diag(inverse) * (left @ left) / 2)
    slopes = ladder.slopes_of(effects, params, tokens)
    for i, name in ((1, "parameters"), (2, "tokens")):
        assert slopes[name]["per_doubling"] == pytest.approx(expected[i], rel=1e-9)
        # 4.302653 is the 97.5% quantile of Student's t with two degrees of freedom
        assert slopes[name]["interval"] == pytest.approx(
            [expected[i] - 4.302653 * errors[i], expected[i] + 4.302653 * errors[i]], rel=1e-5
        )


def test_what_the_rungs_do_not_determine_has_no_slope():
    slopes = ladder.slopes_of([0.3, 0.1], [10, 40], [5, 5])
    assert slopes == {"parameters": {"per_doubling": pytest.approx(-0.1), "interval": None}}
    assert ladder.slopes_of([0.3, None], [10, 40], [5, 5]) == {} == ladder.slopes_of([0.3, 0.1], [None, None], [5, 5])
    assert ladder.slopes_of([0.3, 0.1, 0.0], [10, 20, 40], [5, 10, 20]) == {}, "both double together"
    assert ladder.slopes_of([0.3, 0.1], [10, 20], [5, 20]) == {}, "two rungs for three numbers"


def test_trials_stand_under_the_rates_they_were_made_at():
    """Arms may start at rates of their own, and a trial may diverge."""
    search = {"lr": 0.004, "rates": [[0.002, [3.0]], [0.004, [2.5, 2.25]]]}
    other = {"lr": 0.008, "rates": [[0.004, [2.0]], [0.008, [1.5, None]]]}
    table = [line for line in rate_lines({"rates": {"early": search, "late": other}}) if line.startswith("|")]
    assert table == [
        "| arm | 0.002 | 0.004 | 0.008 | taken |",
        "|---|---|---|---|---|",
        "| early | 3 | 2.5, 2.25 |  | 0.004 |",
        "| late |  | 2 | 1.5, diverged | 0.008 |",
    ]
