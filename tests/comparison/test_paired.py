"""Two arms compared seed by seed: the numbers against textbook values and scipy itself, the verdict against its rule."""

import itertools
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from archlab.base.errors import UserError
from archlab.comparison.paired import paired

# Hours of sleep gained under two drugs, the same ten patients: Student 1908, Biometrika 6:1, the table on page 20.
DEXTRO = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
LAEVO = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]

NEAR = {0: 2.01, 1: 2.43, 2: 2.20, 3: 2.35}
"""Four runs of an arm; `moved` makes a second arm out of it."""


def moved(by, wobble=(0.01, -0.01, 0.02, -0.02)):
    """NEAR + by, give or take a little: d = a - b has mean -by and the spread of the wobble, 0.01826."""
    return {seed: value + by + w for (seed, value), w in zip(NEAR.items(), wobble, strict=True)}


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_students_sleep_data_give_the_published_numbers():
    found = paired(DEXTRO, LAEVO, lower_is_better=False)
    # t.test(extra ~ group, paired = TRUE) in R's help page of `sleep`: 7 digits are printed there.
    assert found.effect == pytest.approx(-1.58, abs=1e-9)
    assert found.interval == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert (found.n, found.verdict, found.test, found.level) == (10, "b", "paired t", 0.95)


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.2])
def test_interval_is_the_formula_at_its_level(alpha):
    difference = np.array(DEXTRO) - np.array(LAEVO)
    half = stats.t.ppf(1 - alpha / 2, 9) * difference.std(ddof=1) / math.sqrt(10)
    found = paired(DEXTRO, LAEVO, alpha=alpha)
    assert found.interval == pytest.approx((difference.mean() - half, difference.mean() + half), abs=1e-12)
    assert found.level == 1 - alpha


def test_lower_is_better_unless_said_otherwise():
    assert paired(NEAR, moved(0.5)).verdict == "a"
    assert paired(moved(0.5), NEAR).verdict == "b"
    assert paired(NEAR, moved(0.5), lower_is_better=False).verdict == "b"


# d has n = 4 and sd 0.018257; t(0.975, 3) = 3.18245, so the interval is -by +- 0.029052.
@pytest.mark.parametrize(
    ("by", "smallest_effect", "verdict"),
    [
        (0.0300, 0.0, "a"),
        (0.0285, 0.0, "within noise"),  # the interval holds zero
        (0.0500, 0.0205, "a"),  # the interval begins at 0.02095
        (0.0500, 0.0215, "within noise"),  # beyond zero, yet not beyond what matters
        (-0.0500, 0.0205, "b"),
        (-0.0500, 0.0215, "within noise"),
        (0.0, 0.0295, "equivalent"),
        (0.0, 0.0285, "within noise"),
        (0.0400, 0.0700, "equivalent"),  # different, by less than anyone cares about
        (0.0400, 0.0690, "within noise"),
    ],
)
def test_verdict_needs_the_whole_interval_on_one_side(by, smallest_effect, verdict):
    assert paired(NEAR, moved(by), smallest_effect=smallest_effect).verdict == verdict


def power_by_nct(distance, spread, n, alpha=0.05):
    """Of a two-sided paired t test: the tails of the noncentral t beyond its critical values."""
    critical, shift = stats.t.ppf(1 - alpha / 2, n - 1), math.sqrt(n) * distance / spread
    return stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)


@pytest.mark.parametrize(("by", "smallest_effect"), [(0.02, 0.0), (0.013, 0.0), (0.05, 0.03), (0.01, 0.022)])
def test_seeds_needed_is_the_first_number_with_a_power_of_four_fifths(by, smallest_effect):
    found = paired(NEAR, moved(by), smallest_effect=smallest_effect)
    assert found.verdict == "within noise"
    distance, spread = abs(by - smallest_effect), math.sqrt(0.001 / 3)
    assert power_by_nct(distance, spread, found.seeds_needed) >= 0.8
    assert power_by_nct(distance, spread, found.seeds_needed - 1) < 0.8


def test_a_medium_effect_needs_thirty_four_pairs():
    # The textbook's figure for d = 0.5, alpha = 0.05, power = 0.8: G*Power's manual, matched pairs.
    half_a_spread = np.array([1.0, -1.0]) / math.sqrt(2) + 0.5
    assert paired(half_a_spread.tolist(), [0.0, 0.0]).seeds_needed == 34


def test_seeds_needed_exceeds_those_there_are_and_is_unknown_beyond_all_reason():
    # So near a decision that the plan alone would ask for no more pairs than there were.
    near_miss = paired(NEAR, moved(0.0288))
    assert near_miss.verdict == "within noise" and near_miss.seeds_needed > 4
    assert paired(NEAR, moved(0.00001)).seeds_needed is None
    assert paired(NEAR, moved(0.05), smallest_effect=0.02).seeds_needed is None  # decided


def test_identical_arms_are_within_noise_or_equivalent():
    same = paired(NEAR, NEAR)
    assert (same.effect, same.interval, same.p, same.verdict, same.seeds_needed) == (0, (0, 0), 1, "within noise", None)
    assert paired(NEAR, NEAR, smallest_effect=0.01).verdict == "equivalent"


def test_a_difference_without_spread_is_taken_as_it_is():
    by_a_tenth = {seed: value + 0.1 for seed, value in NEAR.items()}
    found = paired(NEAR, by_a_tenth, smallest_effect=0.05)
    assert (found.verdict, found.p) == ("a", 0)
    assert found.interval == pytest.approx((-0.1, -0.1), abs=1e-12)
    assert paired(NEAR, by_a_tenth, smallest_effect=0.2).verdict == "equivalent"
    rounded_only = {seed: value * (1 + 2**-52) for seed, value in NEAR.items()}
    assert paired(NEAR, rounded_only).verdict == "within noise"


