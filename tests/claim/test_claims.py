"""Claims: read strictly, decided by paired comparison, run once, found again, written down in words."""

import json
import math
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from oracles import composed

import archlab
from archlab.base.errors import UserError
from archlab.claim import bench, jobs, measures
from archlab.claim.bench import plan
from archlab.claim.claim import FORMS, Part, known_claims, read_claim
from archlab.claim.decide import decide, decide_part
from archlab.claim.jobs import Measurement, RunJob
from archlab.claim.reductions import REDUCTIONS
from archlab.claim.session import decide_claims

command = commands.command  # the fixture
NAMES = sorted(known_claims())

PLAIN = {
    "sentence": "A is lower than B.",
    "source": "nobody",
    "arms": {"a": ["norm=layer"], "b": ["norm=rms"]},
    "quick": {"seeds": 2},
    "full": "too long",
    "parts": [{"says": "lower", "measure": "val_loss", "difference": ["a", "b"], "expect": "below", "by": 0.1}],
}
SMALL = [
    "size=nano",
    "train.steps=4",
    "train.train_len=16",
    "train.batch_size=4",
    "eval.tokens=128",
    "eval.lengths=[1,2]",
    "probe.every=null",
]


def written(folder: Path, name: str = "mine", **changes) -> Path:
    """A claim of one's own, in the folder that --config-dir names."""
    (folder / "claim").mkdir(parents=True, exist_ok=True)
    file = folder / "claim" / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**PLAIN, **changes}))
    return file


def part(**changes) -> dict:
    return {**PLAIN["parts"][0], **changes}


# --- conf/claim ---------------------------------------------------------------------------------


def test_there_are_claims_about_every_group_the_note_speaks_of():
    assert len(NAMES) >= 24
    overrides = " ".join(
        word
        for name in NAMES
        for arm in read_claim(known_claims()[name]).arms.values()
        for word in (*arm.train, *arm.then)
    )
    assert all(f"{group}=" in overrides for group in ("residual", "norm", "ffn", "pos", "mask"))


