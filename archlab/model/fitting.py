"""Whether blocks go together in one decoder: each check raises UserError where one lacks what another asks of it."""

from collections.abc import Sequence

from archlab.base.errors import UserError
from archlab.blocks.causal_conv import Canon
from archlab.blocks.contracts import Mask, Mixer, Position, Residual
from archlab.model.course import Course, looped_layers
from archlab.model.layer_parts import LayerParts, branches_beside, class_of, name_of, parameters_of


def check_branches(part: LayerParts, canon: str) -> None:
    """Raises UserError where a layer has the mixer alone and something needs a feed-forward network beside it."""
    if branches_beside(class_of(part.ffn)) == 2:
        return
    if "branches" not in parameters_of(part.residual):
        raise UserError(
            f"residual={name_of(part.residual)}: joins two branches, and with ffn={name_of(part.ffn)} a layer has one, its"
            " mixer; use a scheme that joins one too, such as residual=pre, or a feed-forward network"
        )
    if "C" in canon:
        raise UserError(
            f"canon={canon}: C is of what the feed-forward network is given, and with ffn={name_of(part.ffn)} a layer has"
            " none; use canon=A, or a feed-forward network"
        )


def check_takes_inner_norm(scheme: Residual, part: LayerParts) -> None:
    """Raises UserError where the scheme norms inside its branches and a branch takes no `inner_norm`."""
    for group, maker in (("ffn", part.ffn), ("mixer", part.mixer)):
        if scheme.inner_norms and "inner_norm" not in parameters_of(maker):
            raise UserError(
                f"{group}: {type(scheme).__name__} norms what each branch projects back to the stream, and"
                f" {name_of(maker)} takes no inner_norm; use another residual scheme, or give its constructor one"
            )


def check_canon(canon: str | None) -> None:
    """Raises UserError at places where no Canon layer can be built."""
    if canon in (None, "A", "C", "AC"):
        return
    if "B" in canon:
        raise UserError(
            f"canon={canon}: B, on queries, keys and values, is an option of attention; use mixer.conv={Canon.SIZE}"
            " mixer.conv_residual=true, and canon=A, C or AC beside it"
        )
    if "D" in canon:
        raise UserError(
            f"canon={canon}: D would mix positions inside the feed-forward network, which transforms each position alone; use"
            " canon=A, C or AC"
        )
    raise UserError(f"canon={canon}: are no places of Canon layers, once each and in order; use A, C or AC")


def check_honours(mixer: Mixer, position: Position, mask: Mask) -> None:
    """Raises UserError where a position scheme or a mask would be without effect on this mixer."""
    name = type(mixer).__name__
    if not mask.causal and "mask" not in mixer.honours:
        raise UserError(
            f"mask: there is no such thing as {name} under a {type(mask).__name__} mask: it is causal by nature and has no"
            " scores to mask; use mask=causal, or another mixer"
        )
    for what, there, does in (
        ("rotation", position.rotates, "rotates queries and keys"),
        ("bias", position.biases_scores, "adds to scores"),
    ):
        if there and what not in mixer.honours:
            raise UserError(
                f"pos: {type(position).__name__} {does}, and {name} has none that it could act on; use pos=none, a scheme that"
                " adds to the embeddings such as pos=sinusoidal, or another mixer"
            )


def check_positions(base: Position, others: Sequence[Position]) -> None:
    """Raises UserError where the layers' own schemes would need embeddings or position numbers of their own."""
    for other in others:
        if other.embeds:
            raise UserError(
                f"layers: {type(other).__name__} adds to the embeddings, which all layers share; use it for the"
                " whole model, or in some layers a scheme that rotates queries and keys or biases scores"
            )
        if other.axes != base.axes or other.axes > 1 or other.limit is not None:
            raise UserError(
                f"layers: {type(other).__name__} has positions of its own beside {type(base).__name__}'s; in some layers use"
                " a scheme of one axis, without a table"
            )


def check_looped(course: Course, parts: Sequence[LayerParts]) -> None:
    """Raises UserError where a looped layer's residual scheme goes by the layer's number."""
    for depth in looped_layers(course):
        if "layer" in parameters_of(parts[depth].residual):
            name = name_of(parts[depth].residual)
            raise UserError(
                f"residual={name}: goes by a layer's number, and layer {depth} has several, since loop.times applies it more"
                " than once; use another scheme in the loop, or loop.layers without this layer"
            )


def check_streams(schemes: Sequence[Residual], skips: str | None) -> None:
    """Raises UserError where layers have different numbers of streams, or where one of several would skip layers."""
    counts = dict.fromkeys(scheme.streams for scheme in schemes)
    if skips is not None and max(counts) > 1:
        raise UserError(
            f"skips={skips}: adds one stream to another, and residual={type(schemes[0]).__name__} has {max(counts)} side by side"
            " and mixes them itself; use skips=null, or a scheme of one stream"
        )
    if len(counts) > 1:
        raise UserError(
            f"layers: residual schemes of {' and '.join(map(str, counts))} streams follow each other, and a stream cannot"
            " change its width between two layers; use schemes of as many streams in all of them"
        )


def check_given(mixers: Sequence[Mixer], course: Course) -> None:
    """Raises UserError where a mixer needs what no earlier layer leaves for it, or leaves what no later layer needs, or twice.

    `mixers` are those of the course's applications.
    """
    given: dict[str, tuple[int, ...]] = {}
    for (depth, visit), mixer in zip(course, mixers, strict=True):
        for what in mixer.gives if visit else ():
            raise UserError(
                f"mixer: layer {depth} leaves the {what} for later layers, and would leave others each time that loop.times"
                " applies it; leave the option out, or use loop.layers without this layer"
            )
        for what, sizes in mixer.needs.items():
            if given.get(what) != sizes:
                there = f"those left for it have {given[what]}" if what in given else "no layer before it leaves them"
                raise UserError(
                    f"mixer: layer {depth} needs the {what}, of sizes {sizes}, and {there}; use the same option and sizes"
                    " in all layers, the first included"
                )
        given |= mixer.gives
    for what in given:
        if not any(what in mixer.needs for mixer in mixers):
            raise UserError(
                f"mixer: no layer uses the {what} that the first one leaves for others, so it would change nothing; use"
                " the option in later layers too, or leave it out"
            )
