"""One HTML page of runs, claims and stability maps."""

from functools import partial
from pathlib import Path

from archlab.base.arguments import checked
from archlab.base.metrics import Direction
from archlab.base.quantities import NonNegative
from archlab.diagram.drawing import svg
from archlab.diagram.saved import read_sketch
from archlab.report.written import write_report as written


@checked
def write_report(
    *names: str | Path,
    output: str | Path = "report.html",
    config_dir: str | Path | None = None,
    metric: str | None = None,
    baseline: str | None = None,
    smallest_effect: NonNegative | None = None,
    direction: Direction | None = None,
    mix: bool | None = None,
) -> Path:
    """Writes a page of runs and claims and returns its file; the last five are the options of `archlab.compare`.

    Raises UserError where nothing can be read or compared.
    """
    own = Path(config_dir) if config_dir else None
    options = {
        "metric": metric,
        "baseline": baseline,
        "smallest_effect": smallest_effect,
        "direction": direction,
        "mix": mix,
    }
    comparing = {name: value for name, value in options.items() if value is not None}
    return written([str(name) for name in names], Path(output), comparing, partial(drawn_run, own=own))


def drawn_run(directory: Path, own: Path | None = None) -> str:
    """The block diagram, as SVG, of the model a run trained: from its sketch or, without one, from the model built again."""
    sketch = read_sketch(directory)
    if sketch is not None:
        return svg(sketch)
    from archlab.config.assemble import assemble_without_weights  # here, so that a page of runs needs no torch
    from archlab.diagram.draw import svg as draw
    from archlab.runs.load import saved_configuration

    return draw(assemble_without_weights(saved_configuration(directory, own)))
