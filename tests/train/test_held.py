"""Weights held at length 1: at the start, after each step of every optimizer, in packs, in averages; and what is refused."""

from copy import deepcopy

import pytest
import torch
from oracles import built, composed
from training import CPU, SMALL, Counting, settings

import archlab
from archlab.base.errors import UserError
from archlab.initial.measure import update_size
from archlab.train import optimizer as rules
from archlab.train.average import Exponential
from archlab.train.pack import Member, train_together
from archlab.train.schedules import Constant
from archlab.train.state import TrainState
from archlab.train.step import backward, make_step

NGPT = (*SMALL, "preset=ngpt_0_5b")
OF_ROUNDING = dict(rtol=0, atol=3e-7)  # float32: the length of a vector of some dozen numbers
COLUMNS = ("out_proj.weight", "down_proj.weight")
"""Of the matrices that write to the stream these run along the stream's axis; of all others the rows do."""


def lengths(decoder):
    for name, weight in decoder.named_parameters():
        if weight.ndim > 1:
            yield name, weight.norm(dim=-2 if name.endswith(COLUMNS) else -1)


def assert_of_length_one(decoder):
    seen = dict(lengths(decoder))
    assert len(seen) == 2 * 7 + 2  # two layers of seven matrices, embedding and head
    for name, length in seen.items():
        torch.testing.assert_close(length, torch.ones_like(length), **OF_ROUNDING, msg=name)


def trained(decoder, chosen, n):
    state = TrainState.begin(decoder, chosen, CPU, 0)
    step = make_step(decoder, chosen, CPU)
    for number in range(1, n + 1):
        step(state, Counting().train(0, number, chosen.batch_size, chosen.train_len))
    return state


def held(**changed):
    return settings(**({"weight_decay": 0.0} | changed))


def test_they_start_in_random_directions():
    decoder = built(*NGPT)
    assert_of_length_one(decoder)
    directions = decoder.embedding.weight.detach()
    assert directions.mean().abs() < 0.05 and (directions @ directions.T).fill_diagonal_(0).abs().max() < 0.9
    assert not torch.equal(directions, built(*NGPT, "seed=1").embedding.weight)


RULES = {"adamw": rules.AdamW, "muon": rules.Muon, "lion": rules.Lion, "sgd": rules.SGD}


@pytest.mark.parametrize("name", RULES)
def test_after_each_step_they_are_of_length_one(name):
    if name == "lion":
        pytest.importorskip("lion_pytorch")
    decoder = built(*NGPT)
    before = deepcopy(decoder)
    state = trained(decoder, held(optimizer=RULES[name](), accumulate=2), n=3)
    assert_of_length_one(decoder)
    moved = [(a - b).norm() for a, b in zip(decoder.parameters(), before.parameters(), strict=True)]
    assert min(moved) > 1e-5 and not bool(state.broken)


def test_a_step_is_the_optimizers_and_then_the_division():
    """By torch's own AdamW, of the same gradients; its fused kernel adds in another order."""
    decoder, chosen = built(*NGPT).double(), held(clip=None, schedule=Constant())
    beside = deepcopy(decoder)
    batch = Counting().train(0, 1, chosen.batch_size, chosen.train_len)
    make_step(decoder, chosen, CPU)(TrainState.begin(decoder, chosen, CPU, 0), batch)
    backward(beside, batch, 1, CPU, CPU.scaler())
    torch.optim.AdamW(beside.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0).step()
    for (name, ours), theirs in zip(decoder.named_parameters(), beside.parameters(), strict=True):
        if theirs.ndim > 1:
            theirs = theirs / theirs.norm(dim=0 if name.endswith(COLUMNS) else 1, keepdim=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11, msg=name)


def test_a_step_that_breaks_changes_no_bit():
    decoder, chosen = built(*NGPT), held(steps=9)
    state, step = trained(decoder, chosen, n=2), make_step(decoder, chosen, CPU)
    before = [p.clone() for p in decoder.parameters()]
    decoder.layers[0].ffn.register_full_backward_pre_hook(lambda module, grad: (grad[0] * float("nan"),))
    step(state, Counting().train(0, 3, chosen.batch_size, chosen.train_len))
    assert bool(state.broken)
    assert all(torch.equal(p, old) for p, old in zip(decoder.parameters(), before, strict=True))


def test_members_of_a_pack_hold_their_own():
    """One that holds beside one that does not, and each is what it is alone."""
    words = [(*NGPT, "seed=1"), (*NGPT, "seed=2", "init.hold=false")]
    packed, alone = ([built(*one) for one in words] for _ in range(2))
    made = held(steps=3)
    members = [Member(one, Counting(), made, 0, lambda: None, lambda record: None) for one in packed]
    train_together(members, CPU, tick=lambda *_: None)
    for decoder in alone:
        trained(decoder, made, n=3)
    assert_of_length_one(packed[0])
    assert max((length - 1).abs().max() for _, length in lengths(packed[1])) > 1e-3
    for ours, own in zip(packed, alone, strict=True):
        for a, b in zip(ours.parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-4)  # AdamW divides by what may be small


