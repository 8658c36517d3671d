"""Feed-forward networks: what a layer does to each position alone.

There are two forms, plain and gated; the activation is given to the constructor.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.base.quantities import Positive, Probability
from archlab.blocks.activations import MASK, Accounting, Activation, Term, saved_by
from archlab.blocks.contracts import FeedForward, Stream
from archlab.blocks.factors import Factors
from archlab.blocks.norm import MakeWidthNorm, no_norm
from archlab.blocks.precision import at_least_float32

Elementwise = Callable[[Tensor], Tensor]


class PositionWise(FeedForward):
    """What a plain and a gated network have in common: their matrices, what is between them, and dropout at the end.

    Options:

    activation  makes the elementwise function
    bias        whether the matrices have one
    dropout     a probability, of the output
    inner_norm  makes a norm of the input of `down_proj`, where the residual scheme asks for one
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Callable[[], Elementwise],
        bias: bool = False,
        dropout: Probability = 0.0,
        inner_norm: MakeWidthNorm = no_norm,
    ):
        super().__init__()
        if self.gated:
            self.gate_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.activation = activation()
        self.inner_norm = inner_norm(d_model=d_ff)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    @property
    def summary(self) -> str:
        return f"{type(self).__name__}, d_ff {self.down_proj.in_features}"

    def kept_before_the_product(self, rules: Accounting) -> Iterator[Term]:
        """Bytes kept of the input and of what the activation needs."""
        hidden, keeps = rules.e * self.down_proj.in_features, saved_by(self.activation)
        reads = rules.e * self.down_proj.out_features
        yield Term("ffn: input", reads, needed_by=("gate_proj", "up_proj"), branch_input=True)
        if keeps.input:
            yield Term("ffn: the activation's input", hidden)
        if keeps.between:
            yield Term("ffn: inside the activation", keeps.between * hidden)

    def kept_by_dropout(self, rules: Accounting) -> Iterator[Term]:
        """Bytes kept of the dropout mask."""
        if rules.drops(self.dropout.p):
            yield Term("ffn: dropout mask", MASK * self.down_proj.out_features)


class Plain(PositionWise):
    """down(activation(up(x))), with dropout on what it returns: 2 * d_model * d_ff weights.

    Source: arXiv:1706.03762, eq. 2. GLM's "Linear, activation, Linear, dropout" is this network.
    """

    def forward(self, x: Stream) -> Stream:
        return self.dropout(self.down_proj(self.inner_norm(self.activation(self.up_proj(x)))))

    def saved_activations(self, rules: Accounting) -> Iterator[Term]:
        hidden, keeps = rules.e * self.down_proj.in_features, saved_by(self.activation)
        yield from self.kept_before_the_product(rules)
        yield Term("ffn: the activation's output", hidden, needed_by=None if keeps.output else ("down_proj",))
        yield from self.kept_by_dropout(rules)


class Gated(PositionWise):
    """down(activation(gate(x)) * up(x)), with dropout on what it returns: 3 * d_model * d_ff weights.

    With Swish as activation this is SwiGLU, with GELU GEGLU, with ReLU ReGLU, with the sigmoid GLU, with none bilinear.
    Source: arXiv:2002.05202, eq. 5 and 6.
    """

    gated = True

    def forward(self, x: Stream) -> Stream:
        hidden = self.activation(self.gate_proj(x)) * self.up_proj(x)
        return self.dropout(self.down_proj(self.inner_norm(hidden)))

    def saved_activations(self, rules: Accounting) -> Iterator[Term]:
        hidden = rules.e * self.down_proj.in_features
        yield from self.kept_before_the_product(rules)
        yield Term("ffn: the two sides of the gate", 2 * hidden)
        yield Term("ffn: their product", hidden, needed_by=("down_proj",))
        yield from self.kept_by_dropout(rules)


