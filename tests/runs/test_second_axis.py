"""`tune={init.gain: [0.5, 1]}`: the rate is searched at each value of a second field, and the best of all cells is taken."""

import contextlib
import io
import itertools
import json
import math

import pytest

import archlab
from archlab.base.errors import UserError
from archlab.records.reader import read_run
from archlab.runs import lab, tune

SMALL = (
    "size=nano", "train.steps=6", "train.train_len=16", "train.batch_size=4", "eval.tokens=256", "eval.lengths=[1]",
    "train.eval_every=null",
)  # fmt: skip
VALUES = (0.1, 0.4, 0.7)


def composed(tmp_path, *overrides, axis="train.min_lr:[0.1,0.4,0.7]"):
    return archlab.compose(*SMALL, f"output={tmp_path}", f"tune={{{axis}}}", *overrides)


def told(monkeypatch, loss) -> list:
    """Trials come to what `loss` says of a configuration; returns the trials as they are made."""
    tried = []

    def losses_of(trials):
        tried.extend((trial.cfg.choices.norm, trial.cfg.train.min_lr, trial.rate, trial.seed) for trial in trials)
        return [loss(trial.cfg) for trial in trials]

    monkeypatch.setattr(tune, "losses_of", losses_of)
    return tried


def valley(cfg) -> float:
    """The lower min_lr, the higher the best rate: 3e-3, 6e-3 and 1.2e-2; the lowest of all is at 0.4 and 6e-3."""
    best = {0.1: 1.2e-2, 0.4: 6e-3, 0.7: 3e-3}[cfg.train.min_lr]
    return abs(cfg.train.min_lr - 0.4) + 2 + abs(math.log2(cfg.train.lr / best))


def test_every_cell_of_the_rectangle_is_tried_and_the_best_of_all_is_taken(tmp_path, monkeypatch):
    tried = told(monkeypatch, valley)
    found = tune.tuned_rate(composed(tmp_path))
    rates = (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)  # as far as the value whose best rate is farthest needs
    assert sorted(tried) == sorted(("rms", v, rate, seed) for v in VALUES for rate in rates for seed in tune.SEEDS)
    assert (found["lr"], found["edge"]) == (6e-3, False)
    second = found["second"]
    assert (second["field"], second["value"], second["edge"]) == ("train.min_lr", 0.4, False)
    assert [value for value, _ in second["rates"]] == list(VALUES)
    losses = [
        abs(v - 0.4) + 2 + abs(place - best)
        for v, best in zip(VALUES, (2, 1, 0), strict=True)
        for place in range(-1, 4)
    ]
    of_all = dict(found["expected_best"])
    assert list(of_all) == [1, 2, 4, 8, 15] and of_all[1] == pytest.approx(sum(losses) / 15), "of every cell"
    at_taken = dict(found["rates"])
    assert at_taken[6e-3] == [2.0, 2.0] and at_taken[3e-3] == pytest.approx([3.0, 3.0])
    first = {rate: losses[0] for rate, losses in second["rates"][0][1]}
    assert first[1.2e-2] == pytest.approx(2.3) and first[3e-3] == pytest.approx(4.3)


def test_a_best_value_at_the_end_of_those_given_is_called_so(tmp_path, monkeypatch):
    told(monkeypatch, lambda cfg: cfg.train.min_lr + abs(math.log2(cfg.train.lr / 3e-3)))
    for axis in ("[0.1,0.4,0.7]", "[0.4,0.1,0.7]"):  # the lowest, in whatever order they are given
        second = tune.tuned_rate(composed(tmp_path, axis=f"train.min_lr:{axis}"))["second"]
        assert (second["value"], second["edge"]) == (0.1, True)


def test_arms_that_are_tuned_together_have_equal_trials(tmp_path, monkeypatch, capsys):
    tried = told(
        monkeypatch, lambda cfg: valley(cfg) + abs(math.log2(cfg.train.lr / 1e-3)) * 4 * (cfg.choices.norm == "layer")
    )
    tune.find_rates([composed(tmp_path, f"norm={norm}") for norm in ("rms", "layer")], workers=1, show=True)
    by_arm = {norm: sorted(trial[1:] for trial in tried if trial[0] == norm) for norm in ("rms", "layer")}
    assert by_arm["rms"] == by_arm["layer"] and len(by_arm["rms"]) % (3 * 2) == 0
    rates = {rate for _, rate, _ in by_arm["rms"]}
    assert by_arm["rms"] == sorted(itertools.product(VALUES, rates, tune.SEEDS)), "the whole rectangle"
    out = capsys.readouterr().out
    assert out.startswith(
        "tune: the rate is searched at 3 values of train.min_lr (0.1, 0.4, 0.7): at least 18 trials for each arm, and 6 more"
    )


