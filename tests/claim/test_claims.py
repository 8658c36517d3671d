"""Claims: read strictly, decided by paired comparison, run once, found again, written down in words."""

import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from omegaconf import open_dict
from oracles import composed

import archlab
from archlab.base.errors import UserError
from archlab.claim import course, jobs, ledger, measures
from archlab.claim.claim import FORMS, ClaimFile, Part, known_claims, read_claim, tupled
from archlab.claim.decide import Values, decide, decide_part, largest_difference
from archlab.claim.jobs import Measurement, RunJob
from archlab.claim.record import part_record
from archlab.claim.reductions import REDUCTIONS
from archlab.claim.session import decide_claims
from archlab.claim.store import JobStore
from archlab.comparison.sequence import majority_e
from archlab.data.text import standard_library
from archlab.runs import code, corpus, tune
from archlab.runs.code import bare, code_of, reachable

command = commands.command  # the fixture
NAMES = sorted(known_claims())

PLAIN = {
    "sentence": "A is lower than B.",
    "source": "nobody",
    "arms": {"a": ["norm=layer"], "b": ["norm=rms"]},
    "tune": "it is not what is asked about",
    "quick": {"seeds": 6},
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
    [
        pytest.param(name, budget, marks=[pytest.mark.slow] * (budget != "quick"))
        for name in NAMES
        for budget in read_claim(known_claims()[name]).budgets
    ],
)
def test_every_claim_is_whole_and_its_arms_can_be_made_at_every_budget(name, budget, tmp_path):
    claim = read_claim(known_claims()[name])
    assert claim.sentence.endswith(".") and claim.source
    assert not isinstance(claim.budgets["full"], str)
    asked = claim.budgets[budget]
    made = course.course(claim, budget, JobStore(tmp_path))
    assert len(made.jobs(1)) >= 1 if not isinstance(asked, str) else made.wanted() == []
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
        ({"quick": {"seeds": 5}}, "claim/mine.yaml: quick.seeds: 5 of a trained claim, which takes 6 to 24"),
        ({"quick": {"seeds": 1002}}, "claim/mine.yaml: quick.seeds: seeds from 1000 on are for tuning; use at most 24"),
        ({"parts": [part(expect="equal")]}, "claim/mine.yaml: parts.0.expect: equal says that there is no difference, and nothing shows that these runs would find one; give controls"),
        ({"parts": [part(expect="equal")], "controls": [part(expect="equal")]}, "nothing shows that these runs would find one; give controls, one of which expects above or below"),
        ({"parts": [part(measure="val_los")]}, "claim/mine.yaml: parts.0.measure: val_los is neither measured nor a number of a run; did you mean val_loss?"),
        ({"parts": [part(over={"train.lr": [1, 2]}, reduce="bets")]}, "claim/mine.yaml: parts.0.reduce: bets is no reduction; did you mean best?"),
        ({"parts": [part(measure="token_accuracy@1", by=1)]}, "claim/mine.yaml: parts.0.by: 1, and two shares differ by 1 at most; give less, such as 0.1"),
        ({"parts": [part(measure="token_accuracy@1", over={"train.lr": [1, 2]}, reduce="best_x")]}, "claim/mine.yaml: parts.0.reduce: best_x holds losses against that of a model which learned nothing, and token_accuracy@1 is no loss in nats per token; use measure: val_loss, or reduce: best"),
        ({"kind": "initial", "tune": None}, "claim/mine.yaml: parts.0.measure: val_loss is a number of a trained run, and kind: initial trains nothing; use kind: trained"),
        ({"kind": "identity"}, "claim/mine.yaml: tune: is for kind: trained; a claim of kind identity has no rate to find; leave it out"),
        ({"parts": [part(over={"train.lr": [1, 2]}, reduce="sensitivity")]}, "claim/mine.yaml: parts.0.reduce: sensitivity says nothing by itself, since a model that hardly trains has a good one; add a part of the same arms with reduce: best"),
        ({"parts": [part(than=math.nan)]}, "claim/mine.yaml: parts.0.than: should be a finite number"),
        ({"parts": [part(measure="val_loss@2")]}, "claim/mine.yaml: parts.0.measure: val_loss@2 is neither measured nor a number of a run; did you mean val_loss?"),
        ({"parts": [part(measure="loss")]}, "claim/mine.yaml: parts.0.measure: loss is neither measured nor a number of a run"),
        ({"parts": [part(measure="loss@0")]}, "claim/mine.yaml: parts.0.measure: loss@0 is neither measured nor a number of a run"),
        ({"parts": [part(measure="probe.max_grad_norm")]}, "claim/mine.yaml: parts.0.measure: probe.max_grad_norm is neither measured nor a number of a run; did you mean stability.max_grad_norm?"),
        ({"parts": [part(difference=None, between=["a", "b"])]}, "claim/mine.yaml: parts.0.between: val_loss is a number of one model; give difference: [a, b]"),
        ({"parts": [part(measure="logit_gap")]}, "claim/mine.yaml: parts.0.difference: logit_gap is a number of two models together; give between: [a, b]"),
        ({"arms": {"a": ["seed=3"], "b": []}}, "claim/mine.yaml: arms.a: seed=3: runs are made at seeds from 0 on, as many as quick and full say; leave it out"),
        ({"common": ["output=x"]}, "claim/mine.yaml: common: output=x: runs are kept where runs=FOLDER of the command says; leave it out"),
        ({"quick": {"overrides": ["eval.part=tuning"]}}, "claim/mine.yaml: quick.overrides: eval.part=tuning: rates are chosen on tuning, and what is claimed is scored on test; leave it out"),
        ({"parts": [part(over={"seed": [1, 2]}, reduce="best")]}, "claim/mine.yaml: over: seed: runs are made at seeds from 0 on"),
        ({"common": ["data_seed=5"]}, "claim/mine.yaml: common: data_seed=5: each run has the data of its own seed, the same in every arm; leave it out"),
        ({"sentence": "   "}, "claim/mine.yaml: sentence: is blank; give words"),
        ({"parts": [part(says="")]}, "claim/mine.yaml: parts.0.says: is blank; give words"),
        ({"parts": [part(by="much")]}, 'parts.0.by: should be a valid number, and "much" was given; give a number, such as 0.1'),
        ({"parts": [part(by=True)]}, "parts.0.by: should be a valid number, and true was given; give a number, such as 0.1"),
        ({"parts": [part(by=-1)]}, "parts.0.by: should be greater than or equal to 0, and -1 was given"),
        ({"full": False}, "claim/mine.yaml: full: false is no budget; give {seeds: N, overrides: [...]}, or a sentence that says why the claim can't be decided at it, in quotes"),
        ({"full": " "}, 'claim/mine.yaml: full: " " is no budget'),
        ({"quick": {"seeds": "six"}}, 'claim/mine.yaml: quick.seeds: should be a valid integer, and "six" was given; give a whole number'),
        ({"quick": {"seed": 6}}, "extra inputs are not permitted; did you mean seeds? fields: seeds, overrides"),
        ({"parts": [part(meter="val_loss")]}, "claim/mine.yaml: parts.0.meter: extra inputs are not permitted; did you mean measure? fields: says, measure, expect"),
        ({"common": "norm=rms"}, 'claim/mine.yaml: common: should be a valid tuple, and "norm=rms" was given; give a list, such as [norm=rms]'),
        ({"arms": {"a": {"train": [], "thn": []}, "b": []}}, "claim/mine.yaml: arms.a.thn: extra inputs are not permitted; did you mean then? fields: train, then"),
        ({"arms": {"a": 5, "b": []}}, "claim/mine.yaml: arms.a: should be a valid tuple, and 5 was given; give a list, such as [norm=rms]"),
        ({"tune": {"train.clip": 1}}, 'claim/mine.yaml: tune: {"train.clip": 1} is no way to tune; give lr, {field: [value, value]}, or a sentence'),
        ({"parts": [part(over={"norm": ["rms", "layer"]}, reduce="slope")]}, 'claim/mine.yaml: parts.0.over.norm=[rms, layer]: "rms" is no number; give numbers, which reduce is taken over'),
        ({"parts": [part(over={"train.lr": [True, 2e-3]}, reduce="best")]}, "parts.0.over.train.lr=[True, 0.002]: true is no number"),
        ({"parts": [part(over={"train.lr": [1e-3, None]}, reduce="best")]}, "parts.0.over.train.lr=[0.001, None]: null is no number"),
        ({"parts": [part(over={"train.lr": [1e-3, math.inf]}, reduce="best")]}, "Infinity is no number"),
        ({"parts": [part(over={"size.n_layers": [[1], [2]]}, reduce="best")]}, "[1] is no number"),
        ({"parts": [part(over={"train.lr": ["1e-3", 1.0e-3]}, reduce="best")]}, "parts.0.over.train.lr=[1e-3, 0.001]: has a value twice, which would be the same runs; give each once"),
        ({"parts": [part(over={"train.warmup": [0, 2]}, reduce="slope")]}, "parts.0.over.train.warmup=[0, 2]: 0 has no logarithm, which reduce: slope takes; give values above 0, or another reduce"),
        ({"parts": [part(over={"train.warmup": [0, 2]}, reduce="best_x")]}, "0 has no logarithm, which reduce: best_x takes"),
        ({"parts": [part(over={"train.warmup": [-1, 2]}, reduce="largest_stable")]}, "-1 has no logarithm, which reduce: largest_stable takes"),
        ({"parts": [part(over={"train.lr": ["4e-3", "2e-3"]}, reduce="best")]}, "parts.0.over.train.lr=[4e-3, 2e-3]: does not rise; give the values from the lowest up"),
        ({"arms": {"a": [], "b": ["norm=none"], "more": ["norm=layer"]}}, "claim/mine.yaml: arms.more: no part looks at it, so that it would change nothing"),
        ({"kind": "exact"}, "claim/mine.yaml: kind: should be 'trained', 'initial' or 'identity'"),
    ],
)  # fmt: skip
def test_a_claim_that_is_not_whole_is_refused_in_one_line(changes, told, tmp_path):
    with pytest.raises(UserError) as refusal:
        read_claim(written(tmp_path, **changes))
    assert told in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(("content", "told"), [("", "null"), ("3", "3"), ("[a]", '["a"]'), ("words", '"words"')])
