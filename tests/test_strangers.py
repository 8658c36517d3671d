"""What a stranger's file says is data: run directories, presets and released folders that would run code, or break."""

import json
import math
import random
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import archlab
from archlab.base.errors import UserError
from archlab.base.nested import leaves
from archlab.cli import main as cli
from archlab.records.reader import read_run
from archlab.runs.load import load_run, saved_configuration

SMALL = [
    "size=nano",
    "train.steps=2",
    "train.train_len=16",
    "train.batch_size=4",
    "eval.tokens=128",
    "eval.lengths=[1,2]",
    "probe.every=1",
]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A run with blocks inside a block."""
    folder = tmp_path_factory.mktemp("good")
    cfg = archlab.compose("pos=local_global", "mask=local_global", *SMALL, f"output={folder}")
    from archlab.runs import lab

    return lab.run(cfg, ["pos=local_global", "mask=local_global", *SMALL], plots=False)


@pytest.fixture
def copied(good, tmp_path, monkeypatch):
    """A copy of it, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for file in good.iterdir():
        (tmp_path / "run" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "run"


def settings(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def put(run: Path, key: str, value: object) -> None:
    """Writes a field, by its dotted name, into config.yaml."""
    whole = node = settings(run)
    *path, last = key.split(".")
    for part in path:
        node = node[int(part) if isinstance(node, list) else part]
    node[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(whole))


VERBS = {
    "generate": ["generate", "run", "prompt=a", "max_new_tokens=2"],
    "diff": ["diff", "run", "norm=layer"],
    "ladder": ["diff", "run", "norm=layer", "--ladder"],
    "draw": ["draw", "run", "output=drawn.svg"],
    "report": ["report", "run"],
    "compare": ["compare", "run"],
    "stability_map": ["stability_map", "run"],
}
BUILDING = ("generate", "diff", "draw", "report")
"""Verbs that make a run's model."""


def with_one_and_with_all(cases, ways: list) -> list:
    """Each case with one of the ways by turns, so that all ways are gone; each with all of them is slow."""
    few = [(case, [ways[number % len(ways)]]) for number, case in enumerate(cases)]
    return few + [pytest.param(case, ways, marks=pytest.mark.slow) for case in cases]


def said(words, capsys) -> tuple[int, str, str]:
    """How a command ends: its status and what it printed."""
    try:
        cli.main(words)
        status = 0
    except SystemExit as left:
        status = left.code
    told = capsys.readouterr()
    return status, told.out, told.err


def refused(act, *arguments, match: str = ".") -> str:
    with pytest.raises(UserError, match=match) as refusal:
        act(*arguments)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


# --- code -----------------------------------------------------------------------------------------

CALL = {"_target_": "os.mkdir", "_args_": ["hurt"]}
IMPORT = {"_target_": "hurtful.Block", "_partial_": True}
POISONED = {
    "a call for a number": ("norm.eps", CALL),
    "a call within a rule for some layers": ("layers.0.pos.base", CALL),
    "a call in a list": ("train.lr", [CALL]),
    "a call in a list of a list": ("data.prefix", [0.25, [CALL]]),
    "a call for data": ("data.valid_share", CALL),
    "a call for a section": ("train", CALL),
    "a call for a seed": ("seed", CALL),
    "a call for a name": ("choices.norm", CALL),
    "a call where there is no field": ("norm.more", CALL),
    "a call at the top": ("more", CALL),
    "a block of the current folder": ("norm", IMPORT),
    "a block of the current folder, in some layers": ("layers.0.pos._target_", "hurtful.Block"),
    "an activation": ("ffn.activation", IMPORT),
    "data of the current folder": ("data", IMPORT),
    "an init": ("init._target_", "hurtful.Block"),
    "a variable of the environment": ("output", "${oc.env:HOME}"),
    "a made mapping": ("norm.eps", "${oc.create:{_target_:os.mkdir,_args_:[hurt]}}"),
    "a reference": ("mask.window", "${train.steps}"),
    "a field to fill in": ("norm.eps", "???"),
    "an option that is a path": ("choices.norm", "../../my/norm/mine"),
    "an option and more": ("choices.norm", "rms hydra.searchpath=[file:///tmp]"),
}


@pytest.fixture
def hurtful(copied):
    (copied.parent / "hurtful.py").write_text("import os\nos.mkdir('hurt')\n\nclass Block:\n    pass\n")
    return copied


@pytest.mark.parametrize(("poison", "verbs"), with_one_and_with_all(POISONED, [*VERBS]))
def test_nothing_that_a_run_says_is_called_or_imported_by_any_verb(poison, verbs, hurtful, capsys):
    put(hurtful, *POISONED[poison])
    refused(saved_configuration, hurtful, match="run/config.yaml: ")
    refused(load_run, hurtful)
    for verb in verbs:
        status, _, err = said(VERBS[verb], capsys)
        assert not (hurtful.parent / "hurt").exists(), verb
        assert status == 2 or verb == "compare", verb
        assert err.count("\n") <= 1 + err.count("archlab: note: ") and "Traceback" not in err, (verb, err)


def test_a_poisoned_run_is_left_out_of_a_report_and_the_rest_is_told(hurtful, good, capsys):
    put(hurtful, "norm.eps", CALL)
    status, _, err = said(["report", str(hurtful), str(good)], capsys)
    assert status == 0 and not (hurtful.parent / "hurt").exists()
    assert "left out" in err and "norm.eps: should hold a value" in err


@pytest.mark.parametrize(
    "anchor",
    [
        "seed: &a 0\noutput: *a\n",
        "a: &a [1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{y}: &{y} [{','.join(['*' + x] * 9)}]\n" for x, y in zip("abcdefg", "bcdefgh", strict=True)),
    ],
)
@pytest.mark.parametrize("file", ["config.yaml", "overrides.yaml"])
def test_what_grows_when_it_is_read_is_refused_at_once(anchor, file, copied, capsys):
    (copied / file).write_text(anchor)
    since = time.process_time()  # of this process: others take as much of the clock as they like
    refused(read_run, copied, match="it holds an anchor or an alias")
    if file == "config.yaml":
        refused(load_run, copied, match="it holds an anchor or an alias")
    assert time.process_time() - since < 2  # seconds; the bomb's list has 9 ** 8 items


DEEP = {"config.yaml": "[" * 5000, "summary.json": "[" * 100_000, "positions.json": "[" * 100_000, "metrics.jsonl": "[" * 100_000 + "\n", "overrides.yaml": "- " * 5000}  # fmt: skip


@pytest.mark.parametrize("file", DEEP)
def test_what_is_nested_without_end_is_refused(file, copied):
    (copied / file).write_text(DEEP[file])
    refused(read_run, copied, match="deep in each other")


# --- older runs, and those with blocks of one's own -----------------------------------------------


def test_a_run_names_no_class_and_reads_back_as_it_was_composed(good):
    cfg = archlab.compose("pos=local_global", "mask=local_global", *SMALL, f"output={good.parent}")
    assert (
        "_target_" not in (good / "config.yaml").read_text() and "_partial_" not in (good / "config.yaml").read_text()
    )
    assert saved_configuration(good) == cfg


def by_turns(cfg) -> dict:
    """A configuration as runs wrote it when layers by turns were blocks, the mixer was `attn`, and every class was named."""
    whole = OmegaConf.to_container(cfg)
    (turns,) = {(rule["at"], *sorted(rule["choices"])) for rule in whole["layers"] if "pos" in rule["choices"]}
    by_group = {group: rule[group] for rule in whole.pop("layers") for group in rule["choices"]}
    assert turns[0] == "1::2" and set(by_group) == {"pos", "mask"}
    every = {"_partial_": True, "every": 2, "first": "local"}
    whole["pos"] = every | {
        "_target_": "archlab.blocks.interleaved.LocalGlobalPosition",
        "local_layers": whole["pos"],
        "global_layers": by_group["pos"],
    }
    whole["mask"] = every | {
        "_target_": "archlab.blocks.interleaved.LocalGlobalMask",
        "window": whole["mask"]["window"],
    }
    whole["choices"] |= {"pos": "local_global", "mask": "local_global", "attn": whole["choices"].pop("mixer")}
    return whole | {"attn": whole.pop("mixer")}


def test_an_older_run_that_wrote_the_classes_down_is_read_alike(good, copied):
    cfg = archlab.compose("pos=local_global", "mask=local_global", *SMALL, f"output={good.parent}")
    OmegaConf.save(by_turns(cfg), copied / "config.yaml")
    assert "_target_" in (copied / "config.yaml").read_text()
    assert saved_configuration(copied) == cfg == saved_configuration(good)
    put(copied, "norm._target_", "archlab.blocks.of_old.RMSNorm")  # one of archlab's own that has moved since
    assert saved_configuration(copied) == cfg


def test_turns_beside_rules_for_some_layers_are_of_no_version(copied):
    cfg = archlab.compose("pos=local_global", "mask=local_global", *SMALL)
    OmegaConf.save(by_turns(cfg) | {"layers": [{"at": "0", "choices": {"ffn": "gelu"}}]}, copied / "config.yaml")
    refused(saved_configuration, copied, match="mask=local_global and rules for some layers are of different versions")


def test_older_and_newer_runs_are_one_arm(good, copied):
    from archlab.comparison.arms import identity

    put(copied, "norm._target_", "archlab.blocks.norm.RMSNorm")
    assert identity(read_run(copied)) == identity(read_run(good))


MINE = "import torch\nfrom archlab.blocks.norm import RMSNorm\n\n\nclass Mine(RMSNorm):\n    pass\n"


def test_a_run_with_a_block_of_ones_own_asks_for_its_folder(tmp_path, monkeypatch, capsys):
    from archlab.runs import lab

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_of_strangers.py").write_text(MINE)
    (tmp_path / "my" / "norm").mkdir(parents=True)
    (tmp_path / "my" / "norm" / "mine.yaml").write_text(
        "_target_: mine_of_strangers.Mine\n_partial_: true\neps: 1e-6\nunit_offset: false\n"
    )
    cfg = archlab.compose("norm=mine", *SMALL, config_dir="my")
    lab.run(cfg, ["norm=mine", *SMALL], plots=False).rename("run")
    assert said(VERBS["report"], capsys)[0] == 0  # it draws the model from the run's own sketch
    Path("run", "sketch.json").unlink()
    for verb in BUILDING:
        status, _out, err = said(VERBS[verb], capsys)
        assert (
            status == 2 and "norm=mine: no such option here; if it is your own, give the folder by --config-dir" in err
        ), verb
        status, _, err = said([*VERBS[verb], "--config-dir", "my"], capsys)
        assert (status, err) == (0, ""), verb
    assert saved_configuration(Path("run"), "my") == cfg
    load_run("run", "seed=3", config_dir="my")
    for verb in ("compare", "stability_map"):
        assert "takes no such flag" not in said([*VERBS[verb], "--config-dir", "my"], capsys)[2]


# --- words and presets ----------------------------------------------------------------------------


NAMING = [
    "norm._target_=hurtful.Block", "+norm._target_=hurtful.Block", "norm.eps._args_=[hurt]", "norm={_target_:os.mkdir,_args_:[hurt]}",
    "norm.eps={_target_:os.mkdir,_args_:[hurt]}", "pos.local_layers={'_target_':os.mkdir}", "norm.eps=[{_target_:os.mkdir}]",
    "norm.eps=${oc.create:{_target_:os.mkdir,_args_:[hurt]}}", "hydra.callbacks.mine={_target_:hurtful.Block}", "data._partial_=false",
]  # fmt: skip
BEFORE_IT = [["show"], ["draw"], ["verify", "norm=rms"], ["diff", "gpt2"], ["-m", "seed=0,1"]]


@pytest.mark.parametrize(("word", "commands"), with_one_and_with_all(NAMING, BEFORE_IT))
def test_a_word_that_names_a_class_is_refused(word, commands, hurtful, capsys):
    for words in commands:
        status, _, err = said([*words, word], capsys)
        assert status == 2 and err.count("\n") == 1 and not (hurtful.parent / "hurt").exists()
        assert "names the class to make, which only an option's own file may do" in err


def test_a_name_with_the_same_letters_is_none(copied):
    assert archlab.compose("data=file", "data.path=/some/_target_/file").data.path == "/some/_target_/file"


@pytest.mark.parametrize(
    "line",
    [
        "norm.eps: '{_target_: os.mkdir, _args_: [hurt]}'", "norm._target_: hurtful.Block", "norm.eps: {_target_: os.mkdir}", "output: ${oc.env:HOME}",
        "norm.eps: ['{_target_: os.mkdir}']", "hydra.callbacks.a: hurtful", "norm: &a rms", "norm: !!python/name:os.mkdir x", "'norm=rms pos': alibi", "seed: [[1]]",
    ],
)  # fmt: skip
def test_a_preset_holds_names_and_numbers(line, hurtful):
    (hurtful.parent / "my" / "preset").mkdir(parents=True)
    (hurtful.parent / "my" / "preset" / "theirs.yaml").write_text(f"size: nano\n{line}\n")
    refused(lambda: archlab.compose("preset=theirs", config_dir="my"), match="my/preset/theirs.yaml: ")
    assert not (hurtful.parent / "hurt").exists()


def test_a_presets_numbers_lists_and_nulls_are_what_they_are(tmp_path):
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "mine.yaml").write_text(
        "size: nano\nnorm.eps: 1e-5\neval.lengths: [1, 3]\nmixer.softcap: null\nembed.tied: true\n"
    )
    cfg = archlab.compose("preset=mine", config_dir=str(tmp_path))
    assert (cfg.norm.eps, list(cfg.eval.lengths), cfg.mixer.softcap, cfg.embed.tied) == (1e-5, [1, 3], None, True)


