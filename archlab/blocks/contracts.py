"""What a decoder-only Transformer is made of, as seven kinds of block. Read this file first.

The axes, in the words every shape in this project is written with:

    batch       sequences side by side
    seq         positions of a sequence (query and key where attention needs two of them)
    heads       query heads; kv_heads are the key-value heads they share
    head_dim    width of one head
    d_model     width of the residual stream
    d_ff        hidden width of the feed-forward network
    vocab       token ids

The course of a forward pass: token embeddings enter the residual stream; each layer adds two branches to it,
attention and a feed-forward network; a `Residual` says where the norms sit around them; a `Position` tells the
model about order and a `Mask` who may read whom; a `Head` turns the stream into logits.

A block is a plain `torch.nn.Module`: it gets sizes and options by keyword and knows nothing of configuration
files. A concrete block is final: behaviour varies by giving a block another part, not by deriving from it.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Stream = Float[Tensor, "batch seq d_model"]
SomeHeads = Float[Tensor, "batch some_heads seq head_dim"]
Positions = Int[Tensor, "#batch *axes seq"]
Rotation = Float[Tensor, "#batch parts seq pairs"]
Queries = Int[Tensor, "#batch query 1"]
Keys = Int[Tensor, "#batch #query key"]
PrefixLen = Int[Tensor, "#batch 1 1"]
Readable = Bool[Tensor, "#batch query key"]


class Norm(nn.Module):
    """Rescales its input by statistics of it: (batch, seq, d_model) -> the same shape and dtype.

    Constructor: `d_model` and its own options. Statistics are taken in float32 whatever the input's dtype.
    `reduces` names the axes over which the statistics are taken.
    """

    reduces: tuple[str, ...] = ("d_model",)

    @property
    def sees_future(self) -> bool:
        """Whether a position's output depends on later positions, or on other sequences."""
        return bool({"batch", "seq"} & set(self.reduces))

    @abstractmethod
    def forward(self, x: Stream) -> Stream: ...


class FeedForward(nn.Module):
    """Transforms each position alone: (batch, seq, d_model) -> the same shape.

    Constructor: `d_model`, `d_ff` and its own options. `d_ff` is the hidden width as it is built: what a gated
    network gives up to have as many parameters as a plain one is settled outside, by the size (`size.d_ff=matched`).
    Under a residual scheme with `inner_norms` it is also given `inner_norm`, which makes a norm of a width for what
    `down_proj` reads.
    """

    gated: bool = False

    down_proj: nn.Linear
    """The projection back to the residual stream."""

    @abstractmethod
    def forward(self, x: Stream) -> Stream: ...


class Position(nn.Module):
    """Tells the model about order, at one or more of three places.

    Constructor: `d_model`, `n_heads`, `head_dim` and its own options. One instance serves the whole decoder, and `at`
    says which scheme serves a layer. Positions are the numbers a token carries, as the caller or `default_positions`
    gives them: (batch, seq) for a scheme of one axis, (batch, axes, seq) for one of several; batch may be 1. They are
    not a token's index in its sequence, which is what a `Mask` goes by. `limit` is None unless the scheme is a table
    of that many rows.
    """

    axes: int = 1
    """How many position numbers a token carries."""

    limit: int | None = None
    biases_scores: bool = False

    widens: bool = False
    """Whether turned queries and keys leave the range of float16, and so come in float32 where they were that."""

    uses_length: bool = False
    """Whether what a position means depends on how long the sequence is, so that keys kept in a cache grow stale."""

    starts_within: Mapping[str, tuple[float, float]] = {}
    """Weights of its own that start anywhere between two numbers, by their names; tables start as all tables do."""

    def at(self, depth: int) -> "Position":
        """The scheme of the layer at this depth, from 0; asked once, when the decoder is built."""
        return self

    def default_positions(self, index: Int[Tensor, "#batch seq"], prefix_len: Int[Tensor, " #batch"]) -> Positions:
        """The positions of tokens that were given none, by their index in the sequence."""
        return index

    def embed(self, x: Stream, positions: Positions) -> Stream:
        """Adds to the token embeddings."""
        return x

    def rotation(self, positions: Positions) -> Rotation:
        """What queries and keys at these positions are turned by, cosines and sines, float32; once for all layers."""
        return torch.empty(1, 2, positions.shape[-1], 0, device=positions.device)

    def rotate_queries(self, q: SomeHeads, rotation: Rotation) -> SomeHeads:
        """Turns queries."""
        return q

    def rotate_keys(self, k: SomeHeads, rotation: Rotation) -> SomeHeads:
        """Turns keys, which a cache then keeps as they are."""
        return k

    def bias(
        self, query: Int[Tensor, "#batch *axes query 1"], key: Int[Tensor, "#batch *axes 1 key"]
    ) -> Float[Tensor, "#batch #heads #query #key"]:
        """What is added to the scores, float32, as a function of the two positions and the head."""
        return torch.zeros(1, 1, 1, 1, device=query.device)


