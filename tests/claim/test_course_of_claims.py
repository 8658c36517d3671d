"""What a claim runs, and in what order: rates of their own, seeds, looks; and what its runs are taken for.

Runs are made up: a run's file says what its configuration is told to come to.
"""

import json
import math

import pytest
from test_claims import SMALL, part, written
from test_ladder import COMMON, made_up, wiggle  # noqa: F401

from archlab.base.errors import UserError
from archlab.claim import course, ledger, session
from archlab.claim.claim import Part, read_claim, tupled
from archlab.claim.decide import Decision, PartResult, decide_part, in_words
from archlab.claim.jobs import LookJob, RunJob
from archlab.claim.session import decide_claims
from archlab.claim.store import JobStore, composed
from archlab.comparison.rule import LOOKS
from archlab.runs import tune

BEST = {"layer": 4e-3, "rms": 1.5e-3, "scale_norm": 2e-3, "l2": 1e-3}


def gone_through(folder, monkeypatch, **changes) -> tuple[course.Course, list]:
    """A claim's course to its end, and every job in the order in which it was done."""

    def look(job: LookJob) -> None:
        length = [{"eval_len": 32, "loss": 3.0 + wiggle(job.of.cfg)}]
        job.file.write_text(json.dumps({"length": length, "seconds": 1.0}))

    monkeypatch.setattr(LookJob, "do", look)
    file = written(folder, **{"common": [*COMMON, "train.lr=1e-3"], "quick": {"seeds": 2}, **changes})
    made, done = course.course(read_claim(file), "quick", JobStore(folder / "runs", folder)), []
    while jobs := made.wanted():
        for job in jobs:
            job.do()
            done.append(job)
    return made, done


def test_each_arm_is_tuned_on_data_and_seeds_of_its_own_and_run_at_its_own_rate(tmp_path, made_up, monkeypatch):  # noqa: F811
    """The best rate of `a` lies two places above its middle, that of `b` one below; both then try places -2 to 3."""
    made_up.of = lambda cfg: (
        2.0 + 0.1 * math.log2(cfg.train.lr / BEST.get(cfg.choices.norm, cfg.train.lr)) ** 2 + wiggle(cfg)
    )
    swept = {"train.lr": [1e-3, 7e-3]}
    made, done = gone_through(
        tmp_path, monkeypatch, tune=None,
        arms={
            "a": ["norm=layer"], "b": ["norm=rms", "train.lr=3e-3"], "control": ["norm=l2"], "swept": ["norm=dyt"],
            "then": {"train": ["norm=scale_norm"], "then": ["mask=window", "mask.window=3"]},
        },
        parts=[part(), part(measure="loss@2", difference=None, value="then", than=0.0), part(over=swept, reduce="best", difference=["swept", "a"])],
        controls=[part(difference=["control", "a"])],
    )  # fmt: skip
    assert made.rates == pytest.approx({"a": 4e-3, "b": 1.5e-3, "then": 2e-3, "control": 1e-3})
    runs = [job for job in done if isinstance(job, RunJob)]
    of_trials = [job.cfg.eval.part == "tuning" for job in runs]
    assert of_trials == sorted(of_trials, reverse=True), "every trial is made before the first run"
    trials, rest = ([job.cfg for job in runs if (job.cfg.eval.part == "tuning") is kind] for kind in (True, False))
    places = {1e-3: [1e-3 * 2.0**place for place in range(-2, 4)], 3e-3: [3e-3 * 2.0**place for place in range(-2, 4)]}
    for norm in BEST:
        tried = sorted((cfg.train.lr, cfg.seed) for cfg in trials if cfg.choices.norm == norm)
        rates = places[3e-3 if norm == "rms" else 1e-3]
        assert [seed for _, seed in tried] == [1000, 1001] * 6
        assert [rate for rate, _ in tried] == pytest.approx([rate for rate in rates for _ in range(2)])
    assert len(trials) == 4 * 6 * 2
    used = {(cfg.choices.norm, round(cfg.train.lr, 9), cfg.seed) for cfg in rest}
    expected = set(BEST.items()) | {(norm, lr) for norm in ("dyt", "layer") for lr in (1e-3, 7e-3)}
    assert used == {(norm, rate, seed) for norm, rate in expected for seed in (0, 1)}
    looks = [job for job in done if isinstance(job, LookJob)]
    assert [(job.of.cfg.train.lr, job.cfg.train.lr, job.of.cfg.seed) for job in looks] == [
        (2e-3, 2e-3, 0),
        (2e-3, 2e-3, 1),
    ]


