"""A claim is data: conf/claim/NAME.yaml says what is said, by whom, and what would have to be seen.

sentence   what is claimed, in words
source     where it is claimed: a paper and its table, or the note's item
kind       trained (the default); initial, measured before training or within a few steps; identity, which follows from
           formulas or definitions, so that chance has no part in it
tune       lr (the default of trained claims): each arm is trained at its own best rate; {field: values}: at its own best rate
           and value of that field, such as train.weight_decay: [0, 0.1]; or a sentence that says why not
arms       name: overrides of that arm; or {train: overrides, then: overrides} to look at trained weights under others,
           where late_ratio is against the loss at train_len of the model as it was trained
common     overrides of every arm
quick, full  {seeds, overrides} of each budget; or a sentence that says why it can't be decided at that one. `seeds` is the
           most that are used: a trained claim is looked at from 6 on (archlab.comparison.rule.LOOKS)
gpu        the same for a machine with a GPU; a claim may be without it
controls   parts as below that show that the runs can tell: without them there is no verdict. What expects no difference needs
           one that finds a difference
parts      what has to be seen, all of it:
    says      the part in words
    measure   a number of a run (val_loss, late_ratio@4, exact_match@2, any of its summary) or one of `measures`
    difference: [a, b], ratio: [a, b], value: a, or between: [a, b] for a measure that takes two models at once
    over      a field and numbers, from the lowest up: every arm is run at each of them
    reduce    what becomes of these: one of archlab.claim.reductions
    expect    above, below or equal
    than      what it is held against; 0 for a difference, 1 for a ratio unless given
    by        the smallest effect of interest, in the unit of the quantity
"""

import hashlib
import json
import math
import re
from collections.abc import Hashable
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import MinLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, FiniteFloat, StringConstraints, ValidationError

from archlab.base.errors import UserError, shortened
from archlab.base.messages import did_you_mean
from archlab.base.quantities import Count, NonNegative
from archlab.base.words import key_of
from archlab.claim.measures import MEASURES
from archlab.claim.reductions import BESIDE, OF_LOSSES, REDUCTIONS
from archlab.comparison.failure import quantity_of
from archlab.comparison.rule import LOOKS
from archlab.config.overrides import check_own, conf_dir
from archlab.config.tuning import SecondAxis, second_axis
from archlab.records.summary import KINDS, NATS, AtLength, Stability, Summary, kinds
from archlab.runs.tune import DEVELOPMENT

BudgetName = Literal["quick", "full", "gpu"]
ClaimWords = Annotated[str, StringConstraints(pattern=r"\S")]
Kind = Literal["trained", "initial", "identity"]

MOST_SEEDS = LOOKS[-1]

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def as_number(value: Any) -> Any:
    """A number that yaml takes for text, as it does 1e-2 without a point, is that number; all else stays what it is."""
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


InNumbers = BeforeValidator(as_number)


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
    by: Annotated[NonNegative, InNumbers]
    value: str | None = None
    difference: tuple[str, str] | None = None
    ratio: tuple[str, str] | None = None
    between: tuple[str, str] | None = None
    than: Annotated[FiniteFloat | None, InNumbers] = None
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

    second: SecondAxis | None = None
    """What is tuned beside the rate."""


class ClaimFile(Strict):
    """The yaml as it must be."""

    sentence: ClaimWords
    source: ClaimWords
    arms: Annotated[dict[str, Annotated[tuple[str, ...], MinLen(0)] | ClaimArm], MinLen(1)]
    parts: Annotated[tuple[Part, ...], MinLen(1)]
    kind: Kind = "trained"
    tune: ClaimWords | dict[str, tuple[Annotated[Any, InNumbers], ...]] | None = None
    controls: tuple[Part, ...] = ()
    quick: Budget | ClaimWords
    full: Budget | ClaimWords
    gpu: Budget | ClaimWords | None = None
    common: tuple[str, ...] = ()


