"""Verify's promise that a decoder compiles as one graph; for tests/compiler_process.py."""

from archlab.config.compose import compose
from archlab.contract.decoder import compiled
from archlab.contract.finding import findings
from archlab.contract.subject import SMALL, Subject

ONE_LAYER = ("size.n_layers=1", *(word for word in SMALL if not word.startswith("size.n_layers")))


def told(config_dir: str, *cases: str) -> list[tuple[str, str]]:
    """For each case, words of the command line, the verdict and what was seen."""
    subjects = [Subject(compose(*ONE_LAYER, *case.split(), config_dir=config_dir)) for case in cases]
    return [(one.verdict, one.sentence) for subject in subjects for one in findings([compiled], subject)]