def test_seeds_are_looked_at_until_it_is_decided_and_no_more_than_there_may_be(tmp_path, made_up, monkeypatch):  # noqa: F811
    monkeypatch.setattr("archlab.claim.course.LOOKS", (2, 3, 7, 9))
    made_up.of = lambda cfg: 2.0 + wiggle(cfg) - (cfg.choices.norm == "layer") * 0.099
    made, done = gone_through(tmp_path, monkeypatch, quick={"seeds": 8}, parts=[part(by=0.099)])
    assert made.looks() == (2, 3, 7, 8) and made.seeds == 8
    assert [job.cfg.seed for job in done] == [*[0, 1] * 2, 2, 2, *[3, 4, 5, 6] * 2, 7, 7]


@pytest.fixture
def now(tmp_path, made_up, monkeypatch):  # noqa: F811
    """Decides a claim of differences of 0.02 beside a noise of about 0.001, at looks of 6 and more seeds: each adds evidence."""
    monkeypatch.setattr("archlab.claim.course.LOOKS", LOOKS)
    made_up.of = lambda cfg: 2.0 + 4 * wiggle(cfg) - (cfg.choices.norm == "layer") * 0.02

    def now(**options):
        written(tmp_path, common=COMMON, quick={"seeds": 24}, parts=[part(by=0.005)])
        (record,) = decide_claims(["mine"], "quick", tmp_path / "runs", tmp_path / "out", 1, tmp_path, **options)
        return record

    return now


def test_a_decided_claim_goes_on_to_the_evidence_that_is_asked_for(tmp_path, now):
    first = now()
    assert first["verdict"] == "SUPPORTED" and first["seeds"] == 6 and first["evidence"] is None
    more = first["e"] * 4
    second = now(evidence=more)
    assert second["verdict"] == "SUPPORTED" and 6 < second["seeds"] < 24 and second["e"] >= more
    assert second["command"] == f"python -m archlab claims mine budget=quick evidence={more:g}"
    third = now()
    assert third["seeds"] == second["seeds"] and third["command"] == second["command"], "no run is unseen again"
    lines = ledger.verdicts(tmp_path / "out").records()
    assert [line["seeds"] for line in lines] == [6, second["seeds"]]
    assert now(evidence=1e29)["seeds"] == 24, "no more seeds than it may have"
    with pytest.raises(
        UserError, match=r"^evidence=50: mine was decided with evidence=1e\+29, which stays; give more, or"
    ):
        now(evidence=50.0)


def test_what_a_claim_went_on_to_stays_whatever_was_decided_since(now):
    """Once it had been decided on a ladder, it went back to its first six seeds."""
    more = now(evidence=1000.0)
    assert more["seeds"] > 6 and now(ladder="1x2")["seeds"] == 6
    again = now()
    assert (again["seeds"], again["e"], again["evidence"]) == (more["seeds"], more["e"], 1000.0)