@pytest.mark.parametrize(
    ("name", "budget"),
    [*((name, "quick") for name in NAMES), *(pytest.param(name, "full", marks=pytest.mark.slow) for name in NAMES)],
)
def test_every_claim_is_whole_and_its_arms_can_be_made_at_every_budget(name, budget, tmp_path):
    claim = read_claim(known_claims()[name])
    assert claim.sentence.endswith(".") and claim.source
    assert not isinstance(claim.budgets["full"], str)
    asked = claim.budgets[budget]
    assert len(list(plan(claim, budget, tmp_path))) >= (0 if isinstance(asked, str) else asked.seeds)
    assert not list(tmp_path.iterdir()), "planning runs nothing"


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sentence": None}, "claim/mine.yaml: sentence: should be a valid string"),
        ({"colour": "red"}, "claim/mine.yaml: colour: extra inputs are not permitted"),
        ({"parts": [part(by="much")]}, "claim/mine.yaml: parts.0.by: should be a valid number"),
        ({"parts": [part(expect="lower")]}, "claim/mine.yaml: parts.0.expect: should be 'above', 'below' or 'equal'"),
        ({"parts": [part(difference=["a", "bb"])]}, "claim/mine.yaml: parts.0.difference: no arm is called bb; did you mean b? arms: a, b"),
        ({"parts": [part(ratio=["a", "b"])]}, "claim/mine.yaml: parts.0: has difference and ratio; give one of value, difference, ratio, between"),
        ({"parts": [part(difference=None)]}, "claim/mine.yaml: parts.0: has none of them; give one of value, difference, ratio, between"),
        ({"parts": [part(difference=None, value="a")]}, "claim/mine.yaml: parts.0.than: is missing; a value is held against a number"),
        ({"parts": [part(over={"train.lr": [1, 2]})]}, "claim/mine.yaml: parts.0: over and reduce go together; give both or neither"),
        ({"parts": []}, "claim/mine.yaml: parts: tuple should have at least 1 item after validation, not 0"),
        ({"quick": {"seeds": 0}}, "should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_a_claim_that_is_not_whole_is_refused_in_one_line(changes, told, tmp_path):
    with pytest.raises(UserError) as refusal:
        read_claim(written(tmp_path, **changes))
    assert told in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_missing_field_is_named(tmp_path):
    file = written(tmp_path)
    given = yaml.safe_load(file.read_text())
    del given["source"]
    file.write_text(yaml.safe_dump(given))
    with pytest.raises(UserError, match="claim/mine.yaml: source: field required"):
        read_claim(file)


def test_an_arm_that_makes_no_model_is_refused_before_anything_runs(tmp_path):
    claim = read_claim(written(tmp_path, arms={"a": ["norm=rsm"], "b": []}))
    with pytest.raises(UserError, match="claim/mine.yaml: parts.0: norm=rsm: no such option; did you mean rms?"):
        plan(claim, "quick", tmp_path / "runs")


# --- deciding -----------------------------------------------------------------------------------


def decided(
    expect: str, form: str = "difference", by: float = 0.1, than: float | None = None, n_parts: int = 1, **values
):
    arms = tuple(values)
    made = Part(
        says="it", measure="val_loss", expect=expect, by=by, than=than, **{form: arms if form != "value" else arms[0]}
    )
    return decide_part(made, {label: dict(enumerate(of)) for label, of in values.items()}, n_parts)


FAR, NEAR = [1.0, 1.1, 0.9, 1.0], [2.0, 2.1, 1.9, 2.05]


@pytest.mark.parametrize(("expect", "verdict"), [("below", "SUPPORTED"), ("above", "REFUTED"), ("equal", "REFUTED")])
def test_a_clear_difference_supports_its_side_and_refutes_the_others(expect, verdict):
    assert decided(expect, a=FAR, b=NEAR).verdict == verdict


@pytest.mark.parametrize(("expect", "verdict"), [("below", "REFUTED"), ("above", "REFUTED"), ("equal", "SUPPORTED")])
def test_a_difference_inside_the_smallest_of_interest_is_none(expect, verdict):
    assert decided(expect, by=0.5, a=FAR, b=[1.02, 1.08, 0.93, 1.01]).verdict == verdict


@pytest.mark.parametrize("expect", ["below", "above", "equal"])
def test_a_noisy_difference_decides_nothing_and_says_how_many_seeds_would(expect):
    result = decided(expect, a=[1.0, 2.0, 3.0], b=[2.5, 1.0, 3.9])
    assert result.verdict == "INCONCLUSIVE"


def test_a_value_and_a_ratio_are_held_against_their_number():
    assert decided("above", "value", by=0.0, than=0.5, a=FAR).verdict == "SUPPORTED"
    assert decided("above", "value", by=0.0, than=1.5, a=FAR).verdict == "REFUTED"
    assert (
        decided("equal", "ratio", by=0.1, than=2.0, b=NEAR, a=FAR).verdict == "INCONCLUSIVE"
    )  # 2.00, 1.91, 2.11, 2.05: too wide for 0.1
    assert decided("equal", "ratio", by=0.2, than=2.0, b=NEAR, a=FAR).verdict == "SUPPORTED"
    assert decided("equal", "ratio", by=0.2, b=NEAR, a=FAR).verdict == "REFUTED"  # against 1, where nothing is said


def test_a_difference_may_be_held_against_another_number_than_zero():
    """NEAR lies 1.01 above FAR."""
    assert decided("above", by=0.1, than=0.5, b=NEAR, a=FAR).verdict == "SUPPORTED"
    assert decided("above", by=0.1, than=1.5, b=NEAR, a=FAR).verdict == "REFUTED"
    assert decided("below", by=0.1, than=1.5, b=NEAR, a=FAR).verdict == "SUPPORTED"
    assert decided("below", by=0.1, than=0.5, b=NEAR, a=FAR).verdict == "REFUTED"
    assert decided("equal", by=0.2, than=1.0, b=NEAR, a=FAR).verdict == "SUPPORTED"
    assert decided("equal", by=0.2, than=-1.0, b=NEAR, a=FAR).verdict == "REFUTED"
    record = record_part(decided("above", by=0.1, than=0.5, b=NEAR, a=FAR))
    assert record["effect"] == pytest.approx(1.0125) and np.mean(record["interval"]) == pytest.approx(1.0125)


def test_an_effect_is_told_in_the_unit_of_the_quantity():
    result = decided("above", "value", by=0.0, than=0.5, a=[0.9, 1.1])
    record = record_part(result)
    assert record["effect"] == pytest.approx(1.0) and record["than"] == 0.5
    assert np.mean(record["interval"]) == pytest.approx(1.0)


def record_part(result):
    from archlab.claim.record import part_record

    return part_record(result)


def test_arms_that_diverged_take_the_worst_rank_and_are_counted():
    lost = [math.inf] * 5
    result = decided("above", a=lost, b=[1.0, 1.1, 1.2, 1.3, 1.4])
    assert result.verdict == "SUPPORTED"
    assert record_part(result)["diverged"] == [5, 0]
    assert record_part(result)["values"]["a"] == [None] * 5
    assert decided("above", a=[*lost[:2], 1.0], b=[1.0, 1.1, 1.2]).verdict == "INCONCLUSIVE"


def test_a_part_among_several_needs_more_to_be_refuted_and_no_more_to_be_supported():
    a, b = [1.0, 1.2, 1.1, 1.3], [1.25, 1.30, 1.45, 1.45]  # differences of mean -0.2125; p between 0.05 / 4 and 0.05
    alone = decided("above", by=0.0, a=a, b=b)
    assert 0.05 / 4 < alone.found.p < 0.05 and alone.verdict == "REFUTED"
    assert decided("above", by=0.0, n_parts=4, a=a, b=b).verdict == "INCONCLUSIVE"
    assert decided("below", by=0.0, n_parts=4, a=a, b=b).verdict == "SUPPORTED"


def test_all_parts_support_a_claim_and_any_part_refutes_it():
    good, bad, open_ = (
        decided("below", a=FAR, b=NEAR),
        decided("above", a=FAR, b=NEAR),
        decided("below", a=[1.0, 2.0, 3.0], b=[2.5, 1.0, 3.9]),
    )
    assert [part.verdict for part in (good, bad, open_)] == ["SUPPORTED", "REFUTED", "INCONCLUSIVE"]
    assert decide([good, good]) == "SUPPORTED"
    assert decide([good, open_]) == "INCONCLUSIVE"
    assert decide([good, bad, open_]) == "REFUTED"


# --- reductions: by hand ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "xs", "values", "failed", "expected"),
    [
        ("best", [1, 2, 3], [2.5, 2.0, math.inf], 3.0, 2.0),
        ("slope", [1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0], 9.0, 1.0),
        ("slope", [2, 6, 18], [9.0, 3.0, 1.0], 9.0, -1.0),
        ("last_over_first", [1, 2], [4.0, 6.0], 9.0, 1.5),
        ("largest_stable", [0.001, 0.01, 0.1], [2.4, 2.0, 2.4], 3.0, -1.0),  # 2.4 is nearer to 2.0 than to 3.0
        ("largest_stable", [0.001, 0.01, 0.1], [2.4, 2.0, 2.6], 3.0, -2 + 0.5 / 0.6),  # the line to 2.6 passes 2.5 there
        ("largest_stable", [0.001, 0.01, 0.1, 1.0], [2.4, 2.0, 2.6, 2.1], 3.0, -2 + 0.5 / 0.6),  # stable again, but not up to there
        ("largest_stable", [0.001, 0.01], [2.0, math.inf], 3.0, -2.5),  # half of the way to a run that learned nothing
        ("largest_stable", [0.001, 0.01], [2.96, 2.99], 3.0, math.nan),  # none learned
        ("sensitivity", [1, 2, 3], [2.96, 2.99, math.inf], 3.0, math.nan),  # it was 0.02, the least there was
        ("sensitivity", [1, 2, 3, 4], [2.5, 2.0, 3.5, math.inf], 3.0, (0.5 + 0.0 + 1.0 + 1.0) / 4),
    ],
)  # fmt: skip
def test_reductions_give_what_they_say(name, xs, values, failed, expected):
    assert REDUCTIONS[name](xs, values, failed) == pytest.approx(expected, abs=1e-12, nan_ok=True)


