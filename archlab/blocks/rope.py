"""Rotary positions: queries and keys are rotated pair by pair, by angles that grow with the position."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from archlab.base.errors import UserError
from archlab.base.quantities import Count, Literal, Positive, Share
from archlab.blocks.contracts import Position, Rotation, SomeHeads
from archlab.blocks.own_gradient import OwnGradient
from archlab.blocks.precision import at_least_float32, in_dtype_of, in_range_of_float32
from archlab.blocks.rope_scaling import leading, make_scaling, pairs_kept, powers
from archlab.blocks.two_axes import two_axes

LAYOUTS = {"half": -2, "interleaved": -1}
"""Which features are a pair: along which of the last two axes its two stand, once the rotated ones are cut into pairs."""

SIZES = {-2: (2, -1), -1: (-1, 2)}
"""How they are cut, by that axis."""


def turn(x: Tensor, cos: Tensor, sin: Tensor, axis: int) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) for each pair of the last axis."""
    if not torch.compiler.is_compiling():  # which makes of the formula written out what `Turn` does, and takes no other
        return Turn.apply(x, cos, sin, axis)
    first, second = x.unflatten(-1, SIZES[axis]).unbind(axis)
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=axis).flatten(-2)


class Turn(OwnGradient):
    """`turn` in place; its gradient is turned back. On a CPU the formula written out takes three times as long, most of it for its gradient."""

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor, axis: int) -> Tensor:
        pairs = x.unflatten(-1, SIZES[axis])
        turned = pairs * cos.unsqueeze(axis)
        (first, second), (to_first, to_second) = pairs.unbind(axis), turned.unbind(axis)
        to_first.addcmul_(second, sin, value=-1)
        to_second.addcmul_(first, sin)
        return turned.flatten(-2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        _, cos, sin, ctx.axis = inputs
        ctx.save_for_backward(cos, sin)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        back = Turn.apply if torch.is_grad_enabled() else Turn.forward  # a gradient of the gradient is rarely asked for
        return back(dy, cos, -sin, ctx.axis), None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: Sequence[int | None], x: Tensor, cos: Tensor, sin: Tensor, axis: int
    ) -> tuple[Tensor, int]:
        """The same, over one axis more in front; torch has no rule for operations in place."""
        stacked = (
            tensor[None] if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip((x, cos, sin), in_dims, strict=False)
        )
        return Turn.apply(*stacked, axis), 0


def rotate(x: SomeHeads, cos_sin: Rotation, axis: int) -> SomeHeads:
    """Rotates two features per angle, as many as there are angles for; the other features stay as they are."""
    return in_dtype_of(rotate_wide(x, cos_sin, axis), x)


def rotate_wide(x: SomeHeads, cos_sin: Rotation, axis: int) -> SomeHeads:
    """The same, returned in float32 or wider."""
    cos, sin = cos_sin[:, :, None].unbind(dim=1)  # broadcast over heads
    rotated = 2 * cos.shape[-1]
    wide = at_least_float32(x)
    if rotated == x.shape[-1]:
        return turn(wide, cos, sin, axis)
    return torch.cat((turn(wide[..., :rotated], cos, sin, axis), wide[..., rotated:]), dim=-1)


def waves(angles: Float[Tensor, "#batch seq pairs"]) -> Float[Tensor, "#batch 2 seq pairs"]:
    """Cosines and sines, along a new axis."""
    return torch.stack((angles.cos(), angles.sin()), dim=1)