def test_the_bar_of_a_ladder_counts_no_seeds_of_a_rung_that_was_settled_before(tmp_path, made_up, monkeypatch):  # noqa: F811
    """It ended at 86 of 53 seconds: what the rung that was there had spared long ago was counted as done now."""
    monkeypatch.setattr("archlab.claim.course.LOOKS", LOOKS)
    made_up.of = lambda cfg: 2.0 + 4 * wiggle(cfg) - (cfg.choices.norm == "layer") * 0.02
    written(tmp_path, common=COMMON, quick={"seeds": 24}, parts=[part(by=0.005)])
    told = []

    class Bar(session.Counted):
        def __init__(self, what, total, console):
            told.append([total, 0.0])
            super().__init__(what, total, console)

        def add(self, amount=1):
            told[-1][1] += amount
            super().add(amount)

    monkeypatch.setattr(session, "Counted", Bar)
    for asked in (None, "1x2"):
        decide_claims(["mine"], "quick", tmp_path / "runs", tmp_path / "out", 1, tmp_path, ladder=asked)
    assert all(done == pytest.approx(total) and total > 0 for total, done in told)


def test_what_trains_nothing_is_told_no_evidence_beside_what_is_trained(tmp_path, made_up):  # noqa: F811
    """Its page gave a command with evidence=1000, which is refused."""
    made_up.of = lambda cfg: 2.0 + 4 * wiggle(cfg) - (cfg.choices.norm == "layer") * 0.2
    written(tmp_path, common=COMMON, parts=[part()])
    written(tmp_path, "start", common=COMMON, kind="initial", tune=None, parts=[part(measure="parameters")])
    names = ["mine", "start"]
    found = decide_claims(names, "quick", tmp_path / "runs", tmp_path / "out", 1, tmp_path, evidence=1000.0)
    assert [record["evidence"] for record in found] == [1000.0, None]
    assert found[1]["command"] == "python -m archlab claims start budget=quick"


@pytest.mark.parametrize(
    ("kind", "asked", "told"),
    [
        ("trained", 20.0, "evidence=20: every verdict has an e-value of 20; give more, or leave it out"),
        ("initial", 100.0, "evidence=100: mine trains nothing, and what it measures is measured at all its seeds; leave it out"),
    ],
)  # fmt: skip
def test_evidence_that_would_change_nothing_is_refused_before_anything_runs(kind, asked, told, tmp_path):
    changes = {} if kind == "trained" else {"kind": kind, "tune": None, "parts": [part(measure="parameters")]}
    written(tmp_path, common=COMMON, **changes)
    with pytest.raises(UserError) as refused:
        decide_claims(["mine"], "quick", tmp_path / "runs", tmp_path / "out", 1, tmp_path, evidence=asked)
    assert str(refused.value) == told and not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()


def test_what_is_expected_of_a_claim_follows_what_was_found(tmp_path, made_up, monkeypatch, capsys):  # noqa: F811
    """Fault found: runs of guessed rates were told to be missing of claims whose own runs were all there."""

    def loss(cfg) -> float:
        away = math.log2(cfg.train.lr / (8e-3 if cfg.choices.norm == "layer" else 2e-3))
        return 2.0 + 0.1 * away**2 + wiggle(cfg) - 0.5 * (cfg.choices.norm == "layer")

    made_up.of = loss
    monkeypatch.setattr("archlab.claim.course.LOOKS", (6, 8))
    written(tmp_path, common=[*COMMON, "train.lr=2e-3"], quick={"seeds": 8}, tune=None)
    claim = read_claim(tmp_path / "claim" / "mine.yaml")
    anew = lambda: course.course(claim, "quick", JobStore(tmp_path / "runs", tmp_path))  # noqa: E731

    def missing() -> list[list[tuple[float, int]]]:
        """The rates and seeds that are said to be missing, at least and at most."""
        extents = [session.missing(session.in_all([jobs])) for jobs in (anew().least, anew().most)]
        return [sorted((job.cfg.train.lr, job.cfg.seed) for job in jobs) for jobs in extents]

    def do(jobs) -> None:
        for job in jobs:
            job.do()

    at = lambda rates, seeds, arms: sorted((rate, seed) for rate in rates for seed in seeds for _ in range(arms))  # noqa: E731
    trials = tune.SEEDS
    guessed = at([1e-3, 2e-3, 4e-3, 8e-3], trials, 2)
    assert missing() == [sorted(guessed + at([2e-3], range(seeds), 2)) for seeds in (6, 8)]
    for next_rates in ([8e-3], [1.6e-2], []):  # the search begins at 1e-3 to 4e-3, and a's best is at 8e-3
        do(anew().wanted())
        assert [one for one in missing()[0] if one[1] in trials] == at(next_rates, trials, 2)
    assert missing() == [at([2e-3, 8e-3], range(seeds), 1) for seeds in (6, 8)]
    do(anew().wanted())
    assert missing() == [[], []] and anew().wanted() == [], "it is settled at its first look"
    session.decide_claims(["mine"], "quick", tmp_path / "runs", tmp_path / "out", 1, tmp_path)
    assert "all there already" in capsys.readouterr().err


