"""What a block keeps for its backward pass, in the terms that `archlab.cost` adds up.

A count by these terms is that of an implementation that keeps each operation's inputs once, in the weights' precision
(`e` bytes per number), and dropout masks in one byte. Source: arXiv:2205.05198, sec. 4.1.
"""

from dataclasses import dataclass

from torch import nn

FLOAT32 = 4
MASK = 1


@dataclass(frozen=True)
class Term:
    """Bytes kept for a reason: for each `token` of the batch, each `pair` of query and key, and each `sequence`."""

    what: str
    token: float = 0
    pair: float = 0
    sequence: float = 0

    needed_by: tuple[str, ...] | None = None
    """The matrices for whose gradients alone it is kept: not kept where all of them are frozen. None: always kept."""

    branch_input: bool = False
    """Whether it is what the branch was given, which is kept once where both branches are given the same."""

    def bytes(self, batch: int, seq_len: int) -> float:
        """Bytes for so many sequences of so many tokens."""
        return batch * (self.sequence + seq_len * (self.token + self.pair * seq_len))


@dataclass(frozen=True)
class Activation:
    """What an elementwise function keeps: its input, its output, tensors in between."""

    input: bool = False
    output: bool = False
    between: int = 0


KEEPS: dict[type, Activation] = {
    nn.GELU: Activation(input=True),
    nn.SiLU: Activation(input=True),
    nn.ReLU: Activation(output=True),
    nn.Sigmoid: Activation(output=True),
    nn.Tanh: Activation(output=True),
    nn.Identity: Activation(),
}
"""A function that is not listed, and does not say so itself by `keeps`, is taken to keep its input."""


def saved_by(activation: object) -> Activation:
    """What an activation keeps for its backward pass."""
    return getattr(activation, "keeps", None) or KEEPS.get(type(activation), Activation(input=True))


@dataclass(frozen=True)
class Accounting:
    """By which rules the terms are counted."""

    e: int
    """Bytes of a number."""

    flash: bool = False
    """Whether attention is computed by a fused kernel, wherever there is one."""

    dropout: bool | None = None
    """Whether dropout is counted everywhere or nowhere; None: where the model has it."""

    def drops(self, p: float) -> bool:
        """Whether dropout of probability p is counted."""
        return p > 0 if self.dropout is None else self.dropout
