"""Verbs on records: compare, and how a sweep ends."""

import contextlib
import csv
import io
import json
import shutil

import commands
import pytest

from archlab.cli import main as cli

command = commands.command  # the fixture

SMALL = [
    "size=nano",
    "train.steps=3",
    "train.train_len=16",
    "train.batch_size=4",
    "eval.tokens=128",
    "eval.lengths=[1]",
    "probe.every=null",
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two arms at two seeds, by one command; that three steps teach them nothing is not what is asked about."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setenv("COLUMNS", "80")
        patch.setattr("archlab.base.plateau.PLATEAU_MARGIN", -100.0)
        patch.chdir(folder)
        cli.main(["-m", "+norm=layer,rms", "seed=0,1", *SMALL])
    return folder, out.getvalue()


def test_a_sweep_ends_with_a_comparison_of_its_arms(swept):
    folder, said = swept
    end = said[said.index("Does norm=rms differ in val_loss from norm=layer?") :]
    assert "Noise floor" in end and "nothing can be concluded at 2 pairs" in " ".join(end.split())
    saved = folder / end.strip().splitlines()[-1]
    assert {file.name for file in saved.iterdir()} == {
        "comparison.json",
        "comparison.csv",
        "comparison.md",
        "comparison.png",
    }


def test_the_record_holds_the_difference_of_what_the_runs_wrote(swept):
    folder, said = swept
    saved = folder / said.strip().splitlines()[-1]
    record = json.loads((saved / "comparison.json").read_text())
    losses = {}
    for file in (folder / "experiments/runs").glob("*/summary.json"):
        summary = json.loads(file.read_text())
        losses[summary["choices"]["norm"], summary["seed"]] = summary["val_loss"]
    arms = {arm["label"]: arm for arm in record["arms"]}
    effect = sum(losses["rms", seed] - losses["layer", seed] for seed in (0, 1)) / 2
    assert record["baseline"] == "norm=layer" and arms["norm=rms"]["effect"] == pytest.approx(effect, abs=1e-12)
    (row,) = [row for row in csv.DictReader((saved / "comparison.csv").open()) if row["label"] == "norm=rms"]
    assert float(row["effect"]) == pytest.approx(effect, abs=1e-12)


def test_no_arms_name_is_cut_or_broken_at_eighty_columns(swept):
    _, said = swept
    table = said[said.index("Against norm=layer") :]
    assert any(line.startswith("norm=rms ") for line in table.splitlines())


def test_compare_reads_runs_that_are_there_and_leaves_a_damaged_one_out_with_a_note(swept, command, tmp_path):
    folder, _ = swept
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text("seed: 0\n")
    (damaged / "summary.json").write_text('{"status": "comp')
    runs = f"{folder}/experiments/runs/*norm=*"
    done = command("compare", runs, str(damaged), "baseline=norm=rms", f"output={tmp_path / 'out'}")
    assert done.status == 0, done.err
    assert "Does norm=layer differ in val_loss from norm=rms?" in done.out and "damaged" in " ".join(done.out.split())
    assert (tmp_path / "out" / "comparison.md").read_text().startswith("# Does norm=layer differ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "compare: takes directories of runs"),
        (["nowhere"], "nowhere: no such run; give directories of runs"),
        (["RUNS", "metrc=val_loss"], "metrc=val_loss: compare has no option metrc; did you mean metric?"),
        (["RUNS", "metric=los"], "metric=los: "),
        (["RUNS", "baseline=norm=batch"], "baseline=norm=batch: no such arm; arms: norm=layer, norm=rms"),
        (["RUNS", "smallest_effect=-1"], "smallest_effect=-1: should be greater than or equal to 0"),
    ],
)  # fmt: skip
def test_misuse_of_compare_is_one_line_and_status_two(swept, words, told, command):
    folder, _ = swept
    done = command("compare", *(word.replace("RUNS", f"{folder}/experiments/runs/*norm=*") for word in words))
    assert done.status == 2 and done.err.startswith(f"archlab: {told}") and done.err.count("\n") == 1


def test_a_folder_whose_name_could_be_a_glob_is_found_by_its_name(swept, tmp_path, command):
    """Fault found: a run that is there was no such run, where a folder above it had brackets in its name."""
    folder, _ = swept
    odd = tmp_path / "tries [2]"
    shutil.copytree(folder / "experiments" / "runs", odd)
    run = str(next(odd.glob("*norm=rms*")))
    for words in (["compare", run], ["compare", f"{odd}/"], ["report", run]):
        done = command(*words)
        assert done.status == 0, done.err


def test_a_sweep_that_cannot_be_compared_says_so_in_one_line_and_is_no_failure(command, tmp_path):
    done = command("-m", "train.batch_size=2,4", *(word for word in SMALL if "batch" not in word))
    assert done.status == 0, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("archlab: no comparison: ")]
    assert "mix=true" in line
    runs = f"{tmp_path}/experiments/runs/*"
    assert command("compare", runs).status == 2
    mixed = command("compare", runs, "mix=true")
    assert mixed.status == 0 and "one seed only" in " ".join(mixed.out.split())
