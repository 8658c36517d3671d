"""Which way is better of every number that a run writes, and what is asked where that is not known."""

import json

import pytest
import torch
from records import write_run

import archlab
from archlab.base.errors import UserError
from archlab.cli import main as cli
from archlab.comparison.arms import read_all
from archlab.comparison.comparison import compare
from archlab.comparison.metric import _numbers
from archlab.records.logbook import versions
from archlab.records.summary import KINDS

NO_RESULT = {
    "unigram_loss",
    "best_step",
    "seed",
    "train_len",
    "steps",
    "tokens",
    "threads",
    "ratio",
    "step",
    "event_step",
    "loss_moved",
    "lr",
}
"""What a summary holds besides: settings, counts, and what belongs to the data."""


@pytest.fixture
def runs(tmp_path):
    for seed in range(6):
        write_run(tmp_path, "norm=rms", seed=seed, calm=0.5 + seed / 100)
        write_run(tmp_path, "norm=layer", seed=seed, calm=0.8 + seed / 100)
    return tmp_path


def test_every_number_of_a_real_run_is_known_or_no_result(tmp_path):
    from archlab.runs import lab

    cfg = archlab.compose(
        "size=nano",
        "train.steps=2",
        "train.train_len=16",
        "train.batch_size=4",
        "eval.tokens=128",
        "eval.lengths=[1]",
        "probe.every=1",
        "eval.first_token_share=true",
        f"output={tmp_path}",
    )
    summary = json.loads((lab.run(cfg, plots=False) / "summary.json").read_text())
    names = {name.rpartition(".")[2] for name, _ in _numbers(summary)}
    assert names <= KINDS.keys() | NO_RESULT and {"val_loss", "max_grad_norm", "min_attention_entropy"} <= names


def test_a_number_whose_direction_is_unknown_is_asked_for(runs):
    with pytest.raises(UserError) as refusal:
        compare(read_all([runs])[0], metric="calm")
    assert (
        str(refusal.value)
        == "metric=calm: which way is better is not known of this number; add direction=lower or direction=higher"
    )


@pytest.mark.parametrize(("direction", "verdict", "rank"), [("lower", "worse", 2), ("higher", "better", 1)])
def test_it_is_ranked_the_way_that_was_said(direction, verdict, rank, runs, capsys):
    """0.8 against 0.5, at the same six seeds."""
    arm = compare(read_all([runs])[0], metric="calm", direction=direction, baseline="norm=rms").arms[1]
    assert (arm.verdict, arm.rank) == (verdict, rank) and arm.against.effect == pytest.approx(0.3)
    cli.main(["compare", str(runs), "metric=calm", f"direction={direction}"])
    assert "Arms by calm" in capsys.readouterr().out


def test_a_direction_that_is_known_is_not_to_be_said(runs, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["compare", str(runs), "direction=lower"])
    assert left.value.code == 2
    assert (
        capsys.readouterr().err == "archlab: direction=lower: of val_loss lower is better, as is known; leave it out\n"
    )


def test_a_page_repeats_the_direction_among_its_commands(runs):
    from archlab.report.written import write_report

    page = write_report([str(runs)], runs / "page.html", {"metric": "calm", "direction": "higher"}).read_text()
    assert "direction=higher" in page and "higher is better" in page


def test_the_build_of_torch_is_written_down(monkeypatch):
    assert versions()["torch"] == torch.__version__
    monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91200)
    told = versions()
    assert (told["torch"], told["cuda"], told["cudnn"]) == ("2.14.1+cu130", "13.0", "91200")
