"""What ruff and mypy ask of the code, as pyproject.toml sets them up."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


LINTERS = ["ruff check .", "ruff format --check .", "mypy"]


@pytest.mark.parametrize("command", [*LINTERS[:2], pytest.param("mypy", marks=pytest.mark.slow)])
def test_the_linters_find_nothing(command):
    """mypy takes most of a minute on a slow machine, so .ci/run calls it beside the tests, not within them."""
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", LINTERS)
def test_ci_and_pre_commit_call_each_linter(command):
    assert f".venv/bin/python -m {command}" in (ROOT / ".ci" / "run").read_text().splitlines()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert f"python -m {command}" in [hook["entry"] for hook in hooks]


def test_every_name_in_the_tests_is_defined():
    """Fault found: a slow test named what no longer stood in its module. test_checking.py names what is not there on purpose."""
    asked = ["check", "tests", "--isolated", "--select", "F821", "--exclude", "test_checking.py"]
    done = subprocess.run([sys.executable, "-m", "ruff", *asked], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