def test_a_file_without_fields_is_no_claim(content, told, tmp_path):
    file = written(tmp_path)
    file.write_text(content)
    with pytest.raises(UserError) as refusal:
        read_claim(file)
    assert str(refusal.value).startswith(f"claim/mine.yaml: is {told}, and no claim; give fields")


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    """1e-2 has no point. What was swept over stays as it is written, since registered claims say it so."""
    texts = [part(by="1e-2", than="-2E3", over={"train.clip": ["1e-2", "2e-2"]}, reduce="slope")]
    claim = read_claim(written(tmp_path, parts=texts, tune={"train.weight_decay": ["1e-2", ".5"]}))
    (only,) = claim.parts
    assert (only.by, only.than) == (0.01, -2000.0) and only.over == {"train.clip": ("1e-2", "2e-2")}
    assert claim.second.values == (0.01, 0.5)
    same = [part(by=0.01, than=-2000.0, over={"train.clip": ["1e-2", "2e-2"]}, reduce="slope")]
    numbers = written(tmp_path, parts=same, tune={"train.weight_decay": [0.01, 0.5]})
    assert read_claim(numbers).sha256 == claim.sha256


def test_last_over_first_is_over_numbers_in_the_order_that_is_given(tmp_path):
    over = {"train.warmup": [2, 0, -1]}
    read_claim(written(tmp_path, parts=[part(over=over, reduce="last_over_first")]))


def test_a_missing_field_is_named(tmp_path):
    file = written(tmp_path)
    given = yaml.safe_load(file.read_text())
    del given["source"]
    file.write_text(yaml.safe_dump(given))
    with pytest.raises(UserError, match="claim/mine.yaml: source: field required"):
        read_claim(file)


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ("full: never", "full: is given twice, the second time on line 3"),
        ("gpu:\n  seeds: 6\n  seeds: 7", "seeds: is given twice, the second time on line 5"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(after, told, tmp_path):
    """Yaml keeps the last one, so that half of the file would say nothing."""
    file = written(tmp_path)
    plain = yaml.safe_load(file.read_text())
    short = {name: value for name, value in plain.items() if name != "full"}
    file.write_text("# a comment\nfull: too long\n" + after + "\n" + yaml.safe_dump(short))
    with pytest.raises(UserError) as refused:
        read_claim(file)
    assert str(refused.value) == f"claim/mine.yaml: {told}; give it once"


def test_a_file_that_is_no_text_is_refused_in_one_line(tmp_path):
    file = written(tmp_path)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="claim/mine.yaml: cannot be read: it is no text in UTF-8"):
        read_claim(file)


def test_an_arm_that_makes_no_model_is_refused_before_anything_runs(tmp_path):
    claim = read_claim(written(tmp_path, arms={"a": ["norm=rsm"], "b": []}))
    with pytest.raises(UserError, match="claim/mine.yaml: parts.0: norm=rsm: no such option; did you mean rms?"):
        course.course(claim, "quick", JobStore(tmp_path / "runs"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": {"a": ["norm=rms"], "b": []}}, "difference: a and b are one and the same; give arms that differ"),
        (
            {"parts": [part(measure="late_ratio@3")]},
            "measure: late_ratio@3 of a, whose eval.lengths are [1, 2, 4, 8, 16]; add 3 to them",
        ),
        (
            {
                "arms": {"a": {"train": ["norm=rms"], "then": ["mask=causal"]}, "b": ["norm=rms"]},
                "parts": [part(measure="loss@2")],
            },
            "difference: a and b are one and the same; give arms that differ",
        ),
        (
            {"parts": [part(measure="stability.max_activation_rms")], "common": ["probe.every=null"]},
            "measure: stability.max_activation_rms of a, whose probe.every is null; add probe.every=10",
        ),
        (
            {"parts": [part(measure="stability.min_attention_entropy")], "arms": {"a": [], "b": ["mixer=gdn"]}},
            "measure: stability.min_attention_entropy of b, whose mixer=gdn has no softmax over scores; use another mixer or measure",
        ),
        (
            {"parts": [part(measure="exact_match@1")]},
            "measure: exact_match@1 of a, whose data=text has no one right answer; use loss@1, or data of a task such as data=copy",
        ),
        (
            {"parts": [part(measure="late_ratio@2")], "common": ["data=copy"]},
            "measure: late_ratio@2 of a, whose data=copy is a task, of other problems at each length; use exact_match@2",
        ),
        (
            {"parts": [part(measure="late_ratio@2")], "common": ["eval.lengths=[2,4]"]},
            "measure: late_ratio@2 of a, whose eval.lengths are [2, 4]; add 1 to them, which it is against",
        ),
        (
            {"parts": [part(measure="n_mtp_params")]},
            "measure: n_mtp_params of a, which predicts no further tokens; add mtp.form, or use n_params",
        ),
        (
            {"parts": [part(measure="n_active_params")], "arms": {"a": ["ffn=experts"], "b": []}},
            "measure: n_active_params of b, of which a token uses all parameters; use n_params",
        ),
        (
            {"parts": [part(measure="stability.clipped_share")], "common": ["train.clip=null"]},
            "measure: stability.clipped_share of a, whose train.clip is null; add train.clip=1",
        ),
        (
            {"parts": [part(measure="stability.loss_spike_score")], "common": ["train.steps=16"]},
            "measure: stability.loss_spike_score of a, whose train.steps is 16; give more than 16, or another measure",
        ),
        (
            {
                "parts": [part(measure="n_params")],
                "arms": {"a": {"train": [], "then": ["mask=window"]}, "b": ["norm=rms"]},
            },
            "measure: n_params of a, whose `then` only evaluates what was trained; use val_loss or a number of a length, such as loss@1",
        ),
        (
            {"parts": [part(measure="first_token_share@1")]},
            "measure: first_token_share@1 of a, whose eval.first_token_share is false; add eval.first_token_share=true",
        ),
    ],
)
def test_what_could_decide_nothing_is_refused_before_anything_runs(changes, told, tmp_path):
    claim = read_claim(written(tmp_path, **changes))
    with pytest.raises(UserError, match=re.escape(f"claim/mine.yaml: parts.0: {told}")):
        course.course(claim, "quick", JobStore(tmp_path / "runs"))


# --- deciding -----------------------------------------------------------------------------------

N = 8
WIGGLE = np.array([0.3, -0.2, 0.1, -0.4, 0.25, -0.05, 0.15, -0.15])
"""Of mean 0 and standard deviation 0.24."""


