"""Optimizers beside formulas by hand and torch's own classes; what is skipped, saved, averaged; schedules; terms of the loss."""

import json
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import chain

import pytest
import torch
from oracles import built, options
from program import OWN
from torch import Tensor, nn
from training import CPU, SMALL, Counting, settings
from transformers import get_inverse_sqrt_schedule, get_linear_schedule_with_warmup, get_wsd_schedule

import archlab
from archlab.base.errors import UserError
from archlab.config.assemble import assemble
from archlab.config.compose import plans
from archlab.model.decoder import Decoder
from archlab.runs.assembled import settings_of
from archlab.runs.packs import refusal
from archlab.train import optimizer as rules
from archlab.train.average import Exponential, NoAverage, Tail
from archlab.train.objective import terms_of
from archlab.train.options import LossOptions
from archlab.train.schedule import learning_rate
from archlab.train.schedules import Constant, InverseSqrt, Linear, WarmupStableDecay
from archlab.train.settings import TrainSettings
from archlab.train.state import TrainState
from archlab.train.step import backward, make_step

LR, DECAY, STEPS = 1e-2, 0.3, 3
EXACT = dict(rtol=1e-10, atol=1e-12)  # float64, and sums in another order

LIBRARIES = {rules.Lion: "lion_pytorch", rules.ScheduleFree: "schedulefree"}
RULES = {
    "adamw": rules.AdamW,
    "muon": rules.Muon,
    "lion": rules.Lion,
    "schedule_free": rules.ScheduleFree,
    "sgd": rules.SGD,
}
each_rule = pytest.mark.parametrize("name", RULES)


def rule_of(name: str, **changes) -> rules.UpdateRule:
    if RULES[name] in LIBRARIES:
        pytest.importorskip(LIBRARIES[RULES[name]])
    return RULES[name](**changes)


def told(rule: rules.UpdateRule, **changes) -> TrainSettings:
    plain = dict(steps=9, weight_decay=DECAY, clip=None, optimizer=rule, schedule=Constant())
    return settings(**(plain | changes))


def model(*words: str) -> Decoder:
    return built(*SMALL, "norm=layer", "ffn.bias=true", *words).double()


def steps(decoder: Decoder, state: TrainState, chosen: TrainSettings, n: int = STEPS) -> None:
    step = make_step(decoder, chosen, CPU)
    for _ in range(n):
        step(state, Counting().train(3, state.step + 1, 6, 11))


def trained(rule: rules.UpdateRule, decoder: Decoder, n: int = STEPS, **changes) -> TrainState:
    state = TrainState.begin(decoder, told(rule, **changes), CPU, 0)
    steps(decoder, state, told(rule, **changes), n)
    return state


def gradients_of(decoder: Decoder) -> Iterator[None]:
    """At each step, with the decoder's gradients in place."""
    for number in range(1, STEPS + 1):
        decoder.zero_grad()
        with torch.enable_grad():
            backward(decoder, Counting().train(3, number, 6, 11), 1, CPU, CPU.scaler())
        yield


def decays(weight: Tensor) -> float:
    return DECAY if weight.ndim > 1 else 0.0


@torch.no_grad()
def lion(decoder: Decoder) -> None:
    momenta = {p: torch.zeros_like(p) for p in decoder.parameters()}
    for _ in gradients_of(decoder):
        for p, m in momenta.items():
            p *= 1 - LR * decays(p)
            p -= LR * (0.9 * m + 0.1 * p.grad).sign()
            m.copy_(0.99 * m + 0.01 * p.grad)


@torch.no_grad()
def sgd(decoder: Decoder) -> None:
    momenta = {p: torch.zeros_like(p) for p in decoder.parameters()}
    for _ in gradients_of(decoder):
        for p, v in momenta.items():
            v.copy_(0.9 * v + p.grad + decays(p) * p)
            p -= LR * v