def test_of_one_pair_nothing_is_said_but_the_effect():
    found = paired({7: 1.5}, {7: 1.25}, smallest_effect=0.01)
    assert (found.effect, found.interval, found.p, found.n, found.verdict) == (0.25, None, None, 1, "one pair")
    assert paired({7: None}, {7: 1.25}).verdict == "one pair"


def test_seeds_are_paired_by_name_and_what_has_no_partner_is_said():
    found = paired({3: 1.0, 1: 2.0, 9: 5.0}, {1: 2.5, 3: 1.75, 4: 0.0})
    assert (found.seeds, found.unpaired, found.n) == ((1, 3), (4, 9), 2)
    assert found.differences == (-0.5, -0.75)


def worst_rank_p(a, b):
    """The share of all splits whose difference in rank sum is at least as large, by going through them one by one."""
    ranks = stats.rankdata([math.inf if value is None else value for value in [*a, *b]])
    expected = ranks.sum() * len(a) / len(ranks)
    sums = [sum(split) for split in itertools.combinations(ranks, len(a))]
    return np.mean([abs(s - expected) >= abs(sum(ranks[: len(a)]) - expected) - 1e-9 for s in sums])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([None, None, None, None], [1.0, 1.1, 1.2, 1.3]),
        ([None, 1.15, 1.25, 1.35], [1.0, 1.1, 1.2, 1.3]),
        ([None, 1.0, None, 1.2, 1.1], [1.0, None, 1.2, 1.25, 1.3]),
    ],
)
def test_with_diverged_runs_p_is_the_exact_worst_rank_test(a, b):
    found = paired(a, b)
    assert found.p == pytest.approx(worst_rank_p(a, b), abs=1e-12)
    assert (found.test, found.interval) == ("worst rank", None)
    assert (found.diverged_a, found.diverged_b) == (a.count(None), b.count(None))


def test_an_arm_that_always_diverges_loses_from_four_pairs_on():
    fine = [1.0, 1.1, 1.2, 1.3]
    assert paired([None] * 4, fine).verdict == "b"
    assert paired(fine, [math.nan] * 4).verdict == "a"
    assert paired([math.inf] * 4, fine, lower_is_better=False).verdict == "b"
    # 2 of the 20 splits of three against three are as extreme: p = 0.1.
    of_three = paired([None] * 3, fine[:3])
    assert of_three.verdict == "within noise" and of_three.p == pytest.approx(0.1)


def test_a_diverged_run_is_never_dropped():
    a, b = [1.0, 1.1, 1.2, 1.3, None], [2.0, 2.1, 2.2, 2.3, 2.4]
    assert paired(a[:4], b[:4]).verdict == "a"
    found = paired(a, b)
    assert found.verdict == "within noise" and found.effect == pytest.approx(-1.0) and found.n == 5


def test_when_all_diverge_alike_nothing_is_between_them():
    found = paired([None] * 5, [None] * 5)
    assert (found.verdict, found.p, found.effect) == ("within noise", 1, None)


def test_by_rank_too_a_lead_has_to_matter():
    ahead, behind = [1.0, 1.1, 1.2, 1.3, 1.4], [1.001, 1.101, 1.201, 1.301, None]
    assert paired(ahead, [2.0, 2.1, 2.2, 2.3, None], smallest_effect=0.5).verdict == "a"
    close = [0.97, 0.98, 0.975, 0.985, 0.99], [1.0, 1.01, 1.02, 1.03, None]
    assert paired(*close).verdict == "a"
    assert paired(*close, smallest_effect=0.1).verdict == "within noise"
    assert paired(ahead, behind).verdict == "within noise"


def test_ten_and_more_pairs_with_a_diverged_run_give_the_same_p_each_time():
    values = [*np.linspace(1, 2, 11), None], [*np.linspace(1.1, 2.1, 12)]
    assert paired(*values).p == paired(*values).p


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (([1.0], [1.0, 2.0]), {}, "1 values against 2"),
        (({1: 1.0}, {2: 1.0}), {}, "share no seed"),
        (([], []), {}, "share no seed"),
        (({1: 1.0}, [1.0]), {}, "one arm is a mapping and one a sequence"),
        (([1.0], [1.0]), {"smallest_effect": -0.1}, "smallest_effect=-0.1: should be a number, 0 or greater"),
        (([1.0], [1.0]), {"smallest_effect": math.nan}, "smallest_effect=nan: should be a number"),
        (([1.0], [1.0]), {"smallest_effect": math.inf}, "smallest_effect=inf: should be a number"),
        (([1.0], [1.0]), {"alpha": 0.0}, "alpha=0.0: should lie between 0 and 1"),
        (([1.0], [1.0]), {"alpha": 1.0}, "alpha=1.0: should lie between 0 and 1"),
    ],
)
def test_what_cannot_be_paired_is_refused(arguments, options, words):
    with pytest.raises(UserError, match=words):
        paired(*arguments, **options)


# Of 1500 comparisons 5% is 75, and 104 is what a rate of 5% exceeds once in 1500 such studies; of a found share of
# 93.6% (noncentral t), 90% is undercut less often still.
def test_an_arm_against_itself_rarely_wins_and_three_deviations_are_found():
    draws = np.random.default_rng(1).normal(size=(1500, 2, 5))
    assert stats.binom.sf(103, 1500, 0.05) < 1 / 1500
    assert sum(paired(*pair.tolist()).verdict in "ab" for pair in draws) <= 103
    planted = [paired(a.tolist(), (b + 3).tolist()).verdict for a, b in draws]
    assert planted.count("a") >= 0.9 * len(planted)
