"""The house stands: imports run downhill only, and no forward asks about configuration."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "archlab"

FLOORS = (
    ("base", "probe"),
    ("blocks", "data"),
    ("model",),
    ("cost", "train"),
    ("evaluate", "initial", "records"),
    ("comparison", "config"),
    ("contract", "diagram", "hub", "report"),
    ("runs",),
    ("claim", "difference"),
    ("verbs",),
    ("cli",),
    ("__main__",),
)
"""From the ground up. A room may import rooms of lower floors and itself."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(tree: ast.AST) -> set[str]:
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [
        f"archlab.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "archlab"
        for alias in node.names
    ]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {module.split(".")[1] for module in modules if module.startswith("archlab.")}


@pytest.mark.parametrize(
    "file",
    [f for f in FILES if f.name != "__init__.py" or f.parent != PACKAGE],
    ids=lambda f: str(f.relative_to(PACKAGE)),
)
def test_imports_run_downhill(file):
    here = room_of(file)
    uphill = {
        room for room in rooms_imported(ast.parse(file.read_text())) if room != here and FLOOR[room] >= FLOOR[here]
    }
    assert not uphill, f"{here} imports {uphill}, which stand no lower"


def test_every_room_has_a_floor():
    assert {room_of(file) for file in FILES} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("room", ["base", "blocks", "model", "data", "probe", "comparison", "report"])
def test_blocks_and_their_neighbours_know_nothing_of_hydra(room):
    files = [file for file in FILES if room_of(file) == room]
    assert files
    for file in files:
        assert "hydra" not in {word.split(".")[0] for word in imported_packages(file)}, file


def imported_packages(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    named = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return named | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def test_rooms_that_only_read_records_import_no_torch():
    for file in (file for file in FILES if room_of(file) in ("comparison", "report")):
        assert not {"torch", "hydra", "omegaconf"} & {word.split(".")[0] for word in imported_packages(file)}, file


@pytest.mark.parametrize(
    "file", [f for f in FILES if room_of(f) in ("blocks", "model")], ids=lambda f: str(f.relative_to(PACKAGE))
)
def test_no_forward_branches(file):
    """Choices are made when the model is built: a forward holds no if, no conditional expression, no match."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in (
            "forward",
            "join",
            "can_attend",
            "bias",
            "rotation",
            "rotate_queries",
            "rotate_keys",
            "embed",
        ):
            branches = [n for n in ast.walk(node) if isinstance(n, (ast.If, ast.IfExp, ast.Match))]
            assert not branches, f"{file.name}:{node.lineno} {node.name} branches"