def by_adamw(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": [w], "weight_decay": decays(w)} for w in weights], lr=LR, betas=(0.9, 0.95))


def by_muon(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Muon(weights, lr=LR, weight_decay=DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw")


def adamw(decoder: Decoder) -> None:
    optimizer = by_adamw(list(decoder.parameters()))
    for _ in gradients_of(decoder):
        optimizer.step()


def muon(decoder: Decoder) -> None:
    named = dict(decoder.named_parameters())
    matrices = [w for name, w in named.items() if name.startswith("layers") and w.ndim == 2]
    others = [w for name, w in named.items() if not (name.startswith("layers") and w.ndim == 2)]
    assert {name for name, w in named.items() if any(w is o for o in others) and w.ndim == 2} == {
        "embedding.weight",
        "head.weight",
    }
    pair = by_muon(matrices), by_adamw(others)
    for _ in gradients_of(decoder):
        for optimizer in pair:
            optimizer.step()


@torch.no_grad()
def schedule_free(decoder: Decoder) -> None:
    """arXiv:2405.15682, alg. 1: z moves by Adam's step, x is the mean of all z, gradients are taken at y between them."""
    kept = {p: (p.clone(), p.clone(), torch.zeros_like(p)) for p in decoder.parameters()}
    for number, _ in enumerate(gradients_of(decoder), start=1):
        for p, (z, x, square) in kept.items():
            square.copy_(0.999 * square + 0.001 * p.grad**2)
            z -= LR * (p.grad / ((square / (1 - 0.999**number)).sqrt() + 1e-8) + decays(p) * p)
            x += (z - x) / number
            p.copy_(0.1 * z + 0.9 * x)
    for p, (_, x, _) in kept.items():
        p.copy_(x)


BY_HAND: dict[str, Callable[[Decoder], None]] = {
    "adamw": adamw, "muon": muon, "lion": lion, "schedule_free": schedule_free, "sgd": sgd,
}  # fmt: skip


def test_every_optimizer_has_a_row():
    assert set(BY_HAND) == set(RULES) == set(options("optimizer"))


@each_rule
def test_steps_are_those_by_hand(name):
    ours, theirs = model(), model()
    trained(rule_of(name), ours).settle()
    BY_HAND[name](theirs)
    for (weight, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, **EXACT, msg=weight)


def test_muon_moves_each_expert_as_a_matrix_of_its_own():
    ours, theirs = (archlab.build(*SMALL, "ffn=two_experts", config_dir=OWN).double() for _ in range(2))
    trained(rules.Muon(), ours)
    experts = {name: w for name, w in theirs.named_parameters() if w.ndim == 3}
    apart = {name: [nn.Parameter(w.detach()[i].clone()) for i in range(2)] for name, w in experts.items()}
    routers = [w for name, w in theirs.named_parameters() if name.endswith("router.weight")]
    matrices = [
        w
        for name, w in theirs.named_parameters()
        if name.startswith("layers") and w.ndim == 2 and not name.endswith("router.weight")
    ]
    others = [w for w in theirs.parameters() if w.ndim == 1]
    tables = [theirs.embedding.weight, theirs.head.weight]
    assert experts and routers and matrices
    parts = by_muon([*matrices, *chain(*apart.values())]), by_adamw([*routers, *others, *tables])
    for _ in gradients_of(theirs):
        for name, ones in apart.items():
            for i, one in enumerate(ones):
                one.grad = experts[name].grad[i]
        for part in parts:
            part.step()
        for name, ones in apart.items():
            experts[name].data.copy_(torch.stack([one.detach() for one in ones]))
    for (weight, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, **EXACT, msg=weight)


def test_muon_leaves_the_weights_of_convolutions_to_adamw():
    ours, theirs = (archlab.build(*SMALL, "canon=A", "mixer.conv=3").double() for _ in range(2))
    assert any(w.ndim == 3 for w in theirs.parameters())
    trained(rules.Muon(), ours)
    named = dict(theirs.named_parameters())
    inside = {name: w for name, w in named.items() if name.startswith("layers") and w.ndim == 2}
    others = [
        {"params": [w], "weight_decay": decays(w) if w.ndim == 2 else 0.0}
        for name, w in named.items()
        if name not in inside
    ]
    pair = by_muon(list(inside.values())), torch.optim.AdamW(others, lr=LR, betas=(0.9, 0.95))
    for _ in gradients_of(theirs):
        for optimizer in pair:
            optimizer.step()
    for (weight, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, **EXACT, msg=weight)


# ---------------------------------------------------------------- what is skipped, saved and averaged


@each_rule
def test_a_step_that_breaks_reaches_no_weight(name):
    decoder = model()
    state = trained(rule_of(name), decoder, n=2)
    with state.evaluated():
        evaluated = [p.clone() for p in decoder.parameters()]
    before = [p.clone() for p in decoder.parameters()]
    decoder.layers[0].ffn.register_full_backward_pre_hook(lambda module, grad: (grad[0] * float("nan"),))
    steps(decoder, state, told(rule_of(name)), n=2)
    assert bool(state.broken)
    for weight, old in zip(decoder.parameters(), before, strict=True):
        torch.testing.assert_close(weight, old, rtol=0, atol=0)
    if name != "adamw":  # whose kernel leaves what it keeps alone too
        state.settle()
        for weight, old in zip(decoder.parameters(), evaluated, strict=True):
            torch.testing.assert_close(weight, old, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("muon", {"average": Exponential(0.7)}),
        ("lion", {"average": Tail(0.5)}),
        ("schedule_free", {}),
        ("sgd", {"average": NoAverage()}),
    ],
)
def test_what_is_saved_goes_on_as_if_nothing_had_happened(name, changes):
    """A validation half-way changes nothing either."""
    first = archlab.build(*SMALL, "ffn=two_experts", config_dir=OWN) if name == "muon" else built(*SMALL)
    chosen, decoders = told(rule_of(name), **changes), []
    for broken_off in (False, True):
        decoder = deepcopy(first)
        state = TrainState.begin(decoder, chosen, CPU, 0)
        steps(decoder, state, chosen, n=6)
        if broken_off:
            tensors, rest = state.state_dict()
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}
            decoder = deepcopy(first)
            state = TrainState.begin(decoder, chosen, CPU, 1)
            state.load_state_dict(tensors, json.loads(json.dumps(rest)))
        else:
            with state.evaluated():
                pass
        steps(decoder, state, chosen, n=3)
        last = [p.clone() for p in decoder.parameters()]
        state.settle()
        decoders.append((last, list(decoder.parameters())))
    for one, other in zip(*decoders, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("average", "mean"),
    [
        (Exponential(0.6), lambda seen: 0.6 * (0.6 * seen[0] + 0.4 * seen[1]) + 0.4 * seen[2]),
        (Tail(0.6), lambda seen: (seen[1] + seen[2]) / 2),  # the last two of three steps
        (NoAverage(), lambda seen: seen[2]),
    ],
)
def test_evaluated_is_the_average_of_the_weights(average, mean):
    decoder, chosen = model(), told(rules.AdamW(), steps=3, average=average)
    state, seen = TrainState.begin(decoder, chosen, CPU, 0), []
    for _ in range(3):
        steps(decoder, state, chosen, n=1)
        seen.append([p.detach().clone() for p in decoder.parameters()])
    with state.evaluated():
        for weight, *its in zip(decoder.parameters(), *seen, strict=True):
            torch.testing.assert_close(weight, mean(its), **EXACT)
    assert all(torch.equal(p, last) for p, last in zip(decoder.parameters(), seen[2], strict=True))


# ---------------------------------------------------------------- schedules


def of_library(maker: Callable, *numbers: float, **options) -> Callable[[int], float]:
    return maker(torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0), *numbers, **options).lr_lambdas[0]


