"""Heads: how logits are computed from the residual stream, with a table of one row per token."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.quantities import Positive
from archlab.blocks.contracts import Head, Norm, Stream
from archlab.blocks.factors import Factors, stream_scale
from archlab.blocks.softcap import make_softcap

Logits = Float[Tensor, "batch seq vocab"]


class LinearHead(Head):
    """cap(scale * W x + b), where cap(z) = softcap * tanh(z / softcap), or z without a `softcap`.

    Options:

    bias     whether there is a b
    scale    the factor on the product
    softcap  the bound on the logits

    Source: arXiv:1706.03762, sec. 3.4; arXiv:2408.00118, sec. 2 (softcap); `scale` as the logit_scale of Cohere's
    published code.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        norm: Callable[[], Norm],
        bias: bool = False,
        scale: Positive = 1.0,
        softcap: Positive | None = None,
    ):
        super().__init__(d_model, vocab_size, bias=bias)
        self.scale = scale
        self.cap = make_softcap(softcap)

    def forward(self, x: Stream) -> Logits:
        return self.cap(F.linear(self.scale * x, self.weight, self.bias))


class NormHead(Head):
    """x times each row of W divided by that row's length, so that no token is favoured for the size of its row.

    Source: arXiv:2309.10305, sec. 2.5 and app. B (Baichuan 2).
    """

    def __init__(self, d_model: int, vocab_size: int, norm: Callable[[], Norm]):
        super().__init__(d_model, vocab_size, bias=False)

    def forward(self, x: Stream) -> Logits:
        return F.linear(x, F.normalize(self.weight, dim=-1))


class ScaledHead(Head):
    """s_z * (W x), with a learned factor for each token (nGPT's).

    x and the rows of W are vectors of length 1 in nGPT, so that the products are within -1 and 1, which no softmax makes
    sure predictions of. s_z is kept as `Factors` are.

    Options:

    start  what s_z starts at
    scale  what the weight that it is made of starts at; None for 1 / sqrt(d_model)

    Source: arXiv:2410.01131, sec. 2.6.
    """

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        norm: Callable[[], Norm],
        start: Positive = 1.0,
        scale: Positive | None = None,
    ):
        super().__init__(d_model, vocab_size, bias=False)
        self.s_z = Factors(vocab_size, start, stream_scale(scale, d_model))

    def forward(self, x: Stream) -> Logits:
        return self.s_z(F.linear(x, self.weight))


class MaskedHead(Head):
    """W norm(gelu(dense(x))) + b: BERT's head for masked tokens, whose W is commonly the embedding's table.

    Source: arXiv:1810.04805, sec. 3.1 (Task #1); the layer before the table as its published code has it.
    """

    def __init__(self, d_model: int, vocab_size: int, norm: Callable[[], Norm]):
        super().__init__(d_model, vocab_size, bias=True)
        self.dense = nn.Linear(d_model, d_model)
        self.norm = norm()

    def forward(self, x: Stream) -> Logits:
        return F.linear(self.norm(F.gelu(self.dense(x))), self.weight, self.bias)
