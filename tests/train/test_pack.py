"""A pack beside its members alone: the same losses, gradients, records, ends; and what goes wrong with one is that one's."""

from copy import deepcopy
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from omegaconf import DictConfig
from program import OWN

from archlab.config.assemble import build
from archlab.config.compose import in_turn
from archlab.evaluate.validation import held_out
from archlab.runs.assembled import open_source, section
from archlab.train import pack as packs
from archlab.train.loop import Outcome, train
from archlab.train.observers import Observer
from archlab.train.optimizer import AdamW
from archlab.train.options import LossOptions
from archlab.train.pack import Member, train_together
from archlab.train.runtime import runtime
from archlab.train.schedules import Constant, WarmupStableDecay
from archlab.train.settings import TrainSettings

SMALL = (
    "size=nano", "size.n_layers=1", "size.d_model=24", "size.n_heads=3", "size.d_ff=40", "train.steps=11", "train.batch_size=4",
    "train.train_len=13", "train.log_every=3", "probe.every=4", "eval.tokens=52", "eval.lengths=[1]",
)  # fmt: skip

UNLIKE = (
    {"lr": 1e-3, "warmup": 0},
    {"lr": 2e-2, "weight_decay": 0.7, "beta1": 0.8, "beta2": 0.99},
    {"lr": 5e-3, "clip": 0.05, "steps": 7, "min_lr": 0.5},
    {"lr": 4e-3, "clip": None, "warmup": 5},
)
"""All in which members may differ besides their seed."""

IN_FLOAT32 = 2e-5
"""Of a loss after so few steps: a pack adds in another order, and each step carries that on."""

IN_FLOAT64 = 1e-7
"""Of a loss too, which is kept in float32."""

HERE = runtime("cpu", "fp32")


@cache
def composed(words: tuple[str, ...]) -> DictConfig:
    return in_turn(*SMALL, *words, config_dir=OWN)


class Run:
    """One run's parts, made anew each time, and what it reported."""

    def __init__(self, seed: int, words: tuple[str, ...] = (), wide: bool = False, **changes: object):
        cfg = deepcopy(composed(words))
        cfg.seed = seed
        self.records: list[dict] = []
        self.decoder, self.source, self.seed = build(cfg), open_source(cfg), seed
        if wide:
            self.decoder.double()
        self.settings = replace(section(cfg, "train", TrainSettings), **changes)
        self.observers: list[Observer] = []
        self.validations = cfg.eval.tokens

    def validate(self) -> float | None:
        return held_out(self.decoder, self.source, HERE, self.settings.train_len, self.validations).loss()

    def alone(self) -> Outcome:
        return train(
            self.decoder, self.source, self.settings, HERE, seed=self.seed, probe_every=4, validate=self.validate,
            report=self.records.append, tick=lambda *_: None, observers=self.observers,
        )  # fmt: skip

    def member(self) -> Member:
        return Member(
            self.decoder, self.source, self.settings, self.seed, self.validate, self.records.append, 4, self.observers
        )


def together(runs: list[Run]) -> list[Outcome]:
    return train_together([run.member() for run in runs], HERE, tick=lambda *_: None)


def unlike(words: tuple[str, ...] = (), wide: bool = False, which: slice = slice(None)) -> list[Run]:
    return [Run(seed, words, wide, **changes) for seed, changes in list(enumerate(UNLIKE))[which]]


