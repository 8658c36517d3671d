"""Optional loggers: off by default, the same scalars for each, on this machine alone."""

import json
import sqlite3
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import archlab
from archlab.base.errors import UserError
from archlab.cli.main import main
from archlab.records import loggers
from archlab.records.logbook import Logbook, scalars
from archlab.records.loggers import numbers

ROOT = Path(__file__).parents[2]
NANO = [
    "size=nano",
    "train.steps=4",
    "train.batch_size=3",
    "train.train_len=16",
    "train.log_every=2",
    "eval.tokens=96",
    "eval.lengths=[1,2]",
    "probe.every=3",
]
GUARDED = """
import socket, sys
connect = socket.socket.connect
def local(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        sys.exit(f"network: {address}")
    return connect(self, address)
socket.socket.connect = local
from archlab.cli.main import main
main()
"""
RECORD = {
    "step": 3,
    "tokens": 48,
    "loss": 2.5,
    "clipped": True,
    "val_loss": None,
    "layers": [{"grad_norm": 0.5}, {"grad_norm": 0.25}],
}


class Kept:
    """A logger that remembers what it was given."""

    def __init__(self, directory, config):
        self.directory, self.config, self.logged, self.summary = directory, config, [], None

    def log(self, scalars, step):
        self.logged.append((step, dict(scalars)))

    def finish(self, summary):
        assert self.summary is None, "finished twice"
        self.summary = summary


def asked(tmp_path, *names):
    """A guarded run in a process of its own; its directory and its logged steps."""
    words = [*NANO, f"loggers=[{','.join(names)}]", f"output={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, *words], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    directory = Path(done.stdout.splitlines()[-1])
    return directory, [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def leveldb_log(data, start, block=32768):
    """The records of a LevelDB log (crc32, length, type of piece; 1 is whole, 4 the last of several) after a header."""
    at, pieces = 0, b""
    while at + 7 <= len(data):
        if (left := block - (start + at) % block) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        pieces += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield pieces
            pieces = b""


def test_nobody_is_sent_elsewhere_by_default():
    assert archlab.compose("size=nano").loggers == []


def test_scalars_are_numbers_by_group_and_layer():
    assert scalars(RECORD) == {
        "train/tokens": 48, "train/loss": 2.5, "train/clipped": True, "grad_norm/layer_0": 0.5, "grad_norm/layer_1": 0.25
    }  # fmt: skip


def test_a_summarys_numbers_are_named_by_their_path():
    summary = {
        "val_loss": 2.0,
        "leaking": False,
        "status": "completed",
        "stability": {"max_grad_norm": 3, "first": None},
    }
    assert dict(numbers(summary, "summary")) == {"summary/val_loss": 2.0, "summary/stability/max_grad_norm": 3}


def test_every_logger_gets_every_step_and_the_summary(tmp_path, monkeypatch):
    monkeypatch.setitem(loggers.OPTIONAL, "wandb", Kept)
    monkeypatch.setattr(loggers, "find_spec", lambda name: True)
    cfg = archlab.compose("size=nano", "loggers=[wandb]")
    logbook = Logbook(str(tmp_path), cfg, ["size=nano"])
    logbook.step(RECORD)
    logbook.step(RECORD | {"step": 5, "loss": 2.25})
    logbook.close({"val_loss": float("inf"), "seed": 0}, [], archlab.build("size=nano"))
    _tensorboard, kept = logbook.loggers
    assert [step for step, _ in kept.logged] == [3, 5] and kept.logged[1][1]["train/loss"] == 2.25
    assert kept.summary == {"val_loss": None, "seed": 0}
    assert kept.directory == logbook.directory and kept.config["size"]["d_model"] == 64
    events = EventAccumulator(str(logbook.directory)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 2.5), (5, 2.25)]
    assert set(events.Tags()["scalars"]) == set(kept.logged[0][1])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("[neptune]", "loggers=['neptune']: should be 'wandb' or 'trackio'"),
        ("wandb", "loggers=wandb: should be a valid list"),
        ("[wandb]", "loggers=['wandb']: wandb is not installed; pip install 'archlab[wandb]'"),
        ("[trackio,trackio]", "loggers=['trackio', 'trackio']: names one twice; name each once"),
    ],
)
def test_a_logger_that_cannot_be_is_one_line_and_nothing_is_written(given, line, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as left:
        main([*NANO, f"loggers={given}", f"output={tmp_path}/runs"])
    assert left.value.code == 2
    assert capsys.readouterr().err == f"archlab: {line}\n"
    assert list(tmp_path.iterdir()) == []


def test_from_python_it_is_an_ordinary_exception(monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="trackio is not installed"):
        archlab.compose("size=nano", "loggers=[trackio]")


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_keeps_the_run_in_its_own_directory(tmp_path):
    from wandb.proto.wandb_internal_pb2 import Record

    directory, steps = asked(tmp_path, "wandb")
    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    records = [Record.FromString(data) for data in leveldb_log(file.read_bytes()[7:], start=7)]
    (name,) = {record.run.display_name for record in records if record.run.display_name}
    assert name == directory.name
    items = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.history.item
    ]
    assert [item["_step"] for item in items] == [record["step"] for record in steps]
    assert [item["train/loss"] for item in items] == [record["loss"] for record in steps]
    summary = {item.key: json.loads(item.value_json) for record in records for item in record.summary.update}
    assert summary["val_loss"] == json.loads((directory / "summary.json").read_text())["val_loss"]
    assert summary["status"] == "completed"


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_keeps_the_runs_of_a_folder_in_one_store(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "nobody/nowhere")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    directory, steps = asked(tmp_path, "trackio")
    with sqlite3.connect(tmp_path / ".trackio" / "archlab.db") as store:
        rows = store.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {run for run, _, _ in rows} == {directory.name}
    logged = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [(step, metrics["train/loss"]) for step, metrics in logged[:-1]] == [
        (record["step"], record["loss"]) for record in steps
    ]
    last, summary = logged[-1]
    assert last == 4
    assert summary["summary/val_loss"] == json.loads((directory / "summary.json").read_text())["val_loss"]


def test_events_of_a_resumed_run_are_read_after_those_before_it(tmp_path):
    from archlab.records.loggers import TensorBoard

    for after in (0, 3, 5):
        TensorBoard(tmp_path, {}, after).events.close()
    seconds = [int(file.name.split(".")[3]) for file in tmp_path.iterdir()]
    assert len(set(seconds)) == 3
