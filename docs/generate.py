"""Writes what the pages of docs/ say about conf/ and about the code: lists of options and functions, the rooms, a run's walk.

python docs/generate.py     writes options.md, python.md and architecture.md between their markers, and the two pictures

Options are read from conf/, sentences from docstrings, arrows from imports; the walk is recorded from a run of two steps.
"""

import ast
import copy
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path

import yaml

DOCS = Path(__file__).parent
ROOT = DOCS.parent
CONF, PACKAGE = ROOT / "conf", ROOT / "archlab"


def main() -> None:
    pages = {
        "options.md": options_page(),
        "python.md": functions_page(),
        "architecture.md": {**rooms_page(), **walk_page()},
    }
    for page, parts in pages.items():
        written = filled((DOCS / page).read_text(encoding="utf-8"), parts)
        (DOCS / page).write_text(written, encoding="utf-8")
    (DOCS / "rooms.svg").write_text(rooms_picture(), encoding="utf-8")
    (DOCS / "walk.svg").write_text(walk_picture(), encoding="utf-8")


def filled(page: str, parts: Mapping[str, str]) -> str:
    """The page with each part between its two markers. Raises ValueError where a part or a marker is alone."""
    if unknown := set(re.findall(r"<!-- generated: (.*) -->", page)) - set(parts):
        raise ValueError(f"{', '.join(sorted(unknown))}: is between markers, and nothing writes it")
    for name, text in parts.items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"{begin.strip()} ... {end}: should be in the page once")
        before, _, rest = page.partition(begin)
        page = before + begin + "\n" + text.strip() + "\n\n" + end + rest.partition(end)[2]
    return page


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---------------------------------------------------------------- docstrings, without importing anything


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, in one line."""
    return re.split(r"(?<=\.)\s+(?=[A-Z`(])", " ".join(text.split()))[0]


def about_class(dotted: str) -> str:
    module, _, name = dotted.rpartition(".")
    (found,) = (node for node in parsed(file_of(module)).body if isinstance(node, ast.ClassDef) and node.name == name)
    return first_sentence(ast.get_docstring(found) or "")


def about_module(module: str) -> str:
    return (ast.get_docstring(parsed(file_of(module))) or "").split("\n\n")[0].replace("\n", " ")


# ---------------------------------------------------------------- options


@dataclass(frozen=True)
class Field:
    """One value of a yaml, by its dotted name, and the comment on its line, which may go on below it."""

    name: str
    value: str
    comment: str


def fields_of(file: Path, prefix: str = "") -> Iterator[Field]:
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()

    def walk(node: yaml.Node | None, path: str) -> Iterator[Field]:
        for key, value in node.value if node else ():
            name = f"{path}.{key.value}".lstrip(".")
            if name in ("defaults", "hydra"):  # of conf/config.yaml: the list of groups, and what is Hydra's own
                continue
            if isinstance(value, yaml.MappingNode) and value.value:
                inner = {inside.value: given for inside, given in value.value}
                if path and "_target_" in inner:
                    yield Field(name, inner["_target_"].value, "")
                yield from walk(value, name)
            elif not key.value.startswith("_"):
                end = value.end_mark
                beside = re.match(r"\s*#\s*(.*)", lines[end.line][end.column :])
                below = takewhile(bool, (re.match(r"\s+#\s*(.*)", line) for line in lines[end.line + 1 :]))
                comment = " ".join(found[1] for found in (beside, *below) if found) if beside else ""
                yield Field(name, text[value.start_mark.index : end.index], comment)

    yield from walk(yaml.compose(text), "" if "@package _global_" in lines[0] else prefix)


def top_comment(file: Path) -> str:
    """The first line of the comment a yaml begins with, and the end of its last sentence where that is on later lines."""
    lines = file.read_text(encoding="utf-8").splitlines()
    lines = lines[1:] if lines[0].startswith("# @package") else lines
    first, *others = [line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines)] or [""]
    return first if first.endswith(".") or not others else f"{first} {first_sentence(' '.join(others))}"


def target_of(group: str, file: Path) -> str:
    loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded.get(group, loaded).get("_target_", "") if isinstance(loaded.get(group, loaded), dict) else ""


def about_option(group: str, file: Path) -> str:
    """The yaml's first comment, or the first sentence of its class and what tells it from others of that class."""
    if said := top_comment(file):
        return said
    target = target_of(group, file)
    alike = [other for other in sorted(file.parent.glob("*.yaml")) if target_of(group, other) == target]
    values = [{(entry.name.partition(".")[2], entry.value) for entry in fields_of(other, group)}
              for other in alike if not top_comment(other)]  # fmt: skip
    shared = set.intersection(*values) if len(values) > 1 else set()
    own = [(name, value) for entry in fields_of(file, group)
           for name, value in [(entry.name.partition(".")[2], entry.value)]
           if len(values) > 1 and (name, value) not in shared]  # fmt: skip
    sentence = about_class(target) if target else ""
    return " ".join(filter(None, [sentence, ", ".join(f"`{name}`: {value}" for name, value in own)]))


