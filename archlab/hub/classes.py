"""What transformers' own configuration classes make of a config.json: defaults, older spellings, renamed fields."""

import copy
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from archlab.base.errors import UserError
from archlab.hub.fields import TYPES
from archlab.hub.reading import Config, only, unsupported

MOST_LAYERS = 1000
"""Beyond it a class is not asked: some write a list of a word for each layer."""


WITHOUT_EFFECT = frozenset(
    """
initializer_range init_std init_device time_step_min time_step_max time_step_floor time_step_rank rescale_prenorm_residual
use_cache chunk_size pad_token_id bos_token_id eos_token_id image_token_id
attention_dropout attn_pdrop resid_pdrop embd_pdrop emb_pdrop hidden_dropout classifier_dropout dropout layerdrop
residual_dropout embedding_dropout summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
output_router_logits router_aux_loss_coef router_jitter_noise
pretraining_tp slow_but_exact reorder_and_upcast_attn residual_in_fp32 is_decoder
max_seq_len learned_pos_emb embedding_fraction norm_type
""".split()
)
"""Fields of a class that change no logits: of training, of tokens, of rounding, and what MPT's class has and does not read."""


def known_to_transformers(kind: str) -> bool:
    """Whether transformers has a class for this model_type; False where it is not installed."""
    return kind in classes()


def as_its_class_has_it(config: Config) -> Mapping[str, Any]:
    """The fields as the class of its model_type has them, which is what transformers builds the model by.

    RoPE's are put in order twice, as they are there: by the class, and once more when the model's frequencies are made.
    A length beside rope_parameters is an attribute by then, and takes the place of the one inside.

    The config.json itself where transformers is not installed or has no such class. Raises UserError where its class
    refuses it.
    """
    kind = str(config.get("model_type"))
    depths = [config.get(name) for name in ("num_hidden_layers", "n_layer", "n_layers")]
    if not known_to_transformers(kind) or any(isinstance(depth, int) and depth > MOST_LAYERS for depth in depths):
        return config
    import transformers

    if isinstance(
        config.get("attn_temperature_tuning"), int
    ):  # a number in Llama 4's releases, which its class refuses
        config = {**config, "attn_temperature_tuning": bool(config["attn_temperature_tuning"])}
    said = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)  # what it refuses is said in one line below
    try:
        made = classes()[kind].from_dict(copy.deepcopy(dict(config)))
        if getattr(made, "rope_parameters", None):
            made.standardize_rope_params()
        return without_foreign_biases(made.to_dict())
    except Exception as error:  # each class raises errors of its own
        why = " ".join(str(error).split())[:200]
        raise UserError(f"config.json: transformers has a class for {kind}, which refuses it: {why}") from None
    finally:
        transformers.logging.set_verbosity(said)


def without_foreign_biases(config: Config) -> Mapping[str, Any]:
    """The same without what a class keeps of biases that it has no field for: its model has none."""
    known = {field.name for field in fields(classes()[str(config["model_type"])])}
    return {
        name: value for name, value in config.items() if name in known or name not in ("attention_bias", "mlp_bias")
    }


def check_nothing_left_out(config: Config) -> None:
    """Raises UserError where a field that no family reads differs from what its class has by default.

    So a field of a newer version of transformers is never passed over.
    """
    only(config, is_causal=True, add_cross_attention=False)
    if apart := config.get("per_layer_config"):
        raise unsupported("per_layer_config", apart, "the same fields for all layers")
    kind = str(config.get("model_type"))
    if not known_to_transformers(kind):
        return
    of_every_class = {field.name for field in fields(base_class())}
    for field in fields(classes()[kind]):
        if (
            field.name in TYPES
            or field.name in WITHOUT_EFFECT
            or field.name in of_every_class
            or field.default is MISSING
        ):
            continue
        if (value := config.get(field.name, field.default)) != field.default:
            raise unsupported(field.name, value, f"{field.name}={field.default}")


def base_class() -> Any:
    """What all configuration classes of transformers have in common."""
    import transformers

    return transformers.PreTrainedConfig


def classes() -> Mapping[str, Any]:
    """transformers' configuration classes by model_type; none where it is not installed."""
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        return {}
    return CONFIG_MAPPING
