"""What a decoder-only Transformer is made of, as seven kinds of block. Read this file first.

The axes, in the words every shape in this project is written with:

    batch       sequences side by side
    seq         positions of a sequence (query and key where attention needs two of them)
    heads       query heads; kv_heads are the key-value heads they share
    head_dim    width of one head
    d_model     width of the residual stream
    d_ff        hidden width of the feed-forward network
    vocab       token ids

The course of a forward pass: token embeddings enter the residual stream; each layer adds two branches to it, a
mixer (attention, or whatever else moves information between positions) and a feed-forward network; a `Residual` says
where the norms sit around them; a `Position` tells the model about order and a `Mask` who may attend to whom; a `Head`
turns the stream into logits.

A block is a plain `torch.nn.Module`: it gets sizes and options by keyword and knows nothing of configuration
files. A concrete block is final: behaviour varies by giving a block another part, not by deriving from it.

Nobody asks a block what kind it is. It answers for itself: `weights()` says what each weight is for, `saved_activations()` what it
keeps for the backward pass, `taps` what it lets be looked at, and a mixer what of positions, masks and caches it
honours. What it does not say is measured by running it (`archlab.cost.measure`).
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from archlab.blocks.activations import Accounting, Term
from archlab.blocks.roles import Role, Weight, is_named, usual_role
from archlab.blocks.steps import DrawnStep

Stream = Float[Tensor, "batch seq d_model"]
SomeHeads = Float[Tensor, "batch some_heads seq head_dim"]
Positions = Int[Tensor, "#batch *axes seq"]
Rotation = Float[Tensor, "#batch parts seq pairs"]
Queries = Int[Tensor, "#batch query 1"]
Keys = Int[Tensor, "#batch #query key"]
PrefixLen = Int[Tensor, "#batch 1 1"]
Attendable = Bool[Tensor, "#batch query key"]


class Block(nn.Module):
    """What every block answers. The defaults serve a block whose weights are in torch's own modules.

    The names below are those of its parts, or the ends of dotted ones: `down_proj` is also experts.0.down_proj.
    """

    to_stream: tuple[str, ...] = ()
    """The matrices whose output is added to the residual stream: the last of the branch."""

    gained: tuple[str, ...] = ()
    """The matrices whose initial values the residual scheme's own gain multiplies (DeepNorm's beta)."""

    roles: Mapping[str, Role] = {}
    """What weights are for where it is not the usual: a matrix that is a router, say."""

    vectors: Role = Role.GAIN
    """What weights of one axis are for, but for biases."""

    starts_within: Mapping[str, tuple[float, float]] = {}
    """Weights that start anywhere between two numbers, by their names."""

    def weights(self) -> Iterator[Weight]:
        """Every weight, each once, with its role; names are dotted, as torch's own."""
        yield from self._weights_in(self, "")

    def _weights_in(self, module: nn.Module, path: str) -> Iterator[Weight]:
        for name, tensor in module.named_parameters(recurse=False):
            yield self._weight(module, path + name, tensor)
        for name, child in module.named_children():
            if isinstance(child, Block):
                yield from (weight.within(path + name) for weight in child.weights())
            else:
                yield from self._weights_in(child, f"{path}{name}.")

    def _weight(self, module: nn.Module, name: str, tensor: nn.Parameter) -> Weight:
        to_stream, role = is_named(name, self.to_stream), usual_role(module, name, tensor)
        role = Role.TO_STREAM if to_stream and role is Role.HIDDEN else self.vectors if role is Role.GAIN else role
        role = next((given for part, given in self.roles.items() if is_named(name, (part,))), role)
        return Weight(
            name,
            tensor,
            role,
            branch_gain=is_named(name, self.gained),
            writes_to_stream=to_stream and tensor.ndim > 1,
            starts_within=self.starts_within.get(name),
        )

    def saved_activations(self, rules: Accounting) -> Iterable[Term] | None:
        """What it keeps for the backward pass, by a formula of its own; None: it is to be measured."""
        return None

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        return type(self).__name__