def warmed_up(theirs: Callable[[int], float]) -> Callable[[int], float]:
    """From zero, whatever the library's own warm-up begins at."""
    return lambda step: step / 7 if step < 7 else theirs(step)


WSD = dict(num_warmup_steps=7, num_decay_steps=12, num_training_steps=60, min_lr_ratio=0.1)
SCHEDULES = {
    "linear": (Linear(), of_library(get_linear_schedule_with_warmup, 7, 60)),
    "inverse_sqrt": (InverseSqrt(), of_library(get_inverse_sqrt_schedule, 7, timescale=7)),
    "constant": (Constant(), lambda step: min(1.0, step / 7)),
    "wsd linear": (
        WarmupStableDecay(0.2, "linear"),
        warmed_up(of_library(get_wsd_schedule, **WSD, decay_type="linear")),
    ),
    "wsd sqrt": (WarmupStableDecay(0.2, "sqrt"), warmed_up(of_library(get_wsd_schedule, **WSD, decay_type="1-sqrt"))),
    "wsd exponential": (
        WarmupStableDecay(0.2, "exponential"),
        lambda step: min(1.0, step / 7) if step < 48 else 10 ** (-(step - 48) / 12),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_the_librarys(name):
    schedule, theirs = SCHEDULES[name]
    chosen = settings(steps=60, warmup=7, lr=0.02, schedule=schedule)
    rates = [learning_rate(step, chosen) for step in range(1, 61)]
    assert rates == pytest.approx([0.02 * theirs(step) for step in range(1, 61)], rel=1e-12, abs=1e-15)


# ---------------------------------------------------------------- terms of the loss


@pytest.mark.parametrize("pieces", [1, 3])
def test_z_loss_and_smoothing_are_minimised_and_not_reported(pieces):
    ours, theirs, batch = model(), model(), Counting().train(0, 1, 6, 11)
    loss, *_ = backward(ours, batch, pieces, CPU, CPU.scaler(), terms=terms_of(LossOptions(0.02, 0.3)))
    logits, targets = theirs(batch.tokens[:, :-1])[batch.scored].float(), batch.tokens[:, 1:][batch.scored]
    p = logits.log_softmax(dim=-1)
    nats = -p.gather(1, targets[:, None])[:, 0]
    (0.7 * nats - 0.3 * p.mean(dim=-1) + 0.02 * logits.exp().sum(dim=-1).log() ** 2).mean().backward()
    assert float(loss) == pytest.approx(nats.mean().item(), rel=1e-6)  # the total is kept in float32
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7, msg=name)  # float32 logits


# ---------------------------------------------------------------- learning rates of their own


def test_a_weight_moves_by_the_rate_its_init_gives_it():
    """muP at four times its base's width: matrices at a quarter of the rate, an embedding whose scale has doubled at half."""
    ours, theirs = (built(*SMALL, "init=mup", "init.base_width=6").double() for _ in range(2))
    trained(rules.AdamW(), ours)
    by_rate = {name: 0.25 for name, w in theirs.named_parameters() if w.ndim == 2} | {"embedding.weight": 0.5}
    optimizer = torch.optim.AdamW(
        [
            {"params": [w], "weight_decay": decays(w), "lr": LR * by_rate.get(name, 1.0)}
            for name, w in theirs.named_parameters()
        ],
        betas=(0.9, 0.95),
    )
    for _ in gradients_of(theirs):
        optimizer.step()
    for (weight, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, **EXACT, msg=weight)


# ---------------------------------------------------------------- decay that is no multiple of the learning rate


INDEPENDENT = 0.04


def test_independent_decay_takes_the_schedules_share_alone():
    """w <- w - s_t (lr m / (sqrt(v) + eps) + decay w), written out: arXiv:1711.05101, alg. 2, with its eta_t as s_t."""
    ours, theirs = model(), model()
    changes = dict(steps=9, warmup=2, schedule=Linear(), lr=LR)
    trained(rules.AdamW(INDEPENDENT), ours, **changes)
    shares = [1 / 2, 1.0, 1 - 1 / 7]
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in theirs.parameters()}
    with torch.no_grad():
        for number, _ in enumerate(gradients_of(theirs), start=1):
            for p, (m, v) in moments.items():
                m.copy_(0.9 * m + 0.1 * p.grad)
                v.copy_(0.95 * v + 0.05 * p.grad**2)
                adam = m / (1 - 0.9**number) / ((v / (1 - 0.95**number)).sqrt() + 1e-8)
                p -= shares[number - 1] * (LR * adam + (INDEPENDENT * p if p.ndim > 1 else 0))
    for (weight, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, **EXACT, msg=weight)


