"""Runs that are killed, stopped, starved of room or damaged: finished, they are the run that nothing happened to."""

import contextlib
import io
import itertools
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killed import TIMES, WORDS, all_of, at_call, die, in_a_child, the_run
from oracles import built, composed
from safetensors import SafetensorError
from training import CPU, SMALL, Counting, settings

import archlab
from archlab.base import files
from archlab.base.errors import NoRoom, UserError
from archlab.base.signals import Stop, Stopped
from archlab.cli import main as cli
from archlab.evaluate import length
from archlab.records import checkpoint, logbook
from archlab.records.directory import being_written, checkpoints, hold, is_finished, same_run, unfinished
from archlab.records.reader import read_run
from archlab.report import plots
from archlab.runs import lab
from archlab.runs.named_model import named
from archlab.train import observers
from archlab.train.loop import train
from archlab.train.runtime import Runtime

ROOT = Path(__file__).parents[2]
WILD = (
    "size.n_layers=2",
    "train.lr=1.5",
    "train.clip=null",
    "norm=none",
    "train.warmup=12",
    "train.save_every=1",
    "train.log_every=4",
    "probe.every=2",
)
"""Breaks down after a few steps."""


def run(folder: Path, *words: str, plots: bool = False) -> Path:
    asked = [*WORDS, *words, f"output={folder}"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return lab.run(configured(folder, *words), asked, plots=plots)


def configured(folder: Path, *words: str):
    cfg = composed(*WORDS, *words)
    cfg.output = str(folder)
    return cfg


def resume(directory: Path) -> Path:
    with contextlib.redirect_stdout(io.StringIO()):
        return lab.resume(directory, plots=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing happened to; who changes it has a copy."""
    return run(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / finished.name)


@pytest.fixture(scope="module")
def whole(finished):
    return all_of(finished)


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    return all_of(run(tmp_path_factory.mktemp("wild"), *WILD))


def half_a_line(descriptor, content, place):
    os.lseek(descriptor, place, os.SEEK_SET)
    os.write(descriptor, content[: len(content) // 2])
    die()


def half_a_file(tensors, part, metadata=None):
    Path(part).write_bytes(b"\x00" * 1000)
    die()


MOMENTS = {
    "before anything is logged": lambda patch: patch(files.Lines, "add", at_call(1, files.Lines.add)),
    "before the first checkpoint": lambda patch: patch(files.Lines, "add", at_call(4, files.Lines.add)),
    "between two steps": lambda patch: patch(observers.Checkpoints, "due", at_call(13, observers.Checkpoints.due)),
    "while a line is written": lambda patch: patch(os, "pwrite", at_call(11, os.pwrite, half_a_line)),
    "while a checkpoint is written": lambda patch: patch(checkpoint, "save_file", at_call(3, checkpoint.save_file, half_a_file)),
    "before a checkpoint has its name": lambda patch: patch(checkpoint, "digest", at_call(3, checkpoint.digest)),
    "before an old checkpoint goes": lambda patch: patch(checkpoint, "checkpoints", at_call(4, checkpoint.checkpoints)),
    "while validating": lambda patch: patch(lab, "held_out", at_call(2, lab.held_out)),
    "between two lengths": lambda patch: patch(length, "held_out", at_call(2, length.held_out)),
    "while evaluating by length": lambda patch: patch(lab, "evaluate", at_call(1, lab.evaluate)),
    "while plotting": lambda patch: patch(plots, "_save", at_call(2, plots._save)),
    "while the weights are written": lambda patch: patch(logbook, "save_model", at_call(1, logbook.save_model, lambda model, part: half_a_file(None, part))),
    "before the summary": lambda patch: patch(logbook, "write_text", at_call(3, logbook.write_text)),
    "after the summary": lambda patch: patch(checkpoint, "clear", at_call(1, checkpoint.clear)),
}  # fmt: skip


BESIDE_OTHERS = {  # moments near one of the others; and the twenty at random below are slow too
    "before the first checkpoint", "before a checkpoint has its name", "before an old checkpoint goes", "while validating",
    "between two lengths", "before the summary",
}  # fmt: skip


@pytest.mark.parametrize(
    "moment", [pytest.param(moment, marks=[pytest.mark.slow] * (moment in BESIDE_OTHERS)) for moment in MOMENTS]
)
def test_a_run_that_is_killed_is_finished_as_if_it_never_was(moment, tmp_path, monkeypatch, whole):
    def killed():
        MOMENTS[moment](monkeypatch.setattr)
        run(tmp_path, plots=moment == "while plotting")

    assert in_a_child(killed) == -signal.SIGKILL
    directory = the_run(tmp_path)
    assert not is_finished(directory) and not being_written(directory)
    assert all_of(resume(directory)) == whole


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path, whole):
    """Anywhere from the first file to the last plot; a run that was not yet there has left nothing to resume."""
    since, draws, resumed = time.monotonic(), random.Random(0), 0
    assert in_a_child(lambda: run(tmp_path / "timed", plots=True)) == 0
    lasts = time.monotonic() - since
    for kill in range(20):
        folder = tmp_path / str(kill)
        child = os.fork()
        if child == 0:
            run(folder, plots=True)
            os._exit(0)
        time.sleep(draws.uniform(0, lasts))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if folder.exists() and any((place / "config.yaml").exists() for place in folder.iterdir()):
            resumed += not is_finished(the_run(folder))
            assert all_of(resume(the_run(folder))) == whole, f"kill {kill}"
    assert resumed >= 10


@pytest.mark.parametrize("step", [2, 3])
def test_a_run_that_breaks_down_does_so_at_the_same_step_with_the_same_autopsy(step, tmp_path, monkeypatch, wild):
    assert (
        wild["summary"]["status"] == "diverged"
        and wild["summary"]["steps"] > 3
        and b'"recorded"' in wild["autopsy.json"]
    )

    def killed():
        monkeypatch.setattr(checkpoint, "save_file", at_call(step, checkpoint.save_file))
        run(tmp_path, *WILD)

    assert in_a_child(killed) == -signal.SIGKILL
    assert all_of(resume(the_run(tmp_path))) == wild


def test_a_run_may_be_killed_again_and_again(tmp_path, monkeypatch, whole):
    def killed(resumed):
        monkeypatch.setattr(files.Lines, "add", at_call(11, files.Lines.add))
        resume(the_run(tmp_path)) if resumed else run(tmp_path)

    ends = [in_a_child(lambda: killed(False))]
    while ends[-1] == -signal.SIGKILL and len(ends) < 20:
        ends.append(in_a_child(lambda: killed(True)))
    assert len(ends) > 3 and ends[-1] == 0
    assert all_of(the_run(tmp_path)) == whole


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
DURING = [("training", number) for number in SIGNALS] + [
    ("evaluation", number) if number is signal.SIGTERM else pytest.param("evaluation", number, marks=pytest.mark.slow)
    for number in SIGNALS
]
"""Every signal while training; in the evaluation, where all of them are heard by the same function, one of them."""


@pytest.mark.parametrize(("during", "number"), DURING)
def test_a_run_that_is_told_to_stop_writes_itself_down_and_can_go_on(during, number, tmp_path, monkeypatch, whole):
    def stopped():
        tell = lambda *args, **options: os.kill(os.getpid(), number)  # noqa: E731
        if during == "training":
            monkeypatch.setattr(observers.Checkpoints, "due", at_call(11, observers.Checkpoints.due, tell))
        else:
            monkeypatch.setattr(lab, "evaluate", at_call(1, lab.evaluate, tell))
        run(tmp_path)

    assert in_a_child(stopped) == SIGNALS[number]
    directory = the_run(tmp_path)
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["length"]) == (
        "stopped",
        10 if during == "training" else 24,
        [],
    )
    assert (directory / "model.safetensors").exists() and checkpoints(directory)
    assert all_of(resume(directory)) == whole


def test_a_second_signal_ends_at_once(tmp_path, monkeypatch):
    def twice(*args, **options):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    def stopped():
        monkeypatch.setattr(observers.Checkpoints, "due", at_call(11, observers.Checkpoints.due, twice))
        run(tmp_path)

    assert in_a_child(stopped) == 143
    assert unfinished(the_run(tmp_path)).endswith(f"at step 9 of 24; archlab resume {the_run(tmp_path)} finishes it")


def test_a_stop_is_heard_once_and_raises_where_it_may():
    stop = Stop()
    stop.hear(signal.SIGTERM, None)
    with pytest.raises(Stopped) as raised, stop.raising():
        raise AssertionError("nothing is begun by who was asked to stop")
    assert raised.value.status == 143


# ---------------------------------------------------------------- room, locks and damage


@pytest.mark.parametrize(
    "room", [pytest.param(3_000, marks=pytest.mark.slow), 60_000, pytest.param(200_000, marks=pytest.mark.slow)]
)
def test_a_full_disk_ends_a_run_that_goes_on_once_there_is_room(room, tmp_path, whole):
    """A limit on the size of a file is answered as a full disk is: the lines, the weights or a checkpoint don't fit."""

    def starved():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        run(tmp_path)

    assert in_a_child(starved) == 1
    directory = the_run(tmp_path)
    assert not [file for file in directory.iterdir() if ".part" in file.name]
    assert (directory / "metrics.jsonl").read_bytes()[-1:] in (b"\n", b"")
    assert all_of(resume(directory)) == whole


def test_where_not_even_the_configuration_fits_nothing_is_left(tmp_path):
    def starved():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        run(tmp_path)

    assert in_a_child(starved) == 1
    assert list(tmp_path.iterdir()) == []


def rights(directory):
    raise OSError(13, "Permission denied", str(directory / "events.out"))


def rights_in_rust(directory):
    raise SafetensorError("I/O error: Permission denied (os error 13)")


def read_only(directory):
    raise OSError(30, "Read-only file system", str(directory / "checkpoint.safetensors"))


def moved(directory):
    directory.rename(directory.with_name("moved"))
    raise FileNotFoundError(2, "No such file or directory", str(directory / "checkpoint.safetensors"))


def full_without_a_name(directory):
    raise OSError(28, "No space left on device")


REFUSED = {
    rights: (UserError, r"events.out: cannot be written or read: permission denied; .* archlab resume \S+ finishes the run"),
    rights_in_rust: (UserError, r"^/\S+: cannot be written or read: permission denied; .* archlab resume \S+ finishes"),
    read_only: (UserError, r"cannot be written or read: read-only file system; .* archlab resume \S+ finishes the run"),
    moved: (UserError, r"was moved or deleted while it was being written; archlab resume finishes it where it is now"),
    full_without_a_name: (NoRoom, r"^/\S+: cannot be written: no space left on device; make room, and archlab resume"),
}  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's, of the run that moved
@pytest.mark.parametrize("during", ["a checkpoint", "the beginning"])
@pytest.mark.parametrize("refuse", REFUSED)
def test_what_the_disk_refuses_a_run_is_one_line_that_names_it(refuse, during, tmp_path, monkeypatch, whole):
    """Faults found: all but a full disk were tracebacks, and one that was full from the beginning was of "a file"."""
    kind, says = REFUSED[refuse]
    with monkeypatch.context() as patched:
        if during == "a checkpoint":
            patched.setattr(checkpoint, "save_file", lambda tensors, part, metadata: refuse(part.parent))
        else:
            patched.setattr(logbook, "open_loggers", lambda names, directory, *rest: refuse(directory))
        with pytest.raises(kind, match=says) as told:
            run(tmp_path)
    assert "\n" not in str(told.value)
    assert all_of(resume(the_run(tmp_path))) == whole


@pytest.mark.parametrize("name", ["steps.jsonl", "config.yaml"])
def test_a_run_whose_file_this_user_may_not_open_is_left_as_it_is(name, cut, monkeypatch):
    """Fault found: a traceback, or that there is no config.yaml."""
    there = sorted(file.name for file in cut.iterdir())

    def opened(path, *rest, real=os.open):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", opened)
        with pytest.raises(UserError, match=f"{name}: cannot be .* permission denied"):
            resume(cut)
    assert sorted(file.name for file in cut.iterdir()) == there


def test_a_file_that_does_not_fit_leaves_the_one_before(tmp_path, monkeypatch):
    files.write_text(tmp_path / "page.html", "the old one")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(NoRoom, match=r"page.html: cannot be written: no space left on device; make room"):
        files.write_text(tmp_path / "page.html", "the new one")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("page.html", "the old one")]


def test_a_clock_that_is_set_back_leaves_a_run_that_can_be_read(tmp_path, monkeypatch):
    """Fault found: it ended after less than no seconds, and was called damaged by whoever read it."""
    earlier = itertools.count(time.time(), -60)
    monkeypatch.setattr(time, "time", lambda: next(earlier))
    summary = read_run(run(tmp_path)).summary
    assert summary["wall_seconds"] == summary["first_step_seconds"] == 0


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory):
    """A run that was killed, with two checkpoints."""
    folder = tmp_path_factory.mktemp("killed")

    def killed():
        observers.Checkpoints.due = at_call(13, observers.Checkpoints.due)  # of the child, which ends here
        run(folder)

    assert in_a_child(killed) == -signal.SIGKILL
    assert [file.name[:20] for file in checkpoints(the_run(folder))] == [
        "checkpoint-000000010",
        "checkpoint-000000005",
    ]
    return the_run(folder)