class Mask(nn.Module):
    """Says who may read whom.

    `may_read` is the one definition; kernels and the choice of targets follow from it. It goes by a token's index in
    its sequence, from 0 after any padding, whatever position the token carries.
    """

    causal: bool = False
    """The plain causal mask and nothing else, so a fused kernel may be told so instead of given a table."""

    bidirectional: bool = False
    """Every position reads every other, so nothing in the input is hidden from any of them."""

    uses_prefix: bool = False
    """Whether `may_read` depends on prefix_len."""

    def at(self, depth: int) -> "Mask":
        """The mask of the layer at this depth, from 0; asked once, when the decoder is built."""
        return self

    @abstractmethod
    def may_read(self, query: Queries, key: Keys, prefix_len: PrefixLen) -> Readable:
        """True where the query's index may read the key's; every query may read something, itself at least."""

    def reach(self, queries: slice, seq_len: int) -> slice:
        """A stretch of keys that holds all that these queries may read, so that a kernel can leave out the rest."""
        return slice(0, seq_len)

    def may_score(self, seq_len: int, prefix_len: Int[Tensor, " batch"]) -> Bool[Tensor, "batch seq"]:
        """True at each position whose target, the token after it, the position cannot already read."""
        query = torch.arange(seq_len, device=prefix_len.device).view(1, seq_len, 1)
        reads_its_target = self.may_read(query, query + 1, prefix_len.view(-1, 1, 1)) & (query + 1 < seq_len)
        return ~reads_its_target.squeeze(-1).expand(len(prefix_len), seq_len)


class Residual(nn.Module):
    """One layer's way of adding its branches to the residual stream, and where the norms sit.

    Constructor: `norm`, which makes a fresh norm of width d_model at each call, `n_layers`, and its own options.
    """

    branch_gain: float = 1.0
    """What the scheme multiplies the initial feed-forward, value and output projections by."""

    needs_final_norm: bool = True
    """False where the stream leaves the last layer normalised."""

    inner_norms: bool = False
    """Whether attention and the feed-forward network norm what they project back to the stream."""

    told_apart_by_norms: bool = False
    """Without norms this scheme would be x + f(x), no other than pre-norm without them."""

    @abstractmethod
    def forward(self, x: Stream, branches: Sequence[Callable[[Tensor], Tensor]]) -> Stream:
        """Adds the branches, attention first, to the stream."""


class Head(nn.Linear):
    """Turns the stream into logits: (batch, seq, d_model) -> (batch, seq, vocab).

    Constructor: `d_model`, `vocab_size`, `norm`, which makes a fresh norm of width d_model at each call, and its own
    options. It is a linear map for its table, `weight`, (vocab, d_model), which may be set to the embedding's.
    """

    @abstractmethod
    def forward(self, x: Stream) -> Float[Tensor, "batch seq vocab"]: ...
