"""Residual schemes: how a layer's branches join the residual stream, and where the norms sit.

f is a branch, attention or the feed-forward network; N is the number of layers.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.base.quantities import Count, Literal, Positive, Share
from archlab.blocks.contracts import Norm, Residual, Stream
from archlab.blocks.precision import at_least_float32, without_autocast
from archlab.blocks.roles import Role, Weight

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


class ScaledNorm(OneNormPerBranch):
    """x + f(norm(x) / sqrt(l)), l being the layer's number, counted from 1 (LayerNorm Scaling).

    Without it the stream's variance grows with depth, and what deep layers add counts for less and less.
    Source: arXiv:2502.05795.
    """

    # It scales what its norms give, so there is no such thing without norms.
    told_apart_by_norms = True

    def __init__(self, norm: MakeNorm, n_layers: int, layer: int = 0):
        super().__init__(norm, n_layers)
        self.scale = (layer + 1) ** -0.5

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return x + branch(self.scale * norm(x))


class MixedNorm(OneNormPerBranch):
    """norm(x + f(x)) in the first share of the layers, x + f(norm(x)) in the others (Mix-LN).

    Source: arXiv:2412.13795.
    """

    told_apart_by_norms = True

    def __init__(self, norm: MakeNorm, n_layers: int, layer: int = 0, share: Share = 0.25):
        super().__init__(norm, n_layers)
        post = layer < share * n_layers
        self.placed = add_then_norm if post else norm_then_add
        self.needs_final_norm, self.variant = not post, "post" if post else "pre"

    def join(self, x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
        return self.placed(x, norm, branch)


def add_then_norm(x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
    """norm(x + f(x))."""
    return norm(x + branch(x))


def norm_then_add(x: Tensor, norm: nn.Module, branch: Branch) -> Tensor:
    """x + f(norm(x))."""
    return x + branch(norm(x))


class ReZero(Residual):
    """x + alpha * f(x): no norm within the layer, and one learned number for both of its branches, which starts at 0.

    So each layer starts as the identity. The decoder's own norm before the head stays; norm=none leaves it out.
    Source: arXiv:2003.04887, as its published code has it.
    """

    def __init__(self, norm: MakeNorm, n_layers: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Stream, branches: Sequence[Branch]) -> Stream:
        for branch in branches:
            x = x + self.alpha.type_as(x) * branch(x)
        return x


class LayerScale(Residual):
    """x + scale * f(norm(x)), with a learned number for each feature and branch.

    `start` is what they start at: 0.1 for up to 18 layers, 1e-5 for 24, 1e-6 for more, in the paper.
    Source: arXiv:2103.17239.
    """

    def __init__(self, norm: MakeNorm, n_layers: int, d_model: int, start: Positive = 0.1):
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(BRANCHES))
        self.scale = nn.Parameter(torch.full((BRANCHES, d_model), start))

    def forward(self, x: Stream, branches: Sequence[Branch]) -> Stream:
        for norm, scale, branch in zip(self.norms, self.scale, branches, strict=True):
            x = x + scale.type_as(x) * branch(norm(x))
        return x


Streams = Float[Tensor, "batch seq streams d_model"]
Mixing = tuple[
    Float[Tensor, "*batch streams"], Float[Tensor, "*batch streams streams"], Float[Tensor, "*batch streams"]
]
"""By which numbers a branch's input is made of the streams, the streams of each other, and its output added to each."""


class ManyStreams(Residual):
    """The schemes of several streams side by side: each branch reads a mixture of them, and is added to each of them.

    H_j <- sum_i keep_ij H_i + write_j f(norm(sum_i read_i H_i))

    All start as copies of the embeddings; what leaves is their sum. `mixing` says by which numbers.
    """

    def __init__(self, norm: MakeNorm, streams: int):
        super().__init__()
        if streams < 2:
            raise UserError(
                f"residual.streams={streams}: one stream is not mixed with any; use 2 or more, or residual=pre"
            )
        self.streams = streams
        self.norms = nn.ModuleList(norm() for _ in range(BRANCHES))

    def enter(self, x: Stream) -> Streams:
        return repeat(x, "batch seq d_model -> batch seq streams d_model", streams=self.streams)

    def leave(self, x: Streams) -> Stream:
        return x.sum(dim=-2)

    def forward(self, x: Streams, branches: Sequence[Branch]) -> Streams:
        for which, (norm, branch) in enumerate(zip(self.norms, branches, strict=True)):
            with without_autocast(x.device):
                read, keep, write = (numbers.type_as(x) for numbers in self.mixing(which, at_least_float32(x)))
                given = (read[..., None] * x).sum(dim=-2)
                kept = keep.mT @ x
            x = kept + write[..., None] * branch(norm(given)).type_as(x)[:, :, None]
        return x

    @abstractmethod
    def mixing(self, which: int, x: Streams) -> Mixing:
        """By which numbers the first or the second branch reads, keeps and writes these streams; float32 at least."""