@pytest.fixture
def cut(killed_once, tmp_path):
    """The same, in a folder of the test's own, as if it had been made there."""
    directory = shutil.copytree(killed_once, tmp_path / "runs" / killed_once.name)
    text = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(text.replace(f"output: {killed_once.parent}", f"output: {directory.parent}"))
    return directory


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "harm", [damage, lambda file: file.write_bytes(file.read_bytes()[:-100]), lambda file: file.write_bytes(b"")]
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_gone_on_from(harm, cut, whole, capsys):
    newest, _ = checkpoints(cut)
    harm(newest)
    assert all_of(resume(cut)) == whole
    said = capsys.readouterr().err
    assert f"{newest.name} is damaged; going on from the one before" in said and "goes on after step 5 of 24" in said


def test_where_every_checkpoint_is_damaged_one_line_says_so_and_nothing_is_touched(cut):
    for file in checkpoints(cut):
        damage(file)
    before = {file.name: file.read_bytes() for file in cut.iterdir()}
    with pytest.raises(
        UserError,
        match=r"000000010-\w+.safetensors is damaged; checkpoint-000000005.*is damaged; delete its checkpoints",
    ):
        resume(cut)
    assert {file.name: file.read_bytes() for file in cut.iterdir()} == before and not being_written(cut)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metrics.jsonl", None, "needs a longer metrics.jsonl than there is"),
        ("metrics.jsonl", b"\xff{" * 4000, "metrics.jsonl: is damaged"),
        ("config.yaml", b"seed: [", "config.yaml: "),
        ("config.yaml", None, "has no config.yaml, so it is not a run"),
    ],
)
def test_another_file_that_is_damaged_is_one_line(name, content, says, cut):
    (cut / name).unlink() if content is None else (cut / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as raised:
        resume(cut)
    assert "\n" not in str(raised.value)


def test_a_run_of_another_version_is_left_to_it(cut, monkeypatch):
    monkeypatch.setattr(archlab, "__version__", "9.9.9")
    with pytest.raises(UserError, match=r"was begun by archlab 0.1.0, and this is 9.9.9"):
        resume(cut)
    text = (cut / "config.yaml").read_text()
    (cut / "config.yaml").write_text(text.replace("  log_every: 3\n", "  log_every: 3\n  warp: 3\n"))
    with pytest.raises(UserError, match=r"train.warp: a configuration has no such option in this version"):
        resume(cut)


def test_a_run_that_is_being_written_is_told_from_one_that_was_broken_off(cut):
    said = f"{cut}: was broken off at step 10 of 24; archlab resume {cut} finishes it"
    for read in (read_run, named, lambda run: archlab.runs.load.load_run(run)):
        with pytest.raises(UserError) as raised:
            read(str(cut) if read is named else cut)
        assert str(raised.value) == said
    descriptor = hold(cut)
    try:
        assert unfinished(cut) == f"{cut}: is still being written, at step 10 of 24"
        assert in_a_child(lambda: resume_refused(cut)) == 0
    finally:
        os.close(descriptor)


def resume_refused(directory: Path) -> None:
    with pytest.raises(UserError, match="is being written by another process, at step 10 of 24"):
        resume(directory)


@pytest.mark.parametrize("said", ["[]", "x", '{"status": 7}'])
def test_a_run_whose_end_was_damaged_is_not_called_finished(copied, said):
    (copied / "summary.json").write_text(said)
    with pytest.raises(UserError, match="summary|record|cannot be read") as raised:
        lab.resume(copied)
    assert "\n" not in str(raised.value)


def test_a_finished_run_stays_as_it_is(copied, capsys):
    directory = copied
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in directory.iterdir()}
    lab.resume(directory)
    assert capsys.readouterr().out == f"{directory}: is finished; there is nothing left to do\n"
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in directory.iterdir()} == before


