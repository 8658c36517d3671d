"""What docs/generate.py writes is up to date, and says what it should."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import archlab
from archlab.hub.families import FAMILIES

DOCS = Path(__file__).parent.parent / "docs"
AGAIN = "run python docs/generate.py"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(page: str, name: str) -> str:
    """What stands between the markers of a part."""
    text = (DOCS / page).read_text()
    return re.search(rf"<!-- generated: {name} -->\n(.*?)<!-- end: {name} -->", text, re.DOTALL)[1].strip()


def test_the_options_are_up_to_date(generate):
    page = (DOCS / "options.md").read_text()
    assert generate.filled(page, generate.options_page()) == page, AGAIN


def test_the_functions_are_up_to_date_and_complete(generate):
    page = (DOCS / "python.md").read_text()
    assert generate.filled(page, generate.functions_page()) == page, AGAIN
    functions = set(archlab.__all__) - {"Decoder", "hub"}
    assert functions == set(re.findall(r"^\| `archlab\.(\w+)\(", page, re.MULTILINE))


def test_every_option_has_a_sentence(generate):
    for group, files in generate.groups().items():
        for file in files:
            assert len(generate.about_option(group, file)) > 3, file


def test_the_rooms_are_up_to_date(generate):
    assert generate.rooms_picture() == (DOCS / "rooms.svg").read_text(), AGAIN
    assert generate.rooms_page()["rooms"] == written("architecture.md", "rooms"), AGAIN


def test_arrows_go_to_lower_floors_and_stand_for_every_import(generate):
    rooms, arrows = generate.rooms(), generate.drawn_arrows()
    assert all(rooms[above].floor > rooms[below].floor for above, below in arrows)
    for room in rooms.values():
        ways, reached = [room.name], set()
        while ways:
            here = ways.pop()
            reached |= (found := {below for above, below in arrows if above == here})
            ways += found
        assert room.imports <= reached, room


@pytest.mark.slow
def test_the_walk_is_up_to_date(generate):
    page = (DOCS / "architecture.md").read_text()
    assert generate.filled(page, {**generate.rooms_page(), **generate.walk_page()}) == page, AGAIN
    assert generate.walk_picture() == (DOCS / "walk.svg").read_text(), AGAIN


def test_the_walk_names_modules_that_exist(generate):
    """What can be seen without a run: a module that was moved or taken away."""
    steps = re.findall(r"^\| \d+ \| `([\w.]+)` \|", written("architecture.md", "walk"), re.MULTILINE)
    assert len(steps) > 30 and set(steps) <= generate.modules().keys(), AGAIN


def test_the_table_of_parity_has_every_family():
    """Fault found: twenty families that were added after it was written were missing. conftest.py says how it is written."""
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\S+) \| (\S+) \|$", (DOCS / "huggingface.md").read_text(), re.M)
    assert {family for family, *_ in rows} == set(FAMILIES)
    assert all(
        int(cases) > 0 and float(logits) < 1e-7 and float(gradients) < 1e-7 for _, cases, logits, gradients in rows
    )


def test_a_part_without_markers_is_refused(generate):
    with pytest.raises(ValueError, match="should be in the page once"):
        generate.filled("a page", {"norm": "a table"})
    with pytest.raises(ValueError, match="nothing writes it"):
        generate.filled("<!-- generated: norm -->\n<!-- end: norm -->", {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# One line.\n# Another.\nx: 1\n", "One line."),
        ("# @package _global_\n# A first one. A second that\n# goes on. And more.\nx: 1\n", "A first one. A second that goes on."),
        ("# a | b\nx: 1\n", "a | b"),
        ("x: 1  # no comment of the file\n", ""),
    ],
)  # fmt: skip
def test_an_options_sentence_ends(generate, tmp_path, text, said):
    """Fault found: of a comment that goes on in the next line, the page had the first half."""
    (tmp_path / "a.yaml").write_text(text)
    assert generate.top_comment(tmp_path / "a.yaml") == said


def test_a_fields_comment_goes_on_below_it(generate, tmp_path):
    (tmp_path / "a.yaml").write_text("a: null  # one;\n         # two\nb: 1\nc: 2  # three\n# of d\nd: 3\n")
    assert [(entry.name, entry.comment) for entry in generate.fields_of(tmp_path / "a.yaml", "group")] == [
        ("group.a", "one; two"),
        ("group.b", ""),
        ("group.c", "three"),
        ("group.d", ""),
    ]


def test_what_some_options_say_of_a_field_is_said_of_these(generate, tmp_path):
    """Fault found: dropout stood there as that of the output, of mixers that drop weights too and said nothing."""
    for name, text in {"a": "x: 1  # one\ny: 1  # all\n", "b": "x: 1\ny: 1  # all\n", "c": "z: 1  # alone\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    rows = generate.merged_fields("g", sorted(tmp_path.glob("*.yaml")))
    assert {name: said for name, _, said in rows} == {"`g.x`": "one (a)", "`g.y`": "all", "`g.z`": "alone"}
