"""Feed-forward networks of many experts, of which a router picks a few for each token.

Every token gets all the experts that were picked for it, however many others picked the same (dropless). Experts share
one tensor for each kind of matrix, (n_experts, fan_out, fan_in), and are computed for the tokens that picked them alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from archlab.base.errors import UserError
from archlab.base.quantities import Count, Literal, Natural, NonNegative, Positive, Probability
from archlab.blocks.contracts import FeedForward, Stream
from archlab.blocks.ffn import Elementwise, Gated, Plain, SquaredReLU
from archlab.blocks.grouped import grouped_linear
from archlab.blocks.norm import MakeWidthNorm, no_norm
from archlab.blocks.precision import at_least_float32, dtype_of_products, without_autocast
from archlab.blocks.roles import Role, Weight
from archlab.blocks.steps import DrawnStep
from archlab.blocks.taps import NOBODY_LOOKS, Taps

Network = Literal[
    "swiglu", "geglu", "geglu_tanh", "reglu", "glu", "bilinear", "clamped_swiglu", "relu", "relu2", "gelu", "gelu_tanh", "silu"
]  # fmt: skip

GATED: Mapping[str, Callable[[], Elementwise]] = {
    "swiglu": nn.SiLU,
    "geglu": nn.GELU,
    "geglu_tanh": partial(nn.GELU, approximate="tanh"),
    "reglu": nn.ReLU,
    "glu": nn.Sigmoid,
    "bilinear": nn.Identity,
}
PLAIN: Mapping[str, Callable[[], Elementwise]] = {
    "relu": nn.ReLU,
    "relu2": SquaredReLU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
}
CLAMPED = "clamped_swiglu"

TINY = 1e-20
"""Added to a sum of scores, all of which may have underflowed to 0; as DeepSeek-V3's published code has it."""

SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid}

Tokens = Float[Tensor, "token d_model"]
Scores = Float[Tensor, "token experts"]
Chosen = Int[Tensor, "token top_k"]
Load = Float[Tensor, " experts"]
"""Assignments to each expert: top_k times the tokens in all."""


class Assigned(NamedTuple):
    """The assignments in the order of their experts, a row each."""

    expert: Int[Tensor, " rows"]
    ends: Int[Tensor, " experts"]
    """How many rows there are up to the end of each expert's."""