def assert_same(one: Outcome, other: Outcome, run: Run, beside: Run, tolerance: float = IN_FLOAT32) -> None:
    assert (one.status, one.best_step, one.first_spike) == (other.status, other.best_step, other.first_spike)
    assert one.losses == pytest.approx(other.losses, rel=tolerance)
    assert one.grad_norms == pytest.approx(other.grad_norms, rel=50 * tolerance, abs=1e-6)
    assert [record["step"] for record in run.records] == [record["step"] for record in beside.records]
    for record, twin in zip(run.records, beside.records, strict=True):
        assert record.keys() == twin.keys() and record["lr"] == twin["lr"]
        ahead = [name for name in record if name.startswith("mtp_loss")]
        assert [record[name] for name in ahead] == pytest.approx([twin[name] for name in ahead], rel=tolerance)
        for layer, same in zip(record.get("layers", ()), twin.get("layers", ()), strict=True):
            assert layer == pytest.approx(same, rel=2e-3, abs=1e-5)  # update ratios divide small numbers


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("embed.tied=true", "train.accumulate=2", "mask=prefix", "prefix=[0.2,0.7]", "pos=t5"),
        (
            "ffn=two_experts",
            "mixer=my_linear",
            "pos=none",
            "residual=two_streams",
            "train.accumulate=2",
        ),  # what they add to the loss too
        # Packed as one program in test_program.py; here as runs, beside the rows above.
        pytest.param(("size.n_layers=3", "loop.times=2", "loop.layers=1:", "skips=unet"), marks=pytest.mark.slow),
        pytest.param(("mtp.form=chained", "mtp.tokens=3", "train.accumulate=2"), marks=pytest.mark.slow),
        pytest.param(("mtp.form=independent",), marks=pytest.mark.slow),
        pytest.param(("pos=alibi", "mixer=mqa", "residual=post"), marks=pytest.mark.slow),
        pytest.param(("ffn=gelu", "norm=layer", "pos=learned", "data=blank"), marks=pytest.mark.slow),
        pytest.param(("mixer.softcap=20", "mask=window", "mask.window=5"), marks=pytest.mark.slow),
        pytest.param(("layers[1::2].pos=none", "layers[:1].ffn=relu"), marks=pytest.mark.slow),
    ],
)
def test_members_are_what_they_are_alone(words):
    # In float64: two streams over a linear mixer, at a rate of 2e-2, carry a rounding of float32 to a part in a thousand.
    # What members may differ in is the first row's; the others have two, one of which ends before the other.
    which = slice(1, 3) if words else slice(None)
    words = ("size.n_layers=2", *words)
    assert_alone(unlike(words, True, which), unlike(words, True, which), IN_FLOAT64)


def test_members_are_what_they_are_alone_in_float32():
    assert_alone(unlike(), unlike(), IN_FLOAT32)


def assert_alone(runs: list[Run], beside: list[Run], tolerance: float) -> None:
    for one, other, run, twin in zip(together(runs), [run.alone() for run in beside], runs, beside, strict=True):
        assert one.status == "completed"
        assert_same(one, other, run, twin, tolerance)
        # So its weights stayed as they were at its end.
        assert run.validate() == pytest.approx(twin.validate(), rel=5 * tolerance)


def test_members_of_a_pack_have_schedules_rates_and_terms_of_their_own_or_of_all():
    def runs() -> list[Run]:
        made = [
            Run(0, ("init=mup", "init.base_width=8"), schedule=Constant()),
            Run(1, (), schedule=WarmupStableDecay(0.4, "linear")),
        ]
        for one in made:
            one.settings = replace(one.settings, loss=LossOptions(z=0.01, label_smoothing=0.1))
        return made

    packed, beside = runs(), runs()
    for one, other, run, twin in zip(together(packed), [run.alone() for run in beside], packed, beside, strict=True):
        assert_same(one, other, run, twin)


def test_members_of_a_pack_decay_independently_of_their_learning_rates():
    def runs() -> list[Run]:
        made = [
            Run(0, ("init=mup", "init.base_width=8"), lr=1e-2, schedule=Constant()),
            Run(1, (), lr=3e-3, schedule=WarmupStableDecay(0.4, "linear")),
        ]
        for one, decay in zip(made, (0.05, 0.3), strict=True):
            one.settings = replace(one.settings, optimizer=AdamW(decay))
        return made

    packed, beside = runs(), runs()
    for one, other, run, twin in zip(together(packed), [run.alone() for run in beside], packed, beside, strict=True):
        assert_same(one, other, run, twin)
        for name, weight in twin.decoder.named_parameters():
            torch.testing.assert_close(run.decoder.get_parameter(name), weight, rtol=1e-3, atol=1e-5, msg=name)


