"""From Python: everything the command line does, each result printing what the command prints."""

import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

import archlab
from archlab.base.errors import UserError
from archlab.cli import main as cli
from archlab.contract import decoder
from archlab.contract import verify as verifying
from archlab.runs.named_model import two
from archlab.verbs.diff import way_between
from archlab.verbs.run import Sweep, TrainedRun

SMALL = (
    "size=nano",
    "train.steps=3",
    "train.batch_size=2",
    "train.train_len=12",
    "eval.lengths=[1,2]",
    "eval.tokens=48",
)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.main(list(words))
    return out.getvalue()


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    """That so few steps teach a model nothing is not what is asked about."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("archlab.base.plateau.PLATEAU_MARGIN", -100.0)
        yield archlab.sweep(*SMALL, "norm=layer,rms", "seed=0,1", f"output={folder}", plots=False)


def test_every_name_is_there_and_documented():
    assert {
        "run",
        "resume",
        "sweep",
        "load",
        "compare",
        "claims",
        "show",
        "draw",
        "diff",
        "verify",
        "generate",
        "preflight",
        "memory",
        "hub",
    } <= set(archlab.__all__)
    for name in archlab.__all__:
        assert getattr(archlab, name).__doc__, name
    assert set(archlab.__all__) <= set(dir(archlab))
    with pytest.raises(AttributeError, match="no attribute 'ramble'"):
        _ = archlab.ramble


def test_names_stay_what_they_are_after_every_module_was_imported():
    """No room of the package has the name of a function: importing it would put the room in the function's place."""
    rooms = {path.name for path in Path(archlab.__file__).parent.iterdir() if path.is_dir()} - {"hub"}
    assert not rooms & set(archlab.__all__)


def test_show_prints_what_the_command_prints(monkeypatch):
    found = archlab.show("size=nano", "pos=alibi")
    assert lines(str(found)) == lines(command(monkeypatch, "show", "size=nano", "pos=alibi"))
    assert (
        found.to_pandas().sum()
        == found.costs["n_params"]
        == sum(p.numel() for p in archlab.build("size=nano", "pos=alibi").parameters())
    )
    assert found.memory.to_pandas().sum() == pytest.approx(archlab.memory("size=nano", "pos=alibi").total)
    assert "alibi" in found._repr_html_() and found._repr_html_().startswith("<pre")


def test_a_model_has_one_name_for_every_function_that_takes_one(swept: Sweep, monkeypatch):
    directory = swept.runs[0].directory
    named, spelled = archlab.show("gpt2"), archlab.show("preset=gpt2")
    assert named.cfg == spelled.cfg and lines(str(named)) == lines(str(spelled))
    assert archlab.memory("gpt2").total == archlab.memory("preset=gpt2").total
    of_run = archlab.show(directory)
    assert of_run.costs["n_params"] == swept.runs[0].summary["n_params"]
    assert lines(command(monkeypatch, "show", "gpt2")) == lines(str(named))
    assert lines(command(monkeypatch, "show", str(directory))) == lines(str(of_run))
    for of_one in (archlab.show, archlab.memory, archlab.preflight, archlab.draw):
        with pytest.raises(
            UserError, match="gpt3: is no preset, no run's directory and no override; did you mean gpt2?"
        ):
            of_one("gpt3")
        with pytest.raises(UserError, match="gpt2: [a-z]+ takes one model"):
            of_one("gpt2", "norm=rms")


def test_a_drawing_says_what_it_is_of():
    assert "of the defaults:" in str(archlab.draw())
    assert "of size=nano:" in str(archlab.draw("size=nano"))
    assert "of the configuration given:" in str(archlab.draw(archlab.compose("size=nano")))


def test_diff_prints_what_the_command_prints(monkeypatch):
    found = archlab.diff("size=nano", "size=nano norm=layer")
    assert lines(str(found)) == lines(command(monkeypatch, "diff", "size=nano", "size=nano norm=layer"))
    table = found.to_pandas()
    assert list(table[(table["kind"] == "blocks")]["what"]) == ["norm"]
    assert found.plot().svg.startswith("<svg")


