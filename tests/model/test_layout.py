"""Matrices laid out for decoding: what is computed stays what it is, and afterwards nothing has changed."""

import pytest
import torch
from oracles import VOCAB, build, draw_tokens, options

from archlab.model import layout
from archlab.model.generate import generate
from archlab.model.layout import laid_out_for, matrices

NEW = 9


@pytest.fixture(autouse=True)
def for_few_tokens(monkeypatch):
    """So that a short test has it too."""
    monkeypatch.setattr(layout, "FEWEST_TOKENS", NEW)


def columns(weight: torch.Tensor) -> bool:
    return weight.stride() == (1, weight.shape[0])


BLOCKS = [(group, name) for group in ("mixer", "ffn", "head") for name in options(group)]


@pytest.mark.parametrize(("group", "name"), [*BLOCKS, ("tied", True)])
def test_every_block_computes_the_same_of_one_token(group, name):
    """The sums are the same numbers in another order, in float64."""
    decoder, tokens = build(**{group: name}).eval(), draw_tokens(seq=5)[:1]
    with torch.no_grad():
        expected = decoder(tokens)
        with laid_out_for(decoder, 1, NEW):
            assert all(columns(weight) for weight in matrices(decoder) if 1 not in weight.shape)
            torch.testing.assert_close(decoder(tokens), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"mixer": "mla"}, {"mixer": "mamba2"}, {"ffn": "gelu"}])
def test_what_is_said_is_what_full_forwards_say(changes):
    decoder, tokens = build(**changes).eval(), draw_tokens(seq=5)[:1]
    told = generate(decoder, tokens, max_new_tokens=NEW)
    for _ in range(NEW):
        with torch.no_grad():
            tokens = torch.cat((tokens, decoder(tokens)[:, -1:].argmax(dim=-1)), dim=1)
    assert torch.equal(told, tokens)


def test_values_stay_and_the_order_in_memory_comes_back():
    decoder = build(pos="rope")
    before = {name: (weight.data_ptr(), weight.detach().clone()) for name, weight in decoder.named_parameters()}
    with laid_out_for(decoder, 1, NEW):
        assert all(columns(weight) for weight in matrices(decoder))
        assert len(matrices(decoder)) == 7 * len(decoder.layers) + 1  # q, k, v, out, gate, up, down; the head
        for name, weight in decoder.named_parameters():
            assert torch.equal(weight, before[name][1])
    for name, weight in decoder.named_parameters():
        assert weight.data_ptr() == before[name][0] and weight.is_contiguous() and not weight.is_inference()


def test_an_error_leaves_nothing_behind():
    decoder = build(pos="rope")
    with pytest.raises(RuntimeError, match="midway"), laid_out_for(decoder, 1, NEW):
        raise RuntimeError("midway")
    assert all(weight.is_contiguous() for weight in decoder.parameters())


def test_a_model_goes_on_learning_the_same_weights():
    """A member of a pack has views of the stacked weights, which have to be the ones that it decodes by, and keeps."""
    decoder = build(pos="rope")
    stack = torch.stack([decoder.head.weight.detach(), torch.zeros_like(decoder.head.weight)])
    decoder.head.weight.data = stack[0]
    generate(decoder, draw_tokens(seq=5)[:1], max_new_tokens=NEW)
    stack[0].fill_(0.25)
    assert decoder.head.weight.shape[0] == VOCAB and bool((decoder.head.weight == 0.25).all())


@pytest.mark.parametrize(("n_sequences", "n_tokens"), [(layout.MOST_SEQUENCES + 1, NEW), (1, NEW - 1)])
def test_where_it_would_not_pay_nothing_is_moved(n_sequences, n_tokens):
    decoder = build(pos="rope")
    with laid_out_for(decoder, n_sequences, n_tokens):
        assert not any(columns(weight) for weight in matrices(decoder))


def test_neither_is_a_model_that_is_too_large_nor_one_in_half_precision(monkeypatch):
    decoder = build(pos="rope")
    with torch.autocast("cpu", torch.bfloat16), laid_out_for(decoder, 1, NEW):
        assert not any(columns(weight) for weight in matrices(decoder))
    monkeypatch.setattr(layout, "MOST_BYTES", sum(weight.nbytes for weight in matrices(decoder)) - 1)
    with laid_out_for(decoder, 1, NEW):
        assert not any(columns(weight) for weight in matrices(decoder))