class RoPE(Position):
    """Rotates each pair of a query's and a key's features by an angle that grows with the position.

    With r = fraction * head_dim rotated features, pair i at position p is rotated by p * base^(-2i/r), i = 0 .. r/2 - 1,
    so that a score depends on the distance alone. Angles are float32 in a model of any dtype. They are computed from
    the positions, so no table limits the length.

    Options:

    base      of the powers above
    layout    which features are a pair: `half` i and i + r/2 (GPT-NeoX, Hugging Face's LLaMA), `interleaved` 2i and 2i + 1
              (the paper, GPT-J, ChatGLM2); the two differ by a permutation of rows of the query and key projections
    fraction  which share of each head's features is rotated, over all frequencies
    p         which share of the frequencies, from the highest, rotates at all (p-RoPE): the others are 0, while `fraction`
              spreads the frequencies from the highest to the lowest over fewer features
    scaling   how the frequencies change for long sequences, with the options from `factor` to `long_factor`:
              `archlab.blocks.rope_scaling`
    logn      multiplies queries at positions p beyond the first `logn` by log(p + 1) / log(logn), except in training

    Source: arXiv:2104.09864, eq. 15 and 34; arXiv:2410.06205, "p-RoPE", rounded as Hugging Face's rope_type "proportional"
    (p); arXiv:2309.16609, sec. 2.5 (logn).
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int,
        base: Positive = 10000.0,
        layout: Literal["half", "interleaved"] = "half",
        fraction: Share = 1.0,
        p: Share = 1.0,
        scaling: Literal["none", "linear", "ntk", "dynamic", "dynamic_qwen", "yarn", "llama3", "longrope"] = "none",
        factor: Positive | None = None,
        trained_len: Count | None = None,
        beta_fast: Positive | None = None,
        beta_slow: Positive | None = None,
        attention_factor: Positive | None = None,
        low_freq_factor: Positive | None = None,
        high_freq_factor: Positive | None = None,
        mscale: Positive | None = None,
        mscale_all_dim: Positive | None = None,
        truncate: bool | None = None,
        short_factor: Sequence[Positive] | None = None,
        long_factor: Sequence[Positive] | None = None,
        logn: Count | None = None,
    ):
        super().__init__()
        self.base, self.fraction, self.scaled = base, fraction, None if scaling == "none" else scaling
        self.pair_axis = LAYOUTS[layout]
        rotated = rotated_features(fraction, head_dim)
        self.scaling = make_scaling(
            scaling,
            base,
            rotated,
            factor=factor,
            trained_len=trained_len,
            beta_fast=beta_fast,
            beta_slow=beta_slow,
            attention_factor=attention_factor,
            low_freq_factor=low_freq_factor,
            high_freq_factor=high_freq_factor,
            mscale=mscale,
            mscale_all_dim=mscale_all_dim,
            truncate=truncate,
            short_factor=short_factor,
            long_factor=long_factor,
        )
        if p < 1:
            self.scaling = leading(self.scaling, pairs_kept(p, rotated))
        self.uses_length = self.scaling.uses_length
        if logn == 1:
            raise UserError("pos.logn=1: the logarithm of 1 is nothing to divide by; give the trained length")
        self.logn = logn
        self.add_sharpness, self.sharpen = (
            (leave_rotation, leave_queries) if logn is None else (self.with_sharpness, sharpen)
        )

    def goes_by_distance(self, seq_len: int) -> bool:
        return self.logn is None and not self.uses_length

    def rotation(self, positions: Int[Tensor, "#batch seq"]) -> Rotation:
        angles = positions.float()[..., None] * self.scaling.frequencies(positions)
        return self.add_sharpness(self.scaling.amplitude * waves(angles), positions)

    def rotate_queries(self, q: SomeHeads, rotation: Rotation) -> SomeHeads:
        return self.sharpen(rotate(q, rotation[:, :2], self.pair_axis), rotation)

    def rotate_keys(self, k: SomeHeads, rotation: Rotation) -> SomeHeads:
        return rotate(k, rotation[:, :2], self.pair_axis)

    def with_sharpness(
        self, rotation: Float[Tensor, "#batch 2 seq pairs"], positions: Int[Tensor, "#batch seq"]
    ) -> Float[Tensor, "#batch 3 seq pairs"]:
        """Adds a third part: the factor on the queries at each position, which is 1 in training."""
        assert self.logn is not None, "sharpness comes with a trained length alone"
        sharpness = ((positions + 1).float().log() / math.log(self.logn)).clamp(min=1) ** float(not self.training)
        return torch.cat((rotation, sharpness[:, None, :, None].expand_as(rotation[:, :1])), dim=1)


def leave_rotation(rotation: Rotation, positions: Tensor) -> Rotation:
    """Without `logn`: the rotation as it is."""
    return rotation


def leave_queries(q: SomeHeads, rotation: Rotation) -> SomeHeads:
    """Without `logn`: the queries as they are."""
    return q


def sharpen(q: SomeHeads, rotation: Rotation) -> SomeHeads:
    """With `logn`: the queries times the third part of the rotation."""
    return (q * rotation[:, 2, None, :, :1]).type_as(q)


def rotated_features(fraction: float, head_dim: int) -> int:
    """How many features of a head RoPE rotates. Raises UserError where they cannot be split into pairs."""
    if head_dim < 2:
        raise UserError(
            f"size.head_dim={head_dim}: RoPE rotates features in pairs; use 2 or more, so fewer heads, or another pos"
        )
    rotated = round(fraction * head_dim)
    if rotated < 2 or rotated % 2:
        whole = " or 1" if head_dim % 2 == 0 else ""
        raise UserError(
            f"pos.fraction={fraction}: rotates {rotated} of the {head_dim} features of a head, and RoPE rotates"
            f" them in pairs; choose a fraction that leaves an even number, such as {2 / head_dim:g}{whole}"
        )
    return rotated


def power_of_two(x: Tensor) -> Tensor:
    """2^x, the same for a number wherever it stands: torch's exp2 in float32 rounds the last ones of a tensor otherwise."""
    whole = x.round()
    return torch.ldexp(((x - whole) * math.log(2)).exp(), whole)


