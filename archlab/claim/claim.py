"""A claim is data: conf/claim/NAME.yaml says what is said, by whom, and what would have to be seen.

sentence   what is claimed, in words
source     where it is claimed: a paper and its table, or the note's item
kind       trained (the default); initial, measured before training or within a few steps; identity, which follows from
           formulas or definitions, so that chance has no part in it
tune       lr (the default of trained claims): each arm is trained at its own best rate; or a sentence that says why not
arms       name: overrides of that arm; or {train: overrides, then: overrides} to look at trained weights under others
common     overrides of every arm
quick, full  {seeds, overrides} of each budget; or a sentence that says why it can't be decided at that one. `seeds` is the
           most that are used: a trained claim is looked at from 6 on (archlab.comparison.rule.LOOKS)
controls   parts as below that show that the runs can tell: without them there is no verdict. What expects no difference needs
           one that finds a difference
parts      what has to be seen, all of it:
    says      the part in words
    measure   a number of a run (val_loss, late_ratio@4, exact_match@2, any of its summary) or one of `measures`
    difference: [a, b], ratio: [a, b], value: a, or between: [a, b] for a measure that takes two models at once
    over      a field and its values: every arm is run at each of them
    reduce    what becomes of these: one of archlab.claim.reductions
    expect    above, below or equal
    than      what it is held against; 0 for a difference, 1 for a ratio unless given
    by        the smallest effect of interest, in the unit of the quantity
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, ValidationError

from archlab.base.errors import UserError
from archlab.base.messages import did_you_mean
from archlab.base.quantities import Count, NonNegative
from archlab.claim.measures import MEASURES
from archlab.claim.reductions import BESIDE, REDUCTIONS
from archlab.comparison.rule import LOOKS
from archlab.config.overrides import check_own, conf_dir
from archlab.records.summary import KINDS
from archlab.runs.tune import DEVELOPMENT

BudgetName = Literal["quick", "full"]
ClaimWords = Annotated[str, MinLen(1)]
Kind = Literal["trained", "initial", "identity"]

MOST_SEEDS = LOOKS[-1]


class Strict(BaseModel):
    """Fields of exactly these names and types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Budget(Strict):
    """How much a claim may cost: seeds at most, and overrides that size the runs."""

    seeds: Count = MOST_SEEDS
    overrides: tuple[str, ...] = ()


class ClaimArm(Strict):
    """What is trained; and with `then`, under what other options its weights are looked at afterwards."""

    train: tuple[str, ...]
    then: tuple[str, ...] = ()


class Part(Strict):
    """One thing that has to be seen."""

    says: ClaimWords
    measure: ClaimWords
    expect: Literal["above", "below", "equal"]
    by: NonNegative
    value: str | None = None
    difference: tuple[str, str] | None = None
    ratio: tuple[str, str] | None = None
    between: tuple[str, str] | None = None
    than: float | None = None
    over: dict[str, Annotated[tuple[Any, ...], MinLen(2)]] | None = None
    reduce: ClaimWords | None = None

    @property
    def form(self) -> str:
        return next(form for form in FORMS if getattr(self, form) is not None)

    @property
    def arms(self) -> tuple[str, ...]:
        named = getattr(self, self.form)
        return (named,) if isinstance(named, str) else tuple(named)

    @property
    def trained(self) -> bool:
        """Whether it is of runs; else of a model before training."""
        return self.measure not in MEASURES

    @property
    def over_rates(self) -> bool:
        return self.over is not None and "train.lr" in self.over

    @property
    def against(self) -> float:
        return FORMS[self.form] if self.than is None else self.than


FORMS = {"value": 0.0, "difference": 0.0, "ratio": 1.0, "between": 0.0}
"""How a part makes one number of its arms, and what that number is held against where nothing is said."""


@dataclass(frozen=True)
class Claim:
    name: str
    sentence: str
    source: str
    kind: Kind
    tune: str
    """lr; or why the arms are not tuned."""

    arms: dict[str, ClaimArm]
    parts: tuple[Part, ...]
    controls: tuple[Part, ...]
    common: tuple[str, ...]
    budgets: dict[str, Budget | str]
    sha256: str
    """Of what the file says, but for its layout."""


class ClaimFile(Strict):
    """The yaml as it must be."""

    sentence: ClaimWords
    source: ClaimWords
    arms: Annotated[dict[str, Annotated[tuple[str, ...], MinLen(0)] | ClaimArm], MinLen(1)]
    parts: Annotated[tuple[Part, ...], MinLen(1)]
    kind: Kind = "trained"
    tune: ClaimWords | None = None
    controls: tuple[Part, ...] = ()
    quick: Budget | ClaimWords
    full: Budget | ClaimWords
    common: tuple[str, ...] = ()


