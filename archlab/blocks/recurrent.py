"""What recurrent mixers are made of: a state that each token decays and adds to, computed in parallel by chunks.

A mixer of this kind keeps a matrix for each head, (key_dim, value_dim), in the place of keys and values:

    gated sum      S_t = a_t S_(t-1) + k_t v_t^T                              o_t = q_t S_t
    delta rule     S_t = a_t (I - b_t k_t k_t^T) S_(t-1) + b_t k_t v_t^T      o_t = q_t S_t

with a decay a_t from 0 to 1 and a strength b_t. Token by token that is a loop over the whole sequence. Here the products
within a chunk are matrix products, as attention's are, and only the state at the end of each chunk is handed on in a
loop. One token is a chunk of one, so that decoding needs no other code. Decays are given by their logarithms and summed, never
subtracted: a decay of 0 has the logarithm -inf, and -inf - -inf is not a number.

Everything is float32 or wider. Source: arXiv:2405.21060, sec. 6 and listing 1 (chunks of a gated sum); arXiv:2406.06484, sec. 3
(chunks of the delta rule); arXiv:2412.06464, sec. 3 (with decays).
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Mask, Mixer, Position, Stream
from archlab.blocks.norm import MakeWidthNorm
from archlab.blocks.precision import at_least_float32
from archlab.blocks.steps import DrawnStep

CHUNK = 64
"""Tokens that are taken together; a shorter sequence is one chunk."""

Keys = Float[Tensor, "batch key_heads seq key_dim"]
Values = Float[Tensor, "batch heads seq value_dim"]
OfTokens = Float[Tensor, "#batch heads seq"]
State = Float[Tensor, "batch heads key_dim value_dim"]


class Decays(NamedTuple):
    """How much is left, at one place of a chunk, of what stood at another."""

    within: Float[Tensor, "*of_chunks query key"]
    """Of a key at a query: the product of the decays after the key, up to the query's own; 0 at later keys."""

    from_start: Float[Tensor, "*of_chunks chunk 1"]
    """Of the state before the chunk, at each token."""

    to_end: Float[Tensor, "*of_chunks chunk 1"]
    """Of each token, after the chunk."""

    whole: Float[Tensor, "*of_chunks 1 1"]
    """Of the state before the chunk, after it."""


def decays_of(log_decay: Float[Tensor, "*of_chunks chunk 1"]) -> Decays:
    """The products of a chunk's decays, from their logarithms."""
    after_each_key = log_decay.expand(*log_decay.shape[:-1], log_decay.shape[-2]).tril(-1)
    within = after_each_key.cumsum(dim=-2).exp().tril()
    from_start = log_decay.cumsum(dim=-2).exp()
    return Decays(within, from_start, within[..., -1:, :].mT, from_start[..., -1:, :])


def in_chunks(x: Float[Tensor, "batch heads seq dim"], key_heads: int, chunk: int) -> Tensor:
    """(batch, heads, seq, dim) -> (batch, key_heads, share, chunks, chunk, dim), zeros after the last token.

    `share` heads have the same keys.
    """
    whole = F.pad(x, (0, 0, 0, -x.shape[2] % chunk))
    return rearrange(whole, "b (k share) (n chunk) d -> b k share n chunk d", k=key_heads, chunk=chunk)


def out_of_chunks(x: Tensor, seq_len: int) -> Values:
    """Undoes `in_chunks`."""
    return rearrange(x, "b k share n chunk d -> b (k share) (n chunk) d")[:, :, :seq_len]


# Keys and queries are the same for all heads of a share; by einsum they are not copied for each of these.


def summed(k: Float[Tensor, "b k 1 *n chunk i"], v: Float[Tensor, "b k share *n chunk j"]) -> Tensor:
    """The sums of k v^T over each chunk, (b, k, share, *n, i, j)."""
    return torch.einsum("bk...ci,bks...cj->bks...ij", k[:, :, 0], v)


def read(q: Float[Tensor, "b k 1 *n chunk i"], s: Float[Tensor, "b k share *n i j"]) -> Tensor:
    """The products q s of each chunk, (b, k, share, *n, chunk, j)."""
    return torch.einsum("bk...ci,bks...ij->bks...cj", q[:, :, 0], s)


