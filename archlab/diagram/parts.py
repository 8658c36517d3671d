"""A decoder -> its sketch."""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from archlab.blocks.context import AttentionContext
from archlab.blocks.contracts import FeedForward, Mask, Mixer, Position
from archlab.blocks.steps import DrawnStep
from archlab.blocks.token_positions import at_the_start
from archlab.diagram import trace
from archlab.diagram.matrices import matrices
from archlab.diagram.sketch import Box, DrawnBranch, DrawnHeads, Graph, Layers, LayerSketch, ModelSketch, Node, chain
from archlab.diagram.words import box_of, details, linear, scale
from archlab.model.decoder import Decoder, Layer


def sketch(decoder: Decoder, title: str = "") -> ModelSketch:
    """The sketch of a decoder, on any device, as it is built. Raises UserError where a block of the user's own cannot be run."""
    return ModelSketch(title, embedding(decoder), layers(decoder), head(decoder), matrices(decoder), further(decoder))


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
    """One entry for all layers that are built alike, ordered by the first layer of each."""
    alike: dict[LayerSketch, list[int]] = {}
    of_kind = {kind: layer_sketch(decoder, decoder.kinds.index(kind)) for kind in dict.fromkeys(decoder.kinds)}
    for index, kind in enumerate(decoder.kinds):
        alike.setdefault(of_kind[kind], []).append(index)
    return tuple(Layers(drawn, tuple(indices)) for drawn, indices in alike.items())


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
    with torch.device("meta"):
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
