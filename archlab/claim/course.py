"""A claim on its way to a verdict: what has to be run next, and what has been found so far.

Each arm is first tuned: trials at factors of two around its rate, at seeds and on held-out data of their own
(`archlab.runs.tune`); arms of one claim try the same rates. Then runs at the best rate of each, from seed 0 on, which are
looked at as often as `LOOKS` says, until the claim is decided, with as much evidence as was asked for, or its seeds are used
up. What it comes to is what the last look says: an e-value is one at whatever look one stops. Everything follows from the jobs
that are done, so that a claim goes on wherever it was broken off.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from archlab.base.errors import UserError
from archlab.base.words import key_of
from archlab.claim.claim import Budget, BudgetName, Claim, Part, is_loss
from archlab.claim.decide import OPEN, Decision, PartResult, Values, decide, decide_part, identity_part
from archlab.claim.jobs import Job, LookJob, Measurement, Record, RunJob, plain
from archlab.claim.measures import MEASURES
from archlab.claim.reductions import REDUCTIONS
from archlab.claim.rung import AS_CLAIMED, ClaimRung
from archlab.claim.store import LENGTH, JobStore, Words, composed, key, looked_at
from archlab.claim.unmeasured import why_unmeasured
from archlab.comparison.failure import broke, failed, quantity_of
from archlab.comparison.rule import ALPHA, LOOKS
from archlab.config.assemble import assemble_without_weights
from archlab.config.tuning import check_there
from archlab.records.summary import KINDS
from archlab.runs import tune


@dataclass(frozen=True)
class Course:
    """One claim at one budget."""

    claim: Claim
    budget: Budget | str
    made: JobStore
    rung: ClaimRung = AS_CLAIMED
    """Of a ladder: its overrides come after all others but what a part runs over."""

    evidence: float = 1 / ALPHA
    """The e-value with which it is settled; more than a verdict needs has a decided claim go on."""

    rates: dict[str, float] = field(default_factory=dict)
    """By arm, once they are found."""

    beside: dict[str, Words] = field(default_factory=dict)
    """By arm, the override of what is tuned beside the rate, once it is found."""

    open_after: dict[int, bool] = field(default_factory=dict)
    """By seeds that are done, whether more could tell: a decision takes longer than all else about a claim that is settled."""

    # ------------------------------------------------------------ what comes next

    def wanted(self) -> list[Job]:
        """The jobs that are to be done next; none once the claim is settled."""
        if isinstance(self.budget, str):
            return []
        if trials := [job for job in self.trials_to_make() if job.result is None]:
            for label in self.tuned:
                tune.check_parts_apart(self.composed(label), f"claim/{self.claim.name}.yaml: ")
            return [*trials]
        for n in self.looks():
            if missing := [job for job in self.jobs(n) if job.result is None]:
                return missing
            if not self.open_at(n):
                return []
        return []

    def looks(self) -> tuple[int, ...]:
        """Numbers of seeds at which the claim is looked at."""
        assert isinstance(self.budget, Budget)
        most = self.budget.seeds
        if self.claim.kind != "trained":
            return (most,)
        return (*(n for n in LOOKS if n < most), most)

    @property
    def seeds(self) -> int:
        """How many it was decided at, or looked at last."""
        done = 0
        for n in self.looks():
            if any(job.result is None for job in self.jobs(n)):
                break
            done = n
            if not self.open_at(n):
                break
        return done

    def open_at(self, n: int) -> bool:
        """Whether it may go on once so many seeds are done."""
        if n not in self.open_after:
            found = self.decision(n)
            self.open_after[n] = found.open or (found.verdict != OPEN and found.e < self.evidence)
        return self.open_after[n]

    # ------------------------------------------------------------ what it may take

    @property
    def least(self) -> list[Job]:
        """The jobs of a claim that is decided at its next look, at the rates that were found or at guessed ones: for an estimate."""
        if isinstance(self.budget, str):
            return []
        trials, (seeds, _) = self.trials_expected(), self.next_look()
        return [*trials, *self.jobs(seeds)]

    @property
    def most(self) -> list[Job]:
        """The jobs of one that uses all its seeds, where it is not settled."""
        if isinstance(self.budget, str):
            return []
        trials, (seeds, goes_on) = self.trials_expected(), self.next_look()
        return [*trials, *self.jobs(self.looks()[-1] if goes_on else seeds)]

    @property
    def spared(self) -> list[Job]:
        """The jobs that a settled claim turned out not to need, of those that were expected of it before it began."""
        if isinstance(self.budget, str):
            return []
        return [job for job in (*self.trials_guessed(), *self.jobs(self.looks()[-1])) if job.result is None]

    def next_look(self) -> tuple[int, bool]:
        """At how many seeds it is looked at next, or was last, and whether it may go on from there."""
        if any(label not in self.rates for label in self.tuned):
            return self.looks()[0], True
        for n in self.looks():
            if any(job.result is None for job in self.jobs(n)):
                return n, True
            with suppress(UserError):  # which is told once the other claims are decided
                if self.open_at(n):
                    continue
            return n, False
        return self.looks()[-1], False

    def trials_expected(self) -> list[RunJob]:
        """The trials that were made, and those that the search wants now; of a search that has not begun, those it may want."""
        middles = (self.made.trial(words, 0, tune.SEEDS[0]) for label in self.tuned for words in self.lines(label))
        if not any(trial.result for trial in middles):
            return self.trials_guessed()
        return [*self.trials(), *self.trials_to_make()]

    def trials_guessed(self) -> list[RunJob]:
        """Of four rates, as many as most searches want."""
        return [
            self.made.trial(words, place, seed)
            for label in self.tuned
            for words in self.lines(label)
            for place in (-1, 0, 1, 2)
            for seed in tune.SEEDS
        ]

    # ------------------------------------------------------------ rates

    @property
    def tuned(self) -> list[str]:
        """Arms that are trained at a rate of their own."""
        if self.claim.kind != "trained" or self.claim.tune != "lr":
            return []
        parts = [part for part in self.all_parts if part.trained and not part.over_rates]
        return list(dict.fromkeys(label for part in parts for label in part.arms))

    @property
    def all_parts(self) -> tuple[Part, ...]:
        return (*self.claim.parts, *self.claim.controls)

    def where(self, part: Part) -> str:
        """What an error calls a part."""
        of, parts = ("parts", self.claim.parts) if part in self.claim.parts else ("controls", self.claim.controls)
        return f"claim/{self.claim.name}.yaml: {of}.{parts.index(part)}"

    def trials_to_make(self) -> list[RunJob]:
        """The next trials of the arms' rates, all of which are noted once the search is over."""
        cells = {(label, words): self.cells(words) for label in self.tuned for words in self.lines(label)}
        places = tune.places_to_try(list(cells.values())) if cells else []
        if not places:
            for label in self.tuned:
                lines = [cells[label, words] for words in self.lines(label)]
                taken = tune.best_line(lines)
                self.rates[label] = tune.rate_at(tune.best_place(lines[taken]), self.middle(label))
                self.beside[label] = self.values[taken]
        return [
            self.made.trial(words, place, seed)
            for (_, words), tried in cells.items()
            for place in places
            if place not in tried
            for seed in tune.SEEDS
        ]

    @property
    def values(self) -> list[Words]:
        """The overrides at which an arm's rate is searched: nothing, or each value of what is tuned beside it."""
        axis = self.claim.second
        return [()] if axis is None else [(f"{axis.field}={value}",) for value in axis.values]

    def lines(self, label: str) -> list[Words]:
        """An arm at each of these."""
        return [self.words(label, value) for value in self.values]

    def cells(self, words: Words) -> dict[int, list[float]]:
        """By place of the grid, the losses of its trials, where all of them are done."""
        found = {}
        for place in range(-tune.FARTHEST, tune.FARTHEST + 1):
            trials = [self.made.trial(words, place, seed) for seed in tune.SEEDS]
            if all(trial.result for trial in trials):
                found[place] = [loss_of(trial) for trial in trials]
        return found

    def trials(self) -> list[RunJob]:
        """Those that were made."""
        return [
            self.made.trial(words, place, seed)
            for label in self.tuned
            for words in self.lines(label)
            for place in self.cells(words)
            for seed in tune.SEEDS
        ]

    def middle(self, label: str) -> float:
        return float(self.composed(label).train.lr)

    def composed(self, label: str) -> DictConfig:
        return composed(self.words(label), self.made.own)

    def words(self, label: str, swept: Words = ()) -> Words:
        assert isinstance(self.budget, Budget)
        asked = (*self.claim.common, *self.budget.overrides, *self.claim.arms[label].train)
        return (*asked, *self.rung.words(asked, self.made.own), *swept)

    # ------------------------------------------------------------ runs

    def jobs(self, n: int) -> list[Job]:
        """Those of the first n seeds, each once; runs that are looked at come before the looks."""
        every = [
            job
            for part in self.all_parts
            for seeds in self.of_part(part, n).values()
            for row in seeds.values()
            for job in row
        ]
        runs = [job.of for job in every if isinstance(job, LookJob)]
        return list({key(job): job for job in (*runs, *every)}.values())

    def of_part(self, part: Part, n: int) -> dict[str, dict[int, list[Job]]]:
        """By arm, or "between" for two arms taken together: by seed: a job for each swept value."""
        swept = [(f"{name}={x}",) for name, xs in part.over.items() for x in xs] if part.over else [()]
        if part.form == "between":
            rows = [tuple(self.words(label, more) for label in part.arms) for more in swept]
            return {"between": {s: [self.made.measurement(part.measure, pair, s) for pair in rows] for s in range(n)}}
        return {label: {s: [self.job(part, label, more, s) for more in swept] for s in range(n)} for label in part.arms}

    def job(self, part: Part, label: str, swept: Words, seed: int) -> Job:
        beside = () if part.over_rates or not part.trained else self.beside.get(label, ())
        words, then = self.words(label, (*beside, *swept)), self.claim.arms[label].then
        if part.measure in MEASURES:
            return self.made.measurement(part.measure, (words,), seed)
        rate = None if part.over_rates else self.rates.get(label)
        return self.made.look(words, then, rate, seed, part.measure) if then else self.made.run(words, rate, seed)

    # ------------------------------------------------------------ what was found

    def decision(self, n: int) -> Decision:
        parts, controls = (
            [self.result(part, n) for part in parts] for parts in (self.claim.parts, self.claim.controls)
        )
        return decide(self.claim, parts, controls)

    def result(self, part: Part, n: int) -> PartResult:
        values = {}
        for label, seeds in self.of_part(part, n).items():
            try:
                values[label] = values_of(part, seeds)
            except Unmeasured as error:
                raise UserError(f"{self.where(part)}: measure: {part.measure} of {label}, {error}") from None
        return (identity_part if self.claim.kind == "identity" else decide_part)(part, values)


