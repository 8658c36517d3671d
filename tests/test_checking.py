"""That shapes and types are checked where conftest.py says they are."""

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from checking import checked, is_shaped, jaxtyped
from jaxtyping import Float, TypeCheckError
from torch import Tensor

import archlab
from archlab.blocks.rope import rotate

ROWS = Float[Tensor, "rows columns"]


def test_a_models_arguments_are_checked():
    decoder = archlab.build(archlab.compose("size=nano"))
    with pytest.raises(TypeCheckError, match="Decoder.forward"):
        decoder(torch.zeros(3, 5))  # numbers that are no tokens
    with pytest.raises(TypeCheckError, match="Gated.forward"):
        decoder.layers[0].ffn(torch.zeros(3))
    with pytest.raises(TypeCheckError, match="rotate"):
        rotate(torch.zeros(2, 3, 5, 8), torch.zeros(1, 2, 7, 4), "half")  # 5 tokens and 7 places


def test_a_function_within_another_is_checked_where_it_has_shapes():
    def with_shapes(x: ROWS | None) -> int:
        return 1

    def without(x: int) -> int:
        return x

    assert checked(without) is without
    with pytest.raises(BeartypeCallHintViolation):
        checked(with_shapes)(torch.zeros(3))
    assert checked(with_shapes)(torch.zeros(3, 2)) == 1 and checked(with_shapes)(None) == 1


def test_what_is_returned_has_the_axes_of_what_was_given():
    def transposed(x: ROWS, right: bool) -> Float[Tensor, "columns rows"]:
        return x.T if right else x

    held = jaxtyped(transposed, typechecker=checked)
    assert held(torch.zeros(3, 2), True).shape == (2, 3)
    assert held(torch.zeros(4, 5), True).shape == (5, 4)  # of each call by itself
    with pytest.raises(TypeCheckError):
        held(torch.zeros(3, 2), False)


def test_a_call_like_one_before_is_checked_no_more_and_any_other_is():
    calls = []

    def same(x: ROWS, *others: ROWS) -> ROWS:
        calls.append(None)
        return x

    counted = []

    def counting(function):
        check = checked(function)

        def called(*args):
            counted.append(None)
            return check(*args)

        return called

    held = jaxtyped(same, typechecker=counting)
    for _ in range(3):
        held(torch.zeros(3, 2), torch.ones(3, 2))
    assert len(calls) == 3 and len(counted) == 1
    for others in ([torch.zeros(3, 4)], [torch.zeros(3, 2, dtype=int)], [3]):
        with pytest.raises(TypeCheckError):
            held(torch.zeros(3, 2), *others)
    assert held(torch.zeros(5, 2), torch.zeros(5, 2)).shape == (5, 2)


def test_a_type_in_quotes_is_left_to_mypy_and_others_are_checked():
    def quoted(x: "NotThere") -> int:
        return 1

    quoted.__qualname__ = "quoted"  # as if it stood at the top level
    assert checked(quoted) is quoted
    with pytest.raises(BeartypeCallHintViolation):
        checked(plain)("word")


def plain(x: int) -> int:
    return x


@pytest.mark.parametrize(
    ("annotation", "shaped"),
    [
        (ROWS, True),
        (list[ROWS], True),
        (dict[str, tuple[ROWS, int]], True),
        (Tensor, False),
        (list[int], False),
        (None, False),
    ],
)
def test_what_has_a_shape(annotation, shaped):
    assert is_shaped(annotation) == shaped
