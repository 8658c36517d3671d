"""How RoPE's frequencies are changed for sequences longer than the model was trained at.

A scaling is chosen when the position scheme is built. Each is a function of the base, the number r of rotated features
and options of its own; unscaled, pair i is rotated by base^(-2i/r) per position.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from archlab.base.errors import UserError


@dataclass(frozen=True)
class Scaling:
    """By which angles RoPE rotates, and by what it multiplies queries and keys."""

    frequencies: Callable[[Int[Tensor, "#batch seq"]], Float[Tensor, "*batch pairs"]]
    """Radians per position for each pair, from all positions of the sequences; float32."""

    amplitude: float = 1.0

    uses_length: bool = False
    """Whether the frequencies depend on how long the sequences are."""


def powers(base: float | Tensor, rotated: int, positions: Tensor) -> Float[Tensor, "*batch pairs"]:
    """base^(-2i/r) for each pair i."""
    pair = torch.arange(0, rotated, 2, device=positions.device, dtype=torch.float32)
    return 1 / base ** (pair / rotated)  # in this order, which rounds as LLaMA's published code does


def lengths(positions: Int[Tensor, "#batch seq"]) -> Float[Tensor, "#batch 1 1"]:
    """The length of each sequence, which is its last position + 1."""
    return (positions.amax(dim=-1) + 1).float()[:, None, None]


def unscaled(base: float, rotated: int) -> Scaling:
    """base^(-2i/r) at any length."""
    return Scaling(lambda positions: powers(base, rotated, positions))


def linear(base: float, rotated: int, *, factor: float) -> Scaling:
    """Position interpolation: every frequency divided by the factor. Source: arXiv:2306.15595, eq. 4."""
    check_factor(factor)
    return Scaling(lambda positions: powers(base, rotated, positions) / factor)


def ntk(base: float, rotated: int, *, factor: float) -> Scaling:
    """A larger base, base * factor^(r/(r-2)): the slowest pair is slowed by the factor, the fastest not at all.

    Source: arXiv:2309.00071, sec. 3.1 ("NTK-aware").
    """
    check_factor(factor)
    larger = base * factor ** exponent(rotated)
    return Scaling(lambda positions: powers(larger, rotated, positions))


def dynamic(base: float, rotated: int, *, factor: float, trained_len: int) -> Scaling:
    """`ntk` by a factor that grows with the length n of the sequence, factor * n / trained_len - (factor - 1), from 1 on.

    Source: arXiv:2309.00071, sec. 3.3 ("Dynamic NTK"), as Hugging Face's rope_type "dynamic" has it.
    """
    power = exponent(rotated)

    def frequencies(positions: Tensor) -> Tensor:
        stretch = (factor * lengths(positions) / trained_len - (factor - 1)).clamp(min=1)
        return powers(base * stretch**power, rotated, positions)

    return Scaling(frequencies, uses_length=True)


def dynamic_qwen(base: float, rotated: int, *, trained_len: int) -> Scaling:
    """`ntk` by 2^(ceil(log2(n / trained_len)) + 1) - 1, at least 1, for sequences of length n.

    Source: arXiv:2309.16609, sec. 2.5 (Qwen), as its published code has it.
    """
    power = exponent(rotated)

    def frequencies(positions: Tensor) -> Tensor:
        doublings = (lengths(positions) / trained_len).log2().ceil()
        stretch = (2 ** (doublings + 1) - 1).clamp(min=1)
        return powers(base * stretch**power, rotated, positions)

    return Scaling(frequencies, uses_length=True)


def yarn(
    base: float,
    rotated: int,
    *,
    factor: float,
    trained_len: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
) -> Scaling:
    """Divides the slow pairs' frequencies by the factor, and leaves the fast pairs' as they are.

    Fast are pairs that make more than `beta_fast` full rotations within `trained_len`, slow those that make less than
    `beta_slow`. Between the two the share of division rises linearly with the pair's number. Queries and keys are
    multiplied by `attention_factor`, 0.1 ln(factor) + 1 unless given. Source: arXiv:2309.00071, sec. 3.2 to 3.4, eq. 22.
    """
    check_factor(factor)
    check_order("beta_slow", beta_slow, "beta_fast", beta_fast)
    if base <= 1:
        raise UserError(
            f"pos.base={base}: pos.scaling=yarn needs each pair to rotate more slowly than the one before; use a base above 1"
        )

    def pair_that_rotates(times: float) -> float:
        return rotated * math.log(trained_len / (2 * math.pi * times)) / (2 * math.log(base))

    first = max(math.floor(pair_that_rotates(beta_fast)), 0)
    last = min(math.ceil(pair_that_rotates(beta_slow)), rotated - 1)
    width = max(last - first, 0.001)  # a step where both fall on one pair

    def frequencies(positions: Tensor) -> Tensor:
        pair = torch.arange(rotated // 2, device=positions.device, dtype=torch.float32)
        divided = ((pair - first) / width).clamp(0, 1)
        return powers(base, rotated, positions) * (1 - divided + divided / factor)

    return Scaling(frequencies, 0.1 * math.log(factor) + 1 if attention_factor is None else attention_factor)


def llama3(
    base: float,
    rotated: int,
    *,
    factor: float,
    trained_len: int,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
) -> Scaling:
    """Divides the slow pairs' frequencies by the factor, and leaves the fast pairs' as they are.

    Slow are pairs that make less than `low_freq_factor` full rotations within `trained_len`, fast those that make more
    than `high_freq_factor`. Between the two the undivided share rises linearly with the number of rotations.
    Source: Llama 3.1's published code, rope_type "llama3".
    """
    check_factor(factor)
    check_order("low_freq_factor", low_freq_factor, "high_freq_factor", high_freq_factor)

    def frequencies(positions: Tensor) -> Tensor:
        plain = powers(base, rotated, positions)
        rotations = trained_len * plain / (2 * math.pi)
        left = ((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
        return plain * (left + (1 - left) / factor)

    return Scaling(frequencies)


SCALINGS: dict[str, Callable[..., Scaling]] = {
    "none": unscaled,
    "linear": linear,
    "ntk": ntk,
    "dynamic": dynamic,
    "dynamic_qwen": dynamic_qwen,
    "yarn": yarn,
    "llama3": llama3,
}


def make_scaling(name: str, base: float, rotated: int, **options: float | None) -> Scaling:
    """The scaling of this name. Raises UserError where it does not take a given option, or lacks one that it needs."""
    given = {option: value for option, value in options.items() if value is not None}
    takes = {
        option: parameter.default
        for option, parameter in inspect.signature(SCALINGS[name]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for option, value in given.items():
        if option not in takes:
            which = f"takes {', '.join(takes)}" if takes else "takes no options"
            raise UserError(
                f"pos.{option}={value:g}: changes nothing under pos.scaling={name}, which {which}; leave it out"
            )
    for option, default in takes.items():
        if default is inspect.Parameter.empty and option not in given:
            raise UserError(f"pos.{option}=null: pos.scaling={name} needs it; {NEEDED[option]}")
    return SCALINGS[name](base, rotated, **given)


NEEDED = {
    "factor": "give how many times longer sequences become, such as pos.factor=4",
    "trained_len": "give the length that the model was trained at, such as pos.trained_len=2048",
}


def exponent(rotated: int) -> float:
    """r / (r - 2), the power of the factor in the base. Raises UserError where there is one pair alone."""
    if rotated == 2:
        raise UserError(
            "pos.scaling: a change of base leaves the first pair as it is, and there is no other; use linear, or a larger"
            " pos.fraction or size.head_dim"
        )
    return rotated / (rotated - 2)


def check_factor(factor: float) -> None:
    """Raises UserError where the factor is 1 or less."""
    if factor <= 1:
        raise UserError(f"pos.factor={factor:g}: slows nothing down; use more than 1, such as pos.factor=4")


def check_order(lower: str, low: float, upper: str, high: float) -> None:
    """Raises UserError where `low` is not below `high`; `lower` and `upper` are their options."""
    if low >= high:
        raise UserError(f"pos.{lower}={low:g}: should be below pos.{upper}={high:g}; use a smaller one")
