"""A whole run: what it prints, what it writes, and how it ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from oracles import built
from safetensors.torch import load_file

import archlab
from archlab.base.errors import UserError
from archlab.cli.main import main
from archlab.config.compose import in_turn
from archlab.records.directory import new_directory
from archlab.records.logbook import slug
from archlab.runs import lab

NANO = (
    "size=nano",
    "train.steps=6",
    "train.batch_size=4",
    "train.train_len=16",
    "eval.tokens=128",
    "eval.lengths=[1,2]",
    "probe.every=3",
)
KEYS = {
    "status", "choices", "n_params", "flops_per_token", "train_loss", "val_loss", "length", "stability", "tokens_per_second",
    "wall_seconds", "first_step_seconds", "seed", "device", "dtype", "versions", "git", "corpus_sha256",
}  # fmt: skip


def run(tmp_path, *overrides, plots=False):
    """Its plots, which take longer than the rest, are drawn where a test looks at them."""
    words = [*NANO, *overrides, f"output={tmp_path}/runs"]
    directory = lab.run(in_turn(*words), words, plots=plots)
    return directory, json.loads((directory / "summary.json").read_text())


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    return run(tmp_path_factory.mktemp("default"), plots=True)


def test_a_run_writes_everything_it_promises(default):
    directory, summary = default
    names = {file.name for file in directory.iterdir()}
    assert {
        "config.yaml",
        "overrides.yaml",
        "metrics.jsonl",
        "summary.json",
        "positions.json",
        "model.safetensors",
    } <= names
    assert {"loss.png", "layers.png", "positions.png", "lengths.png"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert set(summary) >= KEYS


def test_the_summary_says_what_was_run(default):
    _, summary = default
    assert summary["status"] == "completed" and summary["leaking"] is False
    assert summary["choices"] == {
        "norm": "rms", "residual": "pre", "ffn": "swiglu", "pos": "rope", "mask": "causal", "mixer": "mha", "head": "linear",
        "init": "xavier", "size": "nano", "data": "text",
        "optimizer": "adamw", "schedule": "cosine", "average": "none",
    }  # fmt: skip
    assert (summary["seed"], summary["device"], summary["dtype"]) == (
        0,
        "cpu" if not torch.cuda.is_available() else "cuda",
        "float32",
    )
    assert [record["eval_len"] for record in summary["length"]] == [16, 32]
    assert all(set(record) >= {"eval_len", "loss", "loss_last", "protocol"} for record in summary["length"])
    assert summary["val_loss"] == pytest.approx(summary["length"][0]["loss"])
    assert summary["versions"]["torch"] == torch.__version__
    assert 2 < summary["train_loss"] < 7 and len(summary["corpus_sha256"]) == 64
    assert 0 < summary["first_step_seconds"] <= summary["wall_seconds"]


def test_metrics_are_one_json_object_a_logged_step(default):
    lines = [json.loads(line) for line in (default[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 6]
    assert all(len(line["layers"]) == 2 for line in lines)


def test_the_configuration_is_resolved_and_the_overrides_as_asked(default):
    config = yaml.safe_load((default[0] / "config.yaml").read_text())
    assert (config["size"]["d_ff"], config["size"]["n_kv_heads"], config["size"]["head_dim"]) == (176, 4, 16)
    assert config["train"]["steps"] == 6
    assert yaml.safe_load((default[0] / "overrides.yaml").read_text())[:2] == ["size=nano", "train.steps=6"]


def test_the_saved_weights_are_the_trained_ones(default):
    weights = load_file(default[0] / "model.safetensors")
    fresh = built(*NANO)
    assert set(weights) == set(fresh.state_dict())
    assert not torch.equal(weights["head.weight"], fresh.head.weight)
    fresh.load_state_dict(weights)


def test_tensorboard_reads_the_loss(default):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(default[0])).Reload()
    lines = [json.loads(line) for line in (default[0] / "metrics.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([line["loss"] for line in lines])


def test_the_last_line_of_standard_output_is_the_directory(tmp_path, capsys):
    main([*(word for word in NANO if not word.startswith("train.steps")), f"output={tmp_path}/runs", "train.steps=2"])
    printed = capsys.readouterr().out.strip().splitlines()
    assert Path(printed[-1]).is_dir() and Path(printed[-1]).parent == tmp_path / "runs"
    assert any("validation loss" in line for line in printed)


def test_a_run_that_diverges_is_a_result(tmp_path, capsys):
    directory, summary = run(tmp_path, "train.lr=1e30", "train.clip=null", "norm=none", "train.warmup=0", plots=True)
    assert summary["status"] == "diverged"
    first = summary["stability"]["first_nonfinite"]
    assert first["step"] == summary["steps"] and first["where"] and first["quantity"]
    assert summary["val_loss"] is None and summary["length_verdict"]["verdict"] == "undecided"
    assert json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])["step"] == first["step"]
    assert (directory / "loss.png").exists() and (directory / "model.safetensors").exists()
    assert "Diverged" in capsys.readouterr().out


def test_a_run_the_user_stops_is_written_down(tmp_path, monkeypatch):
    def interrupt(self, step, *rest):
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("archlab.report.progress.TrainingProgress.advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    (written,) = (tmp_path / "runs").glob("*/summary.json")
    summary = json.loads(written.read_text())
    assert (summary["status"], summary["steps"], summary["length"]) == ("stopped", 4, [])


def test_a_leaking_run_says_so_everywhere(tmp_path, capsys):
    directory, summary = run(tmp_path, "norm=sequence", "allow_leak=true")
    assert summary["leaking"] is True
    assert "leak" in capsys.readouterr().out.lower()
    assert yaml.safe_load((directory / "config.yaml").read_text())["allow_leak"] is True


def test_a_task_is_scored_by_exact_match(tmp_path):
    _, summary = run(tmp_path, "data=copy", "train.train_len=32", "eval.tokens=256")
    assert all(0 <= record["exact_match"] <= record["token_accuracy"] <= 1 for record in summary["length"])


def test_sliding_is_named_in_the_output(tmp_path):
    _, summary = run(tmp_path, "eval.protocol=sliding")
    assert {record["protocol"] for record in summary["length"]} == {"sliding"}


def test_sliding_windows_and_a_prefix_are_refused_before_training():
    with pytest.raises(UserError, match="eval.protocol=sliding: prefix="):
        archlab.compose("eval.protocol=sliding", "mask=prefix")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("eval.lengths=[2,1]", r"use \[1,2\]"),
        ("eval.lengths=[1,1,2]", r"use \[1,2\]"),
        ("norm.eps=1e400", "norm.eps=1e400: should be a finite number"),
        ("seed=9223372036854775808", "seed=9223372036854775808: should be less than"),
    ],
)
def test_what_would_break_after_training_is_refused_before(override, says):
    with pytest.raises(UserError, match=says):
        archlab.compose(override)


def test_a_full_mask_over_varied_problems_is_refused():
    with pytest.raises(UserError, match="data.varied=true: mask=full"):
        archlab.compose("mask=full", "data=copy")
    archlab.compose("mask=full", "data=copy", "data.varied=false")


def test_chinchilla_trains_on_twenty_tokens_a_parameter():
    cfg = archlab.compose("size=nano", "budget=chinchilla")
    n_params = sum(p.numel() for p in archlab.build(cfg).parameters())
    assert (cfg.train.steps - 1) * 16 * 128 < 20 * n_params <= cfg.train.steps * 16 * 128
    assert archlab.compose("train.tokens=5000").train.steps == 3  # 2048 tokens a step


def test_the_same_command_gives_the_same_numbers(tmp_path):
    first, second = (run(tmp_path / name, "dropout=0.1")[1] for name in "ab")
    assert first["train_loss"] == second["train_loss"] and first["length"] == second["length"]


def test_runs_of_the_same_second_have_their_own_directories(tmp_path):
    assert len({new_directory(tmp_path, "20260101-000000-norm=rms") for _ in range(3)}) == 3


def test_a_file_with_too_little_to_hold_out_is_refused_before_training(tmp_path):
    (tmp_path / "short.txt").write_text("a few words, and of them too few are held out " * 3)
    with pytest.raises(UserError, match="a length of 16: data=file holds out 13 tokens"):  # a tenth of 138
        run(tmp_path, "data=file", f"data.path={tmp_path}/short.txt")
    assert not (tmp_path / "runs").exists()


def test_a_place_where_nothing_can_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="output=.*runs: no run can be written there: "):
        run(tmp_path)


@pytest.mark.parametrize(
    ("words", "name"),
    [([], "default"), (["norm=rms", "data.path=/a b"], "norm=rms_data.path=-a-b"), (["x" * 200], "x" * 80)],
)
def test_slugs_are_file_names(words, name):
    assert slug(words) == name


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("data=file", "data.path=/nowhere/at/all"), "/nowhere/at/all"),
        (("train.train_len=9000000",), "train.train_len=9000000"),
        (("size.vocab_size=100",), "size.vocab_size=100"),
    ],
)
def test_what_the_data_cannot_serve_is_refused_before_anything_is_written(tmp_path, overrides, says):
    with pytest.raises(UserError, match=says):
        run(tmp_path, *overrides)
    assert not (tmp_path / "runs").exists()


def test_show_trains_nothing_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    print(archlab.show("norm=layer", "mixer=gqa"))
    printed = capsys.readouterr().out
    assert "layer" in printed and "parameters" in printed and "GroupedQuery" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_bfloat16_run_on_the_cpu(tmp_path):
    _, summary = run(tmp_path, "precision=bf16", "pos=alibi")
    assert summary["status"] == "completed" and summary["dtype"] == "bfloat16"


@pytest.mark.slow
def test_the_default_run_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "archlab", "+norm=rms", "+pos=alibi", f"output={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    summary = json.loads((Path(done.stdout.strip().splitlines()[-1]) / "summary.json").read_text())
    assert summary["val_loss"] < 2.2 and summary["length_verdict"]["verdict"] in ("holds", "improves")


def test_initial_weights_and_what_is_trained_on_have_seeds_of_their_own(tmp_path):
    """Of torch and the data themselves: the weights are those of `seed`, the batches those of `data_seed`."""
    from archlab.runs.assembled import training_seed

    cfgs = [in_turn(*NANO, *words) for words in (["seed=5"], ["seed=5", "data_seed=3"], ["seed=3"])]
    works = [lab.prepared(cfg, 0.0, shown=False) for cfg in cfgs]
    first = [work.decoder.layers[0].mixer.q_proj.weight for work in works]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    batch = [work.source.train(training_seed(work.cfg), 1, 4, 16).tokens for work in works]
    assert torch.equal(batch[1], batch[2]) and not torch.equal(batch[0], batch[1])


def test_a_run_at_another_data_seed_is_another_run_and_null_is_the_seed(default, tmp_path):
    null, same, other = (
        run(tmp_path, *words)[1]["val_loss"] for words in (["data_seed=null"], ["data_seed=0"], ["data_seed=1"])
    )
    assert default[1]["val_loss"] == null == same != other
    assert run(tmp_path, "seed=1", "data_seed=1")[1]["val_loss"] == run(tmp_path, "seed=1")[1]["val_loss"]


def test_runs_of_another_data_seed_are_an_arm_of_their_own_and_overwrite_nothing(tmp_path):
    from archlab.comparison.arms import read_all, sort_into_arms

    for words in ([], ["data_seed=7"]):
        run(tmp_path, *words)
    older = run(tmp_path, "seed=1")[0]
    text = (older / "config.yaml").read_text()
    (older / "config.yaml").write_text(text.replace("data_seed: null\n", ""))  # as runs from before there was one
    arms, notes = sort_into_arms(read_all([f"{tmp_path}/runs/*"])[0])
    assert [(arm.label, arm.seeds) for arm in arms] == [("data_seed=null", [0, 1]), ("data_seed=7", [0])] and not notes
    assert lab.saved_configuration(older).data_seed is None
