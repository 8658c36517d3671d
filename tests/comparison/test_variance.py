"""Variance components of crossed seeds: against a table worked by hand, statsmodels' analysis of variance, and simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from archlab.base.errors import UserError
from archlab.comparison.variance import components


def test_a_table_worked_by_hand():
    """Row means 2, 4, 9 and column means 4, 6 about a mean of 5: MS_a = 2 (9 + 1 + 16) / 2 = 26, MS_b = 3 (1 + 1) / 1 = 6; what
    is left is +-1, +-1 and 0 in each row: MS_e = 4 / 2 = 2. So A = (26 - 2) / 2, B = (6 - 2) / 3, E = 2."""
    found = components([[2, 2], [2, 6], [8, 10]])
    assert found.mean == pytest.approx(5)
    assert (found.rows, found.columns, found.both) == pytest.approx((12, 4 / 3, 2))
    assert found.total == pytest.approx(12 + 4 / 3 + 2)


def test_mean_squares_and_their_ratio_are_those_of_an_analysis_of_variance():
    rng = np.random.default_rng(3)
    y = rng.normal(size=(4, 5)) + 2 * rng.normal(size=(4, 1)) + 3 * rng.normal(size=5)
    frame = pd.DataFrame([(i, j, y[i, j]) for i in range(4) for j in range(5)], columns=["i", "j", "y"])
    rows, columns, both = anova_lm(ols("y ~ C(i) + C(j)", frame).fit())["mean_sq"]
    found = components(y.tolist())
    assert (found.rows, found.columns, found.both) == pytest.approx(
        ((rows - both) / 5, (columns - both) / 4, both), rel=1e-9
    )
    # At either end of the interval the ratio of mean squares, which is (1 + J A / E) F, lies at a 2.5% quantile.
    assert min(*found.rows_over_both, *found.columns_over_both) > 0, "none is cut off at no variance"
    for row_end, column_end, at in zip(found.rows_over_both, found.columns_over_both, (0.975, 0.025), strict=True):
        assert stats.f.cdf(rows / both / (1 + 5 * row_end), 3, 12) == pytest.approx(at)
        assert stats.f.cdf(columns / both / (1 + 4 * column_end), 4, 12) == pytest.approx(at)


def test_the_estimates_are_unbiased_and_the_interval_covers():
    rng = np.random.default_rng(0)
    tables = rng.normal(size=(2000, 4, 4)) + 2 * rng.normal(size=(2000, 4, 1)) + 0.5 * rng.normal(size=(2000, 1, 4))
    found = [components(table.tolist()) for table in tables]
    for name, true in (("rows", 4.0), ("columns", 0.25), ("both", 1.0)):
        values = np.array([getattr(one, name) for one in found])
        assert abs(values.mean() - true) < 4 * values.std() / 2000**0.5
    covered = sum(one.rows_over_both[0] <= 4.0 <= one.rows_over_both[1] for one in found)
    assert stats.binom.cdf(covered, 2000, 0.95) > 1e-4 and stats.binom.sf(covered, 2000, 0.95) > 1e-4
    assert min(one.columns for one in found) < 0, "an estimate below zero is not hidden"


@pytest.mark.parametrize("table", [[[1.0, 2.0]], [[1.0], [2.0]], [[1.0, float("nan")], [2.0, 3.0]]])
def test_a_table_that_says_nothing_is_refused(table):
    with pytest.raises(UserError, match="variance components: need a finite number in each cell"):
        components(table)