def gated_sum(
    q: Keys, k: Keys, v: Values, log_decay: OfTokens, state: State, chunk: int = CHUNK
) -> tuple[Values, State]:
    """o_t = q_t S_t with S_t = a_t S_(t-1) + k_t v_t^T, and the last S; `log_decay` is log a_t, from -inf to 0.

    Heads are shares of key heads, as many as fit. Source: arXiv:2405.21060, listing 1, with the states of the chunks in a loop.
    """
    seq_len, key_heads = q.shape[2], q.shape[1]
    chunk = min(chunk, seq_len)
    q, k, v = (in_chunks(x, key_heads, chunk) for x in (q, k, v))
    decays = decays_of(in_chunks(log_decay[..., None], key_heads, chunk))
    added = summed(k, decays.to_end * v)
    s, before = rearrange(state, "b (k share) i j -> b k share i j", k=key_heads), []
    for n, whole in enumerate(decays.whole.unbind(dim=3)):
        before.append(s)
        s = whole * s + added[:, :, :, n]
    out = ((q @ k.mT) * decays.within) @ v + decays.from_start * read(q, torch.stack(before, dim=3))
    return out_of_chunks(out, seq_len), rearrange(s, "b k share i j -> b (k share) i j")


def delta_rule(
    q: Keys, k: Keys, v: Values, beta: OfTokens, log_decay: OfTokens, state: State, chunk: int = CHUNK
) -> tuple[Values, State]:
    """o_t = q_t S_t with S_t = a_t (I - b_t k_t k_t^T) S_(t-1) + b_t k_t v_t^T, and the last S; `beta` is b_t.

    What a token adds depends on what the tokens before it in the chunk added: (I + A) new = b (v - (decays from the
    start) k S), with A = b k k^T (decays) below the diagonal, is solved for all tokens of a chunk at once.
    The scores q k^T are multiplied by the decays too, where the last formula of the paper's sec. 3 writes the causal mask;
    its released code has the decays. Source: arXiv:2412.06464, sec. 3; arXiv:2406.06484, sec. 3, without decays.
    """
    seq_len, key_heads = q.shape[2], q.shape[1]
    chunk = min(chunk, seq_len)
    q, k, v = (in_chunks(x, key_heads, chunk) for x in (q, k, v))
    beta, log_decay = (in_chunks(x[..., None], key_heads, chunk) for x in (beta, log_decay))
    decays = decays_of(log_decay)
    system = beta * (k @ k.mT) * decays.within
    wanted = torch.cat((beta * v, beta * decays.from_start * k), dim=-1)
    solved = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    values, keys = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    s, before, new = rearrange(state, "b (k share) i j -> b k share i j", k=key_heads), [], []
    for n, whole in enumerate(decays.whole.unbind(dim=3)):
        before.append(s)
        new.append(values[:, :, :, n] - keys[:, :, :, n] @ s)
        s = whole * s + summed(k[:, :, :, n], decays.to_end[:, :, :, n] * new[-1])
    out = ((q @ k.mT) * decays.within) @ torch.stack(new, dim=3)
    out = out + decays.from_start * read(q, torch.stack(before, dim=3))
    return out_of_chunks(out, seq_len), rearrange(s, "b k share i j -> b (k share) i j")


class Recurrence(NamedTuple):
    """What computes the sums of a recurrent mixer, chosen when the model is built.

    Both take what `gated_sum` and `delta_rule` here take, float32 or wider, and last the dtype that the run's matrix products
    have, and return what these return, as wide as they were given.
    """

    gated_sum: Callable[[Keys, Keys, Values, OfTokens, State, torch.dtype], tuple[Values, State]]
    delta_rule: Callable[[Keys, Keys, Values, OfTokens, OfTokens, State, torch.dtype], tuple[Values, State]]

    most_key_dim: float = math.inf
    """Features of a key that the delta rule is asked for with at most; a mixer with more is refused."""


CHUNKED = Recurrence(
    lambda q, k, v, log_decay, state, products: gated_sum(q, k, v, log_decay, state),
    lambda q, k, v, beta, log_decay, state, products: delta_rule(q, k, v, beta, log_decay, state),
)
"""By chunks of torch's operations, whose products are as wide as what they are given, whatever the run's are."""