def test_a_claim_that_is_open_is_expected_to_take_its_next_look(tmp_path, made_up, monkeypatch):  # noqa: F811
    monkeypatch.setattr("archlab.claim.course.LOOKS", (2, 3, 7, 9))
    made_up.of = lambda cfg: 2.0 + wiggle(cfg) - (cfg.choices.norm == "layer") * 0.099
    claim = read_claim(written(tmp_path, common=COMMON, quick={"seeds": 8}, parts=[part(by=0.099)]))
    for look in ([0, 1], [2], [3, 4, 5, 6], [7], []):
        made = course.course(claim, "quick", JobStore(tmp_path / "runs", tmp_path))
        least, most = (session.missing(session.in_all([jobs])) for jobs in (made.least, made.most))
        assert sorted(job.cfg.seed for job in least) == sorted(look * 2)
        assert sorted({job.cfg.seed for job in most}) == (list(range(look[0], 8)) if look else [])
        for job in least:
            job.do()


def test_once_a_control_is_ruled_out_no_more_seeds_are_run(tmp_path, made_up, monkeypatch):  # noqa: F811
    """Its interval holds at any number of seeds, so that none of them could bring a verdict."""
    monkeypatch.setattr("archlab.claim.course.LOOKS", (6, 8))
    made_up.of = lambda cfg: 2.0 + wiggle(cfg)
    arms = {"a": ["norm=layer"], "b": ["norm=rms"], "control": ["norm=l2"]}
    made, done = gone_through(
        tmp_path, monkeypatch, quick={"seeds": 8}, arms=arms, controls=[part(difference=["control", "a"], by=0.5)]
    )
    decision = made.decision(made.seeds)
    assert decision.verdict == "INCONCLUSIVE" and not decision.open
    assert made.seeds == 6 and len(done) == 3 * 6


@pytest.mark.parametrize(
    ("control", "open_"), [("SUPPORTED", True), ("INCONCLUSIVE", True), ("REFUTED", False), ("TIE", False)]
)
def test_a_control_that_is_not_decided_yet_keeps_a_claim_open(control, open_):
    """More seeds may still find it; one that is ruled out they never find."""
    of_part, of_control = (
        PartResult(Part(**tupled(part())), verdict, None, {}, 1.0, 1.0) for verdict in ("INCONCLUSIVE", control)
    )
    assert Decision("INCONCLUSIVE", 1.0, (of_part,), (of_control,), 0.0, 0.0).open is open_


def test_a_claim_is_registered_before_its_first_run(tmp_path, made_up):  # noqa: F811
    there = []

    def loss(cfg) -> float:
        there.append([line["claim"] for line in ledger.registrations(tmp_path / "out").records()])
        return 2.0 + wiggle(cfg)

    made_up.of = loss
    written(tmp_path, common=COMMON, quick={"seeds": 2})
    session.decide_claims(["mine"], "quick", tmp_path / "runs", tmp_path / "out", 1, tmp_path)
    assert there == [["mine"]] * 4


