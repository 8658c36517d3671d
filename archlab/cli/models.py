"""Verbs on models and blocks that need no training: diff, draw and verify."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from archlab.base.errors import UserError
from archlab.base.files import write_bytes
from archlab.base.quantities import AtOnce
from archlab.cli.arguments import config_dir, understood
from archlab.config.overrides import refuse_twice

if TYPE_CHECKING:
    from archlab.model.decoder import Decoder
    from archlab.runs.named_model import NamedModel

PICTURES = (".svg", ".png")
DRAWN_WITH_WEIGHTS = 50_000_000
"""Parameters up to which a model is given its initial weights, so that a bias that is learned can be pictured too."""


@dataclass(frozen=True)
class DiffOptions:
    """What `diff` takes besides two models; `output` is a file for a picture of both."""

    seq_len: AtOnce | None = None
    output: str | None = None


def diff(arguments: list[str]) -> None:
    """Prints how two models differ, or with --ladder the way from one to the other."""
    names, options, flags = understood("diff", arguments, DiffOptions, switches=("--ladder",), names_are_overrides=True)
    files = [] if options.output is None else pictures(options.output, both=False)
    from archlab.runs.named_model import two

    own = config_dir(flags)
    first, second = two("diff", names, own)
    if "--ladder" in flags:
        for name, value in vars(options).items():
            if value is not None:
                raise UserError(f"{name}={value}: --ladder lists overrides alone; leave one of the two out")
        return show_ladder(first, second, own)
    from rich.console import Console

    from archlab.difference.models import difference
    from archlab.report.diff import difference as told

    Console().print(told(asdict(difference(first, second, options.seq_len))))
    if files:
        from archlab.diagram import side_by_side

        write(files, side_by_side(decoder_of(first), decoder_of(second), (first.name, second.name)))


def show_ladder(first: "NamedModel", second: "NamedModel", own: Path | None) -> None:
    from rich.console import Console

    from archlab.config.assemble import assemble_without_weights
    from archlab.cost.describe import count_parameters
    from archlab.difference.ladder import changes, ladder
    from archlab.report.diff import ladder as told
    from archlab.report.progress import track

    n_changes = len(list(changes(first.cfg, second.cfg, own)))
    rungs = track(ladder(first, second, own), "ladder", n_changes + 1)
    rows = [(rung.about, rung.words, count_parameters(assemble_without_weights(rung.cfg))) for rung in rungs]
    Console(soft_wrap=True).print(told(rows))


@dataclass(frozen=True)
class DrawOptions:
    """What `draw` takes besides a model; `output` is a file, or a name for both files."""

    output: str = "model"


def draw(arguments: list[str]) -> None:
    """Draws a model as it is built: a preset, a run's, or the overrides' own."""
    names, options, flags = understood("draw", arguments, DrawOptions, names_are_overrides=True)
    files = pictures(options.output, both=True)
    from archlab.diagram import svg

    model = one("draw", names, config_dir(flags))
    write(files, svg(decoder_of(model), model.name))


def one(verb: str, names: list[str], own: Path | None) -> "NamedModel":
    """A model by one name, or by overrides without quotes; none of them are the defaults."""
    from archlab.config.compose import compose
    from archlab.runs.named_model import NamedModel, named

    if len(names) == 1:
        return named(names[0], own)
    if without := [name for name in names if "=" not in name]:
        raise UserError(f"{without[0]}: {verb} takes one model: a preset, a run's directory, or overrides, name=value")
    refuse_twice(names)
    return NamedModel(" ".join(names), compose(*names, config_dir=own), tuple(names))


def decoder_of(model: "NamedModel") -> "Decoder":
    """A run's with what it learned; any other with its initial weights, or without them where they are large."""
    from archlab.config.assemble import assemble_without_weights, build
    from archlab.cost.describe import count_parameters
    from archlab.runs.weights import load_weights

    decoder = assemble_without_weights(model.cfg)
    if model.directory is not None:
        return load_weights(model.directory, model.cfg)
    return build(model.cfg) if count_parameters(decoder) <= DRAWN_WITH_WEIGHTS else decoder


def pictures(output: str, both: bool) -> list[Path]:
    """The files to write. Raises UserError where they can't be, before anything is done for them."""
    path = Path(output)
    if not path.name.strip(".") or path.is_dir() or output.endswith("/"):
        raise UserError(f"output={output}: names no file; give one such as model.svg")
    if path.suffix in PICTURES:
        files = [path]
    elif both and not path.suffix:
        files = [path.with_suffix(suffix) for suffix in PICTURES]
    else:
        raise UserError(f"output={output}: a picture is an SVG or a PNG; give a file such as {path.stem}.svg")
    if not path.parent.is_dir():
        raise UserError(f"output={output}: {path.parent} is no folder; make it first, or give another file")
    return files


def write(files: Iterable[Path], svg: str) -> None:
    from archlab.diagram.canvas import png

    for file in files:
        try:
            write_bytes(file, svg.encode() if file.suffix == ".svg" else png(svg))
        except OSError as error:
            raise UserError(f"output={file}: cannot be written: {error.strerror}; give another file") from None
        print(file)


@dataclass(frozen=True)
class VerifyOptions:
    """`verify` has no options of its own: its words are overrides."""


def verify(arguments: list[str]) -> None:
    """Prints whether blocks keep their contract; leaves with status 1 where a promise is broken."""
    words, _, flags = understood("verify", arguments, VerifyOptions, names_are_overrides=True)
    groups = named_blocks(words)
    refuse_twice(words)
    from rich.console import Console

    from archlab.config.compose import compose
    from archlab.contract.subject import SMALL
    from archlab.contract.verify import verify as verified
    from archlab.report.verify import findings

    cfg = compose(*SMALL, *words, config_dir=config_dir(flags))
    found = [asdict(finding) for finding in verified(cfg, groups)]
    Console().print(findings(" ".join(f"{group}={cfg.choices[group]}" for group in groups), found))
    if any(finding["verdict"] == "broken" for finding in found):
        raise SystemExit(1)


def named_blocks(words: list[str]) -> list[str]:
    """The groups that overrides choose a block for. Raises UserError where there are none."""
    from archlab.config.check import BLOCKS

    for word in words:
        if word.startswith("output="):
            raise UserError(f"{word}: verify writes nothing; leave it out")
        if "=" not in word:
            raise UserError(f"{word}: verify takes overrides, name=value, as in archlab verify norm=rms")
        if word.lstrip("+").startswith("preset="):
            raise UserError(
                f"{word}: verify looks at blocks in a small model; name them, as in archlab verify norm=rms"
            )
    chosen = [group for group in BLOCKS if group in {word.lstrip("+").partition("=")[0] for word in words}]
    if not chosen:
        raise UserError(f"verify: no block is named; give one of {', '.join(BLOCKS)}, as in archlab verify norm=rms")
    return chosen
