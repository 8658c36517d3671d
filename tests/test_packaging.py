"""The wheel: it carries conf/ and works from any folder, without the source tree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str, cwd: Path, **environment: str) -> str:
    answer = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel in it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT), cwd=folder)
    (wheel,) = folder.glob("archlab-*.whl")
    run(*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel), cwd=folder)
    return folder / "site"


def archlab(site: Path, cwd: Path, *words: str) -> str:
    return run(sys.executable, "-m", "archlab", *words, cwd=cwd, PYTHONPATH=str(site))


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*.yaml")}


def test_the_wheel_holds_the_package_and_conf_and_no_more(site: Path) -> None:
    assert files(site / "archlab" / "conf") == files(ROOT / "conf")
    assert {path.name for path in site.iterdir() if "dist-info" not in path.name} == {"archlab", "bin"}


def test_the_source_tree_is_not_used(site: Path, tmp_path: Path) -> None:
    ask = "import archlab.config.overrides as o; print(o.__file__); print(o.conf_dir())"
    module, conf = run(sys.executable, "-c", ask, cwd=tmp_path, PYTHONPATH=str(site)).split()
    assert Path(module).is_relative_to(site)
    assert Path(conf) == site / "archlab" / "conf"


def test_the_configuration_is_composed_elsewhere(site: Path, tmp_path: Path) -> None:
    assert "archlab.blocks.norm.LayerNorm" in archlab(site, tmp_path, "--cfg", "job", "+norm=layer")
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_built_elsewhere(site: Path, tmp_path: Path) -> None:
    ask = "import archlab; print(archlab.build('norm=rms', 'size=nano'))"
    assert "RMSNorm" in run(sys.executable, "-c", ask, cwd=tmp_path, PYTHONPATH=str(site))
    assert list(tmp_path.iterdir()) == []


def test_the_console_script(site: Path, tmp_path: Path) -> None:
    assert run(str(site / "bin" / "archlab"), "--version", cwd=tmp_path, PYTHONPATH=str(site)).startswith("archlab ")
