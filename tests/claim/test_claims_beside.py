"""Claims as packs, what their looks read, what they are said to take, and a process that is lost."""

import operator
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from oracles import composed

from archlab.base.errors import UserError
from archlab.claim import course, jobs, pace
from archlab.claim.jobs import LookJob, PackJob, RunJob, check_pack, in_packs
from archlab.claim.store import looked_at
from archlab.records.checkpoint import newest
from archlab.records.directory import is_finished
from archlab.runs import beside, lab, packs
from archlab.runs.expected import seconds_of_a_step
from archlab.runs.workers import makespan

SMALL = (
    "size=nano", "size.d_model=24", "size.n_heads=3", "size.d_ff=40", "size.n_layers=1", "train.steps=3",
    "train.batch_size=2", "train.train_len=14", "eval.tokens=56", "eval.lengths=[1,2,3]", "probe.every=null",
)  # fmt: skip

IN_FLOAT32 = 1e-5
"""Of a loss: a pack adds in another order."""


def runs(root: Path, *words: str, rates: tuple[float, ...] = (1e-3, 1e-2)) -> list[RunJob]:
    return [
        RunJob(composed(*SMALL, *words, f"train.lr={rate}", f"seed={seed}"), root) for seed, rate in enumerate(rates)
    ]


def val_losses(members: list[RunJob]) -> list[float]:
    return [run.record["val_loss"] for run in members]


# ---------------------------------------------------------------- packs


def test_packed_a_claims_runs_are_what_they_are_alone_and_each_is_kept_by_itself(tmp_path):
    alone, packed = runs(tmp_path / "a"), runs(tmp_path / "b")
    (pack,) = in_packs(packed, 2)
    assert isinstance(pack, PackJob)
    done = [job for job, _ in jobs.work([pack], 1)]
    assert done == [pack] and jobs.seconds(pack) == pytest.approx(sum(map(jobs.seconds, packed)))
    assert [job for job, _ in jobs.work(alone, 1)] == alone
    assert val_losses(packed) == pytest.approx(val_losses(alone), rel=IN_FLOAT32)
    assert [run.record["pack"] for run in packed + alone] == [2, 2, None, None]
    assert [run.folder.name for run in packed] == [run.folder.name for run in alone]  # so either finds the other's
    for run in packed:
        assert len(list(run.folder.glob("*/summary.json"))) == 1 and run.begun == run.result.parent
    kept = val_losses(packed)
    pack.do()  # as another session that was made to wait for the locks
    assert val_losses(packed) == kept and all(len(list(run.folder.glob("*/summary.json"))) == 1 for run in packed)


def test_a_run_that_was_begun_is_resumed_and_not_packed(tmp_path):
    begun, *new = runs(tmp_path, rates=(1e-3, 1e-2, 1e-1))
    begun.folder.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "trained", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            begun.do()
    assert begun.begun is not None and begun.result is None
    assert in_packs([begun, *new], "auto") == [begun, *new]  # on a CPU nothing is packed unasked
    assert in_packs([begun, *new], 3) == [begun, PackJob(tuple(new))]
    begun.do()
    assert begun.result is not None and begun.result.parent == begun.begun


def test_a_pack_that_changes_nothing_is_refused_and_one_that_is_done_is_not(tmp_path):
    one, other = runs(tmp_path, rates=(1e-3,)), runs(tmp_path, "size.n_layers=2", rates=(1e-3,))
    with pytest.raises(UserError, match="pack=2: no two runs of these claims are of one program.*leave it out"):
        check_pack(one + other, 2)
    check_pack(runs(tmp_path), 2)
    assert in_packs([], 2) == []
    dropping = runs(tmp_path, "dropout=0.1")
    with pytest.raises(UserError, match="pack=2: dropout draws otherwise in a pack"):
        in_packs(dropping, 2)


