"""Which keys each query may attend to in one forward pass, and with what bias: what the kernels are given.

An `AttentionContext` asks the mask and the position scheme about one block of queries at a time, so that no kernel needs
a table of seq x seq entries for a long sequence.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from archlab.blocks.cache import Cache
from archlab.blocks.contracts import Mask, Position, SomeHeads, Stream
from archlab.blocks.taps import NOBODY_LOOKS, Taps
from archlab.blocks.token_positions import TokenPositions

QUERY_BLOCK = 512
"""Queries in one block; a sequence no longer than this is one block."""

ALIGNED = 16
"""Entries: fused attention on CUDA takes a table as it is where its rows are this many, or a multiple of it, apart."""


def aligned(table: Float[Tensor, "*rows key"]) -> Float[Tensor, "*rows key"]:
    """The same numbers, keys next to each other in memory and rows a multiple of ALIGNED apart.

    Fused attention on CUDA copies a table whose rows are not so far apart, in each layer, and refuses one whose keys do
    not follow each other, as where the heads are last in memory. Source: torch 2.13's sdp_utils.cpp and attention.cpp.
    """
    n_keys, table = table.shape[-1], table.contiguous()
    missing = -n_keys % ALIGNED
    return F.pad(table, (0, missing))[..., :n_keys] if missing else table  # a pad of nothing would copy it


class computed_once:  # noqa: N801 (a decorator)
    """A property computed once; functools' own holds a lock before Python 3.12, which torch.compile cannot follow."""

    def __init__(self, compute: Callable[[Any], Tensor]):
        self.compute = compute

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Tensor:
        value = self.compute(instance)
        setattr(instance, self.name, value)
        return value


