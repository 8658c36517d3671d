"""Commands given in this process: what they answer, and which jobs they would start."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from archlab.cli.main import main
from archlab.runs import lab, sweep
from archlab.verbs import describe


@dataclass
class Answer:
    """What a command left behind."""

    status: int
    out: str
    err: str


def in_a_process(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    """A command as a shell gives it, in a terminal of 80 columns."""
    environment = os.environ | {"PYTHONPATH": str(Path(lab.__file__).parents[2]), "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "archlab", *words], capture_output=True, text=True, cwd=cwd, env=environment
    )


@dataclass
class Session:
    """Runs commands in this process; instead of training, jobs are written down."""

    answer: Callable[..., Answer]
    jobs: list[tuple[DictConfig, list[str]]]

    def __call__(self, *words: str) -> Answer:
        return self.answer(*words)

    @property
    def norms(self) -> list[str]:
        return [cfg.choices.norm for cfg, _ in self.jobs]


def answered(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> Answer:
    GlobalHydra.instance().clear()
    capsys.readouterr()
    status = 0
    try:
        main(list(words))
    except SystemExit as leaving:
        assert leaving.code is None or isinstance(leaving.code, int)
        status = leaving.code or 0
    return Answer(status, *capsys.readouterr())


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Answer]]:
    """Carries commands out in this process, from an empty folder, for a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    yield lambda *words: answered(capsys, words)
    GlobalHydra.instance().clear()


@pytest.fixture
def archlab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Session]:
    jobs: list[tuple[DictConfig, list[str]]] = []

    def stand_in(cfg: DictConfig, overrides: Sequence[str], started: float | None = None, **options: object) -> Path:
        jobs.append((cfg, list(overrides)))
        return Path(cfg.output) / f"run-{len(jobs)}"

    monkeypatch.setattr(lab, "run", stand_in)
    monkeypatch.setattr(sweep, "default_workers", lambda: 1)  # other processes know of no stand-in
    monkeypatch.setattr(describe, "show", lambda cfg: str(stand_in(cfg, [])))
    monkeypatch.chdir(tmp_path)
    yield Session(lambda *words: answered(capsys, words), jobs)
    GlobalHydra.instance().clear()
