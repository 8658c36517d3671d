"""Initial weights: all of a model's, set here and nowhere else.

An init says with which standard deviation matrices and tables are drawn. The residual scheme's own gain (DeepNorm's
beta) multiplies the feed-forward network's matrices and the value and output projections.

Each weight's draws depend on the seed and on the weight's name alone, so two models that differ in one block start
from the same weights everywhere else.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.base.quantities import Positive, Width
from archlab.blocks.embedding import embed_factor
from archlab.blocks.roles import MATRICES, TABLES, Role, Weight
from archlab.model.decoder import Decoder
from archlab.model.layer import Layer

Zero = Literal["none", "branches", "head", "all"]
"""Which matrices start at zero: none, those that write to the residual stream, the head, or both."""


class Init(ABC):
    """How a decoder's weights are drawn, by their roles.

    Matrices and tables are drawn from a normal distribution, biases are zero, gains and scalars stay as their blocks
    made them, and weights with `starts_within` are drawn evenly between its two numbers, and go through `starts_through`.
    What `zero` names starts at zero: a model whose branches do starts as its embeddings and its head alone, and one whose
    head does at a loss of log(vocab_size).
    Source: arXiv:2003.04887, sec. 3 (branches); arXiv:2203.03466, app. D.2 (head).
    """

    zero: Zero = "none"

    scales_rates = False
    """Whether weights have learning rates of their own."""

    holds = False
    """Whether training sets weights back to length 1 after every step."""

    def __call__(self, decoder: Decoder, seed: int) -> None:
        """Sets all weights in place, and the rates of those whose learning rate is not `train.lr`."""
        self.check(decoder)
        rates = {weight.name: self.rate(weight, decoder) for weight in decoder.weights()}
        decoder.rates = {name: rate for name, rate in rates.items() if rate != 1.0}
        for weight in decoder.weights():
            if self.starts_at_zero(weight):
                nn.init.zeros_(weight.tensor)
            elif weight.starts_within is not None:
                draw_within(weight.tensor, *weight.starts_within, seed, drawn_as(weight.name), weight.starts_through)
            elif weight.role in MATRICES | TABLES:
                name = drawn_as(weight.name.removesuffix(".weight"))
                draw(weight.tensor, self.std_of(weight, decoder), seed, name)
            elif weight.role is Role.BIAS:
                nn.init.zeros_(weight.tensor)

    def check(self, decoder: Decoder) -> None:
        """Raises UserError where a decoder cannot start so."""
        if self.zero in ("head", "all") and decoder.head.weight is decoder.embedding.weight:
            raise UserError(
                f"init.zero={self.zero}: the head of embed.tied=true is the table of the embeddings, which would all be zero; use"
                " init.zero=branches, or embed.tied=false"
            )

    def rate(self, weight: Weight, decoder: Decoder) -> float:
        """What a weight's learning rate is multiplied by."""
        return 1.0

    def starts_at_zero(self, weight: Weight) -> bool:
        return (self.zero in ("branches", "all") and weight.writes_to_stream and weight.role in MATRICES) or (
            self.zero in ("head", "all") and weight.role is Role.HEAD
        )

    @abstractmethod
    def std_of(self, weight: Weight, decoder: Decoder) -> float:
        """The standard deviation of a matrix or a table."""


class ByShape(Init):
    """Standard deviations that go by a weight's own shape."""

    def std_of(self, weight: Weight, decoder: Decoder) -> float:
        """The standard deviation of a matrix or a table."""
        if weight.role in TABLES:
            tied = weight.tensor is decoder.head.weight
            return self.table_std(self.width_of(weight, decoder)) / (self.scale_of_tied(decoder) if tied else 1.0)
        n_branches = sum(layer.n_branches for layer in decoder.applied)
        gain = branch_gain(weight, decoder) * (self.back_to_stream(n_branches) if weight.writes_to_stream else 1.0)
        return gain * self.matrix_std(weight.fan_out, weight.fan_in)

    @staticmethod
    def width_of(table: Weight, decoder: Decoder) -> int:
        """The embedding's own width, which may be below d_model; d_model for every other table, T5's too."""
        return table.tensor.shape[-1] if table.role is Role.EMBEDDING else decoder.d_model

    def back_to_stream(self, n_branches: int) -> float:
        """An extra factor on the projections that write to the residual stream, by the number of branches of all layers."""
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