class Norm(Block):
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


class Mixer(Block):
    """Moves information between positions: (batch, seq, d_model) -> the same shape.

    Constructor: its own options, and by keyword whichever of these it takes: `d_model`, `n_heads`, `n_kv_heads`,
    `head_dim`, `kernel` (what computes softmax attention under the layer's position scheme and mask), `norm`, which
    makes a norm of the width it is given as `d_model`, and under a residual scheme with `inner_norms` `inner_norm`, which
    makes one for what is projected back to the stream.
    """

    to_stream = ("out_proj",)
    gained = ("v_proj", "out_proj")

    honours: frozenset[str] = frozenset()
    """What reaches it of a position scheme and a mask: `rotation` of queries and keys, a `bias` on scores, any `mask`.

    Without `mask` it is causal by nature and serves under mask=causal alone. What it does not honour is refused, so that
    no option is without effect.
    """

    taps: tuple[str, ...] = ()
    """What it lets be looked at, by name: `context.tap`. One without softmax scores has no attention_entropy."""

    decodes: bool = False
    """Whether it goes on from what it kept in the context: `context.held` and `context.hold`, or `with_cached`."""

    @staticmethod
    def default_kv_heads(n_heads: int) -> int:
        """How many key-value heads serve n_heads heads where the size does not say."""
        return n_heads

    @staticmethod
    def admits(n_heads: int, n_kv_heads: int) -> bool:
        """Whether so many key-value heads are still this kind of mixer."""
        return n_kv_heads == n_heads

    @abstractmethod
    def forward(self, x: Stream, context: Any) -> Stream:
        """`context` is an `archlab.blocks.context.AttentionContext`: who may attend to whom, where tokens stand, the cache, taps."""

    def for_packs(self) -> None:
        """From now on it computes by operations that `torch.vmap` has rules for, where it would by others."""

    def steps(self, position: "Position", mask: "Mask") -> Sequence[DrawnStep] | None:
        """What it does, for a drawing; None: what it does is observed."""
        return None


class FeedForward(Block):
    """Transforms each position alone: (batch, seq, d_model) -> the same shape.

    Constructor: `d_model`, `d_ff` and its own options. `d_ff` is the hidden width as it is built: what a gated
    network gives up to have as many parameters as a plain one is settled outside, by the size (`size.d_ff=matched`).
    Under a residual scheme with `inner_norms` it is also given `inner_norm`, which makes a norm of a width for what
    is projected back to the stream.
    """

    gated: bool = False
    """Whether it has three matrices of d_model x d_ff where a plain network has two."""

    to_stream = ("down_proj",)
    taps: tuple[str, ...] = ()
    """What it lets be looked at, by name."""

    @abstractmethod
    def forward(self, x: Stream) -> Stream:
        """A network that lets something be looked at, or adds to the loss as a router does, takes `taps` besides.

        That is an `archlab.blocks.taps.Taps`; outside a layer it is left out, so it has the default NOBODY_LOOKS.
        """

    def _weight(self, module: nn.Module, name: str, tensor: nn.Parameter) -> Weight:
        """All of its matrices but a router's have the residual scheme's gain."""
        weight = super()._weight(module, name, tensor)
        return replace(weight, branch_gain=weight.role in (Role.HIDDEN, Role.TO_STREAM, Role.EXPERT))


class Position(Block):
    """Tells the model about order, at one or more of three places.

    Constructor: `d_model`, `n_heads`, `head_dim` and its own options. One instance serves all layers that were given the
    same. Positions are the numbers a token carries, as the caller or `default_positions`
    gives them: (batch, seq) for a scheme of one axis, (batch, axes, seq) for one of several; batch may be 1. They are
    not a token's index in its sequence, which is what a `Mask` goes by. `limit` is None unless the scheme is a table
    of that many rows.
    """

    axes: int = 1
    """How many position numbers a token carries."""

    limit: int | None = None
    biases_scores: bool = False

    looks_ahead: bool = False
    """Whether it tells apart what lies ahead, which only a mask that lets something ahead be attended to can use."""

    vectors = Role.SCALAR

    widens: bool = False
    """Whether turned queries and keys leave the range of float16, and so come in float32 where they were that."""

    uses_length: bool = False
    """Whether what a position means depends on how long the sequence is, so that keys kept in a cache grow stale."""

    @property
    def embeds(self) -> bool:
        """Whether it adds to the token embeddings, which all layers share."""
        return type(self).embed is not Position.embed

    @property
    def rotates(self) -> bool:
        """Whether it rotates queries and keys."""
        return type(self).rotate_queries is not Position.rotate_queries

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


