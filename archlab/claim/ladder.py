"""A claim at every rung of a ladder, each decided by itself at rates of its own, and what they come to together.

    SUPPORTED     at every rung: the evidence is that of the weakest
    REFUTED, TIE  it holds at no rung; TIE where it is a tie at each of them
    MIXED         it holds at some rungs and not at others, each with evidence that counts among all rungs: the means of the
                  rungs' e-values for it and against it both reach 1/alpha
    INCONCLUSIVE  anything else: a rung is open, or what differs is not evident enough among so many rungs

A rung is a size, a horizon and, where the ladder names some, a corpus: a verdict covers what its rungs do, and where corpora
differ with evidence it is MIXED as where sizes do.

That the effect changes its side from rung to rung is told with any verdict: a difference its sign, a ratio or a value what it is
held against.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from omegaconf import DictConfig

from archlab.base.errors import UserError
from archlab.claim.claim import Budget, BudgetName, Claim, Part
from archlab.claim.course import Course, course
from archlab.claim.decide import OPEN, Decision, PartResult, Verdict, reason, signed
from archlab.claim.jobs import Job, LookJob, RunJob
from archlab.claim.rung import OF_HORIZON, OF_WIDTH, rungs_of
from archlab.claim.store import JobStore
from archlab.comparison.rule import ALPHA
from archlab.runs.packs import bytes_each, memory_of

AGAINST = ("REFUTED", "TIE")


@dataclass(frozen=True)
class ClaimLadder:
    """A claim's courses, one at each rung; a single one where no ladder was asked for."""

    claim: Claim
    asked: str | None
    """As it is typed: 3x2."""

    rungs: tuple[Course, ...]

    @property
    def budget(self) -> Budget | str:
        return self.rungs[0].budget

    @property
    def evidence(self) -> float | None:
        """The e-value up to which it goes on where that is more than what decides it."""
        asked = self.rungs[0].evidence
        return asked if asked > 1 / ALPHA else None

    def wanted(self) -> list[Job]:
        """What is to be done next, at any rung."""
        return joined(made.wanted() for made in self.rungs)

    @property
    def least(self) -> list[Job]:
        return joined(made.least for made in self.rungs)

    @property
    def most(self) -> list[Job]:
        return joined(made.most for made in self.rungs)


def joined(lists: Iterable[Sequence[Job]]) -> list[Job]:
    return [job for jobs in lists for job in jobs]


def ladder(
    claim: Claim, budget_name: BudgetName, jobs: JobStore, asked: str | None = None, evidence: float = 1 / ALPHA
) -> ClaimLadder:
    """Raises UserError where the claim cannot be made at a rung, or a rung is beyond this machine's memory."""
    rungs = rungs_of(asked)
    if asked is None or isinstance(claim.budgets[budget_name], str):
        return ClaimLadder(claim, asked, (course(claim, budget_name, jobs, evidence=evidence),))
    where = f"ladder={asked}: {claim.name}"
    if claim.kind != "trained":
        raise UserError(f"{where} trains nothing, so that it has no rungs; leave the ladder out, or name other claims")
    check_swept(where, claim)
    try:
        made = ClaimLadder(claim, asked, tuple(course(claim, budget_name, jobs, rung, evidence) for rung in rungs))
    except UserError as error:
        raise UserError(f"ladder={asked}: {error}") from None
    check_memory(asked, made)
    return made


def check_swept(where: str, claim: Claim) -> None:
    """Raises UserError where a part runs over what the ladder multiplies."""
    for part in (*claim.parts, *claim.controls):
        if part.over and (both := part.over.keys() & {*OF_WIDTH, *OF_HORIZON}):
            raise UserError(f"{where} runs over {min(both)} itself, which a ladder multiplies; leave the ladder out")


def check_memory(asked: str, made: ClaimLadder) -> None:
    """Raises UserError where a run of the widest rung does not fit into this machine's memory."""
    widest = made.rungs[-1]
    for job in widest.jobs(1):
        if isinstance(job, RunJob) and (needs := bytes_each(job.plan)) > (there := memory_of(job.plan)):
            raise UserError(
                f"ladder={asked}: at {widest.rung.width} times the width a run of {made.claim.name} takes about"
                f" {needs / 1e9:.1f} GB, and this machine has {there / 1e9:.1f} GB; use fewer sizes"
            )


# ---------------------------------------------------------------- together


@dataclass(frozen=True)
class Together:
    """What the rungs come to; `because` is the place of the one that stands for them."""

    verdict: Verdict
    e: float
    because: int


def together(found: Sequence[Decision]) -> Together:
    """The verdict over all rungs."""
    verdicts = [one.verdict for one in found]
    least_for, least_against = min(one.e_for for one in found), min(one.e_against for one in found)
    if all(verdict == "SUPPORTED" for verdict in verdicts):
        return Together("SUPPORTED", least_for, min(range(len(found)), key=lambda i: found[i].e_for))
    if all(verdict in AGAINST for verdict in verdicts):
        whole: Verdict = "REFUTED" if "REFUTED" in verdicts else "TIE"
        return Together(whole, least_against, verdicts.index(whole))
    mean_for, mean_against = (
        math.fsum(es) / len(found) for es in zip(*((d.e_for, d.e_against) for d in found), strict=True)
    )
    differs = "SUPPORTED" in verdicts and any(verdict in AGAINST for verdict in verdicts)
    if differs and min(mean_for, mean_against) >= 1 / ALPHA:
        return Together("MIXED", min(mean_for, mean_against), next(i for i, v in enumerate(verdicts) if v in AGAINST))
    first = verdicts.index(OPEN) if OPEN in verdicts else next(i for i, v in enumerate(verdicts) if v != verdicts[0])
    return Together(OPEN, max(least_for, least_against), first)


