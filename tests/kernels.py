"""Decoders that compute attention by each kernel, beside the explicit one: what tests/blocks/test_flex.py asks, in a process of its own.

FlexAttention is traced before it computes, and the types that tests check at every call are not for tracing. Run as
`python tests/kernels.py CASE ...`, it prints a line of JSON for each. Torch refuses the backward pass on a CPU, though
it has one uncompiled; here the refusal is lifted.
"""

import json
import sys
import warnings

import torch
from oracles import built, gradients
from torch.nn.attention import flex_attention as torchs

from archlab.blocks import kernel as kernels


def of_decoder(words: list[str], kernel: str) -> tuple[torch.Tensor, ...]:
    """Logits, then the gradient of each weight, float64; the same weights for each kernel."""
    decoder = built("size=nano", "size.n_layers=2", *words, f"kernel={kernel}").double()
    with torch.no_grad():
        for weight in decoder.parameters():  # so that no bias or gain is what it starts as
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    tokens = torch.randint(0, 50, (2, 21), generator=torch.Generator().manual_seed(1))
    logits = decoder(tokens, torch.tensor([4, 9]) if decoder.mask.uses_prefix else None)
    return logits, *gradients(logits, list(decoder.parameters()))


def worst_gap(words: list[str], kernel: str) -> float:
    """The largest gap to the explicit kernel, of the largest number in each tensor."""
    pairs = zip(of_decoder(words, kernel), of_decoder(words, "dense"), strict=True)
    return max(float((one - other).abs().max() / other.abs().max().clamp(min=1e-6)) for one, other in pairs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
    torchs._validate_device = lambda q, k, v: None
    for case in sys.argv[1:]:
        kernel, *words = case.split()
        asked: list[int] = []
        if kernel == "flex":
            kernels.takes_flex = lambda *_, asked=asked: asked.append(0) or True
        torch._dynamo.reset()
        print(json.dumps({"case": case, "gap": worst_gap(words, kernel), "flex": bool(asked)}), flush=True)
