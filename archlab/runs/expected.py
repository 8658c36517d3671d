"""How long a run will take, by its configuration alone."""

from omegaconf import DictConfig

from archlab.config.plan import course

PER_STEP, PER_LAYER, PER_FLOP, PER_RUN = 0.004, 0.0035, 1 / 4.5e10, 1.0
"""Seconds on one thread of a 2-core machine: for a step, for each of its layers, for an operation, and for what surrounds it."""


def seconds_of_a_run(cfg: DictConfig) -> float:
    """An estimate for one CPU thread, rough to a factor of two."""
    return cfg.train.steps * seconds_of_a_step(cfg) + seconds_of_an_evaluation(cfg)


def seconds_of_a_step(cfg: DictConfig) -> float:
    """Of training, on one CPU thread."""
    tokens = 3 * cfg.train.batch_size * cfg.train.train_len
    return PER_STEP + PER_LAYER * len(course(cfg)) + tokens * PER_FLOP * flops_per_token(cfg)


def seconds_of_an_evaluation(cfg: DictConfig) -> float:
    """At all lengths, with all that surrounds it."""
    return PER_RUN + evaluated(cfg) * PER_FLOP * flops_per_token(cfg)


def evaluated(cfg: DictConfig) -> int:
    """Held-out tokens that are scored, over all lengths."""
    return len(cfg.eval.lengths) * max(cfg.eval.tokens, cfg.train.train_len * max(cfg.eval.lengths))


def flops_per_token(cfg: DictConfig) -> float:
    """Two for each weight of the layers, each time that it is applied, near enough for an estimate."""
    size = cfg.size
    attention = 2 * size.d_model * size.head_dim * (size.n_heads + size.n_kv_heads)
    return 2 * (len(course(cfg)) * (attention + 3 * size.d_model * size.d_ff) + size.d_model * size.vocab_size)
