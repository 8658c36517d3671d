"""What is compiled, in a process of its own: the types that tests check at every call are not for torch.compile to follow.

Modules of this folder with a function `told` say what is seen there; the process prints a line of JSON for each that is asked.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def answers(*asked: Sequence[str], path: str = "") -> list[Any]:
    """What `told(*arguments)` of each module says, asked one after the other; `path` is where else modules are found."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{path}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), *map(json.dumps, asked)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for module, *arguments in map(json.loads, sys.argv[1:]):
        print(json.dumps(import_module(module).told(*arguments)), flush=True)