def course(
    claim: Claim, budget_name: BudgetName, jobs: JobStore, rung: ClaimRung = AS_CLAIMED, evidence: float = 1 / ALPHA
) -> Course:
    """Raises UserError where the claim's overrides don't make models, or two of its arms are one model."""
    made = Course(claim, claim.budgets[budget_name], jobs, rung, evidence)
    for label, arm in claim.arms.items() if isinstance(made.budget, Budget) else ():
        if arm.then:
            check_same_weights(made, label)
    for part in made.all_parts:
        try:
            check_part(made, part)
        except UserError as error:
            raise UserError(f"{made.where(part)}: {error}") from None
    return made


def check_part(made: Course, part: Part) -> None:
    """Composes the models of a part."""
    if isinstance(made.budget, str):
        return
    for label in part.arms if made.claim.second and part.trained and not part.over_rates else ():
        check_second(made, label)
    jobs = made.of_part(part, 1)
    both = [jobs[label][0] for label in part.arms] if part.form in ("difference", "ratio") else []
    if both and [comes_to(job, part.measure) for job in both[0]] == [comes_to(job, part.measure) for job in both[1]]:
        raise UserError(f"{part.form}: {' and '.join(part.arms)} are one and the same; give arms that differ")
    for label in part.arms if part.trained else ():
        then = made.claim.arms[label].then
        cfg = composed((*made.words(label), *then), made.made.own)
        if why := why_unmeasured(part.measure, cfg, looked_at=bool(then)):
            raise UserError(f"measure: {part.measure} of {label}, {why}")


