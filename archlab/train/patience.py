"""Early stopping."""

import copy
import math

from torch import Tensor

from archlab.model import Decoder


class Patience:
    """Remembers the best validation loss and its weights; over when it has not improved for `limit` validations."""

    def __init__(self, limit: int | None):
        self.limit = limit
        self.best_loss, self.best_step, self.waited = math.inf, None, 0
        self.best_weights: dict[str, Tensor] = {}

    def see(self, step: int, loss: float, decoder: Decoder) -> None:
        if self.limit is None:
            return
        self.waited += 1
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.waited = loss, step, 0
            self.best_weights = copy.deepcopy(decoder.state_dict())

    @property
    def over(self) -> bool:
        return self.limit is not None and self.waited >= self.limit

    def restore(self, decoder: Decoder) -> int | None:
        if self.best_weights:
            decoder.load_state_dict(self.best_weights)
        return self.best_step
