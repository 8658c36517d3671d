"""Initial weights: all of a model's, set here and nowhere else.

An init says with which standard deviation matrices and tables are drawn. The residual scheme's own gain (DeepNorm's
beta) multiplies the feed-forward network's matrices and the value and output projections.

Each weight's draws depend on the seed and on the weight's name alone, so two models that differ in one block start
from the same weights everywhere else.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from archlab.base.quantities import Positive
from archlab.blocks.roles import MATRICES, TABLES, Role, Weight
from archlab.model.decoder import Decoder


class Init(ABC):
    """How a decoder's weights are drawn, by their roles.

    Matrices and tables are drawn from a normal distribution, biases are zero, gains and scalars stay as their blocks
    made them, and weights with `starts_within` are drawn evenly between its two numbers, and go through `starts_through`.
    """

    def __call__(self, decoder: Decoder, seed: int) -> None:
        """Sets all weights in place."""
        for weight in decoder.weights():
            if weight.starts_within is not None:
                draw_within(weight.tensor, *weight.starts_within, seed, drawn_as(weight.name), weight.starts_through)
            elif weight.role in MATRICES | TABLES:
                name = drawn_as(weight.name.removesuffix(".weight"))
                draw(weight.tensor, self.std_of(weight, decoder), seed, name)
            elif weight.role is Role.BIAS:
                nn.init.zeros_(weight.tensor)

    def std_of(self, weight: Weight, decoder: Decoder) -> float:
        """The standard deviation of a matrix or a table."""
        if weight.role in TABLES:
            tied = weight.tensor is decoder.head.weight
            return self.table_std(self.width_of(weight, decoder)) / (self.scale_of_tied(decoder) if tied else 1.0)
        n_layers = len(decoder.layers)
        gain = branch_gain(weight, decoder) * (self.back_to_stream(n_layers) if weight.writes_to_stream else 1.0)
        return gain * self.matrix_std(weight.fan_out, weight.fan_in)

    @staticmethod
    def width_of(table: Weight, decoder: Decoder) -> int:
        """The embedding's own width, which may be below d_model; d_model for every other table, T5's too."""
        return table.tensor.shape[-1] if table.role is Role.EMBEDDING else decoder.d_model

    def back_to_stream(self, n_layers: int) -> float:
        """An extra factor on the projections that write to the residual stream."""
        return 1.0

    def scale_of_tied(self, decoder: Decoder) -> float:
        """What a table that embedding and head share is divided by."""
        return 1.0

    @abstractmethod
    def matrix_std(self, fan_out: int, fan_in: int) -> float:
        """The standard deviation of a matrix."""

    @abstractmethod
    def table_std(self, d_model: int) -> float:
        """The standard deviation of a table whose rows are d_model wide."""


class Normal(Init):
    """N(0, std^2) for every matrix and table.

    With `depth_scaled` the projections back to the stream are divided by sqrt(2 n_layers), the number of branches.
    Source: GPT-2's report (Radford et al. 2019), sec. 2.3; its released code has the std of 0.02.
    """

    def __init__(self, std: Positive = 0.02, depth_scaled: bool = True):
        self.std = std
        self.depth_scaled = depth_scaled

    def back_to_stream(self, n_layers: int) -> float:
        return (2 * n_layers) ** -0.5 if self.depth_scaled else 1.0

    def matrix_std(self, fan_out: int, fan_in: int) -> float:
        return self.std

    def table_std(self, d_model: int) -> float:
        return self.std


class Xavier(Init):
    """N(0, gain^2 * 2 / (fan_in + fan_out)) for every matrix, N(0, 1 / d_model) for every table.

    A table that embedding and head share is divided by the embedding's scale. Undivided, a token's own logit would start near
    sqrt(d_model), and the loss with it, far above log(vocab_size); so divided, its rows are as large as those of muP's
    readout, 1 / d_model (arXiv:2203.03466, table 3).

    Source: Glorot and Bengio 2010, eq. 16, as a normal distribution; DeepNorm's beta is defined against it
    (arXiv:2203.00555, fig. 2).
    """

    def __init__(self, gain: Positive = 1.0):
        self.gain = gain

    def matrix_std(self, fan_out: int, fan_in: int) -> float:
        return self.gain * (2 / (fan_in + fan_out)) ** 0.5

    def table_std(self, d_model: int) -> float:
        return d_model**-0.5

    def scale_of_tied(self, decoder: Decoder) -> float:
        return decoder.embed_scale


def branch_gain(weight: Weight, decoder: Decoder) -> float:
    """What the residual scheme of the weight's layer multiplies it by."""
    if not weight.branch_gain:
        return 1.0
    depth = int(weight.name.split(".")[1])
    return decoder.layers[depth].residual.branch_gain


def drawn_as(name: str) -> str:
    """The name under which a weight's numbers are drawn: mixers keep the one they had when all of them were attention.

    So the runs that are on record start from the same weights as ever.
    """
    return name.replace(".mixer.", ".attention.")


# Draws are on the CPU and in float32, so that a seed means the same weights on every device and in every dtype.


@torch.no_grad()
def draw(weight: Tensor, std: float, seed: int, name: str) -> None:
    """Sets a weight to draws from N(0, std^2)."""
    weight.copy_(std * torch.randn(weight.shape, generator=generator_of(seed, name)))


@torch.no_grad()
def draw_within(
    weight: Tensor, low: float, high: float, seed: int, name: str, through: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Sets a weight to even draws between two numbers, or to a function of them."""
    drawn = low + (high - low) * torch.rand(weight.shape, generator=generator_of(seed, name))
    weight.copy_(drawn if through is None else through(drawn))


def generator_of(seed: int, name: str) -> torch.Generator:
    """The generator of one weight's draws, from the seed and the weight's name alone."""
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
