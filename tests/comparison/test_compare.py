"""Runs into arms, and arms against a baseline: names, refusals, and numbers against the rule and the survivors of e-BH."""

import json
from dataclasses import replace

import numpy as np
import pytest
from records import write_run
from scipy import stats

from archlab.base.errors import UserError
from archlab.comparison.arms import read_all, sort_into_arms
from archlab.comparison.comparison import compare, more_runs
from archlab.comparison.judge import judge
from archlab.comparison.many import survivors
from archlab.records.reader import Run, read_run
from archlab.report import comparison as tables
from archlab.report.page import comparison as comparison_page


def labels(folder):
    return [arm.label for arm in sort_into_arms(read_all([folder])[0])[0]]


# ---------------------------------------------------------------- arms


def test_arms_are_named_by_what_differs_alone(tmp_path):
    for asked in (("norm=rms", "pos=alibi"), ("norm=layer", "pos=alibi")):
        for seed in (0, 1):
            write_run(tmp_path, *asked, seed=seed)
    assert labels(tmp_path) == ["norm=rms", "norm=layer"]


def test_an_option_is_spelt_as_the_user_spelt_it(tmp_path):
    write_run(tmp_path, "train.lr=3e-3", config={"train.lr": 0.003})
    write_run(tmp_path, "train.lr=1e-2", config={"train.lr": 0.01})
    write_run(tmp_path, "norm=layer", "train.lr=1e-2", config={"train.lr": 0.01})
    assert labels(tmp_path) == ["norm=rms train.lr=3e-3", "norm=rms train.lr=1e-2", "norm=layer train.lr=1e-2"]


def test_a_value_that_follows_from_a_choice_is_not_in_the_name(tmp_path):
    write_run(tmp_path, "ffn=swiglu", "size.d_ff=matched", config={"size.d_ff": 64})
    write_run(tmp_path, "ffn=gelu", "size.d_ff=matched", config={"size.d_ff": 96})
    assert labels(tmp_path) == ["ffn=swiglu", "ffn=gelu"]


def test_a_value_that_was_asked_for_beside_a_choice_is_in_the_name(tmp_path):
    write_run(tmp_path, "ffn=swiglu", "train.lr=0.01")
    write_run(tmp_path, "ffn=gelu", "train.lr=0.02")
    assert labels(tmp_path) == ["ffn=swiglu train.lr=0.01", "ffn=gelu train.lr=0.02"]


def test_options_of_one_choice_keep_its_arms_apart(tmp_path):
    write_run(tmp_path, "norm=layer")
    write_run(tmp_path, "norm=rms", config={"norm.eps": 0.1})
    write_run(tmp_path, "norm=rms", config={"norm.eps": 0.2})
    assert labels(tmp_path) == ["norm=layer norm.eps=1e-05", "norm=rms norm.eps=0.1", "norm=rms norm.eps=0.2"]


def test_one_arm_alone_is_named_by_what_was_asked_for(tmp_path):
    write_run(tmp_path, "norm=layer", "train.lr=0.01", seed=0)
    write_run(tmp_path, "norm=layer", "train.lr=0.01", seed=1)
    assert labels(tmp_path) == ["norm=layer train.lr=0.01"]


def test_an_option_that_an_older_record_does_not_know_is_the_null_of_a_newer_one(tmp_path):
    write_run(tmp_path, "norm=layer", seed=0)
    write_run(tmp_path, "norm=layer", seed=1, config={"match": None})
    assert labels(tmp_path) == ["norm=layer"]


def test_rules_that_meet_in_a_layer_are_another_arm_in_another_order(tmp_path):
    """The later rule counts there, so the models differ; one of the two runs was taken for an older one of the other."""
    gelu, relu = ({"at": at, "choices": {"ffn": ffn}, "ffn": {}} for at, ffn in (("1:3", "gelu"), ("2:", "relu2")))
    apart = {"at": "0", "choices": {"pos": "none"}, "pos": {}}
    size = {"size.n_layers": 4}
    write_run(tmp_path, name="20261101-000000-a", config={"layers": [gelu, relu]} | size)
    write_run(tmp_path, name="20261101-000001-b", config={"layers": [relu, gelu]} | size)
    assert labels(tmp_path) == ["layers=1:3 then 2:", "layers=2: then 1:3"]
    same = tmp_path / "same"
    write_run(same, name="20261101-000000-a", config={"layers": [gelu, apart]} | size)
    write_run(same, name="20261101-000001-b", seed=1, config={"layers": [apart, gelu]} | size)
    assert len(labels(same)) == 1


@pytest.mark.parametrize("rule", [{"at": "1", "choices": "gelu"}, {"at": "x", "choices": {}}, {"choices": {}}, 3])
def test_rules_that_are_none_are_refused_in_a_line(tmp_path, rule):
    write_run(tmp_path, config={"layers": [rule]})
    with pytest.raises(
        UserError, match=r"^layers: \[.*\] in a run's config.yaml are no rules for layers; leave the run out$"
    ):
        labels(tmp_path)


