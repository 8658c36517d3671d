"""Turns, ratios and fits: against tables, closed forms, and work whose time is known."""

import math
import time

import numpy as np
import pytest

from archlab.benchmark.ratio import speed_ratio
from archlab.benchmark.scaling import power
from archlab.benchmark.turns import in_turns


def test_everything_has_its_turn_and_rounds_go_back_and_forth():
    heard: list[str] = []
    seconds = in_turns({name: lambda name=name: heard.append(name) for name in "abc"}, rounds=4, block=1e-9)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    turns = "".join(name for name, before in zip(heard, [None, *heard], strict=False) if name != before)
    assert turns == "abcabcbabcba", "the first abc is the counting of calls; neighbours that are alike are one turn"


def test_what_takes_longer_takes_longer_by_that_much():
    seconds = in_turns({"nothing": lambda: None, "sleep": lambda: time.sleep(0.02)}, rounds=2, block=0.001)
    assert min(seconds["sleep"]) >= 0.02 > max(seconds["nothing"])


def test_rounds_are_counted():
    ticks: list[int] = []
    in_turns({"nothing": lambda: None}, 3, lambda: ticks.append(1), block=1e-9)
    assert len(ticks) == 3


@pytest.mark.parametrize(("n", "place"), [(6, 1), (9, 2), (12, 3), (15, 4), (17, 5), (20, 6)])
def test_the_interval_is_that_of_the_sign_test(n, place):
    """Conover's table A3: the d-th smallest and largest of n hold the median with at least 95%."""
    ratios = np.random.default_rng(n).permutation(np.arange(1, n + 1)) / 7
    found = speed_ratio([2.0] * n, (2.0 * ratios).tolist())
    assert found.low == pytest.approx(place / 7) and found.high == pytest.approx((n + 1 - place) / 7)
    assert found.median == pytest.approx((n + 1) / 14) and found.rounds == n


def test_a_round_in_which_the_machine_was_elsewhere_moves_nothing():
    ones, other = [1.0] * 9, [1.5] * 9
    disturbed = [1.5] * 8 + [90.0]
    assert speed_ratio(ones, disturbed) == speed_ratio(ones, other)
    assert speed_ratio(ones, other).verdict == "faster"


@pytest.mark.parametrize(
    ("other", "verdict"), [([1.1] * 9, "faster"), ([0.9] * 9, "slower"), ([0.9, 1.1] * 4 + [1.1], "within noise"), ([1.0] * 9, "within noise")]
)  # fmt: skip
def test_a_side_is_named_only_outside_the_noise(other, verdict):
    found = speed_ratio([1.0] * 9, other)
    assert found.verdict == found.to_record()["verdict"] == verdict


def test_arms_that_do_not_differ_are_rarely_told_apart():
    """In at most 5% of cases, and three standard deviations of 400 cases."""
    draws = np.random.default_rng(0)
    wrong = sum(speed_ratio(*np.exp(draws.normal(size=(2, 9))).tolist()).verdict != "within noise" for _ in range(400))
    assert 0 < wrong / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_five_rounds_have_no_interval():
    with pytest.raises(ValueError, match="5 rounds have no interval at 95%"):
        speed_ratio([1.0] * 5, [2.0] * 5)


def test_a_power_is_found_with_its_error():
    exact = power([8, 16, 64], [3 * x**1.7 for x in (8, 16, 64)])
    assert exact.exponent == pytest.approx(1.7) and exact.error == pytest.approx(0, abs=1e-7)
    # By hand: log2 y is 0, 2, 2 at log2 x = 0, 1, 2, so slope 1, residuals -1/3, 2/3, -1/3, error sqrt((6/9) / 1 / 2).
    off = power([1, 2, 4], [1, 4, 4])
    assert off.exponent == pytest.approx(1) and off.error == pytest.approx(math.sqrt(1 / 3))
    assert power([1, 2], [1, 8]).to_record() == {"exponent": pytest.approx(3), "error": None}
