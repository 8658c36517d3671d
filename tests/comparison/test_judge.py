"""One rule for two arms: readings against the interval they say, failures, and each way in which a verdict used to go wrong."""

import itertools
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from archlab.base.errors import UserError
from archlab.comparison.judge import judge, of_bounds
from archlab.comparison.sequence import half_width, pairs_needed

BASE = [2.01, 2.43, 2.20, 2.35, 2.11, 2.28, 2.19, 2.40]
WOBBLE = [0.01, -0.01, 0.02, -0.02, 0.015, -0.005, -0.015, 0.005]
"""Of mean 0 and standard deviation 0.014142."""

SD = float(np.std(WOBBLE, ddof=1))
HALF = half_width(8, 0.05) * SD


def moved(by, base=BASE):
    return [value + by + w for value, w in zip(base, WOBBLE, strict=False)]


def judged(by, margin=0.0, better="lower", **options):
    """a - b is `by`, give or take the wobble."""
    return judge(moved(by), BASE, better=better, margin=margin, **options)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---------------------------------------------------------------- readings


@pytest.mark.parametrize(
    ("by", "margin", "reading"),
    [
        (1.02 * HALF, 0.0, "b"),
        (0.98 * HALF, 0.0, "open"),  # the interval holds zero
        (-1.02 * HALF, 0.0, "a"),
        (2.0 * HALF, 0.98 * HALF, "b"),
        (2.0 * HALF, 1.02 * HALF, "not a"),  # beyond zero, yet not beyond what matters
        (0.0, 1.02 * HALF, "tie"),
        (0.5 * HALF, 1.52 * HALF, "tie"),
        (0.5 * HALF, 1.48 * HALF, "not a"),
        (-0.5 * HALF, 1.48 * HALF, "not b"),
        (0.0, 0.98 * HALF, "open"),
    ],
)
def test_a_reading_needs_the_whole_interval(by, margin, reading):
    found = judged(by, margin)
    assert found.interval == pytest.approx((by - HALF, by + HALF), abs=1e-12)
    assert found.reading == found.of_losses == reading
    assert (found.effect, found.sd, found.level) == pytest.approx((by, SD, 0.95), abs=1e-12)


def test_the_direction_of_the_metric_turns_winners_round_and_nothing_else():
    for by, margin in ((0.1, 0.0), (-0.1, 0.02), (0.02, 0.02), (0.0, 0.05)):
        turned = {"a": "b", "b": "a", "not a": "not b", "not b": "not a"}
        lower, higher = judged(by, margin), judged(by, margin, "higher")
        assert higher.reading == turned.get(lower.reading, lower.reading)
        assert (higher.interval, higher.e_above, higher.p_below) == (lower.interval, lower.e_above, lower.p_below)


def test_a_number_without_a_better_side_is_read_by_where_it_lies():
    assert [judged(by, 0.03, None).reading for by in (0.1, -0.1, 0.0, 0.03, -0.03)] == [
        "above", "below", "tie", "not below", "not above"
    ]  # fmt: skip


@pytest.mark.parametrize("by", [-0.08, -0.02, 0.0, 0.011, 0.05])
@pytest.mark.parametrize("margin", [0.0, 0.02])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_an_e_value_reaches_one_over_alpha_exactly_where_the_interval_passes_the_margin(by, margin, alpha):
    found = judged(by, margin, alpha=alpha)
    low, high = found.interval
    enough = 1 / alpha
    assert (found.e_above >= enough) == (low >= margin)
    assert (found.e_below >= enough) == (high <= -margin)
    assert (found.e_not_above >= enough) == (high <= margin)
    assert (found.e_not_below >= enough) == (low >= -margin)
    assert (found.e_inside >= enough) == (-margin < low and high < margin)
    assert (found.e_outside >= enough) == (low >= margin or high <= -margin)
    assert (found.e >= enough) == found.decided


