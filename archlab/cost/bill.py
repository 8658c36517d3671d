"""An estimate in words: under which assumptions it holds, what would change it, and what fits a budget."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from archlab.cost.estimate import Memory, activation_bytes, growth, keeps_scores, largest_batch, remedies
from archlab.cost.settings import MemorySettings
from archlab.model.decoder import Decoder

OPTIMIZERS = {
    "adam": "Adam's two optimizer states",
    "momentum": "momentum's one optimizer state",
    "sgd": "no optimizer states",
    "muon": "Muon's one optimizer state, Adam's two outside of the matrices in blocks,",
}


def rows(memory: Memory) -> dict[str, float]:
    """What there is, in bytes."""
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer states": memory.optimizer,
        "activations of the layers": memory.activations,
        "activations outside them, loss included": memory.outside,
    }


def assumptions(decoder: Decoder, settings: MemorySettings, seq_len: int) -> Iterator[str]:
    """What the figures take for granted, a sentence each."""
    sequences = f"{settings.batch} sequence{'s' * (settings.batch > 1)}"
    yield f"{sequences} of {settings.seq_len or seq_len} tokens on {'each' if settings.gpus > 1 else 'the'} GPU"
    half = "" if settings.weights == "fp32" else ", and a float32 copy of the weights"
    assert settings.optimizer is not None, "what a configuration leaves open is its own optimizer's"
    yield (
        f"weights, gradients and activations in {settings.weights}; {OPTIMIZERS[settings.optimizer]} in"
        f" float32 for each trained parameter{half}"
    )
    if keeps_scores(decoder, settings, settings.seq_len or seq_len):
        yield {
            "unfused": "attention keeps its weights for every query and key, in the same precision",
            "flash": "attention recomputes its weights and keeps one float32 sum for each query and head",
        }[settings.attention]
    yield dropout_in_words(decoder, settings)
    yield {
        "none": "every activation is kept for the backward pass",
        "selective": "attention's weights are recomputed in the backward pass",
        "full": "each layer keeps its input alone and is run again in the backward pass",
    }[settings.checkpointing]
    if settings.lora is not None:
        yield (
            f"rank-{settings.lora} adapters on {', '.join(settings.lora_targets)} alone are trained; what only frozen"
            " matrices would need is not kept"
        )
    if settings.zero:
        shared = ("optimizer states", "optimizer states and gradients", "optimizer states, gradients and weights")
        yield f"{shared[settings.zero - 1]} are shared among {settings.gpus} GPUs"
    yield "not counted: buffers of kernels and communication, the logits' copies, fragmentation"


def dropout_in_words(decoder: Decoder, settings: MemorySettings) -> str:
    if settings.dropout is not None:
        return f"dropout {'everywhere, its masks in a byte a number' if settings.dropout else 'nowhere'}"
    shares = (getattr(module, "p", 0) for module in decoder.modules())
    return f"dropout as the model has it: {'masks in a byte a number' if any(shares) else 'none'}"


WAYS: tuple[tuple[Literal["unfused", "flash"], Literal["none", "selective", "full"]], ...] = (
    ("unfused", "none"), ("unfused", "selective"), ("unfused", "full"), ("flash", "none"), ("flash", "full")
)  # fmt: skip
"""How attention is computed, and what is computed again in the backward pass."""


def otherwise(decoder: Decoder, settings: MemorySettings, seq_len: int) -> dict[str, tuple[float, float, float]]:
    """The layers' activations for every way of keeping them, and their growth at twice the length and the batch."""
    ways = {}
    scores = keeps_scores(decoder, settings, settings.seq_len or seq_len)
    for attention, checkpointing in WAYS:
        if not scores and (attention == "flash" or checkpointing == "selective"):
            continue  # without scores these are the same as the others
        way = replace(settings, attention=attention, checkpointing=checkpointing)
        kept, _ = activation_bytes(decoder, way, settings.seq_len or seq_len)
        name = f"attention={attention}, checkpointing={checkpointing}" if scores else f"checkpointing={checkpointing}"
        ways[name] = (kept, *growth(decoder, way, seq_len))
    return ways


def answer(decoder: Decoder, settings: MemorySettings, seq_len: int) -> str | None:
    """The largest batch that fits the budget, or what would have to change."""
    if settings.budget is None:
        return None
    tokens = settings.seq_len or seq_len
    if batch := largest_batch(decoder, settings, seq_len):
        return f"The largest batch that fits {settings.budget}: {batch} sequence{'s' * (batch > 1)} of {tokens} tokens."
    ways = [f"{words} (batch {batch})" for words, batch in remedies(decoder, settings, seq_len).items()]
    return (
        f"Not even a batch of one sequence of {tokens} tokens fits {settings.budget}."
        f" What would: {'; or '.join(ways) if ways else 'none of the changes known here; a smaller model or length'}."
    )
