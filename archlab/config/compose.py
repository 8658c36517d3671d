"""Makes what a user typed into a configuration that can be run."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from archlab.base.arguments import checked
from archlab.base.collecting import no_collecting
from archlab.base.configuration import copied, has_references, plain_dict
from archlab.base.errors import UserError
from archlab.base.messages import beyond_the_machine
from archlab.base.nested import leaves
from archlab.base.words import key_of, plain, value_of
from archlab.config.messages import explain, in_one_line
from archlab.config.overrides import Known, conf_dir, normalise, refuse_of_the_command_line, refuse_twice
from archlab.config.plan import Plan, course, layer_plans
from archlab.config.tuning import check_there, second_axis
from archlab.config.whole import whole

MOST_RUNS = 10_000
"""Of one sweep: each is checked before the first one starts, which takes some milliseconds, and so minutes for so many."""


@checked
def compose(*overrides: str, config_dir: str | Path | None = None) -> DictConfig:
    """The checked and settled configuration of these overrides, which are spelt as on the command line.

    `config_dir` is a folder of the user's own options, laid out as conf/ is. Raises UserError.
    """
    refuse_twice(overrides)
    return in_turn(*overrides, config_dir=config_dir)


def in_turn(*overrides: str, config_dir: str | Path | None = None) -> DictConfig:
    """The same of words from more than one hand, as a claim's and then an arm's, where a later one takes the place of an earlier one."""
    cfg, words = composed(overrides, config_dir)
    with numbers_as_typed(words):
        return finish(cfg, cfg.hydra.runtime.choices, asked_for(words), [Path(config_dir)] if config_dir else [])


@checked
def configuration(*what: str | DictConfig, config_dir: str | Path | None = None) -> DictConfig:
    """One configuration unchanged, or the configuration of overrides. Raises UserError."""
    if len(what) == 1 and isinstance(what[0], DictConfig):
        return what[0]
    words = [word for word in what if isinstance(word, str)]
    if len(words) < len(what):
        raise UserError(
            "a configuration cannot be combined with others or with overrides; give one configuration, or overrides"
        )
    return compose(*words, config_dir=config_dir)


def plans(*overrides: str, config_dir: str | Path | None = None) -> list[Plan]:
    """One plan for every combination of comma-separated values, in the order in which `archlab -m` runs them.

    Raises UserError where one of them cannot be run.
    """
    own = [Path(config_dir)] if config_dir else []
    refuse_of_the_command_line(overrides)
    words = normalise(overrides, own)
    with in_one_line():
        parser = OverridesParser.create(config_loader=options_within(own))
        parsed = parser.parse_overrides(words)
        check_how_many([override for override in parsed if override.is_sweep_override()])
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    with numbers_as_typed(words):
        made = [plan_of([as_typed(word) for word in job], own) for job in jobs]
    refuse_the_same_run(made)
    return made


def refuse_the_same_run(made: Sequence[Plan]) -> None:
    """Raises UserError where two plans of a sweep settle to one configuration: one of them would change nothing."""
    earlier: dict[str, Plan] = {}
    for plan in made:
        other = earlier.setdefault(json.dumps(shares_counted(plan.cfg), sort_keys=True, default=str), plan)
        if other is not plan:
            both = dict.fromkeys(" ".join(one.overrides) for one in (other, plan))
            raise UserError(
                f"{' and '.join(both)}: the same run twice in one sweep, which changes nothing; name each once"
            )


def shares_counted(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, with how many layers or steps in the place of a share that comes to so many."""
    from archlab.config.groups import made, target

    plain, steps = plain_dict(cfg), cfg.train.steps
    if layers_of := getattr(target(cfg, "residual"), "n_post", None):
        plain["residual"]["share"] = layers_of(cfg.residual.share, len(course(cfg)))
    if "share" in plain["average"]:
        plain["average"]["share"] = steps - made(cfg, "average").after(steps)
    return plain


def check_how_many(swept: Sequence[Override]) -> None:
    """Refuses a sweep without a run, and one of more than are made at a time, before their values are listed."""
    counts = []
    for override in swept:
        counts.append(sum(1 for _ in islice(values_of(override), MOST_RUNS + 1)))
        if not counts[-1]:
            raise UserError(
                f"{override.input_line}: has no value, so that there would be no run; list some, as in 1,2,3 or range(1,4)"
            )
    if prod(counts) > MOST_RUNS:
        words = " ".join(str(override.input_line) for override in swept)
        raise UserError(f"{words}: more than {MOST_RUNS} runs; sweep over fewer values at a time")


def values_of(override: Override) -> Iterable[object]:
    """What it sweeps over; of a range that is shuffled, in order, since Hydra would list all of it first."""
    if override.is_interval_sweep():
        raise UserError(
            f"{override.input_line}: an interval has infinitely many values; list some, as in 1,2,3 or range(1,4)"
        )
    value = override.value()
    if not isinstance(value, RangeSweep):
        return override.sweep_iterator()
    if not value.step:
        raise UserError(
            f"{override.input_line}: its step is 0, so that it never ends; give another, as in range(1,9,2)"
        )
    return value.range()


def as_typed(word: str) -> str:
    """The word with true and false in YAML's spelling, where the sweeper wrote Python's."""
    return re.sub(r"=(True|False)$", lambda found: found[0].lower(), word)


def options_within(own: Sequence[Path]) -> ConfigLoader:
    """A loader that lists the options of a group, including the user's own, for a sweep such as norm=glob(*)."""
    searched = create_config_search_path(str(conf_dir()))
    for folder in own:
        searched.append("command-line", f"file://{folder.absolute()}")
    return ConfigLoaderImpl(config_search_path=searched)


