"""The README's two commands do everything on a fresh machine, and are what it says they are."""

import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import archlab

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(?:bash|sh)\n(.*?)```", README, flags=re.DOTALL)
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]'"


def test_the_first_command_installs_and_runs_the_main_job():
    assert BLOCKS[0].strip() == f"{INSTALL} && .venv/bin/python -m archlab +norm=rms +pos=alibi"


def test_the_second_command_installs_and_runs_the_tests():
    assert BLOCKS[1].strip() == f"{INSTALL} && .venv/bin/python -m pytest"


def test_ci_runs_the_second_command():
    assert (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1] == BLOCKS[1].strip()


def test_a_plain_install_gets_the_newest_torch_and_the_tests_a_pinned_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "torch>=2.9" in project["dependencies"]
    assert "torch==2.13.0" in project["optional-dependencies"]["dev"]
    assert project["version"] == archlab.__version__


def test_every_option_of_every_group_is_in_the_readme():
    for file in (ROOT / "conf").glob("*/*.yaml"):
        if file.parent.name not in ("hydra", "claim"):
            assert re.search(rf"`{file.parent.name}`.*\b{re.escape(file.stem)}\b", README), (
                f"{file.parent.name}={file.stem}"
            )


def test_the_readme_names_files_that_exist():
    for path in re.findall(r"`((?:archlab|conf|experiments|tests)/[\w./]+)`", README):
        assert (ROOT / path).exists() or path.startswith("experiments/runs"), path


def test_a_norm_of_your_own_in_three_steps(tmp_path):
    """The README's own lines, from a folder elsewhere, through `--config-dir` and with no file of archlab touched."""
    steps = README.split("### A norm of your own in three steps")[1].split("## ")[0]
    module, option = (
        textwrap.dedent(re.search(rf"```{kind}\n(.*?)```", steps, re.DOTALL)[1]) for kind in ("python", "yaml")
    )
    command = re.search(r"`python -m archlab (.*?)`", steps)[1].split()
    (tmp_path / "mine.py").write_text(module)
    (tmp_path / "my" / "norm").mkdir(parents=True)
    (tmp_path / "my" / "norm" / "scale.yaml").write_text(option)
    small = ["size=nano", "train.steps=3", "train.train_len=16", "eval.tokens=64", "eval.lengths=[1,2]"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    console_script = [
        sys.executable,
        "-c",
        "import sys; sys.path.remove(''); from archlab.cli.main import main; main()",
    ]
    for archlab_command in ([sys.executable, "-m", "archlab"], console_script):
        done = subprocess.run(
            [*archlab_command, *command, *small], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / done.stdout.strip().splitlines()[-1] / "summary.json").read_text())
        assert summary["choices"]["norm"] == "scale" and summary["status"] == "completed"
