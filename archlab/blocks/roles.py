"""What a weight is for: how it starts, whether it decays and what may be adapted follow from this, never from its name."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from enum import Enum

from torch import Tensor, nn


class Role(Enum):
    """One word for each thing a weight can be."""

    EMBEDDING = "embedding"
    """The table of the vocabulary, (vocab, width)."""

    TABLE = "table"
    """Any other table of vectors, such as learned positions."""

    HIDDEN = "hidden"
    """A matrix between two widths inside a block, (fan_out, fan_in)."""

    TO_STREAM = "to_stream"
    """A matrix whose output is added to the residual stream: the last one of a branch."""

    EXPERT = "expert"
    """Matrices of several experts in one tensor, (experts, fan_out, fan_in)."""

    ROUTER = "router"
    """The matrix that chooses among experts."""

    HEAD = "head"
    """The matrix that computes logits from the stream."""

    GAIN = "gain"
    """A factor for each feature, as norms have."""

    BIAS = "bias"
    """A summand for each feature."""

    SCALAR = "scalar"
    """One number, or a few that belong to no feature, such as a slope for each head."""


MATRICES = frozenset({Role.HIDDEN, Role.TO_STREAM, Role.EXPERT, Role.ROUTER, Role.HEAD})
TABLES = frozenset({Role.EMBEDDING, Role.TABLE})
DECAYING = MATRICES | TABLES
"""What weight decay acts on. Source: arXiv:1711.05101, alg. 2; GPT-3's successors leave gains and biases out."""
INNER_MATRICES = {Role.HIDDEN: 2, Role.TO_STREAM: 2, Role.EXPERT: 3}
"""The matrices inside blocks, by role, and how many axes such a weight has: what Muon moves. Source: arXiv:2502.16982, sec. 2.2."""


@dataclass(frozen=True)
class Weight:
    """A weight, and what code outside its block needs to know of it."""

    name: str
    """Dotted, within the block or the decoder that was asked."""

    tensor: nn.Parameter
    role: Role

    branch_gain: bool = False
    """Whether the residual scheme's own gain (DeepNorm's beta) multiplies its initial values."""

    writes_to_stream: bool = False
    """Whether its output is added to the residual stream: true of every TO_STREAM, and of an expert's last matrix."""

    starts_within: tuple[float, float] | None = None
    """Two numbers between which its initial values are drawn evenly, if its block says so."""

    starts_through: Callable[[Tensor], Tensor] | None = None
    """The function that these draws go through, if there is one."""

    input_grows: bool | None = None
    """Whether it sums over more numbers in a wider model, if its block says so; else its role does: a matrix does."""

    used: float = 1.0
    """The share of its numbers that one token's forward pass uses: of experts' matrices, top_k / n_experts."""

    @property
    def is_inner_matrix(self) -> bool:
        """Whether it is a matrix inside a block, or those of several experts; tables, heads and routers are not."""
        return self.tensor.ndim == INNER_MATRICES.get(self.role)

    @property
    def fan_in(self) -> int:
        """The width of a matrix's input."""
        return self.tensor.shape[-1]

    @property
    def fan_out(self) -> int:
        """The width of a matrix's output."""
        return self.tensor.shape[-2]

    @property
    def axis_of_stream(self) -> int:
        """The axis along which a matrix's vectors are as wide as what it takes from the stream, or as what it adds to it."""
        return -2 if self.writes_to_stream else -1

    def within(self, prefix: str) -> "Weight":
        """The same weight, its name preceded by that of the module it is in."""
        return replace(self, name=f"{prefix}.{self.name}" if prefix else self.name)


def is_named(weight: str, names: Collection[str]) -> bool:
    """Whether a weight's dotted name ends in one of these: experts.0.down_proj.weight in down_proj."""
    bare = weight.removesuffix(".weight")
    return any(bare == name or bare.endswith(f".{name}") for name in names)


def usual_role(module: nn.Module, name: str, tensor: nn.Parameter) -> Role:
    """What a weight is for, as far as its module's class, its name and its axes say."""
    if isinstance(module, nn.Embedding):
        return Role.TABLE
    if tensor.ndim > 2:
        return Role.EXPERT
    if tensor.ndim == 2:
        return Role.HIDDEN
    if name.endswith(("bias", "shift")):
        return Role.BIAS
    return Role.GAIN if tensor.ndim else Role.SCALAR