def test_where_a_member_fails_the_others_of_its_pack_are_kept(tmp_path, monkeypatch):
    first, second = runs(tmp_path)
    written_down = lab.written_down

    def fails(work, *rest, **named):
        if work.cfg.seed == 0:
            raise UserError("the data of this member is damaged")
        return written_down(work, *rest, **named)

    monkeypatch.setattr(lab, "written_down", fails)
    with pytest.raises(UserError, match="the data of this member is damaged"):
        PackJob((first, second)).do()
    assert first.result is None and second.result is not None


def test_runs_that_are_not_packed_unasked_say_why(tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "on_a_gpu", lambda plans: True)
    dropping, plain = ([run.plan for run in runs(tmp_path, f"dropout={p}")] for p in (0.1, 0.0))
    why = "2 runs of one architecture are not trained as one pack: dropout draws otherwise in a pack than in a run of its own"
    assert packs.why_not(dropping + plain, "auto") == [why]
    assert packs.why_not(dropping[:1], "auto") == packs.why_not(dropping, "off") == []
    monkeypatch.undo()
    assert packs.why_not(dropping, "auto") == []  # nothing is, on a CPU


# ---------------------------------------------------------------- what is read


def test_a_look_is_at_the_lengths_its_measure_reads_and_its_numbers_stay(tmp_path):
    (run,) = runs(tmp_path, rates=(1e-2,))
    run.do()
    cfg = composed(*SMALL, "eval.tokens=84", "mask=window", "mask.window=5", "train.lr=1e-2")
    for measure, lengths in (("loss_last@3", [3]), ("late_ratio@2", [1, 2]), ("val_loss", [1]), ("loss@7", [1, 2, 3])):
        whole, some = LookJob(run, cfg), LookJob(run, looked_at(measure, cfg))
        assert list(some.cfg.eval.lengths) == lengths and list(cfg.eval.lengths) == [1, 2, 3]
        if measure != "loss@7":  # which no run has
            whole.do()
            some.do()
            # A window that a longer one begins with is computed within it, in float32.
            assert course.value_of(some, measure) == pytest.approx(course.value_of(whole, measure), rel=1e-6)
    unlike = composed(*SMALL, "eval.tokens=56")  # 42 are whole windows of each length, 56 of the first two
    assert list(looked_at("loss@2", unlike).eval.lengths) == [1, 2, 3]
    few = composed(*SMALL, "eval.tokens=20")  # fewer than a window of the longest, which then says how many are scored
    assert list(looked_at("loss@2", few).eval.lengths) == [1, 2, 3]


def test_a_look_sets_late_targets_against_the_model_as_it_was_trained(tmp_path):
    """Positions all but put together hurt at every length: set against themselves they would seem to hold."""
    (run,) = runs(tmp_path, "pos=rope", rates=(1e-2,))
    run.do()
    looks = [
        LookJob(run, composed(*SMALL, "train.lr=1e-2", "pos=rope", *words))
        for words in ([], ["pos.scaling=linear", "pos.factor=1e6"])
    ]
    for look in looks:
        look.do()
    unchanged, squeezed = ({at["eval_len"]: at for at in look.record["length"]} for look in looks)
    short = min(unchanged)
    assert (
        unchanged[short]["late_ratio"] == pytest.approx(1, rel=1e-6)
        and squeezed[short]["loss"] != unchanged[short]["loss"]
    )
    for length, at in squeezed.items():
        # The same late targets, and the same ones as they were trained below them, so losses are as ratios are.
        expected = unchanged[length]["late_ratio"] * at["loss_last"] / unchanged[length]["loss_last"]
        assert at["late_ratio"] == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------- what it takes


def test_jobs_on_workers_take_as_long_as_the_worker_that_is_done_last():
    assert makespan([20, 20, 20], 2) == 40  # and not 30
    assert makespan([3, 9, 4, 5], 2) == 12 and makespan([3, 9, 4, 5], 1) == 21 and makespan([], 3) == 0