def decided(
    expect: str,
    form: str = "difference",
    by: float = 0.1,
    than: float | None = None,
    measure: str = "val_loss",
    failed: dict[str, set[int]] = {},  # noqa: B006
    **values,
):
    arms = tuple(values)
    made = Part(
        says="it", measure=measure, expect=expect, by=by, than=than, **{form: arms if form != "value" else arms[0]}
    )
    return decide_part(
        made, {label: Values(dict(enumerate(of)), frozenset(failed.get(label, ()))) for label, of in values.items()}
    )


def around(mean: float, spread: float = 0.1, n: int = N) -> list[float]:
    return [mean + spread * float(wiggle) for wiggle in np.resize(WIGGLE, n)]


FLAT = [2.0] * N


@pytest.mark.parametrize(("expect", "verdict"), [("below", "SUPPORTED"), ("above", "REFUTED"), ("equal", "REFUTED")])
def test_a_clear_difference_supports_its_side_and_refutes_the_others(expect, verdict):
    assert decided(expect, a=around(1.0), b=FLAT).verdict == verdict


@pytest.mark.parametrize(("expect", "verdict"), [("below", "TIE"), ("above", "TIE"), ("equal", "SUPPORTED")])
def test_a_difference_inside_the_margin_is_none(expect, verdict):
    assert decided(expect, by=0.5, a=around(2.02), b=FLAT).verdict == verdict


def test_what_lies_wholly_short_of_the_margin_is_refuted_though_it_is_no_tie():
    """Fault found: an interval wholly on the wrong side was inconclusive."""
    a = around(2.1, spread=0.4)
    result = decided("below", by=0.05, a=a, b=FLAT)
    assert result.judged.interval[0] > -0.05 and result.judged.interval[1] > 0.05
    assert result.verdict == "REFUTED"


@pytest.mark.parametrize("expect", ["below", "above", "equal"])
def test_a_noisy_difference_decides_nothing_and_says_how_many_seeds_would(expect):
    result = decided(expect, a=around(2.2, spread=5.0), b=FLAT)
    assert result.verdict == "INCONCLUSIVE" and "seeds would tell" in part_record(result)["told"]


def test_a_spread_of_zero_is_no_certainty():
    """Fault found: three equal differences of a number that takes few values decided a claim."""
    assert decided("above", by=0.4, a=[1.0] * 3, b=[0.5] * 3).verdict == "INCONCLUSIVE"


def test_a_value_and_a_ratio_are_held_against_their_number():
    assert decided("above", "value", by=0.0, than=0.5, a=around(1.0)).verdict == "SUPPORTED"
    assert decided("above", "value", by=0.0, than=1.5, a=around(1.0)).verdict == "REFUTED"
    a = around(1.0)
    twice = [2 * x + 0.01 * w for x, w in zip(a, WIGGLE, strict=True)]
    assert decided("equal", "ratio", by=0.1, than=2.0, b=twice, a=a).verdict == "SUPPORTED"
    assert decided("equal", "ratio", by=0.1, b=twice, a=a).verdict == "REFUTED"  # against 1, where nothing is said


def test_a_difference_may_be_held_against_another_number_than_zero():
    far = around(3.0)
    assert decided("above", by=0.1, than=0.5, b=far, a=FLAT).verdict == "SUPPORTED"
    assert decided("above", by=0.1, than=1.5, b=far, a=FLAT).verdict == "REFUTED"
    assert decided("below", by=0.1, than=1.5, b=far, a=FLAT).verdict == "SUPPORTED"
    assert decided("equal", by=0.2, than=1.0, b=far, a=FLAT).verdict == "SUPPORTED"
    record = part_record(decided("above", by=0.1, than=0.5, b=far, a=FLAT))
    assert record["effect"] == pytest.approx(1.0) and np.mean(record["interval"]) == pytest.approx(1.0)


def test_the_p_is_of_the_margin_and_not_of_zero():
    """Fault found: a difference well within the margin was printed with a small p. Of eight signs, all as seen or all the other way: 2^-7."""
    record = part_record(decided("below", by=0.5, a=around(1.9), b=FLAT))
    assert record["p"] == pytest.approx(1.0)
    assert part_record(decided("below", by=0.05, a=around(1.5), b=FLAT))["p"] == pytest.approx(2**-7)


# --- failures -----------------------------------------------------------------------------------

ALL = set(range(N))


def test_an_arm_that_always_fails_has_lost_to_one_that_never_does():
    lost = [math.inf] * N
    result = decided("above", a=lost, b=around(1.0), failed={"a": ALL})
    assert result.verdict == "SUPPORTED" and part_record(result)["failed"] == [N, 0]
    assert part_record(result)["values"]["a"] == [None] * N
    assert decided("below", a=lost, b=around(1.0), failed={"a": ALL}).verdict == "REFUTED"


def test_an_arm_that_diverges_does_not_find_more():
    """Fault found: with exact match, of which more is better, a diverged run counted as infinitely many."""
    lost = decided("above", by=0.1, measure="exact_match@1", a=[math.inf] * N, b=around(0.5), failed={"a": ALL})
    assert lost.verdict == "REFUTED"


def test_a_claim_of_no_worse_holds_against_an_arm_that_always_fails():
    """Fault found: DeepNorm finishing where Pre-LN always diverged refuted "no more than 0.02 above Pre-LN"."""
    values = {"deep": around(2.0), "pre": [math.inf] * N}
    assert decided("below", by=0.0, than=0.02, failed={"pre": ALL}, **values).verdict == "SUPPORTED"


def test_an_arm_that_fails_three_times_in_ten_is_not_the_same_as_one_that_never_does():
    a, b = around(2.0, n=10), around(2.0, n=10)
    assert decided("equal", by=0.1, a=a, b=b, failed={"a": {1, 4, 7}}).verdict == "INCONCLUSIVE"


def test_an_arm_with_more_failures_does_not_win_by_its_other_runs():
    assert decided("below", a=around(1.0), b=FLAT, failed={"a": {2}}).verdict == "INCONCLUSIVE"
    assert decided("below", a=around(1.0), b=FLAT, failed={"b": {2}}).verdict == "SUPPORTED"


def test_what_the_runs_come_to_that_did_not_fail_is_not_what_the_arm_does():
    assert decided("below", "value", by=0.0, than=2.0, a=around(1.0), failed={"a": {3}}).verdict == "INCONCLUSIVE"


# --- claims of several parts --------------------------------------------------------------------


def whole(parts, controls=()):
    claim = read_claim(known_claims()["swiglu_beats_gelu"])
    return decide(claim, parts, controls)


def test_all_parts_support_a_claim_and_their_mean_evidence_refutes_it():
    good, bad = decided("below", a=around(1.0), b=FLAT), decided("above", a=around(1.0), b=FLAT)
    open_ = decided("below", a=around(2.2, spread=5.0), b=FLAT)
    assert [part.verdict for part in (good, bad, open_)] == ["SUPPORTED", "REFUTED", "INCONCLUSIVE"]
    assert whole([good, good]).verdict == "SUPPORTED"
    assert whole([good, open_]).verdict == "INCONCLUSIVE"
    assert whole([good, bad, open_]).verdict == "REFUTED"


def test_a_part_among_several_needs_more_evidence_to_refute_the_claim():
    weak = next(
        result
        for distance in np.arange(0.05, 1.0, 0.005)
        if (result := decided("above", by=0.0, a=around(2 - distance, 1.0), b=FLAT)).e_against >= 20
    )
    neutral = decided("below", a=around(2.2, spread=5.0), b=FLAT)
    assert 20 <= weak.e_against < 2 * 20 and neutral.e_against < 1
    assert whole([weak]).verdict == "REFUTED"
    assert whole([weak, neutral]).verdict == "INCONCLUSIVE"


def test_without_its_controls_a_claim_has_no_verdict():
    good, lost = decided("below", a=around(1.0), b=FLAT), decided("above", a=FLAT, b=around(2.0, spread=5.0))
    assert whole([good], [good]).verdict == "SUPPORTED"
    found = whole([good], [lost])
    assert found.verdict == "INCONCLUSIVE" and found.because is lost and found.e == 0
    from archlab.claim.decide import reason

    assert reason(found).startswith("the control was not found, so these runs could not have told: it: asked")


def test_the_evidence_for_a_claim_is_that_of_its_weakest_part_and_a_lost_control_takes_all_of_it():
    strong, weak = (decided("below", a=around(2 - distance), b=FLAT) for distance in (1.0, 0.3))
    assert strong.e_for > 2 * weak.e_for > 40
    assert whole([strong, weak]).e == whole([weak, strong]).e == weak.e_for
    lost = decided("above", a=FLAT, b=around(2.0, spread=5.0))
    without = whole([strong], [lost])
    assert without.e_for == without.e_against == 0


