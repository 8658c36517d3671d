"""Training with compiled layers: the same numbers, one layer compiled for all like it, and whether it pays."""

from dataclasses import replace

import pytest
import torch
from compiler_process import answers
from oracles import built, composed
from program import INTERLEAVED
from program import SAME as PACKED
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from training import CPU, SMALL

from archlab.base.errors import UserError
from archlab.runs import lab
from archlab.runs.compiling import whether_compiled
from archlab.train import compiling
from archlab.train.compiling import CompiledLayers, programs_of
from archlab.train.runtime import runtime

SAME = 2e-6
"""aot_eager runs torch's own kernels, in the backward pass in an order of its own: a few roundings of float32."""

FUSED = 1e-4
"""Compiled loops also add in another order, and AdamW divides by what may be small."""


def told(backend, *cases):
    (seen,) = answers(["trained_compiled", backend, *cases])
    return seen


def check(seen, tolerance=SAME):
    assert all(all(one["compiled"]) and not any(one["eager"]) for one in seen), seen
    assert all(one["gap"] <= tolerance for one in seen), seen


PEEKS = """
from archlab.blocks.norm import RMSNorm

class Peeks(RMSNorm):
    def forward(self, x):
        return super().forward(x) if x.abs().max().item() > 0 else x
"""


def test_compiled_is_eager_and_what_asks_for_a_value_is_not_compiled(tmp_path):
    """Training, a pack, and verify's promise, in one process: to import the compiler takes as long as what is asked here.

    Slow rows here, in test_program.py and in tests/contract/test_verify.py ask for the rest.
    """
    (tmp_path / "peeking.py").write_text(PEEKS)
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "peeks.yaml").write_text("_target_: peeking.Peeks\n_partial_: true\n")
    trained, packed, promised = answers(
        ["trained_compiled", "aot_eager", "size.n_layers=5 mask=prefix layers[2::2].mixer=gqa accumulate=2"],
        ["program", "eager", "pack", INTERLEAVED],
        ["compiled_promise", str(tmp_path), "pos=alibi", "norm=peeks"],
        path=str(tmp_path),
    )
    # A graph for each kind of layer, and one more: the first layer makes the mask's table for all of them.
    assert [one["graphs"] for one in trained] == [3]
    check(trained)
    assert packed[0]["gap"] < PACKED, packed
    (alibi, of_alibi), (peeks, of_peeks) = promised
    assert alibi == "holds" and of_alibi.startswith("torch.compile takes the whole decoder as one graph")
    assert peeks == "broken" and of_peeks.startswith("torch.compile cannot take it as one graph")


@pytest.mark.slow
def test_where_layers_are_looped_one_graph_is_for_all_of_them_and_their_applications():
    seen = told("aot_eager", "size.n_layers=4 loop.times=2 loop.layers=1:3 skips=unet")
    check(seen)
    assert [one["graphs"] for one in seen] == [1]


@pytest.mark.slow
def test_a_compiled_pack_is_an_eager_one():
    seen = told("aot_eager", "size.n_layers=2 pos=alibi pack", "size.n_layers=3 loop.times=2 skips=unet pack")
    check(seen)
    assert seen[0]["graphs"] == 1


@pytest.mark.slow
def test_weights_are_held_beside_compiled_layers():
    """In a run and in a pack; what is divided by its length after a step is no part of what is compiled."""
    check(told("aot_eager", "preset=ngpt_0_5b", "preset=ngpt_0_5b pack"))


@pytest.mark.slow
def test_compiled_to_machine_code_it_trains_alike():
    """Fault found: dropout drew otherwise in compiled layers, so that what `compile=auto` decided changed a run's numbers."""
    rows = ("size.n_layers=3 dropout=0.1", "size.n_layers=3 norm=batch allow_leak=true", "size.n_layers=2 pack")
    seen = told("inductor", *rows)
    check(seen, FUSED)


def test_what_torch_cannot_compile_is_refused_or_run_as_it_is(capsys):
    def cannot(*_):
        raise TorchDynamoException("no such instruction\n\nSet TORCHDYNAMO_VERBOSE=1 and more")

    decoder = built(*SMALL, "size.n_layers=2")
    calls = {strict: CompiledLayers(decoder, strict) for strict in (True, False)}
    for call in calls.values():
        call.of_layer = dict.fromkeys(decoder.layers, cannot)
    tokens = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(UserError) as refusal:
        decoder.compute(tokens, decoder.read(tokens), call=calls[True])
    assert str(refusal.value) == (
        "compile=on: torch cannot compile a layer of this model (no such instruction); use compile=off"
    )
    logits = decoder.compute(tokens, decoder.read(tokens), call=calls[False]).logits
    assert logits.equal(decoder(tokens)) and not calls[False].in_use
    assert capsys.readouterr().err.count("the layers are called eagerly") == 1


@pytest.mark.slow
def test_layers_that_their_depth_tells_apart_are_compiled_however_many_there_are():
    """Differential attention has a number of each depth in it."""
    check(told("aot_eager", "size.n_layers=10 size.n_heads=2 mixer=diff"))


