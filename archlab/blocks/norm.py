"""Norms: which statistics a position's features are rescaled by.

All share one form, y = gain * (x - mean) / sqrt(variance + eps) + shift, and differ in the axes over which mean and
variance are taken (`reduces`), and in whether there is a mean at all. In a causal model only statistics over d_model
alone are allowed: by statistics over seq or batch a position depends on later tokens.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.base.quantities import Positive, Share
from archlab.blocks.contracts import Norm, Stream
from archlab.blocks.precision import at_least_float32, in_dtype_of
from archlab.blocks.rms import rms_norm


class LayerNorm(Norm):
    """Over the features of one position, with the biased variance.

    y = gain * (x - mean(x)) / sqrt(var(x) + eps) + shift.

    Options:

    affine  whether there are a gain and a shift
    shift   whether there is a shift, which PaLM leaves out ("No Biases")
    unit_offset
            whether the factor is 1 + gain, and gain starts at zero

    Source: arXiv:1607.06450, eq. 3; per position, as in arXiv:1706.03762, sec. 3.1; arXiv:2204.02311, sec. 2 (shift);
    unit_offset as Nemotron's published code has it (NemotronLayerNorm1P).
    """

    def __init__(
        self, d_model: int, eps: Positive = 1e-5, affine: bool = True, shift: bool = True, unit_offset: bool = False
    ):
        super().__init__()
        check_unit_offset(unit_offset, affine)
        self.eps = eps
        start = torch.zeros(d_model) if unit_offset else torch.ones(d_model)
        self.gain = nn.Parameter(start) if affine else None
        self.shift = nn.Parameter(torch.zeros(d_model)) if affine and shift else None
        self.whole_gain, self.whole_shift = whole_gain(affine, unit_offset), whole_gain(affine and shift)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        gain, shift = self.whole_gain(self.gain), self.whole_shift(self.shift)
        return in_dtype_of(F.layer_norm(at_least_float32(x), x.shape[-1:], gain, shift, self.eps), x)


def check_unit_offset(unit_offset: bool, affine: bool) -> None:
    """Raises UserError where there is no gain that 1 could be added to."""
    if unit_offset and not affine:
        raise UserError(
            "norm.unit_offset=true: changes nothing under norm.affine=false, which has no gain; leave one of them out"
        )


def one_more(gain: Tensor) -> Tensor:
    """1 + gain, float32 at least."""
    return 1.0 + at_least_float32(gain)


def nothing(gain: None) -> None:
    """A norm without a gain, or without a shift."""


def whole_gain(there: bool, unit_offset: bool = False) -> Callable[..., Tensor | None]:
    """What makes of a norm's learned gain, or shift, what its formula takes: float32 at least."""
    return (one_more if unit_offset else at_least_float32) if there else nothing


class RMSNorm(Norm):
    """Over the features of one position, by their root mean square; no mean is subtracted.

    y = gain * x / sqrt(mean(x^2) + eps). With `unit_offset` the factor is 1 + gain, and gain starts at zero; without
    `affine` there is no gain.
    Source: arXiv:1910.07467, eq. 4; eps inside the root, as LLaMA has it; unit_offset as Gemma's published code has it.
    """

    def __init__(self, d_model: int, eps: Positive = 1e-6, unit_offset: bool = False, affine: bool = True):
        super().__init__()
        check_unit_offset(unit_offset, affine)
        self.eps = eps
        self.offset = 1.0 if unit_offset else 0.0
        self.gain = nn.Parameter(torch.full((d_model,), 1.0 - self.offset)) if affine else None
        self.whole_gain = whole_gain(affine, unit_offset)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        gain = self.whole_gain(self.gain)
        return in_dtype_of(rms_norm(at_least_float32(x), self.eps, gain), x)


class L2Norm(Norm):
    """Over the features of one position, by their length.

    y = x / sqrt(sum(x^2) + eps), of length 1. With `scaled` times one learned number, which starts at sqrt(d_model).
    Source: arXiv:2410.01131 (nGPT), `justnorm` of its released model.py; scaled: arXiv:1910.05895, eq. 5
    (ScaleNorm); eps inside the root.
    """

    def __init__(self, d_model: int, eps: Positive = 1e-6, scaled: bool = False):
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.full((1,), d_model**0.5)) if scaled else 1.0

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        wide = at_least_float32(x)
        length = (wide.square().sum(dim=-1, keepdim=True) + self.eps).sqrt()
        return (self.gain * wide / length).type_as(x)