def test_a_tie_is_told_from_a_refutation_by_the_part_that_speaks_most_against_the_claim():
    tie, bad = decided("below", by=0.5, a=around(2.0), b=FLAT), decided("above", a=around(-3.0), b=FLAT)
    assert tie.verdict == "TIE" and bad.verdict == "REFUTED" and bad.e_against > tie.e_against
    assert whole([tie]).verdict == "TIE" and whole([tie, bad]).verdict == whole([bad, tie]).verdict == "REFUTED"


def test_an_arm_that_fails_is_evidence_by_itself():
    """Eight of eight: 1/2 integral of (2p)^8 w(p), w ~ (1 - p)^(-3/4) cut to (1/2, 1), by quadrature over (1 - p)^(1/4)."""
    p = 1 - np.linspace(0, 0.5**0.25, 100_001) ** 4  # in which w is constant
    expected = 0.5 * np.mean((2 * p) ** 8)
    values = {"a": [math.inf] * N, "b": around(1.0)}
    for expect, which in (("above", "e_for"), ("below", "e_against"), ("equal", "e_against")):
        result = decided(expect, failed={"a": ALL}, **values)
        assert getattr(result, which) == pytest.approx(expected, rel=1e-3) and expected > 20
        assert whole([result]).verdict == ("SUPPORTED" if which == "e_for" else "REFUTED")
    # One more failure of the favoured arm: its other runs speak for nothing, and against it still.
    result = decided("below", a=around(1.0), b=FLAT, failed={"a": {2}})
    assert result.e_for < 1 and decided("below", a=around(1.0), b=FLAT).e_for > 20


def test_a_failure_speaks_against_the_arm_of_a_ratio_that_failed():
    a, b = around(1.0), around(2.0)
    for label, verdict in (("a", "INCONCLUSIVE"), ("b", "SUPPORTED")):
        assert decided("below", "ratio", a=a, b=b, failed={label: {3}}).verdict == verdict
    assert decided("below", "ratio", a=a, b=b).verdict == "SUPPORTED"


@pytest.mark.parametrize("name", [name for name in NAMES if "context_gain" in known_claims()[name].read_text()])
def test_a_model_that_goes_by_the_token_before_alone_fails_the_claim(name):
    """It loses nothing at any length, as it uses no context; its context gain is nothing but the noise of the windows."""
    claim = read_claim(known_claims()[name])
    asked = [one for one in claim.controls if one.measure.startswith("context_gain")]
    assert asked
    of_bigrams = [
        decide_part(one, {label: Values(dict(enumerate(around(0.0)))) for label in one.arms}) for one in asked
    ]
    assert {control.verdict for control in of_bigrams} == {"REFUTED"}
    for one in claim.parts:
        if one.form == "value" and one.expect == "below":
            held = decide_part(one, {one.arms[0]: Values(dict(enumerate(around(1.0, 0.01))))})
            assert held.verdict == "SUPPORTED"
            assert decide(claim, [held], of_bigrams).verdict == "INCONCLUSIVE"


def test_an_identity_holds_at_every_seed_or_fails():
    from archlab.claim.decide import identity_part

    part = Part(says="it", measure="logit_gap", expect="equal", by=1e-9, between=("a", "b"))
    results = [identity_part(part, {"between": Values(dict(enumerate(of)))}) for of in ([0.0, 1e-10], [0.0, 1e-8])]
    assert [result.verdict for result in results] == ["IDENTITY HOLDS", "IDENTITY FAILS"]
    identity = read_claim(known_claims()["centred_rms_is_layer"])
    assert [decide(identity, of, ()).verdict for of in (results, results[:1])] == ["IDENTITY FAILS", "IDENTITY HOLDS"]
    record = part_record(results[0])
    assert (
        record["p"] is None
        and record["interval"] is None
        and record["told"] == "asked: within 1e-09 of 0; seen: 0 to 1e-10"
    )


# --- reductions: by hand ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "xs", "values", "failed", "expected"),
    [
        ("best", [1, 2, 3], [2.5, 2.0, math.inf], 3.0, 2.0),
        ("best_x", [0.001, 0.01, 0.1], [0.64, 0.04, 1.44], 9.0, -2.2),  # (log10 x + 2.2)^2
        ("best_x", [0.01, 0.1, 1.0], [1.5, 0.5, math.inf], 1.5, -1.0),  # a failed run as far up as the other neighbour
        ("best_x", [0.01, 0.1, 1.0], [1.0, 2.0, 3.0], 9.0, -2.0),
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
    assert REDUCTIONS[name](xs, values, failed, "lower") == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("values", "failed", "better", "expected"),
    [
        ([0.047, 0.051, 0.039], math.inf, "higher", 0.051),  # more is better, so the best is the largest
        ([0.5, math.inf, 0.25], math.inf, "higher", 0.5),  # a run that diverged is none of them
        ([math.inf, math.inf], math.inf, "higher", math.nan),
        ([2.96, 2.99], 3.0, "lower", math.nan),  # none learned
        ([1.5, 1.25], math.inf, "lower", 1.25),  # what is no loss is not held against one
    ],
)
def test_the_best_value_is_that_of_the_measures_own_direction(values, failed, better, expected):
    assert REDUCTIONS["best"]([1, 2, 3][: len(values)], values, failed, better) == pytest.approx(expected, nan_ok=True)


def reduced_by_hand(monkeypatch, over, losses, reduce, unigram=3.0, measure="val_loss"):
    """`course.reduced` of runs that came to these losses, one for each swept value in the order they were typed."""
    from archlab.claim import course

    monkeypatch.setattr(course, "value_of", lambda job, measure: job)
    monkeypatch.setattr(course, "unlearned", lambda row: unigram)
    part = Part(
        says="it",
        measure=measure,
        expect="below",
        by=0.1,
        difference=("a", "b"),
        over={"train.lr": over},
        reduce=reduce,
    )
    return course.reduced(part, losses)


@pytest.mark.parametrize("reduce", sorted(REDUCTIONS.keys() - {"last_over_first"}))
def test_what_goes_along_values_takes_none_that_do_not_rise(tmp_path, reduce):
    spoken = part(over={"train.lr": ["4e-3", "2e-3"]}, reduce=reduce)
    with pytest.raises(UserError, match="does not rise; give the values from the lowest up"):
        read_claim(written(tmp_path, parts=[spoken]))


def test_the_first_value_is_the_one_that_was_typed_first(monkeypatch):
    """Against a rate of 4e-3 that of 1e-3 has half the loss, whatever their order in size."""
    assert reduced_by_hand(monkeypatch, (4e-3, 1e-3), [3.0, 1.5], "last_over_first") == 0.5


@pytest.mark.parametrize("reduce", ["best", "best_x", "largest_stable", "sensitivity", "slope", "last_over_first"])
def test_an_arm_that_diverged_everywhere_has_no_number(monkeypatch, reduce):
    assert math.isnan(reduced_by_hand(monkeypatch, (1e-3, 2e-3), [math.inf, math.inf], reduce))


def test_an_arm_whose_first_run_diverged_is_no_small_multiple_of_it(monkeypatch):
    assert math.isnan(reduced_by_hand(monkeypatch, (1e-3, 2e-3), [math.inf, 2.0], "last_over_first"))


def test_arms_that_learned_nothing_do_not_tie():
    """By their losses alone they would: both lie at the unigram loss."""
    nothing = Values(dict.fromkeys(range(N), math.nan))
    part = Part(
        says="it",
        measure="val_loss",
        expect="equal",
        by=0.1,
        difference=("a", "b"),
        over={"train.lr": (1e-3, 2e-3)},
        reduce="best",
    )
    assert decide_part(part, {"a": nothing, "b": nothing}).verdict == "INCONCLUSIVE"


def test_as_many_failures_on_either_side_leave_it_to_the_losses():
    """Their e-value is less than without failures, since pairs that fail alone are not nothing; 1 nat is enough all the same."""
    failed = {"a": {3}, "b": {7}}
    worse = decided("below", a=around(3.0), b=FLAT, failed=failed)
    better = decided("below", a=around(1.0), b=FLAT, failed=failed)
    assert (worse.verdict, better.verdict) == ("REFUTED", "SUPPORTED")
    assert worse.e_against >= 20 and better.e_for >= 20
    assert whole([worse]).verdict == "REFUTED" and whole([better]).verdict == "SUPPORTED"


