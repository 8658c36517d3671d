"""`experiment=NAME` stands for a sweep: whose words win, what is said in advance, and what is made of the runs."""

import json
from pathlib import Path

import commands
import pytest
import yaml
from commands import Session

import archlab as package
from archlab.base.errors import UserError
from archlab.cli import main as cli
from archlab.cli import results
from archlab.config.overrides import conf_dir, parse
from archlab.runs import experiments

archlab = commands.archlab  # the fixture
FILES = sorted((conf_dir() / "experiment").glob("*.yaml"))
SMALL = ("residual=pre", "size.n_layers=2", "train.lr=1e-3,3e-3,1e-2")


@pytest.fixture
def reported(monkeypatch):
    """What the report of a sweep was asked for, instead of a report."""
    asked = []
    monkeypatch.setitem(results.REPORTS, "stability_map", lambda directories: asked.append(list(directories)))
    return asked


@pytest.mark.parametrize(
    "spelling", ["experiment=stability_map", "+experiment=stability_map", "++experiment='stability_map'"]
)
def test_an_experiment_in_every_spelling_is_its_words_and_a_sweep(archlab: Session, reported, spelling):
    answer = archlab(spelling, *SMALL)
    assert answer.status == 0, answer.err
    assert [cfg.train.lr for cfg, _ in archlab.jobs] == [1e-3, 3e-3, 1e-2]
    assert {(cfg.choices.size, cfg.train.train_len, cfg.train.warmup, cfg.size.d_model) for cfg, _ in archlab.jobs} == {
        ("nano", 64, 0, 64)
    }
    assert "3 runs" in answer.out and "without warm-up?" in answer.out
    assert [list(map(str, directories)) for directories in reported] == [
        [f"experiments/runs/run-{n}" for n in (1, 2, 3)]
    ]


def test_the_sweep_is_placements_by_depths_by_learning_rates():
    words, _ = experiments.expand(["experiment=stability_map"], [])
    swept = {
        override.key_or_group: override.value().list for override in map(parse, words) if override.is_sweep_override()
    }
    assert swept == {
        "residual": ["pre", "post", "deep", "deep_glm", "sandwich"],
        "size.n_layers": [2, 6, 12],
        "train.lr": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
    }


def test_the_users_own_words_win_before_the_experiment_and_after(archlab: Session, reported):
    archlab("+train.warmup=7", "experiment=stability_map", *SMALL, "++train.steps=9", "norm=layer", "seed=4")
    assert {(cfg.train.warmup, cfg.train.steps, cfg.choices.norm, cfg.seed) for cfg, _ in archlab.jobs} == {
        (7, 9, "layer", 4)
    }


def test_an_experiment_of_the_users_own(archlab: Session, reported, tmp_path):
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    mine = {"question": "Mine?", "report": "stability_map", "seconds_per_run": 90, "overrides": ["train.lr=1,2,3"]}
    (tmp_path / "my" / "experiment" / "mine.yaml").write_text(yaml.safe_dump(mine))
    answer = archlab("--config-dir", "my", "experiment=mine", "size=nano")
    assert len(archlab.jobs) == 3 and len(reported) == 1
    assert "Mine?" in answer.out and "3 runs; about 4 min 30 s on one CPU thread" in answer.out


def test_without_an_experiment_nothing_is_reported(archlab: Session, reported):
    assert archlab("-m", "train.lr=1e-3,3e-3,1e-2").status == 0
    assert reported == [] and len(archlab.jobs) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["experiment=stability_mop"],
            "experiment=stability_mop: no such experiment; did you mean stability_map? experiments: stability_map",
        ),
        (["+experiment="], "+experiment=: no such experiment; experiments: stability_map"),
        (["experiment=stability_map,other"], "no such experiment"),
        (
            ["experiment=stability_map", "train.lr=1e-3"],
            "train.lr=1e-3: experiment=stability_map maps at least 3 learning rates",
        ),
        (
            ["experiment=stability_map", "train.lr=1e-3,1e-2"],
            "train.lr=1e-3,1e-2: experiment=stability_map maps at least 3",
        ),
        (["experiment=stability_map", "train.lr=1e-3,1e-3,1e-2"], "maps at least 3"),
        (["experiment=stability_map", "--cfg", "job"], "--cfg: shows one configuration"),
        (["experiment=stability_map", "norm=rsm"], "norm=rsm: no such option; did you mean rms?"),
        (["show", "experiment=stability_map"], "an experiment is several runs; only the verb run takes it"),
        (["experiment.question=why"], "an experiment is several runs"),
        (["~experiment"], "an experiment is several runs"),
    ],
)
def test_a_mistake_is_a_line_and_nothing_runs(archlab: Session, reported, words, says):
    answer = archlab(*words)
    assert answer.status == 2 and answer.err.count("\n") == 1 and says in answer.err
    assert archlab.jobs == [] and reported == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"overrides": None}, "mine.yaml: overrides: "),
        ({"overrides": []}, "mine.yaml: overrides: "),
        ({"report": "essay"}, "mine.yaml: report: input should be 'stability_map'"),
        ({"seconds_per_run": -1}, "mine.yaml: seconds_per_run: "),
        ({"overide": ["seed=1"]}, "mine.yaml: overide: "),
    ],
)
def test_a_file_that_is_no_experiment_says_which_field(archlab: Session, tmp_path, changed, says):
    (tmp_path / "experiment").mkdir()
    mine = {
        "question": "Mine?",
        "report": "stability_map",
        "seconds_per_run": 90,
        "overrides": ["train.lr=1,2,3"],
    } | changed
    (tmp_path / "experiment" / "mine.yaml").write_text(yaml.safe_dump(mine))
    answer = archlab("--config-dir", str(tmp_path), "experiment=mine")
    assert answer.status == 2 and answer.err.count("\n") == 1 and says in answer.err


def test_from_python_an_experiment_is_refused():
    with pytest.raises(UserError, match="an experiment is several runs"):
        package.compose("experiment=stability_map")


def test_help_lists_experiments_and_the_verb(archlab: Session):
    out = archlab("--help").out
    assert "experiment: stability_map" in out and "stability_map  " in out


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_experiment_can_be_read(file):
    words, experiment = experiments.expand([f"experiment={file.stem}"], [])
    assert words == experiment.overrides and experiment.seconds_per_run > 0


def test_a_small_map_from_the_command_line(tmp_path, capsys):
    tiny = ("train.steps=3", "train.batch_size=2", "train.train_len=16", "eval.tokens=64", "probe.every=null")
    cli.main(["experiment=stability_map", *SMALL, *tiny, f"output={tmp_path}"])
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert folder.parent == tmp_path / "stability_map"
    ((arm,), *_) = json.loads((folder / "stability_map.json").read_text()).values()
    assert [cell["lr"] for cell in arm["cells"]] == [1e-3, 3e-3, 1e-2]
    summaries = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*/summary.json"))]
    assert sorted(cell["loss"] for cell in arm["cells"]) == pytest.approx(
        sorted(summary["val_loss"] for summary in summaries)
    )