def test_at_the_schedules_top_independent_decay_is_torchs_over_the_learning_rate():
    ours, theirs = model(), model()
    trained(rules.AdamW(INDEPENDENT), ours)
    weights = [{"params": [w], "weight_decay": INDEPENDENT / LR * (w.ndim > 1)} for w in theirs.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LR, betas=(0.9, 0.95))
    for _ in gradients_of(theirs):
        optimizer.step()
    for (weight, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, **EXACT, msg=weight)


def test_independent_decay_is_that_of_all_weights_whatever_rates_their_init_gives_them():
    """Without a gradient one step takes the share of each, where coupled decay takes it by the weight's own rate."""
    decoder = built(*SMALL, "init=mup", "init.base_width=6").double()
    assert len(set(decoder.rates.values())) > 1
    before = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    optimizer = rules.AdamW(INDEPENDENT)(decoder, told(rules.AdamW()))
    for group in optimizer.param_groups:
        group["lr"] = LR * group.get("rate", 1.0)
    for p in decoder.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in decoder.named_parameters():
        torch.testing.assert_close(p, before[name] * (1 - INDEPENDENT * (p.ndim > 1)), **EXACT, msg=name)


# ---------------------------------------------------------------- packs


@pytest.mark.parametrize("word", ["optimizer=muon", "optimizer=sgd", "average=ema"])
def test_what_moves_one_run_at_a_time_is_not_packed(word):
    why = refusal(plans(*SMALL, word)[0])
    assert why is not None and why.startswith(word)


