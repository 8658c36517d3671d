"""Weights, gradients, optimiser states and activations: what one GPU holds at the fullest moment of a training step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from archlab.blocks.activations import Accounting, Term
from archlab.cost.activations import kept, layer_terms, outer_terms
from archlab.cost.describe import count_parameters
from archlab.cost.settings import MemorySettings, adapted
from archlab.model.decoder import Decoder

STATES = {"adam": 2, "momentum": 1, "sgd": 0, "muon": 2}
"""Float32 numbers an optimiser keeps for each trained parameter; Muon, of matrices inside blocks, one less."""

FLOAT32 = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """What the layers keep for the backward pass."""

    outside: float
    """What embeddings, head and loss keep."""

    trainable: int
    """Parameters that are trained."""

    @property
    def total(self) -> float:
        return self.fixed + self.by_batch

    @property
    def fixed(self) -> float:
        """What does not depend on the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def by_batch(self) -> float:
        """What is proportional to it."""
        return self.activations + self.outside


def estimate(decoder: Decoder, settings: MemorySettings, seq_len: int) -> Memory:
    """What training takes; the decoder may be on the meta device. `seq_len` holds where the settings name no other.

    weights     e bytes a parameter, e being 2 in half precision and 4 in single
    gradients   e bytes a trained parameter
    optimizer   4 bytes a trained parameter for each state (Adam two, momentum one, plain SGD none, Muon one of matrices
                inside blocks and two of the rest), and 4 for a float32 copy of the weights where those are in half
                precision: 2 + 2 + 12 bytes in all with Adam
    activations as `archlab.cost.activations` counts them. `selective` recomputes scores and weights; `full` keeps
                each layer's input, and one layer's activations while it is gone through again
    lora        r * (d_in + d_out) more parameters per matrix, the only ones trained; r more numbers per token are kept
    zero        shares among the GPUs: 1 optimiser states, 2 gradients too, 3 weights too; `batch` is each GPU's

    Source: arXiv:1910.02054, sec. 3.1 (bytes a parameter) and sec. 5 (stages); arXiv:2106.09685, sec. 4.1 (LoRA).
    """
    e, n_params = settings.bytes_per_number, count_parameters(decoder)
    adapters = adapter_parameters(decoder, settings)
    trainable = n_params if settings.lora is None else adapters
    master = FLOAT32 if e < FLOAT32 else 0
    weights, gradients = e * (n_params + adapters), e * trainable
    optimizer = FLOAT32 * kept_by_optimizer(decoder, settings, trainable) + master * trainable
    inside, outside = activation_bytes(decoder, settings, settings.seq_len or seq_len)
    return Memory(
        weights=weights / (settings.gpus if settings.zero >= 3 else 1),
        gradients=gradients / (settings.gpus if settings.zero >= 2 else 1),
        optimizer=optimizer / (settings.gpus if settings.zero >= 1 else 1),
        activations=inside,
        outside=outside,
        trainable=trainable,
    )


def kept_by_optimizer(decoder: Decoder, settings: MemorySettings, trainable: int) -> int:
    """Numbers, of as many trained parameters."""
    assert settings.optimizer is not None, "what a configuration leaves open is its own optimizer's"
    numbers = STATES[settings.optimizer] * trainable
    if settings.optimizer != "muon":
        return numbers
    if settings.lora is not None:  # adapters are matrices inside blocks
        return numbers - trainable
    return numbers - sum(weight.tensor.numel() for weight in decoder.weights() if weight.is_inner_matrix)


def adapter_parameters(decoder: Decoder, settings: MemorySettings) -> int:
    if settings.lora is None:
        return 0
    return sum(settings.lora * sum(linear.weight.shape) for _, linear in adapted(decoder, settings))


def activation_bytes(decoder: Decoder, settings: MemorySettings, seq_len: int) -> tuple[float, float]:
    """What the layers keep, and what is kept outside them."""
    rules = Accounting(settings.bytes_per_number, settings.attention == "flash", settings.dropout)
    trained = None if settings.lora is None else settings.lora_targets
    of_layers = [kept_by_layer(terms, settings) for terms in terms_by_layer(decoder, settings, rules)]
    n = len(decoder.layers)
    layers = [*decoder.by_application(of_layers[:n]), *of_layers[n:]]  # and those of further tokens' heads
    by_layer = [sum(term.bytes(settings.batch, seq_len) for term in terms) for terms in layers]
    outside = sum(term.bytes(settings.batch, seq_len) for term in kept(list(outer_terms(decoder, rules)), trained))
    if settings.checkpointing == "full":
        # Layers have one number of streams, all of which each is given; further tokens' heads are built as the last one.
        given = rules.e * decoder.layers[0].residual.streams * decoder.d_model
        inputs = Term("layer: input", given).bytes(settings.batch, seq_len)
        return inputs * len(layers) + max(by_layer), outside
    return sum(by_layer), outside


