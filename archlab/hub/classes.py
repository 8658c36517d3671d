"""What transformers' own configuration classes make of a config.json: defaults, older spellings, renamed fields."""

import copy
from collections.abc import Mapping
from typing import Any

from archlab.hub.reading import Config

MOST_LAYERS = 1000
"""Beyond it a class is not asked: some write a list of a word for each layer."""


def known_to_transformers(kind: str) -> bool:
    """Whether transformers has a class for this model_type; False where it is not installed."""
    return kind in classes()


def as_its_class_has_it(config: Config) -> Mapping[str, Any]:
    """The fields as the class of its model_type has them, which is what transformers builds the model by.

    The config.json itself where transformers is not installed, has no such class, or its class refuses it: what cannot
    be then shows where it is read.
    """
    kind = str(config.get("model_type"))
    depths = [config.get(name) for name in ("num_hidden_layers", "n_layer", "n_layers")]
    if not known_to_transformers(kind) or any(isinstance(depth, int) and depth > MOST_LAYERS for depth in depths):
        return config
    import transformers

    said = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what it remarks on while it reads is no business of who loads a folder
    try:
        return classes()[kind].from_dict(copy.deepcopy(dict(config))).to_dict()
    except Exception:  # each class raises errors of its own
        return config
    finally:
        transformers.logging.set_verbosity(said)


def classes() -> Mapping[str, Any]:
    """transformers' configuration classes by model_type; none where it is not installed."""
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        return {}
    return CONFIG_MAPPING
