"""What ruff and mypy ask of the code, as pyproject.toml sets them up."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_the_linters_find_nothing(command):
    """mypy takes most of a minute on a slow machine, and seconds once it has its cache."""
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_name_in_the_tests_is_defined():
    """Fault found: a slow test named what no longer stood in its module. test_checking.py names what is not there on purpose."""
    asked = ["check", "tests", "--isolated", "--select", "F821", "--exclude", "test_checking.py"]
    done = subprocess.run([sys.executable, "-m", "ruff", *asked], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