class Mask(Block):
    """Says who may read whom.

    `can_attend` is the one definition; kernels and the choice of targets follow from it. It goes by a token's index in
    its sequence, from 0 after any padding, whatever position the token carries.
    """

    causal: bool = False
    """The plain causal mask and nothing else, so a fused kernel may be told so instead of given a table."""

    bidirectional: bool = False
    """Every position reads every other, so nothing in the input is hidden from any of them."""

    uses_prefix: bool = False
    """Whether `can_attend` depends on prefix_len."""

    @abstractmethod
    def can_attend(self, query: Queries, key: Keys, prefix_len: PrefixLen) -> Attendable:
        """True where the query's index may read the key's; every query may read something, itself at least."""

    def reach(self, queries: slice, seq_len: int) -> slice:
        """A stretch of keys that holds all that these queries may read, so that a kernel can leave out the rest."""
        return slice(0, seq_len)

    def may_score(self, seq_len: int, prefix_len: Int[Tensor, " batch"]) -> Bool[Tensor, "batch seq"]:
        """True at each position whose target, the token after it, the position cannot already read."""
        query = torch.arange(seq_len, device=prefix_len.device).view(1, seq_len, 1)
        reads_its_target = self.can_attend(query, query + 1, prefix_len.view(-1, 1, 1)) & (query + 1 < seq_len)
        return ~reads_its_target.squeeze(-1).expand(len(prefix_len), seq_len)


class Residual(Block):
    """One layer's way of adding its branches to the residual stream, and where the norms sit.

    Constructor: `norm`, which makes a fresh norm of width d_model at each call, `n_layers`, and its own options.
    """

    branch_gain: float = 1.0
    """What the scheme multiplies the initial feed-forward, value and output projections by."""

    streams: int = 1
    """How many streams of width d_model run side by side, where `enter` makes several of one; all layers agree in it."""

    needs_final_norm: bool = True
    """False where the stream leaves the last layer normalised."""

    inner_norms: bool = False
    """Whether attention and the feed-forward network norm what they project back to the stream."""

    told_apart_by_norms: bool = False
    """Without norms this scheme would be x + f(x), no other than pre-norm without them."""

    def _weight(self, module: nn.Module, name: str, tensor: nn.Parameter) -> Weight:
        """What a scheme has beside its norms, such as a table that mixes streams, starts as it was made."""
        return replace(super()._weight(module, name, tensor), role=Role.SCALAR)

    def enter(self, x: Stream) -> Tensor:
        """From the embeddings to the stream that the layers pass on; asked of the first layer's scheme."""
        return x

    def leave(self, x: Tensor) -> Stream:
        """From that stream to what the head is given; asked of the last layer's scheme."""
        return x

    @abstractmethod
    def forward(self, x: Tensor, branches: Sequence[Callable[[Stream], Stream]]) -> Tensor:
        """Adds the branches, the mixer first, to the stream. Each branch takes and gives (batch, seq, d_model)."""


class Head(Block, nn.Linear):
    """Turns the stream into logits: (batch, seq, d_model) -> (batch, seq, vocab).

    Constructor: `d_model`, `vocab_size`, `norm`, which makes a fresh norm of width d_model at each call, and its own
    options. It is a linear map for its table, `weight`, (vocab, d_model), which may be set to the embedding's.
    """

    roles = {"weight": Role.HEAD}

    @abstractmethod
    def forward(self, x: Stream) -> Float[Tensor, "batch seq vocab"]: ...