def test_a_run_that_names_no_kernel_is_of_one_arm_with_those_by_default(tmp_path):
    write_run(tmp_path, "norm=layer", seed=0)
    write_run(tmp_path, "norm=layer", seed=1, config={"kernel": "auto"})
    assert labels(tmp_path) == ["norm=layer"]
    write_run(tmp_path, "norm=layer", "kernel=dense", seed=1, config={"kernel": "dense"})
    assert labels(tmp_path) == ["kernel=auto", "kernel=dense"]


def test_the_newest_of_two_runs_with_one_seed_counts(tmp_path):
    write_run(tmp_path, "norm=rms", name="20261102-000000-new", val_loss=2.5)
    old = write_run(tmp_path, "norm=rms", name="20261101-000000-old", val_loss=9.0)
    (arm,), notes = sort_into_arms(read_all([tmp_path])[0])
    assert arm.by_seed[0].summary["val_loss"] == 2.5
    assert notes == [f"norm=rms: seed 0 was run more than once; the newest counts, {old} does not"]


def test_an_interrupted_run_is_left_out_and_said(tmp_path):
    write_run(tmp_path, seed=0)
    stopped = write_run(tmp_path, seed=1, val_loss=None, status="stopped")
    (arm,), notes = sort_into_arms(read_all([tmp_path])[0])
    assert arm.seeds == [0]
    assert notes == [f"{stopped}: was interrupted and never validated; left out"]


def test_a_damaged_summary_is_left_out_and_said(tmp_path):
    write_run(tmp_path, seed=0)
    damaged = write_run(tmp_path, seed=1)
    (damaged / "summary.json").write_text('{"val_loss": 2.')
    unfinished = write_run(tmp_path, seed=2)
    (unfinished / "summary.json").unlink()
    runs, notes = read_all([tmp_path])
    assert [run.seed for run in runs] == [0]
    assert notes[0].startswith(f"{damaged}: cannot be read: ") and notes[0].endswith("; left out")
    assert (
        notes[1] == f"{unfinished}: was broken off at step 40 of 40; archlab resume {unfinished} finishes it; left out"
    )


def test_a_share_beyond_one_is_damage(tmp_path):
    """It came to logarithms of what is below 0, in warnings of numpy's."""
    at = {"eval_len": 32, "loss": 1.0, "loss_last": 1.0, "exact_match": 5.0, "protocol": "disjoint"}
    write_run(tmp_path, length=[at])
    with pytest.raises(
        UserError, match=r"length.0.exact_match: should be less than or equal to 1; give finished runs$"
    ):
        read_all([tmp_path])


def test_where_no_run_can_be_read_there_is_an_error(tmp_path):
    directory = write_run(tmp_path)
    (directory / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="lacks corpus_sha256, status, val_loss; give finished runs"):
        read_all([directory])
    with pytest.raises(UserError, match="neither a run nor a folder of runs"):
        read_all([directory / "config.yaml"])


MIXED = {
    "corpus_sha256": ({"corpus_sha256": "bb22"}, {}, "corpus_sha256: aa11 in .* and bb22 in"),
    "train_len": ({}, {"train.train_len": 64}, "train.train_len: 32 in .* and 64 in"),
    "steps": ({}, {"train.steps": 50}, r"tokens \(train.steps x batch_size x train_len\): 3840 in .* and 4800 in"),
    "batch_size": (
        {},
        {"train.batch_size": 6},
        r"tokens \(train.steps x batch_size x train_len\): 3840 in .* and 7680 in",
    ),
    "vocab_size": ({}, {"size.vocab_size": 300}, "size.vocab_size: 256 in .* and 300 in"),
    "dtype": ({"dtype": "bfloat16"}, {}, "dtype: float32 in .* and bfloat16 in"),
    "protocol": ({}, {"eval.protocol": "sliding"}, "eval.protocol: disjoint in .* and sliding in"),
    "lengths": ({}, {"eval.lengths": [1, 2]}, r"eval.lengths: \[1,2,4\] in .* and \[1,2\] in"),
    "stride": ({}, {"eval.stride": 8}, "eval.stride: null in .* and 8 in"),
    "tokens": ({}, {"eval.tokens": 1280}, "eval.tokens: 640 in .* and 1280 in"),
    "prefix": (
        {},
        {"prefix": [0.25, 0.75]},
        r"scored: every target the data scores in .* and what follows a prefix of \[0.25,0.75\] in",
    ),
    "mask": ({}, {"choices.mask": "full"}, "scored: every target the data scores in .* and the last target alone in"),
    "leaking": ({"leaking": True}, {}, "leaking: false in .* and true in"),
}


@pytest.mark.parametrize("what", MIXED)
def test_runs_that_do_not_compare_are_refused_by_name_unless_told_to_mix(tmp_path, what):
    summary, config, words = MIXED[what]
    write_run(tmp_path, "norm=rms", name="20261101-000000-first")
    write_run(tmp_path, "norm=layer", name="20261101-000001-second", config=config, **summary)
    runs, _ = read_all([tmp_path])
    with pytest.raises(UserError, match=words + " 20261101-000001-second, so their results do not compare; .*mix=true"):
        compare(runs)
    assert len(compare(runs, mix=True).arms) == 2


