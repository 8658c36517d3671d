"""What a decoder costs, found by running it where running costs nothing: on the meta device, which has shapes and no numbers.

So a block states none of it, and none can be stated wrongly. A block that cannot run there, since what it does depends
on values, is run on the CPU instead, with random weights, one layer of each kind.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from archlab.blocks.activations import Accounting, Term
from archlab.blocks.cache import Cache
from archlab.blocks.token_positions import at_the_start
from archlab.cost.flops import Flops
from archlab.model.course import course_of
from archlab.model.decoder import Decoder
from archlab.model.further import next_alone
from archlab.model.layer import Layer, LayerCall, run_plainly
from archlab.model.shapes import shapes_alone

LENGTHS = (8, 16, 32)
"""At which what a block keeps is measured: three, to tell what goes by sequence, by token and by pair."""


def flops_of_solving(matrix: Tensor, wanted: Tensor, **_: Any) -> int:
    """n (n - 1) for each column: a multiply-add for each entry below the diagonal, which is ones."""
    return wanted.numel() * (matrix.shape[-1] - 1)


def flops_of_adding_products(*_: Any, out_val: Tensor, **__: Any) -> int:
    """A multiply-add for each number that comes out."""
    return 2 * out_val.numel()


LEFT_OUT: dict[Any, Callable[..., int]] = {
    torch.ops.aten.linalg_solve_triangular: flops_of_solving,
    torch.ops.aten.addcmul: flops_of_adding_products,
}
"""What torch's counter leaves out: the delta rule solves for all tokens of a chunk at once, a short convolution adds products."""


def forward_flops_per_token(decoder: Decoder, seq_len: int, training: bool = False) -> float:
    """Floating-point operations of the matrix products of one forward pass, per token.

    A multiply-add is two. Attention is counted over all seq_len x seq_len pairs, also those a mask forbids, whatever
    kernel runs and however it cuts them; the backward pass costs twice as much again. Of layers that are built alike one
    is run. Heads of further tokens are run in `training` alone.
    """
    tokens = torch.zeros(1, seq_len, dtype=torch.long, device="meta")
    short, times = one_of_each_kind(decoder)
    total = 0.0

    def run(decoder: Decoder, tokens: Tensor) -> None:
        nonlocal total
        by_layer: list[int] = []

        def counted(call: LayerCall, layer: Layer, *given: Any) -> Any:
            before = counter.total
            out = run_plainly(call, layer, *given)
            by_layer.append(counter.total - before)
            return out

        decoder.run_layer = counted
        with torch.no_grad(), Flops(LEFT_OUT) as counter:
            contexts = [context.as_one_block() for context in decoder.read(tokens)]
            decoder.compute(tokens, contexts, ahead=decoder.ahead if training else next_alone)
        more = sum((n - 1) * flops for n, flops in zip(times, by_layer[: len(times)], strict=True))
        total = counter.total + more

    where_it_can(short, run, tokens)
    return total / seq_len


def one_of_each_kind(decoder: Decoder) -> tuple[Decoder, list[int]]:
    """The same decoder with one layer of those that are built alike, and how many of each it applies; the weights are shared."""
    first = {kind: decoder.kinds.index(kind) for kind in dict.fromkeys(decoder.kinds)}
    layers = nn.ModuleList(decoder.layers[depth] for depth in first.values())
    shared = {id(value): value for name, value in vars(decoder).items() if name != "_modules"}
    shared |= {id(child): child for child in decoder.children()} | {id(decoder.layers): layers}
    short = copy.deepcopy(decoder, shared)
    short.pair_of_layer = [decoder.pair_of_layer[depth] for depth in first.values()]
    short.kinds = list(first)
    short.course = course_of(len(first))
    return short, [decoder.by_application(decoder.kinds).count(kind) for kind in first]


def costs(decoder: Decoder, seq_len: int, bytes_per_number: int) -> dict[str, float | None]:
    """FLOPs per token at a length, and what decoding keeps of a sequence: bytes for each token, and however long it is."""
    forward, state = forward_flops_per_token(decoder, seq_len), decode_state(decoder, DTYPES[bytes_per_number])
    trained = forward if decoder.ahead is next_alone else forward_flops_per_token(decoder, seq_len, training=True)
    return {
        "flops_per_token": forward,
        "train_flops_per_token": 3 * trained,
        "kv_bytes_per_token": None if state is None else state.bytes_per_token,
        "state_bytes": None if state is None else state.fixed_bytes,
    }


DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
"""By the bytes of a number."""


@dataclass(frozen=True)
class DecodeState:
    """Numbers a sequence's cache holds, and their bytes: so many `per_token`, and `fixed` however long it is."""

    per_token: int
    fixed: int
    bytes_per_token: int
    fixed_bytes: int


def decode_state(decoder: Decoder, dtype: torch.dtype = torch.float32) -> DecodeState | None:
    """What all mixers together keep to go on from, in a run of this dtype; None where one of them keeps nothing and so cannot go on.

    A mixer may keep wider numbers than the run's: the state of a recurrence is float32 in a run in half precision too.
    """
    if not all(layer.mixer.decodes for layer in decoder.layers):
        return None
    one, two = (held(decoder, seq_len, dtype) for seq_len in (1, 2))
    per_token, fixed = (two - one).tolist(), (2 * one - two).tolist()
    return DecodeState(per_token[0], fixed[0], per_token[1], fixed[1])


