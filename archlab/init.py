"""Initial weights: every one of a model's, set here and nowhere else.

A scheme says how wide a matrix's draws are; the residual scheme's own gain (DeepNorm's beta) multiplies what it says it
multiplies: the feed-forward network's matrices and the value and output projections. Biases start at zero, gains of
norms at one.

Each weight's draws depend on the seed and on the weight's name alone, so two models that differ in one block start
from the same weights everywhere else.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from archlab.blocks.contracts import Position
from archlab.model import Decoder, Layer
from archlab.quantities import Positive


class Init(ABC):
    """How a decoder's weights are drawn."""

    def __call__(self, decoder: Decoder, seed: int) -> None:
        for name, weight, std in self.plan(decoder):
            draw(weight, std, seed, name)
        for module in decoder.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, module in decoder.named_modules():
            if isinstance(module, Position):
                for weight, (low, high) in module.starts_within.items():
                    draw_within(module.get_parameter(weight), low, high, seed, f"{name}.{weight}")

    def plan(self, decoder: Decoder) -> Iterator[tuple[str, Tensor, float]]:
        """Every matrix's name, weight and standard deviation."""
        for name, module in decoder.named_modules():
            if isinstance(module, nn.Embedding):
                tied = module.weight is decoder.head.weight
                std = self.table_std(self.width_of(module, decoder))
                yield name, module.weight, std / self.scale_of_tied(decoder) if tied else std
        for depth, layer in enumerate(decoder.layers):
            for name, weight, gain in branch_matrices(layer, self.back_to_stream(len(decoder.layers))):
                yield f"layers.{depth}.{name}", weight, gain * self.matrix_std(*weight.shape)
        for name, weight in outer_matrices(decoder):
            yield name, weight, self.matrix_std(*weight.shape)

    @staticmethod
    def width_of(table: nn.Embedding, decoder: Decoder) -> int:
        """The vocabulary's own, which may be narrower than the stream; all other tables go by the stream's, T5's too."""
        return table.embedding_dim if table is decoder.embedding else decoder.d_model

    def back_to_stream(self, n_layers: int) -> float:
        """An extra factor on the two projections that write to the residual stream."""
        return 1.0

    def scale_of_tied(self, decoder: Decoder) -> float:
        """What a table that the head reads too is divided by."""
        return 1.0

    @abstractmethod
    def matrix_std(self, fan_out: int, fan_in: int) -> float: ...

    @abstractmethod
    def table_std(self, d_model: int) -> float: ...


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

    A table that the head reads too is divided by the embedding's scale. Undivided, a token's own logit would start near
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


def outer_matrices(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """The matrices outside the layers; a tied head's is the embedding's table, which has been drawn as such."""
    for place in ("embed_proj", "head_proj", "head"):
        for name, module in decoder.get_submodule(place).named_modules(prefix=place):
            if isinstance(module, nn.Linear) and module.weight is not decoder.embedding.weight:
                yield name, module.weight


def branch_matrices(layer: Layer, back_to_stream: float) -> Iterator[tuple[str, Tensor, float]]:
    """A layer's matrices with what multiplies their standard deviation: its residual scheme's gain, and the way back."""
    attention, gain = layer.attention, layer.residual.branch_gain
    yield "attention.q_proj", attention.q_proj.weight, 1.0
    yield "attention.k_proj", attention.k_proj.weight, 1.0
    yield "attention.v_proj", attention.v_proj.weight, gain
    yield "attention.out_proj", attention.out_proj.weight, gain * back_to_stream
    for name, module in layer.ffn.named_modules():
        if isinstance(module, nn.Linear):
            yield f"ffn.{name}", module.weight, gain * (back_to_stream if module is layer.ffn.down_proj else 1.0)


# Draws are on the CPU and in float32, so that a seed means the same weights on every device and in every dtype.


@torch.no_grad()
def draw(weight: Tensor, std: float, seed: int, name: str) -> None:
    weight.copy_(std * torch.randn(weight.shape, generator=generator_of(seed, name)))


@torch.no_grad()
def draw_within(weight: Tensor, low: float, high: float, seed: int, name: str) -> None:
    weight.copy_(low + (high - low) * torch.rand(weight.shape, generator=generator_of(seed, name)))


def generator_of(seed: int, name: str) -> torch.Generator:
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
