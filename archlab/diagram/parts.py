"""A decoder -> its sketch."""

import copy
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch
from torch import nn

from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import FeedForward, Mask, Mixer, Position
from archlab.blocks.steps import DrawnStep
from archlab.blocks.token_positions import at_the_start
from archlab.diagram import trace
from archlab.diagram.matrices import matrices
from archlab.diagram.sketch import (
    Box,
    DrawnBranch,
    DrawnHeads,
    Edge,
    Graph,
    Layers,
    LayerSketch,
    ModelSketch,
    Node,
    chain,
)
from archlab.diagram.words import box_of, details, linear, looped_in_words, scale, skips_in_words
from archlab.model.course import first_places, looped_layers, times_of
from archlab.model.decoder import Decoder
from archlab.model.layer import Layer
from archlab.model.shapes import shapes_alone


def sketch(decoder: Decoder, title: str = "") -> ModelSketch:
    """The sketch of a decoder, on any device, as it is built. Raises UserError where a block of the user's own cannot be run."""
    drawn = layers(decoder)
    lines = edges(decoder, [entry.indices for entry in drawn])
    return ModelSketch(title, embedding(decoder), drawn, head(decoder), matrices(decoder), lines, further(decoder))


def embedding(decoder: Decoder) -> Graph:
    table, position = decoder.embedding, decoder.position
    boxes = [Box("embedding", "embedding", f"{table.num_embeddings} × {table.embedding_dim}", "embedding")]
    boxes += filter(None, [box_of(decoder.embed_proj, "embed_proj")])
    if decoder.embed_scale != 1:
        by_width = math.isclose(decoder.embed_scale**2, decoder.d_model)
        boxes.append(scale(decoder.embed_scale, "√d_model" if by_width else ""))
    if (types := getattr(decoder.embed_types, "weight", None)) is not None:
        boxes.append(Box("embedding", "+ embed_types", f"the first of {len(types)}", "embed_types"))
    if position.embeds:
        boxes.append(Box("position", f"+ {type(position).__name__}", details(position), "position"))
    after = (box_of(decoder.embed_norm, "embed_norm"), box_of(decoder.embed_dropout, "embed_dropout"))
    return chain(*boxes, *filter(None, after))


def head(decoder: Decoder) -> Graph:
    """The boxes from the stream to the logits; what a head does around its table is traced, where it is a chain."""
    tied = decoder.head.weight is decoder.embedding.weight
    box = linear(decoder.head, "head")
    box = Box(box.kind, "head, tied" if tied else "head", box.detail, box.path)
    traced = trace.head(decoder.head, box)
    straight = all(node.reads == (place,) for place, node in enumerate(traced[1:]))
    there = any(node.box.path == box.path for node in traced[1:])
    inside = [node.box for node in traced[1:]] if straight and there else [box]
    before = (box_of(decoder.final_norm, "final_norm"), box_of(decoder.head_proj, "head_proj"))
    return chain(*filter(None, before), *inside)


def further(decoder: Decoder) -> DrawnHeads | None:
    """The heads of the tokens after the next, of which the first is drawn."""
    if (heads := decoder.further_tokens) is None:
        return None
    return DrawnHeads(type(heads).__name__, len(heads.layers), drawn(heads.steps, heads, "mtp", {}))


def layers(decoder: Decoder) -> tuple[Layers, ...]:
    """One entry for all layers that are built alike, ordered by the first layer of each.

    Layers before a loop, in it and after it are entries of their own, and so are those that a skip leads from or to.
    """
    alike: dict[tuple[LayerSketch, Hashable], list[int]] = {}
    of_kind = {kind: layer_sketch(decoder, decoder.kinds.index(kind)) for kind in dict.fromkeys(decoder.kinds)}
    apart = stretches(decoder)
    for index, kind in enumerate(decoder.kinds):
        alike.setdefault((of_kind[kind], apart[index]), []).append(index)
    entries = sorted(alike.items(), key=lambda entry: (apart[entry[1][0]], entry[1][0]))
    notes = notes_of(decoder, [indices for _, indices in entries])
    return tuple(
        Layers(drawn, tuple(indices), note) for ((drawn, _), indices), note in zip(entries, notes, strict=True)
    )


def stretches(decoder: Decoder) -> list[tuple[int, int]]:
    """By layer, where it stands: before, in or after the loop; and whether a skip leads from it, past it or to it.

    Of a looped layer under skips it is its first application that decides.
    """
    looped, first = looped_layers(decoder.course), first_places(decoder.course)
    ends = decoder.skips.ends
    starts = {start for these in ends.values() for start in these}
    in_loop = [
        0 if layer < min(looped, default=0) else 1 if layer <= max(looped, default=-1) else 2
        for layer in range(len(first))
    ]
    return [
        (turn, 0 if place in starts else 2 if place in ends else 1) for turn, place in zip(in_loop, first, strict=True)
    ]


