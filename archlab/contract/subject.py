"""What is verified: a small decoder with the blocks in question, all of its sizes different."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from archlab.base.configuration import copied
from archlab.blocks.roles import Role
from archlab.config.assemble import assemble
from archlab.model.decoder import Decoder

BATCH, SEQ, PREFIX, SEED = 2, 7, 3, 0
SECOND = 2
"""The token at which the second of three documents starts, in the models that keep documents apart."""

CPU = torch.device("cpu")

SMALL = (
    "size.d_model=48",
    "size.n_layers=4",
    "size.n_heads=6",
    "size.head_dim=10",
    "size.vocab_size=61",
    "train.train_len=4",  # the width of a window, so that some of the past is out of its reach
    "allow_leak=true",
)
"""Overrides of the decoder a block is verified in; the user's own words come after them."""


@dataclass(frozen=True)
class Subject:
    """A configuration of a small decoder, and where it is verified."""

    cfg: DictConfig
    device: torch.device = CPU

    def with_block(self, group: str, kind: type, **options: Any) -> "Subject":
        """The same with another block in a group."""
        changed = copied(self.cfg)
        with open_dict(changed):
            changed[group] = {"_target_": f"{kind.__module__}.{kind.__qualname__}", "_partial_": True, **options}
        return replace(self, cfg=changed)

    def with_option(self, group: str, option: str, value: Any) -> "Subject":
        changed = copied(self.cfg)
        changed[group][option] = value
        return replace(self, cfg=changed)

    def decoder(self, dtype: torch.dtype = torch.float64) -> Decoder:
        """In evaluation, with the same random weights every time."""
        torch.manual_seed(SEED)
        return self.random(assemble(self.cfg), dtype)

    def begun_and_random(self) -> tuple[list[Tensor], Decoder]:
        """The same decoder, and what its blocks had started their gains, biases and scalars at; all else is drawn."""
        torch.manual_seed(SEED)
        decoder, kept = assemble(self.cfg), (Role.GAIN, Role.BIAS, Role.SCALAR)
        begun = [weight.tensor.detach().clone() for weight in decoder.weights() if weight.role in kept]
        return begun, self.random(decoder, torch.float64)

    def random(self, decoder: Decoder, dtype: torch.dtype) -> Decoder:
        return randomise(decoder).to(self.device, dtype).eval()

    @cached_property
    def tokens(self) -> Tensor:
        """(batch, seq)"""
        draws = torch.Generator().manual_seed(SEED)
        return torch.randint(self.cfg.size.vocab_size, (BATCH, SEQ), generator=draws).to(self.device)


def prefix_of(decoder: Decoder) -> int | None:
    return PREFIX if decoder.mask.uses_prefix else None


def documents_of(decoder: Decoder, tokens: Tensor) -> Tensor | None:
    """Where the documents of a sequence start: at 0, at SECOND and at twice SECOND; None where a mask keeps none apart."""
    if not decoder.mask.uses_documents:
        return None
    index = torch.arange(tokens.shape[1], device=tokens.device)
    return (index // SECOND).clamp(max=2).mul(SECOND)[None]


def logits_of(decoder: Decoder, tokens: Tensor) -> Tensor:
    return decoder(tokens, prefix_of(decoder), document_starts=documents_of(decoder, tokens))


AnyModule = TypeVar("AnyModule", bound=nn.Module)


@torch.no_grad()
def randomise(module: AnyModule) -> AnyModule:
    """Weights that keep a signal's size, gains around one and biases around zero, so that each of them counts."""
    for name, weight in module.named_parameters():
        weight.normal_().mul_(0.3 if weight.dim() < 2 else weight.shape[-1] ** -0.5)
        if weight.dim() < 2 and not name.endswith(("bias", "shift")):
            weight.add_(1)
    return module


@contextmanager
def embeddings_of(decoder: Decoder) -> Iterator[list[Tensor]]:
    """Fills, at the next forward pass, with the token embeddings, which then keep their gradient."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    hook = decoder.embedding.register_forward_hook(keep)
    try:
        yield kept
    finally:
        hook.remove()