def test_a_search_that_was_broken_off_goes_on_and_shares_what_a_single_value_has(tmp_path, monkeypatch):
    def killed(cfg):
        if cfg.train.min_lr == 0.7:
            raise KeyboardInterrupt
        return valley(cfg)

    told(monkeypatch, valley)
    tune.tuned_rate(archlab.compose(*SMALL, f"output={tmp_path}", "tune=lr", "train.min_lr=0.4"))
    before = told(monkeypatch, killed)
    with pytest.raises(KeyboardInterrupt):
        tune.tuned_rate(composed(tmp_path))
    assert {value for _, value, *_ in before} == {0.1, 0.7}, "0.4 was searched by itself before"
    tried = told(monkeypatch, valley)
    assert tune.tuned_rate(composed(tmp_path))["second"]["value"] == 0.4
    made = {(value, rate) for _, value, rate, _ in tried}
    assert not made & {(value, rate) for _, value, rate, _ in before if value == 0.1}


def test_a_run_trains_with_both_and_says_so(tmp_path, monkeypatch):
    told(monkeypatch, valley)
    cfg = composed(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        directory = lab.run(cfg, plots=False)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["tuned"]["second"]["value"] == 0.4
    first, *_ = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    # The first of six steps of the cosine from 6e-3 down to 0.4 of it, no warm-up.
    assert first["lr"] == pytest.approx(6e-3 * (0.4 + 0.6 * (1 + math.cos(math.pi / 6)) / 2))
    assert "best of 0.1, 0.4, 0.7" in " ".join(out.getvalue().split())
    assert read_run(directory).config["tune"] == {"train.min_lr": list(VALUES)}, "as it was asked for"


def test_the_model_starts_from_the_value_that_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr(
        tune, "losses_of", lambda trials: [abs(t.cfg.init.gain - 0.5) + abs(t.rate - 3e-3) for t in trials]
    )
    cfg = composed(tmp_path, axis="init.gain:[0.5,1.0,2.0]")
    work = lab.prepared(cfg, 0.0, shown=False)
    alone = lab.prepared(archlab.compose(*SMALL, "init.gain=0.5"), 0.0, shown=False)
    for ours, theirs in zip(work.decoder.parameters(), alone.decoder.parameters(), strict=True):
        assert ours.equal(theirs)
    assert work.cfg is cfg, "the run is kept as it was asked for"


@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_the_expected_best_is_the_mean_over_all_ways_to_draw(k):
    losses = [2.5, 2.1, 3.75, 2.1, 2.9]
    expected = sum(map(min, itertools.product(losses, repeat=k))) / len(losses) ** k
    assert dict(tune.expected_best(losses))[k] == pytest.approx(expected, rel=1e-12)


def test_what_diverged_counts_as_the_worst_that_did_not():
    assert tune.expected_best([2.0, math.inf, 3.0]) == tune.expected_best([2.0, 3.0, 3.0])
    assert tune.expected_best([math.inf, math.inf]) == []
    assert [k for k, _ in tune.expected_best([1.0] * 4)] == [1, 2, 4]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tune={init.std:[0.01,0.02]}"], "tune.init.std: init=xavier has no such number, so it would change nothing; it has init.gain"),
        (["init=small", "tune={init.gain:[1,2]}"], "tune.init.gain: init=small has no such number, so it would change nothing; it has no numbers"),
        (["optimizer=sgd", "tune={train.beta1:[0.9,0.8]}"], "train.beta1=0.9: optimizer=sgd does not use it, so it would change nothing"),
        (["schedule=constant", "tune={train.min_lr:[0.1,0.2]}"], "train.min_lr=0.1: schedule=constant does not use it"),
        (["tune={train.warmup:[1,9]}"], "train.warmup=9: the run has only 6 steps"),
        (["init=unit", "train.weight_decay=0", "tune={train.weight_decay:[0,0.1]}"], "train.weight_decay=0.1: shortens weights"),
        (["tune={train.lr:[1e-3,2e-3]}"], "tune.train.lr: is the first axis already; use one of train.weight_decay"),
        (["tune={train.steps:[6,12]}"], "tune.train.steps: is no second axis of tuning; use one of train.weight_decay"),
        (["tune={loss.z:[0.0,1e-4]}"], "tune.loss.z: is no second axis of tuning"),
        (["tune={init.gain:[1]}"], "tune.init.gain=[1]: should be two values or more, each once; for a single one set init.gain itself"),
        (["tune={init.gain:[1,1.0]}"], "tune.init.gain=[1, 1.0]: should be two values or more, each once"),
        (["tune={init.gain:[0.5,1,0.5]}"], "tune.init.gain=[0.5, 1, 0.5]: should be two values or more, each once"),
        (["tune={init.gain:1}"], "tune.init.gain=1: should be a list of numbers"),
        (["tune={init.gain:[1,true]}"], "tune.init.gain=[1, True]: should be a list of numbers"),
        (["tune={init.gain:[1,nan]}"], "tune.init.gain=[1, nan]: should be a list of numbers"),
        (["tune={init.gain:[1,2],train.clip:[1,2]}"], "has 2 fields; give one beside train.lr"),
    ],
)  # fmt: skip
def test_a_second_axis_that_cannot_be_or_changes_nothing_is_one_line(words, says):
    with pytest.raises(UserError) as refused:
        archlab.compose(*SMALL, *words)
    assert says in str(refused.value) and "\n" not in str(refused.value)
