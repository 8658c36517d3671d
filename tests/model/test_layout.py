"""Matrices laid out for decoding: what is computed stays what it is, and afterwards nothing has changed."""

from threading import Thread

import pytest
import torch
from oracles import VOCAB, build, draw_tokens, options
from torch import nn

from archlab.model import layout
from archlab.model.generate import generate
from archlab.model.layout import laid_out_for, linears, side_by_side

NEW = 9


@pytest.fixture(autouse=True)
def for_few_tokens(monkeypatch):
    """So that a short test has it too."""
    monkeypatch.setattr(layout, "FEWEST_TOKENS", NEW)


def columns(weight: torch.Tensor) -> bool:
    """Whether it, or the matrix of a product that it is a part of, lies in memory column by column."""
    return weight.stride(0) == 1 and weight.stride(1) >= weight.shape[0]


def maps_of(decoder):
    """The decoder's linear maps, by what they read."""
    with torch.no_grad(), side_by_side(decoder) as maps:
        decoder(draw_tokens(seq=5)[:1])
    return maps


def wide(weight: torch.Tensor) -> bool:
    """At least as many results as features, in a matrix of more than a row."""
    return weight.shape[0] >= weight.shape[1] > 1


BLOCKS = [(group, name) for group in ("mixer", "ffn", "head") for name in options(group)]


@pytest.mark.parametrize(("group", "name"), [*BLOCKS, ("tied", True)])
def test_every_block_computes_the_same_of_one_token(group, name):
    """The sums are the same numbers in another order, in float64."""
    decoder, tokens = build(**{group: name}).eval(), draw_tokens(seq=5)[:1]
    maps = maps_of(decoder)
    assert {linear for group in maps for linear in group} >= set(linears(decoder)) - set(of_experts(decoder))
    with torch.no_grad():
        expected = decoder(tokens)
        with laid_out_for(maps, 1, NEW):
            assert all(columns(group[0].weight) for group in maps if len(group) == 1 and wide(group[0].weight))
            torch.testing.assert_close(decoder(tokens), expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(decoder(tokens[:, 2:]), decoder(tokens[:, 2:].clone()), rtol=0, atol=0)


def of_experts(decoder):
    """An expert that no token was sent to reads nothing."""
    return [module for name, module in decoder.named_modules() if ".experts." in name]


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"mixer": "mla"}, {"mixer": "mamba2"}, {"ffn": "gelu"}])
def test_what_is_said_is_what_full_forwards_say(changes):
    decoder, tokens = build(**changes).eval(), draw_tokens(seq=5)[:1]
    told = generate(decoder, tokens, max_new_tokens=NEW)
    for _ in range(NEW):
        with torch.no_grad():
            tokens = torch.cat((tokens, decoder(tokens)[:, -1:].argmax(dim=-1)), dim=1)
    assert torch.equal(told, tokens)


def test_what_reads_the_same_is_one_product():
    decoder = build(pos="rope", n_layers=2)
    names = {module: name for name, module in decoder.named_modules()}
    found = [[names[linear] for linear in group] for group in maps_of(decoder)]
    assert found == [
        *(
            [f"layers.{i}.{name}" for name in group]
            for i in range(2)
            for group in (
                ["mixer.q_proj", "mixer.k_proj", "mixer.v_proj"],
                ["mixer.out_proj"],
                ["ffn.gate_proj", "ffn.up_proj"],
                ["ffn.down_proj"],
            )
        ),
        ["head"],
    ]


def counted(monkeypatch) -> list[int]:
    """The numbers of results of the products that are made from here on."""
    made, plain = [], layout.F.linear
    monkeypatch.setattr(layout.F, "linear", lambda x, w, b=None: (made.append(len(w)), plain(x, w, b))[1])
    return made


def test_a_product_is_made_once_for_what_it_is_asked_and_anew_for_another_tensor(monkeypatch):
    first, second = nn.Linear(5, 3), nn.Linear(5, 4, bias=False)
    x, y = torch.randn(1, 1, 5), torch.randn(1, 1, 5)
    expected = {(linear, of): linear(of) for linear in (first, second) for of in (x, y)}
    made = counted(monkeypatch)
    with torch.no_grad(), laid_out_for([[first, second]], 1, NEW):
        for of in (x, y):
            for linear in (first, second):
                torch.testing.assert_close(linear(of), expected[linear, of], rtol=1e-6, atol=1e-6)
        assert made == [7, 7]
        torch.testing.assert_close(first(x), expected[first, x], rtol=1e-6, atol=1e-6)
    assert made == [7, 7, 7]
    first(x), second(x)
    assert made == [7, 7, 7, 3, 4]


def test_what_a_library_has_put_into_a_maps_place_is_left_alone():
    decoder = build(pos="rope", n_layers=2)
    own = decoder.layers[0].mixer.q_proj
    vars(own)["forward"] = lambda x: x.new_zeros(*x.shape[:-1], own.out_features)
    decoder.layers[1].ffn.up_proj = nn.Sequential(decoder.layers[1].ffn.up_proj)
    maps = maps_of(decoder)
    assert [own] in maps
    tokens = draw_tokens(seq=5)[:1]
    with torch.no_grad():
        expected = decoder(tokens)
        with laid_out_for(maps, 1, NEW):
            torch.testing.assert_close(decoder(tokens), expected, rtol=1e-9, atol=1e-9)
    assert "forward" in vars(own)