def test_an_average_that_is_evaluated_is_of_length_one_and_training_goes_on_with_its_own():
    decoder = built(*NGPT)
    state = trained(decoder, held(lr=0.1, average=Exponential(0.7)), n=4)
    last = [p.clone() for p in decoder.parameters()]
    shortest = min(length.min() for _, length in lengths(state.averaged.module))
    assert shortest < 0.999  # a mean of vectors that point elsewhere
    with state.evaluated():
        assert_of_length_one(decoder)
    assert all(torch.equal(p, old) for p, old in zip(decoder.parameters(), last, strict=True))


def test_tied_tables_are_one_vector_of_length_one_for_each_token():
    decoder = built(*NGPT, "embed.tied=true")
    assert decoder.head.weight is decoder.embedding.weight
    trained(decoder, held(), n=2)
    rows = decoder.embedding.weight.norm(dim=-1)
    torch.testing.assert_close(rows, torch.ones_like(rows), **OF_ROUNDING)


@pytest.mark.parametrize("words", [("pos=learned",), ("pos=fire",), ("embed.types=2",)], ids=" ".join)
def test_what_the_paper_does_not_hold_keeps_its_lengths(words):
    """Neither other tables than the tokens', nor a bias's small network, whose matrices neither read the stream nor write to it."""
    decoder = built(*SMALL, "init=unit", "train.weight_decay=0", *words)
    trained(decoder, held(), n=2)
    found = {name: (length - 1).abs().max() for name, length in lengths(decoder)}
    free = {name for name in found if name.startswith(("position.", "embed_types."))}
    assert free and all(found[name] > 0.01 for name in free)
    assert all(found[name] < 1e-5 for name in found.keys() - free)


def test_each_matrix_of_an_expert_is_held():
    decoder = built(*NGPT, "ffn=experts")
    trained(decoder, held(), n=2)
    experts = decoder.layers[0].ffn
    assert {w.ndim for w in experts.parameters()} == {2, 3}
    for weight in experts.weights():
        if weight.tensor.ndim > 1:
            length = weight.tensor.norm(dim=-2 if weight.writes_to_stream else -1)
            torch.testing.assert_close(length, torch.ones_like(length), **OF_ROUNDING, msg=weight.name)


def test_the_parts_go_with_others():
    """Each part without the rest, and the matrices held under a pre-norm model."""
    for words in (
        ("residual=ngpt",),
        ("ffn=ngpt",),
        ("head=ngpt",),
        ("mixer.qk_factors=true",),
        ("init=unit", "init.hold=false"),
        ("init=unit", "train.weight_decay=0", "pos=fire", "mixer=mla"),
    ):
        chosen = composed(*SMALL, *words)
        decoder = archlab.build(chosen)
        state = trained(decoder, settings(weight_decay=chosen.train.weight_decay), n=1)
        assert not bool(state.broken)


REFUSED = [
    (["init=unit"], "train.weight_decay=0.1: shortens weights that init=unit", ["init=unit", "init.hold=false"]),
    (["preset=ngpt_0_5b", "train.weight_decay=0.1"], "train.weight_decay=0.1: shortens", ["preset=ngpt_0_5b"]),
    (
        ["preset=ngpt_0_5b", "optimizer=schedule_free", "schedule=constant"],
        "optimizer=schedule_free: trains and evaluates means",
        ["preset=ngpt_0_5b", "average=ema"],
    ),
    (
        ["preset=ngpt_0_5b", "embed.width=20"],
        "init=unit: an embedding of embed.width=20",
        ["preset=ngpt_0_5b", "init=normal", "embed.width=20"],
    ),
    (["preset=ngpt_0_5b", "residual=deep"], "init=unit: under a residual scheme with a gain", ["preset=ngpt_0_5b"]),
    (["init=unit", "init.zero=head"], "init.zero=head: init=unit has no field zero", ["init=normal", "init.zero=head"]),
]


@pytest.mark.parametrize(("asked", "told", "proposed"), REFUSED, ids=[row[1] for row in REFUSED])
def test_is_refused_in_one_line(asked, told, proposed):
    pytest.importorskip("schedulefree")
    with pytest.raises(UserError) as refused:
        archlab.compose(*asked)
    assert str(refused.value).startswith(told) and "\n" not in str(refused.value)
    archlab.compose(*proposed)


def test_the_first_steps_of_a_preflight_hold_too():
    moves = [
        update_size(built(*NGPT, *words), Counting(), steps=2, lr=1e-2, batch_size=3, seq_len=11)
        for words in ((), ("init.hold=false",))
    ]
    assert all(0 < one < 1 for one in moves) and moves[0] != moves[1]
