"""The block bootstrap over held-out text: against normal theory, and where neighbouring windows are alike."""

import json

import numpy as np
import pytest
from records import write_run
from scipy import signal, stats

import archlab
from archlab.base.errors import UserError
from archlab.comparison.text import over_text
from archlab.records.reader import read_run


def test_of_independent_windows_it_is_the_interval_of_a_mean():
    d = np.random.default_rng(1).normal(0.1, 0.3, size=401)
    b = np.random.default_rng(2).normal(2.0, 0.5, size=401)
    found = over_text(b + d, b, block=4)
    assert found.effect == pytest.approx(d.mean()) and found.blocks == 100
    # Within a tenth of its width: 100 blocks know their spread to 1 / sqrt(200), and 9,999 draws an end to less.
    half = stats.norm.ppf(0.975) * d.std(ddof=1) / 401**0.5
    assert found.interval == pytest.approx((d.mean() - half, d.mean() + half), abs=0.2 * half)


def test_it_covers_where_neighbours_are_alike_and_taking_them_for_independent_does_not():
    """Differences of an autoregression, 0.8 of each carried to the next, whose mean is 0."""
    rng = np.random.default_rng(5)
    studies = signal.lfilter([1.0], [1.0, -0.8], rng.normal(size=(200, 700)))[:, 100:]
    zeros = np.zeros(600)
    covered = {
        block: sum(low <= 0 <= high for low, high in (over_text(d, zeros, block, draws=299).interval for d in studies))
        for block in (1, 20)
    }
    assert covered[1] < 130 and covered[20] > 170


def test_it_covers_with_as_few_blocks_as_it_takes():
    """Of ten blocks it held the mean in 88 of 100 studies."""
    studies = np.random.default_rng(6).normal(size=(400, 80))
    ends = (over_text(d, np.zeros(80), draws=999).interval for d in studies)
    assert sum(low <= 0 <= high for low, high in ends) >= 0.91 * 400


def test_of_ten_blocks_it_is_as_wide_as_students_interval_of_them():
    """t times sd / sqrt(10), sd of n - 1: without the correction of sd it would be a twentieth narrower."""
    ratios = []
    for d in np.random.default_rng(7).normal(size=(100, 10)):
        low, high = over_text(d, np.zeros(10), block=1, draws=999).interval
        ratios.append((high - low) / (2 * stats.t.ppf(0.975, 9) * d.std(ddof=1) / 10**0.5))
    # Quantiles of 999 draws of ten numbers scatter by 0.04, and reach a little less far than those of a normal distribution.
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.03)


def test_the_same_twice_differs_by_nothing_and_draws_are_repeatable():
    a = np.random.default_rng(0).normal(size=96)
    assert over_text(a, a).interval == (0.0, 0.0)
    assert over_text(a, a[::-1]) == over_text(a, a[::-1])


@pytest.mark.parametrize(
    ("a", "b"), [(np.zeros(79), np.zeros(79)), (np.zeros(90), np.zeros(91)), (np.full(90, np.nan), np.zeros(90))]
)
def test_too_little_text_is_refused(a, b):
    with pytest.raises(
        UserError, match="windows in blocks of 8: need finite losses of the same windows, at least 10 blocks"
    ):
        over_text(a, b)


# ---------------------------------------------------------------- of the arms of a comparison


def with_windows(folder, *asked, seed, by_length, **more):
    """A run that kept these losses of windows."""
    directory = write_run(folder, *asked, seed=seed, train_len=32, **more)
    kept = [{"eval_len": at, "position": [1], "loss": [2.0], "windows": list(w)} for at, w in by_length.items()]
    (directory / "positions.json").write_text(json.dumps(kept))
    return directory


