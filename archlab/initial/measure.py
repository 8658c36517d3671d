"""What is measured of a decoder as it starts. Every function leaves the decoder's weights and gradients as they were."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import get_total_norm

from archlab.blocks.contracts import Block
from archlab.blocks.roles import MATRICES
from archlab.data.batch import Batch, Source
from archlab.model.decoder import Decoder
from archlab.model.layer import Layer
from archlab.probe.look import Columns, by_layer, columns, gradient_norms
from archlab.train.objective import TokenLosses, run, token_losses
from archlab.train.runtime import Runtime

BATCH_SIZE, SEQ_LEN = 8, 64
FLOAT32 = Runtime(torch.device("cpu"), torch.float32)
ADAM_BETAS = (0.9, 0.98)
"""Those of the DeepNet experiments, whose hyperparameters are in arXiv:2203.00555, app. D; its tables were not seen."""


@dataclass(frozen=True)
class InitialMeasures:
    """A decoder at its initial weights, seen on one batch."""

    loss: float
    """Nats per scored target."""

    uniform_loss: float
    """ln V: the loss of knowing nothing."""

    logit_std: float
    layers: list[dict[str, float]]
    """By layer: activation_rms, attention_entropy, max_score, grad_norm, and the gradient's Frobenius norm by matrix."""

    @property
    def growth_exponent(self) -> float | None:
        """p in activation_rms ~ layer^p, layers counted from 1; None for fewer than two layers."""
        return exponent(range(1, len(self.layers) + 1), [layer["activation_rms"] for layer in self.layers])

    @property
    def gradient_ratio(self) -> float:
        """The first layer's gradient norm over the last one's."""
        last = self.layers[-1]["grad_norm"]
        return self.layers[0]["grad_norm"] / last if last else math.inf

    def to_record(self) -> dict[str, object]:
        """The same as a record."""
        return asdict(self) | {"growth_exponent": self.growth_exponent, "gradient_ratio": self.gradient_ratio}


def look_at_start(
    decoder: Decoder,
    source: Source,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    seq_len: int = SEQ_LEN,
    where: Runtime = FLOAT32,
) -> InitialMeasures:
    """One forward and one backward pass on the first training batch of this seed, on the device the decoder is on."""
    with at_rest(decoder):
        with where.autocast():
            losses, output = run(decoder, source.train(seed, 1, batch_size, seq_len), decoder.taps)
        loss = backward(decoder, losses, where)
        seen = columns(output.taps) | {"grad_norm": decoder.by_application(gradient_norms(decoder.layers))}
        matrices = [matrix_gradients(layer) for layer in decoder.applied]
    return InitialMeasures(
        loss=loss,
        uniform_loss=math.log(decoder.head.out_features),
        logit_std=float(output.logits.detach().float().std()),
        layers=[{**layer, **norms} for layer, norms in zip(in_numbers(seen), matrices, strict=True)],
    )


def last_ffn_gradient(
    decoder: Decoder, source: Source, seed: int = 0, batch_size: int = BATCH_SIZE, seq_len: int = SEQ_LEN
) -> float:
    """Frobenius norm of the loss's gradient at what the last feed-forward network writes to the stream by (down_proj).

    At initialisation it is at most of order d sqrt(ln d) with post-norm, whatever the number L of layers, and of order
    d sqrt(ln d / L) with pre-norm. Source: arXiv:2002.04745, theorem 1.
    """
    with at_rest(decoder):
        backward(decoder, token_losses(decoder, source.train(seed, 1, batch_size, seq_len)), FLOAT32)
        return to_stream_gradient(decoder.layers[-1].ffn)


