"""Experiments: a sweep under a name, and what is made of its runs when all are done.

`experiment=NAME` stands for the words in conf/experiment/NAME.yaml, or in the user's own folder; a word of the user's
own takes the place of the experiment's word of the same name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from annotated_types import Ge, MinLen
from hydra.core.override_parser.types import ChoiceSweep
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from archlab.base.errors import UserError
from archlab.base.messages import did_you_mean
from archlab.base.words import key_of, value_of
from archlab.comparison.rule import LEAST_RATES
from archlab.config.overrides import conf_dir, groups, parse

EXPERIMENT = "experiment"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Experiment:
    """What a file of conf/experiment says."""

    question: str
    overrides: Annotated[list[str], MinLen(1)]
    report: Literal["stability_map"]
    seconds_per_run: Annotated[float, Ge(0)]
    """On one CPU thread, as the experiment stands."""


def expand(words: Sequence[str], own: Sequence[Path]) -> tuple[list[str], Experiment | None]:
    """The words with the last `experiment=NAME` replaced by the experiment's; None where there is no such word.

    Raises UserError: there is no such experiment, its file is not one, or its report cannot be had from these words.
    """
    named = [word for word in words if key_of(word) == EXPERIMENT and "=" in word and not word.startswith("~")]
    if not named:
        return list(words), None
    experiment = load(named[-1], own)
    users = [word for word in words if word not in named]
    taken = {key_of(word) for word in users}
    merged = [word for word in experiment.overrides if key_of(word) not in taken] + users
    check_rates(named[-1], merged)
    return merged, experiment


def load(word: str, own: Sequence[Path]) -> Experiment:
    name = value_of(word).strip("'\" ")
    options = groups(own)[EXPERIMENT]
    if name not in options:
        raise UserError(f"{word}: no such experiment; {did_you_mean(name, options)}experiments: {', '.join(options)}")
    files = (folder / EXPERIMENT / f"{name}.yaml" for folder in (*own, conf_dir()))
    file = next(file for file in files if file.is_file())
    try:
        return TypeAdapter(Experiment).validate_python(yaml.safe_load(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{file}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg'].lower()}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is no yaml: {error}") from None


def check_rates(experiment: str, words: Sequence[str]) -> None:
    """Refuses a sweep of which no map can be made, before it starts."""
    rate = next((word for word in reversed(words) if key_of(word) == "train.lr"), "train.lr")
    value = parse(rate).value() if "=" in rate else None
    n_rates = len(set(map(str, value.list))) if isinstance(value, ChoiceSweep) else 1
    if n_rates < LEAST_RATES:
        raise UserError(
            f"{rate}: {experiment} maps at least {LEAST_RATES} learning rates; give them, as in"
            " train.lr=1e-3,3e-3,1e-2, or leave it out"
        )