# --- damage ---------------------------------------------------------------------------------------


WRONG = (None, "x", -1, 0, 2.5, 1e308, 10**15, [], [[]], {}, {"a": 1}, True, "\x1b[31m", "$x$")


def damaged(value: object, random_: random.Random) -> object:
    """Something that stands in a record's place and is not of its kind."""
    return random_.choice([wrong for wrong in WRONG if wrong != value and type(wrong) is not type(value)])


def works_or_is_a_line(words, capsys) -> None:
    status, _, err = said(words, capsys)
    lines = [line for line in err.splitlines() if not line.startswith("archlab: note: ")]
    assert status in (0, 2) and len(lines) == (status == 2), (words, err)
    assert all(line.startswith("archlab: ") for line in lines), err


FEW, ALL = 20, pytest.param(1, marks=pytest.mark.slow)
"""Every so many of a file's fields are tried."""


@pytest.mark.parametrize("every", [FEW, ALL])
def test_a_configuration_of_which_one_field_is_wrong_is_read_or_refused(every, copied, capsys):
    whole, random_ = settings(copied), random.Random(0)
    for key, value in list(leaves(whole))[::every]:
        (copied / "config.yaml").write_text(yaml.safe_dump(whole))
        put(copied, key, damaged(value, random_))
        for act in (saved_configuration, read_run):
            try:
                act(copied)
            except UserError as error:
                assert "\n" not in str(error) and "\x1b" not in str(error)
        works_or_is_a_line(random_.choice(list(VERBS.values())), capsys)