def heads_of(x: Float[Tensor, "batch seq width"], n_heads: int) -> Float[Tensor, "batch heads seq dim"]:
    """(batch, seq, heads * dim) -> (batch, heads, seq, dim)."""
    return rearrange(x, "batch seq (heads dim) -> batch heads seq dim", heads=n_heads)


def joined(x: Float[Tensor, "batch heads seq dim"]) -> Float[Tensor, "batch seq width"]:
    """Undoes `heads_of`."""
    return rearrange(x, "batch heads seq dim -> batch seq (heads dim)")


def of_heads(x: Float[Tensor, "batch seq heads"]) -> Float[Tensor, "batch heads seq"]:
    """One number for each head and token, float32 or wider.

    Copied before anything is done to it: torch 2.13 traces the gradient of a softplus, where what it is given and the gradient lie
    differently in memory, with other strides than it has.
    """
    return at_least_float32(x).mT.contiguous()


def unit(x: Float[Tensor, "*batch dim"], eps: float = 1e-6) -> Float[Tensor, "*batch dim"]:
    """x / sqrt(sum(x^2) + eps), as flash-linear-attention's l2norm has it."""
    return x * (x.square().sum(dim=-1, keepdim=True) + eps).rsqrt()


def softplus_inverse(x: Tensor) -> Tensor:
    """log(exp(x) - 1), of small x as well."""
    return x + (-(-x).expm1()).log()


def bias_of_step(log_step: Tensor) -> Tensor:
    """The bias with which a softplus gives these steps, from their logarithms."""
    return softplus_inverse(log_step.exp())


LOG_STEPS = (-6.907755278982137, -2.302585092994046)
"""log 0.001 and log 0.1: between them the logarithms of Mamba's steps start. Source: mamba_ssm's and Hugging Face's mamba2."""


class Recurrent(Mixer):
    """A mixer whose state is as large however long the sequence is. Causal by nature, without scores.

    `inner_norm` and `dropout` are as attention has them: before and after `out_proj`. `recurrence` computes its sums, where
    it has any.
    """

    honours = frozenset({"padding"})
    decodes = True
    chunk = CHUNK

    def __init__(
        self,
        width: int,
        d_model: int,
        bias: bool,
        dropout: float,
        inner_norm: MakeWidthNorm,
        recurrence: Recurrence = CHUNKED,
    ):
        super().__init__()
        self.recurrence = recurrence
        self.inner_norm = inner_norm(d_model=width)
        self.out_proj = nn.Linear(width, d_model, bias=bias)
        self.out_dropout = nn.Dropout(dropout)

    def forward(self, x: Stream, context: AttentionContext) -> Stream:
        mixed = self.mix(context.without_padding(x), context)
        return self.out_dropout(self.out_proj(self.inner_norm(mixed.type_as(x))))

    def for_packs(self) -> None:
        """Computes by torch's operations alone."""
        self.recurrence = CHUNKED

    def steps(self, position: Position, mask: Mask) -> Sequence[DrawnStep]:
        """What it says of itself, and then the way back to the stream."""
        steps = list(self.drawn(position))
        for part in ("inner_norm", "out_proj", "out_dropout"):
            steps.append(DrawnStep("part", part, path=part, reads=(len(steps),)))
        return steps

    @abstractmethod
    def drawn(self, position: Position) -> Iterator[DrawnStep]:
        """The steps before `inner_norm`, the last of which that reads."""

    @abstractmethod
    def mix(self, x: Stream, context: AttentionContext) -> Float[Tensor, "batch seq width"]:
        """What `out_proj` projects, of an input that is zero at padding."""


def drawn_part(name: str, *reads: int) -> DrawnStep:
    """A part of the mixer's, in a drawing; without `reads`, of its input."""
    return DrawnStep("part", name, path=name, reads=reads or (0,))


def drawn_op(label: str, *reads: int) -> DrawnStep:
    """What is computed of earlier steps, in a drawing."""
    return DrawnStep("op", label, reads=reads)


def look_at_state(state: State) -> Mapping[str, Tensor]:
    """The root mean square of the state after the last token."""
    return {"state_rms": state.square().mean().sqrt()}


def look_at_decay(log_decay: OfTokens) -> Mapping[str, Tensor]:
    """The mean share of a state that a token leaves."""
    return {"mean_decay": log_decay.exp().mean()}
