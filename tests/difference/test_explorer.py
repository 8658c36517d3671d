"""diff, its ladder and draw: what they say is what the configurations hold, and every rung can be run."""

import xml.etree.ElementTree as ElementTree
from itertools import islice, pairwise
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from transformers import GPT2Config, GPT2LMHeadModel

import archlab
from archlab.base.errors import UserError
from archlab.cli import main as cli
from archlab.config.compose import compose
from archlab.difference.ladder import NO_PART, ladder, spelled
from archlab.difference.models import difference
from archlab.runs.named_model import named, two

PAIRS = [
    pytest.param("gpt2", "bloom_560m", marks=pytest.mark.slow),
    pytest.param("llama_7b", "chatglm_6b", marks=pytest.mark.slow),
    pytest.param("mistral_7b", "gemma2_2b", marks=pytest.mark.slow),  # windows, head_dim
    pytest.param("falcon_7b", "gpt2", marks=pytest.mark.slow),
    # One key-value head to many, which mixer and sizes have to say together; the same of a few layers.
    ("preset=falcon_7b size.n_layers=3", "preset=gpt2 size.n_layers=2"),
    pytest.param("gemma3_1b", "bert_base", marks=pytest.mark.slow),
    pytest.param("qwen_7b", "opt_350m", marks=pytest.mark.slow),  # a narrow embedding
    ("norm=layer", "mixer=gqa size=small size.n_kv_heads=2 train.tokens=100000"),
    pytest.param(
        "train.tokens=100000 match=params", "ffn=gelu budget=chinchilla train.lr=1e-3", marks=pytest.mark.slow
    ),
    ("mask=prefix", "mask=window mask.window=7 data.valid_share=0.2"),
]


def compared(cfg):
    return {key: value for key, value in OmegaConf.to_container(cfg).items() if key not in NO_PART}


@pytest.mark.parametrize(("first", "last"), PAIRS)
def test_a_ladder_leads_from_one_model_to_the_other_and_every_rung_can_be_run(first, last):
    first, last = named(first), named(last)
    rungs = list(ladder(first, last))
    assert rungs[0].about == () and compared(rungs[0].cfg) == compared(first.cfg)
    assert compared(compose(*rungs[-1].words)) == compared(last.cfg)
    for below, rung in pairwise(rungs):
        assert compared(compose(*rung.words)) == compared(rung.cfg) != compared(below.cfg)
        assert 1 <= len(rung.about) <= 3


def test_a_rung_changes_what_it_is_called_by_and_nothing_else():
    """Group by group; sizes that follow another by rule are the exception, as d_ff follows d_model."""
    rungs = list(islice(ladder(named("llama_7b"), named("chatglm_6b")), 8))
    assert [rung.about for rung in rungs[1:]] == [
        (name,) for name in ("norm", "residual", "ffn", "pos", "mask", "mixer", "init")
    ]
    for below, rung in pairwise(rungs):
        (group,) = rung.about
        other = {key for key, value in compared(rung.cfg).items() if compared(below.cfg)[key] != value}
        assert other - {"prefix", "data"} == {group}  # a prefix mask brings a prefix to read


def test_a_ladder_between_equal_models_has_no_steps():
    assert len(list(ladder(named("gpt2"), named("preset=gpt2")))) == 1


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "null"),
        (True, "true"),
        (3, "3"),
        (1e-05, "1e-05"),
        ("layer", "layer"),
        ("a b's", "'a b\\'s'"),
        ([0.25, None], "[0.25,null]"),
        ({"a": [1]}, "{a:[1]}"),
    ],
)
def test_values_are_spelled_as_hydra_reads_them(value, written):
    assert spelled(value) == written
    if not isinstance(value, dict):
        from hydra.core.override_parser.overrides_parser import OverridesParser

        read = OverridesParser.create().parse_overrides([f"x={written}"])[0].value()
        assert str(read) == str(value) or read == value