@pytest.mark.parametrize("every", [FEW, ALL])
def test_a_summary_of_which_one_field_is_wrong_is_told_or_left_out(every, copied, good, capsys):
    whole, random_ = json.loads((copied / "summary.json").read_text()), random.Random(0)
    token_positions = (
        [(key,) for key in whole]
        + [("length", 0, key) for key in whole["length"][0]]
        + [("stability", key) for key in whole["stability"]]
    )
    for place in token_positions[::every]:
        record = node = json.loads(json.dumps(whole))
        for part in place[:-1]:
            node = node[part]
        node[place[-1]] = damaged(node[place[-1]], random_)
        (copied / "summary.json").write_text(json.dumps(record))
        verb = random_.choice(["compare", "report", "stability_map"])
        works_or_is_a_line([verb, str(copied), str(good)], capsys)


@pytest.mark.parametrize(
    ("place", "number", "told"),
    [
        (("val_loss",), math.nan, "val_loss: holds NaN, which is no number; archlab writes null where there is none"),
        (("length", 0, "loss"), math.inf, "length.0.loss: holds Infinity, which is no number"),
        (("of_my_own",), -math.inf, "holds -Infinity, which is no number"),
        (("n_params",), math.nan, "n_params: holds NaN, which is no number"),
        (("val_loss",), 1e200, "val_loss: holds 1e+200, which is not a measurement"),
    ],
    ids=str,
)
def test_a_number_that_is_none_is_told_as_what_it_is(place, number, told, copied):
    record = node = json.loads((copied / "summary.json").read_text())
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = number
    (copied / "summary.json").write_text(json.dumps(record))
    refused(read_run, copied, match=f"its record is damaged: {re.escape(told)}")


