"""A model by its name: a preset, a run's directory, or overrides in quotes."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from archlab.base.errors import UserError
from archlab.base.files import there
from archlab.base.messages import did_you_mean
from archlab.config.compose import compose
from archlab.config.overrides import groups
from archlab.records.directory import looks_like_a_run, refuse_beside_a_run, unfinished
from archlab.runs.load import saved_configuration


@dataclass(frozen=True)
class NamedModel:
    """A model someone named."""

    name: str
    cfg: DictConfig
    words: tuple[str, ...] | None
    """The overrides it was named by; None for a run, whose configuration is all that is known."""

    directory: Path | None = None


def named(word: str, own: Path | None = None) -> NamedModel:
    """What a word stands for; `own` is a folder of the user's own options. Raises UserError where it is none of the three."""
    directory = Path(word)
    if looks_like_a_run(directory):
        if why := unfinished(directory):
            raise UserError(why)
        return NamedModel(directory.name, saved_configuration(directory, own), None, directory)
    if "=" in word:
        words = words_in(word)
        return NamedModel(word, compose(*words, config_dir=own), words)
    presets = groups((own,) if own else ())["preset"]
    if word in presets:
        return NamedModel(word, compose(f"preset={word}", config_dir=own), (f"preset={word}",))
    if there(directory):
        raise UserError(f"{word}: has no config.yaml, so it is not a run; give a run's directory, as a run prints it")
    raise UserError(
        f"{word}: is no preset, no run's directory and no override; {did_you_mean(word, presets)}presets: {', '.join(presets)}"
    )


def one(verb: str, what: Sequence[str | Path | DictConfig], own: Path | None) -> NamedModel:
    """The model of a verb that takes one: by its name, by overrides without quotes, or a configuration; nothing is the defaults."""
    if len(what) == 1:
        return NamedModel("", what[0], None) if isinstance(what[0], DictConfig) else named(str(what[0]), own)
    if any(isinstance(word, DictConfig) for word in what):
        raise UserError("a configuration stands alone; give it by itself, or overrides")
    words = [str(word) for word in what]
    refuse_beside_a_run(words)
    if without := [word for word in words if "=" not in word]:
        raise UserError(f"{without[0]}: {verb} takes one model: a preset, a run's directory, or overrides, name=value")
    return NamedModel(" ".join(words), compose(*words, config_dir=own), tuple(words))


def words_in(written: str) -> tuple[str, ...]:
    """The overrides that stand in one text, as a shell would part them. Raises UserError."""
    try:
        words = tuple(shlex.split(written))
    except ValueError as error:
        raise UserError(f"{written}: cannot be read as overrides: {str(error).lower()}") from None
    for word in words:
        if word.startswith("-"):
            raise UserError(f"{word}: no flag belongs in a model's overrides; write it outside the quotes")
    return words


def two(verb: str, words: Sequence[str], own: Path | None) -> tuple[NamedModel, NamedModel]:
    """Both models of a verb that compares two. Raises UserError."""
    if len(words) != 2:
        raise UserError(
            f"{verb}: takes two models, not {len(words)}, as in archlab {verb} llama_7b chatglm_6b; several overrides of one"
            f" model stand in quotes, as in archlab {verb} llama_7b 'preset=llama_7b norm=layer'"
        )
    first, second = (named(word, own) for word in words)
    return first, second
