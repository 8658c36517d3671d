"""What a layer keeps for its backward pass, term by term.

The count is that of an implementation that keeps each operation's inputs once, in the weights' precision (`e` bytes a
number), and dropout masks in one byte:

    attention   its input; q, k and v; the weights after the softmax, their dropout mask and what dropout left of them;
                what the heads read; a mask for the output's dropout
    ffn         its input; each hidden tensor that an activation, a product or down_proj needs; a dropout mask
    norms       their input, and of such as DyT what they scale
    residual    what its learned numbers multiply, and what these are computed from where they follow from the streams

For h = d_model, an ungated network of width 4h, as many key-value heads as heads (a of them) and dropout everywhere that
is s*b*(34*h + 5*a*s) bytes in half precision: 11 + 19 + 4 and 2 + 1 + 2. The statistics of norms, 8 bytes per position,
and tables shared by all layers are left out, as they are there. Each block gives its own terms (`Block.saved_activations`); of one
that gives none it is measured what autograd saves.

Source: arXiv:2205.05198, sec. 4.1 (the count), sec. 5 (recomputing); arXiv:2205.14135, sec. 3.1 (what FlashAttention keeps).
"""

import copy
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from archlab.blocks.activations import FLOAT32, MASK, Accounting, Term
from archlab.blocks.contracts import Norm, Residual
from archlab.cost.measure import DTYPES, kept_by_branches
from archlab.model.decoder import Decoder
from archlab.model.layer import Layer
from archlab.model.shapes import shapes_alone


def layer_terms(decoder: Decoder, depth: int, rules: Accounting) -> list[Term]:
    """All that one layer keeps."""
    layer = decoder.layers[depth]
    mixer, ffn = kept_by_branches(decoder, depth, rules)
    if (
        branch_inputs(layer.residual, decoder.d_model, layer.n_branches) == 1 and not layer.canons
    ):  # the same tensor, which is kept once
        ffn = tuple(term for term in ffn if not term.branch_input)
    norms = [module for module in layer.residual.modules() if isinstance(module, Norm)]
    return [
        *mixer,
        *ffn,
        *layer.saved_activations(rules),
        Term("norms: input", rules.e * sum(numbers_in_norm(norm, decoder.d_model) for norm in norms)),
        *kept_by_inner_norms(layer, rules),
        *kept_by_scheme(layer.residual, decoder.d_model, layer.n_branches, rules),
    ]


def kept_by_inner_norms(layer: Layer, rules: Accounting) -> Iterator[Term]:
    """Where branches norm what they project back to the stream: what the norm is given, beside what it makes of it.

    A block's own terms count the latter; of a block without such terms all is measured.
    """
    if not layer.residual.inner_norms:
        return
    for part in (layer.mixer, layer.ffn):
        if part.saved_activations(rules) is not None:
            width = sum(weight.fan_in for weight in part.weights() if weight.writes_to_stream)
            yield Term("norms: input within a branch", rules.e * width)


def numbers_in_norm(norm: nn.Module, d_model: int) -> int:
    """How many numbers of a token a norm keeps, as measured on a few: its input, and what else its gradient needs.

    Statistics, a number for all features, are left out.
    """
    alone = in_memory(norm, torch.float32)
    few = (torch.zeros(1, seq_len, d_model) for seq_len in (2, 3))
    two, three = (sum(tensor.untyped_storage().nbytes() for tensor in saved_by(alone, x) if tensor.shape[-1] != 1) for x in few)  # fmt: skip
    return (three - two) // FLOAT32


def kept_by_scheme(residual: Residual, d_model: int, n_branches: int, rules: Accounting) -> Iterator[Term]:
    """What a scheme keeps of a token beside its norms and its branches, as measured on a few.

    What a learned factor multiplies is needed for the factor's gradient; a scheme of several streams keeps all of them before
    each branch, and of those that mix them by numbers of their own what these are computed from.
    """
    dtype = DTYPES[rules.e]
    alone = in_memory(residual, dtype)
    for module in list(alone.modules()):
        for name, child in module.named_children():
            if isinstance(child, Norm):
                setattr(module, name, Stands())
    given = (alone.enter(torch.zeros(1, seq_len, d_model, dtype=dtype)).contiguous() for seq_len in (2, 3))
    saved = (saved_by(alone, x, (Stands(),) * n_branches) for x in given)
    two, three = (sum(tensor.untyped_storage().nbytes() for tensor in tensors) for tensors in saved)
    if three > two:  # what it makes of its weights alone is kept once, however many tokens there are
        yield Term("residual: what it multiplies", three - two)


def in_memory(module: Any, dtype: torch.dtype) -> Any:
    """A copy whose weights have memory on the CPU, and any numbers; `to_empty` would import torch's compiler for that."""
    return copy.deepcopy(module)._apply(
        lambda tensor: torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
    )


def saved_by(module: nn.Module, x: Tensor, *more: Any) -> list[Tensor]:
    """What autograd saves of a module's forward pass, a tensor of each storage; its weights left out."""
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor  # and so alive, that no other has its place
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        made = module(x.detach().requires_grad_(), *more)
    del made
    return list(kept.values())


class KeepsNothing(torch.autograd.Function):
    """A branch or a norm of which something else counts what it keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.empty_like(x)


class Stands(nn.Module):
    """In the place of a branch or a norm."""

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = KeepsNothing.apply(x)
        return made


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
        # Two tokens, since the variance of one is none: a norm over positions would refuse it.
        on_meta(on_meta.enter(torch.empty(1, 2, d_model)), (branch,) * n_branches)
    return len(read)


def outer_terms(decoder: Decoder, rules: Accounting) -> Iterator[Term]:
    """What is kept outside the layers; the losses are taken from log-probabilities in float32."""
    d_model, (vocab, width) = decoder.d_model, decoder.embedding.weight.shape
    predicted = 1 + len(decoder.trained_layers) - len(decoder.layers)
    if width != d_model:
        yield Term("embeddings before their projection", rules.e * width, needed_by=("embed_proj",))
        yield Term("head projection: input", predicted * rules.e * d_model, needed_by=("head_proj",))
    if isinstance(decoder.embed_norm, Norm):
        yield Term("embeddings before their norm", rules.e * numbers_in_norm(decoder.embed_norm, d_model))
    if rules.drops(decoder.embed_dropout.p):
        yield Term("embeddings: dropout mask", MASK * d_model)
    if covered := sum(start + 1 in decoder.skips.ends for starts in decoder.skips.ends.values() for start in starts):
        # Every other stream that skips layers is also what the next layer is given, and counted there.
        yield Term("skips: the stream within the innermost", covered * rules.e * decoder.d_model)
    if isinstance(decoder.final_norm, Norm):
        yield Term("final norm: input", predicted * rules.e * numbers_in_norm(decoder.final_norm, d_model))
    yield Term("head: input", predicted * rules.e * width, needed_by=("head",))
    yield Term("log-probabilities", predicted * FLOAT32 * vocab)


def kept(terms: Collection[Term], trained: Collection[str] | None) -> list[Term]:
    """Those still kept where only the `trained` matrices have gradients; None: all have."""
    return [term for term in terms if trained is None or term.needed_by is None or set(term.needed_by) & set(trained)]
