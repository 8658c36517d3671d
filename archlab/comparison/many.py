"""Many verdicts, one error rate: which of them survive together, by their e-values, however they depend on each other."""

from collections.abc import Sequence

import numpy as np

from archlab.comparison.rule import ALPHA


def survivors(e_values: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """e-BH: of the K verdicts, those whose e-value is at least K / (k alpha), k the largest number that so many reach.

    Of the verdicts that survive, a share of at most alpha is expected to be false, under any dependence; K is the number
    tested, the undecided ones included. Source: arXiv:2009.02824 (the e-BH procedure).
    """
    levels = np.asarray(e_values, dtype=float) * alpha / max(len(e_values), 1)
    k = max((k for k in range(1, len(levels) + 1) if int(np.sum(levels * k >= ENOUGH)) >= k), default=0)
    return [bool(k and level * k >= ENOUGH) for level in levels]


def online_needed(e_values: Sequence[float], alpha: float = ALPHA, *, batch: int = 0) -> list[float]:
    """Of each hypothesis of online e-BH, the e-value from which on it survives, all the others as they are.

    Online e-BH is for hypotheses in the order in which they were registered, of which there may always be more: with weights
    gamma_i of sum at most 1, those survive with e_i >= 1 / (k alpha gamma_i), k the largest number that so many reach. A later
    one may let an earlier one in, and never puts one out while e-values stand. The first `batch` hypotheses, registered at once,
    share half of the weight equally; those after them have gamma_j / 2 of gamma_j = 1 / (j (j + 1)), all of it where there is no
    batch. At any moment the expected share of false ones is at most alpha.

    With one hypothesis k others survive beside it, so that it needs 1 / ((k + 1) alpha gamma_i); k is the largest for which k
    others reach 1 / ((k + 1) alpha gamma_j).

    Source: arXiv:2407.20683, sec. 2 (online e-BH).
    """
    e, gamma = np.asarray(e_values, dtype=float), _weights(len(e_values), batch)
    needed = []
    for i in range(len(e)):
        others = np.delete(e * gamma, i)
        k = max(k for k in range(1, len(e) + 1) if int(np.sum(others * alpha * k >= ENOUGH)) >= k - 1)
        needed.append(float(ENOUGH / (k * alpha * gamma[i])))
    return needed


ENOUGH = 1 - 1e-12
"""What a level is held to, but for rounding."""


def _weights(n: int, batch: int) -> np.ndarray:
    """Each hypothesis's share of the error rate."""
    later = np.arange(1, max(n - batch, 0) + 1, dtype=float)
    share = 0.5 if batch else 1.0
    return np.concatenate([np.full(min(batch, n), 0.5 / max(batch, 1)), share / (later * (later + 1))])