DAMAGED = {
    "metrics.jsonl": [b"\xff\xfe\x00\x01", b"1\n2\n", b"{}\n", b'{"step": 1, "loss": 2.0}\n', b'{"step": 1, "tokens": 4, "loss": "x"}\n', b"null\n",
                      b'{"step": 1, "tokens": 4, "loss": 2.0, "layers": [1]}\n', b'{"step": 1, "tokens": 4, "loss": NaN}\n'],
    "steps.jsonl": [b"\xff\xfe", b"1\n", b'{"step": 1, "loss": 2.0, "grad_norm": 1.0}\nhello\n', b'{"step": 1, "loss": 2.0, "grad_norm": 1.0}\n{"step": 2, "lo'],
    "summary.json": [b"", b"[]", b"null", b'{"status": 1}', b"\xff\xfe", b'{"status": "completed", "val_loss": "x", "corpus_sha256": "a"}'],
    "positions.json": [b"[1,2]", b"7", b"{}", b'[{"eval_len": 16}]', b'[{"eval_len": 16, "position": [0], "loss": []}]', b"\xff"],
    "overrides.yaml": [b"7", b"\xff\xfe", b"- 7", b"a: 1", b"- [a]", b"- hydra.searchpath=[file:///tmp]", b"- '=cmd|1'"],
    "config.yaml": [b"seed: 0", b"train: x", b"", b"\xff\xfe", b"seed: 0\ntrain: {}\nsize: {}", b"- a"],
}  # fmt: skip