# ---------------------------------------------------------------- a step that is skipped


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("name", [name for name in RULES if name != "schedule_free"])
def test_a_skipped_step_leaves_nothing_behind(name, before):
    """Neither in the weights nor in what the next steps are made of, also where it is the first of all, as in float16."""
    if name == "lion":
        pytest.importorskip("lion_pytorch")

    def taken(skipped: bool) -> list[torch.Tensor]:
        decoder = model()
        optimizer = RULES[name]()(decoder, told(RULES[name]()))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        for step in range(before + 3):
            draws = torch.Generator().manual_seed(step)
            if skipped and step == before:
                for p in decoder.parameters():
                    p.grad = torch.full_like(p, math.inf)
                rules.step_unless(optimizer, torch.tensor(True))
            for p in decoder.parameters():
                p.grad = torch.randn(p.shape, generator=draws, dtype=p.dtype)
            rules.step_unless(optimizer, torch.tensor(False))
        return [p.detach().clone() for p in decoder.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(taken(False), taken(True), strict=True))


# ---------------------------------------------------------------- what is refused

REFUSED = [
    (["optimizer=schedule_free", "schedule=constant", "precision=fp16"], "precision=fp16: skips a step whose gradient overflows", ["optimizer=schedule_free", "schedule=constant", "precision=fp32"]),
    (["train.min_lr=0.2", "schedule=constant"], "train.min_lr=0.2: schedule=constant does not use it", ["schedule=constant"]),
    (["optimizer=sgd", "train.beta2=0.9"], "train.beta2=0.9: optimizer=sgd does not use it", ["optimizer=sgd"]),
    (["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=true"], "optimizer.nesterov=true", ["optimizer=sgd", "optimizer.nesterov=true"]),
    (["optimizer=muon", "optimizer.momentum=0"], "optimizer.nesterov=true", ["optimizer=muon", "optimizer.momentum=0", "optimizer.nesterov=false"]),
    (["optimizer.momentum=0.8"], "optimizer.momentum=0.8: optimizer=adamw has no field momentum", ["optimizer=sgd", "optimizer.momentum=0.8"]),
    (["optimizer=adam"], "optimizer=adam: no such option", ["optimizer=adamw"]),
    (["schedule=wsd", "train.warmup=350"], "schedule.decay=0.2: of 400 steps the decay takes 80", ["schedule=wsd", "train.warmup=320"]),
    (["schedule=wsd", "schedule.shape=exponential", "train.min_lr=0"], "train.min_lr=0: schedule.shape=exponential", ["schedule=wsd", "train.min_lr=0"]),
    (["average=ema", "norm=batch", "mask=full"], "average=ema: norm=batch keeps running statistics", ["average=ema"]),
    (["average.decay=0.5"], "average.decay=0.5: average=none has no field decay", ["average=ema", "average.decay=0.5"]),
    (["init=mup", "embed.tied=true"], "init=mup: a head and an embedding of one table", ["init=mup"]),
    (["init=mup", "optimizer=sgd"], "init=mup: its learning rates", ["init=mup"]),
    (["init=mup", "optimizer=muon"], "init=mup: its learning rates", ["init=small", "optimizer=muon"]),
    (["init.zero=head", "embed.tied=true"], "init.zero=head: the head of embed.tied=true", ["init.zero=branches", "embed.tied=true"]),
    (["init=small", "init.wang=true", "init.zero=all"], "init.wang=true: is about projections", ["init=small", "init.wang=true"]),
    (["ffn=experts", "ffn.balance_rate=0.1", "average=ema"], "average=ema: ffn=experts keeps running statistics", ["ffn=experts", "average=ema"]),
    (["average=ema", "average.decay=0"], "average.decay=0: keeps nothing of earlier weights", ["average=ema", "average.decay=0.1"]),
    (["average=tail", "train.steps=3"], "average.share=0.2: of 3 steps is the last one", ["average=tail", "train.steps=3", "average.share=1"]),
    (["average=ema", "train.steps=1"], "average=ema: of train.steps=1 step", ["average=ema", "train.steps=2"]),
    (["train.min_lr=1"], "train.min_lr=1: the rate would never come down", ["schedule=constant"]),
    (["schedule=wsd", "schedule.shape=linear", "train.steps=5"], "schedule.shape=linear: schedule.decay=0.2 of 5 steps is one step", ["schedule=wsd", "schedule.shape=linear", "train.steps=10"]),
    (["schedule=wsd", "train.min_lr=1"], "train.min_lr=1: the rate would never come down", ["schedule=wsd", "train.min_lr=0.9"]),
    (["residual=hyper", "residual.scaled_outputs=false", "init.zero=branches"], "residual.scaled_outputs=false: is about projections", ["residual=hyper", "init.zero=branches"]),
    (["residual=rezero", "init.zero=branches"], "init.zero=branches: under residual=rezero no gradient", ["residual=rezero", "init.zero=head"]),
    (["residual=none", "init.zero=all"], "init.zero=all: under residual=none no gradient", ["residual=layer_scale", "init.zero=all"]),
    (["loss.z=-1"], "loss.z=-1: ", ["loss.z=1e-4"]),
    (["optimizer.independent_decay=1e-4", "train.weight_decay=0.2"], "train.weight_decay=0.2: changes nothing under optimizer.independent_decay=0.0001", ["optimizer.independent_decay=1e-4"]),
    (["optimizer.independent_decay=0"], "optimizer.independent_decay=0: ", ["optimizer.independent_decay=1e-4"]),
    (["optimizer.independent_decay=1.0"], "optimizer.independent_decay=1.0: ", ["optimizer.independent_decay=0.9"]),
    (["optimizer=muon", "optimizer.independent_decay=1e-4"], "optimizer.independent_decay=1e-4: optimizer=muon has no field", ["optimizer.independent_decay=1e-4"]),
    (["residual=ngpt", "init=unit", "optimizer.independent_decay=1e-4"], "optimizer.independent_decay=1e-4: shortens weights", ["residual=ngpt", "init=unit", "train.weight_decay=0"]),
    (["loss.label_smoothing=1"], "loss.label_smoothing=1: ", ["loss.label_smoothing=0.1"]),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "told", "proposed"), REFUSED, ids=[row[1] for row in REFUSED])