def test_the_command_that_compares_again_mixes_where_that_was_asked_for(tmp_path):
    """Without it the page's own command is refused."""
    write_run(tmp_path, "norm=rms")
    write_run(tmp_path, "norm=layer", corpus_sha256="bb22")
    runs = read_all([tmp_path])[0]
    assert comparison_page.comparing(compare(runs, mix=True).record(), runs).endswith(" mix=true")
    assert "mix" not in comparison_page.comparing(compare(runs[:1]).record(), runs[:1])


def test_equal_budgets_in_other_steps_may_be_compared(tmp_path):
    write_run(tmp_path, config={"train.steps": 40, "train.batch_size": 3})
    write_run(tmp_path, config={"train.steps": 20, "train.batch_size": 6})
    assert len(compare(read_all([tmp_path])[0]).arms) == 2


# ---------------------------------------------------------------- comparisons

SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)
ARMS = {
    "rms": (2.00, 2.02, 1.97, 2.05, 1.99, 2.01, 1.98, 2.03),
    "layer": (1.80, 1.83, 1.76, 1.84, 1.81, 1.80, 1.78, 1.85),  # better, always by about 0.2
    "batch": (2.03, 2.06, 1.99, 2.07, 2.03, 2.05, 1.99, 2.06),  # worse by 0.03, give or take
    "none": (2.05, 1.95, 2.01, 2.08, 1.96, 2.02, 1.97, 2.00),  # neither
    "instance": (None, None, None, 2.4, None, None, None, None),
    "sequence": (2.00, 3.48, 1.98, 3.49, 1.99, 2.00, 1.97, 2.02),  # as good, but twice on the plateau
}
PLATEAU = 3.5


@pytest.fixture(scope="module")
def six_arms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for norm, values in ARMS.items():
        for seed, value in zip(SEEDS, values, strict=True):
            write_run(folder, f"norm={norm}", seed=seed, val_loss=value, unigram_loss=PLATEAU, wall_seconds=90.0)
    return read_all([folder])[0]


@pytest.fixture(scope="module")
def compared(six_arms):
    return {measured.arm.label.removeprefix("norm="): measured for measured in compare(six_arms).arms}


def test_the_noise_floor_is_the_spread_of_the_baseline(six_arms):
    record = compare(six_arms).record()
    assert record["noise"] == {"sd": pytest.approx(np.std(ARMS["rms"], ddof=1), abs=1e-12), "n": 8}
    assert record["baseline"] == "norm=rms"


def test_verdicts_are_said_of_the_arm(compared):
    verdicts = {label: measured.verdict for label, measured in compared.items()}
    assert verdicts == {
        "rms": None,
        "layer": "better",
        "batch": "worse",
        "none": "open",
        "instance": "worse",
        "sequence": "open",
    }


def test_every_arm_is_read_at_the_level_of_those_that_survive(compared):
    e = {label: measured.against.e for label, measured in compared.items() if measured.against}
    assert e["layer"] > 100 and e["instance"] > 33.3 > e["none"]  # 33.3: 5 arms, 3 survivors, 5 / (3 * 0.05)
    assert sum(survivors(list(e.values()))) == 3
    assert {measured.against.level for measured in compared.values() if measured.against} == {1 - 0.05 * 3 / 5}
    expected = judge(ARMS["layer"], ARMS["rms"], better="lower", margin=0.01, alpha=0.05 * 3 / 5)
    assert compared["layer"].against.interval == expected.interval
    for measured in compared.values():
        if measured.against and measured.against.interval:
            low, high = measured.against.interval
            assert (low > 0.01 or high < -0.01) == (measured.verdict in ("better", "worse"))


def test_a_verdict_that_stands_alone_may_not_survive_among_many(tmp_path):
    # Six of six diverged weigh 21.5: enough alone (20), and not among two of which the other says nothing (40).
    for seed in range(6):
        write_run(tmp_path, "norm=rms", seed=seed, val_loss=2.0 + seed / 100)
        write_run(tmp_path, "norm=batch", seed=seed, val_loss=None)
        write_run(tmp_path, "norm=layer", seed=seed, val_loss=2.0 + seed * seed / 500)
    runs = read_all([tmp_path])[0]
    found = compare(runs)
    batch = next(measured for measured in found.arms if "batch" in measured.arm.label)
    assert (batch.alone, batch.verdict, batch.survives) == ("worse", "open", False)
    assert any("worse if it were the only comparison; among 2 it does not survive" in note for note in found.notes)
    without = compare([run for run in runs if run.config["choices"]["norm"] != "layer"])
    assert (without.arms[1].verdict, without.arms[1].survives) == ("worse", True)


def test_ranks_put_failures_last(compared):
    assert {label: measured.rank for label, measured in compared.items()} == {
        "layer": 1,
        "none": 2,
        "rms": 3,
        "batch": 4,
        "sequence": 5,
        "instance": 6,
    }
    assert compared["instance"].mean == 2.4 and compared["instance"].sd is None