def test_seeds_are_paired_by_name_and_what_has_no_partner_is_said():
    found = judge({3: 1.0, 1: 2.0, 9: 5.0}, {1: 2.5, 3: 1.75, 4: 0.0}, better="lower", margin=0.0)
    assert (found.seeds, found.unpaired, found.n) == ((1, 3), (4, 9), 2)
    assert found.differences == (-0.5, -0.75)


def test_of_few_pairs_nothing_is_said_but_the_effect_and_how_many_it_would_take():
    one = judge({7: 1.5}, {7: 1.25}, better="lower", margin=0.01)
    assert (one.effect, one.interval, one.sd, one.p_above, one.reading, one.needed) == (
        0.25,
        None,
        None,
        None,
        "open",
        None,
    )
    three = judge(moved(0.3)[:3], BASE[:3], better="lower", margin=0.01)
    assert (three.reading, three.interval, three.e_above < 20) == ("open", None, True)
    assert three.needed == pairs_needed(abs(three.effect) - 0.01, three.sd, 0.05) == 4


def test_needed_counts_the_pairs_with_failures_too_and_is_none_once_decided():
    assert judged(0.3).needed is None and judged(0.0, 0.5).needed is None
    near = judged(0.7 * HALF)
    assert near.needed == pairs_needed(0.7 * HALF, SD, 0.05, above=8) > 8
    # In eight pairs both failed twice: as many of those to come will say nothing.
    failed = judged(0.7 * HALF, failed_a={2, 5}, failed_b={2, 5})
    alone = pairs_needed(failed.effect, failed.sd, 0.05, above=6)
    assert failed.needed == math.ceil(alone * 8 / 6)


# ---------------------------------------------------------------- what used to go wrong


def test_an_arm_that_diverges_loses_whichever_way_its_metric_is_better():
    """A diverged run was +inf and lower always better: with exact_match, diverging five of five found more."""
    for failed in (None, math.inf, -math.inf, math.nan):
        for better in ("lower", "higher"):
            always = judge([failed] * 6, [0.5] * 6, better=better, margin=0.1)
            assert (always.reading, always.failures.a, always.failures.b, always.effect) == ("b", 6, 0, None)
            assert judge([0.5] * 6, [failed] * 6, better=better, margin=0.1).reading == "a"
            assert judge([failed] * 5, [0.5] * 5, better=better, margin=0.1).reading == "open"
            assert judge([failed] * 5, [0.5] * 5, better=better, margin=0.1).needed == 6


def test_which_arm_failed_is_not_forgotten():
    """DeepNorm finishing while Pre-LN diverges five of five once refuted "no more than .02 above"."""
    found = judge([2.3, 2.4, 2.2, 2.35, 2.3, 2.25], [None] * 6, better="lower", margin=0.02)
    assert found.reading == "a" and found.failures.e_b_fails_more > 20 > 1 > found.failures.e_a_fails_more


def test_a_statistic_without_spread_is_no_certainty():
    """A largest stable rate takes few values: the same difference at three seeds once had an interval of width zero."""
    for n in (2, 3, 5):
        few = judge([-1.5] * n, [-2.0] * n, better="higher", margin=0.1)
        assert (few.reading, few.interval, few.by, few.sd, few.needed) == ("open", None, "signs", 0.0, 6)
    six = judge([-1.5] * 6, [-2.0] * 6, better="higher", margin=0.1)
    assert (
        six.reading == "a" and six.interval is None and 20 <= six.e_above < 64
    )  # 2^6 is the most that six signs can say
    same = judge([-2.0] * 6, [-2.0] * 6, better="higher", margin=0.1)
    assert same.reading == "tie"
    assert judge([-2.0] * 6, [-2.0] * 6, better="higher", margin=0.0).reading == "open"
    rounded_only = [value * (1 + 2**-52) for value in BASE]
    assert judge(BASE, rounded_only, better="lower", margin=0.0).reading == "open"
    small = judge([x + 1e-11 * i for i, x in enumerate(BASE, 10)], BASE, better="lower", margin=0.0)
    assert (small.by, small.reading) == ("mean", "b"), "ten thousand times as much as rounding is a spread"


