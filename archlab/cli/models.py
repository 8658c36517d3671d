"""Verbs on models and blocks that need no training: diff, draw, verify and bench."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from archlab.base.errors import UserError
from archlab.base.files import check_folder
from archlab.base.quantities import AtOnce, Count
from archlab.cli.arguments import config_dir, show, understood

PICTURES = (".svg", ".png")


@dataclass(frozen=True)
class DiffOptions:
    """What `diff` takes besides two models; `output` is a file for a picture of both."""

    seq_len: AtOnce | None = None
    output: str | None = None


def diff(arguments: list[str]) -> None:
    """Prints how two models differ, or with --ladder the changes that lead from one to the other."""
    names, options, flags = understood("diff", arguments, DiffOptions, switches=("--ladder",), names_are_overrides=True)
    files = [] if options.output is None else pictures(options.output, both=False)
    from archlab.runs.named_model import two
    from archlab.verbs.diff import between, way_between

    own = config_dir(flags)
    models = two("diff", names, own)
    if "--ladder" in flags:
        for name, value in vars(options).items():
            if value is not None:
                raise UserError(f"{name}={value}: --ladder lists overrides alone; leave one of the two out")
        show(way_between(*models, own), soft_wrap=True)
        return
    found = between(*models, options.seq_len)
    show(found)
    if files:
        print(*found.plot().save(*files), sep="\n")


@dataclass(frozen=True)
class DrawOptions:
    """What `draw` takes besides a model; `output` is a file, or a name for both files."""

    output: str = "model"


def draw(arguments: list[str]) -> None:
    """Draws a model as it is built: that of a preset, of a run or of overrides."""
    names, options, flags = understood("draw", arguments, DrawOptions, names_are_overrides=True)
    files = pictures(options.output, both=True)
    from archlab.verbs.draw import draw as drawn

    print(*drawn(*names, config_dir=config_dir(flags)).save(*files), sep="\n")


def pictures(output: str, both: bool) -> list[Path]:
    """The files to write. Raises UserError where they can't be written, before any work is done."""
    path = Path(output)
    if not path.name.strip(".") or path.name in PICTURES or path.is_dir() or output.endswith("/"):
        raise UserError(f"output={output}: names no file; give one such as model.svg")
    if path.suffix in PICTURES:
        files = [path]
    elif both and not path.suffix:
        files = [path.with_suffix(suffix) for suffix in PICTURES]
    else:
        raise UserError(f"output={output}: a picture is an SVG or a PNG; give a file such as {path.stem}.svg")
    check_folder("output", path)
    return files


@dataclass(frozen=True)
class VerifyOptions:
    """`verify` has no options of its own: its words are overrides."""


def verify(arguments: list[str]) -> None:
    """Prints whether blocks keep their contract; leaves with status 1 where a promise is broken."""
    words, _, flags = understood("verify", arguments, VerifyOptions, names_are_overrides=True)
    from archlab.verbs.verify import verify as verified

    found = verified(*words, config_dir=config_dir(flags))
    show(found)
    if not found:
        raise SystemExit(1)


@dataclass(frozen=True)
class BenchOptions:
    """What `bench` takes besides overrides; `output` is a folder that is not there yet."""

    suite: Literal["speed", "peers", "scaling", "gpu"] = "speed"
    rounds: Count | None = None
    output: str | None = None


def bench(arguments: list[str]) -> None:
    """Prints how fast an architecture is, and writes it down; leaves with status 1 where a check of a GPU failed."""
    words, options, flags = understood("bench", arguments, BenchOptions, names_are_overrides=True, valued=("--vs",))
    from archlab.verbs.bench import bench as measured
    from archlab.verbs.bench import check_place

    check_place(options.output)  # before minutes are spent on what could not be written
    given: dict[str, Any] = {"suite": options.suite, "rounds": options.rounds}
    found = measured(*words, vs=flags.get("--vs"), **given, config_dir=config_dir(flags))
    show(found)
    print(found.save(options.output))
    if not found:
        raise SystemExit(1)
