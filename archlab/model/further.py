"""What a head that predicts tokens after the next is given, and what it must do; `archlab.model.mtp` has the forms."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from archlab.blocks.contracts import Block
from archlab.blocks.steps import DrawnStep
from archlab.model.layer import Layer


class Trunk(NamedTuple):
    """What was computed on the way to the next token, for heads that predict the tokens after it."""

    before_last: Tensor
    """What the last layer was given, with all streams of its residual scheme."""

    stream: Float[Tensor, "batch seq d_model"]
    """What the last layer left, before the final norm."""

    embedded: Float[Tensor, "batch seq d_model"]
    """The token embeddings, before positions, a norm and dropout."""

    final_norm: Callable[[Tensor], Tensor]
    run: Callable[[Layer, Tensor], Tensor]
    """Calls a layer as the last one is called, and returns what it leaves, (batch, seq, d_model)."""


class FurtherTokens(Block):
    """Predicts the tokens after the next at each position, in training alone: `archlab.model.mtp` has the forms.

    `layers` are its layers, each built as the model's last one is; `factor` is what the loss of each further token is
    multiplied by.
    """

    layers: Sequence[Layer]
    factor: float
    steps: Sequence[DrawnStep]
    """What the first of them does, for a drawing."""

    @abstractmethod
    def forward(self, trunk: Trunk) -> list[Float[Tensor, "batch seq d_model"]]:
        """What the model's head makes logits of, normed: one for each further token, in order."""


def next_alone(trunk: Trunk) -> list[Float[Tensor, "batch seq d_model"]]:
    """No further token is predicted."""
    return []
