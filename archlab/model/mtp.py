"""Forms of predicting several tokens at each position: heads for the tokens after the next, which training alone uses.

The model without them predicts the next token; validation, evaluation and decoding compute nothing of them.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import nn

from archlab.blocks.activations import Accounting, Term
from archlab.blocks.contracts import Norm, Stream
from archlab.blocks.steps import DrawnStep
from archlab.model.further import FurtherTokens, Trunk
from archlab.model.layer import Layer


class Heads(FurtherTokens):
    """A layer for each token after the next, built as the model's last one is.

    tokens  how many are predicted at each position, the next one included
    weight  what the loss of the further tokens is multiplied by; None: the form's own
    norm    makes a norm of width d_model
    layer   makes a layer
    """

    usual_weight: float

    def __init__(
        self,
        d_model: int,
        norm: Callable[[], Norm],
        layer: Callable[[], Layer],
        tokens: int,
        weight: float | None = None,
    ):
        super().__init__()
        # For a type checker a ModuleList holds any modules; these are Layers.
        self.layers = cast(Sequence[Layer], nn.ModuleList(layer() for _ in range(tokens - 1)))
        self.factor = self.share_of(self.usual_weight if weight is None else weight, tokens - 1)

    @staticmethod
    @abstractmethod
    def share_of(weight: float, heads: int) -> float:
        """What each of so many losses is multiplied by."""

    @abstractmethod
    def saved_activations(self, rules: Accounting) -> Iterator[Term]:
        """What they keep outside their layers, by head the same; logits and their norm left out."""


class Independent(Heads):
    """Heads beside the last layer: each a layer of its own on what the last one is given, then the model's norm and head.

    p(token k after the next) = head(norm(layer_k(trunk))), where the last layer is the next token's. The loss is the sum over
    all tokens, that of the further ones times `weight`.

    Source: arXiv:2404.19737, sec. 2. There a model with n heads gives up n - 1 layers of its trunk; here it keeps its n_layers.
    """

    usual_weight = 1.0
    steps = (
        DrawnStep("op", "before the last layer", "what that one is given"),
        DrawnStep("op", "layer", "built as the last one is", "layers.0", (1,)),
        DrawnStep("op", "norm and head", "the model's", reads=(2,)),
    )

    @staticmethod
    def share_of(weight: float, heads: int) -> float:
        """The weight, since losses are added."""
        return weight

    def forward(self, trunk: Trunk) -> list[Stream]:
        """Each head's stream, after the model's norm."""
        return [trunk.final_norm(trunk.run(layer, trunk.before_last)) for layer in self.layers]

    def saved_activations(self, rules: Accounting) -> Iterator[Term]:
        """Nothing but what their layers keep."""
        yield from ()


class Chained(Heads):
    """Modules one after the other, each of which is also given the embedding of the token that the one before it predicts.

    With h_0 what the model's layers leave and h_k what module k leaves, at position i:

    h_k[i] = layer_k(M_k [norm(h_(k-1)[i]); norm(embedding(token[i + k]))]), and from norm(h_k[i]) the model's head predicts
    token[i + k + 1]. The loss is the next token's, and `weight` times the mean over the modules; each module's is divided
    by the number of the next token's targets.

    Source: arXiv:2412.19437, sec. 2.2; a last norm of each module's own as in the released weights (shared_head.norm).
    """

    usual_weight = 0.3
    steps = (
        DrawnStep("op", "stream", "of module k - 1"),
        DrawnStep("op", "embedding", "of token i + k"),
        DrawnStep("part", "", path="stream_norms.0", reads=(1,)),
        DrawnStep("part", "", path="embedding_norms.0", reads=(2,)),
        DrawnStep("op", "concatenated", reads=(3, 4)),
        DrawnStep("linear", "projection", "2 d_model → d_model", "projections.0", (5,)),
        DrawnStep("op", "layer", "built as the last one is", "layers.0", (6,)),
        DrawnStep("part", "", path="final_norms.0", reads=(7,)),
        DrawnStep("op", "head", "the model's", reads=(8,)),
    )

    def __init__(
        self,
        d_model: int,
        norm: Callable[[], Norm],
        layer: Callable[[], Layer],
        tokens: int,
        weight: float | None = None,
    ):
        super().__init__(d_model, norm, layer, tokens, weight)
        heads = range(tokens - 1)
        self.d_model = d_model
        self.stream_norms = nn.ModuleList(norm() for _ in heads)
        self.embedding_norms = nn.ModuleList(norm() for _ in heads)
        self.projections = nn.ModuleList(nn.Linear(2 * d_model, d_model, bias=False) for _ in heads)
        self.final_norms = nn.ModuleList(
            norm() if layer.residual.needs_final_norm else nn.Identity() for layer in self.layers
        )

    @staticmethod
    def share_of(weight: float, heads: int) -> float:
        """The weight's part, since the mean of the losses is taken."""
        return weight / heads

    def forward(self, trunk: Trunk) -> list[Stream]:
        """Each module's stream, after its last norm.

        The last k positions have no token k further on, and are given the first ones' instead: under a causal mask nothing
        is made of them that counts.
        """
        streams, h = [], trunk.stream
        modules = zip(
            self.stream_norms, self.embedding_norms, self.projections, self.layers, self.final_norms, strict=True
        )
        for k, (stream_norm, embedding_norm, projection, layer, final_norm) in enumerate(modules, start=1):
            both = torch.cat((stream_norm(h), embedding_norm(trunk.embedded.roll(-k, dims=1))), dim=-1)
            h = trunk.run(layer, layer.residual.enter(projection(both).type_as(trunk.stream)))
            streams.append(final_norm(h))
        return streams

    def saved_activations(self, rules: Accounting) -> Iterator[Term]:
        """The inputs of two norms, and of the projection."""
        yield Term("mtp: what is normed and projected", 4 * rules.e * self.d_model)


FORMS: dict[str, type[Heads]] = {"independent": Independent, "chained": Chained}
"""How several tokens are predicted at each position, by name."""