# --- measures -----------------------------------------------------------------------------------


def test_the_future_gradient_is_that_of_finite_differences(tmp_path):
    """A LayerNorm over the sequence: moving a later embedding moves an earlier logit, by as much as the gradient says."""
    cfg = archlab.compose("size=nano", "norm=sequence", "allow_leak=true")
    honest = archlab.compose("size=nano", "norm=layer")
    assert measures.future_gradient(honest) == 0
    assert measures.future_gradient(cfg) > 0.01
    decoder, tokens = measures.in_float64(cfg).train(), measures.tokens_for(cfg)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 256
    assert (decoder(tokens)[:, :16] - decoder(changed)[:, :16]).abs().max() > 1e-6


def test_the_centred_model_is_another_function_where_something_is_left_uncentred(monkeypatch):
    layer, rms = (archlab.compose("size=nano", f"norm={norm}", "norm.eps=1e-5") for norm in ("layer", "rms"))
    assert measures.centred_gap(layer, rms) < 1e-12
    other = archlab.compose("size=nano", "norm=rms", "norm.eps=0.1")
    assert measures.centred_gap(layer, other) > 1e-3


def test_layer_norm_is_vision_s_instance_norm_with_positions_as_channels():
    cfg = archlab.compose("size=nano", "norm=layer")
    assert measures.layer_is_instance_gap(cfg) < 1e-12
    x = torch.randn(2, 5, 64, dtype=torch.float64)
    assert (F.layer_norm(x, (64,)) - F.instance_norm(x.mT).mT).abs().max() > 0.1, "and not with features as channels"


