"""Whether the options of a configuration go together, once each is of its type.

Every error is one line that names the field, its value, why it is refused and what to use instead.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace

from omegaconf import DictConfig

from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError
from archlab.config.groups import grows_by_layers
from archlab.config.of_model import (
    check_ahead,
    check_alone,
    check_anchor,
    check_apart,
    check_balance,
    check_documents,
    check_embedding,
    check_kernel,
    check_leaks,
    check_mtp,
    check_norms,
    check_position,
    check_prefix,
    check_random_positions,
    check_reset_positions,
    check_share,
    check_sink_token,
)
from archlab.config.of_training import (
    check_averages,
    check_blanks,
    check_budget,
    check_compile,
    check_evaluation,
    check_init,
    check_numbers_used,
    check_schedule,
    check_training,
)
from archlab.config.plan import loop_of
from archlab.cost.estimate import keeps_scores, may_be_fused
from archlab.cost.settings import MemorySettings, check_memory
from archlab.initial.settings import PreflightSettings, check_preflight
from archlab.model.decoder import Decoder
from archlab.records.loggers import check_installed


def check_together(cfg: DictConfig, decoder: Decoder, explicit: Collection[str]) -> None:
    """Raises UserError where options are valid alone but not together, or one leaves another without effect.

    `explicit` holds the dotted names of the options that were set, as opposed to defaults.
    """
    check_leaks(cfg)
    check_norms(cfg, explicit)
    check_share(cfg)
    check_balance(cfg, explicit)
    check_embedding(cfg, decoder)
    check_position(cfg, decoder.position.limit)
    check_ahead(cfg, decoder)
    check_alone(cfg, decoder)
    check_anchor(cfg, decoder)
    check_prefix(cfg, decoder, explicit)
    check_documents(cfg, decoder)
    check_apart(cfg, decoder)
    check_reset_positions(cfg, decoder)
    check_sink_token(cfg)
    check_random_positions(cfg, decoder)
    check_blanks(cfg, explicit)
    check_mtp(cfg, decoder, explicit)
    check_budget(cfg, explicit)
    check_training(cfg)
    check_numbers_used(cfg, explicit)
    check_schedule(cfg, explicit)
    check_averages(cfg, decoder)
    check_init(cfg, decoder, explicit)
    check_evaluation(cfg, decoder)
    check_memory(MemorySettings(**plain_dict(cfg.memory)), decoder, explicit)
    check_scores(cfg, decoder, explicit)
    check_kernel(cfg, decoder)
    check_compile(cfg)
    check_loggers(cfg)
    check_preflight(PreflightSettings(**plain_dict(cfg.preflight)))
    check_depths(cfg, explicit)


def check_scores(cfg: DictConfig, decoder: Decoder, explicit: Collection[str]) -> None:
    """Refuses options about how scores are kept in memory where no mixer has scores, or nothing would be kept otherwise."""
    settings = MemorySettings(**plain_dict(cfg.memory))
    seq_len = settings.seq_len or cfg.train.train_len
    about_scores = (("attention", "flash"), ("checkpointing", "selective"))
    asked = [
        f"memory.{name}={value}"
        for name, value in about_scores
        if f"memory.{name}" in explicit and cfg.memory[name] == value
    ]
    if not asked:
        return
    if not keeps_scores(decoder, replace(settings, attention="unfused"), seq_len):
        raise UserError(
            f"{asked[0]}: mixer={cfg.choices.mixer} keeps nothing for each query and key, so it would change nothing;"
            " leave it out"
        )
    if settings.attention == "flash" and not may_be_fused(decoder, settings, seq_len):
        why = (
            "keeps the weights of every query and key"
            if cfg.kernel == "dense"
            else f"has no fused kernel for what the options of mixer={cfg.choices.mixer} ask for, such as sinks, sigmoid weights,"
            " forget gates, or a softcap in narrow heads"
        )
        raise UserError(
            f"memory.attention=flash: kernel={cfg.kernel} {why}, so it would change nothing; leave it out, or use"
            " memory.checkpointing=selective or full"
        )
    if settings.checkpointing == "selective" and not keeps_scores(decoder, settings, seq_len):
        raise UserError(
            "memory.checkpointing=selective: recomputes scores and weights, and memory.attention=flash keeps none;"
            " use none, full, or memory.attention=unfused"
        )


def without_effect(cfg: DictConfig) -> Iterator[str]:
    """Options without effect in this run that are not a mistake: a preset's window is meant for longer texts."""
    longest = cfg.train.train_len * max(cfg.eval.lengths)
    for name in ("window", "chunk"):
        width = cfg.mask.get(name)
        if isinstance(width, int) and name == "window" and width < longest <= width + cfg.mask.get("sinks", 0):
            yield (
                f"mask.sinks={cfg.mask.sinks}: with mask.window={width} masks nothing in this run, whose longest sequences have"
                f" {longest} tokens; use fewer sinks, a smaller window, or longer eval.lengths"
            )
        if isinstance(width, int) and width >= longest:
            yield (
                f"mask.{name}={width}: masks nothing in this run, whose longest sequences have {longest} tokens; use a smaller"
                f" {name}, or longer eval.lengths"
            )


def check_depths(cfg: DictConfig, explicit: Collection[str]) -> None:
    """Refuses depths that were typed for a model of which none are compared."""
    if "preflight.depths" in explicit and cfg.preflight.depths and not grows_by_layers(cfg):
        without = (
            "are layers without one" if loop_of(cfg)["times"] is None else "are looped layers, whose gradients are sums"
        )
        raise UserError(
            f"preflight.depths={list(cfg.preflight.depths)}: compares gradients of the last layer's feed-forward network, and there"
            f" {without}; leave it out, or use one in every layer, each applied once"
        )


def check_loggers(cfg: DictConfig) -> None:
    if len(set(cfg.loggers)) < len(cfg.loggers):
        raise UserError(f"loggers={list(cfg.loggers)}: names one twice; name each once")
    check_installed(cfg.loggers)