def defaults() -> dict[str, str]:
    """The option of each group that is taken where nothing is said, in the order of conf/config.yaml."""
    chosen = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: name for entry in chosen if isinstance(entry, dict) for group, name in entry.items()}


def groups() -> dict[str, list[Path]]:
    """Every group and its options; those with a default first, which is the order of a model's description."""
    found = {folder.name: sorted(folder.glob("*.yaml")) for folder in sorted(CONF.iterdir()) if folder.is_dir()}
    names = [*defaults(), *(name for name in found if name not in defaults())]
    return {name: found[name] for name in names if name not in ("claim", "hydra")}


def options_page() -> dict[str, str]:
    chosen = defaults()
    rows = []
    for group, files in groups().items():
        names = [f"**{file.stem}**" if chosen.get(group) == file.stem else file.stem for file in files]
        rows.append([f"`{group}`", ", ".join(sorted(names, key=lambda name: not name.startswith("**")))])
    parts = {"groups": table(["group", "options, the default in bold"], rows)}
    for group, files in groups().items():
        named = [[f"`{group}={file.stem}`", about_option(group, file)] for file in files]
        parts[group] = table(["option", "what it is"], named)
        if group in chosen and (merged := merged_fields(group, files)):
            parts[group] += "\n\n" + table(["field", "value", "what it means"], merged)
    return {**parts, "fields": other_fields()}


def merged_fields(group: str, files: Sequence[Path]) -> list[list[str]]:
    """A row per field of a group: its value in each option that has it, and what it means."""
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    comments: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        for entry in fields_of(file, group):
            values[entry.name][entry.value].append(file.stem)
            if entry.comment:
                comments[entry.name][entry.comment].append(file.stem)
    rows = []
    for name, by_value in values.items():
        having = {option for of in by_value.values() for option in of}
        everywhere = [*by_value.values()] == [[file.stem for file in files]]
        given = [f"`{value}`" + ("" if everywhere else f" ({', '.join(of)})") for value, of in by_value.items()]
        said = [text + (f" ({', '.join(of)})" if {*of} != having else "") for text, of in comments[name].items()]
        rows.append([f"`{name}`", "; ".join(given), "; ".join(said)])
    return rows


def other_fields() -> str:
    """What conf/config.yaml holds beside the groups."""
    rows = [[f"`{entry.name}`", f"`{entry.value}`", entry.comment] for entry in fields_of(CONF / "config.yaml")]
    return table(["field", "default", "what it means"], rows)


# ---------------------------------------------------------------- functions