class OnceEach(yaml.SafeLoader):
    """Refuses a key that is given twice, of which yaml would keep the last and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if (name := str(key.value)) in seen:
                raise UserError(
                    f"{name}: is given twice, the second time on line {key.start_mark.line + 1}; give it once"
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_claim(file: Path) -> Claim:
    """Raises UserError that names the file, the field and what it lacks."""
    name = file.stem
    try:
        given = ClaimFile.model_validate(tupled(yaml.load(file.read_text(encoding="utf-8"), OnceEach)))
    except ValidationError as error:
        raise UserError(f"claim/{name}.yaml: {refused(error)}") from None
    except UserError as error:
        raise UserError(f"claim/{name}.yaml: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"claim/{name}.yaml: cannot be read: it is no text in UTF-8") from None
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"claim/{name}.yaml: cannot be read: {' '.join(str(error).split())}") from None
    arms = {label: arm if isinstance(arm, ClaimArm) else ClaimArm(train=arm) for label, arm in given.arms.items()}
    try:
        second = second_axis(given.tune)
    except UserError as error:
        raise UserError(f"claim/{name}.yaml: {error}") from None
    tuned = one_line(given.tune) if isinstance(given.tune, str) else "lr"
    claim = Claim(
        name, one_line(given.sentence), one_line(given.source), given.kind, tuned, arms, given.parts, given.controls,
        given.common, budgets_of(given), hash_of(given), second,
    )  # fmt: skip
    check_kind(f"claim/{name}.yaml", claim, given)
    check_words(f"claim/{name}.yaml", claim)
    for field, parts in (("parts", claim.parts), ("controls", claim.controls)):
        for number, part in enumerate(parts):
            check_part(f"claim/{name}.yaml: {field}.{number}", part, claim)
    looked_at = {label for part in (*claim.parts, *claim.controls) for label in part.arms}
    if unused := [label for label in claim.arms if label not in looked_at]:
        raise UserError(
            f"claim/{name}.yaml: arms.{unused[0]}: no part looks at it, so that it would change nothing; name it in one, or leave it"
            " out"
        )
    return claim


ALTERNATIVE = re.compile(r"(Budget|ClaimArm|constrained-str|(tuple|dict|function-\w+)\[.*)$")
"""What pydantic calls one of the types that a field may have."""

BUDGETS = ("quick", "full", "gpu")

WHAT_CAN_BE = {
    "float_type": "give a number, such as 0.1",
    "finite_number": "give a number, such as 0.1",
    "int_type": "give a whole number",
    "string_type": "give words, in quotes where yaml takes them for something else, as it does no and 1",
    "tuple_type": "give a list, such as [norm=rms]",
    "dict_type": "give a field and its values, such as train.lr: [1e-3, 3e-3]",
}
"""By pydantic's name for what is wrong."""


def refused(error: ValidationError) -> str:
    """The first field that is not as it must be, why, what was given and what can be."""
    first = error.errors()[0]
    if first["loc"][:1] == ("arms",):  # a list or a mapping: what is said of the one that is meant is deeper
        first = max(
            (one for one in error.errors() if one["loc"][:2] == first["loc"][:2]), key=lambda one: len(one["loc"])
        )
    where = ".".join(str(part) for part in first["loc"] if not ALTERNATIVE.match(str(part))) or "the file"
    why, kind, given = first["msg"].removeprefix("Input ").lower(), first["type"], in_yaml(first["input"])
    if not first["loc"]:  # a file that is empty, or holds a text, a number or a list
        return f"is {given}, and no claim; give fields, such as sentence: ..., source: ..., arms: ..., parts: ..."
    if kind == "missing":
        return f"{where}: {why}"
    if kind == "extra_forbidden":
        fields = fields_beside(first["loc"])
        return f"{where}: {why}; {did_you_mean(str(first['loc'][-1]), fields)}fields: {', '.join(fields)}"
    if where == "tune" and kind == "string_type":
        return f"tune: {given} is no way to tune; give lr, {{field: [value, value]}}, or a sentence that says why not"
    if kind == "string_pattern_mismatch":
        return f"{where}: is blank; give words"
    if first["loc"][0] in BUDGETS and len(first["loc"]) == 2:  # neither a budget nor words
        return (
            f"{first['loc'][0]}: {given} is no budget; give {{seeds: N, overrides: [...]}}, or a sentence that says why the claim"
            " can't be decided at it, in quotes"
        )
    remedy = f"; {WHAT_CAN_BE[kind]}" if kind in WHAT_CAN_BE else ""
    return f"{where}: {why}, and {given} was given{remedy}"