ATTENTION: tuple[Literal["unfused", "flash"], ...] = ("unfused", "flash")
"""Kernels, by what they keep of the scores."""


def keeps_scores(decoder: Decoder, settings: MemorySettings, seq_len: int) -> bool:
    """Whether some mixer keeps something for every query and key, so that the kind of attention kernel makes a difference."""
    unfused, flash = (
        activation_bytes(decoder, replace(settings, attention=attention, checkpointing="none"), seq_len)
        for attention in ATTENTION
    )
    return unfused != flash


def terms_by_layer(decoder: Decoder, settings: MemorySettings, rules: Accounting) -> Iterator[list[Term]]:
    trained = None if settings.lora is None else settings.lora_targets
    ranks: dict[int, int] = {}
    if settings.lora is not None:
        for name, _ in adapted(decoder, settings):
            depth = int(name.partition(".")[0])
            ranks[depth] = ranks.get(depth, 0) + settings.lora
    terms = terms_by_kind(decoder, rules)
    for depth in range(len(decoder.layers)):
        yield [*kept(terms[depth], trained), Term("lora: between A and B", rules.e * ranks.get(depth, 0))]
    if (heads := decoder.further_tokens) is not None:
        for _ in heads.layers:
            yield kept([*terms[-1], *(heads.saved_activations(rules) or ())], trained)


def terms_by_kind(decoder: Decoder, rules: Accounting) -> list[list[Term]]:
    """By layer; of layers that are built alike one alone is asked."""
    of_kind = {kind: layer_terms(decoder, decoder.kinds.index(kind), rules) for kind in set(decoder.kinds)}
    return [of_kind[kind] for kind in decoder.kinds]


def kept_by_layer(terms: list[Term], settings: MemorySettings) -> list[Term]:
    if settings.checkpointing != "selective":
        return terms
    return [replace(term, pair=0) for term in terms]


def growth(decoder: Decoder, settings: MemorySettings, seq_len: int) -> tuple[float, float]:
    """How many times as large the layers' activations are at twice the length, and at twice the batch."""
    seq_len = settings.seq_len or seq_len
    once, _ = activation_bytes(decoder, settings, seq_len)
    longer, _ = activation_bytes(decoder, settings, 2 * seq_len)
    wider, _ = activation_bytes(decoder, replace(settings, batch=2 * settings.batch), seq_len)
    return longer / once, wider / once


def largest_batch(decoder: Decoder, settings: MemorySettings, seq_len: int) -> int:
    """The most sequences a GPU holds within `memory.budget`; 0 where not even one fits."""
    assert settings.budget_bytes is not None
    one = estimate(decoder, replace(settings, batch=1), seq_len)
    return max(0, int((settings.budget_bytes - one.fixed) // one.by_batch))


REMEDIES: dict[str, dict] = {
    "memory.attention=flash": {"attention": "flash"},
    "memory.checkpointing=full": {"checkpointing": "full"},
    "memory.lora=8": {"lora": 8},
    "memory.zero=3 memory.gpus=8": {"zero": 3, "gpus": 8},
}


def remedies(decoder: Decoder, settings: MemorySettings, seq_len: int) -> dict[str, int]:
    """The smallest sets of changes with which a sequence fits, and the largest batch with each; empty where none does."""
    open_to = {words: change for words, change in REMEDIES.items() if changes(settings, change)}
    for how_many in range(1, len(open_to) + 1):
        found = {}
        for chosen in combinations(open_to, how_many):
            changed = replace(settings, **{name: value for words in chosen for name, value in open_to[words].items()})
            if changed.attention == "flash" and changed.checkpointing == "selective":
                changed = replace(changed, checkpointing="none")
            if (batch := largest_batch(decoder, changed, seq_len)) > 0:
                found[" ".join(chosen)] = batch
        if found:
            return found
    return {}


def changes(settings: MemorySettings, change: dict) -> bool:
    """Whether a remedy is one: not already taken, nor a weaker form of what is."""
    if "lora" in change:
        return settings.lora is None
    if "zero" in change:
        return settings.zero < 3 and settings.gpus <= change["gpus"]
    return any(getattr(settings, name) != value for name, value in change.items())
