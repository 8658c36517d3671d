"""Nothing in a training step waits for the device.

The meta device stands for a GPU: it has no numbers, so whatever asks for one raises an error (`item`, `nonzero`, an index of
Bool, an `if`), and what is copied to it is seen. What waits on CUDA and raises nothing there is refused by `Watch`.
"""

from contextlib import nullcontext
from importlib import import_module

import pytest
import torch
from cover import COVER
from program import OWN, SMALL, batch_of
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from training import settings

from archlab.config.assemble import assemble_without_weights
from archlab.config.compose import in_turn
from archlab.data.batch import in_one_copy
from archlab.train.average import Exponential
from archlab.train.optimizer import SGD, Lion, Muon, ScheduleFree
from archlab.train.options import LossOptions
from archlab.train.runtime import Runtime
from archlab.train.state import TrainState
from archlab.train.step import make_step

META = torch.device("meta")


class Waited(Exception):
    """What a step on a GPU would have waited for."""


class WatchCopies(TorchDispatchMode):
    """Counts copies to the device, and refuses those that are waited for."""

    def __init__(self):
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        copied = function is torch.ops.aten._to_copy.default and args[0].device.type == "cpu"
        if copied and torch.device(kwargs.get("device") or "cpu") == META:
            self.copies += 1
            if not kwargs.get("non_blocking"):
                raise Waited("a copy to the device that is waited for")
        if function is torch.ops.aten.copy_.default and args[0].device != args[1].device:
            raise Waited("a copy between devices")
        return function(*args, **kwargs)


class WatchNumbers(TorchFunctionMode):
    """Refuses tensors made on the device of numbers that are not there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made_of_numbers = function in (torch.as_tensor, torch.tensor) and not isinstance(args[0], torch.Tensor)
        if made_of_numbers and torch.device(kwargs.get("device") or "cpu") == META:
            raise Waited(f"{args[0]!r} copied to the device")
        return function(*args, **kwargs)


@pytest.fixture(autouse=True)
def fused_steps_on_meta(monkeypatch):
    """The fused AdamW has shapes there, though torch does not list the device."""
    monkeypatch.setattr(import_module("torch.optim.adam"), "_device_dtype_check_for_fused", lambda *_, **__: None)


class OnMeta(Runtime):
    def autocast(self):
        return nullcontext()  # torch has none for this device


def copies_in_a_step(words: list[str], objective: str = "next", **changed) -> int:
    """Copies to the device in the second step, all quantities recorded. Raises where a step waits."""
    decoder = assemble_without_weights(in_turn(*SMALL, *words, config_dir=OWN)).train()
    machine, plan = OnMeta(META, torch.float32), settings(**changed)
    state = TrainState.begin(decoder, plan, machine, seed=0)
    step, batch = make_step(decoder, plan, machine, probe_every=1), batch_of(objective)
    step(state, batch)  # in the first, moments are made
    with WatchNumbers(), WatchCopies() as watched:
        step(state, batch)
    return watched.copies


@pytest.mark.parametrize("words", COVER, ids="-".join)
def test_a_step_waits_for_nothing(words):
    assert copies_in_a_step(words) == 1


@pytest.mark.parametrize(
    "case",
    [
        "masked mask=full head=mlm",
        "blank mask=prefix prefix=[0.25,0.75] pos=learned_2d",
        "blank mask=prefix prefix=[0.25,0.75] pos=rope_2d",
        "next mask=prefix prefix=[0.25,0.75] pos=alibi",
        "next mixer=gqa mixer.softcap=20 mixer.qk_norm=head",
        "next pos.scaling=yarn pos.factor=4 pos.trained_len=11",
        "next pos.scaling=dynamic pos.factor=2 pos.trained_len=11",
        "next pos.logn=11 dropout=0.1",
        "next size.n_layers=4 mask=window layers[1::2].mask=causal layers[1::2].pos=alibi",
        "next mixer=my_linear pos=none",
        "next ffn=two_experts",
        "next residual=two_streams",
    ],
)
def test_nor_does_one_of_other_objectives_and_blocks(case):
    objective, *words = case.split()
    assert copies_in_a_step(words, objective) == 1


def test_nor_do_micro_batches_and_recomputed_layers():
    assert copies_in_a_step(["train.accumulate=2", "pos=t5", "train.checkpoint=true"], accumulate=2, clip=None) == 1


@pytest.mark.parametrize("rule", [Muon, Lion, ScheduleFree, SGD])
def test_nor_do_other_optimizers_averages_and_terms_of_the_loss(rule):
    if rule.library:
        pytest.importorskip(rule.library)
    told = dict(optimizer=rule(), average=Exponential(0.9), loss=LossOptions(z=1e-4, label_smoothing=0.1))
    assert copies_in_a_step(["ffn=two_experts"], **told) == 1


# --- that it would be seen


@pytest.mark.parametrize(
    ("wait", "error"),
    [
        (lambda x: float(x.sum()), RuntimeError),
        (lambda x: x.nonzero(), NotImplementedError),
        (lambda x: x[x > 0], NotImplementedError),
        (lambda x: x.cpu(), NotImplementedError),
        (lambda x: torch.as_tensor(0, device=x.device), Waited),
        (lambda x: torch.tensor([1.0], device=x.device), Waited),
        (lambda x: torch.zeros(3).to(x.device), Waited),
        (lambda x: x.copy_(torch.zeros(3)), Waited),
    ],
)
def test_what_waits_is_seen(wait, error):
    with WatchNumbers(), WatchCopies(), pytest.raises(error):
        wait(torch.zeros(3, device=META))


# --- the one copy


@pytest.mark.parametrize("objective", ["next", "masked", "blank"])
def test_a_batch_is_sent_as_it_is(objective):
    batch, cpu = batch_of(objective), torch.device("cpu")
    columns = [column for column in batch if column is not None]
    for column, sent in zip(columns, in_one_copy(columns, cpu), strict=True):
        assert sent.dtype == column.dtype and torch.equal(sent, column)
    assert batch.to(cpu) is batch
    on_meta = batch.to(META)
    assert [None if x is None else (x.shape, x.dtype) for x in on_meta] == [
        None if x is None else (x.shape, x.dtype) for x in batch
    ]
