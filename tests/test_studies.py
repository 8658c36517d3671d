"""The commands on the pages of experiments/ are still ones that archlab takes: what was found can be found again."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from archlab.config.compose import plans
from archlab.runs.experiments import expand

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "experiments").glob("*/README.md"))
HOW = re.compile(r"(workers|pack|plots|resume|budget)=")
"""Words of a sweep about how its runs are made."""

TYPED = r"""
python() { printf '%s\x1f' "$PWD" "$@"; printf '\x1e'; }
PATH=/nowhere
"""
"""So that a page's own shell says what it would have given to python, and does nothing else."""


def typed(page: Path) -> list[tuple[Path, list[str]]]:
    """By call of python on the page: the folder it is given in, and its words."""
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    script = "\n".join(block for block in blocks if "python" in block and not block.startswith("$"))
    shell = subprocess.run(
        ["bash", "-c", TYPED + script], cwd=ROOT, capture_output=True, text=True, env={"HOME": os.devnull}
    )
    calls = [call.strip("\n\x1f").split("\x1f") for call in shell.stdout.split("\x1e") if call.strip()]
    return [(Path(call[0]), call[1:]) for call in calls]


TRAINED = {
    f"{page.parent.name} {' '.join(words)}": (at, words)
    for page in PAGES
    for at, words in typed(page)
    if words[:2] == ["-m", "archlab"] and (words[2] == "-m" or "=" in words[2])
}
"""Without blocks of one's own, which tests/test_own_blocks.py runs."""

SCRIPTS = {words[0] for page in PAGES for _, words in typed(page) if words[0].endswith(".py")}


def one_value(word: str, which: int) -> str:
    """Of a word that is swept its first or last value: commas within brackets or quotes are part of a value."""
    name, given, values = word.partition("=")
    if not given or values.startswith(("[", "'", '"', "{")):
        return word
    return f"{name}={re.split(r',(?![^(]*[)])', values)[which]}"


@pytest.mark.parametrize("command", TRAINED)
def test_a_studys_runs_can_still_be_made(command, monkeypatch):
    """The first of a sweep and the last: they are composed and checked, and nothing is trained."""
    at, words = TRAINED[command]
    monkeypatch.chdir(at)
    words, _ = expand([word for word in words[2:] if word != "-m" and not HOW.match(word)], [])
    for which in (0, -1):
        assert plans(*(one_value(word, which) for word in words))


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_a_studys_script_is_there(script):
    assert (ROOT / script).is_file()


def test_every_study_with_runs_is_among_these():
    """A page whose commands are no longer understood would otherwise be held by nothing."""
    assert len(TRAINED) > 40 and len({command.split()[0] for command in TRAINED}) >= 13
