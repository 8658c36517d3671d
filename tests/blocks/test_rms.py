"""`rms_norm` against the formula in float64, with and without gradients, and under vmap; RoPE's turn beside it."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, stack_module_state, vmap

from archlab.blocks.norm import LayerNorm, RMSNorm
from archlab.blocks.own_gradient import OwnGradient
from archlab.blocks.rms import rms_norm
from archlab.blocks.rope import LAYOUTS, rotate_wide, waves

EPS = 0.3
"""As large as x^2, so that leaving it out, or taking it for its square, would be seen."""


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def written_out(x: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    normed = x / (x.pow(2).sum(dim=-1, keepdim=True) / x.shape[-1] + EPS) ** 0.5
    return normed if gain is None else normed * gain


@pytest.mark.parametrize("gained", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 11), (1, 1, 1, 4)])
def test_values_and_gradients_are_those_of_the_formula(shape, gained):
    x, gain = drawn(*shape).requires_grad_(), drawn(shape[-1]).requires_grad_() if gained else None
    inputs = [x] if gain is None else [x, gain]
    outer = drawn(*shape).mT.contiguous().mT  # laid out another way than x
    expected, found = written_out(x, gain), rms_norm(x, EPS, gain)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, inputs, outer), torch.autograd.grad(expected, inputs, outer), strict=True
    ):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, EPS, gain), expected)


@pytest.mark.parametrize("gained", [True, False])
def test_the_gradient_is_that_of_small_differences(gained):
    x, gain = drawn(2, 3, 5).requires_grad_(), drawn(5).requires_grad_() if gained else None
    assert torch.autograd.gradcheck(
        lambda *given: rms_norm(given[0], EPS, *given[1:]), (x,) if gain is None else (x, gain)
    )


def test_a_gradient_of_the_gradient_is_refused_and_not_wrong():
    x = drawn(3, 5).requires_grad_()
    (grad,) = torch.autograd.grad(rms_norm(x, EPS).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_gradient_taken_inside_of_autocast_is_that_taken_outside():
    x, gain = drawn(3, 8, dtype=torch.float32).requires_grad_(), drawn(8, dtype=torch.float32).requires_grad_()
    outer = drawn(3, 8, dtype=torch.float32)
    outside = torch.autograd.grad(rms_norm(x, EPS, gain), (x, gain), outer)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(rms_norm(x, EPS, gain), (x, gain), outer)
    assert all(torch.equal(one, other) for one, other in zip(inside, outside, strict=True))


@pytest.mark.parametrize("make", [RMSNorm, LayerNorm, lambda width: RMSNorm(width, affine=False)])
def test_stacked_norms_under_vmap_are_the_norms_one_by_one(make):
    norms, x = [make(6).double() for _ in range(3)], drawn(3, 2, 5, 6)
    for number, norm in enumerate(norms):
        for weight in norm.parameters():
            weight.data += drawn(6) * (number + 1)
    weights, _ = stack_module_state(norms) if list(norms[0].parameters()) else ({}, {})
    together = vmap(lambda given, each: functional_call(norms[0], given, (each,)))(weights, x)
    outer = drawn(3, 2, 5, 6)
    torch.testing.assert_close(together, torch.stack([norm(each) for norm, each in zip(norms, x, strict=True)]))
    together.backward(outer) if weights else None
    for name, stacked in weights.items():
        for number, norm in enumerate(norms):
            norm.zero_grad()
            norm(x[number]).backward(outer[number])
            torch.testing.assert_close(stacked.grad[number], norm.get_parameter(name).grad)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("over", [(0, None), (0, 0), (None, 0), (1, None)], ids=str)
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.filterwarnings("error:There is a performance drop")
def test_a_turn_under_vmap_is_the_turns_one_by_one(layout, over, grad):
    x_over, angles_over = over
    size = 3
    x = drawn(2, 4, 5, 6) if x_over is None else drawn(2, 4, 5, 6).unsqueeze(x_over).repeat_interleave(size, x_over)
    x = x * torch.linspace(0.5, 2, x.numel(), dtype=x.dtype).view_as(x)
    angles = (
        waves(drawn(1, 5, 3)) if angles_over is None else torch.stack([waves(drawn(1, 5, 3) * n) for n in (1, 2, 3)])
    )
    with torch.set_grad_enabled(grad):
        together = vmap(lambda one, turn: rotate_wide(one, turn, layout), in_dims=over)(x, angles)
    for number in range(size):
        one = x if x_over is None else x.select(x_over, number)
        turn = angles if angles_over is None else angles[number]
        torch.testing.assert_close(together[number], rotate_wide(one, turn, layout))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_turn_is_a_product_with_a_complex_number_and_its_gradient_that_of_the_product(layout):
    x, angles, outer = drawn(2, 3, 5, 8).requires_grad_(), drawn(1, 5, 4), drawn(2, 3, 5, 8)

    def as_complex(features: torch.Tensor) -> torch.Tensor:
        pairs = features.unflatten(-1, (2, 4)).mT if layout == LAYOUTS["half"] else features.unflatten(-1, (4, 2))
        return torch.view_as_complex(pairs.contiguous())

    turned = torch.view_as_real(as_complex(x) * torch.exp(1j * angles))
    expected = (turned.mT if layout == LAYOUTS["half"] else turned).flatten(-2)
    found = rotate_wide(x, waves(angles), layout)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, outer)[0] for y in (found, expected)))
    few, their_angles = x.detach()[:1, :1, :2].requires_grad_(), waves(angles[:, :2])
    assert torch.autograd.gradgradcheck(lambda given: rotate_wide(given, their_angles, layout).square(), (few,))


def test_a_function_with_its_own_gradient_asks_for_its_signature_once_and_keeps_its_defaults(monkeypatch):
    asked = []
    ask = inspect.signature
    monkeypatch.setattr(inspect, "signature", lambda *given, **more: asked.append(given) or ask(*given, **more))

    class Times(OwnGradient):
        @staticmethod
        def forward(x: torch.Tensor, by: float = 3.0) -> torch.Tensor:
            return x * by

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.by = inputs[1]

        @staticmethod
        def backward(ctx, dy):
            return dy * ctx.by, None

    assert len(asked) == 1 and Times.forward.__signature__ == ask(Times.forward)
    x = drawn(5).requires_grad_()
    Times.apply(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 3.0))


def test_where_no_gradient_is_wanted_a_function_is_its_forward_alone():
    """The same numbers, from which no gradient leads back."""
    x, angles = drawn(2, 3, 5, 8).requires_grad_(), waves(drawn(1, 5, 4))
    with torch.no_grad():
        alone = rotate_wide(x, angles, LAYOUTS["half"])
    wanted = rotate_wide(x, angles, LAYOUTS["half"])
    assert torch.equal(alone, wanted) and not alone.requires_grad and wanted.requires_grad


def test_where_no_gradient_is_wanted_autograd_is_asked_nothing():
    asked = []

    class Twice(OwnGradient):
        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            asked.append(inputs)

    with torch.inference_mode():
        torch.testing.assert_close(Twice.apply(drawn(5)), drawn(5) * 2)
    assert not asked
    Twice.apply(drawn(5).requires_grad_())
    assert len(asked) == 1


def test_layer_norm_is_torchs_with_its_gain_and_shift():
    norm, x = LayerNorm(7, eps=0.2).double(), drawn(3, 7)
    norm.gain.data, norm.shift.data = drawn(7), drawn(7) + 1
    expected = F.layer_norm(x, (7,), eps=0.2) * norm.gain + norm.shift
    torch.testing.assert_close(norm(x), expected)