class Normal(ByShape):
    """N(0, std^2) for every matrix and table.

    With `depth_scaled` the projections back to the stream are divided by the root of the number of branches, which are 2 n_layers,
    or n_layers without feed-forward networks; a looped layer's count as often as it is applied.
    Source: GPT-2's report (Radford et al. 2019), sec. 2.3; its released code has the std of 0.02.
    """

    def __init__(self, std: Positive = 0.02, depth_scaled: bool = True, zero: Zero = "none"):
        self.std, self.zero = std, zero
        self.depth_scaled = depth_scaled

    def back_to_stream(self, n_branches: int) -> float:
        return n_branches**-0.5 if self.depth_scaled else 1.0

    def matrix_std(self, fan_out: int, fan_in: int) -> float:
        return self.std

    def table_std(self, d_model: int) -> float:
        return self.std


class Xavier(ByShape):
    """N(0, gain^2 * 2 / (fan_in + fan_out)) for every matrix, N(0, 1 / d_model) for every table.

    A table that embedding and head share is divided by the embedding's scale. Undivided, a token's own logit would start near
    sqrt(d_model), and the loss with it, far above log(vocab_size); so divided, its rows are as large as those of muP's
    readout, 1 / d_model (arXiv:2203.03466, table 3).

    Source: Glorot and Bengio 2010, eq. 16, as a normal distribution; DeepNorm's beta is defined against it
    (arXiv:2203.00555, fig. 2).
    """

    def __init__(self, gain: Positive = 1.0, zero: Zero = "none"):
        self.gain, self.zero = gain, zero

    def matrix_std(self, fan_out: int, fan_in: int) -> float:
        return self.gain * (2 / (fan_in + fan_out)) ** 0.5

    def table_std(self, d_model: int) -> float:
        return d_model**-0.5

    def scale_of_tied(self, decoder: Decoder) -> float:
        return decoder.embed_scale


class Small(Init):
    """N(0, 2 / (5 d_model)) for every matrix and table, whatever its own widths.

    With `wang` a projection back to the stream has the standard deviation 2 / (n_layers sqrt(d_model)), a looped layer counting
    as often as it is applied.
    A table that embedding and head share has rows of N(0, 1 / d_model^2), so that a token's own logit, and the loss with it,
    starts no larger than another's.

    Source: arXiv:1910.05895, sec. 2.2; arXiv:2204.06745, sec. 2.1.3 (`wang`); arXiv:2203.03466, table 3 (a shared table).
    """

    def __init__(self, wang: bool = False, zero: Zero = "none"):
        self.wang, self.zero = wang, zero

    def std_of(self, weight: Weight, decoder: Decoder) -> float:
        small = (2 / (5 * decoder.d_model)) ** 0.5
        if weight.role in TABLES:
            return 1 / decoder.d_model if weight.tensor is decoder.head.weight else small
        narrow = 2 / (len(decoder.course) * decoder.d_model**0.5)
        return branch_gain(weight, decoder) * (narrow if self.wang and weight.writes_to_stream else small)


