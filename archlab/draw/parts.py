"""A decoder -> its sketch."""

import math

from torch import nn

from archlab.blocks.attention import Attention
from archlab.blocks.contracts import Mask, Position
from archlab.draw import trace
from archlab.draw.matrices import matrices
from archlab.draw.words import box_of, details, linear, scale
from archlab.model import Decoder, Layer
from archlab.report.sketch import Box, Branch, Graph, Layers, LayerSketch, ModelSketch, Node, chain


def sketch(decoder: Decoder, title: str = "") -> ModelSketch:
    """A decoder, on whatever device, as it is built. Raises UserError where a block of the user's own cannot be run."""
    return ModelSketch(title, embedding(decoder), layers(decoder), head(decoder), matrices(decoder))


def embedding(decoder: Decoder) -> Graph:
    table, position = decoder.embedding, decoder.position
    boxes = [Box("embedding", "embedding", f"{table.num_embeddings} × {table.embedding_dim}", "embedding")]
    boxes += filter(None, [box_of(decoder.embed_proj, "embed_proj")])
    if decoder.embed_scale != 1:
        by_width = math.isclose(decoder.embed_scale**2, decoder.d_model)
        boxes.append(scale(decoder.embed_scale, "√d_model" if by_width else ""))
    if (types := getattr(decoder.embed_types, "weight", None)) is not None:
        boxes.append(Box("embedding", "+ embed_types", f"the first of {len(types)}", "embed_types"))
    if acts(position, "embed"):
        boxes.append(Box("position", f"+ {type(position).__name__}", details(position), "position"))
    after = (box_of(decoder.embed_norm, "embed_norm"), box_of(decoder.embed_dropout, "embed_dropout"))
    return chain(*boxes, *filter(None, after))


def head(decoder: Decoder) -> Graph:
    """What leads from the stream to logits; what a head does around its table is traced, where it is one thing after another."""
    tied = decoder.head.weight is decoder.embedding.weight
    box = linear(decoder.head, "head")
    box = Box(box.kind, "head, tied" if tied else "head", box.detail, box.path)
    traced = trace.head(decoder.head, box)
    straight = all(node.reads == (place,) for place, node in enumerate(traced[1:]))
    there = any(node.box.path == box.path for node in traced[1:])
    inside = [node.box for node in traced[1:]] if straight and there else [box]
    before = (box_of(decoder.final_norm, "final_norm"), box_of(decoder.head_proj, "head_proj"))
    return chain(*filter(None, before), *inside)


def layers(decoder: Decoder) -> tuple[Layers, ...]:
    """Layers that are drawn alike are one entry, in the order in which the first of each comes."""
    alike: dict[LayerSketch, list[int]] = {}
    for index, (layer, pair) in enumerate(zip(decoder.layers, decoder.pair_of_layer, strict=True)):
        alike.setdefault(layer_sketch(layer, *decoder.pairs[pair]), []).append(index)
    return tuple(Layers(drawn, tuple(indices)) for drawn, indices in alike.items())


def layer_sketch(layer: Layer, position: Position, mask: Mask) -> LayerSketch:
    d_model = layer.attention.out_proj.out_features
    network = layer.ffn
    summary = f"{type(network).__name__}, d_ff {network.down_proj.in_features}"
    return LayerSketch(
        trace.residual(layer.residual, d_model, ("attention", "ffn")),
        (
            Branch("attention", heads(layer.attention), attention(layer.attention, position, mask)),
            Branch("ffn", summary, trace.feed_forward(network, d_model)),
        ),
    )


def heads(part: Attention) -> str:
    n_heads, n_kv_heads = (proj.out_features // part.head_dim for proj in (part.q_proj, part.k_proj))
    return f"{type(part).__name__}, heads {n_heads}, kv_heads {n_kv_heads}, head_dim {part.head_dim}"


def attention(part: Attention, position: Position, mask: Mask) -> Graph:
    """From the three projections to the output, with what acts on queries, keys and scores in the order it does."""
    drawing = Wires()
    q, k, v = (drawing.add(_projection(part, name), 0) for name in ("q_proj", "k_proj", "v_proj"))
    q, k = drawing.maybe(_over_heads(part.q_norm, "q_norm"), q), drawing.maybe(_over_heads(part.k_norm, "k_norm"), k)
    if acts(position, "rotate_queries"):
        q = k = drawing.add(
            Box("position", f"{type(position).__name__} turns q, k", details(position), "position"), q, k
        )
    rescaled = getattr(part.rescale, "keywords", {}).get("by")
    factor = f"/ √{part.head_dim}" if rescaled is None else f"× {rescaled * part.head_dim**-0.5:.4g}"
    scores = drawing.add(Box("op", f"scores  q · k {factor}"), q, k)
    if softcap := getattr(part.squash, "keywords", {}).get("softcap"):
        scores = drawing.add(Box("op", f"softcap ±{softcap:g}"), scores)
    if position.biases_scores:
        scores = drawing.add(
            Box("position", f"+ {type(position).__name__} bias", details(position), "position"), scores
        )
    scores = drawing.add(Box("mask", f"mask: {type(mask).__name__}", details(mask), "mask"), scores)
    weights = drawing.add(Box("op", "softmax"), scores)
    read = drawing.add(Box("op", "weights · v"), weights, v)
    read = drawing.maybe(box_of(part.inner_norm, "attention.inner_norm"), read)
    drawing.maybe(box_of(part.out_dropout, "attention.out_dropout"), drawing.add(_projection(part, "out_proj"), read))
    return tuple(drawing.nodes)


class Wires:
    """A graph while it is made."""

    def __init__(self) -> None:
        self.nodes = list(chain())

    def add(self, box: Box, *reads: int) -> int:
        self.nodes.append(Node(box, reads))
        return len(self.nodes) - 1

    def maybe(self, box: Box | None, read: int) -> int:
        return self.add(box, read) if box else read


def _projection(part: Attention, name: str) -> Box:
    projection = getattr(part, name)
    n_heads = projection.out_features // part.head_dim
    out = "" if name == "out_proj" else f"{n_heads}×{part.head_dim}"
    return linear(projection, f"attention.{name}", out)


def _over_heads(norm: nn.Module, name: str) -> Box | None:
    return box_of(norm, f"attention.{name}")


def acts(position: Position, place: str) -> bool:
    """Whether a position scheme does something at this place: its class says so by a method of its own."""
    return getattr(type(position), place) is not getattr(Position, place)
