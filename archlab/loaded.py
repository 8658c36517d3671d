"""A run's model, read back from its directory: as it was, or the same weights under another configuration."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from archlab.check import BLOCKS, check_types
from archlab.config import compose
from archlab.errors import UserError
from archlab.model import Decoder
from archlab.rundir import unfinished
from archlab.saved import load_weights


def load_run(directory: str | Path, *overrides: str) -> tuple[DictConfig, Decoder]:
    """The configuration and the trained decoder, on the CPU, of a run's directory.

    With overrides, spelt as on the command line, the same weights under another configuration: another mask, another
    base of RoPE. What has weights must stay as it was. Raises UserError where there is no such run, a file is damaged,
    a weight is not a finite number, or the weights are another model's.
    """
    directory = Path(directory)
    if why := unfinished(directory):
        raise UserError(why)
    cfg = saved_configuration(directory)
    if overrides:
        cfg = changed(directory, cfg, overrides)
    return cfg, load_weights(directory, cfg)


def saved_configuration(directory: Path) -> DictConfig:
    file = directory / "config.yaml"
    if not file.is_file():
        raise UserError(f"{directory}: has no config.yaml, so it is no run; give a run's directory, as a run prints it")
    try:
        cfg = OmegaConf.load(file)
        cfg.train.setdefault("save_every", None)  # which runs before it have no word of
        check_types(cfg)
    except UserError:
        raise
    except (
        OSError,
        AttributeError,
        UnicodeDecodeError,
        YAMLError,
        OmegaConfBaseException,
        KeyError,
        TypeError,
        AssertionError,
    ) as error:
        told = " ".join(str(error).split())[:120]
        raise UserError(f"{file}: is no configuration of this version's runs: {told}; give another run") from None
    OmegaConf.set_struct(cfg, True)
    return cfg


def changed(directory: Path, cfg: DictConfig, overrides: tuple[str, ...]) -> DictConfig:
    """What was asked for then, and these overrides after it, composed and checked anew."""
    try:
        asked = list(OmegaConf.load(directory / "overrides.yaml"))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{directory}/overrides.yaml: cannot be read: {' '.join(str(error).split())[:120]}") from None
    again = compose(*asked)
    for part in (*BLOCKS, "size", "embed"):
        if again[part] != cfg[part]:
            raise UserError(
                f"{directory}: its overrides no longer compose to the {part} in its config.yaml, so nothing can be changed"
                " about it; load it as it is"
            )
    return compose(*asked, *overrides)
