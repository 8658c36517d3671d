"""`archlab bench` as it is typed: what it prints and writes, and how it refuses what makes no sense."""

import json

import commands
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import archlab
from archlab.base.errors import UserError
from archlab.benchmark.gpu.check import CheckResult
from archlab.verbs import bench as verb

command = commands.command  # the fixture

NANO = ("size=nano", "size.n_layers=1", "train.train_len=16", "train.batch_size=2", "rounds=6")


def test_one_architecture_is_measured_and_written_down(command, tmp_path):
    answer = command("bench", *NANO, "norm=layer", "output=out/here")
    assert answer.status == 0 and answer.out.rstrip().endswith("out/here")
    for words in ("norm=layer", "tokens/s", "training step", "decoding", "of matrix peak", "optimizer", "peak memory", "processor"):  # fmt: skip
        assert words in answer.out
    folder = tmp_path / "out" / "here"
    assert {file.name for file in folder.iterdir()} == {"bench.json", "bench.csv", "bench.txt", "bench.png"}
    assert [path.name for path in folder.parent.iterdir()] == ["here"]
    record = json.loads((folder / "bench.json").read_text())
    assert record["suite"] == "speed" and record["overrides"] == ["size=nano", "size.n_layers=1", "train.train_len=16", "train.batch_size=2", "norm=layer"]  # fmt: skip
    assert record["rounds"] == 6 and len(record["modes"]["step"]["seconds"]) == 6
    assert {"torch", "processor", "threads"} <= set(record["machine"]) and "commit" in (record["git"] or {"commit": ""})
    table = pd.read_csv(folder / "bench.csv").set_index("what")
    assert table.loc["step", "tokens_per_second"] == pytest.approx(record["modes"]["step"]["tokens_per_second"])
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    again = command("bench", *NANO, "output=out/here")
    assert (again.status, again.out) == (2, "") and again.err.startswith("archlab: output=out/here: is there already")


@pytest.mark.slow
def test_two_architectures(command, tmp_path):
    answer = command("bench", "+norm=rms", "--vs", "norm=layer pos=alibi", *NANO)
    assert answer.status == 0
    (folder,) = (tmp_path / "experiments" / "bench").iterdir()
    assert folder.name.endswith("-versus")
    record = json.loads((folder / "bench.json").read_text())
    assert [arm["choices"]["norm"] for arm in record["arms"]] == ["rms", "layer"]
    assert [arm["choices"]["pos"] for arm in record["arms"]] == ["rope", "alibi"]
    step = record["modes"]["step"]
    assert step["low"] <= step["ratio"] <= step["high"]
    for words in ("training step", "ratio", "95%", step["verdict"], "norm=layer pos=alibi"):
        assert words in answer.out


@pytest.fixture
def no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