def test_a_run_on_the_plateau_is_a_failure_and_in_no_mean(six_arms, compared):
    sequence = compared["sequence"]
    assert (sequence.failed, sequence.diverged, len(sequence.finished)) == ({1, 3}, 0, 6)
    assert sequence.mean == pytest.approx(np.mean([v for v in ARMS["sequence"] if v < 3]))
    assert (sequence.against.failures.a, sequence.against.failures.b) == (2, 0)
    assert sequence.against.effect == pytest.approx(-0.02 / 6)


@pytest.mark.parametrize("metric", ["n_params", "tokens_per_second", "exact_match@4", "stability.max_grad_norm"])
def test_what_is_no_loss_is_a_result_on_the_plateau_too(tmp_path, metric):
    """Fault found: a model that found no answer was a failed run to compare, and a result to claims."""
    for seed, loss in enumerate((3.49, None, 2.0)):
        write_run(tmp_path, seed=seed, val_loss=loss, unigram_loss=PLATEAU, length=at_lengths(0.0))
    assert compare(read_all([tmp_path])[0], metric=metric).arms[0].failed == {1}


@pytest.mark.parametrize("metric", ["val_loss", "train_loss", "loss@4", "late_ratio@4"])
def test_a_loss_of_a_run_on_the_plateau_is_that_of_a_failed_one(tmp_path, metric):
    for seed, loss in enumerate((3.49, None, 2.0)):
        write_run(tmp_path, seed=seed, val_loss=loss, unigram_loss=PLATEAU, length=at_lengths(0.0))
    assert compare(read_all([tmp_path])[0], metric=metric).arms[0].failed == {0, 1}


def test_the_record_is_json_with_the_agreed_fields(six_arms):
    record = compare(six_arms).record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert list(record) == [
        "question",
        "metric",
        "unit",
        "lower_is_better",
        "baseline",
        "smallest_effect",
        "alpha",
        "noise",
        "notes",
        "arms",
    ]
    fields = (
        "label overrides runs seeds values failed mean sd n diverged rank at_equal n_params train_flops_per_token effect"
        " interval level e e_values p failures verdict alone survives seeds_needed runs_needed minutes_needed"
    )
    assert [list(arm) for arm in record["arms"]] == [fields.split()] * 6
    base, *_, instance, sequence = record["arms"]
    assert [base[name] for name in fields.split()[14:]] == [None] * 13
    assert (instance["values"][3], instance["diverged"], instance["n"], instance["interval"]) == (2.4, 7, 8, None)
    assert instance["failures"]["only_a"] == 7 and instance["failures"]["p_boschloo"] < 0.01
    assert instance["overrides"] == ["norm=instance"]
    said = "norm=instance: 7 of 8 runs failed (7 diverged); their values are in no mean, and they count as failures"
    assert said in record["notes"]
    assert sequence["failed"] == [1, 3]


def test_a_tie_says_which_failures_it_has_not_ruled_out(tmp_path):
    for seed in range(8):
        write_run(tmp_path, "norm=rms", seed=seed, val_loss=2.0 + seed / 100)
        write_run(tmp_path, "norm=layer", seed=seed, val_loss=2.0 + seed / 99)
    found = compare(read_all([tmp_path])[0])
    assert found.arms[1].verdict == "tie"
    assert (
        "norm=layer: a tie in losses; of failures, a chance of up to 31% is not ruled out by 8 pairs without one"
        in found.notes
    )


def test_models_that_learned_nothing_have_no_mean_no_effect_and_no_curve(tmp_path):
    """Fault found: a note said that their values are in no mean, beside a mean of nothing else."""
    for seed in range(8):
        write_run(tmp_path, "norm=rms", seed=seed, val_loss=2.0 + seed / 1000, unigram_loss=PLATEAU)
        write_run(tmp_path, "norm=layer", seed=seed, val_loss=3.6 + seed / 900, unigram_loss=PLATEAU)
        write_run(tmp_path, "norm=none", seed=seed, val_loss=3.7 + seed / 900, unigram_loss=PLATEAU)
    found = compare(read_all([tmp_path])[0], baseline="norm=layer")
    record = found.record()
    rms, layer, none = record["arms"]
    assert (rms["verdict"], none["verdict"]) == ("better", "open")
    for arm in (layer, none):
        assert arm["failed"] == list(range(8)) and None not in arm["values"]
        assert (arm["mean"], arm["sd"], arm["effect"]) == (None, None, None)
        assert set(arm["at_equal"].values()) == {None}
    assert rms["effect"] is None and rms["mean"] == pytest.approx(2.0035) and None not in rms["at_equal"].values()
    assert (rms["rank"], layer["rank"], none["rank"]) == (1, 2, 2) and record["noise"] == {"sd": None, "n": 0}
    assert "takes two runs that did not fail; there are 0 seeds of norm=layer" in tables.noise(record)
    facts = dict(comparison_page.question(record)[0].rows)
    assert facts["noise floor"].startswith("unknown: it takes two runs that did not fail, and there are 0 (")
    assert tables.effects_figure(record) is None
    assert any(
        "in none of which both runs succeeded; where they stay on the plateau, train longer" in n for n in found.notes
    )