def test_losses_speak_against_no_arm_that_fails_less():
    """a ends higher by a nat and b alone failed once: what a does is not refuted by losses that b has at its best only."""
    found = decided("below", a=around(3.0), b=FLAT, failed={"b": {2}})
    assert found.verdict == "INCONCLUSIVE" and found.e_against < 1
    assert decided("below", a=around(3.0), b=FLAT, failed={"a": {2}}).e_against > 20


@pytest.mark.parametrize("form", ["difference", "ratio"])
@pytest.mark.parametrize("expect", ["above", "below", "equal"])
@pytest.mark.parametrize("counts", [(0, 0), (1, 1), (1, 0), (0, 1), (8, 0), (0, 8), (3, 1), (5, 5)])
@pytest.mark.parametrize("distance", [-1.0, -0.02, 0.0, 0.02, 1.0])
def test_no_verdict_without_evidence_for_it(form, expect, counts, distance):
    """Whatever failed: what a part is said to be has an e-value that decides."""
    failed = {"a": set(range(counts[0])), "b": set(range(N - counts[1], N))}
    found = decided(expect, form, a=around(2.0 + distance), b=FLAT, failed=failed)
    if found.verdict != "INCONCLUSIVE":
        assert (found.e_for if found.verdict == "SUPPORTED" else found.e_against) >= 20


def test_in_a_ratio_too_it_is_not_forgotten_who_failed():
    """Seventeen of b's runs fail and none of a's: that is for a, however near their losses are."""
    a, b = {seed: 2.0 + 0.01 * (seed % 3) for seed in range(24)}, {seed: 2.0 + 0.01 * (seed % 2) for seed in range(24)}
    failing = frozenset(range(17))
    for form in ("difference", "ratio"):
        part = Part(says="it", measure="val_loss", expect="below", by=0.05, **{form: ("a", "b")})
        assert decide_part(part, {"a": Values(a), "b": Values(b, failing)}).verdict == "SUPPORTED"
        assert decide_part(part, {"a": Values(a, failing), "b": Values(b)}).verdict == "REFUTED"


def test_the_part_that_is_named_is_the_one_that_decided():
    strong, weak = (decided("below", a=around(2 - distance), b=FLAT) for distance in (1.0, 0.3))
    assert whole([strong, weak]).because is weak  # the evidence for a claim is that of its weakest part
    against = decided("above", a=around(1.0), b=FLAT)
    open_ = decided("below", a=around(2.2, spread=5.0), b=FLAT)
    assert whole([strong, open_]).because is open_
    assert whole([strong, against]).because is against


def test_failures_speak_against_that_there_is_no_difference_together_with_the_losses():
    """a fails alone at two seeds of eight, b at one; each way of failing more, times one more than what losses say, halved."""
    found = decided("equal", by=0.05, failed={"a": {0, 1}, "b": {2}}, a=around(2.3), b=FLAT)
    more, less = (majority_e(*seen) for seen in ((2, 1), (1, 2)))
    losses = max(found.judged.e_above, found.judged.e_below)
    assert losses > 20 and found.e_for == 0.0
    assert found.e_against == pytest.approx((more + less) * (losses + 1) / 2, rel=1e-12)


@pytest.mark.parametrize(("than", "largest"), [(0.0, 1.0), (0.25, 1.25), (-0.25, 1.25)])
def test_two_shares_are_one_apart_at_most_and_what_is_taken_off_one(than, largest):
    part = Part(says="it", measure="exact_match@1", expect="above", by=0.1, than=than, difference=("a", "b"))
    assert largest_difference(part) == largest
    assert largest_difference(part.model_copy(update={"measure": "val_loss"})) is None


def test_shares_are_judged_by_what_they_can_be_and_not_by_their_spread_alone():
    """No run of six found the rule: two in five may find it still, so that nothing is known of a tenth."""
    part = Part(says="it", measure="exact_match@1", expect="above", by=0.1, difference=("a", "b"))
    seen = {seed: 0.03 + 0.001 * (seed % 3) for seed in range(24)}

    def verdict(n, a):
        return decide_part(
            part, {"a": Values({i: a[i] for i in range(n)}), "b": Values({i: seen[i] for i in range(n)})}
        )

    assert verdict(24, {i: seen[23 - i] for i in seen}).verdict == "INCONCLUSIVE"
    found = {seed: 0.95 + 0.001 * (seed % 5) for seed in range(24)}
    assert [verdict(n, found).verdict for n in (6, 8, 10)] == ["INCONCLUSIVE", "INCONCLUSIVE", "SUPPORTED"]
    low, high = verdict(10, found).judged.interval
    assert low > 0.1 and high > 0.95  # the interval is that of the same rule


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


@pytest.fixture
def few_seeds(monkeypatch):
    """Trained claims are looked at after 2 and 3 seeds."""
    look_early(monkeypatch)


def look_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("archlab.claim.course.LOOKS", (2, 3))
    patch.setattr("archlab.claim.claim.LOOKS", (2, 3))


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
    arms = {"a": ["norm=layer"], "b": ["norm=rms"], "windowed": looked}
    written(folder, common=SMALL, arms=arms, parts=parts, quick={"seeds": 3})
    did: list[list[int]] = []
    real = jobs.work

    def counted(todo, workers):
        did[-1].append(len(todo))
        return real(todo, workers)

    def go():
        did.append([])
        return decide_claims(["mine"], "quick", folder / "runs", folder / "out", 1, folder)

    with pytest.MonkeyPatch.context() as patch:
        look_early(patch)
        patch.setattr("archlab.claim.session.work", counted)
        first, second = go(), go()
        next(iter(sorted((folder / "runs").glob("*/*/summary.json")))).unlink()
        third = go()
    made, again, after = did
    return folder, (made, again, after), first, second, third


def test_a_claims_runs_are_made_once_and_found_again(session):
    _, (made, again, after), first, second, third = session
    # Two arms at two seeds, two looks, two arms' parameters at two seeds; then a third seed of each.
    assert made == [2 * 2 + 2 + 2 * 2, 2 + 1 + 2] and again == []
    assert sum(after) in (1, 2)  # the lost run, and the look at its weights if there was one
    told = lambda records: [(record["verdict"], [part["values"] for part in record["parts"]]) for record in records]  # noqa: E731
    assert told(first) == told(second) == told(third)


def test_every_verdict_is_kept_in_a_line(session):
    folder, *_, records = session
    lines = ledger.verdicts(folder / "out").records()
    assert [line["claim"] for line in lines] == ["mine"]  # what was found again is not noted again
    (registered,) = ledger.registrations(folder / "out").records()
    assert registered["claim"] == "mine" and registered["says"] == records[0]["says"]


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
    told = json.loads(json.dumps(records[0]))
    assert told.pop("survives") is False and record == told
    rests_on = {name: json.loads((folder / "out" / name).read_text())["sha256"] for name in record["lines"]}
    assert record["lines"] == rests_on and rests_on.keys() == {"registered.jsonl", "verdicts.jsonl"}
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
    assert record["verdict"] == "NOT RUN" and record["reason"] == "the effect is smaller than the noise here"
    assert not (tmp_path / "runs").exists()
    assert "the effect is smaller" in (tmp_path / "out" / "mine" / "README.md").read_text()


def test_a_diverged_run_is_infinitely_bad(tmp_path, monkeypatch):
    cfg = composed(*SMALL)
    monkeypatch.setattr(RunJob, "record", {"status": "diverged", "val_loss": None, "unigram_loss": 3.0})
    assert course.value_of(RunJob(cfg, tmp_path), "val_loss") == math.inf


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
    assert course.of_record(record, "loss@2", 16) == 2.5
    assert course.of_record(record, "stability.max_grad_norm", 16) == 7.0
    with pytest.raises(UserError, match="whose runs have no such number; name one of their summary.json"):
        course.of_record(record, "los@2", 16)


def test_every_form_has_a_number_it_is_held_against():
    assert FORMS == {"value": 0.0, "difference": 0.0, "ratio": 1.0, "between": 0.0}


# --- the command --------------------------------------------------------------------------------