@pytest.mark.parametrize("once_more", [False, True])
def test_a_layer_beyond_the_programs_that_torch_keeps_has_a_function_of_its_own(once_more, monkeypatch):
    def full(*_):
        raise FailOnRecompileLimitHit("Hard failure due to fullgraph=True")

    monkeypatch.setattr(compiling, "compiled", lambda function: full if once_more else function)
    decoder, tokens = built(*SMALL, "size.n_layers=2"), torch.zeros(2, 5, dtype=torch.long)
    call = CompiledLayers(decoder, strict=True)
    call.of_layer = {decoder.layers[0]: compiling.one_layer, decoder.layers[1]: full}
    if once_more:
        with pytest.raises(UserError, match=r"^compile=on: .*more programs than torch keeps.*use compile=off$"):
            decoder.compute(tokens, decoder.read(tokens), call=call)
    else:
        assert decoder.compute(tokens, decoder.read(tokens), call=call).logits.equal(decoder(tokens))
    assert call.by_itself == {decoder.layers[1]} and call.in_use


# --- whether it pays


COMPILED = {  # with torch._dynamo's own count of graphs beside it, at four layers
    "mixer=mha": 1,
    "mixer=mha layers[1::2].mixer=gqa": 2,
    "mixer=diff size.n_heads=2": 4,
    "mixer=diff size.n_heads=2 loop.times=2": 4,
    "mixer=mha mixer.value_residual=true": 2,
    "residual=mix": 2,
    "mtp.form=chained": 1,
}


@pytest.mark.parametrize("words", COMPILED)
def test_the_programs_of_layers_are_counted(words):
    assert programs_of(built(*SMALL, "size.n_layers=4", *words.split())) == COMPILED[words]


WIDE_HEADS = "size.d_model=32 size.n_heads=2"
"""Wide enough for FlexAttention, whose kernel is made for each layer."""


def test_the_programs_that_are_counted_are_those_that_torch_makes():
    """Fault found: each of alibi's layers was counted, which share a program, and compiling them said to take four times as long."""
    words = (
        "pos=rope", "pos=alibi", "pos=kerple", "mask=prefix", "mask=window", "mixer.softcap=30", "mixer=mla", "mixer=gdn", "mixer=diff",
        "mixer.value_residual=true", "residual=mix", "residual=hyper", "residual=scaled", "ffn=experts",
    )  # fmt: skip
    (told,) = answers(["programs_compiled", *(f"{WIDE_HEADS} {one}" for one in words)])
    # One more is that of a first layer, which makes what all of them use.
    assert {
        one: (counted, made)
        for one, (counted, made) in zip(words, told, strict=True)
        if counted not in (made, made - 1)
    } == {}


@pytest.mark.parametrize(("words", "takes"), [("mixer=mha", "24.0 s"), ("mixer=diff", "1 min 36 s")])
def test_a_run_says_what_compiling_all_of_them_takes(words, takes, capsys):
    lab.prepared(composed("size=nano", "size.n_layers=4", "device=cpu", words), 0.0)
    assert f"compiling takes up to {takes}; compile=on compiles all the same" in capsys.readouterr().out


LONG = ("size=tiny", "train.steps=100000")


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", no_compiler)
    with pytest.raises(UserError, match=r"^compile=on: needs a C\+\+ compiler.*use compile=off$"):
        runtime("cpu", "fp32", compile="on")
    assert whether_compiled(composed(*LONG), CPU, 1)[0] == "off"


@pytest.mark.parametrize("folder", ["a file", "a file/within"])
def test_without_a_folder_for_what_is_compiled(folder, tmp_path, monkeypatch):
    """Faults found: a traceback, or that a file could not be written whose use nobody was told."""
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / folder))
    with pytest.raises(
        UserError,
        match=r"^compile=on: writes what it compiles to .*a file.*TORCHINDUCTOR_CACHE_DIR, or use compile=off$",
    ):
        runtime("cpu", "fp32", compile="on")


def no_compiler():
    raise FileNotFoundError("g++")


def test_layers_that_are_computed_again_are_not_compiled():
    with pytest.raises(UserError, match=r"^compile=on: .*train\.checkpoint=true.*use compile=off"):
        composed("compile=on", "train.checkpoint=true")
    assert whether_compiled(composed(*LONG, "train.checkpoint=true"), CPU, 1)[0] == "off"


def test_a_long_run_is_compiled_and_goes_on_as_it_began(monkeypatch):
    monkeypatch.setattr("archlab.runs.compiling.why_not_compiled", lambda device: None)
    long, short = composed(*LONG), composed("size=tiny")
    assert [whether_compiled(cfg, CPU, 1)[0] for cfg in (long, short)] == ["auto", "off"]
    assert whether_compiled(long, CPU, 1, {"step": 99990})[0] == "off"
    assert whether_compiled(long, CPU, 1, {"step": 99990, "compile": "auto"})[0] == "auto"
    assert whether_compiled(long, CPU, 1, packed=True)[0] == "off"
    assert whether_compiled(long, replace(CPU, dtype=torch.bfloat16), 1)[0] == "off"
    assert whether_compiled(composed(*LONG, "compile=on"), replace(CPU, compile="on"), 1)[0] == "on"
    assert all("\n" not in whether_compiled(cfg, CPU, 1)[1] for cfg in (long, short))
