"""The README's two commands do everything on a fresh machine, and are what they say they are; the pages name what exists."""

import json
import os
import pydoc
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import archlab
from archlab.cli import main as cli
from archlab.config.compose import plans

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(?:bash|sh)\n(.*?)```", README, flags=re.DOTALL)
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]'"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES = 150

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_first_command_installs_and_runs_the_main_job():
    assert BLOCKS[0].strip() == f"{INSTALL} && .venv/bin/python -m archlab +norm=rms +pos=alibi"


def test_the_second_command_installs_and_runs_the_tests():
    assert BLOCKS[1].strip() == f"{INSTALL} && .venv/bin/python -m pytest"


def test_ci_runs_the_second_command():
    """And stops there if it fails: what follows are the linters, of which tests/test_habits.py speaks."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert BLOCKS[1].strip() in lines and "set -euo pipefail" in lines


def test_a_plain_install_gets_the_newest_torch_and_the_tests_a_pinned_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "torch>=2.9" in project["dependencies"]
    assert "torch==2.13.0" in project["optional-dependencies"]["dev"]
    assert project["version"] == archlab.__version__


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) < LINES
    linked = set(re.findall(r"\]\(([\w/.]+\.md)\)", README))
    assert {str(page.relative_to(ROOT)) for page in PAGES} - {"README.md"} <= linked


def test_every_option_of_every_group_is_in_the_page_of_options():
    options = (ROOT / "docs" / "options.md").read_text()
    for file in (ROOT / "conf").glob("*/*.yaml"):
        if file.parent.name not in ("hydra", "claim"):
            assert re.search(rf"`{file.parent.name}`.*\b{re.escape(file.stem)}\b", options), (
                f"{file.parent.name}={file.stem}"
            )


@each_page
def test_a_page_names_files_that_exist(page):
    for path in re.findall(r"`((?:archlab|conf|docs|experiments|tests)/[\w./]+)`", page.read_text()):
        assert (ROOT / path).exists() or path.startswith("experiments/runs"), path


@each_page
def test_a_page_links_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        file, _, heading = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in {anchor(text) for text in headings}, target


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@each_page
def test_a_page_names_modules_and_functions_that_exist(page):
    for name in set(re.findall(r"`(archlab(?:\.\w+)+)[`(]", page.read_text())):
        assert pydoc.locate(name) is not None, name


def examples(text: str) -> list[str]:
    """Commands that can be composed as they stand: no placeholder, no folder of one's own, no verb on runs."""
    lines = re.findall(r"^archlab (.*)$", text, re.MULTILINE) + re.findall(r"`archlab ([^`]*)`", text)
    commands = (line.split("  #")[0].strip() for line in lines)
    return [line for line in commands if not re.search(r"\.\.\.|--|-sc|\b[A-Z]{2,}|experiments?[/=]|=scale", line)]


@each_page
def test_a_pages_examples_can_be_run(page):
    for command in examples(page.read_text()):
        verb, *words = shlex.split(command)
        if "=" in verb or verb == "-m":
            words = [word for word in (verb, *words) if word not in ("-m", "resume=true")]
            words = [re.sub(r"^(seed=\d+),.*", r"\1", word) for word in words]  # one seed shows as much as six
        elif verb not in ("show", "verify", "preflight"):
            continue
        if not re.match(r"\w+:", verb):  # archlab: ..., an answer
            assert plans(*words), command


@each_page
def test_a_mistake_that_a_page_shows_is_answered_so(page, capsys):
    for words, answer in re.findall(r"^\$ archlab (.*)\n(archlab: .*)$", page.read_text(), re.MULTILINE):
        with pytest.raises(SystemExit) as leaving:
            cli.main(shlex.split(words))
        assert leaving.value.code == 2 and capsys.readouterr().err == f"{answer}\n"


def test_a_norm_of_your_own_in_three_steps(tmp_path, monkeypatch, capsys):
    """The page's own lines, from a folder elsewhere, through `--config-dir` and with no file of archlab touched.

    The run is a command in this process; as a console script, which does not find the folder's own module by itself, is
    shown what it trains.
    """
    page = (ROOT / "docs" / "own_blocks.md").read_text()
    steps = page.split("## A norm of your own in three steps")[1].split("## ")[0]
    module, option = (
        textwrap.dedent(re.search(rf"```{kind}\n(.*?)```", steps, re.DOTALL)[1]) for kind in ("python", "yaml")
    )
    command = re.search(r"`python -m archlab (.*?)`", steps)[1].split()
    (tmp_path / "mine.py").write_text(module)
    (tmp_path / "my" / "norm").mkdir(parents=True)
    (tmp_path / "my" / "norm" / "scale.yaml").write_text(option)
    small = ["size=nano", "train.steps=3", "train.train_len=16", "eval.tokens=64", "eval.lengths=[1,2]"]
    console_script = "import sys; sys.path.remove(''); from archlab.cli.main import main; main()"
    shown = subprocess.run(
        [sys.executable, "-c", console_script, "show", *command, *small],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0 and re.search(r"^norm +scale\b", shown.stdout, re.MULTILINE), shown.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # as `python -m` has it
    cli.main(["plots=false", *command, *small])
    del sys.modules["mine"]  # whose file is gone when others look for one of this name
    summary = json.loads((tmp_path / capsys.readouterr().out.strip().splitlines()[-1] / "summary.json").read_text())
    assert summary["choices"]["norm"] == "scale" and summary["status"] == "completed"