def test_an_arm_that_fails_three_times_in_ten_never_ties_with_one_that_does_not():
    """At three seeds it was called equivalent in 34% of studies, those in which it happened not to fail."""
    draws = np.random.default_rng(0)
    tied = 0
    for n in (3, 8):
        for _ in range(200):
            failed = set(np.flatnonzero(draws.random(n) < 0.3).tolist())
            found = judge(moved(0.0)[:n], BASE[:n], better="lower", margin=0.1, failed_a=failed)
            assert found.reading != "tie" or (n == 8 and not failed)
            tied += found.reading == "tie"
    # At eight seeds it does not fail in 0.7^8 = 6% of studies.
    assert tied <= stats.binom.ppf(0.999, 200, 0.7**8)


def test_failures_on_one_side_name_no_winner_but_keep_the_failing_arm_from_winning():
    better = judged(-0.3, failed_a={0, 4})
    assert (better.of_losses, better.reading) == ("a", "open") and better.failures.only_a == 2
    worse = judged(0.3, failed_a={0, 4})
    assert (worse.of_losses, worse.reading) == ("b", "b")
    assert judged(0.0, 0.1, failed_a={0}).reading == "not a"  # alike in losses, and it fails more
    assert judged(0.0, 0.1, failed_a={0}, failed_b={3}).reading == "open"
    assert judged(0.0, 0.1, failed_a={3}, failed_b={3}).reading == "tie"
    assert judged(0.3, failed_a={1}, failed_b={4}).reading == "b"
    # "not b" says that b does not win; that a fails more leaves it open.
    assert judged(-0.02, 0.021, failed_a={6}).of_losses == "not b"
    assert judged(-0.02, 0.021, failed_a={6}).reading == "open"
    assert judged(-0.02, 0.021, failed_b={6}).reading == "not b"


def test_a_pair_in_which_both_failed_says_nothing():
    with_pair = judge([*moved(0.1), None], [*BASE, None], better="lower", margin=0.0)
    without = judged(0.1)
    for name in ("effect", "interval", "e_above", "reading", "p_above"):
        assert getattr(with_pair, name) == getattr(without, name)
    assert (with_pair.n, with_pair.failures.a, with_pair.failures.alike) == (9, 1, True)
    nothing = judge([None] * 6, [None] * 6, better="lower", margin=0.1)
    assert (nothing.reading, nothing.effect, nothing.needed) == ("open", None, None)


def test_runs_that_stayed_on_the_plateau_are_no_part_of_the_mean():
    """A run that learned nothing is finite: two of eight once made a mean and a spread out of two kinds of runs."""
    a = moved(-0.05)
    a[2] = a[6] = 3.3
    mixed = judge(a, BASE, better="lower", margin=0.01)
    assert mixed.reading == "open" and mixed.effect > 0.2
    apart = judge(a, BASE, better="lower", margin=0.01, failed_a={2, 6})
    assert apart.effect == pytest.approx(np.mean([d for i, d in enumerate(np.subtract(a, BASE)) if i not in (2, 6)]))
    assert (apart.of_losses, apart.reading, apart.failures.a) == ("a", "open", 2)


def test_p_is_against_the_margin_on_its_side():
    found = judged(0.05, 0.04)
    for p, d in (
        (found.p_above, np.subtract(moved(0.05), BASE) - 0.04),
        (found.p_below, np.subtract(BASE, moved(0.05)) - 0.04),
    ):
        by_hand = np.mean([np.dot(signs, d) >= d.sum() - 1e-12 for signs in itertools.product((1, -1), repeat=8)])
        assert p == pytest.approx(by_hand, abs=1e-12)
    assert found.p_flip == 2 * found.p_above > 2 * judged(0.05).p_above
    assert judged(-0.05).p_flip == 2 * judged(-0.05).p_below < 0.02