class Packed(nn.Linear):
    """A linear map as bitsandbytes' Linear4bit is one: its weight is a column of bytes, of which its forward makes the matrix."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.matrix = (linear.weight.detach() > 0).to(linear.weight.dtype)
        packed = self.matrix.to(torch.uint8).flatten().unflatten(0, (-1, 2)) @ torch.tensor([1, 2], dtype=torch.uint8)
        self.weight = nn.Parameter(packed[:, None], requires_grad=False)

    def forward(self, x):
        bits = torch.stack((self.weight[:, 0] % 2, self.weight[:, 0] // 2), dim=1)
        return nn.functional.linear(x, bits.view(self.out_features, self.in_features).to(x.dtype))


def test_a_map_whose_numbers_a_library_has_packed_is_left_alone():
    decoder, tokens = build(pos="rope", n_layers=2).eval(), draw_tokens(seq=5)[:1]
    decoder.layers[0].mixer.q_proj = Packed(decoder.layers[0].mixer.q_proj)
    told = generate(decoder, tokens, max_new_tokens=NEW)
    with torch.no_grad():
        assert torch.equal(told[:, 5:], decoder(told[:, :-1])[:, 4:].argmax(dim=-1))


def test_threads_that_ask_one_model_are_told_what_each_would_be_alone():
    decoder, prompts = build(pos="rope", n_layers=2), draw_tokens(seq=5).split(1)
    alone, beside = [generate(decoder, prompt, max_new_tokens=60) for prompt in prompts], {}

    def ask(number):
        beside[number] = generate(decoder, prompts[number], max_new_tokens=60)

    threads = [Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for step in (Thread.start, Thread.join):
        for thread in threads:
            step(thread)
    assert [beside[number].tolist() for number in range(len(prompts))] == [told.tolist() for told in alone]
    assert decoder.training and nothing_moved([linears(decoder)])


def test_values_stay_and_the_order_in_memory_comes_back():
    decoder = build(pos="rope")
    before = {name: (weight.data_ptr(), weight.detach().clone()) for name, weight in decoder.named_parameters()}
    maps = maps_of(decoder)
    weights = [linear.weight for group in maps for linear in group]
    assert len(weights) == 7 * len(decoder.layers) + 1  # q, k, v, out, gate, up, down; the head
    with laid_out_for(maps, 1, NEW):
        assert all(columns(weight) for weight in weights if wide(weight))
        narrow = [weight for weight in weights if weight.shape[0] < weight.shape[1]]
        assert len(narrow) >= len(decoder.layers) and all(weight.is_contiguous() for weight in narrow)
        for name, weight in decoder.named_parameters():
            assert torch.equal(weight, before[name][1])
    for name, weight in decoder.named_parameters():
        assert weight.data_ptr() == before[name][0] and weight.is_contiguous() and not weight.is_inference()
    assert not any("forward" in vars(module) for module in decoder.modules())


def test_an_error_leaves_nothing_behind():
    decoder = build(pos="rope")
    with pytest.raises(RuntimeError, match="midway"), laid_out_for(maps_of(decoder), 1, NEW):
        raise RuntimeError("midway")
    assert all(weight.is_contiguous() for weight in decoder.parameters())
    assert not any("forward" in vars(module) for module in decoder.modules())


def test_a_model_goes_on_learning_the_same_weights():
    """A member of a pack has views of the stacked weights, which have to be the ones that it decodes by, and keeps."""
    decoder = build(pos="rope")
    stack = torch.stack([decoder.head.weight.detach(), torch.zeros_like(decoder.head.weight)])
    decoder.head.weight.data = stack[0]
    generate(decoder, draw_tokens(seq=5)[:1], max_new_tokens=NEW)
    stack[0].fill_(0.25)
    assert decoder.head.weight.shape[0] == VOCAB and bool((decoder.head.weight == 0.25).all())


def nothing_moved(maps) -> bool:
    return all(linear.weight.is_contiguous() and "forward" not in vars(linear) for group in maps for linear in group)


@pytest.mark.parametrize(("n_sequences", "n_tokens"), [(layout.MOST_SEQUENCES + 1, NEW), (1, NEW - 1)])
def test_where_it_would_not_pay_nothing_is_moved(n_sequences, n_tokens):
    maps = maps_of(build(pos="rope"))
    with laid_out_for(maps, n_sequences, n_tokens):
        assert nothing_moved(maps)


def test_neither_is_a_model_that_is_too_large_nor_one_in_half_precision(monkeypatch):
    maps = maps_of(build(pos="rope"))
    with torch.autocast("cpu", torch.bfloat16), laid_out_for(maps, 1, NEW):
        assert nothing_moved(maps)
    monkeypatch.setattr(layout, "MOST_BYTES", sum(m.weight.nbytes for group in maps for m in group) - 1)
    with laid_out_for(maps, 1, NEW):
        assert nothing_moved(maps)