def found_in() -> dict[str, str]:
    """The public names of the package and the module of each, as its __init__ has them."""
    for node in parsed(PACKAGE / "__init__.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FOUND_IN":
            return {name: f"{PACKAGE.name}.{module}" for name, module in ast.literal_eval(node.value).items()}
    raise ValueError(f"{PACKAGE / '__init__.py'}: has no FOUND_IN")


def functions_page() -> dict[str, str]:
    """How each public function is called, and its first sentence."""
    rows = [
        [f"`archlab.{name}({arguments(node.args)})`", first_sentence(ast.get_docstring(node) or "")]
        for name, module in sorted({**found_in(), "build": PACKAGE.name}.items())
        for node in parsed(file_of(module)).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    return {"functions": table(["call", "what it does"], rows)}


def arguments(given: ast.arguments) -> str:
    """Names and defaults, without types."""
    given = copy.deepcopy(given)
    for node in ast.walk(given):
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.unparse(given)


# ---------------------------------------------------------------- rooms


@dataclass
class Room:
    """A package under archlab, the rooms it imports, and its floor: one above the highest of them."""

    name: str
    files: int = 0
    imports: set[str] = field(default_factory=set)
    floor: int = 0


def room_of(module: str) -> str:
    return module.split(".")[1]


def modules() -> dict[str, Path]:
    """Every module in a room, by its dotted name."""
    named = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if len(parts) > 2:
            named[".".join(parts).removesuffix(".__init__")] = file
    return named


def imported(module: str, file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules in rooms that a file imports, those under TYPE_CHECKING and inside functions included."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
            above = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            targets = [dotted if (dotted := f"{base}.{alias.name}") in known else base for alias in node.names]
        else:
            continue
        yield from (target for target in targets if target.startswith(f"{PACKAGE.name}."))


@cache
def rooms() -> dict[str, Room]:
    known = modules()
    found: dict[str, Room] = {}
    for module, file in known.items():
        room = found.setdefault(room_of(module), Room(room_of(module)))
        room.files += 1
        room.imports |= {room_of(target) for target in imported(module, file, known)} - {room.name}

    def floor(name: str, above: tuple[str, ...] = ()) -> int:
        if name in above:
            raise ValueError(f"imports run in a circle: {' -> '.join((*above, name))}")
        return 1 + max((floor(other, (*above, name)) for other in found[name].imports), default=0)

    for room in found.values():
        room.floor = floor(room.name)
    return found


def reachable(name: str) -> set[str]:
    return set().union(*({other} | reachable(other) for other in rooms()[name].imports))


def drawn_arrows() -> list[tuple[str, str]]:
    """The imports that no way through another room stands for."""
    return [
        (room.name, other)
        for room in rooms().values()
        for other in sorted(room.imports)
        if not any(other in reachable(between) for between in room.imports)
    ]


def rooms_page() -> dict[str, str]:
    rows = []
    for room in sorted(rooms().values(), key=lambda room: (-room.floor, room.name)):
        below = ", ".join(sorted(room.imports, key=lambda name: (-rooms()[name].floor, name)))
        rows.append([str(room.floor), f"`{room.name}`", about_module(f"archlab.{room.name}"), below or "nothing"])
    count = sum(len(room.imports) for room in rooms().values())
    floors = max(room.floor for room in rooms().values())
    head = f"{len(rows)} rooms on {floors} floors, {count} imports of one room by another."
    return {"rooms": head + "\n\n" + table(["floor", "room", "what it is for", "imports"], rows)}


WIDE, HIGH, GAP, STEP_Y = 118, 30, 26, 76
"""Of a box, between two boxes of a floor, and from floor to floor."""


@dataclass(frozen=True)
class Stop:
    """Where a way from room to room passes a floor: a room, or, with `to`, the free place between rooms for one arrow."""

    room: str
    floor: int
    to: str = ""

    @property
    def wide(self) -> float:
        return 0 if self.to else WIDE


def ways() -> list[list[Stop]]:
    """Each drawn arrow as its stops, one on each floor it passes, from above."""
    floor = {room.name: room.floor for room in rooms().values()}
    return [
        [Stop(above, floor[above]),
         *(Stop(above, level, below) for level in range(floor[above] - 1, floor[below], -1)),
         Stop(below, floor[below])]
        for above, below in drawn_arrows()
    ]  # fmt: skip


def placed(drawn: Sequence[Sequence[Stop]]) -> dict[Stop, float]:
    """The middle of each stop, floor by floor from the ground: above what it leads to, as far as its neighbours let it."""
    leads_to: dict[Stop, list[Stop]] = defaultdict(list)
    for way in drawn:
        for above, below in pairwise(way):
            leads_to[above].append(below)
    stops = {Stop(room.name, room.floor) for room in rooms().values()}.union(*drawn)
    place: dict[Stop, float] = {}
    for level in sorted({stop.floor for stop in stops}):
        wish = {
            stop: sum(place[below] for below in leads_to[stop]) / max(len(leads_to[stop]), 1)
            for stop in stops
            if stop.floor == level
        }
        row = sorted(wish, key=lambda stop: (wish[stop], stop.room, stop.to))
        x = [wish[row[0]]]
        for left, right in pairwise(row):
            x.append(max(wish[right], x[-1] + (left.wide + right.wide) / 2 + GAP))
        shift = sum(wish[stop] - at for stop, at in zip(row, x, strict=True)) / len(row)
        place |= {stop: at + shift for stop, at in zip(row, x, strict=True)}
    return place


def rooms_picture() -> str:
    from archlab.diagram.canvas import Canvas, document

    drawn, canvas, top = ways(), Canvas(), max(room.floor for room in rooms().values())
    place = placed(drawn)
    left, right = min(place.values()) - WIDE, max(place.values()) + WIDE

    def y(floor: int) -> float:
        return (top - floor) * STEP_Y

    for first, *passed, last in drawn:
        between = [(place[stop], y(stop.floor) + edge) for stop in passed for edge in (0, HIGH)]
        canvas.line([(place[first], y(first.floor) + HIGH), *between, (place[last], y(last.floor))], thick=1.1)
    for stop, x in sorted(place.items(), key=lambda item: (-item[0].floor, item[1])):
        if not stop.to:
            canvas.rect(x - WIDE / 2, y(stop.floor), WIDE, HIGH, "#eef3f8", "#44617e")
            canvas.text(x, y(stop.floor) + 19, stop.room, 13, bold=True)
    for floor in range(1, top + 1):
        canvas.text(left - 50, y(floor) + 19, f"floor {floor}", 11, anchor="start", fill="#595959")
    title = "The rooms of archlab, and what they import"
    return document(canvas.elements, left - 60, -16, right - left + 60, y(1) + HIGH + 32, title)


# ---------------------------------------------------------------- a run's walk

TINY_RUN = (
    "size=nano train.steps=2 train.train_len=16 train.batch_size=2 train.save_every=1 probe.every=1 eval.tokens=64"
    " eval.lengths=[1,2] device=cpu precision=fp32"
).split()

RECORDER = '''
import sys

entered = {}


def name_of(frame):
    made = frame.f_locals.get("self") if frame.f_code.co_name == "__init__" else None
    return type(made).__name__ if made is not None else frame.f_code.co_qualname


def first_entry(frame, event, argument):
    """Notes the first call into each module of archlab, and the module it came from; what an import runs is no call."""
    module = frame.f_globals.get("__name__", "")
    if event != "call" or not module.startswith("archlab.") or module in entered:
        return
    caller, above = "", frame
    while above := above.f_back:
        other = above.f_globals.get("__name__", "")
        if other.startswith("archlab."):
            if above.f_code.co_name == "<module>":
                return
            caller = caller or (other if other != module else "")
    if frame.f_code.co_name != "<module>":
        entered[module] = (name_of(frame), caller)


from archlab.cli.main import main

sys.setprofile(first_entry)
main(sys.argv[1:])
sys.setprofile(None)
for module, (name, caller) in entered.items():
    print("entered", module, name, caller)
'''


@dataclass(frozen=True)
class Entry:
    """The first call into a module: what was called, and by which module."""

    module: str
    called: str
    caller: str


@cache
def walk() -> list[Entry]:
    """First entries into modules, in order, of a run of two steps from the command line to its directory."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{RECORDER}", *TINY_RUN,
             f"output={folder}/runs"],
            cwd=folder, check=True, capture_output=True, text=True,
        )  # fmt: skip
    return [Entry(*(line.split(" ")[1:4])) for line in done.stdout.splitlines() if line.startswith("entered ")]


def walk_page() -> dict[str, str]:
    rows = [
        [str(number), f"`{entry.module}`", f"`{entry.called}`", f"`{entry.caller}`" if entry.caller else "you",
         first_sentence(about_module(entry.module))]
        for number, entry in enumerate(walk(), 1)
    ]  # fmt: skip
    command = f"The command: `archlab {' '.join(TINY_RUN)}`."
    head = f"{len(rows)} modules in {len({room_of(entry.module) for entry in walk()})} rooms are entered."
    return {"walk": f"{command} {head}\n\n" + table(["", "module", "first call", "by", "what it is"], rows)}


COLUMN, LINE, LEFT, HEAD = 62, 19, 40, 30


def walk_picture() -> str:
    """A row per module in the order of first entries, a column per room; an arrow from the caller's room to the callee's."""
    from archlab.diagram.canvas import Canvas, document

    order = list(dict.fromkeys(room_of(entry.module) for entry in walk()))
    column = {room: LEFT + COLUMN * index for index, room in enumerate(order)}
    right, bottom = LEFT + COLUMN * len(order), HEAD + LINE * (len(walk()) + 1)
    canvas = Canvas()
    for room, x in column.items():
        canvas.elements.append(f'<path d="M{x} {HEAD}V{bottom - 8}" stroke="#cccccc"/>')
        canvas.text(x, HEAD - 9, room, 10, room=COLUMN - 4, bold=True)
    for number, entry in enumerate(walk(), 1):
        y, x = HEAD + LINE * number, column[room_of(entry.module)]
        start = column[room_of(entry.caller)] if entry.caller else LEFT - 26
        if start != x:
            canvas.line([(start, y), (x - 4 if start < x else x + 4, y)], thick=1)
        canvas.elements.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="#44617e"/>')
        canvas.text(right, y + 4, f"{number}  {entry.module.removeprefix('archlab.')}", 10, anchor="start")
    return document(canvas.elements, 0, 0, right + 220, bottom + 10, "The modules a run walks through, in order")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