def test_is_refused_in_one_line(asked, told, proposed):
    with pytest.raises(UserError) as refused:
        archlab.compose(*asked)
    assert str(refused.value).startswith(told) and "\n" not in str(refused.value)
    archlab.compose(*proposed)


def test_what_is_free_of_a_schedule_has_none_and_no_other_average():
    pytest.importorskip("schedulefree")
    free = ("optimizer=schedule_free", "schedule=constant")
    assert settings_of(archlab.compose(*free)).optimizer.averages
    for words, told in (
        (free[:1], "optimizer=schedule_free: is for a learning rate that stays"),
        ((*free, "train.beta1=0.8"), "train.beta1=0.8: optimizer=schedule_free does not use it.*set optimizer.beta1"),
        ((*free, "average=tail"), "average=tail: optimizer=schedule_free evaluates an average"),
    ):
        with pytest.raises(UserError, match=told):
            archlab.compose(*words)


def test_a_library_that_is_not_there_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(rules, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"optimizer=lion: lion_pytorch is not installed; pip install 'archlab\[optimizers\]'"
    ):
        archlab.compose("optimizer=lion")


def test_muon_without_matrices_is_one_line(monkeypatch):
    decoder = assemble(archlab.compose(*SMALL))
    vectors = [weight for weight in decoder.weights() if weight.tensor.ndim == 1]
    monkeypatch.setattr(decoder, "weights", lambda: iter(vectors))
    with pytest.raises(
        UserError, match="optimizer=muon: this model has no matrices inside blocks.*use optimizer=adamw"
    ):
        rules.Muon()(decoder, told(rules.Muon()))
