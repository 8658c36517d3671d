"""Fused attention under torch.vmap: one fused call for all models, forward and backward, with the numbers of plain attention."""

import math

import pytest
import torch
from oracles import built
from torch.utils._python_dispatch import TorchDispatchMode

from archlab.blocks.folded import attend

MODELS, SEQUENCES, HEADS, SEQ, HEAD_DIM = 3, 2, 4, 7, 5
EXACT = dict(rtol=1e-12, atol=1e-12)  # float64; sums in another order

TABLES = {
    "none": None,
    "shared": (1, 1, SEQ, SEQ),
    "of heads": (1, HEADS, SEQ, SEQ),
    "of sequences": (SEQUENCES, 1, SEQ, SEQ),
    "of models and heads": (MODELS, 1, HEADS, SEQ, SEQ),
    "of models and sequences": (MODELS, SEQUENCES, 1, SEQ, SEQ),
    "of all": (MODELS, SEQUENCES, HEADS, SEQ, SEQ),
}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def written_out(q, k, v, table):
    scores = q @ k.mT / math.sqrt(HEAD_DIM)
    return (scores + table).softmax(dim=-1) @ v


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.fused, self.softmaxes = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.fused += [(name, args[0].shape)] if "scaled_dot_product" in name else []
        self.softmaxes += name == "_softmax"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("keys_of_each", [True, False])
def test_several_models_attend_as_each_does_alone(case, keys_of_each):
    models = (MODELS,) if keys_of_each else ()
    q, (k, v) = (
        drawn(MODELS, SEQUENCES, HEADS, SEQ, HEAD_DIM),
        (drawn(*models, SEQUENCES, HEADS, SEQ, HEAD_DIM) for _ in "kv"),
    )
    inputs = [q, k, v]
    if TABLES[case] is None:
        together = torch.vmap(
            lambda *qkv: attend(*qkv, is_causal=True), in_dims=(0, *[0 if keys_of_each else None] * 2)
        )(q, k, v)
        table = torch.full((SEQ, SEQ), -torch.inf, dtype=torch.float64).triu(1)
    else:
        table = drawn(*TABLES[case])
        inputs.append(table)
        dims = (0, *[0 if keys_of_each else None] * 2, 0 if len(table.shape) == 5 else None)
        together = torch.vmap(attend, in_dims=dims)(q, k, v, table)
    apart = written_out(q, k, v, table)
    torch.testing.assert_close(together, apart, **EXACT)
    weights = torch.randn_like(apart)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), inputs) for x in (together, apart))
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_outside_of_vmap_it_is_torchs_own():
    q, k, v = (drawn(SEQUENCES, HEADS, SEQ, HEAD_DIM) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(q.float(), k.float(), v.float()).dtype == torch.bfloat16
    torch.testing.assert_close(attend(q, k, v), written_out(q, k, v, 0.0), **EXACT)


@pytest.mark.parametrize(
    ("words", "fused"),
    [("", 2), ("mask=prefix mixer=mqa", 2), ("kernel=dense", 0), ("pos=alibi", 2), ("mixer.softcap=9", 0)],
)
def test_a_pack_attends_by_one_fused_call_in_each_layer_forward_and_backward(words, fused):
    """No table of queries and keys but the bias; kernel=dense and soft-capped scores stay written out."""
    decoder = built("size=nano", "size.d_model=24", "size.n_heads=3", "size.d_ff=20", *words.split())
    decoder.for_packs()
    stacked = {name: torch.stack([w.detach()] * MODELS).requires_grad_() for name, w in decoder.named_parameters()}
    tokens, prefix = torch.zeros(SEQUENCES, SEQ, dtype=torch.long), torch.tensor([2, 5])
    given = (tokens, prefix) if decoder.mask.uses_prefix else (tokens,)
    with Seen() as seen:
        torch.vmap(lambda weights: torch.func.functional_call(decoder, weights, given))(stacked).sum().backward()
    shape = (MODELS * SEQUENCES, 3, SEQ, 8)
    forward, backward = ([of for name, of in seen.fused if ("backward" in name) is back] for back in (False, True))
    assert forward == backward == [shape] * fused and bool(fused) != bool(seen.softmaxes)