def test_only_pairs_that_did_not_fail_are_dots_and_part_of_a_curve(tmp_path):
    for seed in range(6):
        write_run(tmp_path, "norm=rms", seed=seed, val_loss=2.0, unigram_loss=PLATEAU)
        write_run(tmp_path, "norm=layer", seed=seed, val_loss=3.5 if seed == 2 else 1.5, unigram_loss=PLATEAU)
    record = compare(read_all([tmp_path])[0]).record()
    rms, layer = record["arms"]
    assert tables.differences(layer, rms) == [-0.5] * 5
    # A curve lies as high as the run's validation loss does (tests/records.py), so that of the failed run is 2 higher.
    assert layer["at_equal"]["steps"] == pytest.approx(rms["at_equal"]["steps"] - 0.5)


def test_what_is_open_says_what_it_would_take_in_runs_and_minutes(compared, six_arms):
    none, notes = compared["none"], compare(six_arms).notes
    plan = none.to_decide
    assert plan.seeds == none.against.needed > 8
    assert plan.runs == 2 * (plan.seeds - 8) and plan.minutes == pytest.approx(plan.runs * 1.5)
    (line,) = [note for note in notes if note.startswith("norm=none: ")]
    assert f"nothing can be concluded at 8 pairs; about {plan.seeds} seeds in all would decide" in line
    assert f": {plan.runs} more runs, " in line
    (line,) = [note for note in notes if note.startswith("to decide what is open in 2 arms: ")]
    other = compared["sequence"].to_decide
    assert f"{plan.seeds + other.seeds - 16 + max(plan.seeds, other.seeds) - 8} more runs" in line


def test_two_seeds_decide_nothing_and_say_so(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "norm=rms", seed=seed, val_loss=2.0 + seed / 100, wall_seconds=30.0, pack=3)
        write_run(tmp_path, "norm=layer", seed=seed, val_loss=1.0 + seed / 90, wall_seconds=30.0, pack=3)
    found = compare(read_all([tmp_path])[0])
    layer = found.arms[1]
    assert (layer.verdict, layer.against.interval) == ("open", None)
    (line,) = [note for note in found.notes if "nothing can be concluded" in note]
    assert "at 2 pairs, too few for a finite interval at 0.95; about " in line
    # A run of a pack of three took 30 / 3 seconds.
    assert layer.to_decide.minutes == pytest.approx(layer.to_decide.runs * 10 / 60)


def test_a_baseline_is_named_by_as_many_words_as_it_takes(tmp_path):
    for norm in ("rms", "layer"):
        for pos in ("rope", "alibi"):
            write_run(tmp_path, f"norm={norm}", f"pos={pos}")
    runs, _ = read_all([tmp_path])
    assert compare(runs, baseline="pos=alibi norm=layer").baseline.arm.label == "norm=layer pos=alibi"
    with pytest.raises(UserError, match="baseline=pos=alibi: means several arms; arms: norm=rms pos=rope, "):
        compare(runs, baseline="pos=alibi")
    with pytest.raises(UserError, match="baseline=pos=none: no such arm; arms: "):
        compare(runs, baseline="pos=none")


def test_a_seed_without_a_partner_is_said_and_the_rest_compared(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path, "norm=rms", seed=seed, val_loss=2.0 + seed / 10)
    for seed in (1, 2, 5):
        write_run(tmp_path, "norm=layer", seed=seed, val_loss=1.0 + seed / 9)
    write_run(tmp_path, "norm=batch", seed=7)
    found = compare(read_all([tmp_path])[0])
    _, layer, batch = found.arms
    assert (layer.against.n, layer.against.seeds) == (2, (1, 2))
    assert batch.against is None and batch.verdict is None
    assert "norm=layer: no partner at seed 0, 5, so left out of its comparison" in found.notes


def test_one_seed_says_that_nothing_can_be_said(tmp_path):
    write_run(tmp_path, "norm=rms", val_loss=2.5)
    write_run(tmp_path, "norm=layer", val_loss=2.0)
    found = compare(read_all([tmp_path])[0])
    assert found.arms[1].verdict == "open" and found.arms[1].against.effect == -0.5
    assert found.record()["noise"] == {"sd": None, "n": 1}
    assert any(
        "how many would decide is not known from so few, 6 seeds are a first look: 10 more runs" in n
        for n in found.notes
    )
    assert "one seed only, so nothing can be said of chance; run more, such as seed=0,1,2,3,4,5" in found.notes


def test_nothing_to_compare_is_refused(tmp_path):
    write_run(tmp_path, val_loss=None, status="stopped")
    with pytest.raises(UserError, match="^nothing to compare: .*: was interrupted"):
        compare(read_all([tmp_path])[0])
    with pytest.raises(UserError, match="^nothing to compare: there are no runs"):
        compare([])


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    ("seeds", "others", "pairs", "runs"),
    [
        (range(6), range(4, 10), 6, (0, 4)),  # two pairs, and four more are the other's runs; it was none at all
        (range(6), range(6, 12), 8, (2, 6)),
        (range(6), range(4), 8, (2, 4)),
        (range(4), range(4), 6, (2, 2)),
        (range(8), range(8), 6, (0, 0)),
    ],
)
def test_more_pairs_take_the_runs_that_a_seed_lacks(tmp_path, seeds, others, pairs, runs):
    for norm, of in (("rms", seeds), ("layer", others)):
        for seed in of:
            write_run(tmp_path, f"norm={norm}", seed=seed)
    arm, reference = sort_into_arms(read_all([tmp_path])[0])[0]
    assert more_runs(pairs, arm, reference) == runs