@pytest.mark.parametrize("file", DAMAGED)
def test_damaged_runs_are_left_out_and_the_rest_is_compared(file, copied, good, capsys):
    """Each is refused where it is read, and each is named by the verbs that leave it out."""
    runs = [copied.with_name(f"damaged{number}") for number in range(len(DAMAGED[file]))]
    for run, content in zip(runs, DAMAGED[file], strict=True):
        shutil.copytree(copied, run)
        (run / file).write_bytes(content)
        refused(read_run, run)
    names = [str(run) for run in runs]
    for verb in ("compare", "report"):
        status, out, err = said([verb, *names, str(good)], capsys)
        assert status == 0 and "Traceback" not in err
        told = "".join(f"{out} {err}".split())
        assert [name for name in names if name not in told] == [], verb
        assert told.count("leftout") == len(names), verb
    status, _, err = said(["stability_map", *names, str(good)], capsys)
    assert status == 2 and err.splitlines()[-1].startswith(
        "archlab: train.lr: takes 1 value in these runs"
    )  # of the one that is left


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("steps.jsonl", '{"step": 1, "loss": 2.0, "grad_norm": 1.0}\nhello\n', "line 2: Expecting value"),
        ("steps.jsonl", '{"step": 1, "loss": 2.0, "grad_norm": 1.0}\n{"step": 2, "lo', "line 2: is cut off"),
        ("steps.jsonl", '{"step": 1, "loss": 2.0, "grad_norm": 1.0}\n{"step": 2}\n', "line 2: loss: field required"),
        ("metrics.jsonl", '{"step": 1, "tokens": 4}\n{"step\n', "line 2: "),
        ("metrics.jsonl", '{"step": 1, "tokens": 4}\n7\n', "line 2: should be"),
    ],
)
def test_the_damaged_line_of_a_file_is_said(file, content, line, copied):
    (copied / file).write_text(content)
    refused(read_run, copied, match=f"its {file} cannot be read: {line}")


