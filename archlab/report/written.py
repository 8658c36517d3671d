"""From directories of runs, claims and stability maps to one HTML file."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from archlab.base.errors import UserError
from archlab.base.files import check_folder, write_text
from archlab.base.plain import Unreadable, read_json
from archlab.comparison.arms import identity
from archlab.comparison.comparison import compare
from archlab.records.reader import Run, find, inside, named, read_run
from archlab.report.page import page
from archlab.report.page.claims import claim_sections
from archlab.report.page.comparison import comparison_sections
from archlab.report.page.parts import Section
from archlab.report.page.stability import stability_section

Record = dict[str, Any]

CLAIMS = Path("experiments/claims")
"""Where a claim is found by its name."""
NEEDED = {
    "result.json": ("name", "sentence", "source", "verdict", "reason", "regime", "seconds", "seeds", "parts"),
    "stability_map.json": ("arms",),
}
"""The records that a directory may hold instead of a run, and the fields that each must have."""


LAID_OUT: dict[str, Callable[[Record], object]] = {
    "result.json": lambda record: claim_sections([record]),
    "stability_map.json": stability_section,
}
"""What a record becomes on the page; a record for which this fails is left out."""


def write_report(
    names: Sequence[str], output: Path, comparing: Mapping[str, Any] = {}, draw: Callable[[Path], str] | None = None
) -> Path:
    """Writes the page that `names` ask for and returns its path.

    A name is the directory of a run, a folder of runs, the directory of a claim (result.json) or of a stability map
    (stability_map.json), a claim's name, or a glob of these. `comparing` is passed to `compare`; `draw` makes
    a diagram, as SVG, of the model in a run's directory. What cannot be read is left out, with a note on stderr and on the page. Raises
    UserError where nothing is left, or the runs cannot be compared.
    """
    if not names:
        raise UserError("report: name runs or claims, such as archlab report 'experiments/runs/*'")
    if output.suffix not in (".html", ".htm"):
        raise UserError(f"output={output}: is a web page; give a name that ends in .html")
    check_folder("output", output)
    records, directories = sorted_out(names)
    if comparing and not directories:
        raise UserError(f"{next(iter(comparing))}={next(iter(comparing.values()))}: no runs to compare; leave it out")
    notes: list[str] = []
    runs, drawings = drawn(list(readable(directories, read_run, notes)), draw, notes)
    claims = list(readable(records["result.json"], read_record, notes))
    maps = list(readable(records["stability_map.json"], read_record, notes))
    if not (runs or claims or maps):
        raise UserError(f"report: nothing that can be read; {notes[0]}")
    notes = [note.removesuffix("; leave it out") for note in notes]
    for note in notes:
        print(f"archlab: note: left out: {note}", file=sys.stderr)

    title, sections = compared(runs, comparing, drawings) if runs else ("Claims" if claims else "Stability", [])
    sections += claim_sections(claims) + [stability_section(record) for record in maps]
    left_out = f"Left out: {'. '.join(notes)}" if notes else ""
    replace(output, page(sections, title, left_out))
    return output


def compared(
    runs: Sequence[Run], comparing: Mapping[str, Any], drawings: Mapping[str, str]
) -> tuple[str, list[Section]]:
    """The question that the runs answer, and its sections; `drawings` holds an arm's diagram by its `identity`."""
    record = compare(runs, **comparing).record()
    arm_of = {str(run.directory): identity(run) for run in runs}
    found = {arm["label"]: drawings.get(arm_of[arm["runs"][0]], "") for arm in record["arms"]}
    return record["question"], comparison_sections(record, runs, {label: svg for label, svg in found.items() if svg})


def drawn(
    runs: Sequence[Run], draw: Callable[[Path], str] | None, notes: list[str]
) -> tuple[list[Run], dict[str, str]]:
    """The runs whose model can be drawn, and each arm's diagram; why the others cannot is added to the notes."""
    if draw is None:
        return list(runs), {}
    drawings: dict[str, str] = {}
    refused: dict[str, str] = {}
    for run in runs:
        arm = identity(run)
        if arm not in drawings and arm not in refused:
            try:
                drawings[arm] = draw(run.directory)
            except UserError as error:
                refused[arm] = str(error)
        if arm in refused:
            notes.append(f"{run.directory}: {refused[arm].removeprefix(str(run.directory)).lstrip('/: ')}")
    return [run for run in runs if identity(run) in drawings], drawings


def sorted_out(names: Sequence[str]) -> tuple[dict[str, list[Path]], list[Path]]:
    """The records among what is named, by file, and the directories of runs."""
    records: dict[str, list[Path]] = {file: [] for file in NEEDED}
    directories: list[Path] = []
    for name in names:
        by_name = CLAIMS / name / "result.json"
        matching = named(name)
        paths = [by_name.parent] if not matching and by_name.is_file() else matching
        kept = [(file, path / file) for path in paths for file in NEEDED if (path / file).is_file()]
        for file, path in kept:
            records[file].append(path)
        others = [path for path in paths if path not in {path.parent for _, path in kept}]
        if others or not paths:
            directories += find_beside(others, name, needed=not kept)
    return {file: list(dict.fromkeys(paths)) for file, paths in records.items()}, list(dict.fromkeys(directories))


def find_beside(paths: Sequence[Path], name: str, needed: bool) -> list[Path]:
    """The runs in what a name matches; what holds none, as the comparisons beside a sweep's runs, is passed over.

    Raises UserError where there is none at all and one is `needed`.
    """
    runs = [directory for path in paths for directory in inside(path)]
    return runs or (find([name]) if needed else [])


def readable(paths: Sequence[Path], read: Any, notes: list[str]) -> Iterator[Any]:
    """What can be read; why the rest cannot is added to the notes."""
    for path in paths:
        try:
            yield read(path)
        except UserError as error:
            notes.append(str(error))


def read_record(path: Path) -> Record:
    """A claim's result or a stability map. Raises UserError."""
    try:
        record = read_json(path)
    except Unreadable as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    missing = [field for field in NEEDED[path.name] if not isinstance(record, dict) or field not in record]
    if missing:
        raise UserError(f"{path}: its record lacks {', '.join(missing)}")
    try:
        LAID_OUT[path.name](record)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise UserError(f"{path}: its record is damaged: {type(error).__name__} {error}") from None
    return record


def replace(output: Path, text: str) -> None:
    """Writes a file whole or not at all. Raises UserError where it cannot be written."""
    try:
        write_text(output, text)
    except OSError as error:
        raise UserError(f"output={output}: cannot be written: {error.strerror}; give another file") from None