def test_what_is_recorded_of_a_member_is_its_own_whatever_its_neighbours_record():
    """Every 4th step all quantities of the first, every 3rd of the second, nothing of the third: as by themselves."""

    def recorded(train_all: bool) -> list[dict[int, set[str]]]:
        runs, seen = [Run(seed) for seed in range(3)], [{} for _ in range(3)]
        members = [run.member() for run in runs]
        for member, every, kept in zip(members, (4, 3, None), seen, strict=True):
            member.probe_every, member.observers = every, [Layers(kept)]
        if train_all:
            train_together(members, HERE, tick=lambda *_: None)
            return seen
        for one in members:
            train(
                one.decoder, one.source, one.settings, HERE, seed=one.seed, probe_every=one.probe_every,
                validate=one.validate, report=one.report, tick=lambda *_: None, observers=one.observers,
            )  # fmt: skip
        return seen

    alone = recorded(train_all=False)
    assert recorded(train_all=True) == alone
    assert len({frozenset(names) for names in alone[0].values()}) == 2 and set().union(*alone[2].values()) == set()


class Layers(Observer):
    """Keeps which quantities of the layers were recorded, by step."""

    def __init__(self, kept: dict[int, set[str]]):
        self.kept = kept

    def see(self, state, seen):
        self.kept.update({step.number: set(step.layers) for step in seen})


def test_a_member_that_diverges_changes_nothing_in_its_neighbours():
    calm, beside_a_break = [Run(0), Run(1), Run(2)], [Run(0), Run(1, lr=1e3, warmup=0, clip=None), Run(2)]
    for run in beside_a_break:
        run.decoder.final_norm.gain.data.mul_(1e3 if run.seed == 1 else 1.0)
    beside_a_break[1].decoder.head.weight.data.fill_(torch.finfo(torch.float32).max)
    quiet, loud = together(calm), together(beside_a_break)
    assert [outcome.status for outcome in loud] == ["completed", "diverged", "completed"]
    assert loud[1].first_nonfinite is not None and len(loud[1].losses) == 1
    for i in (0, 2):
        assert loud[i].losses == quiet[i].losses and loud[i].grad_norms == quiet[i].grad_norms
        for one, other in zip(calm[i].decoder.parameters(), beside_a_break[i].decoder.parameters(), strict=True):
            assert torch.equal(one, other)


def test_a_member_that_diverges_keeps_the_weights_it_had_before():
    run, twin = Run(1), Run(1)
    for one in (run, twin):
        one.decoder.head.weight.data.fill_(torch.finfo(torch.float32).max)
    one, other = together([run, Run(2)])[0], twin.alone()
    assert (
        (one.status, one.first_nonfinite) == (other.status, other.first_nonfinite) == ("diverged", one.first_nonfinite)
    )
    for weight, same in zip(run.decoder.parameters(), Run(1).decoder.parameters(), strict=True):
        if weight.abs().max() < 1e30:
            assert torch.equal(weight, same)


def test_members_stop_early_each_by_its_own_validation():
    """Losses at steps 2, 4 and 6 of the first, which ends at the third; the second is validated and goes on."""
    runs, beside = ([Run(0, eval_every=2, patience=1), Run(1, eval_every=5)] for _ in range(2))
    for pair in (runs, beside):
        pair[0].validate = iter([5.0, 4.0, 4.5]).__next__
    ends, alone = together(runs), [run.alone() for run in beside]
    assert [(end.status, len(end.losses), end.best_step) for end in ends] == [
        ("stopped", 6, 4),
        ("completed", 11, None),
    ]
    for one, other, run, twin in zip(ends, alone, runs, beside, strict=True):
        assert_same(one, other, run, twin)
        for weight, same in zip(run.decoder.parameters(), twin.decoder.parameters(), strict=True):
            assert torch.allclose(weight, same, atol=1e-4)  # a tenth of what one step moves at these rates


