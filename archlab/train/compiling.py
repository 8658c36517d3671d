"""A training step whose layers are compiled by torch.compile: one layer is compiled, and called in the place of all like it.

What is compiled is a layer's call and not the whole step, so compiling takes as long for four layers as for forty. What
torch made of a layer it keeps on disk (TORCHINDUCTOR_CACHE_DIR, a folder of the system's temporary ones by default), where
the next process finds it. On CUDA no CUDA graphs are recorded: a graph keeps its outputs in memory of its own, which the
next replay overwrites, and a graph of one layer is replayed for the next layer before the backward pass has read it.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor

from archlab.base.errors import UserError, shortened
from archlab.base.messages import one_line
from archlab.blocks.context import AttentionContext
from archlab.model.decoder import Decoder
from archlab.model.layer import Layer, LayerCall, Watched

Compile = Literal["auto", "on", "off"]

BACKEND = "inductor"

KEPT_IN = "TORCHINDUCTOR_CACHE_DIR"
"""The environment's word for the folder of what torch compiles."""


def why_not_compiled(device: torch.device) -> str | None:
    """What torch.compile lacks to compile for this device, and what to do; None where it lacks nothing."""
    if device.type == "mps":
        return "is for CPUs and CUDA devices, and this run is on mps; use compile=off"
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "needs Triton, and torch finds none here; install it, or use compile=off"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:  # torch has a class of its own for it, whose place has moved between its versions
        return "needs a C++ compiler such as g++, and torch finds none here; install one, or use compile=off"
    return why_not_kept()


def why_not_kept() -> str | None:
    """Why what torch compiles cannot be written, and what to do; None where it can."""
    from torch._inductor.codecache import cache_dir

    folder = os.environ.get(KEPT_IN) or tempfile.gettempdir()
    try:
        folder = cache_dir()
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        return (
            f"writes what it compiles to {folder}, which cannot be: {why}; give another folder in {KEPT_IN}, or use"
            " compile=off"
        )


def one_layer(layer: Layer, x: Tensor, context: AttentionContext, wanted: Collection[str]) -> Watched:
    """What is compiled."""
    return layer.watched(x, context, wanted)


class CompiledLayers:
    """Calls a decoder's layers compiled; layers of one kind share what was compiled.

    Where these differ in a number all the same, as one that their depth gives them, torch compiles each by itself, and keeps only
    a few programs of one function: the layers after these have functions of their own.

    Where torch cannot compile a layer, `strict` raises UserError, and otherwise all layers are called eagerly from then on.
    """

    def __init__(self, decoder: Decoder, strict: bool):
        self.strict, self.in_use = strict, True
        kinds = {kind: compiled(one_layer) for kind in decoder.kinds}
        both = zip(decoder.trained_layers, decoder.kinds_trained, strict=True)
        self.of_layer = {layer: kinds[kind] for layer, kind in both}
        self.by_itself: set[Layer] = set()

    def __call__(self, layer: Layer, x: Tensor, context: AttentionContext, wanted: Collection[str]) -> Watched:
        if not self.in_use:
            return layer.watched(x, context, wanted)
        try:
            with compile_errors("a layer of this model"):
                return self.compiled_call(layer, x, context, wanted)
        except UserError as error:  # raised before anything was computed
            if self.strict:
                raise
            print(f"archlab: note: {error}: the layers are called eagerly", file=sys.stderr)
        self.in_use = False
        return layer.watched(x, context, wanted)

    def compiled_call(self, layer: Layer, x: Tensor, context: AttentionContext, wanted: Collection[str]) -> Watched:
        """What the layer's function computes, which becomes its own where torch keeps no more programs of the shared one."""
        from torch._dynamo.exc import FailOnRecompileLimitHit  # here, since it takes a second to import

        try:
            return self.of_layer[layer](layer, x, context, wanted)
        except FailOnRecompileLimitHit:
            if layer in self.by_itself:
                raise
        self.by_itself.add(layer)
        self.of_layer[layer] = compiled(one_layer)
        return self.of_layer[layer](layer, x, context, wanted)


@contextmanager
def compile_errors(what: str) -> Iterator[None]:
    """Turns torch's exceptions where it cannot compile something into a UserError."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # here: it takes a second to import

    try:
        yield
    except FailOnRecompileLimitHit:
        raise UserError(
            f"compile=on: torch cannot compile {what} (it would be more programs than torch keeps of one function); use"
            " compile=off"
        ) from None
    except TorchDynamoException as error:
        why = shortened(one_line(str(error).partition("\nSet TORCH")[0]), 200)
        raise UserError(f"compile=on: torch cannot compile {what} ({why}); use compile=off") from None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled anew: torch keeps what it compiled with a function's code, and counts it there for all models.

    From then on what torch compiles in this process draws as it does eagerly, so that dropout is the same either way.
    """
    from torch._inductor import config  # here: it takes part of a second to import

    assert isinstance(function, FunctionType)
    config.fallback_random = True
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__)
    return torch.compile(own, backend=BACKEND, fullgraph=True, dynamic=False)


def programs_of(decoder: Decoder) -> int:
    """How many programs torch compiles for a decoder's layers: of one kind it takes as one those that have the same numbers.

    One more, which a first layer may need for what it makes for all of them, is left out.
    """
    both = zip(decoder.kinds_trained, decoder.trained_layers, strict=True)
    return len({(kind, *written_into(layer)) for kind, layer in both})


def written_into(layer: Layer) -> Iterator[tuple[Any, ...]]:
    """What torch writes into a program of a layer: classes of its modules, their numbers and words, the code of functions they hold.

    A kernel that is made for each layer has one code in all of them.
    """
    for path, module in layer.named_modules():
        yield path, type(module)
        for name, value in vars(module).items():
            if isinstance(value, int | float | str):
                yield path, name, value
            elif isinstance(value, FunctionType):
                yield path, name, value.__code__


def layer_calls(decoder: Decoder, compile: Compile) -> LayerCall:
    """How a training step calls the decoder's layers."""
    return Layer.watched if compile == "off" else CompiledLayers(decoder, strict=compile == "on")
