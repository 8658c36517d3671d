"""The seven kinds of block that a decoder-only Transformer is made of. Read this file first.

They are `Norm`, `Mixer`, `FeedForward`, `Position`, `Mask`, `Residual` and `Head`.

The axes, in the words every shape in this project is written with:

    batch       sequences side by side
    seq         tokens of a sequence (query and key where attention needs two such axes)
    heads       query heads; kv_heads are the key-value heads they share
    head_dim    width of one head
    d_model     width of the residual stream
    d_ff        hidden width of the feed-forward network
    vocab       token ids

The course of a forward pass: token embeddings enter the residual stream; each layer adds two branches to it, a
mixer (attention, or whatever else moves information between positions) and a feed-forward network; a `Residual` says
where the norms sit around them; a `Position` gives the model the order of the tokens, a `Mask` says which keys each query may attend to, and a
`Head` computes logits from the stream.

A block is a plain `torch.nn.Module`: it gets sizes and options by keyword and knows nothing of configuration
files. A concrete block is final: to change what it does, give it another part, such as another norm or activation,
instead of writing a subclass of it.

No code asks which class a block is of. A block describes itself: `weights()` says what each weight is for,
`saved_activations()` what it keeps for the backward pass, `taps` which quantities can be recorded, and a mixer's
`honours` and `decodes` whether positions, masks and caches have an effect on it. What a block does not say is measured
by running it (`archlab.cost.measure`).
"""

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
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
Queries = Int[Tensor, "#batch query 1"] | Int[Tensor, ""]
Keys = Int[Tensor, "#batch #query key"] | Int[Tensor, ""]
PrefixLen = Int[Tensor, "#batch 1 1"] | Int[Tensor, ""]
DocumentStart = Int[Tensor, "#batch #query 1"] | Int[Tensor, ""]
"""Of each query: the index of the first token of its document, where a sequence holds several."""

Attendable = Bool[Tensor, "#batch query key"] | Bool[Tensor, ""]
"""A table's, or those of one query and one key."""

Heads = Int[Tensor, "#heads 1 1"] | Int[Tensor, ""]
QueryOfHeads = Int[Tensor, "#batch 1 query 1"] | Int[Tensor, ""]
KeyOfHeads = Int[Tensor, "#batch 1 1 key"] | Int[Tensor, ""]
BiasOfPairs = Float[Tensor, "#batch heads query key"] | Float[Tensor, ""]
"""The same of a bias, which heads have one each of."""


class Block(nn.Module):
    """What every block says of itself. The defaults are right for a block whose weights are in torch's own modules.

    The names below are those of its parts, or the ends of dotted names: `down_proj` is also experts.0.down_proj.
    """

    to_stream: tuple[str, ...] = ()
    """The matrices whose output is added to the residual stream: the last ones of the branch."""

    gained: tuple[str, ...] = ()
    """The matrices whose initial values the residual scheme's own gain multiplies (DeepNorm's beta)."""

    roles: Mapping[str, Role] = {}
    """What weights are for where `usual_role` would say something else: a matrix that is a router, say."""

    vectors: Role = Role.GAIN
    """What weights of one axis are for, other than biases."""

    starts_within: Mapping[str, tuple[float, float]] = {}
    """By name, the two numbers between which a weight's initial values are drawn evenly."""

    starts_through: Mapping[str, Callable[[Tensor], Tensor]] = {}
    """By name, the function that these draws go through, where the values themselves are not even: a logarithm, say."""

    inputs_grow: Mapping[str, bool] = {}
    """By name, whether a weight sums over more numbers in a wider model, where that is not so of its role: a latent is as wide."""

    chunk: int = 1
    """Tokens that it takes together: what it keeps for the backward pass grows evenly by so many."""

    @property
    def sees_future(self) -> bool:
        """Whether what it computes at a position depends on later positions, or on other sequences."""
        return False

    @property
    def uses_length(self) -> bool:
        """Whether what it computes at a position depends on how many tokens the whole sequence has."""
        return False

    def weights(self) -> Iterator[Weight]:
        """Every weight once, with its role; names are dotted, as in torch."""
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
            starts_through=self.starts_through.get(name),
            input_grows=next((given for part, given in self.inputs_grow.items() if is_named(name, (part,))), None),
        )

    def saved_activations(self, rules: Accounting) -> Iterable[Term] | None:
        """What it keeps for the backward pass, in bytes by a formula of its own; None where it has to be measured."""
        return None

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        return type(self).__name__


