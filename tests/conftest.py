import gc
import io
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

# Tiny products gain nothing from a second thread and lose much where another process wants the same cores. The commands
# that tests start, and the libraries that torch does not speak for, are told by the environment.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A hundred commands are started, and where nothing may be written each of them compiles archlab's source anew: half a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Shapes and types are checked at every call where signatures have shapes; tests/test_house.py holds that these are all
# of them. mypy checks the other types, and to check those at every call too is a quarter of the tests' time.
SHAPED = ["archlab.blocks", "archlab.data", "archlab.model"]
SHAPED += ["archlab.evaluate.validation", "archlab.initial.measure", "archlab.train.objective"]


def pytest_configure(config):
    """In each process that runs tests: that which hands them out imports neither torch nor archlab, and is ready sooner."""
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        return
    import checking
    import jaxtyping
    import torch

    torch.set_num_threads(1)
    jaxtyping.jaxtyped = checking.jaxtyped
    jaxtyping.install_import_hook(SHAPED, "checking.checked")


# Whoever starts the tests from a script or under nohup has Ctrl-C ignored, and what they stop would go on for ever.
for number, handling in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handling)

# No machine goes dark while tests run, and what they write needs not be on the disk.
os.fsync = lambda descriptor: None

# Hydra puts a configuration together from some twenty files, most of them the same each time, and a third of that
# time is parsing. So each text is parsed once; who asks again gets what was read, made anew.
parse, parsed = yaml.load, dict[tuple[str, str], bytes]()


def parse_once(stream: Any, Loader: Any) -> Any:  # noqa: N803  # as yaml calls it
    text = stream.read() if hasattr(stream, "read") else stream
    known = (Loader.__name__, text)  # OmegaConf makes a class of this name for each file
    if known not in parsed:
        named = io.StringIO(text)
        named.name = getattr(stream, "name", "<text>")  # which an error tells
        parsed[known] = pickle.dumps(parse(named, Loader))
    return pickle.loads(parsed[known])


yaml.load = parse_once


def pytest_collection_finish():
    """What the libraries brought stays anyway: to look through it again and again is a sixth of the time. What tests leave
    in circles is looked for at every hundred thousandth object, not at every 700th, which is another fifteenth."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@pytest.fixture(autouse=True)
def same_draws_in_every_test():
    import torch

    torch.default_generator.manual_seed(0)  # torch.manual_seed notes the whole stack for devices that are not there


# --- the table of parity in docs/huggingface.md, written by the run that measures it: pytest tests/hub --write-parity

PARITY = Path(__file__).parents[1] / "docs" / "huggingface.md"
MEASURED: dict[str, list[tuple[float | None, float | None]]] = {}


def pytest_addoption(parser):
    parser.addoption(
        "--write-parity",
        action="store_true",
        help="write docs/huggingface.md's table of families with what this run measures",
    )


def pytest_runtest_logreport(report):
    for name, value in report.user_properties if report.when == "call" and report.passed else ():
        if name == "parity":
            family, logits, gradients = value
            MEASURED.setdefault(family, []).append((logits, gradients))


def pytest_sessionfinish(session):
    if session.config.getoption("--write-parity", False) and MEASURED and not hasattr(session.config, "workerinput"):
        before, _, rest = PARITY.read_text().partition("| family | ")
        after = rest[rest.index("\n\n") :]
        PARITY.write_text(before + parity_table() + after)


def parity_table() -> str:
    lines = ["| family | cases | logits | gradients |", "|---|---|---|---|"]
    for family, cases in sorted(MEASURED.items()):
        logits, gradients = ([error for error in column if error is not None] for column in zip(*cases, strict=True))
        lines.append(f"| {family} | {len(logits)} | {max(logits):.0e} | {max(gradients):.0e} |")
    return "\n".join(lines)