@pytest.mark.parametrize("held", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_where_memory_runs_out_the_pack_is_halved_and_no_member_is_lost(monkeypatch, held):
    step, sizes = packs.Pack.step, []

    def with_little_memory(pack):
        if pack.number == 4 and len(pack.following) > held:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        sizes.append(len(pack.following))
        step(pack)

    monkeypatch.setattr(packs.Pack, "step", with_little_memory)
    runs, beside = unlike(), unlike()
    for one, other, run, twin in zip(together(runs), [run.alone() for run in beside], runs, beside, strict=True):
        assert_same(one, other, run, twin)
    assert max(sizes[:4]) == 4 and max(sizes[4:]) <= held


def test_a_pack_of_one_that_memory_does_not_hold_is_an_error(monkeypatch):
    def none_left(pack):
        raise MemoryError

    monkeypatch.setattr(packs.Pack, "step", none_left)
    with pytest.raises(MemoryError):
        together([Run(0), Run(1)])


def test_where_memory_runs_out_when_some_weights_were_moved_no_step_is_taken_twice(monkeypatch):
    update = packs.Pack.update

    def torn(pack, grads, number, clipping, alive):
        if len(pack.following) == 1:  # half as large, there is memory enough
            return update(pack, grads, number, clipping, alive)
        update(pack, {name: grads[name] for name in list(grads)[:3]}, number, clipping, alive)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 MiB")

    monkeypatch.setattr(packs.Pack, "update", torn)
    with pytest.raises(torch.OutOfMemoryError):
        together([Run(0), Run(1)])


def test_what_goes_wrong_with_one_member_ends_that_member_alone():
    class FullDisk(Observer):
        def see(self, state, seen):
            if state.step >= 3:
                raise OSError(28, "No space left on device")

    runs, twin = [Run(0), Run(1)], Run(1)
    runs[0].observers.append(FullDisk())
    members = [run.member() for run in runs]
    ends = train_together(members, HERE, tick=lambda *_: None)
    assert isinstance(members[0].error, OSError) and members[1].error is None
    assert_same(ends[1], twin.alone(), runs[1], twin)


@pytest.mark.slow
def test_a_member_saved_in_a_pack_goes_on_alone():
    kept: dict = {}

    class Keep(Observer):
        def due(self, state):
            return state.step == 5

        def see(self, state, seen):
            if state.step == 5:
                tensors, rest = state.state_dict()
                kept.update(tensors={name: value.clone() for name, value in tensors.items()}, rest=rest)

    run, twin, later = Run(3, lr=5e-3), Run(3, lr=5e-3), Run(3, lr=5e-3)
    run.observers.append(Keep())
    together([Run(0), run])
    end = train(
        later.decoder, later.source, later.settings, HERE, seed=3, probe_every=4, validate=later.validate,
        report=later.records.append, tick=lambda *_: None, saved=(kept["tensors"], kept["rest"]),
    )  # fmt: skip
    assert end.losses == pytest.approx(twin.alone().losses, rel=IN_FLOAT32)


def test_members_have_weights_of_their_own_afterwards():
    runs = [Run(0), Run(1)]
    together(runs)
    for run in runs:
        for weight in run.decoder.parameters():
            assert weight.untyped_storage().nbytes() == weight.nbytes


def test_decay_goes_by_what_a_weight_is_for_whatever_its_axes():
    still = {"lr": 1e-2, "warmup": 0, "min_lr": 1.0, "steps": 1, "clip": 1e-30}
    run, other = Run(0, weight_decay=1.0, **still), Run(0, weight_decay=0.0, **still)
    before = {name: weight.clone() for name, weight in run.decoder.named_parameters()}
    together([run, other])
    undecayed = dict(other.decoder.named_parameters())
    for name, weight in run.decoder.named_parameters():
        expected = undecayed[name] - (1e-2 * before[name] if weight.ndim > 1 else 0)
        assert torch.allclose(weight, expected, atol=1e-7), name


def test_the_fields_of_a_member_are_the_arguments_of_training_alone():
    assert {"settings", "seed", "validate", "report", "probe_every", "observers"} <= asdict(Run(0).member()).keys()