def comes_to(job: Job, measure: str) -> Path:
    """What makes two jobs one; of weights that are looked at as they were trained, what makes two of the runs one."""
    if isinstance(job, LookJob):
        as_trained = plain(looked_at(measure, job.of.base), job.of.changes)
        return key(job.of if plain(job.base, job.changes) == as_trained else job)
    return key(job)


def check_same_weights(made: Course, label: str) -> None:
    """Raises UserError where the weights that an arm trains are not those of the model that they are looked at in."""
    then = made.claim.arms[label].then
    looked_at = composed((*made.words(label), *then), made.made.own)
    trained, then_has = (weights_of(cfg) for cfg in (made.composed(label), looked_at))
    if trained != then_has:
        raise UserError(
            f"claim/{made.claim.name}.yaml: arms.{label}.then: {' '.join(then)} makes another model than the one that is trained;"
            " give options that leave every weight as it is, such as mask.window"
        )


def weights_of(cfg: DictConfig) -> dict[str, tuple[int, ...]]:
    """Shapes by name of what training moves."""
    return {name: tuple(weight.shape) for name, weight in assemble_without_weights(cfg).named_parameters()}


def check_second(made: Course, label: str) -> None:
    """Raises UserError where what is tuned beside the rate can't be set in an arm, or is set by it."""
    axis = made.claim.second
    assert axis is not None
    if by_arm := [word for word in made.words(label) if key_of(word) == axis.field]:
        raise UserError(f"{by_arm[0]} of {label}: tune searches that; leave it out")
    check_there(made.composed(label), axis)
    for words in made.lines(label):
        composed(words, made.made.own)


