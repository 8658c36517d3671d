"""Matched arms: each has as many parameters, or FLOPs, as the default blocks have at the same size.

The hidden width of the feed-forward network is what changes, since it allows the smallest steps in a model's size.
"""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, open_dict

from archlab.base.configuration import copied, plain_dict
from archlab.base.errors import UserError
from archlab.config.assemble import assemble_without_weights, settle_size
from archlab.config.groups import BLOCKS
from archlab.cost.describe import count_own_parameters
from archlab.cost.measure import forward_flops_per_token

TOLERANCE = 0.005
"""A share of the reference. Two arms that are each this close to it are within 1% of each other."""

ROUND = 8
"""A multiple of this is preferred where one is close enough, since matrix products are then faster."""


BESIDE_BLOCKS: dict[str, Any] = {
    "layers": [],
    "loop": {"times": None, "layers": None},
    "skips": None,
    "canon": None,
    "embed": {"tied": False, "norm": False, "scale": "sqrt_d_model", "width": None, "types": None},
}
"""What else a model's parameters and FLOPs go by, where nobody asks for anything; as in conf/config.yaml."""


def settle_match(cfg: DictConfig, default_blocks: DictConfig) -> None:
    """Sets size.d_ff so that parameters or FLOPs match those with `default_blocks`, and records it in `matched`.

    `default_blocks` holds a block's configuration for each group. Raises UserError where no width matches within 0.5%.
    """
    count = COUNTS[cfg.match]
    wanted = count(reference(cfg, default_blocks))
    before = cfg.size.d_ff
    cfg.size.d_ff = width(cfg, count, wanted)
    with open_dict(cfg):
        cfg.matched = {"to": cfg.match, "reference": wanted, "d_ff_before": before, "d_ff": cfg.size.d_ff}


def reference(cfg: DictConfig, default_blocks: DictConfig) -> DictConfig:
    """A model of the same size of the default blocks alone, in every layer and each applied once, and their default width.

    So it is one model for all arms of a size.
    """
    plain = copied(cfg)
    with open_dict(plain):
        for group in BLOCKS:
            plain[group] = default_blocks[group]
        for section, value in BESIDE_BLOCKS.items():
            plain[section] = value
        plain.size.n_kv_heads = None
        plain.size.d_ff = "matched"
    settle_size(plain)
    return plain


def width(cfg: DictConfig, count: Callable[[DictConfig], float], wanted: float) -> int:
    """The d_ff at which `count`, which is linear in it, comes closest to `wanted`."""
    first, second = (count(at_width(cfg, d_ff)) for d_ff in (ROUND, 2 * ROUND))
    exact = ROUND + ROUND * (wanted - first) / (second - first)
    for d_ff in (ROUND * round(exact / ROUND), round(exact)):
        if d_ff >= 1 and abs(count(at_width(cfg, d_ff)) - wanted) <= TOLERANCE * wanted:
            return d_ff
    raise UserError(
        f"match={cfg.match}: with these blocks no size.d_ff comes within {TOLERANCE:.1%} of the default blocks' {wanted:,.0f};"
        " choose a larger size, or leave match out"
    )


def at_width(cfg: DictConfig, d_ff: int) -> DictConfig:
    changed = copied(cfg)
    changed.size.d_ff = d_ff
    return changed


def parameters(cfg: DictConfig) -> float:
    return count_own_parameters(assemble_without_weights(cfg))


def flops(cfg: DictConfig) -> float:
    return forward_flops_per_token(assemble_without_weights(cfg), cfg.train.train_len)


COUNTS: dict[str, Callable[[DictConfig], float]] = {"params": parameters, "flops": flops}


def describe_match(matched: DictConfig) -> str:
    """What was changed, in one line."""
    plain = plain_dict(matched)
    unit = {"params": "parameters", "flops": "FLOPs per token"}[plain["to"]]
    return f"size.d_ff {plain['d_ff_before']} → {plain['d_ff']}, to match {plain['reference']:,.0f} {unit} of the default blocks"