def test_a_damaged_file_of_verdicts_is_found_before_anything_runs_or_is_registered(tmp_path, made_up):  # noqa: F811
    written(tmp_path, common=COMMON, quick={"seeds": 2})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "verdicts.jsonl").write_text('{"claim": "mine"}\n')
    with pytest.raises(UserError, match="verdicts.jsonl: line 1 is not what was written there"):
        session.decide_claims(["mine"], "quick", tmp_path / "runs", tmp_path / "out", 1, tmp_path)
    assert (
        not made_up.made and not (tmp_path / "out" / "registered.jsonl").exists() and not (tmp_path / "runs").exists()
    )


def test_a_claim_whose_runs_lack_its_number_is_named_and_the_others_are_decided(tmp_path, made_up, capsys):  # noqa: F811
    """Here every made-up run is without a record of its lengths, which no configuration says."""
    made_up.of = lambda cfg: 2.0 + wiggle(cfg)
    folder, runs = tmp_path / "out", tmp_path / "runs"
    for name in ("first", "second"):
        written(tmp_path, name, common=COMMON, quick={"seeds": 2}, controls=[part(measure="loss@2")])
    written(tmp_path, "mine", common=COMMON, quick={"seeds": 2})
    with pytest.raises(UserError) as refused:
        session.decide_claims(["first", "second", "mine"], "quick", runs, folder, 1, tmp_path)
    assert str(refused.value) == (
        "claim/first.yaml: controls.0: measure: loss@2 of a, whose runs have no such number; name one of their summary.json, such"
        " as val_loss or late_ratio@4 (and so 1 other claim)"
    )
    assert json.loads((folder / "mine" / "result.json").read_text())["verdict"] in capsys.readouterr().err
    assert [line["claim"] for line in ledger.verdicts(folder).records()] == ["mine"]


def test_a_claim_whose_runs_would_be_scored_on_what_their_rates_are_chosen_by_is_refused(tmp_path, made_up):  # noqa: F811
    """Of 1000 bytes held out the last 250 choose the rates, and all were scored."""
    (tmp_path / "own.txt").write_bytes(bytes(range(32, 112)) * 125)
    own = [word for word in COMMON if not word.startswith("eval.tokens")] + [
        "data=file",
        f"data.path={tmp_path}/own.txt",
    ]
    written(tmp_path, common=[*own, "eval.tokens=751"], tune=None)
    told = "^claim/mine.yaml: tune: the rate is chosen by .* scored on 751 tokens, of which 750 stand before it"
    with pytest.raises(UserError, match=told):
        session.decide_claims(["mine"], "quick", tmp_path / "runs", tmp_path / "out", 1, tmp_path)
    assert not made_up.made


# --- what a run is taken for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "measure", "failed"),
    [
        ({"status": "completed", "val_loss": 2.0, "unigram_loss": 3.0}, "val_loss", False),
        ({"status": "diverged", "val_loss": 2.0, "unigram_loss": 3.0}, "val_loss", True),
        ({"status": "diverged", "val_loss": 2.0, "unigram_loss": 3.0}, "exact_match@1", True),
        ({"status": "completed", "val_loss": 2.96, "unigram_loss": 3.0}, "loss@2", True),
        ({"status": "completed", "val_loss": 2.96, "unigram_loss": 3.0}, "exact_match@1", False),
        ({"status": "completed", "val_loss": 2.96, "unigram_loss": 3.0}, "late_ratio@2", True),
        ({"status": "completed", "val_loss": 2.96, "unigram_loss": 3.0}, "stability.max_grad_norm", False),
    ],
)  # fmt: skip
def test_a_run_fails_where_it_diverged_or_a_loss_is_asked_of_one_that_never_learned(
    record, measure, failed, tmp_path, monkeypatch
):
    monkeypatch.setattr(RunJob, "record", record)
    assert course.failure(RunJob(composed(tuple(SMALL), None), tmp_path), measure) is failed