def test_a_direction_that_is_none_is_refused_in_a_line():
    with pytest.raises(UserError, match=r"^better=smaller: should be lower, higher or None$"):
        judge([1.0, 2.0], [1.0, 3.0], better="smaller", margin=0.0)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_the_p_beside_a_verdict_is_one_whichever_side_the_effect_lies_on(margin):
    """It was that of the side the effect was seen on alone, and below 0.05 of equal arms in a tenth of studies."""
    draws = np.random.default_rng(3).normal(margin, 1.0, (2000, 8))
    found = [judge(d, np.zeros(8), better="lower", margin=margin).p_flip for d in draws]
    assert np.mean(np.array(found) <= 0.05) <= 0.06


def test_an_interval_on_the_wrong_side_rules_out_though_it_names_no_winner():
    """One-sided claims were inconclusive there, and asked for 513 seeds."""
    found = judged(-0.01, 0.02)
    low, high = found.interval
    assert low < -0.02 < high < 0.02  # so b cannot win, and whether a does is open
    assert found.reading == "not b" and found.e_not_above >= 20 > found.e_not_below
    assert found.needed is None or found.needed < 513


# ---------------------------------------------------------------- failures


def boschloo_by_hand(k_a, k_b, n):
    """The largest chance, over the common rate, of a table whose Fisher p is no larger; twice the smaller side's."""
    k = np.arange(n + 1)
    sides = []
    for alternative in ("less", "greater"):
        fisher = np.array([[stats.fisher_exact([[i, j], [n - i, n - j]], alternative)[1] for j in k] for i in k])
        extreme = fisher <= fisher[k_a, k_b] * (1 + 1e-12)
        rates = np.linspace(0, 1, 4001)
        chances = [stats.binom.pmf(k, n, rate) for rate in rates]
        sides.append(max(float((np.outer(of, of) * extreme).sum()) for of in chances))
    return min(1.0, 2 * min(sides))


def test_boschloos_p_is_the_chance_of_a_table_as_extreme():
    found = judge(range(7), range(7), better="lower", margin=0.0, failed_a=range(5), failed_b={6})
    assert (found.failures.a, found.failures.b, found.failures.only_a, found.failures.only_b) == (5, 1, 5, 1)
    assert found.failures.p_boschloo == pytest.approx(boschloo_by_hand(5, 1, 7), abs=1e-5)  # of the grid of rates
    assert judged(0.0).failures.p_boschloo is None


def test_a_tie_leaves_a_chance_of_failing_that_was_not_seen():
    tie = judged(0.0, 0.1)
    assert tie.reading == "tie"
    # Clopper and Pearson's one-sided 95% bound of none in eight.
    assert tie.failures.unseen == pytest.approx(stats.beta.ppf(0.95, 1, 8), abs=1e-12)


def test_needed_by_failures_alone():
    # Two of eight fail on one side: at 24 it would be six, which is enough.
    assert judge([None, None, *BASE[2:]], BASE, better="lower", margin=0.0).needed in (22, 23, 24)


def test_both_endpoints_together_name_a_wrong_winner_in_at_most_one_study_of_twenty():
    """Looked at from six pairs to 24: arms that are alike, and fail alike, at any rate."""
    draws = np.random.default_rng(4)
    wrong = 0
    for study in range(160):
        rate = (0.0, 0.1, 0.3, 0.5)[study % 4]
        a, b = (np.where(draws.random(24) < rate, np.nan, draws.normal(2.0, 0.1, 24)) for _ in range(2))
        looks = (judge(a[:n].tolist(), b[:n].tolist(), better="lower", margin=0.0) for n in (6, 8, 10, 12, 16, 20, 24))
        wrong += any(found.reading in ("a", "b") for found in looks)
    # 5% of 160 is 8; 16 is exceeded once in 200 such tests.
    assert stats.binom.sf(16, 160, 0.05) < 1 / 200
    assert wrong <= 16


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (([1.0], [1.0, 2.0]), {}, "1 values against 2"),
        (({1: 1.0}, {2: 1.0}), {}, "share no seed"),
        (([], []), {}, "share no seed"),
        (({1: 1.0}, [1.0]), {}, "one arm is a mapping and one a sequence"),
        (([1.0], [1.0]), {"margin": -0.1}, "margin=-0.1: should be a number, 0 or greater"),
        (([1.0], [1.0]), {"margin": math.nan}, "margin=nan: should be a number"),
        (([1.0], [1.0]), {"margin": math.inf}, "margin=inf: should be a number"),
        (
            ([1.0], [1.0]),
            {"margin": 1.0, "largest": 1.0},
            "margin=1.0: is no smaller than the largest difference there can be, 1",
        ),
        (([1.0], [1.0]), {"alpha": 0.0}, "alpha=0.0: should lie between 0 and 1"),
        (([1.0], [1.0]), {"alpha": 1.0}, "alpha=1.0: should lie between 0 and 1"),
    ],
)
def test_what_cannot_be_judged_is_refused(arguments, options, words):
    with pytest.raises(UserError, match=words):
        judge(*arguments, **{"better": "lower", "margin": 0.0} | options)


