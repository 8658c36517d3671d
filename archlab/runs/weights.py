"""Weights that a run left behind, read back into a model."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model

from archlab.base.errors import UserError
from archlab.config.assemble import assemble, assemble_without_weights
from archlab.model.decoder import Decoder
from archlab.model.layer import todays_name

WEIGHTS = "model.safetensors"


def load_weights(directory: Path, cfg: DictConfig) -> Decoder:
    """The decoder a settled configuration describes, with the weights of a run's directory.

    The configuration may differ from the run's in what has no weights: the mask, the scaling of positions.
    Raises UserError where the file is missing, cannot be read, belongs to another model, or holds a number that is none.
    """
    file = directory / WEIGHTS
    if not file.is_file():
        raise UserError(f"{directory}: has no {WEIGHTS}; give the directory of a run that ended")
    try:
        check_header(file, assemble_without_weights(cfg))  # before there is memory for what the configuration says
        decoder = assemble(cfg)
        load_model(decoder, str(file))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())}; the file is damaged") from None
    except RuntimeError as error:
        why = " ".join(str(error).partition(":")[2].split())
        raise UserError(
            f"{file}: are another model's weights: {why[:200]}; use the configuration they were trained with"
        ) from None
    for name, weight in decoder.state_dict().items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise UserError(
                f"{file}: {name} holds a number that is not finite; a run that diverged has no use for its weights"
            )
    return decoder


def check_header(file: Path, decoder: Decoder) -> None:
    """Whether a file has this decoder's weights, in shape and kind of number, by its header alone. Raises UserError."""
    ours = decoder.state_dict(keep_vars=True)
    with safe_open(str(file), "pt") as stored:
        theirs = {todays_name(name): stored.get_slice(name) for name in stored.keys()}
        there = {id(weight) for name, weight in ours.items() if name in theirs}  # of tied weights, one is stored
        apart = [name for name, weight in ours.items() if id(weight) not in there] + [*(theirs.keys() - ours.keys())]
        apart += [
            name for name in ours.keys() & theirs.keys() if tuple(theirs[name].get_shape()) != tuple(ours[name].shape)
        ]
        if apart:
            raise UserError(
                f"{file}: are another model's weights: {', '.join(sorted(apart)[:3])} ({len(apart)} in all); use the"
                " configuration they were trained with"
            )
        for name in ours.keys() & theirs.keys():
            kind = theirs[name].get_dtype()
            if ours[name].is_floating_point() and not kind.lstrip("B").startswith("F"):
                raise UserError(f"{file}: {name} holds numbers of type {kind}, and weights are floating-point numbers")
