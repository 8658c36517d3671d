"""Many verdicts, one error rate: which of them survive together, by their e-values, however they depend on each other."""

from collections.abc import Sequence

import numpy as np

from archlab.comparison.rule import ALPHA


def survivors(e_values: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """e-BH: of the K verdicts, those whose e-value is at least K / (k alpha), k the largest number that so many reach.

    Of the verdicts that survive, a share of at most alpha is expected to be false, under any dependence; K is the number
    tested, the undecided ones included. Source: arXiv:2009.02824 (the e-BH procedure).
    """
    return _reached(np.asarray(e_values, dtype=float), np.full(len(e_values), 1 / max(len(e_values), 1)), alpha)


def online_survivors(e_values: Sequence[float], alpha: float = ALPHA, *, batch: int = 0) -> list[bool]:
    """Online e-BH, for hypotheses in the order in which they were registered, of which there may always be more.

    With weights gamma_i of sum at most 1, the verdicts with e_i >= 1 / (k alpha gamma_i), k the largest number that so many
    reach. A later one may let an earlier one in, and never puts one out while e-values stand. The first `batch` hypotheses,
    registered at once, share half of the weight equally; those after them have gamma_j / 2 of gamma_j = 1 / (j (j + 1)), all
    of it where there is no batch. At any moment the expected share of false ones is at most alpha.

    Source: arXiv:2407.20683, sec. 2 (online e-BH).
    """
    return _reached(np.asarray(e_values, dtype=float), _weights(len(e_values), batch), alpha)


def online_needed(e_values: Sequence[float], alpha: float = ALPHA, *, batch: int = 0) -> list[float]:
    """Of each hypothesis of online e-BH, the e-value from which on it survives, all the others as they are.

    With it k others survive beside it, so that it needs 1 / ((k + 1) alpha gamma_i); k is the largest for which k others reach
    1 / ((k + 1) alpha gamma_j).
    """
    e, gamma = np.asarray(e_values, dtype=float), _weights(len(e_values), batch)
    needed = []
    for i in range(len(e)):
        others = np.delete(e * gamma, i)
        k = max(k for k in range(1, len(e) + 1) if int(np.sum(others * alpha * k >= 1 - 1e-12)) >= k - 1)
        needed.append(float((1 - 1e-12) / (k * alpha * gamma[i])))
    return needed


def _weights(n: int, batch: int) -> np.ndarray:
    """Each hypothesis's share of the error rate."""
    later = np.arange(1, max(n - batch, 0) + 1, dtype=float)
    share = 0.5 if batch else 1.0
    return np.concatenate([np.full(min(batch, n), 0.5 / max(batch, 1)), share / (later * (later + 1))])


def _reached(e_values: np.ndarray, gamma: np.ndarray, alpha: float) -> list[bool]:
    """Source: arXiv:2407.20683, sec. 2; with gamma_i = 1/K it is e-BH."""
    enough = [int(np.sum(e_values * gamma * alpha * k >= 1 - 1e-12)) >= k for k in range(1, len(e_values) + 1)]
    k = max((k for k, there in enumerate(enough, start=1) if there), default=0)
    return [bool(k and e * weight * alpha * k >= 1 - 1e-12) for e, weight in zip(e_values, gamma, strict=True)]