def test_the_evidence_of_losses_and_failures_together_is_no_more_than_one_on_average():
    """Two alike arms of three pairs, that fail half of the time and are else 0 or 1 by a fair coin: every outcome, by its chance.

    The larger of the two would come to more than one, and e-BH rests on one.
    """
    outcomes = list(itertools.product((None, 0.0, 1.0), repeat=2))
    chance = {None: 0.5, 0.0: 0.25, 1.0: 0.25}
    mean = larger = 0.0
    for drawn in itertools.product(outcomes, repeat=3):
        weight = math.prod(chance[x] for pair in drawn for x in pair)
        found = judge([a for a, _ in drawn], [b for _, b in drawn], better="lower", margin=0.0)
        by_failures = max(found.failures.e_a_fails_more, found.failures.e_b_fails_more)
        mean += weight * found.e
        larger += weight * max(found.e_above, found.e_below, by_failures)
    assert larger > 1 >= mean


@pytest.mark.parametrize(
    ("arm", "base", "margin"),
    [((0.95, 0.97, 0.96), (0.03, 0.05, 0.02), 0.1), ((0.5, 0.52, 0.49), (0.5, 0.5, 0.52), 0.1)],
)
def test_what_shares_take_is_enough_where_what_was_seen_is_seen_again(arm, base, margin):
    """A difference of 0.93, and a tie, which takes far more."""

    def judged_at(n):
        return judge(np.resize(arm, n), np.resize(base, n), better="higher", margin=margin, largest=1.0)

    needed = judged_at(6).needed
    assert judged_at(6).reading not in ("a", "tie") and judged_at(needed).reading in ("a", "tie")
    assert judged_at(needed - 1).reading not in ("a", "tie")


def test_an_e_value_of_the_arm_that_fails_less_and_ends_lower_is_of_both():
    """b fails alone once, and a ends lower: half of "b fails more" times one more than "a ends lower"."""
    a, b = [x - 0.5 for x in moved(0.0)], [*BASE[:7], None]
    found = judge(a, b, better="lower", margin=0.0)
    assert found.e_below > 20 > found.e_above
    assert found.e == pytest.approx(found.failures.e_b_fails_more * (found.e_below + 1) / 2, rel=1e-12)
    turned = judge(b, a, better="lower", margin=0.0)
    assert turned.e == pytest.approx(found.e, rel=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_may_lie_further_out_than_it_was_seen_takes_as_long_and_what_may_lie_nearer_cannot_be_known(sign):
    """Differences that are at least as large as seen: more of the same may decide for above, and none decides for below."""
    found = judge(
        [x + sign * d for x, d in zip(BASE, [0.3, 0.2, 0.4, 0.1], strict=False)], BASE[:4], better="lower", margin=0.05
    )
    assert found.reading == "open" and found.needed
    further, nearer = ("at_least", "at_most") if sign > 0 else ("at_most", "at_least")
    both = {"at_least": False, "at_most": False}
    assert of_bounds(found, **both | {further: True}).needed == found.needed
    assert of_bounds(found, **both | {nearer: True}).needed is None
    assert of_bounds(found, at_least=True, at_most=True).needed is None