class ScaledGated(PositionWise):
    """down(activation(sqrt(d_model) s_v gate(x)) * (s_u up(x))), with learned s_u and s_v for each hidden feature (nGPT's).

    x and the rows of the matrices are vectors of length 1 in nGPT, so that their products are about 1 / sqrt(d_model); the
    root puts them where the activation bends. s_u and s_v are kept as `Factors` are.

    Options, beside those of a gated network:

    start  what s_u and s_v start at
    scale  what the weights that they are made of start at

    Source: arXiv:2410.01131, sec. 2.6. Its published code (NVIDIA/ngpt) has the root on both sides, which changes nothing
    under residual=ngpt, whose norm takes a factor on the whole output away.
    """

    gated = True

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Callable[[], Elementwise],
        bias: bool = False,
        start: Positive = 1.0,
        scale: Positive = 1.0,
        dropout: Probability = 0.0,
        inner_norm: MakeWidthNorm = no_norm,
    ):
        super().__init__(d_model, d_ff, activation, bias, dropout, inner_norm)
        self.s_u, self.s_v = Factors(d_ff, start, scale), Factors(d_ff, d_model**0.5 * start, scale)

    def forward(self, x: Stream) -> Stream:
        hidden = self.activation(self.s_v(self.gate_proj(x))) * self.s_u(self.up_proj(x))
        return self.dropout(self.down_proj(self.inner_norm(hidden)))

    def saved_activations(self, rules: Accounting) -> Iterator[Term]:
        hidden = rules.e * self.down_proj.in_features
        yield from self.kept_before_the_product(rules)
        yield Term("ffn: the two sides of the gate before their factors", 2 * hidden)
        yield Term("ffn: the two sides of the gate", 2 * hidden)
        yield Term("ffn: their product", hidden, needed_by=("down_proj",))
        yield from self.kept_by_dropout(rules)


class NoFeedForward(FeedForward):
    """0, without weights: a layer has no feed-forward network, and its mixer is the one branch.

    The residual scheme has no norm for it either. Source: arXiv:2405.21060, sec. 7 (the layers of Mamba 2).
    """

    acts = False

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()

    def forward(self, x: Stream) -> Stream:
        return torch.zeros_like(x)

    def saved_activations(self, rules: Accounting) -> Iterator[Term]:
        yield from ()

    @property
    def summary(self) -> str:
        return "none"


class SquaredReLU(nn.Module):
    """max(0, x)^2. Source: arXiv:2109.08668, fig. 4 (Primer)."""

    keeps = Activation(between=1)

    def forward(self, x: Float[Tensor, "*batch d_ff"]) -> Float[Tensor, "*batch d_ff"]:
        return torch.relu(x).square()


class XIELU(nn.Module):
    """a x^2 + b x where x > 0, c (exp(x) - 1 - x) + b x elsewhere; a = softplus(alpha_p) and c = b + softplus(alpha_n) are learned.

    b is 1/2; a and c start at `start_p` and `start_n`. Source: arXiv:2411.13010, eq. 9, in the form of arXiv:2509.14233,
    sec. 2.1 (Apertus), whose published code keeps the exponent below -1e-6.
    """

    keeps = Activation(input=True, between=3)  # exp(x) - 1, that less x, and x^2, for the gradients of c and a too
    B, BELOW = 0.5, -1e-6

    def __init__(self, start_p: Positive = 0.8, start_n: Positive = 0.8):
        super().__init__()
        if start_n <= self.B:
            raise UserError(
                f"ffn.activation.start_n={start_n}: the slope that is learned is more than {self.B}; use more"
            )
        self.alpha_p = nn.Parameter(torch.full((1,), math.log(math.expm1(start_p))))
        self.alpha_n = nn.Parameter(torch.full((1,), math.log(math.expm1(start_n - self.B))))

    def forward(self, x: Float[Tensor, "*batch d_ff"]) -> Float[Tensor, "*batch d_ff"]:
        wide = at_least_float32(x)
        a, c = F.softplus(self.alpha_p), self.B + F.softplus(self.alpha_n)
        below = (torch.expm1(wide.clamp(max=self.BELOW)) - wide) * c
        return (torch.where(wide > 0, a * wide.square(), below) + self.B * wide).type_as(x)