def plan_of(words: Sequence[str], own: Sequence[Path]) -> Plan:
    """The plan of normalised overrides without a sweep."""
    cfg = whole(words, own)
    settled = finish(cfg, cfg.hydra.runtime.choices, asked_for(words), own)
    return Plan(tuple(plain(word) for word in words), settled, tuple(layer_plans(settled)))


@contextmanager
def numbers_as_typed(words: Sequence[str]) -> Iterator[None]:
    """Within it a UserError about an option shows its number as somebody typed it, such as 1e3, and not as it was read."""
    try:
        yield
    except UserError as error:
        key, (shown, colon, why) = key_of(str(error)), value_of(str(error)).partition(":")
        for word in map(plain, words):
            if key_of(word) == key:
                for typed in value_of(word).split(","):
                    if same_number(typed, shown):
                        raise UserError(f"{key}={typed}{colon}{why}") from None
        raise


def same_number(one: str, other: str) -> bool:
    with suppress(ValueError):
        return float(one) == float(other)
    return False


def composed(overrides: Sequence[str], config_dir: str | Path | None = None) -> tuple[DictConfig, list[str]]:
    """What Hydra composes from these overrides, not yet checked or settled, and the overrides in Hydra's spelling."""
    own = [Path(config_dir)] if config_dir else []
    refuse_of_the_command_line(overrides)
    words = normalise(overrides, own)
    return whole(words, own), words


def finish(
    cfg: DictConfig, choices: Mapping[str, str], explicit: Collection[str] = (), own: Sequence[Path] = ()
) -> DictConfig:
    """Checks a composed configuration and settles what it leaves to rules; the result holds no references.

    `choices` says which option of each group was chosen, `explicit` which options were set by name, `own` are the
    folders of the user's own options. Raises UserError.
    """
    with no_collecting():  # the first of these imports torch
        from archlab.config.assemble import assemble_without_weights, settle_size
        from archlab.config.check import check_together
        from archlab.config.groups import GROUPS
        from archlab.config.match import settle_match
        from archlab.config.of_training import check_match, check_optimizer
        from archlab.config.rules import check_rules, check_width, settle_layers, settle_positions
        from archlab.config.types import check_types
        from archlab.cost.describe import count_own_parameters
        from archlab.train.budget import settle_steps

    settled = copied(cfg)
    OmegaConf.set_struct(settled, None)
    settled.pop("hydra", None)
    resolve(settled)
    with open_dict(settled):
        settled.choices = {group: choices[group] for group in GROUPS}
    check_types(settled)
    settle_layers(settled, (*own, conf_dir()))
    settle_size(settled)
    settle_positions(settled, explicit, (*own, conf_dir()))
    check_rules(settled)
    check_width(settled, explicit)
    try:
        if settled.match:
            check_match(settled, explicit)
            settle_match(settled, default_blocks(settled))
        decoder = assemble_without_weights(settled)
    except (RuntimeError, TypeError) as error:
        raise beyond_the_machine(error) or error from error
    settle_steps(settled, count_own_parameters(decoder))
    check_together(settled, decoder, explicit)
    check_optimizer(settled)
    check_second_axis(settled, choices, own)
    OmegaConf.set_struct(settled, True)
    return settled


def check_second_axis(settled: DictConfig, choices: Mapping[str, str], own: Sequence[Path]) -> None:
    """Raises UserError where a value that `tune` names beside the rate can't be, or would change nothing."""
    if (axis := second_axis(settled.tune)) is None:
        return
    check_there(settled, axis)
    for value in axis.values:
        finish(axis.at(settled, value), choices, {axis.field}, own)


def resolve(cfg: DictConfig) -> None:
    """Puts what a reference refers to in its place. Raises UserError, with the option whose reference is none."""
    if not has_references(cfg):
        return
    try:
        if any(OmegaConf.is_interpolation(cfg, str(name)) for name in cfg):
            OmegaConf.resolve(cfg)
        for section in cfg.values():  # OmegaConf would look at every value of every section
            if OmegaConf.is_config(section) and has_references(section):
                OmegaConf.resolve(section)
    except OmegaConfBaseException as error:
        said = leaves(plain_dict(cfg))
        for name, written in (
            (f"{key}.{i}", item) if isinstance(value, list) else (key, value)
            for key, value in said
            for i, item in enumerate(value if isinstance(value, list) else [value])
        ):
            try:
                OmegaConf.select(cfg, name)
            except OmegaConfBaseException as its_own:
                why = str(explain(its_own)).removeprefix(f"{its_own.full_key}: ")
                raise UserError(f"{name}={written}: {why}") from None
        raise explain(error) from None


def default_blocks(cfg: DictConfig) -> DictConfig:
    """The blocks of the defaults list, with their references resolved in this configuration."""
    known = Known.within(())
    files = {group: conf_dir() / group / f"{option}.yaml" for group, option in known.listed.items()}
    blocks = OmegaConf.merge(cfg, {group: {} for group in files})
    assert isinstance(blocks, DictConfig)  # as the result of merging into a DictConfig
    with open_dict(blocks):
        for group, file in files.items():
            blocks[group] = OmegaConf.load(file)
    OmegaConf.resolve(blocks)
    return blocks


def asked_for(words: Collection[str]) -> set[str]:
    """The dotted names of the options that these normalised overrides set."""
    return {key_of(word) for word in words}
