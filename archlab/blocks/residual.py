"""Residual schemes: how a layer's branches join the residual stream, and where the norms sit.

f is a branch, attention or the feed-forward network; N is the number of layers.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import cycle

from torch import Tensor, nn

from archlab.base.quantities import Literal
from archlab.blocks.contracts import Norm, Residual, Stream

Branch = Callable[[Tensor], Tensor]
MakeNorm = Callable[[], Norm]
BRANCHES = 2


class OneNormPerBranch(Residual):
    """The schemes that add one branch after the other, each with a norm of its own; `join` says how."""

    def __init__(self, norm: MakeNorm, n_layers: int):
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(BRANCHES))

    def forward(self, x: Stream, branches: Sequence[Branch]) -> Stream:
        for norm, branch in zip(self.norms, branches, strict=True):
            x = self.join(x, norm, branch)
        return x

    @abstractmethod
    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        """The stream x, (batch, seq, d_model), with one branch added."""


class PreNorm(OneNormPerBranch):
    """x + f(norm(x)): the stream itself is never normalised, so the model ends with a norm.

    Source: arXiv:2002.04745, table 1.
    """

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return x + branch(norm(x))


class SubNorm(OneNormPerBranch):
    """x + f(norm(x)), where f has a second norm on what it projects back to the stream (Magneto's Sub-LN).

    f's feed-forward, value and output projections are initialised sqrt(ln 2N) times as large.
    Source: arXiv:2210.06423, fig. 2 and eq. 22 for a decoder alone.
    """

    inner_norms = True
    told_apart_by_norms = True

    def __init__(self, norm: MakeNorm, n_layers: int):
        super().__init__(norm, n_layers)
        self.branch_gain = math.log(2 * n_layers) ** 0.5

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return x + branch(norm(x))


class PostNorm(OneNormPerBranch):
    """norm(x + f(x)): the original Transformer. Source: arXiv:1706.03762, sec. 3.1."""

    needs_final_norm = False
    told_apart_by_norms = True

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return norm(x + branch(x))


class DeepNorm(OneNormPerBranch):
    """norm(alpha * x + f(x)), with f's feed-forward, value and output projections initialised beta times as large.

    `gains=deepnet`: alpha = (2N)^(1/4), beta = (8N)^(-1/4). Source: arXiv:2203.00555, fig. 2, "decoder-only".
    `gains=glm`:     alpha = (2N)^(1/2), beta = (2N)^(-1/2). Source: arXiv:2210.02414, sec. 2.1.
    """

    needs_final_norm = False

    def __init__(self, norm: MakeNorm, n_layers: int, gains: Literal["deepnet", "glm"] = "deepnet"):
        super().__init__(norm, n_layers)
        self.alpha, self.branch_gain = {
            "deepnet": ((2 * n_layers) ** 0.25, (8 * n_layers) ** -0.25),
            "glm": ((2 * n_layers) ** 0.5, (2 * n_layers) ** -0.5),
        }[gains]

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return norm(self.alpha * x + branch(x))


class BranchNorm(OneNormPerBranch):
    """x + norm(f(x)): a norm on what the branch adds, none on its input.

    Source: arXiv:2501.00656, sec. 2.1 (OLMo 2).
    """

    told_apart_by_norms = True

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return x + norm(branch(x))


class NoResidual(OneNormPerBranch):
    """f(norm(x)): there is no residual stream, each branch replaces its input."""

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return branch(norm(x))


class Sandwich(Residual):
    """x + norm'(f(norm(x))): a norm before and one after each branch. Source: arXiv:2105.13290, sec. 2.4 (CogView)."""

    told_apart_by_norms = True

    def __init__(self, norm: MakeNorm, n_layers: int):
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(BRANCHES))
        self.branch_norms = nn.ModuleList(norm() for _ in range(BRANCHES))

    def forward(self, x: Stream, branches: Sequence[Branch]) -> Stream:
        for norm, branch_norm, branch in zip(self.norms, self.branch_norms, branches, strict=True):
            x = x + branch_norm(branch(norm(x)))
        return x


class Parallel(Residual):
    """x + attention(norm(x)) + ffn(norm'(x)): both branches get the same stream.

    With `norms=1` norm' is norm, as in GPT-J, Falcon-7B and Phi; with `norms=2` it is another, as in GPT-NeoX and
    Falcon-40B. Source: arXiv:2204.02311, "Parallel Layers"; arXiv:2204.06745, sec. 2.1 (GPT-NeoX).
    """

    def __init__(self, norm: MakeNorm, n_layers: int, norms: Literal[1, 2] = 1):
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(norms))

    def forward(self, x: Stream, branches: Sequence[Branch]) -> Stream:
        normed = [norm(x) for norm in self.norms]
        return x + sum(branch(given) for branch, given in zip(branches, cycle(normed)))
