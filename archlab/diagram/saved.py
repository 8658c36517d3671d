"""A model's sketch beside its run, so that a page of runs can draw it without building it. Imports no torch."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from archlab.base.files import write_text
from archlab.base.plain import Unreadable, read_json
from archlab.diagram.sketch import Graph, ModelSketch

SKETCH = "sketch.json"


@dataclass(frozen=True)
class SavedSketch:
    """What sketch.json holds: a sketch, and the hash of the configuration it belongs to."""

    config_sha256: str
    sketch: ModelSketch


SHAPE = TypeAdapter(SavedSketch)


def write_sketch(directory: Path, sketch: ModelSketch) -> None:
    """Writes a sketch into a run's directory."""
    write_text(directory / SKETCH, json.dumps(asdict(SavedSketch(config_of(directory), sketch))) + "\n")


def config_of(directory: Path) -> str:
    """The hash of a run's config.yaml."""
    return hashlib.sha256((directory / "config.yaml").read_bytes()).hexdigest()


def read_sketch(directory: Path) -> ModelSketch | None:
    """The sketch in a run's directory; None where it is missing, damaged or of another configuration."""
    file = directory / SKETCH
    if not file.is_file():
        return None
    try:
        saved = SHAPE.validate_python(read_json(file))
    except (Unreadable, ValidationError):
        return None
    if saved.config_sha256 != config_of(directory):
        return None
    sketch = saved.sketch
    graphs = [sketch.embedding, sketch.head, *([sketch.further.graph] if sketch.further else [])]
    graphs += [
        graph
        for layers in sketch.layers
        for graph in (layers.layer.residual, *(b.graph for b in layers.layer.branches))
    ]
    return sketch if all(map(in_order, graphs)) and sketch.layers else None


def in_order(graph: Graph) -> bool:
    """Whether there are nodes, and each reads only nodes before it."""
    return bool(graph) and all(0 <= read < place for place, node in enumerate(graph) for read in node.reads)