def notes_of(decoder: Decoder, entries: Sequence[Sequence[int]]) -> Iterator[tuple[str, ...]]:
    """What leads to each entry's layers besides the stream, in words."""
    looped, places = looped_layers(decoder.course), decoder.by_application(range(len(decoder.layers)))
    counted = ", unrolled" if looped else ""
    for indices in entries:
        words = []
        if looped and looped[0] in indices:
            words.append(f"{looped_in_words(looped)} in turn, {times_of(decoder.course)} times")
        if ends := {end: starts for end, starts in decoder.skips.ends.items() if places[end] in indices}:
            words.append(f"x += w × output: {skips_in_words(ends)}{counted}")
        yield tuple(words)


def edges(decoder: Decoder, entries: Sequence[Sequence[int]]) -> tuple[Edge, ...]:
    """A line for the loop, and one for each pair of entries that skips lead from and to in the order of the layers."""
    entry_of = {layer: number for number, indices in enumerate(entries) for layer in indices}
    looped, places = looped_layers(decoder.course), decoder.by_application(range(len(decoder.layers)))
    loop = [Edge(max(entry_of[layer] for layer in looped), min(entry_of[layer] for layer in looped))] if looped else []
    skips = [
        Edge(entry_of[places[start]], entry_of[places[end]])
        for end, starts in decoder.skips.ends.items()
        for start in starts
    ]
    return tuple(dict.fromkeys([*loop, *(edge for edge in skips if not edge.is_loop)]))


def layer_sketch(decoder: Decoder, depth: int) -> LayerSketch:
    layer, pair = decoder.layers[depth], decoder.pairs[decoder.pair_of_layer[depth]]
    branches = (
        DrawnBranch("mixer", layer.mixer.summary, after(layer, "canon_a", mixer(layer.mixer, *pair, decoder))),
        DrawnBranch("ffn", layer.ffn.summary, after(layer, "canon_c", ffn(layer.ffn, decoder))),
    )[: layer.n_branches]
    names = [branch.name for branch in branches]
    return LayerSketch(trace.residual(layer.residual, decoder.d_model, names), branches)


def after(layer: Layer, name: str, branch: Graph) -> Graph:
    """A branch's graph with the Canon layer of this name below it, where the layer has one."""
    if name not in layer.canons:
        return branch
    canon = Box("op", f"+ conv {layer.canons[name].conv.weight.shape[-1]}", name, name)
    moved = (Node(node.box, tuple(place + 1 for place in node.reads)) for node in branch[1:])
    return (branch[0], Node(canon, (0,)), *moved)


def mixer(part: Mixer, position: Position, mask: Mask, decoder: Decoder) -> Graph:
    """The steps that a mixer itself lists, or its traced graph where it lists none."""
    steps = part.steps(position, mask)
    if steps is not None:
        return drawn(steps, part, "mixer", {"position": position, "mask": mask})
    with shapes_alone():
        token_positions = at_the_start(torch.zeros(1, trace.SEQ, dtype=torch.long), decoder.position)
        context = AttentionContext(copy.deepcopy(position).to("meta"), mask, token_positions)
    return trace.branch(part, decoder.d_model, "mixer", context)


def ffn(part: FeedForward, decoder: Decoder) -> Graph:
    """The steps that a feed-forward network itself lists, or its traced graph where it lists none."""
    steps = part.steps()
    return trace.branch(part, decoder.d_model, "ffn") if steps is None else drawn(steps, part, "ffn", {})


def drawn(steps: Sequence[DrawnStep], part: nn.Module, branch: str, by_kind: Mapping[str, nn.Module]) -> Graph:
    """Steps of a branch as boxes. A step whose part changes nothing has no box: lines go from its input to the steps after it."""
    nodes, place = list(chain()), [0]
    for step in steps:
        reads = tuple(dict.fromkeys(place[read] for read in step.reads))
        box = box_of_step(step, part, branch, by_kind)
        if box is not None:
            nodes.append(Node(box, reads))
        place.append(reads[0] if box is None else len(nodes) - 1)
    return tuple(nodes)


def box_of_step(step: DrawnStep, part: nn.Module, branch: str, by_kind: Mapping[str, nn.Module]) -> Box | None:
    if step.kind == "part":
        inside = part.get_submodule(step.path)
        path = f"{branch}.{step.path}"
        return linear(inside, path, step.detail) if isinstance(inside, nn.Linear) else box_of(inside, path)
    if step.kind in by_kind:
        return Box(step.kind, step.label, details(by_kind[step.kind]), step.kind)
    return Box(step.kind, step.label, step.detail, f"{branch}.{step.path}" if step.path else "")
