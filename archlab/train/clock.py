"""How fast a run goes."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def elapsed(since: float, now: float | None = None) -> float:
    """Seconds since a time.time(), or between two of them; none where the clock was set back meanwhile."""
    return max(0.0, (time.time() if now is None else now) - since)


class Clock:
    """Tokens per second from the second step on, as of the last whose numbers are there: the first one pays for warming up."""

    def __init__(self, tokens_per_step: int):
        self.tokens_per_step = tokens_per_step
        self.steps = 0
        self.first_step_at: float | None = None
        self.started = self.last_done = 0.0

    def steps_done(self, n_steps: int) -> None:
        """Called where the numbers of so many steps are there, so that their work is over on any device."""
        self.steps += n_steps
        if n_steps:
            self.last_done = time.perf_counter()
        if n_steps and self.first_step_at is None:
            self.first_step_at, self.started = time.time(), self.last_done

    @property
    def tokens_per_second(self) -> float | None:
        seconds = self.last_done - self.started
        return (self.steps - 1) * self.tokens_per_step / seconds if self.steps > 1 and seconds else None

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "seconds": self.last_done - self.started, "first_step_at": self.first_step_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there: the time in which nothing ran counts for nothing."""
        self.steps, self.first_step_at = state["steps"], state["first_step_at"]
        self.last_done = time.perf_counter()
        self.started = self.last_done - state["seconds"]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not training."""
        since = time.perf_counter()
        yield
        spent = time.perf_counter() - since
        self.started, self.last_done = self.started + spent, self.last_done + spent