def test_the_logit_gap_is_relative_to_the_largest_logit():
    same, other = archlab.compose("size=nano", "ffn=gelu"), archlab.compose("size=nano", "ffn=relu")
    assert measures.logit_gap(same, same) == 0
    a, b = (archlab.build(cfg).double().eval()(measures.tokens_for(cfg)) for cfg in (same, other))
    assert measures.logit_gap(same, other) == pytest.approx(float((a - b).abs().max() / a.abs().max()), rel=1e-12)


# --- running ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A claim of one's own decided twice, and once more after one of its runs was lost."""
    folder = tmp_path_factory.mktemp("session")
    looked = {"train": ["norm=layer"], "then": ["mask=window", "mask.window=3"]}
    parts = [
        part(),
        part(measure="loss@2", difference=["windowed", "a"], expect="above"),
        part(measure="parameters", difference=["b", "a"]),
    ]
    written(folder, common=SMALL, arms={"a": ["norm=layer"], "b": ["norm=rms"], "windowed": looked}, parts=parts)
    did: list[object] = []
    real = jobs.work

    def counted(todo, workers):
        did.append(len(todo))
        return real(todo, workers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("archlab.claim.session.work", counted)
        go = lambda: decide_claims(["mine"], "quick", folder / "runs", folder / "out", 1, folder)  # noqa: E731
        first, second = go(), go()
        one = next(iter(sorted((folder / "runs").glob("*/*/summary.json"))))
        one.unlink()
        third = go()
    return folder, did, first, second, third


def test_a_claims_runs_are_made_once_and_found_again(session):
    _, did, first, second, third = session
    assert did[:2] == [2 * 2 + 2 + 2 * 2, 0]  # two arms at two seeds, two looks, two arms' parameters at two seeds
    assert did[2] in (1, 2)  # the lost run, and the look at its weights if there was one
    told = lambda records: [(record["verdict"], [part["values"] for part in record["parts"]]) for record in records]  # noqa: E731
    assert told(first) == told(second) == told(third)


def test_a_run_of_a_claim_is_the_run_the_command_makes(session, command, tmp_path):
    *_, records = session
    values = records[0]["parts"][0]["values"]
    for seed in (0, 1):
        done = command(*SMALL, "norm=layer", f"seed={seed}", f"output={tmp_path}")
        summary = json.loads((Path(done.out.strip().splitlines()[-1]) / "summary.json").read_text())
        # another process may sum in another order
        assert summary["val_loss"] == pytest.approx(values["a"][seed], rel=1e-6)


def test_what_is_kept_of_a_claim_says_it_in_words_numbers_and_a_picture(session):
    folder, *_, records = session
    kept = folder / "out" / "mine"
    record = json.loads((kept / "result.json").read_text())
    assert record == json.loads(json.dumps(records[0]))
    assert (kept / "plot.png").stat().st_size > 5000
    page = (kept / "README.md").read_text()
    assert (
        page.startswith("# A is lower than B.")
        and record["verdict"] in page
        and "python -m archlab claims mine budget=quick" in page
    )
    assert all(f"{value:.5g}" in page for values in record["parts"][0]["values"].values() for value in values)
    index = (folder / "out" / "README.md").read_text()
    assert f"| [mine](mine/README.md): A is lower than B. | {record['verdict']} |" in index
    assert record["regime"].startswith("2 layers of d_model 64; 4 steps of 4 x 16 tokens of text")


def test_a_budget_that_cannot_decide_a_claim_says_why_and_runs_nothing(tmp_path):
    written(tmp_path, quick="the effect is smaller than the noise here")
    (record,) = decide_claims(["mine"], "quick", tmp_path / "runs", tmp_path / "out", 1, tmp_path)
    assert record["verdict"] == "INCONCLUSIVE" and record["reason"] == "the effect is smaller than the noise here"
    assert not (tmp_path / "runs").exists()
    assert "the effect is smaller" in (tmp_path / "out" / "mine" / "README.md").read_text()


def test_a_diverged_run_is_infinitely_bad(tmp_path, monkeypatch):
    cfg = composed(*SMALL)
    monkeypatch.setattr(RunJob, "record", {"status": "diverged", "val_loss": None, "unigram_loss": 3.0})
    assert bench.value_of(RunJob(cfg, tmp_path), "val_loss") == math.inf


def test_what_decides_an_outcome_names_its_file_and_nothing_else_does(tmp_path):
    name = lambda *overrides: RunJob(composed(*SMALL, *overrides), tmp_path).folder  # noqa: E731
    assert name() == name("output=elsewhere") == name("+norm=rms")
    assert len({name(), name("seed=1"), name("train.lr=1e-3"), name("norm.eps=1e-3")}) == 4
    one = composed(*SMALL)
    assert Measurement("parameters", (one,), tmp_path).file != Measurement("future_gradient", (one,), tmp_path).file


def test_a_measure_that_no_run_has_is_named(tmp_path):
    record = {
        "val_loss": 2.0,
        "stability": {"max_grad_norm": 7.0},
        "length": [{"eval_len": 16, "loss": 2.0}, {"eval_len": 32, "loss": 2.5}],
    }
    assert bench.of_record(record, "loss@2", 16) == 2.5
    assert bench.of_record(record, "stability.max_grad_norm", 16) == 7.0
    with pytest.raises(UserError, match="measure=los@2: a run has no such number"):
        bench.of_record(record, "los@2", 16)


def test_every_form_has_a_number_it_is_held_against():
    assert FORMS == {"value": 0.0, "difference": 0.0, "ratio": 1.0, "between": 0.0}


# --- the command --------------------------------------------------------------------------------


def test_the_command_prints_the_table_and_writes_the_pages(command, tmp_path):
    done = command("claims", "centred_rms_is_layer", "doubling_*")
    assert done.status == 0, done.err
    assert "takes about" in done.err
    rows = [line for line in done.out.splitlines() if line.startswith(("SUPPORTED", "REFUTED"))]
    assert [row.split()[:2] for row in rows] == [
        ["SUPPORTED", "centred_rms_is_layer"], ["SUPPORTED", "doubling_the_batch_doubles_it"], ["REFUTED", "doubling_the_length_doubles_it"]
    ]  # fmt: skip
    assert (tmp_path / "experiments/claims/centred_rms_is_layer/README.md").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["alibi_hold"], "alibi_hold: no such claim; did you mean alibi_holds?"),
        (["budgte=quick"], "budgte=quick: claims has no option budgte; did you mean budget? it has: budget, workers, runs, output"),
        (["budget=slow"], "budget=slow: should be 'quick' or 'full'"),
        (["workers=0"], "workers=0: should be greater than or equal to 1"),
        (["--multirun"], "--multirun: claims takes no such flag; it takes --config-dir"),
    ],
)  # fmt: skip
def test_misuse_is_one_line_and_status_two(words, told, command, tmp_path):
    done = command("claims", *words)
    assert done.status == 2 and done.err.startswith(f"archlab: {told}") and done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