def at_lengths(shift):
    return [
        {"eval_len": 32, "loss": 2.0 + shift, "late_ratio": 1.0, "exact_match": 0.5 + shift},
        {"eval_len": 128, "loss": 2.5 + shift, "late_ratio": 1.25 + shift, "exact_match": 0.25 + shift},
        {"eval_len": 256, "loss": None, "loss_last": None, "note": "not defined beyond 128"},
    ]


@pytest.fixture
def two_arms(tmp_path):
    for seed in range(6):  # all differences are the same: six signs decide
        write_run(tmp_path, "pos=rope", seed=seed, length=at_lengths(0.0), stability={"max_grad_norm": 3.5})
        write_run(
            tmp_path,
            "pos=alibi",
            seed=seed,
            length=at_lengths(0.125),
            stability={"max_grad_norm": 2.5},
            tokens_per_second=50.0,
        )
    return read_all([tmp_path])[0]


@pytest.mark.parametrize(
    ("metric", "effect", "verdict", "unit", "smallest_effect"),
    [
        ("loss@4", 0.125, "worse", "nats per token", 0.01),
        ("late_ratio@4", 0.125, "worse", "times the same targets at 1x", 0.0),
        ("exact_match@4", 0.125, "open", "share of answers", 0.0),  # shares take ten pairs at least
        ("stability.max_grad_norm", -1.0, "better", "", 0.0),
        ("tokens_per_second", -50.0, "worse", "tokens per second", 0.0),
        ("train_loss", 0.0, "tie", "nats per token", 0.01),
    ],
)
def test_a_metric_knows_its_unit_and_which_way_is_better(two_arms, metric, effect, verdict, unit, smallest_effect):
    found = compare(two_arms, metric=metric, baseline="pos=rope")
    arm = found.arms[1]
    assert (arm.against.effect, arm.verdict, found.metric.unit, found.smallest_effect) == (
        effect,
        verdict,
        unit,
        smallest_effect,
    )


def test_shares_differ_by_less_than_one(two_arms):
    with pytest.raises(UserError, match="^smallest_effect=1: two shares differ by 1 at most; give less, such as 0.1$"):
        compare(two_arms, metric="exact_match@4", smallest_effect=1.0)


@pytest.mark.parametrize(
    "metric", ["late_ratio@3", "loss@8", "valloss", "stability", "choices.norm", "leaking", "@", "loss@"]
)
def test_a_metric_that_is_not_there_is_refused_with_those_that_are(two_arms, metric):
    with pytest.raises(
        UserError,
        match=f"^metric={metric}: .* has no such number; (did you mean [a-z_@0-9.]+\\? )?it has .*late_ratio@4, .*stability.max_grad_norm, .*val_loss",
    ):
        compare(two_arms, metric=metric)


@pytest.mark.parametrize(
    ("metric", "meant"),
    [("max_grad_norm", "stability.max_grad_norm"), ("valloss", "val_loss"), ("late_ration@4", "late_ratio@4")],
)
def test_a_metric_that_is_nearly_there_is_named(two_arms, metric, meant):
    with pytest.raises(UserError, match=f"^metric={metric}: .* no such number; did you mean {meant}\\? it has"):
        compare(two_arms, metric=metric)


@pytest.mark.parametrize("metric", ["train_loss", "tokens_per_second", "loss@4"])
def test_a_diverged_run_has_no_value_whatever_it_measured_before(tmp_path, metric):
    for seed in (0, 1):
        write_run(tmp_path, "pos=rope", seed=seed, length=at_lengths(0.0))
    write_run(tmp_path, "pos=alibi", seed=0, length=at_lengths(0.0))
    write_run(tmp_path, "pos=alibi", seed=1, val_loss=None, length=[], train_loss=0.5)
    arm = compare(read_all([tmp_path])[0], metric=metric).arms[1]
    assert arm.values[1] is None and arm.against.failures.a == 1


@pytest.mark.parametrize(
    ("metric", "summary"),
    [
        ("stability.max_activation_rms", {"stability": {"max_activation_rms": None}}),  # probe.every=null
        ("stability.clipped_share", {"stability": {"clipped_share": None}}),  # train.clip=null
        ("n_active_params", {"n_active_params": None}),  # a token uses all of them
        ("late_ratio@4", {"length": [{"eval_len": 128, "loss": 2.0, "late_ratio": None}]}),  # other targets there
    ],
)
def test_what_a_run_did_not_measure_is_no_failure_of_it(tmp_path, metric, summary):
    """Fault found: seven dense runs had failed to have active parameters, and lost to seven with experts."""
    measured = {
        "stability": {"max_activation_rms": 3.0, "clipped_share": 0.5},
        "n_active_params": 7.0,
        "length": [{"eval_len": 128, "loss": 2.0, "late_ratio": 1.0}],
    }
    for seed in range(7):
        write_run(tmp_path, "norm=rms", seed=seed, **measured)
        write_run(tmp_path, "norm=layer", seed=seed, **measured | summary)
    with pytest.raises(UserError, match=f"^metric={metric}: .*norm=layer.* did not measure it; it has .*val_loss"):
        compare(read_all([tmp_path])[0], metric=metric)