class Norm(Block):
    """Rescales its input by statistics of that input: (batch, seq, d_model) -> the same shape and dtype.

    Constructor: `d_model` and its own options. Statistics are taken in float32 whatever the input's dtype.
    `reduces` names the axes over which the statistics are taken.
    """

    reduces: tuple[str, ...] = ("d_model",)

    acts: bool = True
    """Whether it changes anything; one that takes no statistics may."""

    @property
    def sees_future(self) -> bool:
        """Whether a position's output depends on later positions, or on other sequences."""
        return bool({"batch", "seq"} & set(self.reduces))

    @abstractmethod
    def forward(self, x: Stream) -> Stream:
        """The normed input."""


class Mixer(Block):
    """Moves information between positions: (batch, seq, d_model) -> the same shape.

    Constructor: its own options, and by keyword those of the following that it has a parameter for.

    d_model, n_heads, n_kv_heads, head_dim
                sizes
    kernel      computes softmax attention under the layer's position scheme and mask
    capped_kernel
                makes one for soft-capped scores, of the function that soft-caps them
    packed_kernel
                computes the same as `kernel` under `torch.vmap`, which has no rule for some of torch's kernels
    weighing_kernel
                makes one for scores or weights that no fused kernel computes, of that function, of what makes weights of
                scores, and of the option that asks for it, as in mixer.sinks=true
    recurrence  computes the sums of a recurrent mixer, an `archlab.blocks.recurrent.Recurrence`
    depth       which layer it is in, counted from 0; of a looped layer, at its first application
    norm        makes a norm of the width that it is given as `d_model`
    inner_norm  under a residual scheme with `inner_norms`: makes a norm of what is projected back to the stream
    """

    to_stream = ("out_proj",)
    gained = ("v_proj", "out_proj")

    honours: frozenset[str] = frozenset()
    """Which of these have an effect on it: `rotation` of queries and keys, a `bias` on scores, any `mask`.

    A mixer without `mask` is causal by nature and works under mask=causal alone. A model that asks for what its mixer
    does not honour is refused, so that no option is without effect.
    """

    taps: tuple[str, ...] = ()
    """Which quantities can be recorded, by name: `context.tap`. Without softmax scores there is no attention_entropy."""

    on_request: tuple[str, ...] = ()
    """Which more can be recorded where somebody asks for them by name, and not with every look at a layer."""

    decodes: bool = False
    """Whether it can decode token by token, by `context.decode_state` and `context.keep`, or by `context.with_cached`."""

    gives: Mapping[str, tuple[int, ...]] = {}
    """What it leaves in `context.shared` for later layers, by name, with the sizes that have to agree."""

    needs: Mapping[str, tuple[int, ...]] = {}
    """What an earlier layer has to leave there for it."""

    @staticmethod
    def default_kv_heads(n_heads: int) -> int:
        """How many key-value heads n_heads query heads have where the size does not say."""
        return n_heads

    @staticmethod
    def admits(n_heads: int, n_kv_heads: int) -> bool:
        """Whether this kind of mixer may have so many key-value heads."""
        return n_kv_heads == n_heads

    @abstractmethod
    def forward(self, x: Stream, context: Any) -> Stream:
        """`context` is an `archlab.blocks.context.AttentionContext`: the mask, positions, the cache and taps."""

    def for_packs(self) -> None:
        """From now on it computes only by operations that `torch.vmap` has rules for."""

    def steps(self, position: "Position", mask: "Mask") -> Sequence[DrawnStep] | None:
        """What it does, step by step, for a drawing; None where its calls are to be traced instead."""
        return None


