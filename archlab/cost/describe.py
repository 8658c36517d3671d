"""What a model is made of and what it costs, counted from the model itself, without running it."""

import re
from collections.abc import Iterator
from itertools import groupby

import torchinfo
from torch import nn

from archlab.blocks.contracts import Norm
from archlab.model.decoder import Decoder

LAYER = "└─Layer: "
NUMBER = re.compile(r": \d+-\d+ *")
"""torchinfo's own numbering of modules, and the space after it that keeps columns apart."""


def count_parameters(model: nn.Module) -> int:
    """Numbers in the model's parameters, each storage once however many names it has."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_active_parameters(decoder: Decoder) -> int:
    """Of the same count, what one token's forward pass uses: of experts those that are picked for it."""
    return round(sum(weight.used * weight.tensor.numel() for weight in decoder.weights()))


def parameters_by_part(decoder: Decoder) -> dict[str, int]:
    """The same count, part by part; a tied head has none of its own. Parts without parameters are left out."""
    parts = dict.fromkeys(("embedding", "positions", "mixer", "ffn", "canon", "skips", "norms", "head", "other"), 0)
    seen: set[int] = set()
    for path, module in decoder.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                parts["norms" if isinstance(module, Norm) else part_of(path)] += parameter.numel()
                seen.add(id(parameter))
    return {part: n_params for part, n_params in parts.items() if n_params}


def part_of(path: str) -> str:
    """What a module belongs to, by where it stands in the decoder."""
    words = path.split(".")
    named = {
        "embedding": "embedding",
        "position": "positions",
        "other_positions": "positions",
        "head": "head",
        "skips": "skips",
    }
    named |= {"mixer": "mixer", "ffn": "ffn", "canon_a": "canon", "canon_c": "canon"}
    place = words[2] if words[0] == "layers" and len(words) > 2 else words[0]
    return "norms" if "norm" in place or {"norm", "norms", "branch_norms"} & set(words) else named.get(place, "other")


def tree(model: nn.Module, depth: int = 3) -> str:
    """torchinfo's tree of modules with their parameters; its totals, which count tied weights twice, are left out.

    Layers that look the same and follow each other are shown once, with how many there are.
    """
    lines = str(torchinfo.summary(model, depth=depth, verbose=0, col_names=("num_params",))).splitlines()
    rules = [i for i, line in enumerate(lines) if set(line) == {"="}]
    return "\n".join(folded(lines[rules[1] + 1 : rules[2]]))


def folded(lines: list[str]) -> Iterator[str]:
    """The lines of a tree, runs of equal layers as one."""
    starts = [i for i, line in enumerate(lines) if LAYER in line]
    if not starts:
        yield from lines
        return
    end = next((i for i in range(starts[-1] + 1, len(lines)) if not lines[i].startswith("│    ")), len(lines))
    yield from lines[: starts[0]]
    blocks = [lines[start:stop] for start, stop in zip(starts, [*starts[1:], end], strict=True)]
    for _, run in groupby(blocks, key=lambda block: [NUMBER.sub("", line) for line in block]):
        first, *others = run
        yield first[0] + (f"  ({len(others) + 1} layers alike)" if others else "")
        yield from first[1:]
    yield from lines[end:]