def why(whole: Together, found: Sequence[Decision], rungs: Sequence[Course], slopes: dict[str, Any]) -> str:
    """Where it holds and where not, the rung that stands for all, a change of side, and how the effect goes with size."""
    labels = [made.rung.label for made in rungs]
    words = [f"{verdicts_in_words(found, labels)}; at {labels[whole.because]}: {reason(found[whole.because])}"]
    if whole.verdict == OPEN and OPEN not in {one.verdict for one in found}:
        words.append(f"that the rungs differ is not evident enough among {len(found)}")
    if sides := change_of_side([one.parts[0] for one in found]):
        part = found[sides[0]].parts[0].part
        told = " and ".join(f"{labels[i]} ({effect_in_words(found[i].parts[0])})" for i in sides)
        words.append(f"the effect {crossing(part)} between {told}, whose intervals are wholly on either side")
    if slopes:
        told = " and ".join(f"{slope_in_words(slope)} per doubling of {name}" for name, slope in slopes.items())
        words.append(f"the effect moves by {told} (least squares over the rungs)")
    return "; ".join(words)


def verdicts_in_words(found: Sequence[Decision], labels: Sequence[str]) -> str:
    """supported at 2 of 3 rungs, open at 1 (width x4, steps x1)."""
    by_verdict: dict[str, list[str]] = {}
    for one, label in zip(found, labels, strict=True):
        by_verdict.setdefault(one.verdict, []).append(label)
    if len(by_verdict) == 1:
        return f"{WORDS[next(iter(by_verdict))]} at each of {len(found)} rungs"
    most = max(by_verdict.values(), key=len)
    return ", ".join(
        f"{WORDS[verdict]} at {len(at)} of {len(found)} rungs" + ("" if at is most else f" ({'; '.join(at)})")
        for verdict, at in by_verdict.items()
    )


WORDS = {"SUPPORTED": "supported", "REFUTED": "refuted", "TIE": "a tie", "INCONCLUSIVE": "open"}


def change_of_side(parts: Sequence[PartResult]) -> tuple[int, int] | None:
    """The first two rungs in turn whose intervals lie wholly on different sides of what the part is held against."""
    sides = [(i, side) for i, part in enumerate(parts) if (side := side_of(part)) is not None]
    return next(((i, j) for (i, a), (j, b) in pairwise(sides) if a != b), None)


def side_of(part: PartResult) -> bool | None:
    """Whether the interval lies wholly above what the part is held against; None where it does not lie on one side."""
    if part.judged is None or part.judged.interval is None:
        return None
    low, high = part.judged.interval
    return True if low > 0 else False if high < 0 else None


def crossing(part: Part) -> str:
    """Only a difference that is held against none changes its sign there."""
    return (
        "changes its sign"
        if part.form == "difference" and part.against == 0
        else f"crosses {signed(part, part.against)}"
    )


def effect_in_words(result: PartResult) -> str:
    assert result.judged is not None
    assert result.judged.effect is not None
    return signed(result.part, result.judged.effect + result.part.against)


# ---------------------------------------------------------------- by size and horizon


def n_params_of(made: Course, seeds: int) -> int | None:
    """Of the runs that the first part's last arm has; of any, where it has none."""
    runs = [job.of if isinstance(job, LookJob) else job for job in made.jobs(seeds)]
    of_part = [job for rows in made.of_part(made.claim.parts[0], 1).values() for row in rows.values() for job in row]
    last = [job.of if isinstance(job, LookJob) else job for job in of_part[::-1]]
    return next(
        (job.record["n_params"] for job in (*last, *runs) if isinstance(job, RunJob) and "n_params" in job.record), None
    )


def tokens_of(cfg: DictConfig) -> int:
    """That a run is trained on."""
    return int(cfg.train.steps * cfg.train.batch_size * cfg.train.train_len)


def slopes_of(effects: Sequence[float | None], params: Sequence[int | None], tokens: Sequence[int]) -> dict[str, Any]:
    """How much the effect moves per doubling of parameters and of tokens, with 95% intervals where there are rungs enough.

    effect = a + b log2(parameters) + c log2(tokens), by ordinary least squares, each rung counting alike, whatever its corpus; a
    term whose quantity is the same at all rungs is left out. Nothing where the rungs do not determine it.
    """
    from statsmodels.api import OLS, add_constant  # here, since it takes a second to import

    rows = [(y, p, t) for y, p, t in zip(effects, params, tokens, strict=True) if y is not None and p]
    named = {"parameters": [p for _, p, _ in rows], "tokens": [t for *_, t in rows]}
    varying = {name: np.log2(xs) for name, xs in named.items() if len(set(xs)) > 1}
    if not varying:
        return {}
    table = add_constant(np.column_stack(list(varying.values())))
    if np.linalg.matrix_rank(table) < table.shape[1]:
        return {}
    fit = OLS(np.array([y for y, *_ in rows]), table).fit()
    intervals = fit.conf_int(0.05)[1:].tolist() if fit.df_resid > 0 else [None] * len(varying)
    return {
        name: {"per_doubling": float(slope), "interval": interval}
        for name, slope, interval in zip(varying, fit.params[1:], intervals, strict=True)
    }


def slope_in_words(slope: dict[str, Any]) -> str:
    told = f"{slope['per_doubling']:+.3g}"
    return f"{told} ({slope['interval'][0]:+.3g} to {slope['interval'][1]:+.3g})" if slope["interval"] else told