def test_tensorboard_sees_each_step_once(cut):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    resume(cut)
    lines = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(cut)).Reload().Scalars("train/loss")
    assert [event.step for event in events] == [line["step"] for line in lines]


def test_losses_of_every_step_are_read(finished):
    read = read_run(finished)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert len(read.losses) == len(read.grad_norms) == 24 and len(lines) < 24
    assert {(line["step"], line["loss"], line["grad_norm"]) for line in lines} <= set(
        zip(range(1, 25), read.losses, read.grad_norms, strict=True)
    )
    assert read.summary["train_loss"] == pytest.approx(sum(read.losses[-20:]) / 20, abs=1e-12)


def test_a_run_is_known_by_its_configuration_but_for_its_place(tmp_path, cut):
    text = (cut / "config.yaml").read_text()
    assert same_run(cut.parent, text.replace(f"output: {cut.parent}", "output: elsewhere")) == cut
    assert same_run(cut.parent, text.replace("seed: 0", "seed: 1")) is None


# ---------------------------------------------------------------- the state by itself

STATES = {
    "float32": ((), {}, torch.float32),
    "bfloat16": ((), {}, torch.bfloat16),
    "float16, whose scale changes": ((), {}, torch.float16),
    "micro-batches": ((), {"accumulate": 3}, torch.float32),
    "a tied head": (("embed.tied=true",), {}, torch.float32),
    "running statistics": (("norm=batch", "allow_leak=true"), {}, torch.float32),
    "the best weights kept": ((), {"eval_every": 2, "patience": 9}, torch.float32),
}


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_was_saved_goes_on_bitwise(case, tmp_path):
    words, changed, dtype = STATES[case]
    where, plan = Runtime(torch.device("cpu"), dtype), settings(**({"steps": 9, "log_every": 4} | changed))
    kept: dict[int, tuple] = {}

    def save(state):
        checkpoint.save(tmp_path, *state.state_dict(), {"lengths": {}})
        kept[state.step] = checkpoint.newest(tmp_path, [])[:2]

    def go_on(saved=None):
        losses = iter([3.0, 2.0, 2.5, 2.4]) if saved is None else iter([2.5, 2.4])
        decoder, records = built(*SMALL, "dropout=0.1", *words), []
        outcome = train(
            decoder, Counting(), plan, where, seed=3, probe_every=3, validate=lambda: next(losses), report=records.append,
            tick=lambda *_: None, observers=[observers.Checkpoints(5, Stop(), save)], saved=saved,
        )  # fmt: skip
        return decoder.state_dict(), outcome, records

    weights, outcome, records = go_on()
    again, resumed, rest = go_on(kept[5])
    assert (resumed.losses, resumed.grad_norms) == (outcome.losses, outcome.grad_norms) and len(resumed.losses) == 9
    assert resumed.best_step == outcome.best_step == (4 if "patience" in changed else None)
    without = lambda record: {name: value for name, value in record.items() if name not in TIMES}  # noqa: E731
    assert [without(record) for record in rest] == [without(record) for record in records if record["step"] > 5]
    for name, weight in weights.items():
        torch.testing.assert_close(again[name], weight, rtol=0, atol=0, msg=name)