def test_a_ladder_has_one_row_per_rung():
    way = way_between(*two("diff", ("size=nano", "size=nano norm=layer ffn=gelu"), None))
    assert list(way.to_pandas()["changed"]) == ["", "norm", "ffn"]


def test_verify_is_true_where_no_promise_is_broken(monkeypatch):
    # Types are checked while the tests run, and the compiler cannot follow the checker; tests/contract/test_verify.py compiles.
    checks = tuple(check for check in decoder.CHECKS if check is not decoder.compiled)
    monkeypatch.setattr(verifying, "CHECKS", checks)
    found = archlab.verify("head=linear")
    assert found and set(found.to_pandas()["verdict"]) <= {"holds", "not asked"}
    assert lines(str(found)) == lines(command(monkeypatch, "verify", "head=linear"))


def test_draw_saves_and_shows(tmp_path):
    drawing = archlab.draw("size=nano")
    assert drawing._repr_html_() == drawing.svg
    assert [file.name for file in drawing.save(tmp_path / "a.svg", tmp_path / "a.png")] == ["a.svg", "a.png"]
    with pytest.raises(UserError, match="nowhere is not a folder; make it first"):
        drawing.save(tmp_path / "nowhere" / "a.svg")


def test_preflight_has_a_row_per_layer(tmp_path):
    start = archlab.preflight(*SMALL, "preflight.depths=null", "preflight.batch_size=2")
    assert len(start.to_pandas()) == 2 and isinstance(start.plot(), Figure)
    assert start.save(tmp_path / "start.png").is_file()
    with pytest.raises(UserError, match="preflight.plot=.*nowhere is not a folder; make it first"):
        start.save(tmp_path / "nowhere" / "start.png")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="preflight.plot=.*folder.png: cannot be written: Is a directory; give another"):
        start.save(tmp_path / "folder.png")
    assert "At initialisation" in str(start)


def test_a_sweep_makes_each_run_once(swept: Sweep):
    assert [run.config["seed"] for run in swept.runs] == [0, 1, 0, 1]
    folder = swept.runs[0].directory.parent
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    again = archlab.sweep(*SMALL, "norm=layer,rms", "seed=0,1", f"output={folder}", plots=False)
    assert [run.directory for run in again.runs] == [run.directory for run in swept.runs]
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    assert len(swept.to_pandas()) == 4 and isinstance(swept.plot(), Figure)
    assert str(swept.comparison) in str(swept)


