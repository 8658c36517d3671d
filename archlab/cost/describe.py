"""What a model is made of and what it costs, counted from the model itself, without running it."""

import re
from collections.abc import Iterator
from itertools import groupby

import torchinfo
from torch import nn

from archlab.blocks.contracts import Norm
from archlab.model.decoder import Decoder

MTP = "mtp."
"""What the names of weights begin with that predict the tokens after the next."""

LAYER = "└─Layer: "
NUMBER = re.compile(r": \d+-\d+ *")
"""torchinfo's own numbering of modules, and the space after it that keeps columns apart."""


def count_parameters(model: nn.Module) -> int:
    """Numbers in the model's parameters, each storage once however many names it has."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_mtp_parameters(decoder: Decoder) -> int:
    """Of the same count, those of the heads of further tokens, which training alone needs; what they share is the model's."""
    return sum(parameter.numel() for name, parameter in decoder.named_parameters() if name.startswith(MTP))


def count_own_parameters(decoder: Decoder) -> int:
    """The others: what a model has that predicts the next token."""
    return count_parameters(decoder) - count_mtp_parameters(decoder)


def count_active_parameters(decoder: Decoder) -> int:
    """Of these, what one token's forward pass uses: of experts those that are picked for it."""
    own = (weight for weight in decoder.weights() if not weight.name.startswith(MTP))
    return round(sum(weight.used * weight.tensor.numel() for weight in own))


def parameters_by_part(decoder: Decoder) -> dict[str, int]:
    """The same count, part by part; a tied head has none of its own. Parts without parameters are left out."""
    parts = dict.fromkeys(
        ("embedding", "positions", "mixer", "ffn", "canon", "skips", "norms", "head", "mtp", "other"), 0
    )
    seen: set[int] = set()
    for path, module in decoder.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                part = part_of(path)
                parts["norms" if isinstance(module, Norm) and part != "mtp" else part] += parameter.numel()
                seen.add(id(parameter))
    return {part: n_params for part, n_params in parts.items() if n_params}


def part_of(path: str) -> str:
    """What a module belongs to, by where it stands in the decoder."""
    words = path.split(".")
    if words[0] == MTP.removesuffix("."):
        return "mtp"
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
    starts = [i for i in starts if lines[i].index(LAYER) == lines[starts[0]].index(LAYER)]  # not those of mtp
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