def test_a_loss_that_was_not_finite_is_a_failure(tmp_path):
    length = [{"eval_len": 128, "loss": None, "late_ratio": None}]
    for seed in range(2):
        write_run(tmp_path, seed=seed, length=length if seed else at_lengths(0.0))
    for metric in ("loss@4", "late_ratio@4"):
        assert compare(read_all([tmp_path])[0], metric=metric).arms[0].failed == {1}


# ---------------------------------------------------------------- at equal steps, tokens, FLOPs, seconds


def half_life_of_two(losses):
    """The weight of a logged step halves with every second step after it."""
    weights = [0.5 ** ((len(losses) - 1 - i) / 2) for i in range(len(losses))]
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)


def test_losses_are_compared_where_both_arms_have_had_the_same(tmp_path):
    # Loss is 4 + val_loss - step / 20 at steps 1, 10, 20, 30, 40, of 96 tokens each.
    write_run(tmp_path, "pos=rope", val_loss=0.5)
    write_run(tmp_path, "pos=alibi", val_loss=0.0, train_flops_per_token=1200.0, tokens_per_second=50.0)
    rope, alibi = (arm["at_equal"] for arm in compare(read_all([tmp_path])[0]).record()["arms"])
    curve = [3.95, 3.5, 3.0, 2.5, 2.0]
    at_the_end, half_way = half_life_of_two(curve), half_life_of_two(curve[:3])
    assert (alibi["steps"], alibi["tokens"]) == pytest.approx((at_the_end, at_the_end))
    # Each of alibi's tokens costs twice as much and takes twice as long, so rope's end is its step 20.
    assert (alibi["flops"], alibi["seconds"]) == pytest.approx((half_way, half_way))
    assert rope == pytest.approx(dict.fromkeys(("steps", "tokens", "flops", "seconds"), at_the_end + 0.5))


@pytest.mark.parametrize(
    ("unlike", "words"),
    [({"pack": 4}, "pack: 1, 4"), ({"threads": 7}, "threads: 2, 7"), ({"device": "cuda"}, "device: cpu, cuda")],
)
def test_seconds_of_runs_that_were_not_timed_alike_do_not_compare(unlike, words, tmp_path):
    """An arm that was trained as a pack of four took four times as long, and lost at equal seconds and in tokens per second."""
    for seed in range(8):
        write_run(tmp_path, "pos=rope", seed=seed, threads=2, tokens_per_second=100.0 + seed)
        write_run(tmp_path, "pos=alibi", seed=seed, **({"threads": 2, "tokens_per_second": 25.0 + seed / 2} | unlike))
    runs = read_all([tmp_path])[0]
    found = compare(runs)
    assert [arm.at_equal["seconds"] for arm in found.arms] == [None, None]
    assert all(arm.at_equal[axis] is not None for arm in found.arms for axis in ("steps", "tokens", "flops"))
    assert f"the runs were not timed alike ({words}), so that their seconds do not compare" in found.notes
    name, _, values = words.partition(": ")
    for metric in ("tokens_per_second", "wall_seconds"):
        with pytest.raises(
            UserError,
            match=f"^metric={metric}: the runs were not timed alike, {name} being {values.replace(', ', ' and ')}",
        ):
            compare([replace(run, summary=run.summary | {"wall_seconds": 1.0}) for run in runs], metric=metric)
    assert compare(runs, metric="tokens_per_second", mix=True).arms[1].verdict in ("better", "worse")
    alike = [run for run in runs if not unlike.items() <= run.summary.items()]
    assert len(alike) == 8 and compare(alike, metric="tokens_per_second").arms[0].at_equal["seconds"] is not None


def test_a_run_without_a_log_or_a_speed_has_no_loss_there(tmp_path):
    (write_run(tmp_path, "pos=rope") / "metrics.jsonl").unlink()
    write_run(tmp_path, "pos=alibi", tokens_per_second=None)
    assert [arm.at_equal for arm in compare(read_all([tmp_path])[0]).arms] == [
        dict.fromkeys(("steps", "tokens", "flops", "seconds"))
    ] * 2


def test_runs_of_several_commits_and_devices_are_said(tmp_path):
    write_run(tmp_path, "pos=rope", git={"commit": "0123456789ab", "changed": False})
    write_run(tmp_path, "pos=alibi", git={"commit": "fedcba987654", "changed": False}, device="cuda")
    notes = compare(read_all([tmp_path])[0]).notes
    assert "the runs come from more than one commit (01234567, fedcba98)" in notes
    assert "the runs come from more than one device (cpu, cuda)" in notes


