"""How fast a run goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Tokens per second from the second step on: the first one pays for warming up."""

    def __init__(self, tokens_per_step: int):
        self.tokens_per_step = tokens_per_step
        self.steps = 0
        self.first_step_at: float | None = None
        self.started = 0.0

    def step_done(self) -> None:
        self.steps += 1
        if self.first_step_at is None:
            self.first_step_at, self.started = time.time(), time.perf_counter()

    @property
    def tokens_per_second(self) -> float | None:
        return (
            (self.steps - 1) * self.tokens_per_step / (time.perf_counter() - self.started) if self.steps > 1 else None
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not training."""
        since = time.perf_counter()
        yield
        self.started += time.perf_counter() - since
