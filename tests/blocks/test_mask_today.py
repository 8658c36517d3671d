"""Blocks of a sequence, windows with sinks and packed documents: against Hugging Face's masks, loops, and documents run apart."""

from functools import partial

import pytest
import torch
from oracles import BATCH, HEADS, VOCAB, attend, build, composed, draw_tokens, gradients, make
from torch.nn.attention import flex_attention as torchs
from transformers import LlamaConfig
from transformers.masking_utils import create_causal_mask, create_chunked_causal_mask, create_sliding_window_causal_mask

from archlab.base.errors import UserError
from archlab.blocks import context as contexts
from archlab.blocks.cache import Cache
from archlab.blocks.context import AttentionContext
from archlab.blocks.flex import flex_kernel
from archlab.blocks.kernel import explicit_kernel, masked_kernel
from archlab.blocks.mask import one_mask
from archlab.blocks.softcap import leave
from archlab.blocks.token_positions import Ahead, at_the_start

EXACT = dict(rtol=1e-10, atol=1e-10)  # float64; sums in another order
LENGTHS = [[5, 3, 4, 1], [1, 1, 9, 2]]  # documents of two sequences of 13 tokens
SEQ = 13


def starts_of(lengths) -> torch.Tensor:
    rows = [[sum(row[:i]) for i, length in enumerate(row) for _ in range(length)] for row in lengths]
    return torch.tensor(rows)


def places_of(lengths) -> torch.Tensor:
    return torch.tensor([[place for length in row for place in range(length)] for row in lengths])


def context_of(mask, seq_len=SEQ, batch=BATCH, pos="none", starts=None, padding=None) -> AttentionContext:
    position, mask = make("pos", pos)(d_model=48, n_heads=HEADS, head_dim=10), mask()
    tokens = torch.zeros(batch, seq_len, dtype=torch.long)
    where = at_the_start(tokens, position, padding=padding, document_starts=starts, mask=mask)
    return AttentionContext(position, mask, where)


# --- whom each query attends to: Hugging Face's own masks ---------------------------------------


def theirs(create, seq_len, places=None, padding=None, **config) -> torch.Tensor:
    """(batch, query, key) of one of their functions, as the class of a model without an implementation of its own asks it."""
    config = LlamaConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, vocab_size=5, **config)
    config._attn_implementation = "sdpa"
    batch = BATCH if padding is None and places is None else len(places if padding is None else padding)
    kept = None
    if padding is not None:
        kept = (torch.arange(seq_len) >= torch.tensor(padding)[:, None]).long()
    made = create(config, torch.zeros(batch, seq_len, 8), kept, None, position_ids=places, allow_is_causal_skip=False)
    return made[:, 0].expand(batch, seq_len, seq_len)


def test_blocks_of_a_sequence():
    ours = context_of(make("mask", "chunked", chunk=5)).everything.can_attend
    assert torch.equal(ours.expand(BATCH, -1, -1), theirs(create_chunked_causal_mask, SEQ, attention_chunk_size=5))


def test_blocks_begin_after_the_padding():
    ours = context_of(make("mask", "chunked", chunk=4), padding=torch.tensor([0, 3])).everything.can_attend
    expected = theirs(create_chunked_causal_mask, SEQ, padding=[0, 3], attention_chunk_size=4)
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1, 3:], expected[1, 3:])  # what padding attends to is of no account


@pytest.mark.parametrize(
    ("options", "create", "config"),
    [
        ({}, create_causal_mask, {}),
        ({"window": 3}, create_sliding_window_causal_mask, {"sliding_window": 3}),
        ({"chunk": 2}, create_chunked_causal_mask, {"attention_chunk_size": 2}),
    ],
)
def test_documents(options, create, config):
    ours = context_of(make("mask", "document", **options), starts=starts_of(LENGTHS)).everything.can_attend
    assert torch.equal(ours, theirs(create, SEQ, places=places_of(LENGTHS), **config))


def test_a_window_with_sinks():
    """StreamingLLM, fig. 1 (d), with 2 sinks and a window of 3."""
    expected = """
        1 0 0 0 0 0 0
        1 1 0 0 0 0 0
        1 1 1 0 0 0 0
        1 1 1 1 0 0 0
        1 1 1 1 1 0 0
        1 1 0 1 1 1 0
        1 1 0 0 1 1 1
    """
    rows = torch.tensor([[int(entry) for entry in row.split()] for row in expected.strip().splitlines()]).bool()
    assert torch.equal(context_of(make("mask", "window", window=3, sinks=2), 7, 1).everything.can_attend[0], rows)


