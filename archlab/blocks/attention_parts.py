"""What softmax attention may have besides its projections, its norms and its kernel, each chosen when a block is built."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from archlab.blocks.context import AttentionContext, BiasedContext, QueryBlock
from archlab.blocks.contracts import Block, SomeHeads, Stream
from archlab.blocks.factors import Factors, stream_scale
from archlab.blocks.precision import at_least_float32
from archlab.blocks.roles import Role

FIRST_VALUES = "values of the first layer"
"""Their name in `context.shared`."""


ON_REQUEST = ("first_token_share",)
"""The `on_request` of a mixer that looks at itself by `seen_of`."""


def as_they_are(weights: Tensor) -> Tensor:
    """Weights that add up to 1, with a learned sink's where there is one: each is a share."""
    return weights


def as_shares(weights: Tensor) -> Tensor:
    """Weights of which none depends on another's, over what a query's add up to.

    Source: arXiv:2410.10781, sec. 7.4 (the proxy attention scores by which table 6 measures sigmoid attention).
    """
    return weights / weights.sum(dim=-1, keepdim=True)


def seen_of(
    scores: Tensor, weights: Tensor, block: QueryBlock, shares: Callable[[Tensor], Tensor] = as_they_are
) -> dict[str, Tensor]:
    """What can be recorded of a block of queries: means over heads and queries, and the largest score.

    attention_entropy  of the weights, nats; that of a sink is left out
    max_score          the largest score, biases included
    first_token_share  the share of the sequence's first token in the weights, a sink's included; the token is a sink where
                       it is large (arXiv:2309.17453, sec. 3.1)
    """
    _, index = block.pairs(block.context.token_positions.index)
    return {
        "attention_entropy": torch.special.entr(weights).sum(dim=-1).mean(),
        "max_score": scores.amax(),
        "first_token_share": shares(weights).where(index[:, None] == 0, 0).sum(dim=-1).mean(),
    }


def multiply(x: Tensor, by: float) -> Tensor:
    """by * x."""
    return by * x


def without_context(x: Tensor, context: AttentionContext) -> Tensor:
    """The same numbers: where there is no part."""
    return x


def without_gate(joined: Tensor, x: Stream) -> Tensor:
    """What the heads gathered, as it is."""
    return joined


def without_own_bias(x: Stream, context: AttentionContext) -> AttentionContext:
    """The context as it is."""
    return context


class PerHeadNorm(Block):
    """A norm over the features of each head, with weights of its own for each.

    Source: `StableLmLayerNormPerHead` and `CohereLayerNorm` of transformers.
    """

    def __init__(self, norm: Callable[..., nn.Module], n_heads: int, head_dim: int):
        super().__init__()
        self.heads = nn.ModuleList(norm(d_model=head_dim) for _ in range(n_heads))

    def forward(self, x: SomeHeads) -> SomeHeads:
        return torch.stack([norm(head) for norm, head in zip(self.heads, x.unbind(dim=1), strict=True)], dim=1)


class LogLength(Block):
    """s log(n) q, with a learned s for each head, n being the number of keys that the query may attend to.

    So the softmax of the scores becomes n^(s z_i) / sum over j of n^(s z_j), as sharp over many keys as over few; a bias
    of positions is added after it. s starts at 1. With n counted per query, what is decoded is what the whole sequence
    gives.

    Source: arXiv:2501.19399, eq. 2 (SSMax: z_i -> n^(s z_i) / sum of n^(s z_j), by a factor s log n on the queries).
    """

    vectors = Role.SCALAR

    def __init__(self, n_heads: int):
        super().__init__()
        self.s = nn.Parameter(torch.ones(n_heads))

    def forward(self, q: SomeHeads, context: AttentionContext) -> SomeHeads:
        wide = at_least_float32(q)
        log_n = context.n_attended[:, None, :, None].to(wide.dtype).log()
        return (wide * (at_least_float32(self.s).view(-1, 1, 1) * log_n)).type_as(q)