class RoutedExperts(FeedForward):
    """Of n_experts networks of width d_ff each token gets the top_k that its router picks, and those that all tokens share.

    y = scale * sum over the chosen i of w_i(x) f_i(x), + shared(x)

    A score is the softmax of the router's logits, or the sigmoid of each; the `top_k` experts of the largest scores are
    chosen, of equal ones those that come first; w are their scores, divided by their sum where `normalise` is set. Logits,
    scores and w are float32 at least. An expert that no token picks adds nothing, and its gradient is 0.

    Options:

    n_experts    how many there are
    top_k        how many of them each token gets
    network      what an expert is, by the names of ffn's other options; clamped_swiglu is gpt-oss's
    scores       a softmax over the experts, or a sigmoid of each
    normalise    whether w adds up to 1; with softmax it is then the softmax of the chosen logits alone
    scale        a constant on what the chosen experts add
    weights_on   what w multiplies: the `output` of the experts, or their `input`: then y = sum of f_i(scale * w_i(x) x) (Llama 4)
    shared       how many experts every token gets besides, as one network of width shared * d_ff
    shared_gate  whether what these add is multiplied by sigmoid(gate(x)), one number for each token
    groups, top_groups
                 experts are in so many groups next to each other, and a token picks within its best `top_groups` groups
    router_bias  whether the router has a bias
    balance_loss coefficient of n_experts * sum_i f_i P_i, which each layer adds to the loss: f_i is the share of all
                 assignments that expert i got, P_i the mean of its share of a token's scores; it is 1 where both are even
    balance_rate after each step each expert's bias, which acts on the choice alone, moves by so much towards an even load;
                 null: there is no such bias
    z_loss       coefficient of the mean of logsumexp(router logits)^2, which each layer adds to the loss
    bias         whether the experts' matrices have one
    dropout      a probability, of the output
    inner_norm   makes a norm of what the experts' last matrices are given, one for all of them, where the residual scheme
                 asks for one

    Raises UserError where these cannot be, or one of them would change nothing.

    Source: arXiv:1701.06538, eq. 3 to 5 (top-k routing, without its noise); arXiv:2401.04088, sec. 2.1 (normalised);
    arXiv:2401.06066, eq. 9 to 11 (shared experts), and the load as a share of all assignments; arXiv:2412.19437,
    sec. 2.1.2 (sigmoid, groups, scale) and eq. 16 (bias); arXiv:2101.03961, eq. 4 to 6 (balance_loss at top_k=1);
    arXiv:2408.15664, alg. 1 (balance_rate); arXiv:2202.08906, eq. 5 (z_loss). The numbers are those of the published code
    of Mixtral, OLMoE, Qwen2-MoE (the shared gate), Qwen3-MoE, DeepSeek-V3, GLM-4.5, gpt-oss and Llama 4.
    """

    gated = True
    to_stream = ("down_proj", "down_bias")
    roles = {
        "router": Role.ROUTER,
        "shared_gate": Role.ROUTER,
        "gate_bias": Role.BIAS,
        "up_bias": Role.BIAS,
        "down_bias": Role.BIAS,
    }
    taps = ("router_entropy", "max_load", "min_load")

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        n_experts: Count = 8,
        top_k: Count = 2,
        network: Network = "swiglu",
        scores: Literal["softmax", "sigmoid"] = "softmax",
        normalise: bool = True,
        scale: Positive = 1.0,
        weights_on: Literal["output", "input"] = "output",
        shared: Natural = 0,
        shared_gate: bool = False,
        groups: Count = 1,
        top_groups: Count = 1,
        router_bias: bool = False,
        balance_loss: NonNegative = 0.01,
        balance_rate: Positive | None = None,
        z_loss: NonNegative = 0.0,
        bias: bool = False,
        dropout: Probability = 0.0,
        inner_norm: MakeWidthNorm = no_norm,
    ):
        super().__init__()
        check_choice(n_experts, top_k, normalise, balance_rate)
        check_groups(n_experts, top_k, groups, top_groups)
        check_shared(network, shared, shared_gate)
        self.n_experts, self.top_k, self.d_ff, self.n_shared = n_experts, top_k, d_ff, shared
        self.network, self.scores = network, scores
        self.gated = network not in PLAIN
        self.router = Router(d_model, n_experts, bias=router_bias)
        self.score = SCORES[scores]
        self.biased = Unbiased() if balance_rate is None else BalancingBias(n_experts, balance_rate)
        self.within_groups = nn.Identity() if groups == 1 else WithinGroups(groups, top_groups)
        self.weigh = partial(normalised if normalise else as_they_are, scale)
        self.weigh_input, self.add_up = WEIGHED[weights_on]
        losses = {"balance": (balance, balance_loss), "router_z": (router_z, z_loss)}
        self.router_losses = {name: partial(loss, by) for name, (loss, by) in losses.items() if by}

        self.read_by = ("gate", "up") if self.gated else ("up",)
        for name in self.read_by:
            self.register_parameter(f"{name}_proj", drawn(n_experts, d_ff, d_model))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(n_experts, d_ff)) if bias else None)
        self.down_proj = drawn(n_experts, d_model, d_ff)
        self.register_parameter("down_bias", nn.Parameter(torch.zeros(n_experts, d_model)) if bias else None)
        self.add_bias = add_its_experts if bias else add_nothing
        self.hidden = make_hidden(network)
        self.inner_norm = inner_norm(d_model=d_ff)
        self.norm_hidden = leave if isinstance(self.inner_norm, nn.Identity) else norm_by_sequence
        if shared:
            self.shared = make_shared(network, d_model, shared * d_ff, bias, inner_norm)
        if shared_gate:
            self.shared_gate = OneNumberGate(d_model)
        self.add_shared = add_gated_shared if shared_gate else add_shared if shared else add_no_shared
        self.dropout = nn.Dropout(dropout)

    @classmethod
    def has_gate(cls, options: Mapping[str, Any]) -> bool:
        return options.get("network", "swiglu") not in PLAIN

    def forward(self, x: Stream, taps: Taps = NOBODY_LOOKS) -> Stream:
        tokens = rearrange(x, "batch seq d_model -> (batch seq) d_model")
        logits = self.router(tokens)
        scores = self.score(logits)
        chosen = self.choose(scores)
        load = torch.zeros_like(scores).scatter(-1, chosen, 1.0).sum(dim=0)
        self.hand_out(logits, scores, load, taps)
        y = self.routed(x, chosen, self.weigh(scores.gather(-1, chosen)), load)
        return self.dropout(self.add_shared(self, x, y))

    def choose(self, scores: Scores) -> Chosen:
        """The experts of each token, the one of the largest score first."""
        return largest(self.within_groups(self.biased(scores.detach())), self.top_k)

    def hand_out(self, logits: Scores, scores: Scores, load: Load, taps: Taps) -> None:
        """What the router adds to the loss, its load, and what can be recorded."""
        shares = scores / (scores.sum(dim=-1, keepdim=True) + TINY)
        for name, loss in self.router_losses.items():
            taps.add_loss(name, loss(logits, shares, load))
        taps.count("load", load)
        taps.tap(self.taps, partial(seen_of_routing, shares, load))

    def after_step(self, counted: Mapping[str, Tensor]) -> None:
        self.biased.after_step(counted["load"])

    def routed(self, x: Stream, chosen: Chosen, weights: Float[Tensor, "token top_k"], load: Load) -> Stream:
        """The sum of what each token's experts make of it, by `weights`; each expert is given its tokens in one piece."""
        by_token = chosen.flatten()
        order = by_token.argsort(stable=True)
        assigned = Assigned(by_token[order], load.long().cumsum(dim=0))
        rows = self.weigh_input(x.to(dtype_of_products(x)).flatten(0, 1)[order // self.top_k], weights, order)
        hidden = self.hidden(*(self.mapped(name, rows, assigned) for name in self.read_by))
        hidden = self.norm_hidden(self.inner_norm, hidden, order, len(x))
        made = self.mapped("down", hidden, assigned)[order.argsort()].unflatten(0, chosen.shape)
        return self.add_up(made, weights).view_as(x)

    def mapped(self, name: str, x: Float[Tensor, "rows fan_in"], assigned: Assigned) -> Float[Tensor, "rows fan_out"]:
        """Each row by its expert's matrix of this name, and its bias."""
        y = grouped_linear(x, getattr(self, f"{name}_proj").type_as(x), assigned.ends)
        return self.add_bias(y, getattr(self, f"{name}_bias"), assigned)

    # ------------------------------------------------------------ what it says of itself

    @property
    def summary(self) -> str:
        shared = f" and {self.n_shared} shared" if self.n_shared else ""
        return f"{type(self).__name__}, {self.top_k} of {self.n_experts}{shared}, d_ff {self.d_ff}"

    def steps(self) -> Sequence[DrawnStep]:
        """The router and what it picks, the experts' matrices, and the shared ones."""
        n, d_model = self.n_experts, self.router.in_features
        wide, back = f"{n} × ({d_model} → {self.d_ff})", f"{n} × ({self.d_ff} → {d_model})"
        steps = [
            DrawnStep("part", "router", path="router"),
            DrawnStep("op", f"top {self.top_k} of {n}", self.scores, reads=(1,)),
        ]
        before = self.add_up is plain_sum
        if before:
            steps.append(DrawnStep("mul", "× weight", reads=(0, 2)))
        first = len(steps)
        given = (first if before else 0,)
        steps += [DrawnStep("linear", f"{name}_proj", wide, path=f"{name}_proj", reads=given) for name in self.read_by]
        steps.append(DrawnStep("activation", self.network, reads=tuple(range(first + 1, len(steps) + 1))))
        steps.append(DrawnStep("linear", "down_proj", back, path="down_proj", reads=(len(steps),)))
        last = len(steps)
        steps.append(
            DrawnStep("op", "sum", reads=(last,)) if before else DrawnStep("mul", "weighted sum", reads=(last, 2))
        )
        if self.n_shared:
            routed = len(steps)
            steps.append(
                DrawnStep(
                    "linear",
                    f"{self.n_shared} shared",
                    f"{d_model} → {self.n_shared * self.d_ff} → {d_model}",
                    "shared",
                )
            )
            steps.append(DrawnStep("add", "+", reads=(routed, len(steps))))
        return [*steps, DrawnStep("part", "dropout", path="dropout", reads=(len(steps),))]

    def _weight(self, module: nn.Module, name: str, tensor: nn.Parameter) -> Weight:
        """One token uses top_k of the experts' matrices."""
        weight = super()._weight(module, name, tensor)
        of_experts = module is self and tensor.ndim > 1
        return replace(weight, used=self.top_k / self.n_experts) if of_experts else weight


# ---------------------------------------------------------------- the router


class Router(nn.Linear):
    """Logits of the experts, float32 at least: two whose scores are near each other are told apart by these."""

    def __init__(self, d_model: int, n_experts: int, bias: bool):
        super().__init__(d_model, n_experts, bias=bias)
        self.with_bias: Callable[..., Tensor] = plus_bias if bias else without_bias

    def forward(self, tokens: Tokens) -> Scores:
        with without_autocast(tokens.device):
            return self.with_bias(at_least_float32(tokens) @ at_least_float32(self.weight).T, self.bias)


def plus_bias(logits: Scores, bias: Load) -> Scores:
    """Logits with a bias of each expert."""
    return logits + bias


def without_bias(logits: Scores, bias: None) -> Scores:
    """Logits as they are."""
    return logits


def largest(scores: Float[Tensor, "*axes options"], k: int) -> Int[Tensor, "*axes k"]:
    """The places of the k largest, the largest first; of equal ones those that come first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


class WithinGroups(nn.Module):
    """Leaves the experts of the best groups alone: scores (token, experts) -> the same, -inf in all other groups.

    A group is as good as its two best experts together. Source: arXiv:2412.19437, sec. 2.1.2 ("Node-Limited Routing"), as
    DeepSeek-V3's published code has it.
    """

    def __init__(self, groups: int, top_groups: int):
        super().__init__()
        self.groups, self.top_groups = groups, top_groups

    def forward(self, scores: Scores) -> Scores:
        grouped = rearrange(scores, "token (groups experts) -> token groups experts", groups=self.groups)
        best = largest(grouped.topk(2, dim=-1).values.sum(dim=-1), self.top_groups)
        left_out = torch.ones_like(grouped[..., 0]).scatter(-1, best, 0.0) > 0
        return grouped.masked_fill(left_out[..., None], float("-inf")).flatten(-2)


class BalancingBias(nn.Module):
    """A bias on each expert's score, for the choice alone; after each step it moves towards an even load.

    bias_i <- bias_i + rate * sign(mean(load) - load_i)

    Source: arXiv:2408.15664, alg. 1.
    """

    bias: Tensor

    def __init__(self, n_experts: int, rate: float):
        super().__init__()
        self.rate = rate
        self.register_buffer("bias", torch.zeros(n_experts))

    def forward(self, scores: Scores) -> Scores:
        return scores + self.bias

    def after_step(self, load: Load) -> None:
        """Moves the bias, by all assignments of a step."""
        self.bias += self.rate * torch.sign(load.mean() - load).type_as(self.bias)


class Unbiased(nn.Identity):
    """The scores as they are."""

    def after_step(self, load: Load) -> None:
        """Does nothing."""


def normalised(scale: float, chosen_scores: Float[Tensor, "token top_k"]) -> Float[Tensor, "token top_k"]:
    """Scores divided by their sum over a token's experts, times a constant."""
    return scale * chosen_scores / (chosen_scores.sum(dim=-1, keepdim=True) + TINY)


def as_they_are(scale: float, chosen_scores: Float[Tensor, "token top_k"]) -> Float[Tensor, "token top_k"]:
    """Scores times a constant."""
    return scale * chosen_scores


def weighed_sum(made: Float[Tensor, "token top_k d_model"], weights: Float[Tensor, "token top_k"]) -> Tokens:
    """The sum over a token's experts, each by its weight."""
    return (weights[..., None] * made).sum(dim=-2).type_as(made)


def plain_sum(made: Float[Tensor, "token top_k d_model"], weights: Float[Tensor, "token top_k"]) -> Tokens:
    """The sum over a token's experts, which were given their weights with the input."""
    return made.sum(dim=-2)


def unweighed(rows: Float[Tensor, "rows d_model"], weights: Tensor, order: Tensor) -> Float[Tensor, "rows d_model"]:
    """Inputs as they are."""
    return rows


def weighed_rows(
    rows: Float[Tensor, "rows d_model"], weights: Float[Tensor, "token top_k"], order: Int[Tensor, " rows"]
) -> Float[Tensor, "rows d_model"]:
    """Each assignment's input by its weight."""
    return (rows * weights.flatten()[order, None]).type_as(rows)


WEIGHED: Mapping[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "output": (unweighed, weighed_sum),
    "input": (weighed_rows, plain_sum),
}
"""What becomes of an expert's inputs and of its outputs, by what the weights multiply."""


def balance(coefficient: float, logits: Scores, shares: Scores, load: Load) -> Tensor:
    """n_experts * sum_i f_i P_i: f_i expert i's share of the assignments, P_i the mean of its share of the scores."""
    return coefficient * len(load) * (load / load.sum() * shares.mean(dim=0)).sum()


def router_z(coefficient: float, logits: Scores, shares: Scores, load: Load) -> Tensor:
    """The mean square of the logits' log-sum-exp."""
    return coefficient * logits.logsumexp(dim=-1).square().mean()


def seen_of_routing(shares: Scores, load: Load) -> Mapping[str, Tensor]:
    """The mean entropy of the scores, nats; the largest and the smallest load, in parts of an even one."""
    entropy = torch.special.entr(shares).sum(dim=-1).mean()
    return {
        "router_entropy": entropy,
        "max_load": load.amax() / load.mean(),
        "min_load": load.amin() / load.mean(),
    }


# ---------------------------------------------------------------- the experts


class Product(nn.Module):
    """activation(gate) * up."""

    def __init__(self, activation: Callable[[], Elementwise]):
        super().__init__()
        self.activation = activation()

    def forward(self, gate: Float[Tensor, "rows d_ff"], up: Float[Tensor, "rows d_ff"]) -> Float[Tensor, "rows d_ff"]:
        return self.activation(gate) * up


class ClampedProduct(nn.Module):
    """g * sigmoid(1.702 g) * (u + 1), g being gate up to 7, u being up between -7 and 7.

    Source: gpt-oss's published code.
    """

    SLOPE, LIMIT = 1.702, 7.0

    def forward(self, gate: Float[Tensor, "rows d_ff"], up: Float[Tensor, "rows d_ff"]) -> Float[Tensor, "rows d_ff"]:
        gate, up = gate.clamp(max=self.LIMIT), up.clamp(-self.LIMIT, self.LIMIT)
        return gate * torch.sigmoid(self.SLOPE * gate) * (up + 1)


def make_hidden(network: str) -> Elementwise | nn.Module:
    """What is between an expert's first matrices and its last."""
    if network == CLAMPED:
        return ClampedProduct()
    return Product(GATED[network]) if network in GATED else PLAIN[network]()


def drawn(n_experts: int, fan_out: int, fan_in: int) -> nn.Parameter:
    """A matrix of each expert, drawn as torch's own linear maps are."""
    within = fan_in**-0.5
    return nn.Parameter(nn.init.uniform_(torch.empty(n_experts, fan_out, fan_in), -within, within))


def add_its_experts(y: Float[Tensor, "rows width"], bias: Tensor, assigned: Assigned) -> Float[Tensor, "rows width"]:
    """Each row with its expert's bias."""
    return y + bias.type_as(y)[assigned.expert]


def add_nothing(y: Float[Tensor, "rows width"], bias: None, assigned: Assigned) -> Float[Tensor, "rows width"]:
    """Each row as it is."""
    return y


def leave(norm: nn.Module, hidden: Float[Tensor, "rows d_ff"], order: Tensor, batch: int) -> Float[Tensor, "rows d_ff"]:
    """Hidden features as they are."""
    return hidden


def norm_by_sequence(
    norm: nn.Module, hidden: Float[Tensor, "rows d_ff"], order: Int[Tensor, " rows"], batch: int
) -> Float[Tensor, "rows d_ff"]:
    """Hidden features normed as (batch, assignments of the sequence, d_ff), and back in the order of the experts."""
    return norm(hidden[order.argsort()].unflatten(0, (batch, -1))).flatten(0, 1)[order]


def make_shared(network: str, d_model: int, d_ff: int, bias: bool, inner_norm: MakeWidthNorm) -> nn.Module:
    """One network as wide as all shared experts together."""
    form, activation = (Gated, GATED[network]) if network in GATED else (Plain, PLAIN[network])
    return form(d_model, d_ff, activation, bias, inner_norm=inner_norm)


class OneNumberGate(nn.Linear):
    """sigmoid(w x), (batch, seq, 1). Source: Qwen2-MoE's published code."""

    def __init__(self, d_model: int):
        super().__init__(d_model, 1, bias=False)

    def forward(self, x: Stream) -> Float[Tensor, "batch seq 1"]:
        return torch.sigmoid(super().forward(x))


def add_no_shared(ffn: RoutedExperts, x: Stream, y: Stream) -> Stream:
    """What the chosen experts make of x."""
    return y


def add_shared(ffn: RoutedExperts, x: Stream, y: Stream) -> Stream:
    """That, and what the shared ones make of x."""
    return y + ffn.shared(x)


def add_gated_shared(ffn: RoutedExperts, x: Stream, y: Stream) -> Stream:
    """That, and what the shared ones make of x, by a number for each token."""
    return y + ffn.shared_gate(x) * ffn.shared(x)


# ---------------------------------------------------------------- what there is no such thing as


def check_choice(n_experts: int, top_k: int, normalise: bool, balance_rate: float | None) -> None:
    """Raises UserError where there is nothing to choose, or nothing to learn about the choice."""
    if n_experts < 2:
        raise UserError(f"ffn.n_experts={n_experts}: leaves a router nothing to choose; use 2 or more, or ffn=swiglu")
    if top_k > n_experts:
        raise UserError(
            f"ffn.top_k={top_k}: is more than the experts that there are, ffn.n_experts={n_experts}; use at most {n_experts}"
        )
    if top_k == 1 and normalise:
        raise UserError(
            "ffn.top_k=1: the one weight, divided by itself, is always 1, so the loss would teach the router nothing; use"
            " ffn.normalise=false, or a larger top_k"
        )
    if top_k == n_experts and balance_rate is not None:
        raise UserError(
            f"ffn.balance_rate={balance_rate}: changes nothing at ffn.top_k={top_k}, where every token gets every expert; leave"
            " it out, or use a smaller top_k"
        )


def check_groups(n_experts: int, top_k: int, groups: int, top_groups: int) -> None:
    """Raises UserError where the experts cannot be in such groups, or the groups change nothing."""
    if groups == 1 == top_groups:
        return
    if n_experts % groups or n_experts // groups < 2:
        raise UserError(
            f"ffn.groups={groups}: {n_experts} experts are not so many equal groups of two or more; use a divisor of"
            " ffn.n_experts up to half of it"
        )
    if groups == 1:
        raise UserError(
            f"ffn.top_groups={top_groups}: changes nothing at ffn.groups=1; leave it out, or use ffn.groups={2 * top_groups}"
        )
    if top_groups >= groups:
        raise UserError(
            f"ffn.top_groups={top_groups}: of ffn.groups={groups} groups leaves none out, so groups would change nothing;"
            f" use fewer than {groups}, or leave both out"
        )
    if top_k > (there := top_groups * n_experts // groups):
        raise UserError(
            f"ffn.top_k={top_k}: is more than the {there} experts in ffn.top_groups={top_groups} groups; use at most {there},"
            " or more groups"
        )


def check_shared(network: str, shared: int, shared_gate: bool) -> None:
    """Raises UserError where shared experts cannot be, or there are none whose output could be gated."""
    if shared_gate and not shared:
        raise UserError(
            "ffn.shared_gate=true: changes nothing at ffn.shared=0, since it gates the shared experts; leave it out, or use"
            " ffn.shared=1"
        )
    if shared and network == CLAMPED:
        raise UserError(
            f"ffn.shared={shared}: gpt-oss's clamped_swiglu has no shared experts; use ffn.shared=0, or ffn.network=swiglu"
        )
