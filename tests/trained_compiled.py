"""Training with compiled layers beside eager training: what tests/train/test_compile.py asks; for tests/compiler_process.py.

A case is words of the command line, `pack` and `accumulate=2` among them.
"""

from dataclasses import replace

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from training import CPU, SMALL, Counting, settings

import archlab
from archlab.base.errors import UserError
from archlab.config.compose import in_turn
from archlab.train import compiling
from archlab.train.loop import train
from archlab.train.pack import Member, train_together

OF_THE_RUN = ("pack", "accumulate=2")


def trained(machine, words):
    """Losses, gradient norms and what was seen of the layers in four steps, and the weights after them."""
    cfg, seen, decoders = in_turn(*SMALL, *(word for word in words if word not in OF_THE_RUN)), [], []
    made = settings(steps=4, accumulate=2 if "accumulate=2" in words else 1)
    for seed in (3, 4) if "pack" in words else (3,):
        cfg.seed = seed
        decoders.append(archlab.build(cfg))
    if "pack" in words:
        members = [Member(one, Counting(), made, 3, lambda: None, seen.append, probe_every=3) for one in decoders]
        outcomes = train_together(members, machine, tick=lambda *_: None)
    else:
        report, tick = seen.append, lambda *_: None
        outcomes = [
            train(
                decoders[0],
                Counting(),
                made,
                machine,
                seed=3,
                probe_every=3,
                validate=lambda: None,
                report=report,
                tick=tick,
            )
        ]
    numbers = [number for one in outcomes for number in (*one.losses, *one.grad_norms)]
    numbers += [value for one in seen for layer in one.get("layers", ()) for value in layer.values()]
    weights = torch.cat([weight.detach().flatten() for one in decoders for weight in one.parameters()])
    return torch.tensor(numbers, dtype=torch.float64), weights, [one.compiled for one in outcomes]


def answer(backend, case):
    torch._dynamo.reset()
    compiling.BACKEND = counter = CompileCounterWithBackend(backend)
    words = case.split()
    one, other = trained(replace(CPU, compile="on"), words), trained(CPU, words)
    gaps = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(one[:2], other[:2], strict=True)]
    return {"gap": max(gaps), "compiled": one[2], "eager": other[2], "graphs": counter.frame_count}


def told(backend, *cases):
    """What was seen of each case, or how it was refused."""
    seen = []
    for case in cases:
        try:
            seen.append({"case": case, **answer(backend, case)})
        except UserError as error:
            seen.append({"case": case, "error": str(error)})
    return seen
