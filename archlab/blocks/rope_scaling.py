"""How RoPE's frequencies are changed for sequences longer than the model was trained at.

A scaling is chosen when the position scheme is built. Each is a function of the base, the number r of rotated features
and options of its own; unscaled, pair i is rotated by base^(-2i/r) per position.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from archlab.base.errors import UserError, shortened


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
    return 1 / periods(base, rotated, positions)


def periods(base: float | Tensor, rotated: int, positions: Tensor) -> Float[Tensor, "*batch pairs"]:
    """base^(2i/r) for each pair i: the positions per radian."""
    pair = torch.arange(0, rotated, 2, device=positions.device, dtype=torch.float32)
    return base ** (pair / rotated)  # in this order, which rounds as LLaMA's published code does


def leading(scaling: Scaling, kept: int) -> Scaling:
    """The same for the first `kept` pairs, which rotate fastest; the others do not rotate."""

    def frequencies(positions: Tensor) -> Tensor:
        every = scaling.frequencies(positions)
        return every * (torch.arange(every.shape[-1], device=every.device) < kept)

    return replace(scaling, frequencies=frequencies)


def pairs_kept(p: float, rotated: int) -> int:
    """How many of the r/2 pairs a share p is, rounded down as published. Raises UserError where it is none."""
    kept = int(p * rotated // 2)
    if kept == 0:
        raise UserError(
            f"pos.p={p:g}: leaves none of the {rotated // 2} pairs of features to rotate; use a larger share, or pos=none"
        )
    return kept


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
    larger = larger_base(base, rotated, factor)
    return Scaling(lambda positions: powers(larger, rotated, positions))


def larger_base(base: float, rotated: int, factor: float) -> float:
    """base * factor^(r/(r-2))."""
    return base * factor ** exponent(rotated)


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
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    truncate: bool = True,
) -> Scaling:
    """Divides the slow pairs' frequencies by the factor, and leaves the fast pairs' as they are.

    Fast are pairs that make more than `beta_fast` full rotations within `trained_len`, slow those that make less than
    `beta_slow`. Between the two the share of division rises linearly with the pair's number, from a whole pair to a whole
    pair unless `truncate` is off. Queries and keys are multiplied by `attention_factor`, 0.1 ln(factor) + 1 unless given;
    with `mscale` and `mscale_all_dim`, DeepSeek's, by the ratio of 0.1 m ln(factor) + 1 at m = the one and the other.
    Source: arXiv:2309.00071, sec. 3.2 to 3.4, eq. 22, and Hugging Face's rope_type "yarn" for what the paper leaves open.
    """
    check_factor(factor)
    check_order("beta_slow", beta_slow, "beta_fast", beta_fast)
    if base <= 1:
        raise UserError(
            f"pos.base={base}: pos.scaling=yarn needs each pair to rotate more slowly than the one before; use a base above 1"
        )

    def pair_that_rotates(times: float) -> float:
        return rotated * math.log(trained_len / (2 * math.pi * times)) / (2 * math.log(base))

    fast, slow = pair_that_rotates(beta_fast), pair_that_rotates(beta_slow)
    fast, slow = (math.floor(fast), math.ceil(slow)) if truncate else (fast, slow)
    first, last = max(fast, 0), min(slow, rotated - 1)
    width = max(last - first, 0.001)  # a step where both fall on one pair

    def frequencies(positions: Tensor) -> Tensor:
        pair = torch.arange(rotated // 2, device=positions.device, dtype=torch.float32)
        left = 1 - ((pair - first) / width).clamp(0, 1)
        plain = periods(base, rotated, positions)
        return 1 / (factor * plain) * (1 - left) + 1 / plain * left  # in this order, as published code rounds

    return Scaling(frequencies, yarn_amplitude(factor, attention_factor, mscale, mscale_all_dim))


def yarn_amplitude(
    factor: float, attention_factor: float | None, mscale: float | None, mscale_all_dim: float | None
) -> float:
    """What queries and keys are multiplied by. Raises UserError where an option would change nothing."""
    both = {"mscale": mscale, "mscale_all_dim": mscale_all_dim}
    given = {name: value for name, value in both.items() if value is not None}
    for name, value in given.items():
        if attention_factor is not None:
            raise UserError(
                f"pos.{name}={value:g}: changes nothing beside pos.attention_factor={attention_factor:g}; leave one of them out"
            )
        if len(given) < 2:
            other = next(word for word in both if word != name)
            raise UserError(f"pos.{name}={value:g}: changes nothing without pos.{other}; give both, or neither")
    if mscale is not None and mscale_all_dim is not None:
        return (0.1 * mscale * math.log(factor) + 1) / (0.1 * mscale_all_dim * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1 if attention_factor is None else attention_factor


def longrope(
    base: float,
    rotated: int,
    *,
    trained_len: int,
    short_factor: Sequence[float],
    long_factor: Sequence[float],
    factor: float | None = None,
    attention_factor: float | None = None,
) -> Scaling:
    """Divides each pair's frequency by a number of its own: `long_factor` for sequences beyond `trained_len`, else `short_factor`.

    Queries and keys are multiplied by sqrt(1 + ln(factor) / ln(trained_len)), where `factor` is how many times longer the
    sequences get, or by `attention_factor`. Source: arXiv:2402.13753, eq. 3 (LongRoPE), with the two lists and the factor
    of Phi-3's published code.
    """
    for name, numbers in (("short_factor", short_factor), ("long_factor", long_factor)):
        if len(numbers) != rotated // 2:
            raise UserError(
                f"pos.{name}: has {len(numbers)} numbers, and {rotated // 2} pairs of features are rotated; give one for each"
            )
    if (factor is None) == (attention_factor is None):
        raise UserError(
            f"pos.factor={'null' if factor is None else format(factor, 'g')}: pos.scaling=longrope takes it for the factor on"
            " queries and keys alone; give either it or pos.attention_factor"
        )
    if trained_len == 1:
        raise UserError(
            "pos.trained_len=1: no sequence is shorter, so pos.short_factor would change nothing; give the trained length"
        )
    if factor is not None:
        check_factor(factor)
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(trained_len))

    def frequencies(positions: Tensor) -> Tensor:
        long, short = (written(numbers, positions.device) for numbers in (long_factor, short_factor))
        divisors = torch.where(lengths(positions) > trained_len, long, short)
        return 1 / (divisors * periods(base, rotated, positions))

    assert attention_factor is not None, "it is given, or follows from the factor"
    return Scaling(frequencies, attention_factor, uses_length=True)


def written(numbers: Sequence[float], device: torch.device) -> Float[Tensor, " numbers"]:
    """Numbers on a device, written there one by one: a copy from the CPU would wait for what runs there."""
    return torch.cat([torch.full((1,), number, dtype=torch.float32, device=device) for number in numbers])


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
    if low_freq_factor != high_freq_factor:  # Llama 4 Scout's release has a step between fast and slow pairs
        check_order("low_freq_factor", low_freq_factor, "high_freq_factor", high_freq_factor)
    width = high_freq_factor - low_freq_factor or 1.0

    def frequencies(positions: Tensor) -> Tensor:
        plain = powers(base, rotated, positions)
        wavelength = 2 * math.pi / plain
        left = (trained_len / wavelength - low_freq_factor) / width
        between = (1 - left) * plain / factor + left * plain  # in this order, as published code rounds
        slow = torch.where(wavelength > trained_len / low_freq_factor, plain / factor, between)
        return torch.where(wavelength < trained_len / high_freq_factor, plain, slow)

    return Scaling(frequencies)


SCALINGS: dict[str, Callable[..., Scaling]] = {
    "none": unscaled,
    "linear": linear,
    "ntk": ntk,
    "dynamic": dynamic,
    "dynamic_qwen": dynamic_qwen,
    "yarn": yarn,
    "llama3": llama3,
    "longrope": longrope,
}


def make_scaling(name: str, base: float, rotated: int, **options: float | Sequence[float] | None) -> Scaling:
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
            shown = as_typed(value)
            raise UserError(
                f"pos.{option}={shown}: changes nothing under pos.scaling={name}, which {which}; leave it out"
            )
    for option, default in takes.items():
        if default is inspect.Parameter.empty and option not in given:
            raise UserError(f"pos.{option}=null: pos.scaling={name} needs it; {NEEDED[option]}")
    return SCALINGS[name](base, rotated, **given)


def as_typed(value: float | Sequence[float]) -> str:
    """A value as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else shortened(str(list(value)))


def defaults_of(name: str) -> dict[str, float | None]:
    """What a scaling takes for the options that have a default."""
    takes = inspect.signature(SCALINGS[name]).parameters.values()
    return {p.name: p.default for p in takes if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


NEEDED = {
    "factor": "give how many times longer sequences become, such as pos.factor=4",
    "trained_len": "give the length that the model was trained at, such as pos.trained_len=2048",
    "short_factor": "give a number for each pair of rotated features, such as pos.short_factor=[1.0,1.5,2.0,4.0]",
    "long_factor": "give a number for each pair of rotated features, such as pos.long_factor=[1.0,4.0,16.0,32.0]",
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
