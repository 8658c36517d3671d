"""What Hydra composes from overrides, without composing again what many have in common.

Hydra takes a tenth of a second for each configuration, since it reads some twenty files, most of them the same each
time. Here it composes what config.yaml lists once. An option whose file speaks of its group alone then takes the place
of the listed one, and fields are set after the composition, as Hydra does itself.
"""

import pickle
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from archlab.base.words import taken_apart
from archlab.config.messages import in_one_line
from archlab.config.overrides import NO_GROUPS, FileState, conf_dir, parse, state_of
from archlab.config.spelling import spelled

CHOICE = re.compile(r"(\w+)=([\w.-]+)")
"""A group with one of its options, in plain letters."""


def by_hydra(words: Sequence[str], own: Sequence[Path]) -> DictConfig:
    """What Hydra composes from normalised overrides, including its own settings."""
    searched = [f"hydra.searchpath={spelled([f'file://{folder.absolute()}'])}" for folder in own]
    GlobalHydra.instance().clear()
    with in_one_line(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra_compose("config", overrides=[*words, *searched], return_hydra_config=True)


def whole(words: Sequence[str], own: Sequence[Path]) -> DictConfig:
    """The same, with nothing of Hydra's own settings but the choices."""
    files = tuple(files_of_options(own))
    cfg = composed_once((), (), tuple(files_of_options(())) if own else files)  # the listed options are archlab's own
    sections = set(cfg) - {"hydra"}
    groups = set(cfg.hydra.runtime.choices)
    fields = [word for word in words if (key := taken_apart(word)).head in sections and key.key not in groups]
    others = tuple(word for word in words if word not in fields)
    named = [found.groups() for word in others if (found := CHOICE.fullmatch(word)) and found[1] in groups]
    blocks = [block_alone(group, option, files) for group, option in named]
    if len(named) < len(others) or None in blocks:  # a word that may choose for other groups too
        cfg = composed_once(others, tuple(own), files)
    else:
        for (group, option), block in zip(named, blocks, strict=True):
            cfg[group] = block
            cfg.hydra.runtime.choices[group] = option
    try:
        ConfigLoaderImpl._apply_overrides_to_config([parse(word) for word in fields], cfg)
    except (HydraException, OmegaConfBaseException):
        return by_hydra(words, own)  # which says what is wrong with them
    return cfg


def files_of_options(own: Sequence[Path]) -> Iterator[FileState]:
    """The files that a composition may read, in the order in which Hydra looks for an option."""
    ours = (folder for folder in conf_dir().iterdir() if folder.name not in (*NO_GROUPS, "preset"))
    found = [conf_dir() / "config.yaml", *(file for folder in ours for file in folder.glob("*.yaml"))]
    for file in (*found, *(file for folder in own for file in files_within(folder.absolute()))):
        yield state_of(file)


def files_within(folder: Path) -> Iterator[Path]:
    """A folder of the user's own; Hydra looks for no option where archlab keeps other data."""
    return (file for file in folder.rglob("*.yaml") if file.relative_to(folder).parts[0] not in NO_GROUPS)


def composed_once(words: tuple[str, ...], own: tuple[Path, ...], files: tuple[FileState, ...]) -> DictConfig:
    return pickle.loads(_composed(words, own, files))


@lru_cache(512)
def _composed(words: tuple[str, ...], own: tuple[Path, ...], files: tuple[FileState, ...]) -> bytes:
    """As bytes, from which a copy is made in a fifth of the time that OmegaConf takes to copy it."""
    cfg = by_hydra(words, own)
    choices = dict(cfg.hydra.runtime.choices)
    cfg.hydra = None
    cfg.hydra = DictConfig({"runtime": {"choices": choices}})
    return pickle.dumps(cfg)


def block_alone(group: str, option: str, files: Sequence[FileState]) -> DictConfig | None:
    """What an option's file sets in its group; None where it may set something else, or there is none."""
    name = (group, f"{option}.yaml")
    file = next((file for file in files if Path(file[0]).parts[-2:] == name), None)
    read = file and _block(file)
    return pickle.loads(read) if read else None


@lru_cache(512)
def _block(file: FileState) -> bytes | None:
    if "@package" in Path(file[0]).read_text(encoding="utf-8"):
        return None
    block = OmegaConf.load(file[0])
    return pickle.dumps(block) if isinstance(block, DictConfig) and block and "defaults" not in block else None
