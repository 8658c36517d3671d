"""How many programs torch makes of a decoder's layers, beside how many are counted before it does."""

from collections.abc import Iterator

import torch
from oracles import built
from torch._dynamo.utils import counters
from training import SMALL

from archlab.train import compiling


def told(*cases: str) -> list[tuple[int, int]]:
    """Of each case, its words with spaces between, what is counted and what torch made, at four layers."""
    return list(counts(cases))


def counts(cases: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    compiling.BACKEND = "eager"  # a program is counted as it is traced
    for words in cases:
        torch._dynamo.reset()
        counters.clear()
        decoder, tokens = built(*SMALL, "size.n_layers=4", *words.split()), torch.zeros(2, 5, dtype=torch.long)
        decoder.compute(tokens, decoder.read(tokens), call=compiling.CompiledLayers(decoder, strict=True))
        yield compiling.programs_of(decoder), counters["stats"]["unique_graphs"]
