"""e-BH by hand and against Benjamini-Hochberg of statsmodels; its online form against what defines it, and simulated."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from archlab.comparison.many import online_needed, survivors


def online_survivors(e, batch=0):
    """As the page of all claims says which survive."""
    return [one >= least for one, least in zip(e, online_needed(e, batch=batch), strict=True)]


def by_definition(e, batch=0):
    """The largest set of k of which each reaches 1 / (k alpha gamma)."""
    later = [1 / (j * (j + 1)) for j in range(1, len(e) - batch + 1)]
    gamma = [0.5 / max(batch, 1)] * min(batch, len(e)) + [(0.5 if batch else 1.0) * weight for weight in later]
    sets = ([one * weight * 0.05 * k >= 1 for one, weight in zip(e, gamma, strict=True)] for k in range(len(e), 0, -1))
    return next((kept for k, kept in zip(range(len(e), 0, -1), sets, strict=True) if sum(kept) >= k), [False] * len(e))


def test_e_bh_by_hand():
    # Of four at 5%, the k-th largest has to reach 80 / k: 80, 40, 26.7, 20. Here 30, 45, 90 are the third, second and first.
    assert survivors([45.0, 30.0, 3.0, 90.0]) == [True, True, False, True]
    assert survivors([45.0, 26.0, 3.0, 79.0]) == [True, False, False, True]
    assert survivors([39.0, 26.0, 3.0, 79.0]) == [False, False, False, False]
    assert survivors([20.0]) == [True] and survivors([19.9]) == [False] and survivors([]) == []
    # All four reach 20, so that all survive, though none reaches 80.
    assert survivors([20.0, 21.0, 22.0, 23.0]) == [True] * 4


def test_e_bh_is_benjamini_hochberg_of_one_over_e():
    draws = np.random.default_rng(0)
    for _ in range(100):
        e = np.exp(draws.normal(2.0, 2.0, size=draws.integers(1, 12)))
        rejected, *_ = multipletests(np.minimum(1 / e, 1), alpha=0.05, method="fdr_bh")
        assert survivors(e.tolist()) == rejected.tolist()


def test_the_online_form_of_a_batch_alone_has_half_the_weight():
    e = [45.0, 30.0, 3.0, 90.0, 170.0]
    assert online_survivors(e, batch=5) == survivors(e, alpha=0.025) == [False, False, False, False, False]
    assert online_survivors([400.0, 150.0, 3.0], batch=3) == survivors([400.0, 150.0, 3.0], alpha=0.025)


def test_the_online_form_by_hand():
    # Weights 1/2, 1/6, 1/12: with one survivor each needs 40, 120, 240, with two 20, 60, 120.
    assert online_survivors([39.0]) == [False]
    assert online_survivors([40.0, 50.0]) == [True, False]
    assert online_survivors([39.0, 60.0]) == [True, True]
    assert online_survivors([39.0, 30.0, 120.0]) == [True, False, True]
    # Beside a batch of two the weights are 1/4, 1/4, then half of those above: 1/4, 1/12.
    assert online_survivors([80.0, 1.0, 39.0], batch=2) == [True, False, False]
    assert online_survivors([80.0, 1.0, 40.0], batch=2) == [True, False, True]


def test_a_later_verdict_never_puts_an_earlier_one_out():
    e = np.exp(np.random.default_rng(1).normal(4.0, 2.0, size=30)).tolist()
    for batch in (0, 5):
        kept: list[bool] = []
        for n in range(1, 31):
            now = online_survivors(e[:n], batch=batch)
            assert all(after or not before for before, after in zip(kept, now, strict=False))
            kept = now


def test_what_a_verdict_needs_is_where_it_begins_to_survive():
    # Weights 1/6, three times, and 1/4. The first would be alone, 1 / (0.05 / 6), the second beside it, the others beside both.
    assert online_needed([90.0, 50.0, 3.0, 1.0], batch=3) == pytest.approx([120.0, 60.0, 40.0, 80 / 3])
    draws = np.random.default_rng(4)
    for _ in range(200):
        e, batch = np.exp(draws.normal(3.5, 2.0, size=draws.integers(1, 12))).tolist(), int(draws.integers(0, 6))
        needed = online_needed(e, batch=batch)
        assert online_survivors(e, batch=batch) == by_definition(e, batch=batch)
        i = int(draws.integers(0, len(e)))
        for factor, survives in ((1 + 1e-9, True), (1 - 1e-9, False)):
            assert by_definition([*e[:i], needed[i] * factor, *e[i + 1 :]], batch=batch)[i] is survives


@pytest.mark.parametrize("procedure", [survivors, online_survivors])
def test_few_survivors_are_false_whether_verdicts_depend_on_each_other_or_not(procedure):
    """Ten nulls and five effects: e-values exp(z mu - mu^2 / 2), mu = 3, of normals that share a part."""
    draws, mu, shares = np.random.default_rng(2), 3.0, []
    truth = np.array([False, True, False] * 5)
    for _ in range(2_000):
        z = np.sqrt(0.5) * (draws.normal(size=15) + draws.normal()) + mu * truth
        kept = np.array(procedure(np.exp(mu * z - mu**2 / 2).tolist()))
        shares.append(float((kept & ~truth).sum() / max(kept.sum(), 1)))
    assert np.mean(shares) + stats.norm.ppf(0.999) * np.std(shares) / np.sqrt(len(shares)) < 0.05
    assert 0 < np.mean(shares)
