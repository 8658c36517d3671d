"""Where a run broke: the first layer and quantity that are no longer finite numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn


@dataclass(frozen=True)
class NonFinite:
    """`where` is a module's or parameter's dotted name; `quantity` is weight, activation, loss or gradient."""

    step: int
    where: str
    quantity: str


def first_nonfinite(model: nn.Module, loss: Callable[[], Tensor], step: int) -> NonFinite:
    """Looks in the order in which a step computes: weights, activations, the loss, then gradients from the top down.

    `loss` runs the forward pass of the step that broke once more, on weights no later step has touched.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return NonFinite(step, name, "weight")
    broken: list[str] = []
    hooks = [module.register_forward_hook(note_into(broken, name)) for name, module in model.named_modules() if name]
    try:
        value = loss()
    finally:
        for hook in hooks:
            hook.remove()
    if broken:
        return NonFinite(step, broken[0], "activation")
    if not value.isfinite():
        return NonFinite(step, "head", "loss")
    return NonFinite(step, first_broken_gradient(model, value), "gradient")


def note_into(broken: list[str], name: str) -> Callable[[nn.Module, tuple, object], None]:
    def hook(module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            broken.append(name)

    return hook


def first_broken_gradient(model: nn.Module, loss: Tensor) -> str:
    """The name of the parameter whose gradient broke first as the backward pass goes down."""
    broken: list[str] = []
    hooks = [
        parameter.register_hook(partial(note_gradient, broken, name)) for name, parameter in model.named_parameters()
    ]
    loss.backward()
    for hook in hooks:
        hook.remove()
    return broken[0] if broken else "all parameters together"


def note_gradient(broken: list[str], name: str, gradient: Tensor) -> None:
    if not gradient.isfinite().all():
        broken.append(name)
