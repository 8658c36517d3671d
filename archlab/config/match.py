"""A fair fight: every arm as large, or as costly, as the default blocks are at the same size.

What gives is the feed-forward network's hidden width, since a step of it is the smallest one a model's size can take.
"""

from collections.abc import Callable

from omegaconf import DictConfig, open_dict

from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError
from archlab.config.assemble import assemble_without_weights, settle_size
from archlab.config.check import BLOCKS
from archlab.cost.describe import count_parameters
from archlab.cost.measure import forward_flops_per_token

TOLERANCE = 0.005
"""Of the reference. Two arms each this near to it are within 1% of each other."""

ROUND = 8
"""A multiple of this is taken where one is near enough: matrix products like it."""


def settle_match(cfg: DictConfig, default_blocks: DictConfig) -> None:
    """Sets size.d_ff so that the model agrees with one of `default_blocks` in parameters or FLOPs, and says so in `matched`.

    `default_blocks` holds a block's configuration for each group. Raises UserError where no width agrees within 0.5%.
    """
    count = COUNTS[cfg.match]
    wanted = count(reference(cfg, default_blocks))
    before = cfg.size.d_ff
    cfg.size.d_ff = width(cfg, count, wanted)
    with open_dict(cfg):
        cfg.matched = {"to": cfg.match, "reference": wanted, "d_ff_before": before, "d_ff": cfg.size.d_ff}


def reference(cfg: DictConfig, default_blocks: DictConfig) -> DictConfig:
    """The same configuration with the default blocks, and with the width they would have had."""
    plain = cfg.copy()
    with open_dict(plain):
        for group in BLOCKS:
            plain[group] = default_blocks[group]
        plain.size.n_kv_heads = None
        plain.size.d_ff = "matched"
    settle_size(plain)
    return plain


def width(cfg: DictConfig, count: Callable[[DictConfig], float], wanted: float) -> int:
    """The d_ff at which `count`, which is linear in it, comes nearest to what is wanted."""
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
    changed = cfg.copy()
    changed.size.d_ff = d_ff
    return changed


def parameters(cfg: DictConfig) -> float:
    return count_parameters(assemble_without_weights(cfg))


def flops(cfg: DictConfig) -> float:
    return forward_flops_per_token(assemble_without_weights(cfg), cfg.train.train_len)


COUNTS: dict[str, Callable[[DictConfig], float]] = {"params": parameters, "flops": flops}


def describe_match(matched: DictConfig) -> str:
    """What was changed, in a line."""
    plain = plain_dict(matched)
    unit = {"params": "parameters", "flops": "FLOPs per token"}[plain["to"]]
    return f"size.d_ff {plain['d_ff_before']} → {plain['d_ff']}, to match {plain['reference']:,.0f} {unit} of the default blocks"
