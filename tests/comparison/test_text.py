"""The block bootstrap over held-out text: against normal theory, and where neighbouring windows are alike."""

import numpy as np
import pytest
from scipy import signal, stats

from archlab.base.errors import UserError
from archlab.comparison.text import over_text


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
