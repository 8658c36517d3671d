"""What decides a verdict: every threshold of it, each once. (When a run counts as failed: archlab.base.plateau.)"""

ALPHA = 0.05
"""The chance of a wrong verdict, at whatever number of pairs one stops."""

LOOKS = (6, 8, 10, 12, 16, 20, 24)
"""Numbers of pairs at which a comparison that grows is looked at. What is decided is valid at any other number too."""

PRIOR_SCALE = 2.0
"""Variance of the mean under the alternative, in units of the variance of a difference: mean ~ N(0, 2 sigma^2).

Chosen by power at 6 to 24 pairs: of 0.25 to 16 it decides with the fewest pairs on average where the arms lie two or three
deviations of the noise apart, and 1 and 3 are almost as good (the table is in experiments/aa/README.md). It may not be changed
with the data at hand: the confidence sequence holds for a scale fixed in advance.
"""

FAILURE_PRIOR = (1.0, 0.25)
"""Beta prior, cut to (1/2, 1), of the chance that of two unlike runs it is the same arm's that fails: density ~ (1 - p)^(-3/4).

It weighs the certain failure: six of six are evidence enough at 5%, two-sided, which a uniform prior first says of eight.
"""

POWER = 0.8
"""`needed` is the number of pairs with about this chance of a decision."""

MANY = 10_000
"""Needing more pairs than this is as good as not knowing how many."""

EXACT_FLIPS = 16
"""Pairs up to which the permutation test goes through every assignment of signs, 2^16 of them."""

DRAWN_FLIPS = 100_000
"""Assignments of signs drawn for more pairs than that, always the same ones."""

LEAST_RATES = 3
"""Learning rates without which a sweep of them says nothing of the largest stable one."""

KEPT_GAIN = 0.5
"""A learning rate is stable while its loss keeps this share of what the best one gained over a run that learned nothing."""

RATE_MARGIN = 0.301
"""log10 of a factor of two, one step of a tuning grid: the smallest difference of interest between stable learning rates."""
