"""archlab: an architecture explorer for decoder-only Transformers.

    archlab.compose("norm=rms", "pos=alibi")     a configuration, checked and settled
    archlab.build("norm=rms", "pos=alibi")       a Decoder with its initial weights: decoder(tokens) -> logits
    archlab.show("norm=rms")                     what is assembled, its costs, and the memory that training takes
    archlab.memory("preset=llama_7b")            that memory alone
    archlab.draw("llama_7b")                     its block diagram
    archlab.diff("llama_7b", "chatglm_6b")       how two models differ
    archlab.verify("norm=rms")                   whether blocks keep their contract
    archlab.preflight("norm=rms")                a look at the initial weights
    archlab.run("norm=rms", "train.steps=50")    a run, trained, scored and written down
    archlab.resume(directory)                    a run that was broken off, finished
    archlab.sweep("norm=layer,rms", "seed=0,1")  a run for every combination
    archlab.load(directory)                      a run that is there: numbers, plots, weights
    archlab.generate(directory, "In the")        what its model says after a prompt
    archlab.bench("norm=rms", vs="norm=layer")   how fast it is on this machine
    archlab.compare("experiments/runs/*")        which arms differ, and whether the difference is real
    archlab.stability_map("experiments/runs/*")  the largest stable learning rate by depth
    archlab.write_report("experiments/runs/*")   one HTML page of them
    archlab.claims("rope_*")                     claims decided by runs
    archlab.hub                                  weights from Hugging Face folders, and to them

Words are spelt as on the command line. A result prints what the command prints (`print(result)`), is shown by a
notebook, and where it fits has `.to_pandas()`, `.plot()` and `.save()`. What a user can get wrong is an
`archlab.base.errors.UserError` of one line.
"""

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from archlab import hub
    from archlab.config.compose import compose
    from archlab.model.decoder import Decoder
    from archlab.verbs.bench import bench
    from archlab.verbs.claims import claims
    from archlab.verbs.compare import compare, stability_map
    from archlab.verbs.describe import memory, show
    from archlab.verbs.diff import diff
    from archlab.verbs.draw import draw
    from archlab.verbs.generate import generate
    from archlab.verbs.preflight import preflight
    from archlab.verbs.report import write_report
    from archlab.verbs.run import load, resume, run, sweep
    from archlab.verbs.verify import verify

__version__ = "0.1.0"
__all__ = [
    "Decoder",
    "bench",
    "build",
    "claims",
    "compare",
    "compose",
    "diff",
    "draw",
    "generate",
    "hub",
    "load",
    "memory",
    "preflight",
    "resume",
    "run",
    "show",
    "stability_map",
    "sweep",
    "verify",
    "write_report",
]

STARTED = time.time()
"""When the program began, for the time to the first step."""

FOUND_IN = {
    "Decoder": "model.decoder",
    "bench": "verbs.bench",
    "claims": "verbs.claims",
    "compare": "verbs.compare",
    "compose": "config.compose",
    "diff": "verbs.diff",
    "draw": "verbs.draw",
    "generate": "verbs.generate",
    "load": "verbs.run",
    "memory": "verbs.describe",
    "preflight": "verbs.preflight",
    "write_report": "verbs.report",
    "resume": "verbs.run",
    "run": "verbs.run",
    "show": "verbs.describe",
    "stability_map": "verbs.compare",
    "sweep": "verbs.run",
    "verify": "verbs.verify",
}
"""The module of each name, imported when it is first asked for: torch takes seconds, and `--help` should not wait for it."""


def build(*what: "str | DictConfig", config_dir: str | None = None) -> "Decoder":
    """A decoder with its initial weights, from overrides or from one configuration. Raises `archlab.base.errors.UserError`."""
    from archlab.config import assemble
    from archlab.config.compose import configuration

    return assemble.build(configuration(*what, config_dir=config_dir))


def __getattr__(name: str) -> Any:
    if name == "hub":
        return import_module("archlab.hub")
    if name in FOUND_IN:
        return getattr(import_module(f"archlab.{FOUND_IN[name]}"), name)
    raise AttributeError(f"module 'archlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__all__", "__version__"])