def test_a_trial_that_diverged_is_infinitely_bad_whatever_its_last_loss_was(tmp_path, monkeypatch):
    trial = RunJob(composed(tuple(SMALL), None), tmp_path)
    for record, loss in (
        ({"status": "diverged", "val_loss": 2.0}, math.inf),
        ({"status": "completed", "val_loss": None}, math.inf),
        ({"status": "completed", "val_loss": 2.0}, 2.0),
    ):
        monkeypatch.setattr(RunJob, "record", record)
        assert course.loss_of(trial) == loss


def test_what_learned_nothing_is_the_worst_that_a_swept_run_counts_as(tmp_path, made_up, monkeypatch):  # noqa: F811
    """The loss is 2 at the lower rate and 30 at the higher; the line to the unigram loss of 9 passes (2 + 9) / 2 half way."""
    made_up.of = lambda cfg: 2.0 if cfg.train.lr < 5e-3 else 30.0
    over = {"train.lr": [1e-3, 1e-2]}
    measured = part(over=over, reduce="largest_stable", difference=None, value="a", than=0.0)
    parts = [measured, {**measured, "reduce": "best"}]
    made, _ = gone_through(tmp_path, monkeypatch, arms={"a": ["norm=layer"]}, parts=parts, tune=None)
    result, _ = made.decision(2).parts
    assert [value for _, value in sorted(result.values["a"].by_seed.items())] == pytest.approx([-2.5, -2.5])


def test_a_larger_stable_rate_is_the_better_one():
    """What fails at every seed has lost: of stable rates, of which more is better, it lies below."""
    made = Part(
        says="it", measure="val_loss", expect="above", by=0.1, difference=("a", "b"), over={"train.lr": (1, 2)},
        reduce="largest_stable",
    )  # fmt: skip
    values = {"a": course.Values(dict.fromkeys(range(8), 0.0)), "b": course.Values(dict.fromkeys(range(8), math.nan))}
    assert decide_part(made, values).verdict == "SUPPORTED"


@pytest.mark.parametrize(
    ("reduce", "expect", "by", "a", "b", "verdict"),
    [
        ("largest_stable", "above", 0.3, -1.0, -1.0, "INCONCLUSIVE"),  # both stable up to 0.1: it was REFUTED
        ("largest_stable", "equal", 0.3, -1.0, -1.0, "INCONCLUSIVE"),  # it was SUPPORTED
        ("largest_stable", "above", 0.3, -1.0, -2.0, "SUPPORTED"),  # whatever lies beyond
        ("largest_stable", "below", 0.3, -1.0, -2.0, "REFUTED"),
        ("largest_stable", "above", 0.3, -3.0, -3.0, "TIE"),  # the lowest rate was run, and the next is not stable
        ("best_x", "equal", 0.3, -1.0, -1.0, "INCONCLUSIVE"),
        ("best_x", "equal", 0.3, -3.0, -3.0, "INCONCLUSIVE"),
        ("best_x", "below", 0.3, -3.0, -2.0, "SUPPORTED"),
        ("best_x", "equal", 0.3, -2.0, -2.0, "SUPPORTED"),
    ],
)
def test_a_rate_at_an_end_of_those_swept_is_a_bound(reduce, expect, by, a, b, verdict):
    made = Part(
        says="it", measure="val_loss", expect=expect, by=by, difference=("a", "b"), over={"train.lr": (1e-3, 1e-2, 1e-1)},
        reduce=reduce,
    )  # fmt: skip
    found = decide_part(made, {label: course.Values(dict.fromkeys(range(8), x)) for label, x in (("a", a), ("b", b))})
    assert found.verdict == verdict
    told = f"which is a bound, since at some seed {reduce} is an end of what was swept; sweep further"
    assert (told in in_words(found)) is (a in (-1.0, -3.0) and (a, reduce) != (-3.0, "largest_stable"))


# --- a second axis of tuning ----------------------------------------------------------------------


