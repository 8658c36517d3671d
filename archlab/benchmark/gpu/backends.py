"""Which of torch's attention kernels every combination of options gets."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

from archlab.benchmark.gpu.check import Observed, composed_or_none, named
from archlab.config.assemble import build
from archlab.config.overrides import groups
from archlab.model.decoder import Decoder
from archlab.train.runtime import Runtime

SMALL = (
    "size.d_model=128", "size.n_layers=1", "size.n_heads=2", "size.d_ff=64", "size.vocab_size=256",
    "train.train_len=64", "train.batch_size=2", "allow_leak=true",
)  # fmt: skip
"""A head has 64 features, as kernels are made for."""

LENGTHS = (64, 61)
"""Tokens: a multiple of what kernels are aligned to, and none."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Choices(TorchFunctionMode):
    """Notes the backend that torch chooses at every call of scaled_dot_product_attention, by asking what that call asks."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[SDPBackend] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            self.chosen.append(SDPBackend(torch._fused_sdp_choice(*cast_alike(args), **(kwargs or {}))))
        return function(*args, **(kwargs or {}))


def cast_alike(args: Sequence[Any]) -> list[Any]:
    """Queries, keys and values as autocast hands them to the kernel."""
    device = args[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(args)
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args]


def attention_backends(
    device: torch.device, words: Iterable[tuple[str, ...]] | None = None, dtypes: Sequence[torch.dtype] = DTYPES
) -> Observed:
    """Attention kernels.

    Every position scheme under every mask in every mixer, in each dtype, at two lengths, with gradients: torch should
    choose the MATH kernel, which keeps all scores, for none of them. Scores that are soft-capped and float64 are left
    out: no fused kernel takes them.
    """
    falls, counts, asked = [], dict[str, int](), 0
    for combination in all_combinations() if words is None else words:
        cfg = composed_or_none(*SMALL, *combination)
        if cfg is None:
            continue
        decoder = build(cfg).to(device).train()
        for dtype in dtypes:
            asked += 1
            chosen = set(backends_of(decoder, Runtime(device, dtype)))
            for backend in chosen:
                counts[backend.name] = counts.get(backend.name, 0) + 1
            if SDPBackend.MATH in chosen:
                falls.append(f"{' '.join(combination)} {str(dtype).removeprefix('torch.')}")
    kernels = ", ".join(f"{name} in {n}" for name, n in sorted(counts.items()))
    figure = f"{len(falls)} of {asked} get MATH: {named(falls)}" if falls else f"of {asked}: {kernels}"
    return Observed(figure, "none gets MATH", not falls and asked > 0, {"kernels": counts, "math": falls})


def all_combinations() -> Iterator[tuple[str, ...]]:
    known = groups()
    for pos, mask, mixer in product(known["pos"], known["mask"], known["mixer"]):
        yield f"pos={pos}", f"mask={mask}", f"mixer={mixer}"


def backends_of(decoder: Decoder, machine: Runtime, lengths: Sequence[int] = LENGTHS) -> list[SDPBackend]:
    """What torch chooses in a forward pass at each length; the backward pass runs too, and goes with it."""
    choices = Choices()
    for seq_len in lengths:
        tokens = torch.zeros(2, seq_len, dtype=torch.long, device=machine.device)
        prefix_len = seq_len // 2 if decoder.mask.uses_prefix else None
        decoder.zero_grad(set_to_none=True)
        with machine.in_force():
            with machine.autocast(), choices:
                logits = decoder(tokens, prefix_len)
            logits.float().sum().backward()
    return choices.chosen