def test_the_command_prints_the_table_and_writes_the_pages(command, tmp_path):
    done = command("claims", "centred_rms_is_layer", "doubling_*")
    assert done.status == 0, done.err
    assert "takes about" in done.err
    rows = [line for line in done.out.splitlines() if line.startswith("IDENTITY")]
    assert [row.split()[1:3] for row in rows] == [
        ["HOLDS", "centred_rms_is_layer"], ["HOLDS", "doubling_the_batch_doubles_it"], ["FAILS", "doubling_the_length_doubles_it"]
    ]  # fmt: skip
    assert (tmp_path / "experiments/claims/centred_rms_is_layer/README.md").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["alibi_hold"], "alibi_hold: no such claim; did you mean alibi_holds?"),
        (["budgte=quick"], "budgte=quick: claims has no option budgte; did you mean budget? it has: budget, workers, runs, output, pack, anew, ladder"),
        (["budget=slow"], "budget=slow: should be 'quick', 'full' or 'gpu'"),
        (["swiglu_beats_gelu", "budget=gpu"], "budget=gpu: swiglu_beats_gelu says nothing of it; give the claim gpu: {overrides: [...]}, or use"),
        (["workers=0"], "workers=0: should be greater than or equal to 1"),
        (["pack=0"], "pack=0: should be 'auto' or 'off', or should be greater than or equal to 1"),
        (["pack=much"], "pack=much: should be 'auto' or 'off', or should be a valid integer"),
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
        ("below", "difference", {"by": 0.01}, {"a": around(2.025, 0.01), "b": FLAT}, "asked: below -0.01; seen: +0.025 ("),
        ("above", "difference", {"by": 0.25}, {"a": around(2.5), "b": FLAT}, "asked: above +0.25; seen: +0.5 ("),
        ("above", "difference", {"by": 0.0}, {"a": around(1.5), "b": FLAT}, "asked: above 0; seen: -0.5 ("),
        ("below", "value", {"by": 0.5, "than": 2.0}, {"a": around(1.25)}, "asked: below 1.5; seen: 1.25 ("),
        ("equal", "ratio", {"by": 0.1}, {"a": FLAT, "b": FLAT}, "asked: within 0.1 of 1; seen: 1 (the same at every seed"),
    ],
)  # fmt: skip
def test_what_was_asked_stands_beside_what_was_seen(expect, form, options, values, told):
    assert part_record(decided(expect, form, **options, **values))["told"].startswith(told)


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
    assert pace.measured(runs, 2.0) == pace.Pace(2.0, 5.0)
    assert pace.measured([], 2.0) == pace.Pace(2.0, 1.0)


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


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"val_loss": "x"}, "val_loss is no number"),
        ({"unigram_loss": "x"}, "unigram_loss is no number"),
        ({"unigram_loss": None}, "unigram_loss is no number"),
        ({"status": "diverged", "val_loss": [1]}, "val_loss is no number"),
        ({"val_loss": True}, "val_loss is no number"),
    ],
)
def test_a_damaged_summary_of_a_run_is_one_line(tmp_path, changes, why):
    job = RunJob(composed(*SMALL), tmp_path)
    file = job.folder / "run" / "summary.json"
    file.parent.mkdir(parents=True)
    file.write_text(
        json.dumps({"status": "completed", "wall_seconds": 1.0, "val_loss": 2.0, "unigram_loss": 3.0} | changes)
    )
    with pytest.raises(UserError) as refused:
        _ = job.record
    assert str(refused.value) == f"{file}: is damaged: {why}; remove it, and claims makes it again"


def test_a_run_that_its_last_update_broke_counts_as_diverged(tmp_path):
    """Its loss is finite at every step, and that of its evaluation is not."""
    words = (*SMALL, "norm=none", "train.steps=1", "train.warmup=0", "train.lr=1e15")
    job = RunJob(composed(*words), tmp_path)
    job.do()
    assert job.record["status"] == "completed" and job.record["val_loss"] is None
    assert course.failure(job, "exact_match@1") and course.failure(job, "val_loss")
    assert course.value_of(job, "val_loss") == course.value_of(job, "loss@1") == course.loss_of(job) == math.inf


# --- what may not change ----------------------------------------------------------------------------


@pytest.fixture
def registered(tmp_path):
    """A claim of one's own with a verdict."""
    written(tmp_path, quick="it is not decided here")

    def decide(**changes):
        return decide_claims(["mine"], "quick", tmp_path / "runs", tmp_path / "out", 1, tmp_path, **changes)

    decide()
    return tmp_path, decide


def test_a_claim_that_says_otherwise_than_what_was_registered_is_refused(registered):
    folder, decide_again = registered
    decide_again()
    written(folder, quick="nor here")
    with pytest.raises(
        UserError,
        match="claim/mine.yaml: does not say what was registered on .*; take the change back, or add anew=true",
    ):
        decide_again()
    decide_again(anew=True)
    assert [line["reason"] for line in ledger.verdicts(folder / "out").records()] == [
        "it is not decided here",
        "nor here",
    ]
    with pytest.raises(UserError, match="anew=true: every claim says what was registered, so it would change nothing"):
        decide_again(anew=True)


def test_the_layout_of_a_claim_is_no_part_of_what_it_says(registered):
    folder, decide_again = registered
    file = folder / "claim" / "mine.yaml"
    file.write_text("# a comment\n" + file.read_text())
    decide_again()


@pytest.mark.parametrize("name", ["verdicts.jsonl", "registered.jsonl"])
@pytest.mark.parametrize("how", ["edited", "taken out", "no JSON"])
def test_a_line_that_was_edited_is_found(registered, name, how):
    folder, decide_again = registered
    decide_again()
    written(folder, quick="nor here")
    decide_again(anew=True)
    file = folder / "out" / name
    lines = file.read_text().splitlines(keepends=True)
    changed = {
        "edited": [lines[0].replace("mine", "yours"), *lines[1:]],
        "taken out": lines[1:],
        "no JSON": ["x\n", *lines[1:]],
    }
    file.write_text("".join(changed[how]))
    with pytest.raises(UserError) as refused:
        decide_again()
    assert str(refused.value).startswith(f"{file}: line 1") and "\n" not in str(refused.value)


def test_a_line_that_was_taken_out_is_found_though_the_next_is_made_to_follow_on(registered):
    folder, decide_again = registered
    written(folder, quick="nor here")
    decide_again(anew=True)
    file = folder / "out" / "verdicts.jsonl"
    first, second = map(json.loads, file.read_text().splitlines())
    assert second["before"] == first["sha256"]
    file.write_text(json.dumps(second | {"before": ""}) + "\n")
    with pytest.raises(UserError, match="verdicts.jsonl: line 1 is not what was written there"):
        decide_again()


def test_a_ledger_of_other_records_is_one_line(tmp_path):
    """Its hashes are right, but it is not of claims."""
    for kept in (ledger.registrations, ledger.verdicts):
        kept(tmp_path).add({"run": "x"})
        with pytest.raises(UserError, match=r"jsonl: line 1 is not what was written there"):
            kept(tmp_path).records()


def test_a_ledger_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"registered.jsonl: cannot be written: .*; give another output=FOLDER"):
        ledger.registrations(tmp_path / "file").add({"claim": "a", "says": "", "date": "2026-01-01"})
    (tmp_path / "registered.jsonl").mkdir()
    with pytest.raises(UserError, match=r"registered.jsonl: there is no such file"):
        ledger.registrations(tmp_path).records()


def test_verdicts_survive_beside_the_others_by_their_evidence(tmp_path):
    """Four claims of one day share half of 5%: 4 / (0.025 k) of evidence each, for k survivors."""
    for name, e in (("a", 200.0), ("b", 90.0), ("c", 30.0), ("d", 1e9)):
        ledger.registrations(tmp_path).add({"claim": name, "says": "", "date": "2026-01-01"})
        ledger.verdicts(tmp_path).add({"claim": name, "kind": "identity" if name == "d" else "trained", "e": e})
    ledger.registrations(tmp_path).add({"claim": "not yet", "says": "", "date": "2026-01-01"})
    # Without the identity four are registered: 160 for one survivor, 80 for each of two, 53 for each of three.
    assert ledger.surviving(tmp_path) == {"a": True, "b": True, "c": False}


def test_what_is_not_decided_yet_counts_among_those_tested(tmp_path):
    """Three of one day share half of 5%: 120 / k. Of the two that are decided alone it would be 80 / k, enough for both."""
    for name in ("a", "b", "not yet"):
        ledger.registrations(tmp_path).add({"claim": name, "says": "", "date": "2026-01-01"})
    for name, e in (("a", 3.0), ("b", 50.0), ("a", 130.0)):  # the last line of a counts
        ledger.verdicts(tmp_path).add({"claim": name, "kind": "trained", "e": e})
    assert ledger.surviving(tmp_path) == {"a": True, "b": False}


