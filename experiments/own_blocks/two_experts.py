"""A feed-forward network of two experts, one of which a router picks for each token."""

import torch
import torch.nn.functional as F
from torch import nn

from archlab.blocks.contracts import FeedForward
from archlab.blocks.roles import Role
from archlab.blocks.taps import NOBODY_LOOKS


class TwoExperts(FeedForward):
    """p_i(x) f_i(x) for the expert i of the larger p = softmax(router(x)); f_i(x) = down_i relu(up_i x).

    The router would send every token to one expert, which learns the faster for it. So `balance` times
    2 sum_i share_i mean(p_i) is added to the loss, which is least where both get half of the tokens. Both networks are
    computed for every token and one is kept: at two experts that costs less than sorting tokens.

    Source: arXiv:2101.03961, eq. 1, 2 and 4 to 6.
    """

    to_stream = ("down",)
    roles = {"router": Role.ROUTER}
    taps = ("share_of_first",)

    def __init__(self, d_model: int, d_ff: int, balance: float = 0.01):
        super().__init__()
        self.balance = balance
        self.router = nn.Linear(d_model, 2, bias=False)
        self.up = nn.Parameter(torch.empty(2, d_ff, d_model))
        self.down = nn.Parameter(torch.empty(2, d_model, d_ff))

    def forward(self, x, taps=NOBODY_LOOKS):
        p = self.router(x).float().softmax(dim=-1)  # (batch, seq, 2)
        picked = F.one_hot(p.argmax(dim=-1), 2).type_as(p)
        share = picked.mean(dim=(0, 1))
        taps.add_loss("balance", self.balance * 2 * (share * p.mean(dim=(0, 1))).sum())
        taps.tap(self.taps, lambda: {"share_of_first": share[0]})
        hidden = torch.einsum("bsd,efd->bsef", x, self.up).relu()
        of_each = torch.einsum("bsef,edf->bsed", hidden, self.down)
        return (of_each * (picked * p).type_as(of_each)[..., None]).sum(dim=-2)