def read_claim(file: Path) -> Claim:
    """Raises UserError that names the file, the field and what it lacks."""
    name = file.stem
    try:
        given = ClaimFile.model_validate(tupled(yaml.safe_load(file.read_text(encoding="utf-8"))))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"claim/{name}.yaml: {where}: {first['msg'].removeprefix('Input ').lower()}") from None
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"claim/{name}.yaml: cannot be read: {' '.join(str(error).split())}") from None
    arms = {label: arm if isinstance(arm, ClaimArm) else ClaimArm(train=arm) for label, arm in given.arms.items()}
    claim = Claim(
        name, one_line(given.sentence), one_line(given.source), given.kind, one_line(given.tune or "lr"), arms, given.parts,
        given.controls, given.common, {"quick": given.quick, "full": given.full}, hash_of(given),
    )  # fmt: skip
    check_kind(f"claim/{name}.yaml", claim, given)
    for field, parts in (("parts", claim.parts), ("controls", claim.controls)):
        for number, part in enumerate(parts):
            check_part(f"claim/{name}.yaml: {field}.{number}", part, claim)
    return claim


def hash_of(given: ClaimFile) -> str:
    return hashlib.sha256(json.dumps(given.model_dump(), sort_keys=True, default=str).encode()).hexdigest()


def check_kind(where: str, claim: Claim, given: ClaimFile) -> None:
    if claim.kind != "trained" and given.tune is not None:
        raise UserError(
            f"{where}: tune: is for kind: trained; a claim of kind {claim.kind} has no rate to find; leave it out"
        )
    for field, budget in claim.budgets.items():
        if not isinstance(budget, Budget):
            continue
        if budget.seeds > DEVELOPMENT:
            raise UserError(
                f"{where}: {field}.seeds: seeds from {DEVELOPMENT} on are for tuning; use at most {MOST_SEEDS}"
            )
        if claim.kind == "trained" and not LOOKS[0] <= budget.seeds <= MOST_SEEDS:
            raise UserError(
                f"{where}: {field}.seeds: {budget.seeds} of a trained claim, which takes {LOOKS[0]} to {MOST_SEEDS}"
            )
    no_difference = next((n for n, part in enumerate(claim.parts) if part.expect == "equal" and part.trained), None)
    if claim.kind == "trained" and no_difference is not None and not claim.controls:
        raise UserError(
            f"{where}: parts.{no_difference}.expect: equal says that there is no difference, and nothing shows that these runs"
            " would find one; give controls"
        )


def check_part(where: str, part: Part, claim: Claim) -> None:
    forms = [form for form in FORMS if getattr(part, form) is not None]
    if len(forms) != 1:
        raise UserError(f"{where}: has {' and '.join(forms) or 'none of them'}; give one of {', '.join(FORMS)}")
    for label in part.arms:
        if label not in claim.arms:
            hint = did_you_mean(label, claim.arms)
            raise UserError(f"{where}.{part.form}: no arm is called {label}; {hint}arms: {', '.join(claim.arms)}")
    if (part.over is None) != (part.reduce is None):
        raise UserError(f"{where}: over and reduce go together; give both or neither")
    if part.over is not None and len(part.over) != 1:
        raise UserError(f"{where}.over: runs over one field; give one, such as train.lr: [1e-3, 3e-3]")
    if part.form == "value" and part.than is None:
        raise UserError(f"{where}.than: is missing; a value is held against a number")
    if part.reduce is not None and part.reduce not in REDUCTIONS:
        hint = did_you_mean(part.reduce, REDUCTIONS)
        raise UserError(f"{where}.reduce: {part.reduce} is no reduction; {hint}reductions: {', '.join(REDUCTIONS)}")
    if (beside := BESIDE.get(part.reduce or "")) and not any(
        other.reduce == beside and set(other.arms) == set(part.arms) for other in claim.parts
    ):
        raise UserError(
            f"{where}.reduce: {part.reduce} says nothing by itself, since a model that hardly trains has a good one; add a part of"
            f" the same arms with reduce: {beside}"
        )
    if part.trained and quantity_of(part.measure) not in KINDS:
        names = (*MEASURES, *KINDS)
        hint = did_you_mean(part.measure, names)
        raise UserError(
            f"{where}.measure: {part.measure} is neither measured nor a number of a run; {hint}measures: {', '.join(MEASURES)}; numbers: {', '.join(KINDS)}"
        )
    if part.trained and claim.kind != "trained":
        raise UserError(
            f"{where}.measure: {part.measure} is a number of a trained run, and kind: {claim.kind} trains nothing; use kind: trained"
        )


def quantity_of(measure: str) -> str:
    """late_ratio@4 is a late_ratio; stability.max_grad_norm a max_grad_norm."""
    return measure.partition("@")[0].rpartition(".")[2]


def tupled(value: Any) -> Any:
    """Lists become tuples, which is what frozen claims hold."""
    if isinstance(value, dict):
        return {key: tupled(item) for key, item in value.items()}
    return tuple(map(tupled, value)) if isinstance(value, list) else value


def one_line(text: str) -> str:
    return " ".join(text.split())


def known_claims(own: tuple[Path, ...] = ()) -> dict[str, Path]:
    """Every claim by name, archlab's own and those in the user's folders."""
    check_own(own)
    files = (file for folder in (conf_dir(), *own) for file in (folder / "claim").glob("*.yaml"))
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem)}