def test_arms_are_compared_window_by_window_each_averaged_over_the_seeds_of_both(tmp_path):
    rng = np.random.default_rng(3)
    losses = {
        (norm, seed, at): rng.normal(2, 0.2, 96) for norm in ("rms", "layer") for seed in range(5) for at in (32, 128)
    }
    for norm, seed, at in losses:
        if at == 32 and (norm, seed) != ("layer", 4):  # a seed that one arm lacks
            status = {"val_loss": None} if (norm, seed) == ("rms", 3) else {}  # and one at which one diverged
            kept = {length: losses[norm, seed, length] for length in (32, 128)}
            lengths = [] if status else [{"eval_len": n, "loss": float(w.mean())} for n, w in kept.items()]
            with_windows(tmp_path, f"norm={norm}", seed=seed, by_length=kept, length=lengths, **status)
    for metric, at in (("val_loss", 32), ("loss@4", 128)):
        found = archlab.compare(tmp_path, metric=metric, baseline="norm=rms", text=True)
        of = {norm: np.mean([losses[norm, seed, at] for seed in range(3)], axis=0) for norm in ("rms", "layer")}
        expected = over_text(of["layer"], of["rms"])
        by_label = {arm["label"]: arm.get("on_other_text") for arm in found.record["arms"]}
        assert by_label["norm=rms"] is None
        assert by_label["norm=layer"]["effect"] == pytest.approx(expected.effect, abs=1e-12)
        assert by_label["norm=layer"]["interval"] == pytest.approx(expected.interval, abs=1e-12)
        assert by_label["norm=layer"]["blocks"] == 12
        assert "on other text" in str(found) and "on other text" not in str(archlab.compare(tmp_path, metric=metric))


@pytest.mark.parametrize(
    ("metric", "windows", "line"),
    [
        ("stability.max_grad_norm", {32: [2.0] * 96}, "text=true: metric=stability.max_grad_norm is no mean of held-out losses; use val_loss or loss@4"),
        ("val_loss", {64: [2.0] * 96}, "kept no losses of the windows of val_loss"),
        ("val_loss", {32: [2.0] * 79}, "text=true: metric=val_loss is of 79 and 79 windows in blocks of 8: need finite losses"),
        ("val_loss", {32: [2.0] * 95 + [None]}, "need finite losses of the same windows"),
    ],
)  # fmt: skip
def test_what_has_no_windows_to_compare_is_one_line(tmp_path, metric, windows, line):
    for norm in ("rms", "layer"):
        with_windows(tmp_path, f"norm={norm}", seed=0, by_length=windows)
    with pytest.raises(UserError) as refusal:
        archlab.compare(tmp_path, metric=metric, text=True)
    assert line in str(refusal.value) and "\n" not in str(refusal.value)


def test_where_nothing_is_compared_it_would_change_nothing(tmp_path):
    with_windows(tmp_path, "norm=rms", seed=0, by_length={32: [2.0] * 96})
    with pytest.raises(
        UserError, match="text=true: no other arm shares a seed with norm=rms, so it would change nothing"
    ):
        archlab.compare(tmp_path, text=True)
    with_windows(tmp_path, "norm=layer", seed=1, by_length={32: [2.0] * 96})
    with pytest.raises(UserError, match="text=true: no other arm shares a seed"):
        archlab.compare(tmp_path, text=True)


def test_runs_of_other_windows_are_not_averaged(tmp_path):
    for seed, n in enumerate((96, 88)):
        for norm in ("rms", "layer"):
            with_windows(tmp_path, f"norm={norm}", seed=seed, by_length={32: [2.0] * n})
    with pytest.raises(
        UserError,
        match="text=true: norm=layer has runs of 88 and of 96 windows; compare runs that are scored on the same text",
    ):
        archlab.compare(tmp_path, baseline="norm=rms", text=True)


def test_a_run_keeps_the_losses_of_its_windows_whose_mean_is_its_validation_loss(tmp_path):
    directory = archlab.run(
        "size=nano", "size.d_model=16", "size.n_layers=1", "train.steps=1", "train.train_len=24", "eval.tokens=240",
        "eval.lengths=[1,2]", f"output={tmp_path}",
    ).directory  # fmt: skip
    run = read_run(directory)
    assert len(run.windows(24)) == 10 and len(run.windows(48)) == 5 and run.windows(96) == []
    assert np.mean(run.windows(24)) == pytest.approx(run.summary["val_loss"], rel=1e-6)
