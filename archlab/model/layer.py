"""A layer: a mixer and a feed-forward network, joined to the residual stream; and how one is built of its parts and called."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from archlab.blocks.activations import Accounting, Term
from archlab.blocks.attention_parts import without_context
from archlab.blocks.causal_conv import Canon
from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import Block, FeedForward, Mask, Mixer, Norm, Position, Residual
from archlab.blocks.fla import RECURRENCES
from archlab.blocks.kernel import KERNELS
from archlab.blocks.taps import NOBODY_LOOKS, Scalar, Taps
from archlab.model.fitting import check_branches, check_honours, check_takes_inner_norm
from archlab.model.layer_parts import LayerParts, branches_beside, class_of, parameters_of

Watched = tuple[Tensor, dict[str, Scalar], dict[str, Scalar], dict[str, Tensor]]
"""A layer's output, what was seen in it, what it adds to the loss, and what it counted."""


class Layer(Block):
    """A mixer and a feed-forward network, joined to the residual stream by a residual scheme.

    Where there is no network (`FeedForward.acts`) the mixer is the one branch that the scheme joins.

    `canons` are the Canon layers A, of what the mixer is given, and C, of what the network is given, as far as there are.
    """

    taps = ("activation_rms",)

    def __init__(self, mixer: Mixer, ffn: FeedForward, residual: Residual, canons: Mapping[str, Canon] = {}):
        super().__init__()
        self.canon_a: Callable[[Tensor, AttentionContext], Tensor] = canons.get("A", without_context)
        self.canon_c: Callable[[Tensor, AttentionContext], Tensor] = canons.get("C", without_context)
        self.mixer = mixer
        self.ffn = ffn
        self.residual = residual
        self.register_load_state_dict_pre_hook(with_todays_names)
        self.n_branches = branches_beside(ffn)
        self.call_ffn = with_taps if "taps" in parameters_of(type(ffn).forward) else without_taps

    def forward(self, x: Tensor, context: AttentionContext, taps: Taps = NOBODY_LOOKS) -> Tensor:
        context = context.watched_by(taps)
        mix = lambda read: self.mixer(self.canon_a(read, context), context)  # noqa: E731
        transform = lambda read: self.call_ffn(self.ffn, self.canon_c(read, context), taps)  # noqa: E731
        x = self.residual(x, (mix, transform)[: self.n_branches])
        taps.tap(self.taps, partial(stream_rms, x))
        return x

    @property
    def canons(self) -> dict[str, Canon]:
        """Its Canon layers, by the names they have in it."""
        return {name: part for name, part in self.named_children() if isinstance(part, Canon)}

    def saved_activations(self, rules: Accounting) -> Iterator[Term]:
        """What it keeps beside its branches and its residual scheme."""
        for canon in self.canons.values():
            yield from canon.saved_activations(rules)

    def watched(self, x: Tensor, context: AttentionContext, wanted: Collection[str]) -> Watched:
        """The layer's output with what was seen, added to the loss and counted on the way, so that all of it leaves together."""
        taps = Taps(wanted)
        x = self(x, context, taps)
        return x, taps.seen, taps.losses, taps.counts


LayerCall = Callable[[Layer, Tensor, AttentionContext, Collection[str]], Watched]
"""`Layer.watched`, or what computes the same."""


def todays_name(weight: str) -> str:
    """A weight's name; files that were written when every mixer was attention call it so."""
    return re.sub(r"^(layers\.\d+)\.attention\.", r"\1.mixer.", weight)


def with_todays_names(layer: Layer, weights: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Renames a layer's weights of an older file, as a hook of `load_state_dict`."""
    for name in [name for name in weights if name.startswith(f"{prefix}attention.")]:
        weights[todays_name(name)] = weights.pop(name)


def with_taps(ffn: FeedForward, x: Tensor, taps: Taps) -> Tensor:
    """The call of a feed-forward network that takes `taps`."""
    return ffn(x, taps)


def without_taps(ffn: FeedForward, x: Tensor, taps: Taps) -> Tensor:
    """The call of a feed-forward network that takes no `taps`."""
    return ffn(x)


def stream_rms(x: Tensor) -> Mapping[str, Scalar]:
    """The root mean square of the stream, over all its axes; float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return {"activation_rms": torch.linalg.vector_norm(x, dtype=wide) / x.numel() ** 0.5}


def run_plainly(
    call: LayerCall, layer: Layer, x: Tensor, context: AttentionContext, wanted: Collection[str]
) -> Watched:
    """A layer's call that keeps its activations for the backward pass."""
    return call(layer, x, context, wanted)


def run_again_in_backward(
    call: LayerCall, layer: Layer, x: Tensor, context: AttentionContext, wanted: Collection[str]
) -> Watched:
    """A layer's call that keeps its inputs alone; the backward pass runs it again."""

    def around() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The first run, and the one in the backward pass."""
        return nullcontext(), buffers_as_they_are(layer)

    return checkpoint(call, layer, x, context, wanted, use_reentrant=False, context_fn=around)


@contextmanager
def buffers_as_they_are(layer: Layer) -> Iterator[None]:
    """Inside, what a layer keeps of batches, such as running statistics, may change; after it, it is what it was before.

    So a batch counts once in it, however often the layer is run on it.
    """
    kept = [(buffer, buffer.clone()) for buffer in layer.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            # Behind autograd's back, which may have saved the buffer with the batch's own statistics.
            buffer.data.copy_(before)


def make_layer(
    part: LayerParts,
    pair: tuple[Position, Mask],
    norm: Callable[..., Norm],
    d_model: int,
    depth: int,
    n_layers: int,
    n_heads: int,
    head_dim: int,
    kernel: str,
    canon: str = "",
) -> Layer:
    """A layer under its position scheme and mask. Raises UserError where a block lacks what the others ask of it."""
    check_branches(part, canon)
    place = {"layer": depth, "d_model": d_model, "branches": branches_beside(class_of(part.ffn))}
    scheme = part.residual(
        norm=partial(norm, d_model=d_model),
        n_layers=n_layers,
        **{name: value for name, value in place.items() if name in parameters_of(part.residual)},
    )
    inner = {"inner_norm": norm} if scheme.inner_norms else {}
    check_takes_inner_norm(scheme, part)
    heads = {"n_heads": n_heads, "n_kv_heads": part.n_kv_heads, "head_dim": head_dim}
    kernels = KERNELS[kernel](*pair, head_dim)
    offered = {
        "d_model": d_model,
        **heads,
        "kernel": kernels.plain,
        "capped_kernel": kernels.capped,
        "packed_kernel": kernels.packed,
        "weighing_kernel": kernels.weighing,
        "recurrence": RECURRENCES[kernel](),
        "depth": depth,
        "norm": norm,
        **inner,
    }
    mixer = part.mixer(**{name: value for name, value in offered.items() if name in parameters_of(part.mixer)})
    check_honours(mixer, *pair)
    ffn = part.ffn(d_model=d_model, d_ff=part.d_ff, **inner)
    return Layer(mixer, ffn, scheme, {letter: Canon(d_model) for letter in canon})
