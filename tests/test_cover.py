"""The combinations that tests are made of are those that check admits, no more and no fewer."""

import random
from itertools import product

import pytest
from cover import goes_together, words_of
from oracles import options

import archlab
from archlab.base.errors import UserError

PLAIN = dict(norm="rms", residual="pre", pos="none", mask="causal", mixer="mha", ffn="swiglu")
SIDES = (("norm", "residual", "mask"), ("mask", "mixer", "pos"), ("residual", "ffn"))
"""Groups of which check asks whether they go together, each beside plain options of the others."""


def admitted(choice: dict[str, str]) -> bool:
    try:
        archlab.compose("size=nano", "allow_leak=true", *words_of(choice))
    except UserError:
        return False
    return True


@pytest.mark.parametrize("most", [8, pytest.param(10**6, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("side", SIDES, ids="-".join)
def test_what_goes_together_is_what_check_admits(side, most):
    """As many of each answer, where there are."""
    rows = [PLAIN | dict(zip(side, row, strict=True)) for row in product(*(options(group) for group in side))]
    asked = [[choice for choice in rows if goes_together(choice) == answer] for answer in (True, False)]
    for answer, choices in zip((True, False), asked, strict=True):
        for choice in random.Random(0).sample(choices, k=min(most, len(choices))):
            assert admitted(choice) == answer, choice
