"""Early stopping."""

import math
from typing import Any

from torch import Tensor

from archlab.model.decoder import Decoder
from archlab.train.weights import own_tensors, put_into


class Patience:
    """Remembers the best validation loss and its weights; over when it has not improved for `limit` validations."""

    def __init__(self, limit: int | None):
        self.limit = limit
        self.best_loss, self.waited = math.inf, 0
        self.best_step: int | None = None
        self.best_weights: dict[str, Tensor] = {}

    def see(self, step: int, loss: float | None, decoder: Decoder) -> None:
        if self.limit is None:
            return
        self.waited += 1
        if loss is not None and loss < self.best_loss:
            self.best_loss, self.best_step, self.waited = loss, step, 0
            self.best_weights = {name: tensor.clone() for name, tensor in own_tensors(decoder).items()}

    @property
    def over(self) -> bool:
        return self.limit is not None and self.waited >= self.limit

    def restore(self, decoder: Decoder) -> int | None:
        if self.best_weights:
            put_into(decoder, self.best_weights)
        return self.best_step

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.best_weights, {"best_loss": self.best_loss, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        self.best_weights = tensors
        self.best_loss, self.best_step, self.waited = rest["best_loss"], rest["best_step"], rest["waited"]