def test_a_sweep_is_checked_whole_before_its_first_run(tmp_path):
    with pytest.raises(UserError):
        archlab.sweep(*SMALL, "seed=0", "size.n_heads=2,3", f"output={tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()


def test_a_run_is_read_with_its_steps_its_layers_and_its_weights(swept: Sweep):
    run = archlab.load(swept.runs[0].directory)
    assert isinstance(run, TrainedRun)
    assert list(run.to_pandas().index) == [1, 2, 3] and run.to_pandas()["loss"].iloc[-1] == run.record.losses[-1]
    layers = run.layers()
    assert isinstance(layers, pd.DataFrame) and set(layers.index.get_level_values("layer")) == {0, 1}
    assert isinstance(run.plot(), Figure) and isinstance(run.plot("layers"), Figure)
    with pytest.raises(UserError, match="use training, layers, positions, lengths"):
        run.plot("lawyers")
    assert sum(p.numel() for p in run.model().parameters()) == run.summary["n_params"]
    run.model("eval.tokens=96")  # asked for as 48 then, so the word of today counts
    with pytest.raises(UserError, match="eval.tokens=96 eval.tokens=24: set eval.tokens twice"):
        run.model("eval.tokens=96", "eval.tokens=24")
    assert "validation loss" in str(run) and str(run.directory) in str(run)


def test_generate_from_a_run(swept: Sweep, monkeypatch):
    run = swept.runs[0]
    text = run.generate("In the", max_new_tokens=4)
    assert text.text == text.prompt + text.new and text.prompt == "In the"
    assert command(monkeypatch, "generate", str(run.directory), "prompt=In the", "max_new_tokens=4") == text.text + "\n"


def test_compare_prints_what_the_command_prints(swept: Sweep, monkeypatch, tmp_path):
    folder = str(swept.runs[0].directory.parent)
    found = archlab.compare(folder)
    assert lines(str(found)) == lines(command(monkeypatch, "compare", folder))
    assert list(found.to_pandas()["label"]) == ["norm=layer", "norm=rms"]
    assert {file.suffix for file in found.save(tmp_path / "c").iterdir()} == {".json", ".csv", ".md", ".png"}


def test_run_and_resume_give_the_run(tmp_path, capsys):
    run = archlab.run(*SMALL, f"output={tmp_path}", plots=False)
    assert "validation loss" not in capsys.readouterr().out  # the result is shown by who asked for it
    same = archlab.resume(run.directory)
    assert same.directory == run.directory and same.summary == run.summary


def test_a_page_of_runs_needs_no_torch(swept: Sweep, tmp_path):
    """Nor does a comparison, nor help: whoever reads what was written down does not wait for it."""
    folder, page = swept.runs[0].directory.parent, tmp_path / "page.html"
    asked = [["--version"], ["--help"], ["compare", str(folder)], ["report", str(folder), f"output={page}"]]
    code = f"""
import sys
from archlab.cli.main import main
for words in {asked}:
    main(words)
    assert "torch" not in sys.modules, words
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert page.read_text().count("data:image/svg+xml;base64") == 2


def test_a_strangers_sketch_is_data(swept: Sweep, tmp_path):
    import json
    import shutil

    from archlab.verbs.report import drawn_run

    run = tmp_path / "run"
    shutil.copytree(swept.runs[0].directory, run)
    good = json.loads((run / "sketch.json").read_text())
    ours = drawn_run(run)
    for spoil in (
        lambda sketch: sketch["layers"].clear(),
        lambda sketch: sketch["head"][-1].update(reads=[99]),
        lambda sketch: sketch.update(embedding=[]),
        lambda sketch: sketch.update(title=7),
    ):
        saved = json.loads(json.dumps(good))
        spoil(saved["sketch"])
        (run / "sketch.json").write_text(json.dumps(saved))
        assert drawn_run(run) == ours  # drawn from the model itself
    good["sketch"]["head"][-1]["box"]["label"] = "<script>alert(1)</script>"
    (run / "sketch.json").write_text(json.dumps(good))
    assert "<script>" not in drawn_run(run)
    with (run / "config.yaml").open("a") as config:
        config.write("norm_of: nobody\n")
    with pytest.raises(UserError, match="config.yaml"):  # a sketch of another configuration says nothing of this one
        drawn_run(run)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: archlab.compose(None), "overrides=None: should be a valid string"),  # type: ignore[arg-type]
        (lambda: archlab.show("norm=rms", "norm=layer"), "set norm twice"),
        (
            lambda: archlab.build(archlab.compose("size=nano"), "norm=rms"),
            "a configuration cannot be combined with others or with overrides",
        ),
        (lambda: archlab.compose("norm=rms", "norm=layer"), "norm=rms norm=layer: set norm twice; keep one of the two"),
        (lambda: archlab.load("x" * 5000), "no file can have so long a name"),
        (lambda: archlab.hub.load("x" * 5000), "no file can have so long a name"),
        (lambda: archlab.hub.load("a\0b"), "path='a\\x00b': no file can have a NUL in its name"),
        (lambda: archlab.resume(3), "directory=3: should be a valid string or should be a path"),  # type: ignore[arg-type]
        (lambda: archlab.diff("size=nano", "size=nano", seq_len=0), "seq_len=0: should be greater than or equal to 1"),
        (lambda: archlab.compare(), "no run is named"),
        (lambda: archlab.stability_map(), "no run is named"),
        (lambda: archlab.compare("x", smallest_effect=float("nan")), "smallest_effect=nan: should be a finite number"),
        (lambda: archlab.write_report("x", direction="up"), "direction='up': should be 'lower' or 'higher'"),  # type: ignore[arg-type]
        (lambda: archlab.generate("x", "a", max_new_tokens=1.5), "max_new_tokens=1.5: should be a valid integer"),  # type: ignore[arg-type]
        (lambda: archlab.claims("x", budget="slow"), "budget='slow': should be 'quick', 'full' or 'gpu'"),  # type: ignore[arg-type]
        (lambda: archlab.claims("swiglu_beats_gelu", runs="/etc/passwd"), "runs=/etc/passwd: no run can be written"),
        (lambda: archlab.sweep("seed=interval(0,1)"), "an interval has infinitely many values"),
        (lambda: archlab.sweep("seed=range(0,3,0)"), "seed=range(0,3,0): its step is 0, so that it never ends"),
        (lambda: archlab.sweep("train.lr=range(0.1,1,0)"), "its step is 0, so that it never ends"),
        (lambda: archlab.sweep("seed=range(5,5)"), "seed=range(5,5): has no value, so that there would be no run"),
        (lambda: archlab.sweep("seed=glob(*)"), "seed=glob(*): has no value, so that there would be no run"),
        (lambda: archlab.sweep("seed=range(0,1000000000)"), "seed=range(0,1000000000): more than 10000 runs"),
        (lambda: archlab.sweep("seed=shuffle(range(0,1000000000))"), "more than 10000 runs; sweep over fewer values"),
        (lambda: archlab.sweep("seed=range(0,200)", "data_seed=range(0,200)"), "more than 10000 runs"),
        (
            lambda: archlab.generate("x", "a\udcff"),
            "prompt='a\\udcff': has no letter at place 2, but a byte that is not UTF-8",
        ),
        (lambda: archlab.sweep("resume=true"), "only the verb run takes it"),
        (lambda: archlab.verify("nrom=rms"), "nothing is called nrom; did you mean norm?"),
        (lambda: archlab.draw("size=nano").save(), "names no file"),
        (lambda: archlab.draw("size=nano").save("a.svg", ""), "files, argument 2: is empty"),
        (lambda: archlab.write_report("x", output="no/a.html"), "output=no/a.html: no is not a folder; make it first"),
        (lambda: archlab.draw(""), "model, argument 1: is empty"),
        (lambda: archlab.diff("gpt2", ""), "second: is empty; write what it is to be, or leave it out"),
        (lambda: archlab.compare("x", ""), "runs, argument 2: is empty"),
        (lambda: archlab.compose(""), "overrides, argument 1: is empty"),
        (lambda: archlab.compose("-m"), "-m: is a flag of the command line; here go overrides, name=value"),
        (lambda: archlab.sweep("-m", "seed=0,1"), "-m: is a flag of the command line"),
        (lambda: archlab.compose("+hydra.foo=1"), "+hydra.foo=1: is about how the command line runs jobs"),
        (
            lambda: archlab.sweep("hydra/launcher=basic"),
            "hydra/launcher=basic: is about how the command line runs jobs",
        ),
        (lambda: archlab.resume(""), "directory: is empty"),
        (lambda: archlab.load("x", config_dir=""), "config_dir: is empty"),
        (lambda: archlab.draw("size=nano").save("x.pdf"), "a picture is an SVG or a PNG"),
    ],
)
def test_arguments_of_another_type_and_words_that_mean_nothing_are_one_line(call, says):
    with pytest.raises(UserError) as refused:
        call()
    assert says in str(refused.value) and "\n" not in str(refused.value)
