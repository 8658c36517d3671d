"""Recurrences by flash-linear-attention's kernels, which multiply bfloat16 on CUDA devices.

They compute what `archlab.blocks.recurrent` does, with the tokens before the heads. What they multiply is bfloat16, and so is the
state between chunks in a forward pass; sums, decays, and the state that is returned are float32. Decays within a chunk are
differences of sums of their logarithms, so that a decay of exactly 0, whose logarithm is -inf, gives numbers that are none:
no mixer here makes one.
Whatever is not bfloat16 on a CUDA device is computed by chunks of torch's operations, and so are one token alone, where
nothing is gained, and a pack of models, as `torch.vmap` has no rule for these kernels.

In a program of torch.compile's each kernel is an operation that is not looked into; its backward pass computes the
forward pass again, since such an operation keeps nothing but what it was given.

Source: github.com/fla-org/flash-linear-attention, fla-core 0.6: `chunk_simple_gla`, `chunk_gated_delta_rule`.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from archlab.base.errors import UserError
from archlab.blocks.kernel import share_heads
from archlab.blocks.recurrent import CHUNKED, Keys, OfTokens, Recurrence, State, Values

MOST_KEY_DIM = 256
"""Features of a key that its delta rule takes at most. Source: fla-core 0.6, ops/common/chunk_delta_h.py."""

ALIGNED = 16
"""Features: keys and values are filled up to a multiple of it with zeros. Of an odd number Triton makes wrong programs in half precision."""

HOPPER = 9
WRONG_ON_HOPPER = ((3, 4, 0), (3, 7, 1))
"""From the first of these versions of Triton on and before the second, a gradient is wrong there, and fla-core refuses it."""

Outcome = tuple[Tensor, Tensor]


class Library(NamedTuple):
    """What is called of flash-linear-attention."""

    gated_sum: Callable[..., Outcome]
    delta_rule: Callable[..., Outcome]


@cache
def library() -> Library:
    """The functions of flash-linear-attention. Raises UserError where it cannot be imported."""
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.simple_gla import chunk_simple_gla
    except Exception as error:  # of whatever it needs itself
        raise UserError(
            f"kernel=fla: fla-core cannot be imported ({type(error).__name__}: {error}); use kernel=chunked"
        ) from None
    return Library(chunk_simple_gla, chunk_gated_delta_rule)


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why its kernels do not compute what a run on this device in this dtype asks for, and what to do; None where they do."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        return (
            f"its kernels multiply bfloat16 on CUDA devices alone, and this run is in {name} on {device.type}; use"
            " kernel=chunked or auto"
        )
    if find_spec("fla") is None or find_spec("triton") is None:
        return "fla-core or triton is not installed; pip install 'archlab[fla]', or use kernel=chunked or auto"
    least, mended = WRONG_ON_HOPPER
    if torch.cuda.get_device_capability(device)[0] == HOPPER and least <= numbers_of(triton_version()) < mended:
        return (
            f"Triton {triton_version()} computes a gradient wrongly on this device; use Triton 3.7.1 or newer, or"
            " kernel=chunked or auto"
        )
    return None


def triton_version() -> str:
    """By the module, since the package that it comes in has other names on other devices."""
    return import_module("triton").__version__


def numbers_of(version: str) -> tuple[int, ...]:
    """The first three numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


# ---------------------------------------------------------------- the operations


def gated_sum(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> Outcome:
    """`archlab.blocks.recurrent.gated_sum` of (batch, seq, heads, dim)."""
    return library().gated_sum(q, k, v, g=log_decay, scale=1.0, initial_state=state, output_final_state=True)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor) -> Outcome:
    """`archlab.blocks.recurrent.delta_rule` of (batch, seq, heads, dim)."""
    return library().delta_rule(
        q, k, v, g=log_decay, beta=beta, scale=1.0, initial_state=state, output_final_state=True
    )