REFUSED = {
    "suite=gpus": "suite=gpus: should be 'speed', 'peers', 'scaling' or 'gpu'",
    "suite=gpu": "suite=gpu: checks a CUDA device, and torch can use none here; run it on a machine that has one, or use suite=speed",
    "suite=gpu norm=rms": "norm=rms: suite=gpu checks every option at sizes of its own; leave it out",
    "suite=gpu rounds=9": "rounds=9: changes nothing in suite=gpu",
    "suite=peers norm=layer": "norm=layer: suite=peers measures the model that all peers have",
    "suite=peers": "suite=peers: none of transformers, x-transformers, litgpt is installed; install one",
    "suite=scaling --vs norm=layer": "--vs norm=layer: suite=scaling knows no second architecture; leave one of the two out",
    "suite=scaling size.d_model=6 size.n_heads=2 pos=none": "suite=scaling: size.d_model=3: size.n_heads=2: does not divide size.d_model=3",
    "norm=rms --vs norm=rms": "--vs norm=rms: changes nothing that is timed: both arms take the same steps",
    "--vs seed=4": "--vs seed=4: changes nothing that is timed",
    "--vs norm=lair": "--vs norm=lair: norm=lair: no such option",
    "--vs layer": "--vs layer: layer: an override is written name=value",
    "--vs mixer=gqa size.n_kv_heads=3": "size.n_kv_heads=3: ",
    "--vs size.n_heads=7": "--vs size.n_heads=7: size.n_heads=7: does not divide size.d_model=128",
    "--vs": "--vs: a value is missing; write --vs OVERRIDES",
    "--vs norm=layer --vs pos=alibi": "--vs norm=layer --vs pos=alibi: one at a time",
    "norm=layer,rms": "norm=layer,rms: describes 2 architectures, and bench takes one",
    "norm=layer norm=rms": "norm=layer norm=rms: ",
    "nrom=layer": "nrom=layer: nothing is called nrom; did you mean norm?",
    "rounds=5": "rounds=5: ",
    "rounds=many": "rounds=many: ",
    "memory.batch=4": "memory.batch=4: bench does not use memory",
    "-m norm=layer": "--multirun: bench takes no such flag; it takes --vs, --config-dir",
    "output=": "output=: names no file or folder",
    "output=file/below": "output=file/below: nothing can be written there: ",
    "device=mps": "device=mps: ",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line(words, command, no_device, tmp_path, monkeypatch):
    monkeypatch.setattr("archlab.benchmark.peers.installed", lambda name: False)
    (tmp_path / "file").write_text("")
    answer = command("bench", *words.split())
    assert answer.status == 2 and answer.out == ""
    assert answer.err.startswith(f"archlab: {REFUSED[words]}"), answer.err
    assert answer.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is written"


def test_vs_belongs_to_bench(command):
    for verb_ in ("run", "show", "draw"):
        answer = command(verb_, "norm=rms", "--vs", "norm=layer")
        assert answer.status == 2 and answer.err.startswith("archlab: --vs: ")


def test_a_check_that_fails_is_status_1(command, monkeypatch):
    def checks(verdict):
        return lambda: iter([CheckResult("Environment", verdict, "a chip", "", 0.1)])

    for verdict, status in (("pass", 0), ("measured", 0), ("fail", 1), ("not run", 1)):
        monkeypatch.setattr(verb, "device_or_refusal", lambda: torch.device("cpu"))
        monkeypatch.setattr(verb, "gpu", checks(verdict))
        answer = command("bench", "suite=gpu")
        assert answer.status == status
        assert "Environment" in answer.out and ("1 of 1 failed: Environment" in answer.out) == bool(status)


# ---------------------------------------------------------------- from Python

KINDS = ("norm", "mixer", "ffn", "head", "loss", "gradients", "optimizer", "rest")
MACHINE = {"processor": "Chip", "cores": 2, "threads": 2, "instructions": "AVX2", "device": "cpu", "torch": "2.0"}
RATIO = {"ratio": 1.5, "low": 1.25, "high": 1.75, "rounds": 9, "verdict": "faster"}
RATE = {"tokens": 8, "seconds": [1.0], "tokens_per_second": 8.0, "low": 7.0, "high": 9.0, "of_peak": 0.5}
MODEL = {
    "choices": {"norm": "rms"}, "n_params": 1000, "flops_per_token": 2000.0, "seq_len": 4, "batch_size": 2, "dtype": "float32",
    "machine": MACHINE, "memory": {"bytes": None, "how": "not counted on mps"}, "git": {"commit": "a" * 40, "changed": True},
}  # fmt: skip
SLOWER = {**RATIO, "ratio": 0.5, "low": 0.4, "high": 0.6, "verdict": "slower"}
RECORDS = {
    "speed": {
        **MODEL, "peak_flops": 1e9, "modes": {"step": RATE}, "not_decoded": "mask=full: no", "rounds": 9,
        "kinds": {"seconds": dict.fromkeys(KINDS, 0.5), "shares": dict.fromkeys(KINDS, 0.125), "step": 4.0, "times_plain": 1.04},
    },
    "versus": {"names": ["a", "b"], "arms": [MODEL, MODEL], "machine": MACHINE, "modes": {"step": {**RATIO, "arms": [RATE, RATE]}}},
    "peers": {
        **MODEL, "failed": {"litgpt": "ImportError: x"}, "not_installed": ["x-transformers"], "peers": {
            "archlab": {**RATE, "version": "1", "n_params": 5}, "transformers": {**RATE, "version": "2", "n_params": 6, "archlab": SLOWER}
        },
    },
    "scaling": {
        **MODEL, "rounds": 7, "swept": {"d_model": {
            "values": [1, 2], "seconds": [0.1, 0.4], "spread": [0.01, 0.01], "bytes": [10, 20],
            "time": {"exponent": 2.0, "error": None}, "memory": {"exponent": 1.0, "error": 0.25},
        }, "K": {
            "values": [1], "seconds": [0.25], "spread": [0.01], "bytes": [10], "time": None, "memory": None,
            "alone": 0.125, "times_alone": {"ratio": 0.5, "low": 0.4, "high": 0.6},
        }}, "not_packed": "norm=batch keeps",
    },
    "gpu": {"machine": MACHINE, "checks": [{"name": "Agree", "verdict": "fail", "figure": "3", "reach": "2", "seconds": 1.0, "data": None}]},
}  # fmt: skip
SAYS = {
    "speed": (
        "0.50",
        "500 ms",
        "12.5%",
        "+4%",
        "Not decoded: mask=full: no",
        "not counted on mps",
        "changed since",
    ),
    "versus": ("a  beside  b", "1.500", "1.250 to 1.750", "faster by 1.50x"),
    "peers": (
        "transformers 2",
        "slower by 2.00x",
        "litgpt did not run: ImportError: x",
        "Not installed: x-transformers",
    ),
    "scaling": (
        "~ d_model^",
        "2.00",
        "1.00 ± 0.25",
        "100 ms",
        "~ K^",
        "by itself takes 125 ms",
        "0.50 times as fast",
        "not measured: norm=batch keeps",
    ),
    "gpu": ("Agree", "fail", "1 of 1 failed: Agree", "Chip, 2 cores, 2 threads"),
}


@pytest.mark.parametrize("suite", RECORDS)
def test_every_suite_is_shown_drawn_and_tabulated(suite, tmp_path):
    found = verb.Benchmark({"suite": suite, **RECORDS[suite]})
    for words in SAYS[suite]:
        assert words in str(found), str(found)
    assert "<pre" in found._repr_html_() and bool(found) == (suite != "gpu")
    assert isinstance(found.plot(), Figure) and len(found.to_pandas()) >= 1
    assert {file.suffix for file in found.save(tmp_path / suite).iterdir()} == {".json", ".csv", ".txt", ".png"}


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    found = verb.Benchmark({"suite": "gpu", **RECORDS["gpu"]})

    def no_picture(record, written, folder):
        (folder / "bench.json").write_text("{}")
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(verb.report, "write_all", no_picture)
    with pytest.raises(UserError, match="output=.*here: nothing can be written there: Input/output error"):
        found.save(tmp_path / "here")
    assert list(tmp_path.iterdir()) == []


def test_from_python_output_is_no_override():
    with pytest.raises(UserError, match=r"output=here: a benchmark is no run; write it down by .save\(folder\)"):
        archlab.bench("size=nano", "output=here")