class FeedForward(Block):
    """Transforms each position alone: (batch, seq, d_model) -> the same shape.

    Constructor: `d_model`, `d_ff` and its own options. `d_ff` is the hidden width that is built. A
    gated network that should have as many parameters as a plain one needs a smaller width, which the size computes
    (`size.d_ff=matched`), not the block. Under a residual scheme with `inner_norms` it is also given `inner_norm`, which
    makes a norm of what is projected back to the stream.
    """

    gated: bool = False
    """Whether it has three matrices of d_model x d_ff where a plain network has two."""

    acts: bool = True
    """Whether there is a network; where there is none, the mixer is the layer's one branch, and d_ff is without effect."""

    to_stream: tuple[str, ...] = ("down_proj",)
    taps: tuple[str, ...] = ()
    """Which quantities can be recorded, by name."""

    @abstractmethod
    def forward(self, x: Stream) -> Stream:
        """A network with `taps`, or one that adds to the loss as a router does, has a second parameter, `taps`.

        A layer gives it an `archlab.blocks.taps.Taps`. Outside a layer it is left out, so its default is NOBODY_LOOKS.
        """

    def steps(self) -> Sequence[DrawnStep] | None:
        """What it does, step by step, for a drawing; None where its calls are to be traced instead."""
        return None

    @classmethod
    def has_gate(cls, options: Mapping[str, Any]) -> bool:
        """Whether it is gated with these options; `gated` says it for all of them where none makes a difference."""
        return cls.gated

    def after_step(self, counted: Mapping[str, Tensor]) -> None:
        """Called after each step of training, with the sums of what it handed out by `taps.count` in the step.

        It may change its own buffers, in place, as one that evens out the load of experts does. It must not wait for the
        device. A buffer that is so changed is saved, so that a run goes on from it.
        """

    def _weight(self, module: nn.Module, name: str, tensor: nn.Parameter) -> Weight:
        """The residual scheme's gain multiplies all of its matrices but a router's."""
        weight = super()._weight(module, name, tensor)
        return replace(weight, branch_gain=weight.role in (Role.HIDDEN, Role.TO_STREAM, Role.EXPERT))