class XPos(Position):
    """RoPE whose pairs also fade with distance: queries times zeta^(p / scale_base), keys times zeta^(-p / scale_base).

    zeta_i = (2i + 0.4 r) / (1.4 r) for pair i of r features, so the slower a pair rotates, the less it fades. A score
    depends on the distance alone. The power is clamped to 2^-60 .. 2^60, which the fastest pair reaches near position
    17,000, so that no position leaves the range of float32; from there on that pair fades no further. float16 ends at
    2^16, so in a float16 model rotated queries and keys, scores and cached keys are float32.

    Source: arXiv:2212.10554, sec. 3.2, alg. 1, with the constants of its published code.
    """

    LARGEST = 60.0
    widens = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int,
        base: Positive = 10000.0,
        scale_base: Positive = 512.0,
        layout: Literal["half", "interleaved"] = "interleaved",
    ):
        super().__init__()
        self.base, self.scale_base = base, scale_base
        self.rotated = rotated_features(1.0, head_dim)
        self.pair_axis = LAYOUTS[layout]

    def goes_by_distance(self, seq_len: int) -> bool:
        """Up to where the fastest pair's power is clamped."""
        return (seq_len - 1) / self.scale_base * math.log2(1.4 / 0.4) <= self.LARGEST

    def rotation(self, positions: Int[Tensor, "#batch seq"]) -> Rotation:
        """Cosines and sines of queries, then those of keys."""
        angles = positions.float()[..., None] * powers(self.base, self.rotated, positions)
        pair = torch.arange(0, self.rotated, 2, device=positions.device, dtype=torch.float32)
        zeta = (pair + 0.4 * self.rotated) / (1.4 * self.rotated)
        exponent = (positions.float()[..., None] / self.scale_base * zeta.log2()).clamp(-self.LARGEST, self.LARGEST)
        fading = power_of_two(exponent)[:, None]
        return torch.cat((waves(angles) * fading, waves(angles) / fading), dim=1)

    def rotate_queries(self, q: SomeHeads, rotation: Rotation) -> SomeHeads:
        return in_range_of_float32(rotate_wide(q, rotation[:, :2], self.pair_axis), like=q)

    def rotate_keys(self, k: SomeHeads, rotation: Rotation) -> SomeHeads:
        return in_range_of_float32(rotate_wide(k, rotation[:, 2:], self.pair_axis), like=k)


class RoPE2D(Position):
    """Two RoPEs side by side, one for each of a token's two positions: the first half of a head is rotated by the first.

    Each is over the features of its own half, in half layout; with an odd number of pairs the second has one pair more.
    `archlab.blocks.two_axes` says what the two positions are. Source: ChatGLM-6B's published code (2023); the two
    positions: arXiv:2103.10360, sec. 2.3.
    """

    axes = 2

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int,
        base: Positive = 10000.0,
        anchor: Literal["last", "next"] = "last",
    ):
        super().__init__()
        if head_dim % 2 or head_dim < 4:
            raise UserError(
                f"size.head_dim={head_dim}: pos=rope_2d rotates pairs of features by each of two positions; use an even"
                " number from 4 on"
            )
        self.base, self.anchor = base, anchor
        self.widths = [2 * (head_dim // 4), head_dim - 2 * (head_dim // 4)]

    def default_positions(
        self, index: Int[Tensor, "#batch seq"], prefix_len: Int[Tensor, " #batch"]
    ) -> Int[Tensor, "#batch 2 seq"]:
        return two_axes(index, prefix_len, self.anchor)

    def rotation(self, positions: Int[Tensor, "#batch 2 seq"]) -> Rotation:
        angles = [
            positions[:, axis].float()[..., None] * powers(self.base, width, positions)
            for axis, width in enumerate(self.widths)
        ]
        return waves(torch.cat(angles, dim=-1))

    def rotate_queries(self, q: SomeHeads, rotation: Rotation) -> SomeHeads:
        return self.rotate_parts(q, rotation)

    def rotate_keys(self, k: SomeHeads, rotation: Rotation) -> SomeHeads:
        return self.rotate_parts(k, rotation)

    def rotate_parts(self, x: SomeHeads, rotation: Rotation) -> SomeHeads:
        """Each half of a head's features, rotated by its own position."""
        parts = x.split(self.widths, dim=-1)
        angles = rotation.split([width // 2 for width in self.widths], dim=-1)
        return torch.cat(
            [rotate(part, of_part, LAYOUTS["half"]) for part, of_part in zip(parts, angles, strict=True)], dim=-1
        )