class DynamicTanh(Norm):
    """y = gain * tanh(alpha * x) + shift: in the place of a norm, and without any statistics; alpha is one learned number.

    Options:

    start   what alpha starts at

    Source: arXiv:2503.10622, sec. 4 and alg. 1, as its published code has it.
    """

    reduces = ()

    def __init__(self, d_model: int, start: Positive = 0.5):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), float(start)))
        self.gain = nn.Parameter(torch.ones(d_model))
        self.shift = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return (self.gain * torch.tanh(self.alpha * at_least_float32(x)) + self.shift).type_as(x)


class NoNorm(Norm):
    """y = x."""

    reduces = ()
    acts = False

    def __init__(self, d_model: int):
        super().__init__()

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return x


MakeWidthNorm = Callable[..., nn.Module]
"""Makes a norm of the width that it is given as `d_model`, for features other than the stream's."""


def no_norm(d_model: int) -> nn.Module:
    """For a block that may have a norm of its own and has none."""
    return nn.Identity()


def check_width_norm(asked: str, norm: nn.Module) -> None:
    """Raises UserError where a norm of some features is asked for and this one takes its statistics elsewhere."""
    if isinstance(norm, Norm) and norm.reduces != ("d_model",):
        raise UserError(
            f"{asked}: queries and keys are normed over their features alone, which norm={type(norm).__name__} does not"
            " do; use mixer.qk_norm=none, or a norm over d_model alone"
        )


class BatchNorm(Norm):
    """Each feature over all positions of all sequences, as in vision over N, H and W.

    In training the statistics are the batch's; in evaluation a running mean of those (`momentum` is the weight of the
    newest batch). Source: arXiv:1502.03167, alg. 1 and 2; why it suits language badly:
    arXiv:2003.07845, abstract.
    """

    reduces = ("batch", "seq")

    def __init__(self, d_model: int, eps: Positive = 1e-5, momentum: Share = 0.1):
        super().__init__()
        self.over_positions = nn.BatchNorm1d(d_model, eps=eps, momentum=momentum)

    def forward(self, x: Stream) -> Stream:
        flat = self.over_positions(rearrange(x, "batch seq d_model -> (batch seq) d_model"))
        return rearrange(flat, "(batch seq) d_model -> batch seq d_model", batch=x.shape[0])


class OverPositions(Norm):
    """A norm over the positions of one sequence, with a gain and a shift for each feature; defined at any length."""

    def __init__(self, d_model: int, eps: Positive = 1e-5):
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(d_model))
        self.shift = nn.Parameter(torch.zeros(d_model))


class InstanceNorm(OverPositions):
    """Each feature over the positions of one sequence, as in vision over H and W.

    Source: arXiv:1607.08022, eq. 3, with seq in the place of the image's axes.
    """

    reduces = ("seq",)

    def forward(self, x: Stream) -> Stream:
        along_seq = rearrange(at_least_float32(x), "batch seq d_model -> batch d_model seq")
        normed = rearrange(
            F.layer_norm(along_seq, along_seq.shape[-1:], eps=self.eps), "batch d_model seq -> batch seq d_model"
        )
        # Features side by side again: each matrix that is given it would make, and keep, a copy of its own.
        return (self.gain * normed + self.shift).type_as(x).contiguous()


class SequenceNorm(OverPositions):
    """LayerNorm over all features of all positions of one sequence, as in vision over C, H and W.

    The gain and the shift are per feature, so that the norm is defined at any length.
    Source: arXiv:1803.08494, fig. 2, the "Layer Norm" of vision.
    """

    reduces = ("seq", "d_model")

    def forward(self, x: Stream) -> Stream:
        normed = F.layer_norm(at_least_float32(x), x.shape[1:], eps=self.eps)
        return (self.gain * normed + self.shift).type_as(x)
