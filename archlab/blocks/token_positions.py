"""Where the tokens of a forward pass stand: their index, which masks go by, and their positions."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from archlab.base.errors import UserError
from archlab.blocks.contracts import (
    Attendable,
    DocumentStart,
    Keys,
    Mask,
    Position,
    Positions,
    Queries,
    Rotation,
    Stream,
)


@dataclass(frozen=True)
class TokenPositions:
    """Where the keys of a forward pass stand. The last `n_queries` of them are the tokens it was given."""

    index: Int[Tensor, "#batch key"]
    """In the sequence, from 0 after the padding, negative within it: what masks go by."""

    positions: Int[Tensor, "#batch *axes key"]
    """What position schemes go by."""

    prefix_len: Int[Tensor, " #batch"]
    n_queries: int
    padded: bool = False

    given: bool = False
    """Whether it was the caller who gave the positions."""

    document_starts: Int[Tensor, "#batch key"] | None = None
    """By token, the index of the first token of its document; None where every sequence is one document."""

    ahead: "Ahead | None" = None
    """Where the tokens after these will stand too, while tokens come one at a time."""

    @property
    def n_keys(self) -> int:
        """Tokens, cached ones and padding included."""
        return self.index.shape[-1]

    @property
    def n_cached(self) -> int:
        """Keys that come from a cache."""
        return self.n_keys - self.n_queries

    @property
    def query_positions(self) -> Positions:
        """Positions of the tokens that the forward pass was given."""
        return self.positions[..., self.n_cached :]

    @property
    def query_index(self) -> Int[Tensor, "#batch query"]:
        """Indices of the tokens that the forward pass was given; 0 within padding."""
        return self.index[:, self.n_cached :].clamp(min=0)

    @property
    def places(self) -> Int[Tensor, "#batch query"]:
        """The same counted from where each token's document starts."""
        return self.query_index - self.document_start(slice(None))[..., 0]

    def rotated_by(self, position: Position) -> Rotation:
        """How the scheme rotates the queries and the keys of the tokens that the forward pass was given."""
        return position.rotation(self.query_positions) if self.ahead is None else self.ahead.rotated_by(position, self)

    def document_start(self, queries: slice) -> DocumentStart:
        """Where these queries' documents start."""
        if self.document_starts is None:
            return self.index.new_zeros(1, 1, 1)
        return self.document_starts[:, self.n_cached :][:, queries, None]

    def mask_padding(self, can_attend: Attendable, query: Queries, key: Keys) -> Attendable:
        """Masks padding for all queries but that token itself, since a softmax over no keys is not a number."""
        return can_attend & (key >= 0) | (key == query) if self.padded else can_attend

    def without_padding(self, x: Stream) -> Stream:
        """Zeros at the queries that are padding."""
        return x * (self.index[:, self.n_cached :, None] >= 0).type_as(x) if self.padded else x

    def within_document(self, earlier: Stream, back: int) -> Stream:
        """What stands `back` tokens before each query, with zeros where that is before the query's document."""
        if self.document_starts is None:
            return earlier
        inside = self.index - back >= self.document_starts
        return earlier * inside[:, self.n_cached :, None].type_as(earlier)

    def as_one_document(self) -> "TokenPositions":
        """The same where each sequence is one document."""
        return self if self.document_starts is None else replace(self, document_starts=None)

    def of_first(self) -> "TokenPositions":
        """Those of the first sequence alone."""
        starts = None if self.document_starts is None else self.document_starts[:1]
        index, positions, prefix_len = self.index[:1], self.positions[:1], self.prefix_len[:1]
        return replace(
            self, index=index, positions=positions, prefix_len=prefix_len, document_starts=starts, ahead=None
        )


class Ahead:
    """Where tokens stand that come one at a time, and how they are rotated there, found for many of them at once.

    A token alone is decoded in a few operations for each layer, beside which those that find its place would be seen.
    """

    TOKENS = 64

    def __init__(self, whole: TokenPositions):
        self.whole = whole
        self.rotations: dict[Position, Rotation] = {}

    def up_to(self, n_keys: int) -> TokenPositions:
        """Where so many keys stand, of which the last one is the query."""
        whole, starts = self.whole, self.whole.document_starts
        return replace(
            whole,
            index=whole.index[:, :n_keys],
            positions=whole.positions[..., :n_keys],
            n_queries=1,
            document_starts=None if starts is None else starts[:, :n_keys],
            ahead=self,
        )

    def rotated_by(self, position: Position, where: TokenPositions) -> Rotation:
        """That of the query which stands there."""
        if position not in self.rotations:
            self.rotations[position] = position.rotation(self.whole.query_positions)
        query = where.n_cached - self.whole.n_cached
        return self.rotations[position][:, :, query : query + 1]


class PositionLimit(UserError):
    """A sequence longer than the position scheme's table."""

    def __init__(self, seq_len: int, limit: int):
        super().__init__(
            f"pos.max_positions={limit}: a sequence of {seq_len} tokens has positions beyond the table;"
            f" use at most {limit} tokens, a larger pos.max_positions, or a scheme without a table"
        )
        self.limit = limit