# ---------------------------------------------------------------- honest on itself


def drawn_run(arm, seed, value, folder):
    config = {
        "seed": seed,
        "train": {"steps": 4, "batch_size": 2, "train_len": 8, "lr": 1e-3},
        "size": {"vocab_size": 9},
        "arm": arm,
        "eval": {"protocol": "disjoint", "lengths": [1], "stride": None, "tokens": 64},
    }
    return Run(folder, config, {"status": "completed", "val_loss": value, "corpus_sha256": "aa11"})


def test_among_five_equal_arms_a_winner_is_rare(tmp_path):
    # 200 comparisons of four arms with a fifth. Were the chance of naming any winner 5%, more than 20 such
    # comparisons would be seen once in 500 studies.
    assert stats.binom.sf(20, 200, 0.05) < 1 / 500
    (tmp_path / "summary.json").write_text("{}")
    draws = np.random.default_rng(5).normal(2.0, 0.02, size=(200, 5, 5)).tolist()
    named = 0
    for study in draws:
        runs = [
            drawn_run(arm, seed, value, tmp_path)
            for arm, values in enumerate(study)
            for seed, value in enumerate(values)
        ]
        named += any(measured.verdict in ("better", "worse") for measured in compare(runs, smallest_effect=0.0).arms)
    assert named <= 20


def test_a_run_is_read_back_as_it_was_written(tmp_path):
    run = read_run(write_run(tmp_path, "norm=layer", seed=3, val_loss=1.75))
    assert (run.seed, run.summary["val_loss"], run.overrides[0], run.diverged) == (3, 1.75, "norm=layer", False)


def test_arms_that_differ_in_some_layers_are_named_by_their_rules(tmp_path):
    for mixer in ("gqa", "mqa"):
        rule = {"at": "1::2", "choices": {"mixer": mixer}, "mixer": {"qkv_bias": False}, "size": {"n_kv_heads": 1}}
        write_run(tmp_path, seed=0, name=mixer, config={"layers": [rule]})
    arms, _ = sort_into_arms([read_run(tmp_path / mixer) for mixer in ("gqa", "mqa")])
    assert [arm.label for arm in arms] == ["layers[1::2].mixer=gqa", "layers[1::2].mixer=mqa"]


def test_a_run_from_before_mixers_had_their_name_is_of_one_arm_with_a_newer_one(tmp_path):
    old = write_run(tmp_path, seed=0, name="old", config={"choices.attn": "gqa", "attn.qkv_bias": True})
    new = write_run(tmp_path, seed=1, name="new", config={"choices.mixer": "gqa", "mixer.qkv_bias": True})
    (arm,), _ = sort_into_arms([read_run(old), read_run(new)])
    assert arm.seeds == [0, 1]


def test_arms_whose_rates_were_not_sought_are_called_untuned(tmp_path):
    write_run(tmp_path, "norm=rms", val_loss=2.5)
    write_run(tmp_path, "norm=layer", val_loss=2.0)
    untuned = [note for note in compare(read_all([tmp_path])[0]).notes if "untuned" in note]
    assert len(untuned) == 1 and untuned[0].startswith(
        "every arm is untuned, at lr=0.003, which may suit one arm better"
    )
    write_run(tmp_path, "norm=none", val_loss=2.2, tuned={"lr": 0.006, "edge": False, "rates": [], "seeds": [1000]})
    (told,) = [note for note in compare(read_all([tmp_path])[0]).notes if "untuned" in note]
    assert told.startswith("norm=rms, norm=layer: untuned, at lr=0.003")


def test_arms_that_chose_among_more_trials_and_at_an_edge_are_told(tmp_path):
    """One of them may have had three times the choice, and nothing was said of it."""

    def tuned(n, edge=False, **more):
        rates = [[0.001 * 2**i, [2.0, 2.1]] for i in range(n)]
        return {"lr": 0.002, "edge": edge, "rates": rates, "seeds": [1000, 1001]} | more

    write_run(tmp_path / "a", "norm=rms", tuned=tuned(3))
    write_run(tmp_path / "a", "norm=layer", tuned=tuned(3))
    assert not [note for note in compare(read_all([tmp_path / "a"])[0]).notes if "tried" in note]
    second = {"field": "train.weight_decay", "value": 0.1, "edge": True, "rates": [[0.0, tuned(4)["rates"]]] * 2}
    write_run(tmp_path / "a", "norm=batch", tuned=tuned(4, edge=True, second=second))
    write_run(tmp_path / "a", "norm=none", tuned={"lr": 0.1, "rates": 3, "second": {"rates": [3]}})
    told = [note for note in compare(read_all([tmp_path / "a"])[0]).notes if "tried" in note or "sought in" in note]
    numbers = "3 for norm=rms, 3 for norm=layer, 8 for norm=batch"
    assert told == [
        "norm=batch: its rate is at the edge of those that were tried, so that a better one may lie beyond",
        f"rates were sought in unlike numbers of cells: {numbers}; arms of one sweep with tune=lr try the same ones",
    ]
