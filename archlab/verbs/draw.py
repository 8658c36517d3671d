"""The block diagram of a model, as it is built."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import RenderableType
from rich.text import Text

from archlab.base.arguments import checked
from archlab.base.errors import UserError
from archlab.base.files import check_folder, write_bytes
from archlab.config.assemble import assemble_without_weights, build
from archlab.cost.describe import count_parameters
from archlab.diagram.canvas import png
from archlab.diagram.draw import svg
from archlab.model.decoder import Decoder
from archlab.runs.named_model import NamedModel, one
from archlab.runs.weights import load_weights
from archlab.verbs.shown import Shown

PICTURES = (".svg", ".png")
"""Endings of picture files."""

DRAWN_WITH_WEIGHTS = 50_000_000
"""A model with up to this many parameters gets its initial weights, so that a learned bias can be drawn too."""


@dataclass(frozen=True, repr=False)
class Drawing(Shown):
    """A picture of one model or of two."""

    svg: str
    title: str

    @checked
    def save(self, *files: str | Path) -> list[Path]:
        """Writes files that end in .svg or .png. Raises UserError where one of them cannot be written."""
        if not files:
            raise UserError("save: names no file; give one such as model.svg")
        return write([Path(file) for file in files], self.svg)

    def __rich__(self) -> RenderableType:
        return Text(f"A drawing of {self.title}: .save('model.svg') writes it")

    def _repr_html_(self) -> str:
        return self.svg


@checked
def draw(*model: str | Path | DictConfig, config_dir: str | Path | None = None) -> Drawing:
    """The block diagram of one model: a preset, a run's directory, overrides, or a configuration. Raises UserError."""
    one_model = one("draw", model, Path(config_dir) if config_dir else None)
    title = one_model.name or ("the defaults" if not model else "the configuration given")
    return Drawing(svg(decoder_of(one_model), one_model.name), title)


def decoder_of(model: NamedModel) -> Decoder:
    """A run's model with its trained weights; any other with initial weights, or on the meta device where it is large."""
    decoder = assemble_without_weights(model.cfg)
    if model.directory is not None:
        return load_weights(model.directory, model.cfg)
    return build(model.cfg) if count_parameters(decoder) <= DRAWN_WITH_WEIGHTS else decoder


def write(files: Iterable[Path], picture: str) -> list[Path]:
    """Writes one picture to each file, in the format of its ending. Raises UserError."""
    written = []
    for file in files:
        if file.suffix not in PICTURES:
            raise UserError(
                f"output={file}: a picture is an SVG or a PNG; give a file such as {file.stem or 'model'}.svg"
            )
        check_folder("output", file)
        try:
            write_bytes(file, picture.encode() if file.suffix == ".svg" else png(picture))
        except OSError as error:
            raise UserError(f"output={file}: cannot be written: {error.strerror}; give another file") from None
        written.append(file)
    return written
