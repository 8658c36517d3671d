"""Sweeps side by side and packed: the same runs as one after the other, and each one's trouble its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import Session
from commands import archlab as archlab_command
from omegaconf import OmegaConf

import archlab
from archlab.base.errors import UserError
from archlab.config.compose import plans
from archlab.records.directory import being_written, is_finished
from archlab.runs import lab, packs, sweep
from archlab.runs.packs import packs_of
from archlab.runs.together import run_together
from archlab.verbs.run import Sweep

ROOT = Path(__file__).parents[2]
command = archlab_command  # the fixture

SMALL = (
    "size=nano", "size.d_model=24", "size.n_heads=3", "size.d_ff=40", "train.steps=9", "train.batch_size=3",
    "train.train_len=14", "eval.tokens=56", "eval.lengths=[1,2]", "probe.every=4",
)  # fmt: skip


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(swept: Sweep) -> list[float]:
    return [run.summary["val_loss"] for run in swept.runs]


def test_side_by_side_and_packed_a_sweep_is_what_it_is_one_after_the_other(tmp_path, one_thread):
    words = (*SMALL, "norm=rms,layer", "seed=0,1")
    by_turns = archlab.sweep(*words, f"output={tmp_path / 'a'}", workers=1)
    beside = archlab.sweep(*words, f"output={tmp_path / 'b'}", workers=2)
    packed = archlab.sweep(*words, f"output={tmp_path / 'c'}", pack=2)
    asked = [("rms", 0), ("rms", 1), ("layer", 0), ("layer", 1)]
    for swept in (by_turns, beside, packed):
        assert [(run.config["choices"]["norm"], run.config["seed"]) for run in swept.runs] == asked
        assert len(swept.comparison.to_pandas()) >= 1
    assert losses(beside) == losses(by_turns)  # one thread each, as here
    assert losses(packed) == pytest.approx(losses(by_turns), rel=1e-5)  # a pack adds in another order, in float32
    assert [run.summary["pack"] for run in by_turns.runs + packed.runs] == [None] * 4 + [2] * 4
    assert [run.summary["threads"] for run in beside.runs] == [max(1, (os.cpu_count() or 1) // 2)] * 4
    again = archlab.sweep(*words, f"output={tmp_path / 'c'}", pack=2)  # keeps what is there
    assert [run.directory for run in again.runs] == [run.directory for run in packed.runs]
    for run, twin in zip(packed.runs, by_turns.runs, strict=True):
        names = {file.name.partition(".out.")[0] for file in run.directory.iterdir()}
        assert names == {file.name.partition(".out.")[0] for file in twin.directory.iterdir()}
        assert [record.keys() for record in run.record.metrics] == [record.keys() for record in twin.record.metrics]


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_its_own_run_alone(tmp_path):
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "deadly.yaml").write_text("_target_: deadly.Deadly\n_partial_: true\n")
    (tmp_path / "deadly.py").write_text(
        "import os, signal\nfrom archlab.blocks.norm import RMSNorm\n\n\nclass Deadly(RMSNorm):\n"
        "    def forward(self, x):\n        if not x.is_meta:\n            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().forward(x)\n"
    )
    words = [*SMALL, "norm=rms,deadly,layer", "workers=2", "output=runs", "--config-dir", str(tmp_path)]
    done = archlab_in_a_process("-m", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr.startswith("archlab: ") and "norm=deadly" in done.stderr and "its process was killed" in done.stderr
    )
    finished = [file.parent for file in (tmp_path / "runs").glob("*/summary.json")]
    assert {OmegaConf.load(run / "config.yaml").choices.norm for run in finished} == {"rms", "layer"}


def archlab_in_a_process(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(cwd))), "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "archlab", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_sweep_side_by_side_that_is_stopped_is_finished_by_resume(tmp_path, number, status):
    """Also where the sweep itself is killed: its workers save where they are, begin nothing more, and end."""
    words = [
        *(word for word in SMALL if "steps" not in word),
        "train.steps=4000",
        "seed=0,1,2",
        "workers=2",
        "output=runs",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "archlab", "-m", *words], cwd=tmp_path, env=environment)
    begun = time.monotonic()
    while len(list((tmp_path / "runs").glob("*/metrics.jsonl"))) < 2 and time.monotonic() - begun < 120:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    assert process.wait(timeout=120) == status
    stopped = sorted(file.parent for file in (tmp_path / "runs").glob("*/config.yaml"))
    while any(being_written(run) for run in stopped) and time.monotonic() - begun < 240:
        time.sleep(0.1)
    assert sorted(file.parent for file in (tmp_path / "runs").glob("*/config.yaml")) == stopped
    assert len(stopped) == 2 and not any(is_finished(run) for run in stopped)
    for run in stopped:
        assert json.loads((run / "summary.json").read_text())["status"] == "stopped"


# ---------------------------------------------------------------- which runs make a pack


def test_runs_of_one_program_make_a_pack_whatever_else_they_differ_in():
    made = plans(*SMALL, "pos=rope,alibi", "seed=0,1", "train.lr=1e-3,1e-2")
    assert packs_of(made, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert packs_of(made, 3) == [[0, 1, 2], [3], [4, 5, 6], [7]]
    assert packs_of(made, "off") == [[number] for number in range(8)]


def test_runs_whose_positions_are_drawn_are_in_no_pack_with_those_at_the_schemes_own():
    drawn = "random_positions=null,64,32"
    assert packs_of(plans(*SMALL, drawn, "eval.lengths=[1]"), 3) == [[0], [1, 2]]


def test_on_a_cpu_nothing_is_packed_without_being_asked_for():
    assert packs_of(plans(*SMALL, "seed=0,1"), "auto") == [[0], [1]]


def test_on_a_gpu_as_many_are_packed_as_memory_holds(monkeypatch):
    made = plans(*SMALL, "seed=0,1,2,3,4")
    monkeypatch.setattr(packs, "on_a_gpu", lambda plans: True)
    monkeypatch.setattr(packs, "free_bytes", lambda plan: 2.6 * packs.bytes_each(plan) / packs.SHARE)
    assert packs_of(made, "auto") == [[0, 1], [2, 3], [4]]
    assert packs_of([*plans(*SMALL, "seed=0,1", "dropout=0.1")], "auto") == [[0], [1]]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["dropout=0.1"],
            "dropout draws otherwise in a pack than in a run of its own; use pack=off, or leave that out",
        ),
        (["ffn=glm", "ffn.dropout=0.2"], "dropout draws otherwise"),
        (["train.checkpoint=true"], "train.checkpoint=true computes layers again"),
        (["norm=batch", "allow_leak=true"], "norm=batch keeps running statistics"),
    ],
)
def test_what_cannot_be_packed_is_refused_in_one_line(words, why):
    with pytest.raises(UserError, match=f"pack=2: {why}"):
        packs_of(plans(*SMALL, *words, "seed=0,1"), 2)


def test_a_pack_beyond_memory_is_refused_with_the_size_that_fits(monkeypatch):
    made = plans(*SMALL, "seed=0,1,2,3,4,5")
    monkeypatch.setattr(packs, "free_bytes", lambda plan: 4.2 * packs.bytes_each(plan))
    with pytest.raises(
        UserError, match=r"pack=6: needs about .* GB, and .* GB are free; use at most pack=3, or pack=auto"
    ):
        packs_of(made, 6)


def test_a_pack_of_what_shares_no_program_is_refused():
    with pytest.raises(
        UserError, match="pack=2: no two runs of this sweep are of one program, so it would change nothing"
    ):
        archlab.sweep(*SMALL, "pos=rope,alibi", pack=2)


def test_a_pack_that_cannot_be_trained_leaves_the_others_of_the_sweep(tmp_path):
    (tmp_path / "short.txt").write_text("a few words are too few")
    (tmp_path / "long.txt").write_text("and so are these, until there are many of them. " * 200)
    words = (
        *SMALL,
        "data=file",
        f"data.path={tmp_path}/short.txt,{tmp_path}/long.txt",
        "seed=0,1",
        "size.vocab_size=256",
    )
    jobs = [sweep.Job(plan) for plan in plans(*words, f"output={tmp_path / 'runs'}")]
    short, *_, long = ended = sorted(sweep.carry_out(jobs, pack=2), key=lambda one: one.number)
    with pytest.raises(UserError, match="holds out"):
        short.result()
    assert len(ended) == 4 and json.loads((long.result() / "summary.json").read_text())["status"] == "completed"


def test_a_run_that_cannot_be_begun_leaves_the_others_a_pack(tmp_path, monkeypatch):
    prepared = lab.prepared

    def without_the_second(cfg, *given, **options):
        if cfg.seed == 1:
            raise UserError("seed=1: is left out")
        return prepared(cfg, *given, **options)

    monkeypatch.setattr(lab, "prepared", without_the_second)
    first, second, third = run_together(plans(*SMALL, "seed=0,1,2", f"output={tmp_path}"))
    assert [json.loads((one() / "summary.json").read_text())["pack"] for one in (first, third)] == [2, 2]
    with pytest.raises(UserError, match="seed=1: is left out"):
        second()


# ---------------------------------------------------------------- the words


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["workers=2"], "workers=2: a single run has no others beside it; use it with -m, or leave it out"),
        (["pack=4"], "pack=4: a single run has no others beside it; use it with -m, or leave it out"),
        (["-m", "seed=0,1", "workers=0"], "workers=0: should be greater than or equal to 1"),
        (["-m", "seed=0,1", "pack=some"], "pack=some: "),
        (["-m", "seed=0,1", "pack=0"], "pack=0: should be auto, off, or how many runs"),
        (["-m", "seed=0,1", "plots=some"], "plots=some: should be true or false; plots=true draws every run's plots"),
        (["show", "pack=2"], "pack=2: only the verb run takes it, for its sweeps; leave it out"),
        (
            ["-m", "seed=0,1", "hydra/launcher=basic", "workers=2"],
            "workers=2: Hydra's launcher decides how jobs are run",
        ),
    ],
)
def test_a_word_that_changes_nothing_is_refused(command: Session, words, says):
    answer = command(*words)
    assert (answer.status, answer.err.count("\n")) == (2, 1) and answer.err.startswith(f"archlab: {says}")
    assert command.jobs == []


def test_long_sweeps_go_side_by_side_and_short_ones_do_not(monkeypatch):
    monkeypatch.setattr(sweep, "default_workers", lambda: 2)
    few, many = ([sweep.Job(plan) for plan in plans(*words)] for words in ((*SMALL, "seed=0,1"), ("seed=0,1,2,3",)))
    assert (sweep.worthwhile_workers(few), sweep.worthwhile_workers(many)) == (1, 2)