def test_a_difference_holds_what_transformers_own_model_has():
    """GPT-2 against itself with half the layers: numbers counted from transformers' model."""
    seq_len = 32
    theirs = [
        sum(
            p.numel()
            for p in GPT2LMHeadModel(
                GPT2Config(n_layer=n, n_embd=96, n_head=6, vocab_size=211, n_positions=64)
            ).parameters()
        )
        for n in (4, 2)
    ]
    small = "preset=gpt2 size.d_model=96 size.n_heads=6 size.d_ff=384 size.vocab_size=211 pos.max_positions=64 train.train_len=64 data=copy data.symbols=20"
    told = difference(named(f"{small} size.n_layers=4"), named(f"{small} size.n_layers=2"), seq_len)
    assert told.parts[-1] == ("all", *theirs)
    assert told.blocks == [] and told.settings == []
    assert [row for row in told.sizes if row[1] != row[2]] == [("n_layers", 4, 2)]
    costs = {name: pair for name, *pair in told.costs}
    matrices = [n * (4 * 96 * 96 + 2 * 96 * 384) + 96 * 211 for n in (4, 2)]  # without biases, tables and norms
    scores = [n * 2 * 96 * seq_len for n in (4, 2)]  # q k^T and weights v
    assert costs["flops_per_token"] == [2 * (m + s) for m, s in zip(matrices, scores, strict=True)]
    assert costs["kv_bytes_per_token"] == [2 * 2 * n * 96 for n in (4, 2)]  # keys and values in bf16
    assert costs["token_budget"] == [20 * n for n in theirs]
    assert {name: pair for name, *pair in told.memory}["weights"] == [2 * n for n in theirs]


def test_blocks_are_told_by_what_differs():
    told = difference(named("norm=layer norm.eps=1e-6"), named("norm=layer mixer=mqa dropout=0.1"))
    assert told.blocks == [
        ("norm", "layer eps=1e-06", "layer eps=1e-05"),
        ("mixer", "mha", "mqa"),  # the dropout it takes over is told once, as a setting
    ]
    assert told.settings == [("dropout", "0.0", "0.1")]


# --- names --------------------------------------------------------------------------------------


def refused(told, act, *arguments):
    with pytest.raises(UserError, match=told) as error:
        act(*arguments)
    assert "\n" not in str(error.value)


def test_a_name_is_a_preset_a_run_or_overrides(tmp_path):
    cfg = compose("norm=layer", "pos=alibi")
    (tmp_path / "20261124-pos=alibi").mkdir()
    OmegaConf.save(cfg, tmp_path / "20261124-pos=alibi" / "config.yaml")
    run = named(str(tmp_path / "20261124-pos=alibi"))
    assert run.cfg == cfg == named("norm=layer  pos=alibi").cfg and run.name == "20261124-pos=alibi"
    assert compared(next(iter(ladder(run, named("gpt2")))).cfg) == compared(cfg)
    assert named("gpt2").cfg == compose("preset=gpt2")
    (tmp_path / "empty").mkdir()
    refused("is no preset, no run's directory and no override; did you mean gpt2", named, "gpt-2")
    refused("has no config.yaml, so it is not a run", named, str(tmp_path / "empty"))
    refused("nothing is called nrom; did you mean norm", named, "nrom=layer")
    refused("cannot be read as overrides: no closing quotation", named, "norm='layer")
    refused("-m: no flag belongs in a model's overrides", named, "norm=layer -m")
    refused("diff: takes two models, not 1", two, "diff", ["gpt2"], None)


# --- the verbs ----------------------------------------------------------------------------------


