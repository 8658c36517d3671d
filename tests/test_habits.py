"""What ruff and mypy ask of the code, as pyproject.toml sets them up."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_the_linters_find_nothing(command, tmp_path):
    name, *arguments = command.split()
    arguments += ["--cache-dir", str(tmp_path)]  # nothing is left in the checkout
    done = subprocess.run([sys.executable, "-m", name, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
