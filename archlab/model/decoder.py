"""The model: layers between an embedding and a head, from tokens to logits."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.blocks.cache import Cache
from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Block, FeedForward, Head, Mask, Mixer, Norm, Position, Residual
from archlab.blocks.embedding import embed_factor, make_projection, make_token_types
from archlab.blocks.mask import one_mask
from archlab.blocks.roles import Role, Weight
from archlab.blocks.skips import Kept, make_skips
from archlab.blocks.taps import Scalar
from archlab.blocks.token_positions import TokenPositions, after, at_the_start
from archlab.model.course import Course, course_of, first_places, times_of
from archlab.model.fitting import check_canon, check_given, check_looped, check_positions, check_streams
from archlab.model.further import FurtherTokens, Trunk, next_alone
from archlab.model.layer import Layer, LayerCall, Watched, make_layer, run_again_in_backward, run_plainly
from archlab.model.layer_parts import LayerParts, kinds_of, made_once, numbered, parameters_of


class Output(NamedTuple):
    """What a decoder computes: the logits, and what its blocks recorded and added to the loss on the way."""

    logits: Float[Tensor, "batch seq vocab_size"]

    losses: dict[str, Scalar]
    """What is minimised beside the tokens' own loss, by name, such as a router's balance; the sum over the layers."""

    taps: tuple[dict[str, Scalar], ...]
    """By application of a layer, in order, what was asked for and the layer has."""

    counts: tuple[dict[str, Tensor], ...] = ()
    """By application of a layer, and then by layer of several-token prediction that was run, what its feed-forward network
    counted for its `after_step`."""

    further: tuple[Float[Tensor, "batch seq vocab_size"], ...] = ()
    """Logits of the tokens after the next, in order, where they were asked for."""


class Decoder(Block):
    """A decoder-only Transformer: tokens (batch, seq) -> logits (batch, seq, vocab_size).

    Sizes are integers; `norm`, `residual`, `ffn`, `mixer`, `pos`, `mask` and `head` make a block each time they are called,
    as `archlab.blocks.contracts` says of their constructors. They are every layer's, but where `layers` lists what each
    layer is made of. Weights are torch's own until `archlab.model.init` has set them.

    kernel      how softmax attention and recurrences are computed: one of `archlab.blocks.kernel.KERNELS`
    canon       the places of Canon layers in every layer: A, C or AC
    loop_times, loop_layers
                how often these layers, by default all, are applied one after the other with the same weights
                (`archlab.model.course`)
    skips       which layers are also given what an earlier one left: None or one of `archlab.blocks.skips.SKIPS`
    mtp         makes a `FurtherTokens`
    """

    roles = {"embedding": Role.EMBEDDING}

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
        mixer: Callable[..., Mixer],
        pos: Callable[..., Position],
        mask: Callable[..., Mask],
        head: Callable[..., Head],
        layers: Sequence[LayerParts] | None = None,
        tied: bool = False,
        embed_norm: bool = False,
        embed_scale: str | float = "none",
        embed_width: int | None = None,
        embed_types: int | None = None,
        dropout: float = 0.0,
        kernel: str = "auto",
        canon: str | None = None,
        loop_times: int | None = None,
        loop_layers: str | int | None = None,
        skips: str | None = None,
        mtp: Callable[..., FurtherTokens] | None = None,
    ):
        super().__init__()
        check_canon(canon)
        self.d_model, self.n_heads, self.head_dim = d_model, n_heads, head_dim
        make_norm = partial(norm, d_model=d_model)
        parts = layers or [LayerParts(mixer, ffn, residual, pos, mask, d_ff, n_kv_heads)] * n_layers
        self.course: Course = course_of(len(parts), loop_times, loop_layers)
        self.skips = make_skips(skips, len(self.course))
        check_looped(self.course, parts)
        self.has_scores = any("kernel" in parameters_of(part.mixer) for part in parts)
        self.has_recurrence = any("recurrence" in parameters_of(part.mixer) for part in parts)
        self.kinds = kinds_of(parts)
        self.position = pos(d_model=d_model, n_heads=n_heads, head_dim=head_dim)
        positions = made_once(pos, self.position, [part.pos for part in parts], self.heads_of_positions)
        masks = made_once(mask, mask(), [part.mask for part in parts], {})
        others = list(dict.fromkeys(position for position in positions if position is not self.position))
        check_positions(self.position, others)
        if others:
            self.other_positions = nn.ModuleList(others)
        self.mask = one_mask(list(dict.fromkeys(masks)))
        of_layers = list(zip(positions, masks, strict=True))
        self.pairs = list(dict.fromkeys(of_layers))
        self.pair_of_layer = [self.pairs.index(pair) for pair in of_layers]

        width = d_model if embed_width is None else embed_width
        self.embedding = nn.Embedding(vocab_size, width)
        self.embed_proj = make_projection(width, d_model)
        self.embed_scaled_by, self.embed_scale = embed_scale, embed_factor(embed_scale, d_model)
        self.embed_types = make_token_types(embed_types, d_model)
        self.embed_norm = make_norm() if embed_norm else nn.Identity()
        self.embed_dropout = nn.Dropout(dropout)
        made = partial(
            make_layer,
            norm=norm,
            d_model=d_model,
            n_layers=len(self.course),
            n_heads=n_heads,
            head_dim=head_dim,
            kernel=kernel,
            canon=canon or "",
        )
        layers_made = (
            made(part, pair, depth=place)
            for part, pair, place in zip(parts, of_layers, first_places(self.course), strict=True)
        )
        # For a type checker a ModuleList holds any modules; these are Layers.
        self.layers = cast(Sequence[Layer], nn.ModuleList(layers_made))
        check_streams([layer.residual for layer in self.layers], skips)
        check_given([layer.mixer for layer in self.applied], self.course)
        self.kinds = numbered(
            [(kind, layer.residual.variant) for kind, layer in zip(self.kinds, self.layers, strict=True)]
        )
        self.final_norm = make_norm() if self.layers[-1].residual.needs_final_norm else nn.Identity()
        self.head_proj = make_projection(d_model, width)
        self.head = head(d_model=width, vocab_size=vocab_size, norm=partial(norm, d_model=width))
        if tied:
            self.head.weight = self.embedding.weight
        self.last_pair = self.pair_of_layer[-1]
        if mtp is not None:
            like_last = partial(made, parts[-1], of_layers[-1], depth=first_places(self.course)[-1])
            self.mtp = mtp(d_model=d_model, norm=make_norm, layer=like_last)
        self.run_layer: Callable[..., Watched] = run_plainly
        self.rates: dict[str, float] = {}
        """What the learning rate of some weights is multiplied by, by name, as the init has it."""
        self.held: dict[str, int] = {}
        """The axis along which some weights are held at length 1, by name, as the init has it."""

    @property
    def applied(self) -> list[Layer]:
        """The layers in the order in which they are applied, each as often as it is."""
        return [self.layers[layer] for layer, _ in self.course]

    def by_application(self, of_layers: Sequence[Any]) -> list[Any]:
        """Something of each layer, for each application of one."""
        return [of_layers[layer] for layer, _ in self.course]

    @property
    def heads_of_positions(self) -> dict[str, int]:
        """The sizes that a position scheme is made with."""
        return {"d_model": self.d_model, "n_heads": self.n_heads, "head_dim": self.head_dim}

    def weights(self) -> Iterator[Weight]:
        """Every weight once, under the first of its names: that of a tied head is the embedding's."""
        seen: set[int] = set()
        for weight in super().weights():
            if id(weight.tensor) not in seen:
                seen.add(id(weight.tensor))
                yield weight

    @property
    def taps(self) -> tuple[str, ...]:
        """Which quantities can be recorded in at least one layer, by name."""
        return tuple(dict.fromkeys(name for layer in self.layers for part in (layer, layer.mixer, layer.ffn) for name in part.taps))  # fmt: skip

    @property
    def taps_on_request(self) -> tuple[str, ...]:
        """Which more can be recorded in at least one layer, where they are asked for by name."""
        return tuple(dict.fromkeys(name for layer in self.layers for name in layer.mixer.on_request))

    @property
    def further_tokens(self) -> FurtherTokens | None:
        """The heads of the tokens after the next, where there are any; their weights are under `mtp`."""
        return cast(FurtherTokens | None, self._modules.get("mtp"))

    @property
    def ahead(self) -> Callable[[Trunk], list[Tensor]]:
        """What predicts the tokens after the next while training."""
        return self.further_tokens or next_alone

    @property
    def trained_layers(self) -> list[Layer]:
        """The layers, and after them those of further tokens' heads, each built as the last one is."""
        return [*self.layers, *(self.further_tokens.layers if self.further_tokens else ())]

    @property
    def applications_of_a_step(self) -> int:
        """How often a layer is run in a training step, those of further tokens' heads included."""
        return len(self.course) + len(self.trained_layers) - len(self.layers)

    @property
    def kinds_trained(self) -> list[int]:
        """The `kinds` of `trained_layers`."""
        return [*self.kinds, *[self.kinds[-1]] * (len(self.trained_layers) - len(self.layers))]

    @property
    def begins_alike(self) -> bool:
        """Whether the logits at a position are the same in every sequence that has the same tokens up to it.

        Then what a long sequence begins with is predicted, but for rounding, as it is where the sequence ends there.
        """
        blocks = [block for block in self.modules() if isinstance(block, Block) and block is not self]
        return not any(block.sees_future or block.uses_length for block in blocks)

    def forward(
        self,
        tokens: Int[Tensor, "batch seq"],
        prefix_len: int | Int[Tensor, " batch"] | None = None,
        positions: Int[Tensor, "#batch *axes seq"] | None = None,
        padding: Int[Tensor, " batch"] | None = None,
        cache: Cache | None = None,
        document_starts: Int[Tensor, "#batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab_size"]:
        """Logits of the token after each position.

        `prefix_len`, one number or one per sequence, is the length of what a prefix mask lets be attended to in both
        directions; without it the prefix is empty. `positions` are the tokens' position numbers where they are not the
        scheme's own. `padding` counts the tokens on each sequence's left that nobody attends to; indices, positions and
        the prefix begin after them. With a `cache`, `tokens` follow the cached ones, and are cached
        too; prefix, padding and documents are given with the first ones. `document_starts` says of each token at which
        index its document starts, where a sequence holds several: a mask that `uses_documents` keeps them apart.

        Raises ValueError where the mask knows no prefix or documents, or arguments do not fit together, and UserError where seq is
        beyond what the position scheme is defined for, or the model cannot be decoded from a cache or padded.
        """
        return self.compute(tokens, self.read(tokens, prefix_len, positions, padding, cache, document_starts)).logits

    def compute(
        self,
        tokens: Int[Tensor, "batch seq"],
        contexts: Sequence[AttentionContext],
        wanted: Collection[str] = (),
        call: LayerCall = Layer.watched,
        ahead: Callable[[Trunk], list[Tensor]] = next_alone,
    ) -> Output:
        """Logits, the quantities named in `wanted` (`taps`), and what blocks add to the loss; a pure function of its inputs.

        `contexts` are those that `read` returns for these tokens. `call` is how each layer is called, such as compiled.
        With `ahead`, the decoder's own, there are logits of further tokens too, which training alone needs.
        """
        rows = self.embedding(tokens)
        # As wide as the table also where autocast makes products narrower, since layers add to the stream in its own dtype.
        embedded = self.embed_types(self.embed_proj(rows).type_as(rows) * self.embed_scale)
        positions = contexts[0].token_positions.query_positions
        x = self.layers[0].residual.enter(self.embed_dropout(self.embed_norm(self.position.embed(embedded, positions))))
        seen: list[dict[str, Scalar]] = []
        counts: list[dict[str, Tensor]] = []
        losses: dict[str, Scalar] = {}

        def run(layer: Layer, x: Tensor, context: AttentionContext, wanted: Collection[str]) -> Tensor:
            x, in_layer, added, counted = self.run_layer(call, layer, x, context, wanted)
            seen.append(in_layer)
            counts.append(counted)
            losses.update({name: losses.get(name, 0.0) + value for name, value in added.items()})
            return x

        def run_as_last(layer: Layer, x: Tensor) -> Tensor:
            return layer.residual.leave(run(layer, x, contexts[self.last_pair], ()))

        before = x
        kept: Kept = {}
        for place, (layer, visit) in enumerate(self.course):
            context = contexts[visit * len(self.pairs) + self.pair_of_layer[layer]]
            before = self.skips.into(place, x, kept)
            x = run(self.layers[layer], before, context, wanted)
            self.skips.out_of(place, x, kept)
        x = self.layers[-1].residual.leave(x)
        logits = self.logits(self.final_norm(x))
        further = ahead(Trunk(before, x, embedded, self.final_norm, run_as_last))
        of_layers = tuple(seen[: len(self.course)])
        return Output(logits, losses, of_layers, tuple(counts), tuple(map(self.logits, further)))

    def logits(self, normed: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq vocab_size"]:
        """What the head makes of the stream after the final norm."""
        return self.head(self.head_proj(normed))

    def read(
        self,
        tokens: Int[Tensor, "batch seq"],
        prefix_len: int | Int[Tensor, " batch"] | None = None,
        positions: Int[Tensor, "#batch *axes seq"] | None = None,
        padding: Int[Tensor, " batch"] | None = None,
        cache: Cache | None = None,
        document_starts: Int[Tensor, "#batch seq"] | None = None,
    ) -> list[AttentionContext]:
        """The `contexts` of these tokens; arguments and errors as in `forward`."""
        if prefix_len is not None and not self.mask.uses_prefix:
            raise ValueError(
                f"prefix_len={prefix_len}: a {type(self.mask).__name__} mask has no prefix; leave it out, or build with mask=prefix"
            )
        if document_starts is not None and not self.mask.uses_documents:
            raise ValueError(
                f"document_starts: a {type(self.mask).__name__} mask keeps no documents apart; leave it out, or build with"
                " mask=document"
            )
        if padding is not None:
            check_paddable(self)
        if cache is None:
            token_positions = at_the_start(
                tokens, self.position, prefix_len, positions, padding, document_starts, self.mask
            )
        else:
            token_positions = cache.token_positions = self.continued(
                cache, tokens, prefix_len, positions, padding, document_starts
            )
        return self.contexts(token_positions, cache)

    def contexts(self, token_positions: TokenPositions, cache: Cache | None = None) -> list[AttentionContext]:
        """One for each pair of position scheme and mask that the layers have; again for layers' later applications, in order."""
        shared: dict[str, Tensor] = {}
        first = [AttentionContext(position, mask, token_positions, cache, shared) for position, mask in self.pairs]
        return [context.of_visit(visit) for visit in range(times_of(self.course)) for context in first]

    def continued(
        self,
        cache: Cache,
        tokens: Tensor,
        prefix_len: int | Tensor | None,
        positions: Tensor | None,
        padding: Tensor | None,
        document_starts: Tensor | None,
    ) -> TokenPositions:
        """Where the cached tokens and these after them stand; the arguments are `forward`'s."""
        if cache.token_positions is not None:
            if prefix_len is not None or padding is not None:
                raise ValueError("prefix_len and padding: are given with the first tokens that are cached")
            if document_starts is not None:
                raise ValueError(
                    "document_starts: are given with the first tokens that are cached; those after them go on with the last"
                    " document"
                )
            return after(cache.token_positions, tokens, self.position, positions, self.mask)
        check_decodable(self)
        if prefix_len is not None and not bool(torch.as_tensor(prefix_len).le(tokens.shape[1]).all()):
            raise ValueError(
                f"prefix_len={prefix_len}: a prefix is cached whole, so the first tokens should include all of it"
            )
        return at_the_start(tokens, self.position, prefix_len, positions, padding, document_starts, self.mask)

    def after_step(self, counts: Sequence[Mapping[str, Tensor]]) -> None:
        """Hands each network what it counted in a step, as `Output.counts` has it; called after the step's update."""
        of_layers: list[dict[str, Tensor]] = [{} for _ in self.layers]
        n = len(self.course)
        for (depth, _), counted in zip(self.course, counts[:n], strict=True):
            so_far = of_layers[depth]
            so_far |= {name: so_far[name] + value if name in so_far else value for name, value in counted.items()}
        for layer, counted in zip(self.trained_layers, [*of_layers, *counts[n:]], strict=True):
            layer.ffn.after_step(counted)

    @torch.no_grad()
    def hold(self, unless: Tensor | None = None) -> None:
        """Sets the weights that are held at length 1 back to it, but where `unless`, a Bool on the device, is true.

        Called after each step's update. It does not wait for the device.
        """
        for name, axis in self.held.items():
            weight = self.get_parameter(name)
            weight.copy_(held_at_one(weight, axis, unless))

    def for_packs(self) -> None:
        """Prepares the decoder for `torch.vmap` over stacked weights, as where several runs are packed in one."""
        for layer in self.trained_layers:
            layer.mixer.for_packs()

    def recompute_activations(self) -> None:
        """From now on the backward pass computes each layer again instead of keeping its activations."""
        self.run_layer = run_again_in_backward


def held_at_one(weight: Tensor, axis: int, unless: Tensor | None = None) -> Tensor:
    """A weight with its vectors along `axis` divided by their length, but where `unless` is true.

    Source: arXiv:2410.01131, sec. 2.6.
    """
    held = F.normalize(weight, dim=axis)
    return held if unless is None else torch.where(unless, weight, held)


# ---------------------------------------------------------------- decoding


def check_paddable(decoder: Decoder) -> None:
    """Raises UserError where what is computed of a token would depend on the padding beside it."""
    if mixing := next((norm for norm in decoder.modules() if isinstance(norm, Norm) and norm.sees_future), None):
        raise UserError(
            f"norm: the statistics of {type(mixing).__name__} run over {' and '.join(mixing.reduces)}, and so over the"
            " padding; give sequences of one length without padding, or use a norm over d_model alone"
        )


def check_decodable(decoder: Decoder) -> None:
    """Raises UserError where what was computed of earlier tokens changes with later ones, so that nothing can be cached."""
    for layer in decoder.layers:
        if not layer.mixer.decodes:
            raise UserError(
                f"mixer: {type(layer.mixer).__name__} keeps no state to go on from, so nothing can be decoded token by"
                " token; use another mixer, or let it keep its state in the context"
            )
    if any(mask.bidirectional for _, mask in decoder.pairs):
        raise UserError(
            "mask=full: every token attends to the ones after it, so what was cached changes with each new token;"
            " use mask=causal, prefix or window to decode"
        )
    if leaking := next((norm for norm in decoder.modules() if isinstance(norm, Norm) and norm.sees_future), None):
        raise UserError(
            f"norm: the statistics of {type(leaking).__name__} run over {' and '.join(leaking.reduces)}, so what was"
            " cached changes with each new token; use a norm over d_model alone to decode"
        )
    if stale := next((position for position, _ in decoder.pairs if position.uses_length), None):
        raise UserError(
            f"pos: {type(stale).__name__} rotates keys by how long the sequence is, so cached keys are wrong once it is longer;"
            " use a scheme of positions alone to decode"
        )
