"""What a number varies with: the initial weights, the data, or the two together; from runs that cross seeds of both.

Rows are seeds of the initial weights (`seed`), columns seeds of what is trained on (`data_seed`), a run in each cell:

    y_ij = m + a_i + b_j + e_ij,    a ~ (0, A), b ~ (0, B), e ~ (0, E), independent

with I rows and J columns. The mean squares of rows, of columns and of what is left have the expectations

    E[MS_a] = E + J A,    MS_a = J sum_i (y_i. - y..)^2 / (I - 1)
    E[MS_b] = E + I B,    MS_b = I sum_j (y_.j - y..)^2 / (J - 1)
    E[MS_e] = E,          MS_e = sum_ij (y_ij - y_i. - y_.j + y..)^2 / ((I - 1) (J - 1))

so that (MS_a - MS_e) / J, (MS_b - MS_e) / I and MS_e are unbiased for A, B and E (the method of moments; an estimate may come
out below zero, which says that the component is too small to be told from none). A run that is repeated gives the same number,
so E is what depends on both seeds at once, and no noise of measurement.

Source: S. R. Searle, G. Casella, C. E. McCulloch, Variance Components, on the two-way crossed random model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from archlab.base.errors import UserError


@dataclass(frozen=True)
class Components:
    """Variances, in the square of the unit of what was measured."""

    mean: float
    rows: float
    """Of the rows' effects, A."""

    columns: float
    """Of the columns' effects, B."""

    both: float
    """Of what depends on row and column together, E."""

    rows_over_both: tuple[float, float]
    """95% interval of A / E under normal effects; exact, by Fisher's F of MS_a / MS_e."""

    columns_over_both: tuple[float, float]

    @property
    def total(self) -> float:
        """Of a run with new seeds of both; estimates below zero count as zero."""
        return max(self.rows, 0.0) + max(self.columns, 0.0) + self.both


def components(table: Sequence[Sequence[float]]) -> Components:
    """The variance components of a table of rows and columns, a number in each cell. Raises UserError."""
    y = np.asarray(table, dtype=float)
    if y.ndim != 2 or min(y.shape) < 2 or not np.isfinite(y).all():
        raise UserError("variance components: need a finite number in each cell of at least 2 rows and 2 columns")
    n_rows, n_columns = y.shape
    mean, of_rows, of_columns = y.mean(), y.mean(axis=1), y.mean(axis=0)
    free = (n_rows - 1, n_columns - 1, (n_rows - 1) * (n_columns - 1))
    rows = n_columns * ((of_rows - mean) ** 2).sum() / free[0]
    columns = n_rows * ((of_columns - mean) ** 2).sum() / free[1]
    both = ((y - of_rows[:, None] - of_columns + mean) ** 2).sum() / free[2]
    return Components(
        float(mean),
        float((rows - both) / n_columns),
        float((columns - both) / n_rows),
        float(both),
        ratio(rows, both, n_columns, free[0], free[2]),
        ratio(columns, both, n_rows, free[1], free[2]),
    )


def ratio(of_effect: float, both: float, each: int, free: int, free_both: int) -> tuple[float, float]:
    """(MS / (MS_e F) - 1) / n at the upper and lower 2.5% of F, no less than 0."""
    from scipy.stats import f  # here, since it takes a second to import

    if both == 0:
        return (float("inf"), float("inf")) if of_effect else (0.0, 0.0)
    low, high = (max(0.0, (of_effect / both / f.ppf(at, free, free_both) - 1) / each) for at in (0.975, 0.025))
    return float(low), float(high)