def run(words, capsys, monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    try:
        cli.main(words)
        status = 0
    except SystemExit as left:
        status = left.code
    told = capsys.readouterr()
    return status, told.out, told.err


def test_diff_prints_tables_and_draws_both(capsys, monkeypatch, tmp_path):
    status, out, err = run(
        ["diff", "gpt2", "bloom_560m", "seq_len=256", "output=both.svg"], capsys, monkeypatch, tmp_path
    )
    assert (status, err) == (0, "")
    assert "124,439,808" in out and "559,214,592" in out  # as published
    assert "4.494" in out and "0.223" not in out  # the second over the first: 559214592 / 124439808
    assert "cost at 256 tokens, bf16" in out and out.strip().splitlines()[-1] == "both.svg"
    drawn = " ".join(ElementTree.parse(tmp_path / "both.svg").getroot().itertext())
    assert "gpt2" in drawn and "bloom_560m" in drawn and "ALiBi" in drawn


def test_costs_are_counted_at_the_length_asked_for():
    short, long = ("size=nano train.train_len=32", "size=nano train.train_len=96")
    at_own = difference(named(short), named(long))
    assert at_own.seq_len == (32, 96)
    for at_one in (difference(named(short), named(long), 96), difference(named(long), named(short), 96)):
        assert [pair[2] for pair in at_own.costs + at_own.memory] == [pair[1] for pair in at_one.costs + at_one.memory]
        assert all(one == other for _, one, other in at_one.costs + at_one.memory)


def test_show_names_a_size_that_is_a_presets_own(capsys, monkeypatch, tmp_path):
    for words, name in (("preset=gpt2", "own"), ("size=nano", "nano"), ("preset=gpt2 size=tiny", "tiny")):
        _, out, _ = run(["show", *words.split()], capsys, monkeypatch, tmp_path)
        assert [line.split()[1] for line in out.splitlines() if line.startswith("size ")] == [name]
        assert "per token in float32" in out


def test_every_line_of_a_ladder_is_a_command(capsys, monkeypatch, tmp_path):
    status, out, _ = run(
        ["diff", "--ladder", "norm=layer", "pos=alibi data=copy data.symbols=9"], capsys, monkeypatch, tmp_path
    )
    commands = [line.split() for line in out.splitlines() if line.startswith("   archlab")]
    assert status == 0 and len(commands) == 4
    assert compared(compose(*commands[-1][1:])) == compared(compose("pos=alibi", "data=copy", "data.symbols=9"))


def test_draw_writes_an_svg_and_a_png(capsys, monkeypatch, tmp_path):
    status, out, _ = run(
        ["draw", "+norm=rms", "pos=kerple", "mask=prefix", "output=mine"], capsys, monkeypatch, tmp_path
    )
    assert status == 0 and out.split() == ["mine.svg", "mine.png"]
    drawn = " ".join(ElementTree.parse(tmp_path / "mine.svg").getroot().itertext())
    assert "RMSNorm" in drawn and "bias of head 1 of 4" in drawn and "mask: Prefix" in drawn
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG\r\n")
    status, out, _ = run(["draw", "chatglm_6b", "output=glm.png"], capsys, monkeypatch, tmp_path)
    assert out.split() == ["glm.png"] and not (tmp_path / "glm.svg").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("diff gpt2", "diff: takes two models, not 1"),
        ("diff gpt2 lama_7b", "lama_7b: is no preset, no run's directory and no override; did you mean llama_7b?"),
        ("diff gpt2 bloom_560m output=a.jpg", "output=a.jpg: a picture is an SVG or a PNG; give a file such as a.svg"),
        ("diff gpt2 bloom_560m output=no/a.svg", "output=no/a.svg: no is not a folder"),
        ("diff gpt2 bloom_560m output=", "output=: names no file"),
        ("draw gpt2 output=..", "output=..: names no file"),
        ("verify norm=rms output=a.svg", "output=a.svg: verify writes nothing"),
        ("diff gpt2 bloom_560m seq_len=0", "seq_len=0: should be greater than or equal to 1"),
        ("diff gpt2 bloom_560m seq_len=9 --ladder", "seq_len=9: --ladder lists overrides alone"),
        ("diff gpt2 bloom_560m -m", "--multirun: diff takes no such flag; it takes --ladder, --config-dir"),
        ("draw gpt2 --ladder", "--ladder: draw takes no such flag"),
        ("draw gpt2 norm=rms", "gpt2: draw takes one model"),
        ("show --ladder", "--ladder: only with two models"),
    ],
)  # fmt: skip
def test_misuse_is_one_line_and_status_two(words, told, capsys, monkeypatch, tmp_path):
    status, _out, err = run(words.split(), capsys, monkeypatch, tmp_path)
    assert status == 2 and err.startswith(f"archlab: {told}") and err.count("\n") == 1
    assert not any(Path(tmp_path).iterdir())


def test_what_is_another_choice_in_some_layers_is_not_the_same_in_both():
    found = archlab.diff("size=nano", "size=nano layers[1].mask=window")
    assert "mask" not in found.found.same and {"norm", "pos"} <= set(found.found.same)
    (row,) = (row for row in found.found.blocks if row[0] == "layers")
    assert "layer 1 (1 of 2): mask=window" in row[2]