def test_two_checkpoints_are_kept_and_hold_no_code(tmp_path):
    taken = []

    def save(state):
        checkpoint.save(tmp_path, *state.state_dict(), {"lengths": {}})
        taken.append(sorted(file.name.split("-")[1] for file in tmp_path.iterdir()))

    train(
        built(*SMALL), Counting(), settings(steps=7), CPU, seed=3, validate=lambda: 1.0, report=lambda record: None,
        tick=lambda *_: None, observers=[observers.Checkpoints(2, Stop(), save)],
    )  # fmt: skip
    assert [[int(name) for name in names] for names in taken] == [[2], [2, 4], [4, 6], [6, 7]]
    content = next(tmp_path.iterdir()).read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert json.loads(content[8 : 8 + length])["__metadata__"].keys() == {"archlab"}


def test_checkpoints_by_time_take_less_than_a_fiftieth_of_it(monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr(observers.time, "monotonic", lambda: now[0])
    keeper = observers.Checkpoints(None, Stop(), lambda state: (saved.append(now[0]), now.__setitem__(0, now[0] + 0.9)))
    state = observers.TrainState.begin(built(*SMALL), settings(), CPU, 0)
    while now[0] < 1000:
        now[0] += 0.5
        state.step += 1
        keeper.see(state, [])
    assert saved[0] == 10.5 and len(saved) > 10
    assert 0.9 * len(saved[1:]) < 1000 / 50


# ---------------------------------------------------------------- nobody waits for the device

WAITS = ("item", "tolist", "__float__", "__bool__", "__int__", "__index__", "numpy", "cpu")


def test_between_logged_steps_no_number_is_read_off_the_device(monkeypatch):
    asked: list[str] = []
    for name in WAITS:
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *args, name=name, real=real, **options: asked.append(name) or real(self, *args, **options),
        )
    by_step: dict[int, list[str]] = {}

    def tick(step, *rest):
        by_step[step] = list(asked)
        asked.clear()

    train(
        built(*SMALL), Still(), settings(steps=25, log_every=10, clip=0.5), CPU, seed=3, probe_every=7, validate=lambda: 1.0,
        report=lambda record: None, tick=tick,
    )  # fmt: skip
    assert {step for step, reads in by_step.items() if reads} == {1, 10, 20, 25}
    assert {tuple(reads) for reads in by_step.values() if reads} == {("tolist",)}