def update_size(
    decoder: Decoder,
    source: Source,
    steps: int = 5,
    lr: float = 1e-5,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    seq_len: int = SEQ_LEN,
    where: Runtime = FLOAT32,
) -> float:
    """How far a few steps of Adam without warm-up move what the model computes: mean over held-out tokens of
    ||F_steps - F_0|| / sqrt(d_model), F being what the head reads.

    Source: arXiv:2203.00555, sec. 3 and fig. 5.
    """
    held_out = next(source.validation(seq_len, batch_size * seq_len, batch_size))
    moved = copy.deepcopy(decoder)
    optimizer = torch.optim.Adam(moved.parameters(), lr=lr, betas=ADAM_BETAS)
    with own_draws(seed):
        moved.train()
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            with where.autocast():
                losses = token_losses(moved, source.train(seed, step, batch_size, seq_len))
            backward(moved, losses, where)
            optimizer.step()
            moved.hold()
    with where.autocast():
        change = read_by_head(moved, held_out) - read_by_head(decoder, held_out)
    return float(change.norm(dim=-1).mean()) / change.shape[-1] ** 0.5


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """p of the least-squares line log y = p log x + c; None for fewer than two points or numbers that have no logarithm."""
    if len(x) < 2 or not all(value > 0 and math.isfinite(value) for value in y):
        return None
    from scipy import stats  # here, since it takes a second to import, and no run needs it

    return float(stats.linregress([math.log(value) for value in x], [math.log(value) for value in y]).slope)


def in_numbers(seen: Columns) -> list[dict[str, float]]:
    return by_layer(
        {name: [None if value is None else float(value) for value in of_layers] for name, of_layers in seen.items()}
    )


def backward(decoder: Decoder, losses: TokenLosses, where: Runtime) -> float:
    """Sets the gradients of the mean loss over the scored targets; returns that loss.

    In float16 the loss is scaled up beforehand, as in training, by the largest power of two at which no gradient overflows.
    """
    loss, scale = losses.total / losses.scored.sum().clamp(min=1), where.scaler().get_scale()
    (scale * loss).backward(retain_graph=scale > 1)
    while scale > 1 and not all(gradient.isfinite().all() for gradient in gradients(decoder)):
        scale /= 2
        decoder.zero_grad()
        (scale * loss).backward(retain_graph=scale > 1)
    for gradient in gradients(decoder):
        gradient.div_(scale)
    return float(loss.detach())


def gradients(decoder: Decoder) -> list[Tensor]:
    """Those that there are."""
    return [parameter.grad for parameter in decoder.parameters() if parameter.grad is not None]


def matrix_gradients(layer: Layer) -> dict[str, float]:
    """The gradient's Frobenius norm, by the matrix's name, and of what each branch writes to the stream by."""
    by_name: dict[str, float] = {}
    for weight in layer.weights():
        if weight.role in MATRICES and weight.tensor.grad is not None:
            short = weight.name.removesuffix(".weight").rpartition(".")[2]
            by_name[weight.name if short in by_name else short] = float(weight.tensor.grad.norm())
    branches = (("mixer", layer.mixer), ("ffn", layer.ffn))[: layer.n_branches]
    return by_name | {f"{name}_to_stream": to_stream_gradient(part) for name, part in branches}


def to_stream_gradient(part: Block) -> float:
    """Frobenius norm of the gradient of all that a branch writes to the residual stream by; 0 where that is nothing."""
    gradients = [weight.tensor.grad for weight in part.weights() if weight.writes_to_stream]
    return float(get_total_norm([gradient for gradient in gradients if gradient is not None]))


@torch.no_grad()
def read_by_head(decoder: Decoder, batch: Batch) -> Float[Tensor, "batch seq d_model"]:
    """What the head turns into logits, in evaluation mode."""
    seen: list[Tensor] = []
    hook = decoder.head.register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0].float()))
    with at_rest(decoder):
        token_losses(decoder, batch)
    hook.remove()
    return seen[0]


@contextmanager
def at_rest(decoder: Decoder) -> Iterator[None]:
    """Evaluation mode and no gradients; afterwards the mode and the gradients that there were."""
    training, gradients = decoder.training, [parameter.grad for parameter in decoder.parameters()]
    decoder.zero_grad(set_to_none=True)
    decoder.eval()
    try:
        yield
    finally:
        decoder.train(training)
        for parameter, gradient in zip(decoder.parameters(), gradients, strict=True):
            parameter.grad = gradient


@contextmanager
def own_draws(seed: int) -> Iterator[None]:
    """Dropout's draws depend on the seed, and nobody else's draws on these."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