class Position(Block):
    """Gives the model the order of the tokens, in one or more of three ways.

    embed                         adds to the token embeddings
    rotate_queries, rotate_keys   rotate queries and keys
    bias                          is added to the scores

    Constructor: `d_model`, `n_heads`, `head_dim` and its own options. Layers that were given the same scheme share one
    instance. Positions are numbers that each token has, from the caller or from `default_positions`: (batch, seq) for a
    scheme of one axis, (batch, axes, seq) for one of several; batch may be 1. They need not be the token's index in its
    sequence, which is what a `Mask` goes by. `limit` is None unless the scheme is a table of that many rows.
    """

    axes: int = 1
    """How many position numbers a token has."""

    limit: int | None = None
    biases_scores: bool = False

    pointwise: bool = False
    """Whether `score` says what its bias is, for one query and one key alone."""

    looks_ahead: bool = False
    """Whether its bias distinguishes keys ahead of the query; without effect unless the mask lets these be attended to."""

    vectors = Role.SCALAR

    widens: bool = False
    """Whether rotated queries and keys leave the range of float16, and so are float32 in a float16 model."""

    uses_length: bool = False
    """Whether the rotation depends on how long the sequence is, so that cached keys are wrong once it is longer."""

    def goes_by_distance(self, seq_len: int) -> bool:
        """Whether, in sequences of this length, it changes nothing but rounding to move all positions by one number."""
        return False

    @property
    def embeds(self) -> bool:
        """Whether it adds to the token embeddings, which all layers share."""
        return type(self).embed is not Position.embed

    @property
    def rotates(self) -> bool:
        """Whether it rotates queries and keys."""
        return "rotation" in self.acts_by()

    @classmethod
    def acts_by(cls) -> frozenset[str]:
        """What a mixer must honour for the scheme to act on it, in the words of `Mixer.honours`."""
        rotates = {"rotation"} if cls.rotate_queries is not Position.rotate_queries else set[str]()
        return frozenset(rotates | ({"bias"} if cls.biases_scores else set()))

    def default_positions(self, index: Int[Tensor, "#batch seq"], prefix_len: Int[Tensor, " #batch"]) -> Positions:
        """The positions of tokens that were given none, from their index in the sequence."""
        return index

    def embed(self, x: Stream, positions: Positions) -> Stream:
        """The token embeddings, with what the scheme adds to them."""
        return x

    def rotation(self, positions: Positions) -> Rotation:
        """Cosines and sines by which queries and keys at these positions are rotated, float32; once for all layers."""
        return torch.empty(1, 2, positions.shape[-1], 0, device=positions.device)

    def rotate_queries(self, q: SomeHeads, rotation: Rotation) -> SomeHeads:
        """Queries, rotated."""
        return q

    def rotate_keys(self, k: SomeHeads, rotation: Rotation) -> SomeHeads:
        """Keys, rotated; they are cached so."""
        return k

    def bias(
        self, query: Int[Tensor, "#batch *axes query 1"], key: Int[Tensor, "#batch *axes 1 key"]
    ) -> Float[Tensor, "#batch #heads #query #key"]:
        """What is added to the scores, float32: a function of the query's position, the key's and the head."""
        return torch.zeros(1, 1, 1, 1, device=query.device)

    def bias_tables(self, device: torch.device) -> tuple[Float[Tensor, "rows *columns"], ...]:
        """What `score` looks numbers up in, float32 and contiguous; learned ones with their gradient."""
        return ()

    def score(self, tables: Sequence[Tensor], head: Heads, query: QueryOfHeads, key: KeyOfHeads) -> BiasOfPairs:
        """The bias of a `pointwise` scheme, by elementwise operations and look-ups in `tables` alone.

        `head` is an index, `query` and `key` are positions. Kernels that keep no table of pairs ask for one number at a time.
        """
        raise NotImplementedError(f"{type(self).__name__} has no bias for one pair alone")


class Mask(Block):
    """Says which keys each query may attend to.

    `can_attend` is the one definition: kernels and the choice of scored targets follow from it. It goes by a token's
    index in its sequence, counted from 0 after any padding, and not by the token's position numbers.
    """

    causal: bool = False
    """Whether it is the plain causal mask and nothing else, for which a fused kernel needs no table."""

    bidirectional: bool = False
    """Whether every position attends to every position, so that no key is masked."""

    uses_prefix: bool = False
    """Whether `can_attend` depends on prefix_len."""

    uses_documents: bool = False
    """Whether a query attends to keys of its own document alone, where a sequence holds several documents."""

    resets_positions: bool = False
    """Whether `counted` is a token's place in its document, and not its index."""

    @property
    def sees_future(self) -> bool:
        return self.bidirectional or self.uses_prefix

    @abstractmethod
    def can_attend(self, query: Queries, key: Keys, prefix_len: PrefixLen) -> Attendable:
        """True where the query may attend to the key, by their indices; each query may attend at least to itself."""

    def can_attend_within(
        self, query: Queries, key: Keys, prefix_len: PrefixLen, document_start: DocumentStart
    ) -> Attendable:
        """The same where a sequence holds several documents; another answer under a mask that `uses_documents` alone.

        Documents follow each other, so a key is of the query's document where it stands between the document's start and
        the query. With one document a sequence, which starts at 0, it is `can_attend`.
        """
        return self.can_attend(query, key, prefix_len)

    def counted(
        self, index: Int[Tensor, "#batch seq"], document_start: Int[Tensor, "#batch #seq"]
    ) -> Int[Tensor, "#batch seq"]:
        """What a position scheme's own positions are made of: a token's index, or its place in its document."""
        return index

    def reach(self, queries: slice, seq_len: int) -> slice:
        """A range of keys that includes all that these queries may attend to; a kernel can leave out the others.

        Queries and keys are counted with any padding, so that indices are smaller than these by any number.
        """
        return slice(0, seq_len)

    def may_score(self, seq_len: int, prefix_len: Int[Tensor, " batch"]) -> Bool[Tensor, "batch seq"]:
        """True at each position that cannot attend to its own target, the token after it."""
        query = torch.arange(seq_len, device=prefix_len.device).view(1, seq_len, 1)
        sees_its_target = self.can_attend(query, query + 1, prefix_len.view(-1, 1, 1)) & (query + 1 < seq_len)
        return ~sees_its_target.squeeze(-1).expand(len(prefix_len), seq_len)