def test_the_pace_is_that_of_each_kind_of_run_by_its_share(tmp_path, monkeypatch):
    small, large = runs(tmp_path), runs(tmp_path, "size.n_layers=4", "train.steps=9")
    slower = {1: 2.0, 4: 6.0}
    monkeypatch.setattr(pace, "a_step", lambda cfg: slower[cfg.size.n_layers] * seconds_of_a_step(cfg))
    of_small, of_large = (sum(map(jobs.seconds, both)) for both in (small, large))
    found = pace.measured([*small, PackJob(tuple(large))], 3.0)
    assert found.start == 3.0
    assert found.estimate([*small, *large], 1) == pytest.approx(3 + 2 * of_small + 6 * of_large)


def test_a_step_that_is_tried_is_a_whole_one(tmp_path):
    (run,) = runs(tmp_path, rates=(1e-2,))
    assert pace.measured([run], 0.0).factor > 0


def test_one_worker_is_tried_with_the_threads_that_it_will_run_with(tmp_path, monkeypatch):
    """Threads that someone took from it, as by OMP_NUM_THREADS, are not there when its runs are made."""
    (run,) = runs(tmp_path, rates=(1e-2,))
    seen = []
    monkeypatch.setattr(pace, "a_step", lambda cfg: seen.append(torch.get_num_threads()) or 1.0)
    pace.measured([run], 0.0)
    assert seen == [1]  # as tests/conftest.py has it, on however many cores


# ---------------------------------------------------------------- a process that is lost


@pytest.mark.slow
def test_a_job_whose_process_is_killed_is_lost_alone():
    todo = {number: partial(operator.add, number, 10) for number in range(5)}
    todo[1] = partial(signal.raise_signal, signal.SIGKILL)
    found, lost = {}, []
    ready = {0: lambda: 4 in found, 3: lambda: False}  # as a look at a run, and one at a run that failed
    for number, result, _ in beside.side_by_side(
        todo, 2, lambda number: f"job {number}", lambda number: ready.get(number, lambda: True)()
    ):
        try:
            found[number] = result()
        except UserError as error:
            lost.append(str(error))
    assert found == {0: 10, 2: 12, 4: 14}
    assert len(lost) == 1 and lost[0].startswith("job 1: its process was killed")


# ---------------------------------------------------------------- being stopped


@pytest.mark.slow
@pytest.mark.parametrize("how", ["workers=2 pack=off", "workers=1 pack=2"])  # two runs at a time, at any machine's pace
def test_claims_that_are_stopped_go_on_where_they_were(tmp_path, how):
    (tmp_path / "my" / "claim").mkdir(parents=True)
    small = [word for word in SMALL if "steps" not in word]
    part = {"says": "lower", "measure": "val_loss", "difference": ["a", "b"], "expect": "below", "by": 0.1}
    claim = {
        "sentence": "A is lower.", "source": "nobody", "common": [*small, "train.steps=400"], "parts": [part],
        "arms": {"a": ["train.lr=1e-3"], "b": ["train.lr=1e-2"]}, "quick": {"seeds": 6}, "full": "too long",
        "tune": "it is not asked about",
    }  # fmt: skip
    (tmp_path / "my" / "claim" / "mine.yaml").write_text(yaml.safe_dump(claim))
    words = ["claims", "mine", *how.split(), "runs=runs", "output=out", "--config-dir", "my"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "archlab", *words]
    begun, process = time.monotonic(), subprocess.Popen(command, cwd=tmp_path, env=environment)
    while len(list(tmp_path.glob("runs/*/*/metrics.jsonl"))) < 2 and time.monotonic() - begun < 200:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=200) == 128 + signal.SIGTERM
    stopped = sorted(file.parent for file in tmp_path.glob("runs/*/*/config.yaml"))
    assert len(stopped) == 2 and not any(map(is_finished, stopped))
    assert all(newest(run, []) is not None for run in stopped)
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert set(stopped) <= {file.parent for file in (tmp_path / "runs").glob("*/*/summary.json")}
    assert all(map(is_finished, stopped)) and (tmp_path / "out" / "mine" / "README.md").is_file()