def test_each_arm_is_tuned_over_two_axes_and_run_at_its_own_best_of_both(tmp_path, made_up, monkeypatch):  # noqa: F811
    """Planted: `a` is best at 4e-3 and a decay of 0.3, `b` at 1e-3 and 0, and at another rate at any other decay.

    The swept arm has no rate to find.
    """
    best = {"layer": (4e-3, 0.3), "rms": (1e-3, 0.0), "l2": (2e-3, 0.3)}
    elsewhere = {"layer": 2e-3, "rms": 2e-3, "l2": 1e-3}

    def loss(cfg) -> float:
        rate, decay = best.get(cfg.choices.norm, (cfg.train.lr, cfg.train.weight_decay))
        rate = rate if cfg.train.weight_decay == decay else elsewhere[cfg.choices.norm]
        away = abs(math.log2(cfg.train.lr / rate)) + 2 * abs(cfg.train.weight_decay - decay)
        return 2.0 + away + wiggle(cfg)

    made_up.of = loss
    made, done = gone_through(
        tmp_path, monkeypatch, tune={"train.weight_decay": [0.0, 0.1, 0.3]},
        arms={
            "a": ["norm=layer"], "b": ["norm=rms"], "swept": ["norm=dyt"],
            "then": {"train": ["norm=l2"], "then": ["mask=window", "mask.window=3"]},
        },
        parts=[part(), part(measure="loss@2", difference=None, value="then", than=0.0), part(over={"train.lr": [1e-3, 7e-3]}, reduce="best", difference=None, value="swept", than=0.0), part(over={"train.lr": [3e-3, 9e-3]}, reduce="best", difference=None, value="a", than=0.0)],
    )  # fmt: skip
    assert made.rates == pytest.approx({"a": 4e-3, "b": 1e-3, "then": 2e-3})
    runs = [job.cfg for job in done if isinstance(job, RunJob)]
    trials, rest = ([cfg for cfg in runs if (cfg.eval.part == "tuning") is kind] for kind in (True, False))
    cells = {
        norm: sorted((cfg.train.lr, cfg.train.weight_decay, cfg.seed) for cfg in trials if cfg.choices.norm == norm)
        for norm in ("layer", "rms", "l2", "dyt")
    }
    rates = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
    everything = sorted((rate, decay, seed) for rate in rates for decay in (0.0, 0.1, 0.3) for seed in (1000, 1001))
    assert cells["layer"] == cells["rms"] == cells["l2"] == everything and cells["dyt"] == []
    used = {(cfg.choices.norm, cfg.train.lr, cfg.train.weight_decay) for cfg in rest}
    default = composed(tuple(SMALL), None).train.weight_decay
    assert used == {
        ("layer", 4e-3, 0.3),
        ("rms", 1e-3, 0.0),
        ("l2", 2e-3, 0.3),
        ("dyt", 1e-3, default),
        ("dyt", 7e-3, default),
        ("layer", 3e-3, default),  # a part that runs over rates uses nothing that was tuned
        ("layer", 9e-3, default),
    }
    looks = [job for job in done if isinstance(job, LookJob)]
    assert looks and all(job.of.cfg.train.weight_decay == 0.3 == job.cfg.train.weight_decay for job in looks)


