"""What can be measured of a model before training, or of two side by side; each is a number of settled configurations.

A measurement depends on its configurations, seed included, and on nothing else.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from archlab.config.assemble import assemble_without_weights, build, in_the_users_words
from archlab.config.groups import memory_settings
from archlab.cost.describe import count_parameters
from archlab.cost.estimate import Memory, estimate
from archlab.initial.measure import last_ffn_gradient, update_size
from archlab.model.decoder import Decoder
from archlab.runs.assembled import training_seed

GIGABYTE = 1e9

PROBE_BATCH, PROBE_LEN = 2, 33
"""Sequences and tokens an identity is looked at with."""


def tokens_for(cfg: DictConfig) -> Tensor:
    generator = torch.Generator().manual_seed(cfg.seed)
    return torch.randint(cfg.size.vocab_size, (PROBE_BATCH, PROBE_LEN), generator=generator)


def in_float64(cfg: DictConfig) -> Decoder:
    return build(cfg).double().eval()


@torch.no_grad()
def gap(first: Decoder, second: Decoder, tokens: Tensor) -> float:
    """Largest difference of the two models' logits, relative to the largest logit."""
    a, b = first(tokens), second(tokens)
    return float((a - b).abs().max() / a.abs().max())


def logit_gap(a: DictConfig, b: DictConfig) -> float:
    """Of two models with their own initial weights, which agree wherever their weights share a name."""
    return gap(in_float64(a), in_float64(b), tokens_for(a))


@torch.no_grad()
def centred_gap(layer: DictConfig, rms: DictConfig) -> float:
    """Of a Pre-LayerNorm model and the Pre-RMSNorm model made of it by taking the mean out of what enters the stream.

    With x - mean(x) in the stream everywhere, the root mean square is the standard deviation: centre the embeddings and
    the rows of each projection back to the stream. Source: arXiv:2305.14858; example.py of its
    released code, pre-rmsnorm-transformer.
    """
    original, centred = in_float64(layer), in_float64(rms)
    spread_norms(original)
    weights = {name: weight for name, weight in original.state_dict().items() if not name.endswith("shift")}
    centred.load_state_dict(weights)
    centred.embedding.weight -= centred.embedding.weight.mean(dim=1, keepdim=True)
    for weight in centred.weights():
        if weight.writes_to_stream:
            weight.tensor.sub_(weight.tensor.mean(dim=0, keepdim=True))
    return gap(original, centred, tokens_for(layer))


def spread_norms(model: nn.Module) -> None:
    """Gains away from one, so that an identity which only holds for gains of one does not pass; shifts stay at zero."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if name.endswith("gain"):
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def future_gradient(cfg: DictConfig) -> float:
    """Gradient of the first half's logits in the second half's embeddings over that in the first half's; Frobenius norms."""
    decoder, tokens = in_float64(cfg).train(), tokens_for(cfg)
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    decoder.embedding.register_forward_hook(keep)
    half = PROBE_LEN // 2
    decoder(tokens)[:, :half].square().sum().backward()
    gradient = kept[0].grad
    assert gradient is not None
    return float(gradient[:, half:].norm() / gradient[:, :half].norm())


def layer_is_instance_gap(cfg: DictConfig) -> float:
    """LayerNorm over d_model against vision's InstanceNorm where the positions are the channels."""
    generator = torch.Generator().manual_seed(cfg.seed)
    x = torch.randn(PROBE_BATCH, PROBE_LEN, cfg.size.d_model, generator=generator, dtype=torch.float64)
    norm = instantiate(cfg.norm)(d_model=cfg.size.d_model).double()
    return float((norm(x) - F.instance_norm(x, eps=cfg.norm.eps)).detach().abs().max())


def at_start(measure: Callable[..., float]) -> Callable[[DictConfig], float]:
    """A measurement of the preflight, on the data and at the sizes of a configuration's training."""

    def measured(cfg: DictConfig) -> float:
        with in_the_users_words():
            source = instantiate(cfg.data)
        return measure(
            build(cfg), source, seed=training_seed(cfg), batch_size=cfg.train.batch_size, seq_len=cfg.train.train_len
        )

    return measured


def memory_activations(cfg: DictConfig) -> float:
    """Decimal gigabytes the layers keep for the backward pass, under the configuration's `memory` section."""
    return memory(cfg).activations / GIGABYTE


def memory(cfg: DictConfig) -> Memory:
    return estimate(assemble_without_weights(cfg), memory_settings(cfg), cfg.train.train_len)


def parameters(cfg: DictConfig) -> float:
    return count_parameters(assemble_without_weights(cfg))


MEASURES: dict[str, Callable[..., float]] = {
    "logit_gap": logit_gap,
    "centred_gap": centred_gap,
    "future_gradient": future_gradient,
    "layer_is_instance_gap": layer_is_instance_gap,
    "last_ffn_gradient": at_start(last_ffn_gradient),
    "update_size": at_start(update_size),
    "memory.activations": memory_activations,
    "parameters": parameters,
}