class MaximalUpdate(ByShape):
    """muP: what is best for a model `base_width` wide stays so for a wider one, the learning rate too.

    With m = d_model / base_width, of a weight by its role:

    hidden matrix  N(0, gain^2 / fan_in), its learning rate divided by m
    head, router   N(0, gain^2 / (m fan_in)), its learning rate divided by m
    their like     whose input is as wide at every width, such as a latent: the rate as it is; the other way round, what
                   is no matrix and sums over the stream, as the maps of hyper-connections do: divided by m
    embedding      such that it is N(0, 1) after its scale, and moves by as much at every width
    other table    N(0, 1 / base_width)
    gain, bias     as at any width

    A head so drawn and so slowed is one with the output multiplier 1 / m, in another form (sec. B). Scores: where wider
    models have more heads of the same size, their scale is the same; where they have larger heads, mixer.scale has to be
    sqrt(head_dim of the base) / head_dim. For optimizers that move each number of a weight by about lr,
    as Adam does.

    Source: arXiv:2203.03466, table 3 and definition 4.1.
    """

    scales_rates = True

    def __init__(self, base_width: Width = 64, gain: Positive = 1.0, zero: Zero = "none"):
        self.base_width, self.gain, self.zero = base_width, gain, zero

    def check(self, decoder: Decoder) -> None:
        super().check(decoder)
        if decoder.head.weight is decoder.embedding.weight:
            raise UserError(
                "init=mup: a head and an embedding of one table (embed.tied=true) would need two learning rates; use"
                " embed.tied=false, or another init"
            )
        if (width := decoder.embedding.weight.shape[-1]) != decoder.d_model:
            raise UserError(
                f"init=mup: embeddings of embed.width={width} would be as wide in a wider model, and muP is about widths that grow"
                " together; leave embed.width out, or use another init"
            )

    def wider(self, decoder: Decoder) -> float:
        return decoder.d_model / self.base_width

    def rate(self, weight: Weight, decoder: Decoder) -> float:
        if weight.role in MATRICES if weight.input_grows is None else weight.input_grows:
            return 1 / self.wider(decoder)
        if weight.role is Role.EMBEDDING:
            return embed_factor(decoder.embed_scaled_by, self.base_width) / decoder.embed_scale
        return 1.0

    def std_of(self, weight: Weight, decoder: Decoder) -> float:
        if weight.role is Role.EMBEDDING:
            return 1 / decoder.embed_scale
        if weight.role in (Role.HEAD, Role.ROUTER):
            return super().std_of(weight, decoder) * self.wider(decoder) ** -0.5
        return super().std_of(weight, decoder)

    def matrix_std(self, fan_out: int, fan_in: int) -> float:
        return self.gain * fan_in**-0.5

    def table_std(self, d_model: int) -> float:
        return self.base_width**-0.5


class UnitLength(Init):
    """Vectors of length 1 in random directions, for every matrix and for the embedding's and the head's tables.

    They run along the axis of the stream: a matrix's rows, and of one that writes to the stream its columns. With `hold`
    training sets them back to length 1 after every step, so that a step only turns them; weight decay would act on nothing
    but these lengths. An average of the weights that is evaluated is set to length 1 too. Other tables are N(0, 1 / d_model).

    Source: arXiv:2410.01131, sec. 2.6; which axis, and that it is done at the start and after each step, as its published
    code (NVIDIA/ngpt) has it.
    """

    def __init__(self, hold: bool = True):
        self.holds = hold

    def __call__(self, decoder: Decoder, seed: int) -> None:
        super().__call__(decoder, seed)
        of_length_one = [w for w in decoder.weights() if w.role in OF_LENGTH_ONE and w.starts_within is None]
        decoder.held = {w.name: w.axis_of_stream for w in of_length_one}
        decoder.hold()
        decoder.held = decoder.held if self.holds else {}

    def check(self, decoder: Decoder) -> None:
        super().check(decoder)
        if decoder.embedding.weight.shape[-1] != decoder.d_model:
            raise UserError(
                f"init=unit: an embedding of embed.width={decoder.embedding.weight.shape[-1]} has vectors of another width than"
                " the stream's; use embed.width=null, or another init"
            )
        if any(layer.residual.branch_gain * layer.residual.output_gain != 1 for layer in decoder.layers):
            raise UserError(
                "init=unit: under a residual scheme with a gain on initial weights (deep, deep_glm, hyper, sub) the gain would change"
                " nothing, since every vector has length 1; use residual=ngpt or pre, or another init"
            )

    def std_of(self, weight: Weight, decoder: Decoder) -> float:
        return decoder.d_model**-0.5


OF_LENGTH_ONE = MATRICES | {Role.EMBEDDING}
"""What nGPT holds at length 1. Tables of positions it has none; gains, biases and scalars have no direction."""


def branch_gain(weight: Weight, decoder: Decoder) -> float:
    """What the residual scheme of the weight's layer multiplies it by."""
    if not weight.branch_gain and not weight.writes_to_stream:
        return 1.0
    place = re.match(r"(mtp\.)?layers\.\d+", weight.name)
    assert place is not None, f"{weight.name} is in a layer"
    residual = cast(Layer, decoder.get_submodule(place[0])).residual
    return (residual.branch_gain if weight.branch_gain else 1.0) * (
        residual.output_gain if weight.writes_to_stream else 1.0
    )


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