def as_operation(name: str, inputs: str, compute: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """An operation of torch's that computes this, with its shapes and its gradient; `inputs` names what it takes."""
    names = inputs.split()
    takes = ", ".join(f"Tensor {one}" for one in names)
    forward = torch.library.custom_op(
        f"archlab::{name}",
        lambda *given: tuple(x.contiguous() for x in compute(*given)),
        mutates_args=(),
        schema=f"({takes}) -> (Tensor, Tensor)",
    )

    def again(to_out: Tensor, to_state: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in given]
            outcome = compute(*leaves)
            gradients = torch.autograd.grad(outcome, leaves, (to_out, to_state))
        return tuple(x.contiguous() for x in gradients)

    backward = torch.library.custom_op(
        f"archlab::{name}_backward",
        again,
        mutates_args=(),
        schema=f"(Tensor to_out, Tensor to_state, {takes}) -> ({', '.join(['Tensor'] * len(names))})",
    )
    value, state = names.index("v"), names.index("state")
    forward.register_fake(lambda *given: (empty_as(given[value]), empty_as(given[state])))
    backward.register_fake(lambda to_out, to_state, *given: tuple(empty_as(x) for x in given))
    forward.register_autograd(
        lambda ctx, to_out, to_state: backward(to_out.contiguous(), to_state.contiguous(), *ctx.saved_tensors),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    return forward


def empty_as(x: Tensor) -> Tensor:
    """Room for as many numbers, in the order of their axes."""
    return x.new_empty(x.shape)


SUM_IN_PROGRAM = as_operation("fla_gated_sum", "q k v log_decay state", gated_sum)
RULE_IN_PROGRAM = as_operation("fla_delta_rule", "q k v beta log_decay state", delta_rule)


# ---------------------------------------------------------------- as a mixer calls them


def fused_sum(
    q: Keys, k: Keys, v: Values, log_decay: OfTokens, state: State, products: torch.dtype
) -> tuple[Values, State]:
    """`Recurrence.gated_sum` where the kernels compute what is asked, and by chunks where they do not."""
    if not takes(q, products):
        return CHUNKED.gated_sum(q, k, v, log_decay, state, products)
    compute = SUM_IN_PROGRAM if torch.compiler.is_compiling() else gated_sum
    q, k = share_heads(q, v.shape[1]), share_heads(k, v.shape[1])  # which this kernel does not do by itself
    return called(compute, q, k, v, (log_decay,), state, products)


def fused_rule(
    q: Keys, k: Keys, v: Values, beta: OfTokens, log_decay: OfTokens, state: State, products: torch.dtype
) -> tuple[Values, State]:
    """`Recurrence.delta_rule` where the kernels compute what is asked, and by chunks where they do not."""
    if not takes(q, products) or q.shape[3] > MOST_KEY_DIM:
        return CHUNKED.delta_rule(q, k, v, beta, log_decay, state, products)
    compute = RULE_IN_PROGRAM if torch.compiler.is_compiling() else delta_rule
    return called(compute, q, k, v, (beta, log_decay), state, products)


def takes(q: Keys, products: torch.dtype) -> bool:
    """Whether the kernels compute it: several tokens, in bfloat16, on a CUDA device."""
    return q.device.type == "cuda" and products == torch.bfloat16 and q.shape[2] > 1


def called(
    compute: Callable[..., Outcome], q: Keys, k: Keys, v: Values, of_tokens: tuple[OfTokens, ...], state: State,
    products: torch.dtype,
) -> tuple[Values, State]:  # fmt: skip
    """The output and the last state, both as wide as `v` and `state` are; what is multiplied is in the dtype `products`."""
    key_dim, value_dim = k.shape[-1], v.shape[-1]
    q, k, v = (filled(x).to(products).transpose(1, 2) for x in (q, k, v))
    by_token = (x.expand(v.shape[0], -1, -1).transpose(1, 2).float() for x in of_tokens)
    out, end = compute(q, k, v, *by_token, filled(filled(state).mT).mT.float())
    return out.transpose(1, 2)[..., :value_dim].type_as(state), end[..., :key_dim, :value_dim].type_as(state)


def filled(x: Tensor) -> Tensor:
    """With zeros after the last feature, up to a multiple of ALIGNED."""
    missing = -x.shape[-1] % ALIGNED
    return F.pad(x, (0, missing)) if missing else x


# ---------------------------------------------------------------- which of them a layer computes by


def by_kernels() -> Recurrence:
    """The kernels' on a CUDA device in bfloat16, of several tokens; by chunks elsewhere."""
    return Recurrence(fused_sum, fused_rule, MOST_KEY_DIM)


def by_chunks() -> Recurrence:
    """By chunks of torch's operations."""
    return CHUNKED


def fastest() -> Recurrence:
    """The kernels' where they can be used here, and otherwise by chunks."""
    if not torch.cuda.is_available() or why_not(torch.device("cuda"), torch.bfloat16):
        return CHUNKED
    return Recurrence(fused_sum, fused_rule)


RECURRENCES: dict[str, Callable[[], Recurrence]] = {
    "auto": fastest,
    "dense": by_chunks,
    "sdpa": by_chunks,
    "flex": by_chunks,
    "chunked": by_chunks,
    "fla": by_kernels,
}
"""By what `kernel` says."""
