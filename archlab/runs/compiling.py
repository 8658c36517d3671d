"""Whether a run trains with its layers compiled: as it was asked, or where it will gain more than compiling takes."""

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig

from archlab.report.tables import duration
from archlab.runs.expected import seconds_of_a_step
from archlab.train.compiling import Compile, why_not_compiled
from archlab.train.runtime import Runtime

COMPILING = 24.0
"""Seconds of one core in which torch.compile makes a program of a layer that it has not on disk.

Measured with torch 2.13 and g++, as CPU time, the machine having other work: 23.7 for size=nano and 23.3 for size=tiny,
of the default model; a later process, which finds it on disk, needs 3.2 and 3.3.
"""

SAVED = 0.13
"""Of a step's time, on a CPU in float32.

Measured in CPU time, in eleven rounds of turns, median and range: an eager step takes 1.18 (1.11 to 1.23) times as long as
a compiled one at size=nano, and 1.15 (1.11 to 1.26) times at size=tiny.
"""

AT_LEAST = 2.0
"""Times its cost that compiling should save: the seconds of a step are known to a factor of two."""


def whether_compiled(
    cfg: DictConfig, where: Runtime, programs: int, about: Mapping[str, Any] = {}, packed: bool = False
) -> tuple[Compile, str]:
    """What `compile` comes to for a run of so many programs of layers, and why, in a line.

    `about` is what a checkpoint says of the run: one that goes on does as it did, as far as there still is a compiler.
    """
    if cfg.compile != "auto":
        return where.compile, f"compile: {cfg.compile}, as was asked"
    chosen, line = _auto(cfg, where, programs, about, packed)
    # Asked last: it imports much of torch.compile, which takes more than a second.
    if chosen != "off" and (why := why_not_compiled(where.device)):
        return "off", f"compile: off; auto {why.partition(';')[0]}"
    return chosen, line


def _auto(
    cfg: DictConfig, where: Runtime, programs: int, about: Mapping[str, Any], packed: bool
) -> tuple[Compile, str]:
    """What compile=auto comes to where there is a compiler."""
    if packed:
        return "off", "compile: off; runs in a pack are compiled by compile=on alone"
    if cfg.train.checkpoint:
        return "off", "compile: off; with train.checkpoint=true layers are called eagerly"
    if "compile" in about:
        went_on: Compile = about["compile"]
        return went_on, f"compile: {'off' if went_on == 'off' else 'on'}, as before"
    if where.device.type != "cpu" or where.dtype != torch.float32:
        return (
            "off",
            "compile: off; what it saves was measured on CPUs in float32 alone; compile=on compiles all the same",
        )
    steps = cfg.train.steps - about.get("step", 0)
    saved, cost = SAVED * steps * seconds_of_a_step(cfg) / torch.get_num_threads(), COMPILING * programs
    figures = f"in {steps} steps it would save about {duration(saved)}, and compiling takes up to {duration(cost)}"
    if saved < AT_LEAST * cost:
        return "off", f"compile: off; {figures}; compile=on compiles all the same"
    return "auto", f"compile: on; {figures}; compile=off leaves it"
