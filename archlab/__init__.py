"""archlab: an architecture explorer for decoder-only Transformers.

archlab.compose("norm=rms", "pos=alibi")   -> a configuration, checked and settled
archlab.build("norm=rms", "pos=alibi")     -> a Decoder with its initial weights
decoder(tokens, prefix_len=...)            -> logits
"""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from archlab.model.decoder import Decoder

__version__ = "0.1.0"
__all__ = ["Decoder", "build", "compose"]

STARTED = time.time()
"""When the program began, for the time to the first step."""


def compose(*overrides: str, config_dir: str | None = None) -> "DictConfig":
    """The configuration these overrides ask for, spelt as on the command line. Raises `archlab.base.errors.UserError`."""
    from archlab.config.compose import compose

    return compose(*overrides, config_dir=config_dir)


def build(*what: "str | DictConfig", config_dir: str | None = None) -> "Decoder":
    """A decoder with its initial weights, from overrides or from one configuration. Raises `archlab.base.errors.UserError`."""
    from archlab.config import assemble

    if len(what) == 1 and not isinstance(what[0], str):
        return assemble.build(what[0])
    return assemble.build(compose(*what, config_dir=config_dir))


def __getattr__(name: str) -> object:
    # torch takes seconds to import, and a user who asks for --help should not wait for it.
    if name == "Decoder":
        from archlab.model.decoder import Decoder

        return Decoder
    raise AttributeError(f"module 'archlab' has no attribute {name!r}")