MASKS = {
    "chunked": partial(make, "mask", "chunked", chunk=4),
    "sinks": partial(make, "mask", "window", window=3, sinks=2),
    "document": partial(make, "mask", "document"),
    "document, window": partial(make, "mask", "document", window=3),
    "document, chunked": partial(make, "mask", "document", chunk=2, reset_positions=True),
}


def attends(name: str, b: int, i: int, j: int) -> bool:
    """A second time, by numbers of documents and places in them."""
    if not name.startswith("document"):
        return j <= i and (i - j < 3 or j < 2 if name == "sinks" else i // 4 == j // 4)
    numbers = [[n for n, length in enumerate(row) for _ in range(length)] for row in LENGTHS]
    place = places_of(LENGTHS)[b].tolist()
    near = {"document": True, "document, window": i - j < 3, "document, chunked": place[i] // 2 == place[j] // 2}[name]
    return j <= i and numbers[b][i] == numbers[b][j] and near


def starts_for(name: str):
    return starts_of(LENGTHS) if name.startswith("document") else None


@pytest.fixture
def flex_with_a_backward_pass(monkeypatch):
    monkeypatch.setattr(torchs, "_validate_device", lambda q, k, v: None)
    monkeypatch.setattr(torchs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("block", [5, 512])
@pytest.mark.parametrize("name", MASKS)
def test_all_kernels_agree_with_loops(name, block, monkeypatch, flex_with_a_backward_pass):
    monkeypatch.setattr(contexts, "QUERY_BLOCK", block)
    shapes = [(BATCH, heads, SEQ, 10) for heads in (2, 1, 1)]
    qkv = tuple(torch.randn(shape, dtype=torch.float64).mul(2).requires_grad_() for shape in shapes)
    context = context_of(MASKS[name](), starts=starts_for(name))
    expected = attend(*qkv, lambda b, i, j: attends(name, b, i, j), lambda h, i, j: 0.0)
    slopes = gradients(expected, qkv)
    for kernel in (masked_kernel, explicit_kernel(leave), flex_kernel(context.position, context.mask)):
        read = kernel(*qkv, context, 0.0)
        torch.testing.assert_close(read, expected, **EXACT)
        torch.testing.assert_close(gradients(read, qkv), slopes, **EXACT)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("pos", ["alibi", "t5", "fire"])
def test_a_bias_goes_by_places_in_documents_where_these_are_the_positions(pos, flex_with_a_backward_pass):
    qkv = tuple(torch.randn(BATCH, heads, SEQ, 10, dtype=torch.float64) for heads in (HEADS, 3, 3))
    mask = make("mask", "document", reset_positions=True)
    context = context_of(mask, pos=pos, starts=starts_of(LENGTHS))
    place = places_of(LENGTHS)
    assert torch.equal(context.token_positions.positions, place)
    table = context.position.bias(place[..., None], place[..., None, :]).detach().double()
    expected = torch.zeros(BATCH, HEADS, SEQ, 10, dtype=torch.float64)
    for b in range(BATCH):
        bias = lambda h, i, j, b=b: float(table[min(b, len(table) - 1), h, i, j])  # noqa: E731
        one = [x[b : b + 1] for x in qkv]
        expected[b] = attend(*one, lambda _, i, j, b=b: attends("document", b, i, j), bias)[0]
    for kernel in (explicit_kernel(leave), flex_kernel(context.position, context.mask)):
        torch.testing.assert_close(kernel(*qkv, context, 0.0), expected, rtol=1e-6, atol=1e-6)  # biases are float32


@pytest.mark.parametrize("name", MASKS)
def test_reach_with_padding(name, monkeypatch):
    """Blocks of queries leave out no key, wherever padding moves them."""
    monkeypatch.setattr(contexts, "QUERY_BLOCK", 4)
    padding = torch.tensor([0, 3])
    starts = starts_for(name)
    if starts is not None:
        starts = torch.cat((starts[:1], torch.cat((torch.zeros(1, 3, dtype=torch.long), starts[1:, :-3]), dim=1)))
        starts[1, 3:] = starts_of([[1, 1, 8]])
    context = context_of(MASKS[name](), starts=starts, padding=padding)
    whole = context.everything.can_attend
    for rows in context.blocks():
        left_out = whole[:, rows.queries].clone()
        assert torch.equal(left_out[:, :, rows.keys], rows.can_attend)
        left_out[:, :, rows.keys] = False
        assert not left_out.any()


# --- in a whole decoder: documents in one sequence are documents apart --------------------------


@pytest.mark.parametrize(
    ("pos", "reset"), [("rope", False), ("rope", True), ("alibi", False), ("learned", True), ("fire", True)]
)
def test_packed_documents_are_documents_apart(pos, reset):
    decoder = build(pos=pos, mixer="gqa", mask=make("mask", "document", reset_positions=reset))
    tokens = draw_tokens(seq=SEQ)
    logits = decoder(tokens, document_starts=starts_of(LENGTHS))
    for b, row in enumerate(LENGTHS):
        ends = [sum(row[: i + 1]) for i in range(len(row))]
        apart = [decoder(tokens[b : b + 1, end - n : end])[0] for n, end in zip(row, ends, strict=True)]
        # Without a reset the same distances come of larger positions, float32 angles and biases.
        tolerance = EXACT if reset else dict(rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits[b], torch.cat(apart), **tolerance)


def test_no_look_across_documents_and_positions_that_go_on_matter():
    decoder = build(pos="sinusoidal", mask="document")
    tokens, starts = draw_tokens(seq=SEQ), starts_of(LENGTHS)
    before = decoder(tokens, document_starts=starts)
    tokens[:, :1] = (tokens[:, :1] + 1) % VOCAB
    after = decoder(tokens, document_starts=starts)
    assert torch.equal(before[0, 5:], after[0, 5:]) and torch.equal(before[1, 1:], after[1, 1:])
    assert not torch.equal(before[0, :5], after[0, :5])
    apart = decoder(tokens[:1, 5:8])
    assert (apart[0] - after[0, 5:8]).abs().max() > 1e-3  # they stand at 5, 6, 7 and not at 0, 1, 2


@pytest.mark.parametrize(("at_once", "learns"), [(2, True), (1, True), (1, False)])
@pytest.mark.parametrize("reset", [False, True])
def test_tokens_after_cached_documents_go_on_with_the_last(reset, at_once, learns, monkeypatch):
    """One at a time and without gradients their places are found for several at once: here for four, of six tokens."""
    monkeypatch.setattr(Ahead, "TOKENS", 4)
    decoder = build(pos="sinusoidal", mask=make("mask", "document", window=3, reset_positions=reset))
    tokens, starts = draw_tokens(seq=SEQ), starts_of([[2, 4, 7], [1, 3, 9]])
    expected, cache = decoder(tokens, document_starts=starts), Cache()
    with torch.set_grad_enabled(learns):
        pieces = [decoder(tokens[:, :7], document_starts=starts[:, :7], cache=cache)]
        pieces += [decoder(tokens[:, i : i + at_once], cache=cache) for i in range(7, SEQ, at_once)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, **EXACT)
    with pytest.raises(ValueError, match="document_starts: are given with the first"):
        decoder(tokens[:, :1], document_starts=starts[:, :1], cache=cache)


@pytest.mark.parametrize(
    "starts",
    [
        starts_of(LENGTHS).flip(1),
        starts_of(LENGTHS) + 1,
        torch.tensor([[0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0]]),  # the first goes on after the second
    ],
)
def test_documents_that_do_not_follow_each_other_are_refused(starts):
    with pytest.raises(ValueError, match="its own index"):
        build(mask="document")(draw_tokens(seq=SEQ), document_starts=starts)


def test_other_masks_know_no_documents():
    with pytest.raises(ValueError, match="document_starts: a Causal mask keeps no documents apart.*mask=document"):
        build()(draw_tokens(seq=SEQ), document_starts=starts_of(LENGTHS))


def test_layers_may_differ():
    """A token attends where some layer's mask lets it, with documents and without."""
    document, chunked = make("mask", "document")(), make("mask", "chunked", chunk=5)()
    both = one_mask([document, chunked])
    assert both.uses_documents and not both.uses_prefix and one_mask([document]) is document
    contexts_of = [context_of(lambda mask=mask: mask, starts=starts_of(LENGTHS)) for mask in (both, document, chunked)]
    either, one, other = (context.everything.can_attend for context in contexts_of)
    assert torch.equal(either, one | other)


def test_positions_are_those_of_all_layers():
    with pytest.raises(UserError, match="mask.reset_positions=true.*all of them or in none"):
        one_mask([make("mask", "document", reset_positions=reset)() for reset in (True, False)])


def test_a_document_has_one_kind_of_past():
    with pytest.raises(UserError, match="mask.chunk=5: mask.window=4"):
        make("mask", "document", window=4, chunk=5)()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("mask=document data=copy", ["documents=true", "data=copy", "data=text"]),
        ("mask=chunked layers[::2].mask=document", ["documents=false", "documents=true"]),
    ],
)
def test_documents_that_nobody_has_are_refused(words, parts):
    with pytest.raises(UserError) as refusal:
        composed("size=nano", *words.split())
    assert not [part for part in parts if part not in str(refusal.value)] and "\n" not in str(refusal.value)