class Still(Counting):
    """Its batches are made beforehand, so that nothing is read while one is asked for."""

    def __init__(self):
        self.batches = [super(Still, self).train(3, step, 6, 11) for step in range(26)]

    def train(self, seed, step, batch_size, seq_len):
        return self.batches[step]


@pytest.mark.parametrize("log_every", [1, 7, 100])
def test_a_run_found_broken_late_is_reported_at_its_step_with_its_weights(log_every):
    decoder, weights = built(*SMALL), []
    calls = 0

    def break_the_fifth(module, grad):
        nonlocal calls
        calls += 1
        if calls == 5:
            weights.append({name: p.detach().clone() for name, p in decoder.named_parameters()})
        return (grad[0] * (math.nan if calls == 5 else 1),)

    decoder.layers[0].ffn.register_full_backward_pre_hook(break_the_fifth)
    records = []
    outcome = train(
        decoder, Counting(), settings(steps=12, log_every=log_every), CPU, seed=3, validate=lambda: 1.0, report=records.append,
        tick=lambda *_: None,
    )  # fmt: skip
    assert (outcome.status, len(outcome.losses), outcome.first_nonfinite.step, records[-1]["step"]) == (
        "diverged",
        5,
        5,
        5,
    )
    for name, p in decoder.named_parameters():
        torch.testing.assert_close(p, weights[0][name], rtol=0, atol=0, msg=name)