def in_yaml(value: Any) -> str:
    """As it may stand in the file: no as false, a text in quotes."""
    return shortened(" ".join(json.dumps(value, default=str, ensure_ascii=False).split()))


def fields_beside(where: tuple[int | str, ...]) -> tuple[str, ...]:
    """Those that may stand where the last of these names does."""
    of_parts = dict.fromkeys(("parts", "controls"), Part) | {"arms": ClaimArm} | dict.fromkeys(BUDGETS, Budget)
    return tuple((ClaimFile if len(where) == 1 else of_parts[str(where[0])]).model_fields)


def budgets_of(given: ClaimFile) -> dict[str, Budget | str]:
    gpu: dict[str, Budget | str] = {} if given.gpu is None else {"gpu": given.gpu}
    return {"quick": given.quick, "full": given.full} | gpu


def hash_of(given: ClaimFile) -> str:
    said = given.model_dump()
    if given.gpu is None:
        del said["gpu"]  # a file from before there was this budget says what it said
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def check_kind(where: str, claim: Claim, given: ClaimFile) -> None:
    if claim.kind != "trained" and given.tune is not None:
        raise UserError(
            f"{where}: tune: is for kind: trained; a claim of kind {claim.kind} has no rate to find; leave it out"
        )
    if claim.second and not any(part.trained and not part.over_rates for part in (*claim.parts, *claim.controls)):
        raise UserError(
            f"{where}: tune.{claim.second.field}: every part runs over train.lr, so that nothing is tuned; give a sentence that"
            " says so"
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
    if claim.kind == "trained" and no_difference is not None and all(part.expect == "equal" for part in claim.controls):
        raise UserError(
            f"{where}: parts.{no_difference}.expect: equal says that there is no difference, and nothing shows that these runs"
            " would find one; give controls, one of which expects above or below"
        )


THE_CLAIMS_OWN = {
    "seed": "runs are made at seeds from 0 on, as many as quick and full say",
    "data_seed": "each run has the data of its own seed, the same in every arm",
    "output": "runs are kept where runs=FOLDER of the command says",
    "tune": "that is what the claim's own tune says",
    "eval.part": "rates are chosen on tuning, and what is claimed is scored on test",
}
"""What no override of a claim sets, and why."""


def check_words(where: str, claim: Claim) -> None:
    """Raises UserError where an override would be overruled, or would overrule what a verdict rests on."""
    budgets = {f"{name}.overrides": made.overrides for name, made in claim.budgets.items() if isinstance(made, Budget)}
    arms = {f"arms.{label}": (*arm.train, *arm.then) for label, arm in claim.arms.items()}
    swept = {"over": tuple(name for part in (*claim.parts, *claim.controls) for name in part.over or ())}
    for field, words in ({"common": claim.common} | budgets | arms | swept).items():
        for word in words:
            if why := THE_CLAIMS_OWN.get(key_of(word)):
                raise UserError(f"{where}: {field}: {word}: {why}; leave it out")
    for label, arm in claim.arms.items():
        for word in arm.then:
            if key_of(word).partition(".")[0] in OVER:
                raise UserError(
                    f"{where}: arms.{label}.then: {word}: is of training, which is over when weights are looked at; leave it out"
                )


OVER = ("train", "optimizer", "schedule", "average", "init", "loss", "budget", "match")
"""What is over, or decided, when trained weights are looked at."""


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
    for name, xs in (part.over or {}).items():
        check_swept(f"{where}.over.{name}=[{', '.join(map(str, xs))}]", list(map(as_number, xs)), part.reduce)
        if claim.second is not None and name == claim.second.field:
            raise UserError(f"{where}.over: runs over {name}, which tune searches; leave it out of one of the two")
    if part.form == "value" and part.than is None:
        raise UserError(f"{where}.than: is missing; a value is held against a number")
    if part.reduce is not None and part.reduce not in REDUCTIONS:
        hint = did_you_mean(part.reduce, REDUCTIONS)
        raise UserError(f"{where}.reduce: {part.reduce} is no reduction; {hint}reductions: {', '.join(REDUCTIONS)}")
    if part.trained and part.form == "difference" and is_share(part.measure) and part.by >= 1:
        raise UserError(f"{where}.by: {part.by:g}, and two shares differ by 1 at most; give less, such as 0.1")
    if part.reduce in OF_LOSSES and part.trained and not is_loss(part.measure):
        raise UserError(
            f"{where}.reduce: {part.reduce} holds losses against that of a model which learned nothing, and {part.measure} is no"
            " loss in nats per token; use measure: val_loss, or reduce: best"
        )
    if (beside := BESIDE.get(part.reduce or "")) and not any(
        other.reduce == beside and set(other.arms) == set(part.arms) for other in claim.parts
    ):
        raise UserError(
            f"{where}.reduce: {part.reduce} says nothing by itself, since a model that hardly trains has a good one; add a part of"
            f" the same arms with reduce: {beside}"
        )
    if part.trained and LENGTH_GIVEN.sub("@N", part.measure) not in NUMBERS:
        hint = did_you_mean(part.measure, (*MEASURES, *NUMBERS))
        raise UserError(
            f"{where}.measure: {part.measure} is neither measured nor a number of a run; {hint}measures: {', '.join(MEASURES)}; numbers: {', '.join(NUMBERS)}"
        )
    models = 1 if part.trained else len(signature(MEASURES[part.measure]).parameters)
    if models != (2 if part.form == "between" else 1):
        form = "between: [a, b]" if models == 2 else "difference: [a, b]"
        raise UserError(f"{where}.{part.form}: {part.measure} is a number of {MODELS[models]}; give {form}")
    if part.trained and claim.kind != "trained":
        raise UserError(
            f"{where}.measure: {part.measure} is a number of a trained run, and kind: {claim.kind} trains nothing; use kind: trained"
        )


IN_LOGARITHMS = ("best_x", "slope", "largest_stable")
"""Reductions that take the logarithm of what is swept."""

IN_ANY_ORDER = "last_over_first"
"""The reduction that says itself what the order of the values means."""


def check_swept(where: str, xs: list[Any], reduction: str | None) -> None:
    """Raises UserError where a field's values are no numbers that can be reduced."""
    if wrong := [x for x in xs if type(x) not in (int, float) or not math.isfinite(x)]:
        raise UserError(f"{where}: {in_yaml(wrong[0])} is no number; give numbers, which reduce is taken over")
    if len(set(map(float, xs))) < len(xs):
        raise UserError(f"{where}: has a value twice, which would be the same runs; give each once")
    if reduction in IN_LOGARITHMS and min(xs) <= 0:
        raise UserError(
            f"{where}: {min(xs):g} has no logarithm, which reduce: {reduction} takes; give values above 0, or another reduce"
        )
    if reduction != IN_ANY_ORDER and any(a > b for a, b in pairwise(xs)):
        raise UserError(f"{where}: does not rise; give the values from the lowest up")


MODELS = {1: "one model", 2: "two models together"}

NUMBERS = (
    *(name for name, _ in kinds(Summary)),
    *(f"{name}@N" for name, _ in kinds(AtLength)),
    *(f"stability.{name}" for name, _ in kinds(Stability)),
)
"""What a run can be asked for; N times train_len."""

LENGTH_GIVEN = re.compile(r"@[1-9]\d*$")


def is_loss(measure: str) -> bool:
    """Whether it is in nats per token."""
    kind = KINDS.get(quantity_of(measure))
    return kind is not None and kind.unit == NATS


def is_share(measure: str) -> bool:
    """Whether it lies between 0 and 1."""
    kind = KINDS.get(quantity_of(measure))
    return kind is not None and kind.share


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