def at_the_start(
    tokens: Int[Tensor, "batch seq"],
    position: Position,
    prefix_len: int | Int[Tensor, " #batch"] | None = None,
    positions: Positions | None = None,
    padding: Int[Tensor, " sequences"] | None = None,
    document_starts: Int[Tensor, "#batch seq"] | None = None,
    mask: Mask | None = None,
) -> TokenPositions:
    """Where tokens that begin their sequences stand; `Decoder.forward` says what the arguments mean.

    The `mask` says by which index the scheme's own positions are counted; without one it is that in the sequence.
    Raises ValueError where they do not fit together, and PositionLimit.
    """
    batch, seq_len = tokens.shape
    check_padding(padding, batch, seq_len)
    check_prefix(prefix_len, batch, seq_len, padding)
    index = torch.arange(seq_len, device=tokens.device).view(1, -1)
    if padding is not None:
        index = index - padding.to(tokens.device, non_blocking=True).view(-1, 1)
    prefix_len = lengths_on(tokens.device, 0 if prefix_len is None else prefix_len)
    starts = None if document_starts is None else starts_on(document_starts, tokens, index)
    shortest_padding = 0 if padding is None else int(padding.min())
    check_length(seq_len - shortest_padding, position)
    return TokenPositions(
        index,
        default_positions(position, counted(mask, index, starts), prefix_len)
        if positions is None
        else shaped(positions, position, tokens),
        prefix_len,
        n_queries=seq_len,
        padded=padding is not None,
        given=positions is not None,
        document_starts=starts,
    )


def counted(
    mask: Mask | None, index: Int[Tensor, "#batch seq"], starts: Int[Tensor, "#batch seq"] | None
) -> Int[Tensor, "#batch seq"]:
    """The indices that positions are made of: in the sequence, or in the document."""
    if mask is None or starts is None:
        return index
    return mask.counted(index, starts)


def lengths_on(device: torch.device, prefix_len: int | Int[Tensor, " #batch"]) -> Int[Tensor, " #batch"]:
    """On the device, where a number is written rather than copied to: a copy from the CPU waits for what runs there."""
    if isinstance(prefix_len, int):
        return torch.full((1,), prefix_len, device=device)
    return torch.as_tensor(prefix_len).to(device, non_blocking=True).view(-1)


def after(
    cached: TokenPositions,
    tokens: Int[Tensor, "batch seq"],
    position: Position,
    positions: Positions | None = None,
    mask: Mask | None = None,
) -> TokenPositions:
    """Where the cached tokens and the `tokens` after them stand; the latter are the queries, and go on with the last document.

    Raises ValueError where positions were given for one of the two alone, and PositionLimit.
    """
    if cached.given != (positions is not None):
        raise ValueError("positions: give them for all tokens of a sequence or for none, those in the cache included")
    seq_len = tokens.shape[1]
    if positions is not None:
        index = indices_after(cached, seq_len)
        return longer(cached, index, shaped(positions, position, tokens))
    check_length_after(cached, seq_len, position)
    if seq_len > 1 or torch.is_grad_enabled():
        return longer_by_default(cached, seq_len, position, mask)
    n_keys, ahead = cached.n_keys + 1, cached.ahead
    if ahead is None or n_keys > ahead.whole.n_keys:
        ahead = Ahead(longer_by_default(cached, Ahead.TOKENS, position, mask))
    return ahead.up_to(n_keys)


def longer_by_default(cached: TokenPositions, seq_len: int, position: Position, mask: Mask | None) -> TokenPositions:
    """The cached tokens with so many after them, at the scheme's own positions."""
    index = indices_after(cached, seq_len)
    starts = None if cached.document_starts is None else cached.document_starts[:, -1:].expand(-1, seq_len)
    return longer(cached, index, default_positions(position, counted(mask, index, starts), cached.prefix_len))


def longer(cached: TokenPositions, index: Int[Tensor, "#batch seq"], positions: Positions) -> TokenPositions:
    """The cached tokens with those after them that stand there."""
    seq_len = index.shape[1]
    return replace(
        cached,
        index=torch.cat((cached.index, index), dim=-1),
        positions=torch.cat((cached.positions, positions), dim=-1),
        n_queries=seq_len,
        document_starts=extended(cached.document_starts, seq_len),
        ahead=None,
    )


def indices_after(cached: TokenPositions, seq_len: int) -> Int[Tensor, "#batch seq"]:
    """Of so many tokens after the cached ones."""
    return cached.index[:, -1:] + torch.arange(1, seq_len + 1, device=cached.index.device)


def check_length_after(cached: TokenPositions, seq_len: int, position: Position) -> None:
    """Raises PositionLimit where so many tokens after the cached ones are more than the scheme has rows; padding takes none."""
    if position.limit is not None:
        beyond = int(cached.index[:, -1].max()) + 1 if cached.padded else cached.n_keys
        check_length(beyond + seq_len, position)


def extended(starts: Int[Tensor, "#batch key"] | None, seq_len: int) -> Int[Tensor, "#batch longer"] | None:
    """The same with so many tokens more of the last document."""
    return None if starts is None else torch.cat((starts, starts[:, -1:].expand(-1, seq_len)), dim=-1)


