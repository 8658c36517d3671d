"""flash-linear-attention's kernels beside archlab's chunks, by Triton's interpreter: `python tests/blocks/interpreted_fla.py`.

On a CPU, in float32: the interpreter has no bfloat16, and what a compiler makes of the kernels for a device it does not show.
Prints a line of JSON: the largest relative error against chunks in float64, of outputs, last states and all gradients.
Needs fla-core 0.6 and triton; takes a minute.
"""

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read where triton is imported

import torch
import triton.language as tl
from fla.ops.common import chunk_delta_h, chunk_h
from torch import Tensor
from triton.runtime.autotuner import Autotuner

from archlab.blocks import fla
from archlab.blocks.recurrent import CHUNKED, unit

tune = Autotuner.run
BATCH, SEQ = 2, 70  # a chunk and a part of one
SIZES = {"as many key heads": (3, 3, 16, 24), "shared key heads, odd widths": (2, 4, 5, 65)}
"""(key heads, heads, features of a key, of a value)"""


def with_the_first_configuration(self: Autotuner, *args: object, **options: object) -> object:
    """Without a device there is nothing to time them on."""
    self.configs = self.configs[:1]
    return tune(self, *args, **options)


def tensors(*bounds: int) -> list[Tensor]:
    """A `range` of what the interpreter's loops run over on a device, where a number has a dtype."""
    return [tl.full((), i, tl.int32) for i in range(*map(int, bounds))]


def errors(rule: bool, key_heads: int, heads: int, key_dim: int, value_dim: int) -> list[float]:
    given = [
        torch.randn(BATCH, key_heads, SEQ, key_dim),
        unit(torch.randn(BATCH, key_heads, SEQ, key_dim)),
        torch.randn(BATCH, heads, SEQ, value_dim),
        *([torch.rand(BATCH, heads, SEQ)] if rule else []),
        -torch.rand(BATCH, heads, SEQ),
        torch.randn(BATCH, heads, key_dim, value_dim),
    ]
    name = "delta_rule" if rule else "gated_sum"
    to_out, to_end = torch.randn(BATCH, heads, SEQ, value_dim), torch.randn(BATCH, heads, key_dim, value_dim)
    found = []
    for recurrence, dtype in ((fla.by_kernels(), torch.float32), (CHUNKED, torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in given]
        out, end = getattr(recurrence, name)(*leaves, torch.float32)
        gradients = torch.autograd.grad((out * to_out).sum() + (end * to_end).sum(), leaves)
        found.append([x.detach().double() for x in (out, end, *gradients)])
    return [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(*found, strict=True)]


if __name__ == "__main__":
    torch.manual_seed(3)
    Autotuner.run = with_the_first_configuration
    for module in (chunk_h, chunk_delta_h):
        module.range = tensors
    fla.takes = lambda q, products: True
    print(json.dumps({f"{name}, {['sum', 'delta rule'][rule]}": max(errors(rule, *sizes)) for name, sizes in SIZES.items() for rule in (False, True)}))  # fmt: skip