def test_claims_stand_in_the_order_of_their_first_registration(tmp_path):
    """One of the first day has half of the weight, later ones 1/4 and 1/12: 40, 80 and 240 / k."""
    for name, date in (("a", "2026-01-01"), ("b", "2026-01-02"), ("c", "2026-01-03"), ("a", "2026-01-04")):
        ledger.registrations(tmp_path).add({"claim": name, "says": "", "date": date})
    for name, e in (("c", 70.0), ("b", 50.0), ("a", 20.0)):
        ledger.verdicts(tmp_path).add({"claim": name, "kind": "trained", "e": e})
    assert ledger.surviving(tmp_path) == {"a": True, "b": True, "c": False}


def test_a_claim_in_other_words_is_a_later_hypothesis(tmp_path):
    """Of the first call, a and b share half of the weight: 80 / k. What a says since is the first after it: 1/4, 80 / k too."""
    for name, says, batch in (("a", "one", 1), ("b", "it", 1), ("a", "two", 2)):
        ledger.registrations(tmp_path).add({"claim": name, "says": says, "date": "2026-01-01", "batch": batch})
    decided_as = lambda name, says, e: {"claim": name, "says": says, "kind": "trained", "e": e}  # noqa: E731
    ledger.verdicts(tmp_path).add(decided_as("a", "one", 30.0), decided_as("b", "it", 50.0))
    assert ledger.surviving(tmp_path) == {"b": False}, "as it stands a was not decided"
    ledger.verdicts(tmp_path).add(decided_as("a", "two", 45.0))
    assert ledger.surviving(tmp_path) == {"a": True, "b": True}
    # What comes next has 1/12: 240 / k, 60 beside the three others, of which what a said before is one.
    ledger.registrations(tmp_path).add({"claim": "c", "says": "it", "date": "2026-01-01", "batch": 3})
    ledger.verdicts(tmp_path).add(decided_as("c", "it", 59.0))
    assert ledger.surviving(tmp_path) == {"a": True, "b": True, "c": False}
    ledger.verdicts(tmp_path).add(decided_as("c", "it", 61.0))
    assert ledger.surviving(tmp_path) == {"a": True, "b": True, "c": True}


def test_a_claim_at_another_ladder_or_budget_is_another_hypothesis(tmp_path):
    """Fault found: the last of a claim's verdicts was its e-value, so that who decides it in turn plainly and on a ladder chose.

    Weights: 1/2 for the plain one, then 1/4 and 1/12 for the ladder and for another budget: 40, 80 and 240 / k.
    """
    plain = {"claim": "mine", "says": "it"}
    ladder, budget = plain | {"ladder": "2x1"}, plain | {"budget": "full"}
    for batch, line in enumerate((plain, ladder, budget), start=1):
        ledger.registrations(tmp_path).add(line | {"date": "2026-01-01", "batch": batch})

    def decided(at: dict, e: float) -> tuple[float, float]:
        ledger.verdicts(tmp_path).add({"budget": "quick"} | at | {"kind": "trained", "e": e})
        return ledger.standings(tmp_path)["mine"]

    assert decided(plain, 39.0) == pytest.approx((39.0, 40.0))
    assert decided(ladder, 90.0) == pytest.approx((90.0, 40.0)), "beside the plain one"
    assert decided(plain, 39.0) == pytest.approx((39.0, 20.0)), "one of two now"
    assert decided(budget, 70.0) == pytest.approx((70.0, 80.0)), "the third, beside both"
    assert decided(ladder, 30.0) == pytest.approx((30.0, 40.0)), "only its own last verdict is replaced"


def test_what_is_registered_later_on_the_first_day_puts_no_survivor_out(tmp_path):
    """Fault found: each claim of the first day had an equal share of half of 5%, and one more made it smaller for all."""
    claims = [read_claim(written(tmp_path, name)) for name in ("first", "second", "third")]
    ledger.register(tmp_path, claims[:1])
    ledger.verdicts(tmp_path).add({"claim": "first", "says": claims[0].sha256, "kind": "trained", "e": 40.0})
    assert ledger.surviving(tmp_path) == {"first": True}  # half of the weight: 40
    ledger.register(tmp_path, claims)
    assert ledger.surviving(tmp_path) == {"first": True}
    assert [line["batch"] for line in ledger.registrations(tmp_path).records()] == [1, 2, 2]


def test_of_lines_without_a_number_the_first_day_is_the_first_batch(tmp_path):
    """Two of them share half of the weight: 80 / k. A numbered one of the same day comes after them, with 1/4: 80 / k too."""
    lines = [{"claim": name, "says": "", "date": "2026-01-01"} for name in ("a", "b")]
    ledger.registrations(tmp_path).add(*lines, {"claim": "c", "says": "", "date": "2026-01-01", "batch": 1})
    for name, e in (("a", 81.0), ("b", 1.0), ("c", 1.0)):
        ledger.verdicts(tmp_path).add({"claim": name, "kind": "trained", "e": e})
    assert ledger.surviving(tmp_path) == {"a": True, "b": False, "c": False}  # a third of half would need 120


def test_the_registration_of_a_claim_is_the_first_at_this_ladder_since_it_says_this(tmp_path):
    """Fault found: of a claim that was changed the page said the date of its first words."""
    for day, says, at in (
        (1, "x", None),
        (2, "x", "2x1"),
        (3, "x", None),
        (4, "y", None),
        (5, "y", None),
        (6, "x", None),
    ):
        of_it = {"ladder": at} if at else {}
        ledger.registrations(tmp_path).add({"claim": "mine", "says": says, "date": f"2026-01-0{day}"} | of_it)
        ledger.registrations(tmp_path).add({"claim": "other", "says": "x", "date": f"2026-01-0{day}"})
        if day == 3:
            dates = [ledger.registration(tmp_path, "mine", "x", at)["date"] for at in (None, "2x1")]
            assert dates == ["2026-01-01", "2026-01-02"] and ledger.registration(tmp_path, "mine", "x", "4x1") is None
        if day == 5:
            assert ledger.registration(tmp_path, "mine", "y")["date"] == "2026-01-04"
            assert ledger.registration(tmp_path, "mine", "x") is None
    assert ledger.registration(tmp_path, "mine", "x")["date"] == "2026-01-06"


@pytest.mark.parametrize("missing", ["registered.jsonl", "verdicts.jsonl"])
@pytest.mark.parametrize("older", [False, True])
def test_a_line_at_the_end_that_was_taken_out_is_found_by_what_rests_on_it(registered, missing, older):
    """Fault found: no line follows the last one, so that nothing missed it."""
    folder, decide_again = registered
    kept = folder / "out" / "mine" / "result.json"
    if older:
        record = json.loads(kept.read_text())
        del record["lines"]
        kept.write_text(json.dumps(record))
        decide_again()
        kept.write_text(json.dumps(record))
    file = folder / "out" / missing
    file.write_text("")
    with pytest.raises(UserError) as refused:
        decide_again()
    assert str(refused.value) == (
        f"{file}: lacks the line that {kept} rests on; put back what was written, or give another output=FOLDER"
    )
    assert file.read_text() == ""
    file.unlink()
    with pytest.raises(UserError, match="lacks the line that"):
        decide_again()