def test_both_coordinates_of_every_trial_are_kept_and_shown(tmp_path, made_up):  # noqa: F811
    made_up.of = lambda cfg: 2.0 + wiggle(cfg) + cfg.train.weight_decay + abs(math.log2(cfg.train.lr / 1e-3))
    changes = {"common": [*COMMON, "train.lr=1e-3"], "quick": {"seeds": 2}, "tune": {"train.weight_decay": [0.25, 0.5]}}
    written(tmp_path, **changes)
    (record,) = session.decide_claims(["mine"], "quick", tmp_path / "runs", tmp_path / "out", 1, tmp_path)
    for label in ("a", "b"):
        second = record["rates"][label]["second"]
        assert (second["field"], second["value"], second["edge"]) == ("train.weight_decay", 0.25, True)
        assert [(value, [rate for rate, _ in rows]) for value, rows in second["rates"]] == [
            (value, [5e-4, 1e-3, 2e-3]) for value in (0.25, 0.5)
        ]
        assert second["rates"][1][1][1][1] == pytest.approx([2.5, 2.5], abs=0.002)
        assert "train.weight_decay=0.25" in record["arms"][label]["train"]
    assert record["trials"] == 2 * 2 * 3 * 2
    page = (tmp_path / "out" / "mine" / "README.md").read_text()
    assert "| a, train.weight\\_decay=0.5 |" in page or "| a, train.weight_decay=0.5 |" in page
    assert "Expected lowest loss of so many of these cells" in page and "Arms are not tuned" not in page
    made = len(made_up.made)
    session.decide_claims(["mine"], "quick", tmp_path / "runs", tmp_path / "out", 1, tmp_path)
    assert len(made_up.made) == made, "what was run is found again"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tune": {"init.std": [0.1, 0.2]}}, "parts.0: tune.init.std: init=xavier has no such number, so it would change nothing; it has init.gain"),
        ({"tune": {"train.beta1": [0.8, 0.9]}, "arms": {"a": ["optimizer=sgd"], "b": []}}, "parts.0: train.beta1=0.8: optimizer=sgd does not use it"),
        ({"tune": {"train.lr": [0.1, 0.2]}}, "tune.train.lr: is the first axis already"),
        ({"tune": {"train.clip": [1]}}, "tune.train.clip=[1]: should be two values or more, each once"),
        ({"tune": {}}, "tune={}: has 0 fields; give one beside train.lr"),
        ({"tune": {"train.clip": [1, 2]}, "arms": {"a": ["train.clip=3"], "b": []}}, "parts.0: train.clip=3 of a: tune searches that; leave it out"),
        ({"tune": {"train.clip": [1, 2]}, "parts": [part(over={"train.clip": [1, 2]}, reduce="best")]}, "parts.0.over: runs over train.clip, which tune searches"),
        ({"tune": {"train.clip": [1, 2]}, "parts": [part(over={"train.lr": [1e-3, 2e-3]}, reduce="best")]}, "tune.train.clip: every part runs over train.lr, so that nothing is tuned"),
        ({"parts": [part(over={"train.lr": [1e-3, 2e-3, 1e-3]}, reduce="best")]}, "parts.0.over.train.lr=[0.001, 0.002, 0.001]: has a value twice"),
    ],
)  # fmt: skip
def test_a_second_axis_that_cannot_be_is_refused_before_anything_runs(changes, told, tmp_path):
    with pytest.raises(UserError) as refused:
        course.course(read_claim(written(tmp_path, **changes)), "quick", JobStore(tmp_path / "runs", tmp_path))
    assert str(refused.value).startswith(f"claim/mine.yaml: {told}") and "\n" not in str(refused.value)


# --- what is looked at ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "told"),
    [
        (["size.n_layers=3"], "arms.a.then: size.n_layers=3 makes another model than the one that is trained; give options that leave every weight as it is, such as mask.window"),
        (["norm=none"], "arms.a.then: norm=none makes another model than the one that is trained"),
        (["mask=window", "train.steps=9"], "arms.a.then: train.steps=9: is of training, which is over when weights are looked at; leave it out"),
        (["optimizer=sgd"], "arms.a.then: optimizer=sgd: is of training"),
        (["init.gain=2"], "arms.a.then: init.gain=2: is of training"),
    ],
)  # fmt: skip
def test_what_weights_are_looked_at_under_leaves_them_as_they_are(then, told, tmp_path):
    arms = {"a": {"train": ["norm=layer"], "then": then}, "b": []}
    with pytest.raises(UserError) as refused:
        course.course(read_claim(written(tmp_path, arms=arms)), "quick", JobStore(tmp_path / "runs", tmp_path))
    assert told in str(refused.value) and "\n" not in str(refused.value)