class QueryKeyFactors(Block):
    """s^2 q, which gives the same scores as s q and s k: a learned s for each head and feature (nGPT's s_qk), kept as `Factors`.

    s starts at 1. Acting on queries alone, it is defined too where several query heads share the keys of one.

    Source: arXiv:2410.01131, sec. 2.6, where s multiplies queries and keys.
    """

    def __init__(self, n_heads: int, head_dim: int, d_model: int):
        super().__init__()
        self.s = Factors(n_heads * head_dim, 1.0, stream_scale(None, d_model), torch.square)
        self.n_heads = n_heads

    def forward(self, q: SomeHeads) -> SomeHeads:
        return self.s.values().view(self.n_heads, 1, -1).type_as(q) * q


class Temperature(nn.Module):
    """(1 + scale * log(1 + floor((p + 1) / every))) q, p being how many tokens stand before the query.

    They are counted from where the sequence begins, or the query's document where the mask keeps documents apart. Up to
    position every - 2 the factor is 1.

    Source: transformers' `Llama4TextAttention` (attn_scale, floor_scale), which names arXiv:2501.19399.
    """

    def __init__(self, scale: float, every: int):
        super().__init__()
        self.scale, self.every = scale, every

    def forward(self, q: SomeHeads, context: AttentionContext) -> SomeHeads:
        steps = ((context.places + 1).float() / self.every).floor()
        factor = (steps.log1p() * self.scale + 1.0)[:, None, :, None]
        return (q * factor).type_as(q)

    @property
    def formula(self) -> str:
        """The factor, as a drawing has it."""
        return f"1 + {self.scale:g} ln(1 + ⌊(p + 1) / {self.every}⌋)"


class OutputGate(Block):
    """sigmoid(W x) times what the heads gathered, x being the mixer's input: a factor for each feature, or for each head.

    Source: arXiv:2505.06708, sec. 2.2, eq. 5, at G1, after the attention; `Qwen3NextAttention` of transformers.
    """

    def __init__(self, d_model: int, n_heads: int, per_head: int, bias: bool):
        super().__init__()
        self.n_heads = n_heads
        self.proj = nn.Linear(d_model, n_heads * per_head, bias=bias)

    def forward(self, joined: Float[Tensor, "batch seq width"], x: Stream) -> Float[Tensor, "batch seq width"]:
        gate = torch.sigmoid(self.proj(x)).unflatten(-1, (self.n_heads, -1))
        return (joined.unflatten(-1, (self.n_heads, -1)) * gate).flatten(-2)


class ForgetGate(Block):
    """Adds to the score of query i and key j the sum of log f_t over j < t <= i, f_t = sigmoid(w x_t + b) for each head.

    So a key fades by what each later token forgets. Between a query and a key ahead of it, where a mask lets it attend to
    one, it is the sum over i < t <= j, as ALiBi has the same bias on both sides. Sums are float32 or wider; log f is what is
    cached of a token.

    Source: arXiv:2503.02130 (Forgetting Attention); the authors' code, zhixuan-lin/forgetting-transformer,
    ops/forgetting_attention.py.
    """

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.proj = nn.Linear(d_model, n_heads)

    def forward(self, x: Stream, context: AttentionContext) -> AttentionContext:
        new = F.logsigmoid(at_least_float32(self.proj(x))).mT
        (before,) = context.decode_state(self, new[..., :0])
        log_f = torch.cat((before, new), dim=-1)
        context.keep(self, log_f)
        total = log_f.cumsum(dim=-1)

        def bias_of(block: QueryBlock) -> Tensor:
            of_queries, of_keys = block.pairs(total)
            return -(of_queries - of_keys).abs()

        return BiasedContext(context, bias_of)


def leave_values(v: SomeHeads, context: AttentionContext) -> SomeHeads:
    """The first layer's values, which are left for later layers."""
    context.shared[FIRST_VALUES] = v
    return v


class ValueResidual(Block):
    """l_1 v_1 + l_2 v, v_1 being the values of the first layer: its two factors are learned, and start at 0.5.

    Source: arXiv:2410.17897 (ResFormer with learned factors); eq. 7 of its first version and its released
    modeling_llama_resformer.py have 0.5 fixed.
    """

    vectors = Role.SCALAR

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, v: SomeHeads, context: AttentionContext) -> SomeHeads:
        of_first, own = self.factors.unbind()
        return (of_first * context.shared[FIRST_VALUES] + own * v).type_as(v)