@pytest.mark.parametrize("damaged", ["cut off", "", "{}", "[1]", "another verdict"])
def test_a_kept_result_that_is_damaged_is_refused_and_not_decided_again_in_silence(registered, damaged):
    folder, decide_again = registered
    kept = folder / "out" / "mine" / "result.json"
    whole = kept.read_text()
    verdict = json.loads(whole)["verdict"]
    kept.write_text(
        {"cut off": whole[: len(whole) // 2], "another verdict": whole.replace(verdict, "TRUE")}.get(damaged, damaged)
    )
    before, lines = kept.read_text(), (folder / "out" / "verdicts.jsonl").read_text()
    with pytest.raises(UserError) as refused:
        decide_again()
    assert str(refused.value) == (
        f"{kept}: is not what was written there; put back what was, or remove it, and the claim is decided again from its runs"
    )
    assert kept.read_text() == before and (folder / "out" / "verdicts.jsonl").read_text() == lines
    kept.unlink()
    decide_again()
    assert json.loads(kept.read_text())["verdict"] == verdict


def test_a_last_verdict_that_was_taken_back_is_found_though_an_earlier_one_is_like_it(registered):
    folder, decide_again = registered
    written(folder, quick="nor here")
    decide_again(anew=True)
    written(folder, quick="it is not decided here")
    decide_again(anew=True)
    file = folder / "out" / "verdicts.jsonl"
    first, _, third = file.read_text().splitlines(keepends=True)
    assert json.loads(first)["reason"] == json.loads(third)["reason"]
    file.write_text(first)
    with pytest.raises(UserError, match=r"verdicts\.jsonl: lacks the line that .* rests on"):
        decide_again()


def test_who_registers_or_decides_at_once_loses_no_line(tmp_path):
    """Each of two sessions read the ledger before the other wrote to it."""
    ours, theirs = (read_claim(written(tmp_path, name)) for name in ("ours", "theirs"))
    kept = ledger.registrations(tmp_path)
    stale = kept.records()
    ledger.register(tmp_path, [theirs])
    kept.extend(lambda there: ledger.to_register(there, [ours, theirs], False, None, {}, "quick"))
    assert stale == [] and [(line["claim"], line["batch"]) for line in kept.records()] == [("theirs", 1), ("ours", 2)]


def test_what_a_claim_says_does_not_depend_on_the_code_of_other_blocks(tmp_path):
    modules = lambda *names: frozenset(f"archlab.blocks.{name}" for name in names)  # noqa: E731
    files = {file.name for file in reachable(modules("norm"))}
    assert {"norm.py", "decoder.py", "step.py"} <= files and not {"deltanet.py", "tables.py"} & files
    assert "deltanet.py" in {file.name for file in reachable(modules("deltanet"))}
    one, same, other = (tmp_path / name for name in ("one.py", "same.py", "other.py"))
    one.write_text('"""Says."""\nx = 1  # this\n')
    same.write_text("x   = 1\n")
    other.write_text("x = 2\n")
    assert bare(one) == bare(same) != bare(other)
    cfg = {"norm": {"_target_": "archlab.blocks.norm.RMSNorm"}}
    assert code_of(cfg) != code_of(cfg | {"mixer": {"_target_": "archlab.blocks.deltanet.DeltaNet"}})


def test_runs_of_another_torch_other_code_or_another_precision_are_others(tmp_path, monkeypatch):
    cfg = composed(*SMALL)
    names = lambda: (RunJob(cfg, tmp_path).folder, tune.kept_in(cfg))  # noqa: E731
    before = names()
    code.hash_of.cache_clear()
    assert names() == before
    for of, name, other in ((code.torch, "__version__", "0.0.0"), (code, "bare", lambda file: "pass")):
        with monkeypatch.context() as patch:
            patch.setattr(of, name, other)
            code.hash_of.cache_clear()
            assert not set(names()) & set(before)
    code.hash_of.cache_clear()
    precise, half = (RunJob(composed(*SMALL, f"precision={name}"), tmp_path).folder for name in ("fp32", "bf16"))
    assert precise == before[0] != half, "on a CPU fp32 is what is meant"


def forget_code() -> None:
    for kept in (code.hash_of, code.reachable, code.always, code.bare, code.code_at):
        kept.cache_clear()


@pytest.fixture
def code_read_anew():
    """What a test sees of code is not what the next one sees."""
    yield
    forget_code()


@pytest.mark.parametrize("place", ["claim/measures.py", "cost/estimate.py", "runs/assembled.py", "model/decoder.py"])
def test_a_measurement_is_another_where_the_code_that_measures_is(place, tmp_path, monkeypatch, code_read_anew):
    """Fault found: what an older version had counted was found again after its count had been mended."""
    copy = tmp_path / "archlab"
    shutil.copytree(code.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "PACKAGE", copy)

    def names() -> tuple[Path, Path]:
        forget_code()
        cfg = composed(*SMALL)
        return Measurement("parameters", (cfg,), tmp_path).file, RunJob(cfg, tmp_path).folder

    before = names()
    with (copy / place).open("a") as file:
        file.write("\n# a comment\n")
    assert names() == before
    with (copy / place).open("a") as file:
        file.write("\nPATCHED = 1\n")
    measured, run = names()
    assert measured != before[0] and (run != before[1]) is (place == "model/decoder.py")


@pytest.mark.parametrize("data", ["file", "masked"])
def test_a_corpus_of_ones_own_is_part_of_the_name_of_what_was_run_on_it(data, tmp_path, monkeypatch):
    """Fault found: a file whose text had changed was \"all there already\"."""
    file = tmp_path / "my.txt"
    file.write_text("one text " * 200)
    hashed = []
    real = corpus.instantiate
    monkeypatch.setattr(corpus, "instantiate", lambda node: hashed.append(node) or real(node))

    def names() -> set[Path]:
        cfg = composed(*SMALL, f"data={data}", f"data.path={file}")
        seeds = {RunJob(cfg, tmp_path, (("seed", seed),)).folder for seed in range(3)}
        return seeds | {Measurement("parameters", (cfg,), tmp_path).file, tune.kept_in(cfg)}

    before = names()
    assert len(before) == 5 and names() == before and len(hashed) == 1
    file.write_text("another text " * 200)
    assert not names() & before and len(hashed) == 2
    file.write_text("one text " * 200)
    assert names() == before


def test_the_hash_of_a_corpus_is_the_one_that_runs_record(tmp_path):
    file = tmp_path / "my.txt"
    file.write_text("one text " * 200)
    of_file = hashlib.sha256(file.read_bytes()).hexdigest()
    assert corpus.own_corpus(composed("data=file", f"data.path={file}")) == {"corpus_sha256": of_file}
    assert corpus.own_corpus(composed("data=text")) == corpus.own_corpus(composed("data=recall")) == {}
    python = composed("data=python")  # whose text is another one in another Python
    of_files = hashlib.sha256(b"".join(file.read_bytes() for file in standard_library())).hexdigest()
    assert corpus.own_corpus(python) == {"corpus_sha256": of_files}


def test_runs_from_before_there_was_a_data_seed_are_found(tmp_path):
    cfg = composed(*SMALL)
    older = cfg.copy()
    with open_dict(older):
        del older["data_seed"]
    assert RunJob(cfg, tmp_path).folder == RunJob(older, tmp_path).folder
    assert RunJob(composed(*SMALL, "data_seed=0"), tmp_path).folder != RunJob(cfg, tmp_path).folder


def test_a_budget_for_a_gpu_is_decided_where_a_claim_has_one(tmp_path):
    """And a file without it still says what was registered of it."""
    without = read_claim(written(tmp_path, quick="not here"))
    assert without.budgets.keys() == {"quick", "full"}
    given = {**PLAIN, "quick": "not here"}
    said = ClaimFile.model_validate(tupled(given)).model_dump(exclude={"gpu"})
    assert without.sha256 == hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    written(tmp_path, "other", gpu="there is no GPU")
    (record,) = decide_claims(["*mine*", "*other*"], "gpu", tmp_path / "runs", tmp_path / "out", 1, tmp_path)
    assert record["name"] == "other" and record["reason"] == "there is no GPU" and record["budget"] == "gpu"
    with pytest.raises(UserError, match="budget=gpu: mine says nothing of it"):
        decide_claims(["mine"], "gpu", tmp_path / "runs", tmp_path / "out", 1, tmp_path)


def test_the_table_shows_the_part_that_the_reason_names():
    """The second part refutes with more evidence than the first."""
    from archlab.claim.decide import reason
    from archlab.claim.record import decided_by
    from archlab.report.claims import deciding

    weak, strong = decided("above", a=around(1.6, 0.5), b=FLAT), decided("above", a=around(0.5), b=FLAT)
    found = whole([weak, strong])
    assert found.verdict == "REFUTED" and strong.e_against > weak.e_against
    record = {
        "verdict": "REFUTED",
        "parts": list(map(part_record, (weak, strong))),
        "controls": [],
        "decided_by": decided_by(found),
    }
    assert deciding(record)["told"] in reason(found) and deciding(record)["effect"] == pytest.approx(-1.5)


def test_the_code_of_a_run_is_in_one_order_wherever_archlab_lies():
    """Fault found: a library's file came before or after archlab's own by the name of the folder that archlab lay in."""
    ours = sorted(code.always())[:3]
    for library in (Path("/a/torch/nn.py"), Path("/z/torch/nn.py")):
        assert code.in_order([ours[2], library, ours[0], ours[1]]) == [library, *ours]