def test_a_run_assembles_its_model_once(tmp_path, monkeypatch):
    """Its weights, that is: on the meta device it takes a few milliseconds."""
    from archlab.config import assemble

    cfg = archlab.compose(*WORDS, f"output={tmp_path}")
    made = []
    monkeypatch.setattr(
        assemble,
        "assemble",
        lambda cfg, real=assemble.assemble: made.append(torch.get_default_device().type) or real(cfg),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        lab.run(cfg, plots=False)
    assert made == ["meta", "cpu"]


# ---------------------------------------------------------------- the command


def test_a_sweep_keeps_what_is_there_finishes_what_was_broken_off_and_makes_the_rest(tmp_path, monkeypatch, capfd):
    short = [word for word in WORDS if "patience" not in word]
    run(tmp_path / "runs", "train.patience=null")

    def killed():
        monkeypatch.setattr(observers.Checkpoints, "due", at_call(13, observers.Checkpoints.due))
        run(tmp_path / "runs", "train.patience=null", "seed=1")

    assert in_a_child(killed) == -signal.SIGKILL
    there = sorted((tmp_path / "runs").iterdir())
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    cli.main(["-m", *short, "train.patience=null", "seed=0,1,2", "resume=true", "output=runs"])
    out, err = capfd.readouterr()
    assert "seed=0" in out and ": is finished; there is nothing left to do" in out
    assert "goes on after step 10 of 24" in err
    runs = sorted(file.parent for file in (tmp_path / "runs").glob("*/summary.json"))
    assert len(runs) == 3 and set(there) < set(runs) and all(map(is_finished, runs))
    assert "3 of 3 runs failed" in out  # in so few steps they stay on the plateau; each is compared


def test_what_cannot_go_on_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for words, says in (
        (["resume"], "archlab: resume: takes a run's directory, as a run prints it\n"),
        (["resume", "empty"], "archlab: empty: has no config.yaml, so it is not a run; give a run's directory\n"),
        (["resume", "empty", "train.steps=9"], "archlab: train.steps=9: a run continues with the options it began with; resume takes only its directory\n"),
        (["-m", "seed=0,1", "resume=maybe"], "archlab: resume=maybe: should be true or false; resume=true keeps existing runs and finishes the rest\n"),
        (["train.eval_every=5", "train.steps=4"], "archlab: train.eval_every=5: the run has only 4 steps, so it would change nothing; use at most that many, or leave it out\n"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        assert (left.value.code, *capsys.readouterr()) == (2, "", says)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_the_program_is_still_starting_is_answered_by_a_status_alone(number, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    asked = [sys.executable, "-X", "importtime", "-m", "archlab", "show", "size=nano"]
    process = subprocess.Popen(
        asked, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.rstrip().endswith(" torch._C"):  # long before there is anything to show
            break
    process.send_signal(number)
    said, rest = process.communicate()
    assert (process.returncode, said) == (128 + number, "")
    assert [line for line in rest.splitlines() if not line.startswith("import time:")] == []


def test_two_sessions_that_need_the_same_run_make_it_once(tmp_path):
    from archlab.claim.jobs import RunJob

    wanted = RunJob(archlab.compose(*WORDS), tmp_path)
    with multiprocessing.get_context("fork").Pool(2) as sessions:
        sessions.map(RunJob.do, [wanted, wanted], chunksize=1)
    assert len(list(wanted.folder.glob("*/summary.json"))) == len(list(wanted.folder.glob("*/config.yaml"))) == 1


def test_a_session_goes_on_with_a_run_that_another_one_left(tmp_path, monkeypatch, whole):
    from archlab.claim.jobs import RunJob

    wanted = RunJob(archlab.compose(*WORDS), tmp_path)

    def killed():
        monkeypatch.setattr(observers.Checkpoints, "due", at_call(13, observers.Checkpoints.due))
        wanted.do()

    assert in_a_child(killed) == -signal.SIGKILL
    assert wanted.result is None
    wanted.do()
    assert all_of(wanted.result.parent)["model.safetensors"] == whole["model.safetensors"]
    assert len(list(wanted.folder.glob("*/config.yaml"))) == 1
    assert "goes on after step 10 of 24" in (wanted.folder / "log.txt").read_text()
