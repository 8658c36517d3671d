"""The model: the only place where blocks meet."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from archlab.blocks.cache import Cache
from archlab.blocks.contracts import FeedForward, Head, Mask, Norm, Position, Residual, Stream
from archlab.blocks.embedding import EMBED_SCALES, make_projection, make_token_types
from archlab.blocks.kernel import fused_kernel
from archlab.blocks.places import Places, after, at_the_start
from archlab.blocks.reading import Reading
from archlab.errors import UserError


class Layer(nn.Module):
    """Attention and a feed-forward network, joined to the residual stream by a residual scheme."""

    def __init__(self, attention: nn.Module, ffn: FeedForward, residual: Residual):
        super().__init__()
        self.attention = attention
        self.ffn = ffn
        self.residual = residual

    def forward(self, x: Stream, reading: Reading) -> Stream:
        return self.residual(x, (partial(self.attention, reading=reading), self.ffn))


class Decoder(nn.Module):
    """A decoder-only Transformer: tokens (batch, seq) -> logits (batch, seq, vocab_size).

    Sizes are integers; `norm`, `residual`, `ffn`, `attn`, `pos`, `mask` and `head` make a block each time they are called, as
    `archlab.blocks.contracts` says of their constructors. Weights are torch's own until `archlab.init` has set them.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_layers: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        d_ff: int,
        vocab_size: int,
        norm: Callable[..., Norm],
        residual: Callable[..., Residual],
        ffn: Callable[..., FeedForward],
        attn: Callable[..., nn.Module],
        pos: Callable[..., Position],
        mask: Callable[..., Mask],
        head: Callable[..., Head],
        tied: bool = False,
        embed_norm: bool = False,
        embed_scale: str = "none",
        embed_width: int | None = None,
        embed_types: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.d_model = d_model
        make_norm = partial(norm, d_model=d_model)
        self.position = pos(d_model=d_model, n_heads=n_heads, head_dim=head_dim)
        self.mask = mask()
        of_layers = [(self.position.at(depth), self.mask.at(depth)) for depth in range(n_layers)]
        self.pairs = list(dict.fromkeys(of_layers))
        self.pair_of_layer = [self.pairs.index(pair) for pair in of_layers]

        def make_layer(pair: tuple[Position, Mask]) -> Layer:
            kernel = fused_kernel(*pair)
            scheme = residual(norm=make_norm, n_layers=n_layers)
            inner = {"inner_norm": norm} if scheme.inner_norms else {}
            heads = dict(n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, kernel=kernel, norm=norm)
            return Layer(attn(d_model=d_model, **heads, **inner), ffn(d_model=d_model, d_ff=d_ff, **inner), scheme)

        width = d_model if embed_width is None else embed_width
        self.embedding = nn.Embedding(vocab_size, width)
        self.embed_proj = make_projection(width, d_model)
        self.embed_scale = EMBED_SCALES[embed_scale](d_model)
        self.embed_types = make_token_types(embed_types, d_model)
        self.embed_norm = make_norm() if embed_norm else nn.Identity()
        self.embed_dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(make_layer(pair) for pair in of_layers)
        self.final_norm = make_norm() if self.layers[0].residual.needs_final_norm else nn.Identity()
        self.head_proj = make_projection(d_model, width)
        self.head = head(d_model=width, vocab_size=vocab_size, norm=partial(norm, d_model=width))
        if tied:
            self.head.weight = self.embedding.weight
        self.run_layer: Callable[..., Tensor] = run_plainly

    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        prefix_len: int | Int[Tensor, " batch"] | None = None,
        positions: Int[Tensor, "#batch *axes seq"] | None = None,
        padding: Int[Tensor, " batch"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch seq vocab_size"]:
        """Logits of the token after each position.

        `prefix_len`, one number or one a sequence, is the length of what a prefix mask lets be read in both
        directions; without it the prefix is empty. `positions` are the tokens' position numbers where they are not the
        scheme's own. `padding` counts the tokens on each sequence's left that nobody reads; indices, positions and the
        prefix begin after them. With a `cache`, `tokens` are those that follow what it holds, and it comes to hold
        them too; prefix and padding are given with the first ones.

        Raises ValueError where the mask knows no prefix or arguments do not fit together, and UserError where seq is
        beyond what the position scheme is defined for, or the model cannot be decoded from a cache or padded.
        """
        readings = self.read(tokens, prefix_len, positions, padding, cache)
        x = self.embed_types(self.embed_proj(self.embedding(tokens)) * self.embed_scale)
        x = self.embed_dropout(self.embed_norm(self.position.embed(x, readings[0].places.query_positions)))
        for layer, pair in zip(self.layers, self.pair_of_layer, strict=True):
            x = self.run_layer(layer, x, readings[pair])
        return self.head(self.head_proj(self.final_norm(x)))

    def read(
        self,
        tokens: Int[Tensor, "batch seq"],
        prefix_len: int | Int[Tensor, " batch"] | None = None,
        positions: Int[Tensor, "#batch *axes seq"] | None = None,
        padding: Int[Tensor, " batch"] | None = None,
        cache: Cache | None = None,
    ) -> list[Reading]:
        """One reading for each pair of position scheme and mask that the layers have."""
        if prefix_len is not None and not self.mask.uses_prefix:
            raise ValueError(
                f"prefix_len={prefix_len}: a {type(self.mask).__name__} mask has no prefix; leave it out, or build with mask=prefix"
            )
        if padding is not None:
            check_paddable(self)
        if cache is None:
            places = at_the_start(tokens, self.position, prefix_len, positions, padding)
        else:
            places = cache.places = self.continued(cache, tokens, prefix_len, positions, padding)
        return [Reading(position, mask, places, cache) for position, mask in self.pairs]

    def continued(
        self,
        cache: Cache,
        tokens: Tensor,
        prefix_len: int | Tensor | None,
        positions: Tensor | None,
        padding: Tensor | None,
    ) -> Places:
        """The places of what the cache holds and of these tokens after it."""
        if cache.places is not None:
            if prefix_len is not None or padding is not None:
                raise ValueError("prefix_len and padding: are given with the first tokens that a cache is to hold")
            return after(cache.places, tokens, self.position, positions)
        check_decodable(self)
        if prefix_len is not None and not bool(torch.as_tensor(prefix_len).le(tokens.shape[1]).all()):
            raise ValueError(
                f"prefix_len={prefix_len}: a cache takes a prefix whole, so the first tokens should hold it"
            )
        return at_the_start(tokens, self.position, prefix_len, positions, padding)

    def recompute_activations(self) -> None:
        """From now on the backward pass runs each layer again instead of keeping what it computed."""
        self.run_layer = partial(checkpoint, use_reentrant=False)


def run_plainly(layer: Layer, x: Tensor, reading: Reading) -> Tensor:
    return layer(x, reading)


def check_paddable(decoder: Decoder) -> None:
    """Raises UserError where what is computed of a token would depend on the padding beside it."""
    if mixing := next((norm for norm in decoder.modules() if isinstance(norm, Norm) and norm.sees_future), None):
        raise UserError(
            f"norm: the statistics of {type(mixing).__name__} run over {' and '.join(mixing.reduces)}, and so over the"
            " padding; give sequences of one length without padding, or use a norm over d_model alone"
        )


def check_decodable(decoder: Decoder) -> None:
    """Raises UserError where what was computed of earlier tokens changes with later ones, so that no cache can keep it."""
    if any(mask.bidirectional for _, mask in decoder.pairs):
        raise UserError(
            "mask=full: every token reads the ones after it, so what a cache holds changes with each new token;"
            " use mask=causal, prefix or window to decode"
        )
    if leaking := next((norm for norm in decoder.modules() if isinstance(norm, Norm) and norm.sees_future), None):
        raise UserError(
            f"norm: the statistics of {type(leaking).__name__} run over {' and '.join(leaking.reduces)}, so what a cache"
            " holds changes with each new token; use a norm over d_model alone to decode"
        )
    if stale := next((position for position, _ in decoder.pairs if position.uses_length), None):
        raise UserError(
            f"pos: {type(stale).__name__} turns keys by how long the sequence is, so those that a cache holds grow stale;"
            " use a scheme of positions alone to decode"
        )
