"""What a layer keeps for its backward pass, term by term.

The count is that of an implementation that keeps each operation's inputs once, in the weights' precision (`e` bytes a
number), and dropout masks in one byte:

    attention   its input; q, k and v; the weights after the softmax, their dropout mask and what dropout left of them;
                what the heads read; a mask for the output's dropout
    ffn         its input; each hidden tensor that an activation, a product or down_proj needs; a dropout mask
    norms       their input

For h = d_model, an ungated network of width 4h, as many key-value heads as heads (a of them) and dropout everywhere that
is s*b*(34*h + 5*a*s) bytes in half precision: 11 + 19 + 4 and 2 + 1 + 2. The statistics of norms, 8 bytes per position,
and tables shared by all layers are left out, as they are there. Each block gives its own terms (`Block.saved_activations`); of one
that gives none it is measured what autograd saves.

Source: arXiv:2205.05198, sec. 4.1 (the count), sec. 5 (recomputing); arXiv:2205.14135, sec. 3.1 (what FlashAttention keeps).
"""

import copy
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from archlab.blocks.activations import FLOAT32, MASK, Accounting, Term
from archlab.blocks.contracts import Norm, Residual
from archlab.cost.measure import kept_by_branches
from archlab.model.decoder import Decoder
from archlab.model.shapes import shapes_alone


def layer_terms(decoder: Decoder, depth: int, rules: Accounting) -> list[Term]:
    """All that one layer keeps."""
    layer = decoder.layers[depth]
    mixer, ffn = kept_by_branches(decoder, depth, rules)
    if (
        branch_inputs(layer.residual, decoder.d_model, layer.n_branches) == 1 and not layer.canons
    ):  # the same tensor, which is kept once
        ffn = tuple(term for term in ffn if not term.branch_input)
    n_norms = sum(isinstance(module, Norm) and module.acts for module in layer.residual.modules())
    return [
        *mixer,
        *ffn,
        *layer.saved_activations(rules),
        Term("norms: input", rules.e * n_norms * decoder.d_model),
        *kept_streams(layer.residual, decoder.d_model, rules),
    ]


def kept_streams(residual: Residual, d_model: int, rules: Accounting) -> list[Term]:
    """A scheme of several streams keeps all of them before each branch: what it mixes is needed for its gradient."""
    if residual.streams == 1:
        return []
    return [Term("residual: its streams", 2 * rules.e * residual.streams * d_model)]


def branch_inputs(residual: Residual, d_model: int, n_branches: int) -> int:
    """How many tensors a scheme's branches read: one where they are parallel, or where there is one branch."""
    read: set[int] = set()
    kept: list[Tensor] = []

    def branch(x: Tensor) -> Tensor:
        read.add(id(x))
        kept.append(x)  # so that no other tensor gets its id
        return torch.empty_like(x)

    on_meta = copy.deepcopy(residual).to("meta")
    with torch.no_grad(), shapes_alone():
        on_meta(on_meta.enter(torch.empty(1, 1, d_model)), (branch,) * n_branches)
    return len(read)


def outer_terms(decoder: Decoder, rules: Accounting) -> Iterator[Term]:
    """What is kept outside the layers; the losses are taken from log-probabilities in float32."""
    d_model, vocab = decoder.embedding.embedding_dim, decoder.embedding.num_embeddings
    if isinstance(decoder.embed_norm, Norm):
        yield Term("embeddings before their norm", rules.e * d_model)
    if rules.drops(decoder.embed_dropout.p):
        yield Term("embeddings: dropout mask", MASK * d_model)
    if covered := sum(start + 1 in decoder.skips.ends for starts in decoder.skips.ends.values() for start in starts):
        # Every other stream that skips layers is also what the next layer is given, and counted there.
        yield Term("skips: the stream within the innermost", covered * rules.e * decoder.d_model)
    predicted = 1 + len(decoder.trained_layers) - len(decoder.layers)
    if isinstance(decoder.final_norm, Norm):
        yield Term("final norm: input", predicted * rules.e * d_model)
    yield Term("head: input", predicted * rules.e * d_model, needed_by=("head",))
    yield Term("log-probabilities", predicted * FLOAT32 * vocab)


def kept(terms: Collection[Term], trained: Collection[str] | None) -> list[Term]:
    """Those still kept where only the `trained` matrices have gradients; None: all have."""
    return [term for term in terms if trained is None or term.needed_by is None or set(term.needed_by) & set(trained)]
