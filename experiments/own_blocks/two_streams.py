"""A residual scheme of two streams side by side, each branch reading and writing both."""

import torch
from einops import repeat
from torch import nn

from archlab.blocks.contracts import Residual


class TwoStreams(Residual):
    """H <- A H + b f(norm(a H)): a branch reads the streams H, (2, d_model), mixed by a, and is added to each by b.

    A, a and b are learned numbers for each branch. They start where the scheme is pre-norm: A keeps the streams, a reads
    one of them, b adds to both; both are copies of the embeddings. What leaves is their sum.

    Source: arXiv:2409.19606, eq. 1 to 5 and 14 (static hyper-connections, expansion rate 2).
    """

    streams = 2

    def __init__(self, norm, n_layers: int):
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(2))
        self.keep = nn.Parameter(torch.eye(2).repeat(2, 1, 1))
        self.read = nn.Parameter(torch.eye(2))
        self.write = nn.Parameter(torch.ones(2, 2))

    def enter(self, x):
        return repeat(x, "batch seq d_model -> batch seq streams d_model", streams=2)

    def leave(self, x):
        return x.sum(dim=-2)

    def forward(self, x, branches):
        for i, (norm, branch) in enumerate(zip(self.norms, branches, strict=True)):
            added = branch(norm(torch.einsum("s,bnsd->bnd", self.read[i].type_as(x), x)))
            kept = torch.einsum("ts,bnsd->bntd", self.keep[i].type_as(x), x)
            x = kept + self.write[i].type_as(x)[:, None] * added[:, :, None]
        return x