def held(decoder: Decoder, seq_len: int, dtype: torch.dtype) -> np.ndarray:
    """How many numbers all mixers keep of a sequence, and their bytes; of layers that are built alike one is asked."""
    short, times = one_of_each_kind(decoder)
    total = np.zeros(2, dtype=np.int64)

    def run(decoder: Decoder, tokens: Tensor) -> None:
        nonlocal total
        decoder, cache = copy.deepcopy(decoder).to(dtype), Cache()
        cache.token_positions = at_the_start(tokens, decoder.position)
        with torch.no_grad():
            decoder.eval().compute(tokens, decoder.contexts(cache.token_positions, cache))
        for n, layer in zip(times, decoder.layers, strict=True):
            kept = [tensor for part in layer.modules() for tensor in cache.states.get(part, ())]
            total += [n * sum(t.numel() for t in kept), n * sum(t.numel() * t.element_size() for t in kept)]

    where_it_can(short, run, torch.zeros(1, seq_len, dtype=torch.long, device="meta"))
    return total


# ---------------------------------------------------------------- what a branch keeps for its backward pass


def kept_by_branches(decoder: Decoder, depth: int, rules: Accounting) -> Iterator[tuple[Term, ...]]:
    """Of the mixer and of the feed-forward network of a layer: their own formulas, or what is measured."""
    layer = decoder.layers[depth]
    for name, part in (("mixer", layer.mixer), ("ffn", layer.ffn)):
        terms = part.saved_activations(rules)
        yield tuple(terms) if terms is not None else measured(decoder, depth, name, rules)


def measured(decoder: Decoder, depth: int, name: str, rules: Accounting) -> tuple[Term, ...]:
    """The input, once, and everything else that autograd saves in a forward pass, weights left out.

    A block that takes several tokens together is measured at whole chunks, two of them or more, by which alone it grows
    evenly; a shorter sequence keeps less than what is said of it.
    """
    chunk = getattr(decoder.layers[depth], name).chunk
    lengths = LENGTHS if chunk == 1 else (2 * chunk, 3 * chunk, 4 * chunk)
    saved = np.array([bytes_saved(decoder, depth, name, seq_len, rules.e) for seq_len in lengths])
    sequence, token, pair = np.linalg.solve(np.vander(lengths, increasing=True), saved).clip(min=0).tolist()
    return (
        Term(f"{name}: input", rules.e * decoder.d_model, branch_input=True),
        Term(f"{name}: what autograd keeps, as measured", token, pair, sequence),
    )


def bytes_saved(decoder: Decoder, depth: int, name: str, seq_len: int, e: int) -> float:
    """Bytes that the branch's backward pass needs of one sequence beside its input; numbers at e bytes each."""
    saved: dict[int, float] = {}

    def run(decoder: Decoder, tokens: Tensor) -> None:
        saved.clear()
        layer = decoder.layers[depth]
        context = decoder.read(tokens)[decoder.pair_of_layer[depth]]
        x = torch.randn(1, seq_len, decoder.d_model, device=tokens.device, requires_grad=True)
        skipped = {id_of(tensor) for tensor in (x, *decoder.parameters(), *decoder.buffers())}

        def note(tensor: Tensor) -> Tensor:
            if id_of(tensor) not in skipped:
                size = e if tensor.is_floating_point() else tensor.element_size()
                saved[id_of(tensor)] = size * tensor.untyped_storage().nbytes() / tensor.element_size()
            return tensor

        with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
            kept = layer.mixer(x, context) if name == "mixer" else layer.ffn(x)
        saved[0] = 0.0 * kept.numel()  # what was saved lives as long as the result, so no storage was counted twice

    where_it_can(decoder, run, torch.zeros(1, seq_len, dtype=torch.long, device="meta"))
    return sum(saved.values())


def id_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


# ---------------------------------------------------------------- where it runs


def where_it_can(decoder: Decoder, run: Callable[[Decoder, Tensor], None], tokens: Tensor) -> None:
    """Runs on the meta device, or where a block asks for values there, on the CPU with weights of no account."""
    try:
        without_numbers = on_meta(decoder)
        with shapes_alone():
            run(without_numbers, tokens)
    except (NotImplementedError, RuntimeError):
        real = with_some_weights(decoder)
        run(real, torch.zeros(tokens.shape, dtype=torch.long, device="cpu"))


def on_meta(model: Decoder) -> Decoder:
    """The same model with its weights on the meta device, nothing assembled twice; the given one keeps its own."""
    if all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        return model
    without: dict[int, Tensor] = {
        id(tensor): nn.Parameter(torch.empty_like(tensor, device="meta"), tensor.requires_grad)
        for tensor in model.parameters()
    }
    without |= {id(tensor): torch.empty_like(tensor, device="meta") for tensor in model.buffers()}
    return copy.deepcopy(model, without)


@torch.no_grad()
def with_some_weights(decoder: Decoder) -> Decoder:
    real = copy.deepcopy(decoder).to_empty(device="cpu")
    for weight in real.parameters():
        weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    for buffer in real.buffers():
        buffer.zero_()
    return real