def starts_on(
    document_starts: Tensor, tokens: Int[Tensor, "batch seq"], index: Int[Tensor, "#batch seq"]
) -> Int[Tensor, "#batch seq"]:
    """Where documents start, on the tokens' device. Raises ValueError where documents do not follow each other."""
    if document_starts.dtype not in WHOLE or document_starts.shape not in (tokens.shape, (1, tokens.shape[1])):
        raise ValueError(
            f"document_starts of shape {tuple(document_starts.shape)}, {document_starts.dtype}: should be a whole number"
            f" for each of {tuple(tokens.shape)} tokens, or one set for all sequences"
        )
    if may_be_looked_at(document_starts):
        here = index.to(document_starts.device)
        goes_on = torch.where(here[:, 1:] > 0, document_starts[:, 1:] == document_starts[:, :-1], here[:, 1:] < 0)
        begins = (document_starts == here) & (here >= 0)
        first = (here[:, :1] < 0).expand(len(begins), 1)
        if not (begins | torch.cat((first, goes_on), dim=1)).all():
            raise ValueError(
                "document_starts: should be, for each token, its own index where a document starts and that of the token"
                " before it elsewhere; the first token starts one"
            )
    return document_starts.to(tokens.device, non_blocking=True)


def default_positions(position: Position, index: Int[Tensor, "#batch seq"], prefix_len: Tensor) -> Positions:
    """The scheme's own positions; padding is at position 0, which changes nothing."""
    return position.default_positions(index.clamp(min=0), prefix_len)


def shaped(positions: Tensor, position: Position, tokens: Int[Tensor, "batch seq"]) -> Positions:
    """Given positions, (batch, *axes, seq), as the scheme takes them; a single axis may be written out.

    Raises ValueError where they have another shape, or no row in the scheme's table.
    """
    batch, seq_len = tokens.shape
    axes = () if position.axes == 1 else (position.axes,)
    if not axes and positions.dim() == 3 and positions.shape[1] == 1:
        positions = positions.squeeze(1)
    if positions.shape not in ((batch, *axes, seq_len), (1, *axes, seq_len)):
        raise ValueError(
            f"positions of shape {tuple(positions.shape)}: {type(position).__name__} takes"
            f" {(batch, *axes, seq_len)} for these tokens, or one set for all sequences"
        )
    if position.limit is not None and may_be_looked_at(positions):
        check_table(positions, position.limit)
    return positions.to(tokens.device, non_blocking=True).expand(batch, *axes, seq_len)


def check_table(positions: Positions, limit: int) -> None:
    """Raises ValueError where a position has no row in a table of `limit` rows."""
    if int(positions.max()) >= limit:
        raise ValueError(f"positions up to {int(positions.max())}: the table of positions ends at {limit - 1}")
    if int(positions.min()) < 0:
        raise ValueError(f"positions from {int(positions.min())}: the table of positions begins at 0")


def check_length(seq_len: int, position: Position) -> None:
    """Raises PositionLimit where the position scheme has fewer rows than the sequence has tokens."""
    if position.limit is not None and seq_len > position.limit:
        raise PositionLimit(seq_len, position.limit)


def check_prefix(prefix_len: int | Tensor | None, batch: int, seq_len: int, padding: Tensor | None = None) -> None:
    """Raises ValueError where a prefix, which begins after the padding, is longer than the tokens there."""
    if prefix_len is None:
        return
    given = torch.as_tensor(prefix_len)
    if given.dtype not in WHOLE:
        raise ValueError(f"prefix_len={prefix_len}: should be whole numbers of tokens")
    if given.shape not in ((), (1,), (batch,)):
        raise ValueError(
            f"prefix_len of shape {tuple(given.shape)}: should be one number, or one for each of {batch} sequences"
        )
    if not may_be_looked_at(given):
        return
    lengths, room = given.cpu().numpy(), np.asarray(seq_len if padding is None else seq_len - padding.cpu().numpy())
    if not ((lengths >= 0) & (lengths <= room)).all():
        left = (
            f"{seq_len} tokens of the sequence" if padding is None else f"{room.tolist()} that stand after the padding"
        )
        raise ValueError(f"prefix_len={lengths.tolist()}: should be from 0 to the {left}")


WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def may_be_looked_at(numbers: Tensor) -> bool:
    """Whether an `if` may depend on these numbers.

    While a graph is traced they have no values, under vmap they have several at once, and a training step on a GPU
    would have to wait for them.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(numbers) or numbers.is_meta:
        return False
    return numbers.device.type == "cpu" or not torch.is_grad_enabled()


def check_padding(padding: Tensor | None, batch: int, seq_len: int) -> None:
    """Raises ValueError where padding is not one number per sequence, or leaves no token."""
    if padding is None:
        return
    if padding.shape != (batch,):
        raise ValueError(f"padding of shape {tuple(padding.shape)}: should be one number for each of {batch} sequences")
    if not (0 <= padding.min() and padding.max() < seq_len):
        raise ValueError(
            f"padding={padding.tolist()}: should be from 0 to {seq_len - 1}, to leave a token that is none"
        )
