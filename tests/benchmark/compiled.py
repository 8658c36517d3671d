"""The checks of suite=gpu that compile, on the CPU, in a process of its own: `python tests/benchmark/compiled.py` prints a line of JSON.

The types that tests check at every call are not for torch.compile to follow.
"""

import json
from collections.abc import Callable
from typing import Any

import torch

from archlab.benchmark.gpu.check import Observed
from archlab.benchmark.gpu.speed import compiled, share_of_peak

CPU = torch.device("cpu")
NANO = ("size=nano", "size.n_layers=1", "train.train_len=16", "train.batch_size=2")
ONE_GRAPH = {"backend": "aot_eager", "fullgraph": True}
"""Traces as every backend does, and needs no C++ compiler."""


def off_by_a_hundredth(graph: Callable[..., Any], inputs: Any) -> Callable[..., Any]:
    """A backend that gets every number wrong."""
    return lambda *args: tuple(x * 1.01 if torch.is_tensor(x) and x.is_floating_point() else x for x in graph(*args))


def told(seen: Observed) -> dict[str, Any]:
    return {"passed": seen.passed, "data": seen.data, "reach": seen.reach}


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "right": told(compiled(CPU, NANO, steps=5, faster=None, options=ONE_GRAPH)),
                "wrong": told(compiled(CPU, NANO, steps=2, faster=None, options={"backend": off_by_a_hundredth})),
                "slow": told(compiled(CPU, NANO, steps=3, faster=1e6, options={"backend": "eager"})),
                "impossible": told(share_of_peak(CPU, NANO, reach=20, options={"backend": "eager"})),
                "anything": told(share_of_peak(CPU, NANO, reach=0, options={"backend": "eager"})),
            }
        )
    )
