"""How softmax attention's scores become weights, where it is not by a plain softmax."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from archlab.blocks.context import QueryBlock
from archlab.blocks.contracts import Block
from archlab.blocks.precision import at_least_float32
from archlab.blocks.roles import Role

Scores = Float[Tensor, "#batch heads query key"]
Weigh = Callable[[Tensor, QueryBlock], Tensor]
"""(scores, -inf where a key is masked; the block of queries they are of) -> weights."""


def softmax(scores: Scores, block: QueryBlock) -> Scores:
    """exp(score) over the sum of exp(scores) of all keys."""
    return scores.softmax(dim=-1)


def sigmoid(scores: Scores, block: QueryBlock) -> Scores:
    """sigmoid(score - log n), n being the number of keys that the query may attend to: no key's weight depends on another's.

    The paper's n is the length of the sequence. By the keys that are there a query computes the same whatever comes
    after it, so that it can be decoded; for the last query of a causal sequence the two are one.
    Source: arXiv:2409.04431, sec. 2 (sigmoid attention; b = -log n); `attn_bias` of the released attention_simulator, layers/attention.py.
    """
    return torch.sigmoid(scores - block.n_attended[:, None, :, None].to(scores.dtype).log())


class SinkSoftmax(Block):
    """exp(score) / (exp(sink) + sum of exp(scores)), with a learned sink for each head: weights may add up to less than 1.

    A sink starts at 0, where it counts as one more key of score 0. It does not decay.
    Source: `GptOssAttention` of transformers (gpt-oss).
    """

    vectors = Role.SCALAR

    def __init__(self, n_heads: int):
        super().__init__()
        self.sinks = nn.Parameter(torch.zeros(n_heads))

    def forward(self, scores: Scores, block: QueryBlock) -> Scores:
        sink = at_least_float32(self.sinks).view(-1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat((scores, sink), dim=-1).softmax(dim=-1)[..., :-1]