class Residual(Block):
    """One layer's way of adding its branches to the residual stream, and where the norms sit.

    Constructor: `norm`, which makes a fresh norm of width d_model at each call, `n_layers`, its own options, and by keyword
    those of the following that it has a parameter for. `n_layers` counts a looped layer as often as it is applied.

    layer       the layer's number, counted from 0; with this parameter it is refused in a loop, where a layer has several
    d_model     the width of a stream
    branches    how many branches the layer has: two, or the mixer alone; a scheme without this parameter joins two
    """

    variant: Hashable = None
    """What sets it apart from the same scheme with the same options in other layers, as a drawing should show it."""

    branch_gain: float = 1.0
    """The factor on the initial weights of the feed-forward, value and output projections."""

    output_gain: float = 1.0
    """The factor on the initial weights of the matrices that write to the stream."""

    streams: int = 1
    """How many streams of width d_model run side by side, where `enter` makes several of one; the same in all layers."""

    needs_final_norm: bool = True
    """Whether the model needs a norm after its last layer; False where the scheme's own norm ends the layer."""

    inner_norms: bool = False
    """Whether the mixer and the feed-forward network norm what they project back to the stream."""

    drops_zero_branches: bool = False
    """Whether no gradient reaches branches whose outputs are all zero, so that they must not start so."""

    told_apart_by_norms: bool = False
    """Whether its norms are all that distinguishes it from pre-norm: without norms (norm=none) both are x + f(x)."""

    def _weight(self, module: nn.Module, name: str, tensor: nn.Parameter) -> Weight:
        """What a scheme has besides its norms, such as a table that mixes streams, keeps its initial values."""
        return replace(super()._weight(module, name, tensor), role=Role.SCALAR)

    def enter(self, x: Stream) -> Tensor:
        """The stream that the layers pass on, made of the embeddings; called on the first layer's scheme."""
        return x

    def leave(self, x: Tensor) -> Stream:
        """What the head is given, made of that stream; called on the last layer's scheme."""
        return x

    @abstractmethod
    def forward(self, x: Tensor, branches: Sequence[Callable[[Stream], Stream]]) -> Tensor:
        """Adds the branches, the mixer first, to the stream. Each branch takes and gives (batch, seq, d_model).

        In a layer without a feed-forward network the mixer is the one branch.
        """


class Head(Block, nn.Linear):
    """Computes logits from the stream: (batch, seq, d_model) -> (batch, seq, vocab).

    Constructor: `d_model`, `vocab_size`, `norm`, which makes a fresh norm of width d_model at each call, and its own
    options. It is a `torch.nn.Linear` for the sake of its table, `weight`, (vocab, d_model), which a tied model
    shares with the embedding.
    """

    roles = {"weight": Role.HEAD}

    @abstractmethod
    def forward(self, x: Stream) -> Float[Tensor, "batch seq vocab"]:
        """Logits of the token after each position."""
