"""Optimizers: how a step moves the weights, each made by torch's own class or by a library's.

Which weights decay, and which are moved as matrices, goes by what each weight is for, never by its name. Gains, biases and
scalars do not decay.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from importlib.util import find_spec
from inspect import unwrap
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Interval
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.base.quantities import Probability
from archlab.blocks.roles import DECAYING, Weight
from archlab.model.decoder import Decoder
from archlab.train.options import TrainOptions


class Eager(torch.optim.Optimizer):
    """Torch's optimizer without what keeps a compiler out of it: that alone imports torch._dynamo, which takes 1.5 s.

    No step here is compiled together with its optimizer. Where torch wraps nothing, its methods are as they were.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)


class EagerAdamW(Eager, torch.optim.AdamW):
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class EagerMuon(Eager, torch.optim.Muon):
    step = torch.no_grad()(unwrap(torch.optim.Muon.step))


class EagerSGD(Eager, torch.optim.SGD):
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class UpdateRule(ABC):
    """Makes torch's optimizer for a decoder; the step sets every group's lr, times the group's `rate` where it has one."""

    uses: Collection[str] = ()
    """Which of `train`'s numbers it uses beside lr and weight_decay."""

    library: str | None = None
    """The module it is taken from, of the extra `optimizers`; None for torch's own."""

    packed = False
    """Whether runs with it can be trained as one pack."""

    averages = False
    """Whether a model is to be evaluated with other weights than those it is trained with."""

    constant_schedule = False
    """Whether it is defined for a learning rate that stays as it is after the warm-up."""

    keeps: Literal["adam", "momentum", "sgd", "muon"] = "adam"
    """What it keeps of each weight beside the weight, in the words of `memory.optimizer`."""

    by_entry = True
    """Whether each number of a weight moves by about lr, however large its gradient: what muP's rates are for."""

    @abstractmethod
    def __call__(self, decoder: Decoder, options: TrainOptions) -> torch.optim.Optimizer:
        """The optimizer, before the first step. Raises UserError where its library is not there, or it has nothing to move."""

    def decay(self, options: TrainOptions, rate: float = 1.0) -> float:
        """The number of which, times a step's learning rate, a decaying weight loses in the step.

        `rate` is what its init multiplies that learning rate by.
        """
        return options.weight_decay

    def evaluate(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: B027 - most have nothing to do
        """Where it `averages`: puts the weights to be evaluated in the place of those that are trained."""


def check_library(rule: UpdateRule | type[UpdateRule], name: str) -> None:
    """Raises UserError where an optimizer's library is not installed."""
    if rule.library is not None and find_spec(rule.library) is None:
        raise UserError(f"optimizer={name}: {rule.library} is not installed; pip install 'archlab[optimizers]'")


class AdamW(UpdateRule):
    """AdamW, of train.beta1 and train.beta2. Source: arXiv:1711.05101, alg. 2.

    A step at lr_t = train.lr * s_t, s_t being the share of the warm-up and the schedule, takes lr_t * train.weight_decay
    of each decaying weight from it.

    Options:

    independent_decay  takes s_t times this in the place of it, whatever train.lr is, and whatever rate of its own the init
                       gives the weight

    Source of independent_decay: arXiv:1711.05101, alg. 2, where eta_t is the schedule alone; `DecoupledAdamW` of Composer.
    arXiv:2309.14322, sec. 3.2.2, is about what it does.
    """

    uses = ("beta1", "beta2")
    packed = True

    def __init__(self, independent_decay: Annotated[float, Interval(gt=0, lt=1)] | None = None):
        self.independent_decay = independent_decay

    def __call__(self, decoder: Decoder, options: TrainOptions) -> torch.optim.Optimizer:
        return _adamw(groups(decoder, decoder.weights(), options, self.decay), options)

    def decay(self, options: TrainOptions, rate: float = 1.0) -> float:
        independent = self.independent_decay
        return super().decay(options, rate) if independent is None else independent / (options.lr * rate)


def _adamw(of_groups: list[dict[str, Any]], options: TrainOptions) -> torch.optim.AdamW:
    return EagerAdamW(of_groups, lr=options.lr, betas=(options.beta1, options.beta2), fused=True)


class Muon(UpdateRule):
    """Muon for the matrices inside blocks, an expert's each by itself, and AdamW for everything else.

    A matrix moves by lr * adjusted * O, where O is the nearest semi-orthogonal matrix to its momentum, by five steps of
    Newton and Schulz, and adjusted is 0.2 sqrt(max(fan_out, fan_in)): a step is then as large as AdamW's, so that both are
    used with the same lr and weight_decay. With `adjust=original` it is sqrt(max(1, fan_out / fan_in)).

    Options:

    momentum  of a matrix
    nesterov  whether the gradient counts once more beside the momentum
    ns_steps  steps of Newton and Schulz
    adjust    the factor on lr: match_rms_adamw or original

    Source: arXiv:2502.16982, sec. 2.1 and eq. 4; torch.optim.Muon.
    """

    uses = ("beta1", "beta2")
    keeps = "muon"
    by_entry = False

    def __init__(
        self,
        momentum: Probability = 0.95,
        nesterov: bool = True,
        ns_steps: Annotated[int, Interval(ge=1, lt=100)] = 5,
        adjust: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
    ):
        check_nesterov(nesterov, momentum)
        self.of_matrices: dict[str, Any] = {
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust,
        }

    def __call__(self, decoder: Decoder, options: TrainOptions) -> torch.optim.Optimizer:
        weights = list(decoder.weights())
        matrices = [w for w in weights if w.is_inner_matrix]
        others = [w for w in weights if not w.is_inner_matrix]
        if not matrices:
            raise UserError(
                "optimizer=muon: this model has no matrices inside blocks, so every weight would be AdamW's; use"
                " optimizer=adamw"
            )
        return SideBySide(
            [
                (
                    groups(decoder, matrices, options, self.decay),
                    lambda of: EagerMuon(of, lr=options.lr, **self.of_matrices),
                ),
                (groups(decoder, others, options, self.decay), lambda of: _adamw(of, options)),
            ]
        )


class Lion(UpdateRule):
    """lr times the sign of beta1 m + (1 - beta1) g, where m <- beta2 m + (1 - beta2) g; decay as in AdamW.

    Its steps are larger than AdamW's at the same lr: train.lr is usually 3 to 10 times smaller, weight_decay as much larger.

    Source: arXiv:2302.06675, alg. 2 and sec. 5; the library lion-pytorch.
    """

    library = "lion_pytorch"
    keeps = "momentum"

    def __init__(self, beta1: Probability = 0.9, beta2: Probability = 0.99):
        self.betas = beta1, beta2

    def __call__(self, decoder: Decoder, options: TrainOptions) -> torch.optim.Optimizer:
        check_library(self, "lion")
        from lion_pytorch import Lion as Its

        return Its(groups(decoder, decoder.weights(), options, self.decay), lr=options.lr, betas=self.betas)


class ScheduleFree(UpdateRule):
    """AdamW without a schedule: gradients are taken between the moving weights and their average, which is evaluated.

    Source: arXiv:2405.15682, alg. 1; the library schedulefree.
    """

    library = "schedulefree"
    averages = True
    constant_schedule = True

    def __init__(self, beta1: Annotated[float, Interval(gt=0, lt=1)] = 0.9, beta2: Probability = 0.999):
        self.betas = beta1, beta2

    def __call__(self, decoder: Decoder, options: TrainOptions) -> torch.optim.Optimizer:
        check_library(self, "schedule_free")
        from schedulefree import AdamWScheduleFree

        optimizer = AdamWScheduleFree(
            groups(decoder, decoder.weights(), options, self.decay), lr=options.lr, betas=self.betas, foreach=False
        )
        optimizer.train()
        return optimizer

    def evaluate(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.eval()  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            group["train_mode"] = True  # who goes on puts the weights back, exactly, which its train() would not


class SGD(UpdateRule):
    """Stochastic gradient descent with momentum: v <- momentum v + g, w <- w - lr v; decay is added to g.

    Source: torch.optim.SGD, with no dampening.
    """

    by_entry = False

    def __init__(self, momentum: Probability = 0.9, nesterov: bool = False):
        check_nesterov(nesterov, momentum)
        self.momentum, self.nesterov = momentum, nesterov
        self.keeps = "momentum" if momentum else "sgd"

    def __call__(self, decoder: Decoder, options: TrainOptions) -> torch.optim.Optimizer:
        of_groups = groups(decoder, decoder.weights(), options, self.decay)
        return EagerSGD(of_groups, lr=options.lr, momentum=self.momentum, nesterov=self.nesterov)


def check_nesterov(nesterov: bool, momentum: float) -> None:
    if nesterov and not momentum:
        raise UserError(
            "optimizer.nesterov=true: changes nothing under optimizer.momentum=0; use nesterov=false, or a larger momentum"
        )


# ---------------------------------------------------------------- weights by what moves them


Decay = Callable[[TrainOptions, float], float]
"""`UpdateRule.decay`."""


def groups(decoder: Decoder, weights: Iterable[Weight], options: TrainOptions, decay: Decay) -> list[dict[str, Any]]:
    """Torch's parameter groups: the decaying weights, then the others, and each again by the rate its init gives it."""
    weights, made = list(weights), []
    for decay_of, of_these in (
        (decay, [w for w in weights if w.role in DECAYING]),
        (without_decay, [w for w in weights if w.role not in DECAYING]),
    ):
        for rate in dict.fromkeys(decoder.rates.get(w.name, 1.0) for w in of_these):
            alike = [w.tensor for w in of_these if decoder.rates.get(w.name, 1.0) == rate]
            its = {} if rate == 1.0 else {"rate": rate}
            made.append({"params": alike, "weight_decay": decay_of(options, rate), **its})
    return made


def without_decay(options: TrainOptions, rate: float) -> float:
    """That of gains, biases and scalars."""
    return 0.0


Made = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class SideBySide(Eager):
    """Optimizers of different weights as one, each with the groups it is made from; a group without weights is left out.

    The first takes matrices alone, and so is given a view of each matrix of a tensor of three axes.
    """

    def __init__(self, parts: Sequence[tuple[list[dict[str, Any]], Made]]):
        matrices = parts[0][0]
        parts = [(of_groups, made) for of_groups, made in parts if of_groups]
        super().__init__([dict(group) for of_groups, _ in parts for group in of_groups], {"lr": 0.0})
        self.views = {p: matrices_of(p) for group in matrices for p in group["params"] if p.ndim > 2}
        self.parts = [
            made([{**group, "params": self.in_views(group["params"])} for group in of_groups])
            for of_groups, made in parts
        ]
        for part in self.parts:
            part.state = self.state
        for whole, views in self.views.items():
            self.state[whole]["momentum_buffer"] = torch.zeros_like(whole)
            for view, buffer in zip(views, self.state[whole]["momentum_buffer"], strict=True):
                self.state[view]["momentum_buffer"] = buffer

    def in_views(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        return [one for p in parameters for one in self.views.get(p, [p])]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for whole, matrices in self.views.items():
            for i, view in enumerate(matrices):
                view.grad = None if whole.grad is None else whole.grad[i]
        inner = [group for part in self.parts for group in part.param_groups]
        for group, its in zip(self.param_groups, inner, strict=True):
            its["lr"] = group["lr"]
        for part in self.parts:
            part.step()


def matrices_of(parameter: nn.Parameter) -> list[Tensor]:
    """A view of each matrix in it."""
    return list(parameter.detach().flatten(0, -3).unbind())


# ---------------------------------------------------------------- a step that may be skipped


def step_unless(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """The optimizer's step; where `skip` is true, on the device, nothing has changed after it, and nobody has waited.

    Torch's fused kernels skip by themselves where `found_inf` is 1, as GradScaler has them do. For any other optimizer the
    weights and what it keeps of them are copied before the step, and put back; what it begins to keep in a step that is skipped
    begins with a gradient of zero, to which SGD adds its decay.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        # What the kernel reads, and torch declares nowhere; torch's own GradScaler sets both.
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        optimizer.step()
        return
    with torch.no_grad():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        kept = [t for p in parameters for t in optimizer.state[p].values() if isinstance(t, Tensor)]
        before = [(t, t.clone()) for t in (*parameters, *kept)]
        for p in parameters:
            if p.grad is not None:
                p.grad.masked_fill_(skip, 0.0)  # what an optimizer keeps begins with its first gradient
        optimizer.step()
        for tensor, old in before:
            tensor.copy_(torch.where(skip, old, cast(Tensor, tensor)))