class HyperConnections(ManyStreams):
    """Several streams, mixed by learned numbers (static), or by those and a tanh of the streams themselves (dynamic).

    dynamic: read = a + s_a tanh(n(H) W_a), and keep and write likewise, n being a LayerNorm without gain and shift, which
    W and a have anyway. They start where the scheme is pre-norm: W = 0, s = 0.01, keep = 1 on the diagonal, write = 1, and a
    branch reads one stream alone, its number being that of the branch among those of all layers, modulo `streams`.

    Source: arXiv:2409.19606, eq. 1 to 5 and 14 (static), and the dynamic form of its published code.
    """

    def __init__(
        self,
        norm: MakeNorm,
        n_layers: int,
        d_model: int,
        layer: int = 0,
        streams: Count = 4,
        dynamic: bool = True,
    ):
        super().__init__(norm, streams)
        numbers = [(BRANCHES * layer + which) % streams for which in range(BRANCHES)]
        self.read = nn.Parameter(torch.eye(streams)[numbers])
        self.keep = nn.Parameter(torch.eye(streams).repeat(BRANCHES, 1, 1))
        self.write = nn.Parameter(torch.ones(BRANCHES, streams))
        if dynamic:
            # By branch: streams + 2 numbers for each stream. The first is added to read, the last to write.
            self.by_stream = nn.Parameter(torch.zeros(BRANCHES, streams + 2, d_model))
            self.by_stream_scale = nn.Parameter(torch.full((BRANCHES, 2), 0.01))
        self.added = self.by_streams if dynamic else self.nothing

    def mixing(self, which: int, x: Streams) -> Mixing:
        read, keep, write = self.added(which, x)
        return self.read[which] + read, self.keep[which] + keep, self.write[which] + write

    def by_streams(self, which: int, x: Streams) -> Mixing:
        """What each stream adds to the numbers that it is read and kept by, and a branch written to it."""
        seen = torch.tanh(F.linear(F.layer_norm(x, x.shape[-1:]), self.by_stream[which].type_as(x)))
        to_mix, to_write = self.by_stream_scale[which].type_as(x)
        return to_mix * seen[..., 0], to_mix * seen[..., 1:-1], to_write * seen[..., -1]

    def nothing(self, which: int, x: Streams) -> tuple[float, float, float]:
        """Nothing is added."""
        return 0.0, 0.0, 0.0


class ManifoldHyperConnections(ManyStreams):
    """Several streams, mixed by a matrix whose rows and columns add up to 1, so that they neither grow nor shrink (mHC).

    read = sigmoid(r) + eps, write = 2 sigmoid(w), keep = Sinkhorn(k); r, w and k are scale * (n(H) W) + base, n(H) being
    all streams as one vector over its root mean square. Sinkhorn takes exp(k) and divides rows and columns in turn by their
    sums, `rounds` times. Scales start at 0.01, bases at 0; W is drawn as other matrices are.

    Source: arXiv:2512.24880; eps, and how rows and columns take turns, as DeepSeek-V4's published code has it.
    """

    EPS = 1e-6

    def __init__(self, norm: MakeNorm, n_layers: int, d_model: int, streams: Count = 4, rounds: Count = 20):
        super().__init__(norm, streams)
        self.rounds = rounds
        self.mix = nn.Parameter(torch.empty(BRANCHES, (2 + streams) * streams, streams * d_model))
        self.base = nn.Parameter(torch.zeros(BRANCHES, (2 + streams) * streams))
        self.scale = nn.Parameter(torch.full((BRANCHES, 3), 0.01))
        nn.init.normal_(self.mix, std=0.02)

    def _weight(self, module: nn.Module, name: str, tensor: nn.Parameter) -> Weight:
        """Of equal streams none would ever differ from the others, so the matrix that looks at them is drawn."""
        weight = super()._weight(module, name, tensor)
        return replace(weight, role=Role.HIDDEN) if name == "mix" else weight

    def mixing(self, which: int, x: Streams) -> Mixing:
        n = self.streams
        looked = F.rms_norm(flat := x.flatten(-2), flat.shape[-1:], eps=self.EPS)
        seen = F.linear(looked, self.mix[which].type_as(x)).split((n, n, n * n), dim=-1)
        bases, scales = self.base[which].type_as(x).split((n, n, n * n)), self.scale[which].type_as(x)
        read, write, keep = (scale * one + base for scale, one, base in zip(scales, seen, bases, strict=True))
        keep = self.doubly_stochastic(keep.unflatten(-1, (n, n)))
        return torch.sigmoid(read) + self.EPS, keep, 2 * torch.sigmoid(write)

    def doubly_stochastic(
        self, keep: Float[Tensor, "*batch streams streams"]
    ) -> Float[Tensor, "*batch streams streams"]:
        """Positive numbers whose columns add up to 1, and whose rows nearly do."""
        keep = keep.softmax(dim=-1) + self.EPS
        keep = keep / (keep.sum(dim=-2, keepdim=True) + self.EPS)
        for _ in range(self.rounds - 1):
            keep = keep / (keep.sum(dim=-1, keepdim=True) + self.EPS)
            keep = keep / (keep.sum(dim=-2, keepdim=True) + self.EPS)
        return keep
