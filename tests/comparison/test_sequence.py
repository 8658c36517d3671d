"""The e-process against its defining integral, its confidence sequence against itself, and both under optional stopping."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from archlab.comparison.rule import LOOKS, PRIOR_SCALE
from archlab.comparison.sequence import (
    bounded_e,
    bounded_interval,
    e_value,
    flip_p,
    half_width,
    majority_e,
    one_sided_e,
    pairs_needed,
)

D = [0.31, -0.12, 0.44, 0.27, 0.05]
"""Five differences."""


def by_integral(d, m, g):
    """Marginal likelihoods under the right Haar prior on sigma, by trapezoids: delta ~ N(0, g) over delta = 0."""
    d = np.asarray(d) - m
    log_sigma = np.linspace(-5, 6, 1201)  # d sigma / sigma is d log sigma
    sigma = np.exp(log_sigma)
    delta = np.linspace(-10, 10, 1001)[:, None] * math.sqrt(g)

    def likelihood(delta):
        return np.exp(sum(stats.norm.logpdf(one, delta * sigma, sigma) for one in d))

    over_sigma = integrate.trapezoid(likelihood(delta), log_sigma, axis=1)
    above = integrate.trapezoid(over_sigma * stats.norm.pdf(delta[:, 0], 0, math.sqrt(g)), delta[:, 0])
    return above / integrate.trapezoid(likelihood(0.0), log_sigma)


@pytest.mark.parametrize(("m", "g", "n"), [(0.0, 1.0, 5), (0.6, 2.0, 4), (-0.3, 0.5, 3)])
def test_the_e_process_is_the_ratio_of_its_integrals(m, g, n):
    d = np.array(D[:n])
    closed = e_value(d.mean() - m, d.std(ddof=1), n, g)
    assert float(closed) == pytest.approx(by_integral(d, m, g), rel=1e-5)  # the grid's own accuracy


def test_it_is_the_form_in_which_the_paper_writes_it():
    """sqrt(c^2 / (n + c^2)) ((n + c^2) V / ((n + c^2) V - S^2))^(n/2), S and V the sums of d - m and of its squares."""
    d, c2 = np.array(D) - 0.2, 1 / PRIOR_SCALE
    s, v, n = d.sum(), (d**2).sum(), len(d)
    written = math.sqrt(c2 / (n + c2)) * ((n + c2) * v / ((n + c2) * v - s * s)) ** (n / 2)
    assert float(e_value(np.mean(D) - 0.2, np.std(D, ddof=1), n)) == pytest.approx(written, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.3])
@pytest.mark.parametrize("n", [6, 13, 200])
def test_the_confidence_sequence_ends_where_the_e_value_reaches_one_over_alpha(n, alpha):
    assert float(e_value(half_width(n, alpha), 1.0, n)) == pytest.approx(1 / alpha, rel=1e-9)


def test_a_few_pairs_have_no_finite_interval_and_many_a_narrow_one():
    assert [math.isinf(half_width(n, 0.05)) for n in (1, 2, 3, 4)] == [True, True, True, False]
    # As wide as a z interval is, but for what looking at any time costs: sqrt(log(1 + n g) + 2 log(1 / alpha)).
    expected = math.sqrt((math.log(1 + 10_000 * PRIOR_SCALE) + 2 * math.log(20)) / 10_000)
    assert half_width(10_000, 0.05) == pytest.approx(expected, rel=1e-3)


def test_the_e_value_of_a_set_is_the_least_over_it():
    grid = np.linspace(-4, 0.1, 5001)
    least = min(float(e_value(0.45 - m, 0.3, 7)) for m in grid)
    assert one_sided_e(-math.inf, 0.1, 0.45, 0.3, 7) == pytest.approx(least, rel=1e-6)
    assert one_sided_e(-math.inf, 0.5, 0.45, 0.3, 7) == pytest.approx((1 + 7 * PRIOR_SCALE) ** -0.5)  # holds the mean


def running(d):
    """By number of differences from 2 on: their means and deviations."""
    for n in range(2, d.shape[1] + 1):
        yield n, d[:, :n].mean(axis=1), d[:, :n].std(axis=1, ddof=1)


def test_looking_after_every_pair_names_an_effect_where_there_is_none_in_at_most_one_study_of_twenty():
    d = np.random.default_rng(0).normal(0.0, 0.7, (20_000, 24))
    wrong = np.zeros(len(d), dtype=bool)
    for n, mean, sd in running(d):
        wrong |= np.abs(mean) >= half_width(n, 0.05) * sd
    # Ville bounds the chance at any time, up to infinity, by 5%; 20,000 studies would exceed 5.4% once in 200 of them.
    assert stats.binom.sf(int(0.054 * len(d)), len(d), 0.05) < 0.005
    assert 0 < wrong.mean() <= 0.054
    # A t interval at 5%, looked at as often, names one in far more: the test can fail.
    by_t = np.zeros(len(d), dtype=bool)
    for n, mean, sd in running(d):
        by_t |= np.abs(mean) >= stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n)
    assert by_t.mean() > 0.15


def test_the_e_value_has_expectation_one_where_the_mean_is_the_one_it_is_held_against():
    # At n = 4 and g = 0.3, where its variance is finite enough to average: 0.98 to 1.02 are four standard errors.
    d = np.random.default_rng(1).normal(2.0, 3.0, (400_000, 4))
    e = e_value(d.mean(axis=1) - 2.0, d.std(axis=1, ddof=1), 4, 0.3)
    assert float(e.mean()) == pytest.approx(1.0, abs=4 * float(e.std()) / math.sqrt(len(e)))


@pytest.mark.parametrize("distance", [0.8, 1.3, 2.0])
def test_pairs_needed_decide_about_four_studies_of_five(distance):
    n = pairs_needed(distance, 1.0, 0.05)
    d = np.random.default_rng(2).normal(distance, 1.0, (20_000, n))
    share = float((d.mean(axis=1) >= half_width(n, 0.05) * d.std(axis=1, ddof=1)).mean())
    assert 0.75 < share < 0.92  # a normal approximation, and n is whole


def test_pairs_needed_are_more_than_there_were_and_unknown_beyond_all_reason():
    assert pairs_needed(5.0, 1.0, 0.05, above=9) == 10
    assert pairs_needed(0.0, 1.0, 0.05) is None and pairs_needed(1.0, 0.0, 0.05) is None
    assert pairs_needed(1e-4, 1.0, 0.05) is None


# ---------------------------------------------------------------- signs


@pytest.mark.parametrize(("more", "less"), [(0, 0), (6, 0), (7, 2), (1, 5), (12, 3)])
def test_the_majoritys_e_value_is_its_integral(more, less):
    def density(p):  # not normalised
        return (1 - p) ** -0.75

    def integrand(p):
        return (2 * p) ** more * (2 * (1 - p)) ** less * density(p)

    (seen, _), (whole, _) = (integrate.quad(of, 0.5, 1, limit=200) for of in (integrand, density))
    assert majority_e(more, less) == pytest.approx(seen / whole / 2, rel=1e-6)


def test_the_majoritys_e_value_is_a_martingale_of_fair_coins_and_the_two_sides_make_one():
    for more, less in itertools.product(range(8), range(8)):
        mean = (majority_e(more + 1, less) + majority_e(more, less + 1)) / 2
        assert mean == pytest.approx(majority_e(more, less), rel=1e-9)
    assert majority_e(0, 0) == pytest.approx(0.5)  # each side's half


def ever(p, n, wanted):
    """The exact chance that 1/alpha is ever reached in n tosses of a coin with chance p, on any of the `wanted` sides."""
    reached, states = 0.0, {(0, 0): 1.0}
    for _ in range(n):
        following: dict[tuple[int, int], float] = {}
        for (more, less), chance in states.items():
            for state, share in (((more + 1, less), p), ((more, less + 1), 1 - p)):
                sides = (majority_e(*state), majority_e(*state[::-1]))
                if any(sides[side] >= 20 for side in wanted):
                    reached += chance * share
                else:
                    following[state] = following.get(state, 0.0) + chance * share
        states = following
    return reached


def test_a_fair_coin_is_called_unfair_in_at_most_one_study_of_twenty_however_long_one_tosses():
    assert 0.03 < ever(0.5, 60, (0, 1)) <= 0.05
    assert ever(0.4, 60, (0,)) < ever(0.5, 60, (0,)) <= 0.025


def test_six_of_six_are_enough_and_five_of_five_are_not():
    assert [n for n in range(1, 9) if majority_e(n, 0) >= 20] == [6, 7, 8]
    assert [n for n in range(1, 10) if majority_e(n, 0, (1.0, 1.0)) >= 20] == [8, 9]  # what a uniform prior says


@pytest.mark.parametrize("n", [2, 5, 9])
def test_flipping_signs_is_the_permutation_test_of_scipy_and_of_going_through_them(n):
    d = np.random.default_rng(n).normal(0.4, 1.0, n)
    expected = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", alternative="greater", n_resamples=1000
    ).pvalue
    by_hand = np.mean([np.dot(signs, d) >= d.sum() - 1e-12 for signs in itertools.product((1, -1), repeat=n)])
    assert flip_p(d) == pytest.approx(expected, abs=1e-12) == pytest.approx(by_hand, abs=1e-12)


def test_of_many_pairs_signs_are_drawn_alike_each_time_and_p_is_near_the_normal_one():
    d = np.random.default_rng(5).normal(0.3, 1.0, 40)
    z = d.sum() / math.sqrt((d**2).sum())
    # 100,000 draws scatter by 0.0007 here; the rest is the normal approximation.
    assert flip_p(d) == flip_p(d) == pytest.approx(stats.norm.sf(z), abs=0.005)
    assert flip_p([0.3]) is None and flip_p([0.0, 0.0, 0.0]) == 1
    # Of 2^60 assignments one alone has so large a sum, and it is not among those drawn: what was seen itself is.
    assert flip_p([1.0] * 60) == 1 / 100_001


def test_the_first_look_is_where_signs_can_decide():
    assert min(n for n in range(1, 20) if majority_e(n, 0) >= 20) == LOOKS[0]


# ---------------------------------------------------------------- shares


def test_bets_on_bounded_numbers_by_hand():
    """Of 1 + c (d - m) / (b + m), at c of a quarter to one, m = 0.1 and b = 1: half the mean of the four products."""
    d = np.array([0.5, -0.2])
    products = [(1 + c * 0.4 / 1.1) * (1 - c * 0.3 / 1.1) for c in (0.25, 0.5, 0.75, 1.0)]
    assert bounded_e(d, 0.1, 1.0) == pytest.approx(sum(products) / 8, rel=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "chance"), [(-1.0, 1.0, 0.55), (0.0, 0.92, 0.109), (-0.65, 0.3, 0.79), (0.1, 0.1, 1.0)]
)
def test_of_any_two_values_whose_mean_is_the_one_held_against_the_e_value_is_half_on_average(low, high, chance):
    """Both ways together then come to one at most. The mean over every outcome of five pairs, by their chances."""
    mean = chance * high + (1 - chance) * low
    both = np.zeros(2)
    for outcome in itertools.product((0, 1), repeat=5):
        drawn = np.where(outcome, high, low)
        weight = float(np.prod(np.where(outcome, chance, 1 - chance)))
        both += weight * np.array([bounded_e(drawn, mean, 1.0), bounded_e(-drawn, -mean, 1.0)])
    assert both == pytest.approx([0.5, 0.5], abs=1e-12)


def test_the_interval_of_shares_ends_where_the_e_value_reaches_what_decides():
    d = np.array([0.93, 0.95, 0.91, 0.94, 0.9, 0.96, 0.92, 0.93, 0.95, 0.97, 0.9])
    low, high = bounded_interval(d, 1.0, 0.05)
    assert 0 < low < d.mean() < high <= 1
    step = 2.0**-20  # of the grid that it ends on, beyond all that is not ruled out
    assert bounded_e(d, low, 1.0) >= 20 > bounded_e(d, low + step, 1.0)
    assert high == 1 or bounded_e(-d, -high, 1.0) >= 20 > bounded_e(-d, -(high - step), 1.0)
    assert bounded_interval(-d, 1.0, 0.05) == pytest.approx((-high, -low))


def test_what_all_was_staked_on_and_lost_leaves_what_was_not_staked():
    assert 0 < bounded_e(np.array([-1.0, 0.9]), 0.1, 1.0) < 1