# ---------------------------------------------------------------- reading what was done


def values_of(part: Part, seeds: Mapping[int, list[Job]]) -> Values:
    """What a part's measure came to at each seed, and where the runs failed."""
    values, lost = {}, set()
    for seed, row in seeds.items():
        if part.over is None:
            if failure(row[0], part.measure):
                lost.add(seed)
            values[seed] = value_of(row[0], part.measure)
        else:
            values[seed] = reduced(part, row)
    return Values(values, frozenset(lost))


def failure(job: Job, measure: str) -> bool:
    """Whether a job's run failed; what is measured before training cannot."""
    return not isinstance(job, Measurement) and failed((job.of if isinstance(job, LookJob) else job).record, measure)


def loss_of(trial: RunJob) -> float:
    """On the tuning part; infinite where the trial broke."""
    return math.inf if broke(trial.record) else float(trial.record["val_loss"])


def value_of(job: Job, measure: str) -> float:
    """What a finished job says of a measure; infinite where the run broke."""
    if isinstance(job, Measurement):
        return job.record["value"]
    run = job.of if isinstance(job, LookJob) else job
    if broke(run.record):
        return math.inf
    return of_record(job.record, measure, run.cfg.train.train_len)


class Unmeasured(UserError):
    """A run lacks the number that is claimed of it, which its configuration does not say in advance."""


def of_record(record: Record, measure: str, train_len: int) -> float:
    """val_loss, late_ratio@4 (at four times train_len), or a dotted name of the record."""
    if match := LENGTH.fullmatch(measure):
        at = [entry for entry in record["length"] if entry["eval_len"] == int(match[2]) * train_len]
        value = at[0].get(match[1]) if at else None
    else:
        value = record
        for name in measure.split("."):
            value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, (int, float)):
        raise Unmeasured(
            "whose runs have no such number; name one of their summary.json, such as val_loss or late_ratio@4"
        )
    return float(value)


def reduced(part: Part, row: list[Job]) -> float:
    """A reduction of an arm's values at one seed."""
    assert part.over is not None
    assert part.reduce is not None
    (xs,) = part.over.values()
    values = [value_of(job, part.measure) for job in row]
    learned_nothing = unlearned(row) if is_loss(part.measure) else math.inf
    kind = KINDS.get(quantity_of(part.measure))
    return REDUCTIONS[part.reduce](list(map(float, xs)), values, learned_nothing, kind.better if kind else "lower")


def unlearned(row: list[Job]) -> float:
    """The loss of a run that learned nothing but token frequencies; infinite where there was no run."""
    records = [
        job.of.record if isinstance(job, LookJob) else job.record for job in row if not isinstance(job, Measurement)
    ]
    return max((record["unigram_loss"] for record in records), default=math.inf)
