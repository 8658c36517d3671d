"""The house stands: imports run downhill, no forward asks about configuration, and every name is there and explained."""

import ast
import inspect
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from conftest import SHAPED

import archlab

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
    ("benchmark", "claim", "difference"),
    ("verbs",),
    ("cli",),
    ("__main__",),
)
"""From the ground up. A room may import rooms of lower floors and itself."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def imports_in(file: Path) -> list[ast.Import | ast.ImportFrom]:
    """Wherever in the file they stand."""
    return [node for node in ast.walk(tree_of(file)) if isinstance(node, (ast.Import, ast.ImportFrom))]


def modules_imported(file: Path) -> set[str]:
    """Packages and modules by their dotted names."""
    named = {node.module or "" for node in imports_in(file) if isinstance(node, ast.ImportFrom)}
    return named | {alias.name for node in imports_in(file) if isinstance(node, ast.Import) for alias in node.names}


def rooms_imported(file: Path) -> set[str]:
    modules = modules_imported(file)
    modules |= {
        f"archlab.{alias.name}"
        for node in imports_in(file)
        if isinstance(node, ast.ImportFrom) and node.module == "archlab"
        for alias in node.names
    }
    return {module.split(".")[1] for module in modules if module.startswith("archlab.")}


@pytest.mark.parametrize(
    "file",
    [f for f in FILES if f.name != "__init__.py" or f.parent != PACKAGE],
    ids=lambda f: str(f.relative_to(PACKAGE)),
)
def test_imports_run_downhill(file):
    here = room_of(file)
    uphill = {room for room in rooms_imported(file) if room != here and FLOOR[room] >= FLOOR[here]}
    assert not uphill, f"{here} imports {uphill}, which stand no lower"


def test_every_room_has_a_floor():
    assert {room_of(file) for file in FILES} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("room", ["base", "blocks", "model", "data", "probe", "comparison", "report"])
def test_blocks_and_their_neighbours_know_nothing_of_hydra(room):
    files = [file for file in FILES if room_of(file) == room]
    assert files
    for file in files:
        assert "hydra" not in {word.split(".")[0] for word in modules_imported(file)}, file


def test_shapes_are_checked_wherever_a_signature_has_one():
    modules = {
        file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): file
        for file in FILES
    }
    shaped = [name for name, file in modules.items() if "jaxtyping" in modules_imported(file)]
    assert shaped and not [name for name in shaped if not f"{name}.".startswith(tuple(f"{room}." for room in SHAPED))]


def test_rooms_that_only_read_records_import_no_torch():
    for file in (file for file in FILES if room_of(file) in ("comparison", "report")):
        assert not {"torch", "hydra", "omegaconf"} & {word.split(".")[0] for word in modules_imported(file)}, file


@pytest.mark.parametrize(
    "file", [f for f in FILES if room_of(f) in ("blocks", "model")], ids=lambda f: str(f.relative_to(PACKAGE))
)
def test_no_forward_branches(file):
    """Choices are made when the model is built: a forward holds no if, no conditional expression, no match."""
    for node in ast.walk(tree_of(file)):
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


# ---------------------------------------------------------------- names


@cache
def names_in(file: Path) -> set[str]:
    """What a module defines or imports at its top level, also under an `if` there."""
    names = {"__doc__", "__name__", "__file__"}
    todo = list(tree_of(file).body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, (ast.If, ast.With, ast.Try)):
            todo += node.body
        else:
            names |= {
                part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
    return names


@cache
def exists(dotted: str) -> bool:
    """Whether archlab has a module of this name, or a module that has such a thing at its top level."""
    place = ROOT
    for i, part in enumerate(parts := dotted.split(".")):
        if (place / part).is_dir():
            place = place / part
        elif (place / f"{part}.py").is_file():
            return i + 1 == len(parts) or parts[i + 1] in names_in(place / f"{part}.py")
        else:
            return (place / "__init__.py").is_file() and part in names_in(place / "__init__.py")
    return (place / "__init__.py").is_file()


def named_in_code(file: Path) -> set[str]:
    """What is imported from archlab, by dotted names."""
    imported = {alias.name for node in imports_in(file) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {
        f"{node.module}.{alias.name}"
        for node in imports_in(file)
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
        for alias in node.names
    }
    return {name for name in imported if name.split(".")[0] == "archlab"}


def named_in_prose(file: Path) -> set[str]:
    return set(re.findall(r"(?<![\w./-])archlab(?:\.[A-Za-z_]\w*)+", file.read_text())) - TO_BE_WRITTEN


TO_BE_WRITTEN = {"archlab.blocks.norm.ScaleNorm"}
"""What CONTRIBUTING.md has its reader add."""


CODE = [file for folder in ("experiments", "archlab", "tests") for file in sorted((ROOT / folder).rglob("*.py"))]
PROSE = [
    *sorted(ROOT.glob("*.md")),
    *(file for folder in ("docs", "experiments") for file in sorted((ROOT / folder).rglob("*.md"))),
    *sorted((ROOT / "conf").rglob("*.yaml")),
    *FILES,
]


@pytest.mark.parametrize(("files", "named"), [(CODE, named_in_code), (PROSE, named_in_prose)], ids=["code", "prose"])
def test_what_is_named_of_archlab_is_there(files, named):
    wrong = [f"{file.relative_to(ROOT)}: {name}" for file in files for name in named(file) if not exists(name)]
    assert not wrong, "\n".join(wrong)


def classes_in(file: Path) -> list[ast.ClassDef]:
    return [node for node in tree_of(file).body if isinstance(node, ast.ClassDef)]


def test_no_two_classes_have_one_name():
    places: dict[str, list[str]] = {}
    for file in FILES:
        for node in classes_in(file):
            places.setdefault(node.name, []).append(str(file.relative_to(PACKAGE)))
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_every_block_says_what_it_is():
    silent = [
        f"{file.name}: {node.name}"
        for file in FILES
        if room_of(file) == "blocks"
        for node in classes_in(file)
        if not ast.get_docstring(node)
    ]
    assert not silent


def test_every_public_name_says_what_it_does():
    """What `archlab` offers, and of its classes every public method and property that archlab wrote."""
    public = {name: getattr(archlab, name) for name in archlab.__all__}
    for name, thing in list(public.items()):
        for kind in thing.__mro__ if inspect.isclass(thing) else ():
            if kind.__module__.split(".")[0] == "archlab":
                members = {key: member for key, member in vars(kind).items() if not key.startswith("_")}
                public |= {
                    f"{name}.{key}": member
                    for key, member in members.items()
                    if inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod))
                }
    assert not [name for name, thing in public.items() if not (isinstance(thing, str) or inspect.getdoc(thing))]


def test_no_two_files_of_tests_have_one_name():
    """pytest imports them by their bare names: of two it collects the first and fails on the second."""
    names = Counter(file.name for file in (ROOT / "tests").rglob("*.py"))
    assert not [name for name, times in names.items() if times > 1]


def test_one_file_knows_where_an_override_is_cut():
    """And the flags and the shell's completion, whose words are not overrides."""
    cutting = {str(file.relative_to(PACKAGE)) for file in FILES if 'partition("=")' in file.read_text()}
    assert cutting == {"base/words.py", "config/flags.py", "cli/main.py"}