# --- what is told of a claim of one's own -----------------------------------------------------------


@pytest.mark.parametrize(
    ("expect", "form", "options", "values", "told"),
    [
        (
            "below",
            "difference",
            {"by": 0.01},
            {"a": [2.025, 2.02, 2.03], "b": [2.0, 2.0, 2.0]},
            "asked: below -0.01; seen: +0.025 (",
        ),
        (
            "above",
            "difference",
            {"by": 0.25},
            {"a": [2.5, 2.75, 2.25], "b": [2.0, 2.0, 2.0]},
            "asked: above +0.25; seen: +0.5 (",
        ),
        (
            "above",
            "difference",
            {"by": 0.0},
            {"a": [2.0, 1.75, 2.25], "b": [2.5, 2.5, 2.5]},
            "asked: above 0; seen: -0.5 (",
        ),
        ("below", "value", {"by": 0.5, "than": 2.0}, {"a": [1.25, 1.0, 1.5]}, "asked: below 1.5; seen: 1.25 ("),
        (
            "equal",
            "ratio",
            {"by": 0.1},
            {"a": [2.0, 2.5, 3.0], "b": [2.0, 2.5, 3.0]},
            "asked: within 0.1 of 1; seen: 1 (exactly)",
        ),
    ],
)
def test_what_was_asked_stands_beside_what_was_seen(expect, form, options, values, told):
    assert record_part(decided(expect, form, **options, **values))["told"].startswith(told)