class AttentionContext:
    """What all layers of one position scheme and mask share in one forward pass: positions, mask, bias, cache."""

    def __init__(
        self,
        position: Position,
        mask: Mask,
        token_positions: TokenPositions,
        cache: Cache | None = None,
        shared: dict[str, Tensor] | None = None,
    ):
        self.position = position
        self.mask = mask
        if not mask.uses_documents:  # a sequence is one to it, whatever other layers' masks keep apart
            token_positions = token_positions.as_one_document()
        self.token_positions = token_positions
        self.cache = cache
        self.taps: Taps = NOBODY_LOOKS
        self.kept: dict[str, Any] = {}
        self.shared: dict[str, Tensor] = {} if shared is None else shared
        """What a layer leaves for later ones, whatever their position schemes and masks: what `Mixer.gives` names."""

        self.query_block = QUERY_BLOCK
        self.rotation = token_positions.rotated_by(position)
        self.whole = not token_positions.padded and not token_positions.n_cached
        self.newest_alone = not token_positions.padded and token_positions.n_queries == 1
        """Whether the one query follows all keys, so that the causal mask masks none."""
        self.everything = QueryBlock(self, slice(0, token_positions.n_queries), slice(0, token_positions.n_keys))
        if position.biases_scores and token_positions.n_keys <= QUERY_BLOCK:
            # Here and not in the first layer that asks: a layer may be run twice to save memory, and must do the same twice.
            self.everything.compute_bias()

    def rotate_queries(self, q: SomeHeads) -> SomeHeads:
        """Queries, rotated as the position scheme does."""
        return self.position.rotate_queries(q, self.rotation)

    def rotate_keys(self, k: SomeHeads) -> SomeHeads:
        """Keys, rotated as the position scheme does."""
        return self.position.rotate_keys(k, self.rotation)

    def with_cached(self, attention: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values cached for this attention, then the new ones; caches the new ones too."""
        return (k, v) if self.cache is None else self.cache.extend(attention, k, v)

    def watched_by(self, taps: Taps) -> "AttentionContext":
        """The same context for one layer's call, whose `tap` and `add_loss` go to these taps."""
        self.taps = taps
        return self

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned when it was first asked for under this name in this forward pass."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    @computed_once
    def n_attended(self) -> Int[Tensor, "#batch query"]:
        """How many keys each query may attend to."""
        return torch.cat([block.n_attended for block in self.blocks()], dim=-1)

    def tap(self, names: Collection[str], look: Callable[[], Mapping[str, Tensor]]) -> None:
        """As `Taps.tap`, for the layer that is being called."""
        self.taps.tap(names, look)

    def add_loss(self, name: str, value: Tensor) -> None:
        """As `Taps.add_loss`, for the layer that is being called."""
        self.taps.add_loss(name, value)

    def decode_state(self, mixer: nn.Module, *start: Tensor) -> tuple[Tensor, ...]:
        """The state that the mixer kept after the tokens before these; `start` where none came before."""
        return start if self.cache is None else self.cache.states.get(mixer, start)

    def keep(self, mixer: nn.Module, *state: Tensor) -> None:
        """Caches the state from which the mixer continues at the next tokens; does nothing without a cache."""
        if self.cache is not None:
            self.cache.states[mixer] = state

    def without_padding(self, x: Stream) -> Stream:
        """Zeros at the tokens that are padding."""
        return self.token_positions.without_padding(x)

    def within_document(self, earlier: Stream, back: int) -> Stream:
        """What stands `back` tokens before each of these, with zeros where the mask keeps that apart as another document's."""
        return self.token_positions.within_document(earlier, back)

    @property
    def places(self) -> Int[Tensor, "#batch query"]:
        """How many tokens stand before each query in its sequence, or in its document where the mask keeps these apart."""
        return self.token_positions.places

    def of(self, block: "QueryBlock") -> "QueryBlock":
        """A block of queries as this context's `blocks` have it."""
        return block

    def of_visit(self, visit: int) -> "AttentionContext":
        """The context of a layer's later application, which caches apart from its first one; the same where nothing is cached."""
        return self if self.cache is None or visit == 0 else LaterContext(self, self.cache.of_visit(visit))

    def of_first(self) -> "AttentionContext":
        """The context of the first sequence alone."""
        return AttentionContext(self.position, self.mask, self.token_positions.of_first())

    def as_one_block(self) -> "AttentionContext":
        """The same with one table for all queries and keys at any length; costs are counted so, on the meta device."""
        self.query_block = self.token_positions.n_keys
        return self

    def blocks(self) -> Iterator["QueryBlock"]:
        """Blocks of queries that include every query once, in order."""
        n_queries, n_keys, n_cached = (
            self.token_positions.n_queries,
            self.token_positions.n_keys,
            self.token_positions.n_cached,
        )
        if n_keys <= self.query_block:
            yield self.everything
            return
        for start in range(0, n_queries, self.query_block):
            stop = min(start + self.query_block, n_queries)
            reach = self.mask.reach(slice(n_cached + start, n_cached + stop), n_keys)
            yield QueryBlock(self, slice(start, stop), reach)


class QueryBlock:
    """A block of queries, a range of keys that includes all they may attend to, and the mask and bias between them."""

    def __init__(self, context: AttentionContext, queries: slice, keys: slice):
        self.context = context
        self.queries = queries
        self.keys = keys
        self.added: dict[torch.dtype, Tensor] = {}

    def pairs(self, of_keys: Num[Tensor, "#batch *axes key"]) -> tuple[Tensor, Tensor]:
        """The entries of these queries, (..., query, 1), and of these keys, (..., 1, key): they broadcast to a table."""
        of_queries = of_keys[..., self.context.token_positions.n_cached :]
        return of_queries[..., self.queries, None], of_keys[..., None, self.keys]

    @computed_once
    def can_attend(self) -> Bool[Tensor, "#batch query key"]:
        """True where the mask lets the query attend to the key; keys that are padding are masked."""
        query, key = self.pairs(self.context.token_positions.index)
        where = self.context.token_positions
        start = where.document_start(self.queries)
        can_attend = self.context.mask.can_attend_within(query, key, where.prefix_len.view(-1, 1, 1), start)
        return where.mask_padding(can_attend, query, key)

    @computed_once
    def n_attended(self) -> Int[Tensor, "#batch query"]:
        """How many keys each of these queries may attend to."""
        return self.can_attend.sum(dim=-1)

    def added_mask(self, dtype: torch.dtype) -> Float[Tensor, "#batch 1 query key"]:
        """`can_attend` as what is added to scores of this dtype: 0, and -inf where a key is masked; the same for all layers."""
        if dtype not in self.added:
            zero = torch.zeros((), dtype=dtype, device=self.can_attend.device)
            self.added[dtype] = aligned(torch.where(self.can_attend[:, None], zero, float("-inf")))
        return self.added[dtype]

    def compute_bias(self) -> None:
        """Computes the bias now; it is kept for all layers."""
        _ = self.bias

    @computed_once
    def bias(self) -> Float[Tensor, "#batch #heads query key"]:
        """The position scheme's bias, and -inf where a key is masked; float32."""
        bias = self.context.position.bias(*self.pairs(self.context.token_positions.positions))
        return aligned(torch.where(self.can_attend[:, None], bias, float("-inf")))


class DerivedContext(AttentionContext):
    """A context that has all of another one, computed once for both."""

    def __init__(self, context: AttentionContext):
        self.position, self.mask, self.token_positions = context.position, context.mask, context.token_positions
        self.cache, self.taps, self.kept, self.shared = context.cache, context.taps, context.kept, context.shared
        self.query_block, self.rotation, self.whole = context.query_block, context.rotation, context.whole
        self.newest_alone, self.everything = context.newest_alone, context.everything


class LaterContext(DerivedContext):
    """The same with another cache."""

    def __init__(self, context: AttentionContext, cache: Cache):
        super().__init__(context)
        self.cache = cache


class BiasedContext(DerivedContext):
    """The context of one layer's call, with a bias of that layer's own on its scores; the rest is the shared context's.

    `bias_of` returns the bias of a block of queries, (batch, heads, query, key).
    """

    def __init__(self, context: AttentionContext, bias_of: Callable[[QueryBlock], Tensor]):
        super().__init__(context)
        self.of_all_layers, self.bias_of = context, bias_of

    def blocks(self) -> Iterator[QueryBlock]:
        """Blocks of queries that include every query once, in order."""
        yield from map(self.of, self.of_all_layers.blocks())

    def of(self, block: QueryBlock) -> QueryBlock:
        """The block with the layer's bias."""
        return BiasedBlock(block, self.bias_of)

    def of_first(self) -> AttentionContext:
        """The context of the first sequence alone."""
        return BiasedContext(self.of_all_layers.of_first(), lambda block: self.bias_of(block)[:1])


class BiasedBlock(QueryBlock):
    """A block of queries whose bias includes one that a layer adds."""

    def __init__(self, block: QueryBlock, bias_of: Callable[[QueryBlock], Tensor]):
        super().__init__(block.context, block.queries, block.keys)
        self.of_all_layers, self.bias_of = block, bias_of

    @computed_once
    def can_attend(self) -> Bool[Tensor, "#batch query key"]:
        """That of all layers."""
        return self.of_all_layers.can_attend

    @computed_once
    def bias(self) -> Float[Tensor, "#batch #heads query key"]:
        """The position scheme's bias and the layer's, and -inf where a key is masked; float32 or wider."""
        return self.of_all_layers.bias + self.bias_of(self.of_all_layers)
