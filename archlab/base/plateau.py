"""Where a run has learned nothing but how often each token occurs. The one threshold of it."""

PLATEAU_MARGIN = 0.05
"""Nats: a loss no further than this below the unigram loss, or above it, is that of a model that has not learned."""


def on_plateau(loss: float, unigram_loss: float) -> bool:
    """Whether loss >= unigram_loss - 0.05, both in nats per token."""
    return loss >= unigram_loss - PLATEAU_MARGIN