def test_one_of_something_is_one():
    from archlab.claim import session

    cfg = composed(*SMALL)
    run, look = RunJob(cfg, Path("runs")), Measurement("parameters", (cfg,), Path("runs"))
    assert [session.needs(jobs) for jobs in ([run], [run, run, look], [look, look])] == [
        "1 run",
        "2 runs and 1 measurement",
        "2 measurements",
    ]
    assert [session.counted(n, "claim") for n in (1, 2)] == ["1 claim", "2 claims"]


def test_the_estimate_is_that_of_a_machine_of_this_pace(monkeypatch):
    """A start of 4 seconds, and every job three times as slow as it was estimated: two runs one after the other."""
    from archlab.claim import jobs, pace
    from archlab.runs.expected import seconds_of_a_step

    runs = [RunJob(composed(*SMALL, f"seed={seed}"), Path("runs")) for seed in (0, 1)]
    one = jobs.seconds(runs[0])
    assert pace.Pace(4.0, 3.0).estimate(runs, 1) == pytest.approx(4 + 6 * one) and pace.Pace(4.0, 3.0).estimate(
        runs, 2
    ) == pytest.approx(4 + 3 * one)
    monkeypatch.setattr(pace, "a_step", lambda cfg: 5 * seconds_of_a_step(cfg))
    assert pace.measured(runs, 1, 2.0) == pace.Pace(2.0, 5.0)
    assert pace.measured([], 1, 2.0) == pace.Pace(2.0, 1.0)


def test_the_result_of_a_claim_of_ones_own_goes_to_the_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, quick="it is not decided here")
    decide_claims(["mine", "copying_ranks_otherwise"], own=tmp_path)
    assert (tmp_path / "experiments/runs/claims/decided/mine/README.md").is_file()
    assert [folder.name for folder in (tmp_path / "experiments/claims").iterdir() if folder.is_dir()] == [
        "copying_ranks_otherwise"
    ]
    assert "experiments/runs/claims/decided" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "Expecting value"),
        ("[1]", "is no record of a job"),
        ('{"value": 1.0}', "lacks seconds"),
        ('{"value": "x", "seconds": 1.0}', "value is no number"),
    ],
)
def test_a_damaged_file_of_a_job_is_one_line(tmp_path, content, why):
    job = Measurement("parameters", (), tmp_path)
    job.file.parent.mkdir()
    job.file.write_text(content)
    with pytest.raises(UserError) as refused:
        _ = job.record
    assert str(refused.value).startswith(f"{job.file}: is damaged: {why}") and "\n" not in str(refused.value)
