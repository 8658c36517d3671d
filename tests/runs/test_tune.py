"""`tune=lr`: the same small sweep for every arm, before it is compared."""

import contextlib
import io
import json
import math

import pytest

import archlab
from archlab.runs import lab, tune
from archlab.runs.assembled import open_source
from archlab.train.runtime import runtime

SMALL = (
    "size=nano",
    "train.steps=6",
    "train.train_len=16",
    "train.batch_size=4",
    "eval.tokens=256",
    "eval.lengths=[1]",
    "train.eval_every=null",
)


def composed(tmp_path, *overrides):
    return archlab.compose(*SMALL, f"output={tmp_path}", "tune=lr", *overrides)


def sweep(cfg, rates) -> dict:
    return tune.tuned_rate(cfg, open_source(cfg), runtime("cpu", "fp32"), rates)


def test_the_rates_are_a_third_of_it_itself_and_three_times_it():
    assert tune.rates(archlab.compose("train.lr=3e-4")) == pytest.approx([1e-4, 3e-4, 9e-4])


def test_each_rate_is_trained_and_the_lowest_loss_wins(tmp_path, monkeypatch):
    losses = {1.0: 3.0, 2.0: 2.0, 4.0: float("inf")}
    monkeypatch.setattr(tune, "loss_at", lambda rate, *rest: losses[rate])
    found = sweep(composed(tmp_path), losses)
    assert found["lr"] == 2.0 and not found["edge"]
    assert found["losses"] == [[1.0, 3.0], [2.0, 2.0], [4.0, None]]


def test_a_best_rate_at_the_edge_of_the_sweep_is_called_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "loss_at", lambda rate, *rest: rate)
    assert sweep(composed(tmp_path), [1.0, 2.0])["edge"]


def test_the_loss_at_a_rate_is_that_of_a_run_at_this_rate_on_the_sweeps_own_seed(tmp_path):
    cfg = composed(tmp_path)
    found = tune.loss_at(0.01, cfg, open_source(cfg), runtime("cpu", "fp32"))
    alone = archlab.compose(*SMALL, f"output={tmp_path}", "train.lr=0.01", f"seed={2**31}")
    with contextlib.redirect_stdout(io.StringIO()):
        directory = lab.run(alone, plots=False)
    assert found == json.loads((directory / "summary.json").read_text())["val_loss"]


def test_seeds_of_an_arm_share_one_sweep_and_another_arm_has_its_own(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(tune, "loss_at", lambda rate, cfg, *rest: tried.append(rate) or rate)
    for overrides in (["seed=0"], ["seed=1"], ["seed=0", "norm=layer"]):
        sweep(composed(tmp_path, *overrides), [1.0, 2.0])
    assert tried == [1.0, 2.0, 1.0, 2.0]


def test_a_tuned_run_trains_with_what_was_found_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "loss_at", lambda rate, *rest: abs(rate - 0.009))
    with contextlib.redirect_stdout(io.StringIO()):
        directory = lab.run(composed(tmp_path), plots=False)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["tuned"]["lr"] == 0.009
    first, *_ = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    assert first["lr"] == pytest.approx(
        0.009 * (0.1 + 0.9 * (1 + math.cos(math.pi / 6)) / 2)
    )  # the first of six steps of the cosine, no warm-up
