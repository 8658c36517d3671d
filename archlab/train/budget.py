"""How long a run is: in steps, in tokens, or in tokens per parameter."""

import math

from omegaconf import DictConfig

TOKENS_PER_PARAMETER = 20
"""The compute-optimal ratio. Source: arXiv:2203.15556, table 3."""


def settle_steps(cfg: DictConfig, n_params: int) -> None:
    """Sets train.steps where the budget is given in tokens; the last step may go up to one batch beyond it."""
    tokens = TOKENS_PER_PARAMETER * n_params if cfg.budget == "chinchilla" else cfg.train.tokens
    if tokens is not None:
        cfg.train.steps = math.ceil(tokens / (cfg.train.batch_size * cfg.train.train_len))