@pytest.mark.parametrize("every", [3, ALL])
def test_a_directory_of_noise_is_a_line_for_every_verb(every, copied, capsys):
    random_ = random.Random(1)
    for file in sorted(copied.iterdir())[::every]:
        whole = file.read_bytes()
        for content in (b"", random_.randbytes(300), whole[: len(whole) // 2]):
            file.write_bytes(content)
            for words in random_.sample(list(VERBS.values()), 1 if every > 1 else len(VERBS)):
                works_or_is_a_line(words, capsys)
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("kind", "verbs"), with_one_and_with_all([torch.int32, torch.int8, torch.bool, torch.uint8], ["generate", "draw"])
)
def test_weights_of_another_kind_of_number_are_refused(kind, verbs, copied, capsys):
    file = copied / "model.safetensors"
    weights = load_file(file)
    weights["layers.0.ffn.up_proj.weight"] = weights["layers.0.ffn.up_proj.weight"].to(kind)
    save_file(weights, file)
    refused(
        load_run, copied, match="layers.0.ffn.up_proj.weight holds numbers of type .*, and weights are floating-point"
    )
    assert [said(VERBS[verb], capsys)[0] for verb in verbs] == [2] * len(verbs)


def test_half_as_many_bits_are_still_weights(copied):
    file = copied / "model.safetensors"
    rounded = {name: weight.bfloat16() for name, weight in load_file(file).items()}
    save_file(rounded, file)
    _, decoder = load_run(copied)
    read = decoder.state_dict()
    assert rounded and all(torch.equal(read[name], weight.to(read[name].dtype)) for name, weight in rounded.items())


SIZES = [
    ("size.d_model", 10**9, "size.d_model=1000000000: should be less than"), ("size.d_ff", 10**15, "size.d_ff=1000000000000000: .* less than"),
    ("size.vocab_size", 10**12, "size.vocab_size=1000000000000: should be less than"), ("size.d_model", 2**18, "another model's weights"),
    ("size.n_layers", 10**9, "size.n_layers=1000000000: should be less than or equal to 1000"), ("size.d_ff", 2**20, "another model's weights"), ("size.n_kv_heads", 3, "size.n_kv_heads=3: "),
    ("size.d_ff", "many", "size.d_ff=many: "), ("size.head_dim", -1, "size.head_dim=-1: "), ("size.n_heads", 5, "size.n_"), ("size.d_model", 65, "another model"),
    ("size.d_model", "64", "size.d_model=64: should be a valid integer"), ("train.lr", "high", "train.lr=high: "), ("prefix", [2, 1], "prefix="),
]  # fmt: skip


@pytest.mark.parametrize(("case", "verbs"), with_one_and_with_all(SIZES, ["generate", "draw", "diff"]))
def test_a_saved_size_is_checked_as_a_typed_one(case, verbs, copied, capsys):
    key, value, match = case
    put(copied, key, value)
    refused(load_run, copied, match=match)
    for verb in verbs:
        status, _, err = said(VERBS[verb], capsys)
        assert status in ((0, 2) if verb == "diff" else (2,)) and err.count("\n") == (status == 2), (verb, err)


@pytest.mark.parametrize(
    ("key", "value"), [("size.d_ff", "matched"), ("size.head_dim", None), ("size.n_kv_heads", None)]
)
def test_what_a_size_leaves_to_a_rule_is_settled_by_it(key, value, copied, good):
    put(copied, key, value)
    assert saved_configuration(copied) == saved_configuration(good)


@pytest.mark.parametrize(
    "word",
    [
        "norm.eps=${oc.env:HOME}",
        "norm.eps=${oc.create:{_target_:os.mkdir,_args_:[hurt]}}",
        "norm._target_=hurtful.Block",
        "preset=../x",
        "norm={_target_:os.mkdir}",
    ],
)
def test_overrides_of_a_file_are_no_more_than_values(word, hurtful):
    """They are parsed only where a run is loaded under other options."""
    (hurtful / "overrides.yaml").write_text(yaml.safe_dump([word]))
    load_run(hurtful)
    refused(load_run, hurtful, "seed=1")
    assert not (hurtful.parent / "hurt").exists()
