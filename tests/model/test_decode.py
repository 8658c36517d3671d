"""Decoding from a cache, left padding and given positions: each computes what the whole sequence computes at once."""

from functools import cache
from itertools import product

import pytest
import torch
from oracles import (
    BATCH,
    HEADS,
    KV_HEADS,
    LAYERS,
    VOCAB,
    admits,
    build,
    draw_tokens,
    every_pair_once,
    make,
    make_reading,
    options,
)

from archlab.base.errors import UserError
from archlab.blocks import context as contexts
from archlab.blocks.cache import Cache, Room
from archlab.blocks.contracts import Position
from archlab.blocks.token_positions import Ahead, PositionLimit, check_padding, check_prefix, shaped
from archlab.model.decoder import Decoder

SEQ, PROMPT = 9, 5
PREFIX = (2, 4)  # one for each sequence, within the prompt
PADDING = (3, 0)
EXACT = dict(rtol=1e-9, atol=1e-9)  # float64 throughout, sums in another order; RoPE's angles are the same float32 ones

DECODABLE = [mask for mask in options("mask") if not make("mask", mask)().bidirectional]
MATRIX = [
    row
    for row in product(options("pos"), DECODABLE, options("mixer"))
    if not make("pos", row[0]).func.uses_length and admits(*row)
]


def prefix_of(decoder: Decoder, batch: int = BATCH) -> torch.Tensor | None:
    return torch.tensor(PREFIX[:batch]) if decoder.mask.uses_prefix else None


def in_pieces(decoder: Decoder, tokens, sizes, prefix_len=None, positions=None, padding=None) -> torch.Tensor:
    """The logits of pieces of these sizes, one forward pass each; what is asked once goes in with the first."""
    cache, logits, start = Cache(), [], 0
    first = dict(prefix_len=prefix_len, padding=padding)
    for size in sizes:
        here = slice(start, start + size)
        given = None if positions is None else positions[..., here]
        logits.append(decoder(tokens[:, here], positions=given, cache=cache, **first))
        start, first = start + size, {}
        assert len(cache) == start
    assert start == tokens.shape[1]
    return torch.cat(logits, dim=1)


@cache
def decoder_of(pos: str, mask: str, mixer: str) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        return build(pos=pos, mask=mask, mixer=mixer, n_layers=2).eval()


@pytest.mark.parametrize(("pos", "mask", "mixer"), every_pair_once(MATRIX))
@torch.no_grad()
def test_decoding_is_the_parallel_forward(pos, mask, mixer):
    """Token by token and several at a time, each after a prompt, after itself, or after the other."""
    decoder = decoder_of(pos, mask, mixer)
    tokens, prefix_len = draw_tokens(seq=SEQ), prefix_of(decoder)
    logits = in_pieces(decoder, tokens, [PROMPT - 1, 1, 1, 2, 1], prefix_len)
    torch.testing.assert_close(logits, decoder(tokens, prefix_len), **EXACT)


@pytest.mark.parametrize(("pos", "mask", "mixer"), every_pair_once(MATRIX))
@torch.no_grad()
def test_a_padded_sequence_is_read_as_if_it_stood_alone(pos, mask, mixer):
    """Whole and from a cache; each sequence against itself without its padding."""
    decoder = decoder_of(pos, mask, mixer)
    tokens, prefix_len, padding = draw_tokens(seq=SEQ), prefix_of(decoder), torch.tensor(PADDING)
    together = decoder(tokens, prefix_len, padding=padding)
    piecewise = in_pieces(decoder, tokens, [7, 1, 1], prefix_len, padding=padding)
    for i, pad in enumerate(PADDING):
        alone = decoder(tokens[i : i + 1, pad:], None if prefix_len is None else prefix_len[i : i + 1])
        torch.testing.assert_close(together[i : i + 1, pad:], alone, **EXACT)
        torch.testing.assert_close(piecewise[i : i + 1, pad:], alone, **EXACT)


@pytest.mark.parametrize("mask", DECODABLE)
@pytest.mark.parametrize("pos", ["rope", "alibi"])
@torch.no_grad()
def test_decoding_block_by_block_of_queries(pos, mask, monkeypatch):
    """More keys than a block of queries holds, so that the kernels leave out what is out of reach."""
    decoder = build(pos=pos, mask=mask).eval()
    tokens, prefix_len, padding = draw_tokens(seq=SEQ), prefix_of(decoder), torch.tensor(PADDING)
    expected = decoder(tokens, prefix_len, padding=padding)
    monkeypatch.setattr(contexts, "QUERY_BLOCK", 3)
    torch.testing.assert_close(decoder(tokens, prefix_len, padding=padding), expected, **EXACT)
    torch.testing.assert_close(
        in_pieces(decoder, tokens, [PROMPT, 3, 1], prefix_len, padding=padding), expected, **EXACT
    )


@pytest.mark.parametrize(
    "changes",
    [{"qk_norm": "head"}, {"qk_norm": "width"}, {"softcap": 2.0}, {"qkv_bias": True, "out_bias": True}],
    ids=str,
)
@torch.no_grad()
def test_decoding_with_options_of_attention(changes):
    decoder, tokens = build(mixer=make("mixer", "gqa", **changes)).eval(), draw_tokens(seq=SEQ)
    torch.testing.assert_close(in_pieces(decoder, tokens, [PROMPT, 1, 1, 2]), decoder(tokens), **EXACT)


@pytest.mark.parametrize("residual", options("residual"))
@torch.no_grad()
def test_decoding_under_every_residual_scheme(residual):
    decoder, tokens = build(residual=residual).eval(), draw_tokens(seq=SEQ)
    torch.testing.assert_close(in_pieces(decoder, tokens, [PROMPT] + [1] * (SEQ - PROMPT)), decoder(tokens), **EXACT)


def test_a_cache_holds_each_key_value_head_once_and_nothing_else():
    decoder, cache = build(mixer="gqa").eval(), Cache()
    decoder(draw_tokens(seq=PROMPT), cache=cache)
    decoder(draw_tokens(seq=2), cache=cache)
    assert KV_HEADS < HEADS and len(cache) == PROMPT + 2 and len(cache.states) == LAYERS
    for k, v in cache.states.values():
        assert k.shape == v.shape == (BATCH, KV_HEADS, PROMPT + 2, 10)


@pytest.mark.parametrize("pos", ["rope", "alibi", "learned", "sinusoidal", "none"])
@torch.no_grad()
def test_given_positions_that_are_the_default_change_nothing(pos):
    decoder, tokens = build(pos=pos).eval(), draw_tokens(seq=SEQ)
    expected = decoder(tokens)
    for positions in (torch.arange(SEQ)[None], torch.arange(SEQ).expand(BATCH, 1, SEQ)):
        assert torch.equal(decoder(tokens, positions=positions), expected)


@pytest.mark.parametrize("mask", ["causal", "window"])
@torch.no_grad()
def test_masks_go_by_the_index_and_schemes_by_the_position(mask):
    """Positions in any order, some twice: who is read does not change, and where it is thought to be does."""
    decoder, tokens = build(pos="rope", mask=mask).eval(), draw_tokens(seq=SEQ)
    shifted = decoder(tokens, positions=torch.arange(SEQ)[None] + 40)
    # RoPE knows distances alone; its float32 angles at 50 are off by 50 * 2^-24 each
    torch.testing.assert_close(shifted, decoder(tokens), rtol=0, atol=2e-4)
    positions = torch.tensor([[3, 0, 7, 7, 2, 9, 1, 30, 4]])
    moved = decoder(tokens, positions=positions)
    assert (moved - decoder(tokens)).abs().max() > 1e-2
    torch.testing.assert_close(decoder(tokens[:, :6], positions=positions[:, :6]), moved[:, :6], **EXACT)
    torch.testing.assert_close(in_pieces(decoder, tokens, [PROMPT, 3, 1], positions=positions), moved, **EXACT)


@torch.no_grad()
def test_alibi_measures_between_given_positions():
    decoder, tokens = build(pos="alibi").eval(), draw_tokens(seq=SEQ)
    stretched = 3 * torch.arange(SEQ).expand(BATCH, SEQ)
    context = decoder.read(tokens, positions=stretched)[0]
    plain = make_reading("alibi", "full", SEQ).everything.bias
    readable = context.everything.can_attend[:, None].expand_as(context.everything.bias)
    assert torch.equal(context.everything.bias[readable], 3 * plain.expand_as(context.everything.bias)[readable])


class TwoAxes(Position):
    """Adds a vector for each of two position numbers, as GLM's own scheme does: after the prefix the first one stands."""

    axes = 2

    def __init__(self, d_model: int, n_heads: int, head_dim: int):
        super().__init__()
        self.tables = torch.nn.ModuleList(torch.nn.Embedding(64, d_model) for _ in range(2))

    def default_positions(self, index, prefix_len):
        stop = (prefix_len.view(-1, 1) - 1).clamp(min=0)
        return torch.stack((torch.minimum(index, stop), (index - stop).clamp(min=0)), dim=1)

    def embed(self, x, positions):
        return x + self.tables[0](positions[:, 0]) + self.tables[1](positions[:, 1])


@torch.no_grad()
def test_a_scheme_of_two_axes_gets_positions_from_the_prefix_unless_they_are_given():
    decoder = build(pos=TwoAxes, mask="prefix").eval()
    tokens, prefix_len = draw_tokens(seq=6), torch.tensor([2, 4])
    own = torch.tensor([[[0, 1, 1, 1, 1, 1], [0, 0, 1, 2, 3, 4]], [[0, 1, 2, 3, 3, 3], [0, 0, 0, 0, 1, 2]]])
    by_default = decoder(tokens, prefix_len)
    assert torch.equal(by_default, decoder(tokens, prefix_len, positions=own))
    assert not torch.equal(by_default, decoder(tokens, prefix_len, positions=own.flip(1)))
    torch.testing.assert_close(in_pieces(decoder, tokens, [4, 1, 1], prefix_len), by_default, **EXACT)
    torch.testing.assert_close(in_pieces(decoder, tokens, [4, 2], prefix_len, positions=own), by_default, **EXACT)


# --- what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        (
            {"mask": "full"},
            "mask=full: every token attends to the ones after it, so what was cached changes with each new token; use mask=causal, prefix or window to decode",
        ),
        (
            {"norm": "batch"},
            "norm: the statistics of BatchNorm run over batch and seq, so what was cached changes with each new token; use a norm over d_model alone to decode",
        ),
        (
            {"norm": "instance"},
            "norm: the statistics of InstanceNorm run over seq, so what was cached changes with each new token; use a norm over d_model alone to decode",
        ),
        (
            {"norm": "sequence"},
            "norm: the statistics of SequenceNorm run over seq and d_model, so what was cached changes with each new token; use a norm over d_model alone to decode",
        ),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_what_later_tokens_change_is_refused_a_cache(choices, line):
    decoder, cache = build(**choices), Cache()
    with pytest.raises(UserError) as refusal:
        decoder(draw_tokens(), cache=cache)
    assert str(refusal.value) == line and len(cache) == 0
    decoder(draw_tokens())


def test_a_scheme_that_goes_by_the_length_is_refused_a_cache():
    class ByLength(Position):
        uses_length = True

        def __init__(self, d_model, n_heads, head_dim):
            super().__init__()

    with pytest.raises(UserError, match="^pos: ByLength rotates keys by how long the sequence is"):
        build(pos=ByLength)(draw_tokens(), cache=Cache())


@pytest.mark.parametrize("gradients", [False, True])
def test_a_table_ends_where_it_does_for_tokens_one_at_a_time(gradients):
    """Though places are found for many tokens at once where there are no gradients, of which the table has not so many."""
    with torch.set_grad_enabled(gradients):
        decoder, tokens = build(pos=make("pos", "learned", max_positions=8)), draw_tokens(seq=11)
        for padding, last in ((None, 8), (torch.tensor([3, 2]), 10)):
            cache, first = Cache(), last - 3
            seen = [decoder(tokens[:, :first], cache=cache, padding=padding)]
            seen += [decoder(tokens[:, i : i + 1], cache=cache) for i in range(first, last)]
            whole = decoder(tokens[:, :last], padding=padding)
            torch.testing.assert_close(torch.cat(seen, dim=1)[:, first:], whole[:, first:], **EXACT)
            with pytest.raises(PositionLimit, match="^pos.max_positions=8: a sequence of 9 tokens"):
                decoder(tokens[:, :1], cache=cache)
            assert len(cache) == last


def test_a_table_ends_for_the_cache_too():
    decoder, cache = build(pos=make("pos", "learned", max_positions=8)), Cache()
    decoder(draw_tokens(seq=7), cache=cache)
    decoder(draw_tokens(seq=1), cache=cache)
    with pytest.raises(PositionLimit, match="^pos.max_positions=8: a sequence of 9 tokens"):
        decoder(draw_tokens(seq=1), cache=cache)
    assert len(cache) == 8
    padded = torch.tensor([2, 3])  # ten tokens of which the longest sequence has eight
    assert decoder(draw_tokens(seq=10), padding=padded).isfinite().all()
    with pytest.raises(PositionLimit, match="a sequence of 9 tokens"):
        decoder(draw_tokens(seq=11), padding=padded)
    with pytest.raises(ValueError, match="positions up to 8: the table of positions ends at 7"):
        decoder(draw_tokens(seq=2), positions=torch.tensor([[0, 8]]))
    with pytest.raises(ValueError, match="positions from -1: the table of positions begins at 0"):
        decoder(draw_tokens(seq=2), positions=torch.tensor([[-1, 0]]))


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"prefix_len": 2}, "prefix_len and padding: are given with the first tokens"),
        ({"padding": torch.tensor([1, 0])}, "prefix_len and padding: are given with the first tokens"),
        ({"positions": torch.tensor([[5]])}, "positions: give them for all tokens of a sequence or for none"),
    ],
)
def test_what_is_settled_with_the_first_tokens_stays(later, message):
    decoder, cache = build(mask="prefix"), Cache()
    decoder(draw_tokens(seq=PROMPT), cache=cache)
    with pytest.raises(ValueError, match=message):
        decoder(draw_tokens(seq=1), cache=cache, **later)


@pytest.mark.parametrize("prefix_len", [4, torch.tensor([2, 4])])
def test_a_prefix_enters_a_cache_whole(prefix_len):
    with pytest.raises(ValueError, match="prefix_len"):
        build(mask="prefix")(draw_tokens(seq=3), prefix_len, cache=Cache())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": torch.tensor([0, 7])}, r"padding=\[0, 7\]: should be from 0 to 6, to leave a token that is none"),
        ({"padding": torch.tensor([0, -1])}, r"padding=\[0, -1\]: should be from 0 to 6"),
        ({"positions": torch.zeros(1, 2, 7, dtype=torch.long)}, r"positions of shape \(1, 2, 7\): RoPE takes \(2, 7\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build()(draw_tokens(seq=7), **arguments)


PADDED = {"padding": torch.tensor([0, 7])}  # of 11 tokens, the second sequence has four of its own


@pytest.mark.parametrize("make_cache", [lambda: None, Cache], ids=["at once", "from a cache"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"prefix_len": -1},
        {"prefix_len": 12},
        {"prefix_len": torch.tensor([3, 12])},
        {"prefix_len": torch.tensor([-1, 3])},
        {"prefix_len": torch.tensor([3, 5]), **PADDED},
        {"prefix_len": 5, **PADDED},
        {"prefix_len": -1, **PADDED},
        {"prefix_len": torch.tensor([12, 4]), **PADDED},
    ],
    ids=str,
)
def test_a_prefix_beyond_the_sequence_is_refused(arguments, make_cache):
    """However it is given; it begins after the padding, so of a padded sequence there is less to take it from."""
    decoder, cache = build(mask="prefix"), make_cache()
    with pytest.raises(ValueError, match="prefix_len"):
        decoder(draw_tokens(seq=11), cache=cache, **arguments)
    assert cache is None or len(cache) == 0


@torch.no_grad()
def test_a_prefix_may_be_all_that_stands_after_the_padding():
    decoder, tokens = build(mask="prefix").eval(), draw_tokens(seq=11)
    together = decoder(tokens, torch.tensor([11, 4]), **PADDED)
    torch.testing.assert_close(together[1:, 7:], decoder(tokens[1:, 7:], 4), **EXACT)
    torch.testing.assert_close(decoder(tokens, 4, **PADDED), decoder(tokens, torch.tensor([4, 4]), **PADDED), **EXACT)


@pytest.mark.parametrize(
    ("prefix_len", "message"),
    [
        (torch.tensor([1, 2, 3]), r"prefix_len of shape \(3,\): should be one number, or one for each of 2 sequences"),
        (torch.tensor([[1], [2]]), r"prefix_len of shape \(2, 1\)"),
        (torch.tensor([1.0, 2.0]), r"whole numbers of tokens"),
        (torch.tensor([0, 8]), r"prefix_len=\[0, 8\]: should be from 0 to the 7 tokens of the sequence"),
    ],
)
def test_prefix_lengths_that_are_none_are_named(prefix_len, message):
    """Asked of the part: in these tests the decoder's own annotations stop some of them first."""
    with pytest.raises(ValueError, match=message):
        check_prefix(prefix_len, 2, 7)


@pytest.mark.parametrize("prefix_len", [torch.tensor([2, 4]), torch.tensor([3])])
def test_a_prefix_is_no_obstacle_to_one_graph_or_a_pack(prefix_len):
    """Where numbers are not there to be looked at they are taken as they are."""
    check = torch.compile(lambda given: check_prefix(given, 2, 7) or given + 1, fullgraph=True, backend="eager")
    assert torch.equal(check(prefix_len), prefix_len + 1)
    packed = torch.vmap(lambda given: check_prefix(given, 2, 7) or given + 1)
    assert torch.equal(packed(prefix_len[None]), prefix_len[None] + 1)
    assert check_prefix(prefix_len.to("meta"), 2, 7) is None


@pytest.mark.parametrize("norm", ["batch", "instance", "sequence"])
def test_padding_is_refused_where_statistics_would_run_over_it(norm):
    decoder = build(norm=norm, mask="full")
    with pytest.raises(
        UserError, match=r"^norm: the statistics of \w+ run over .*seq.*, and so over the padding; give"
    ):
        decoder(draw_tokens(seq=SEQ), padding=torch.tensor(PADDING))
    assert decoder(draw_tokens(seq=SEQ)).isfinite().all()


@pytest.mark.parametrize(
    "norm", [norm for norm in options("norm") if not make("norm", norm).func(d_model=8).sees_future]
)
@torch.no_grad()
def test_any_other_norm_knows_nothing_of_the_padding(norm):
    decoder, tokens = build(norm=norm).eval(), draw_tokens(seq=SEQ)
    together = decoder(tokens, padding=torch.tensor(PADDING))
    torch.testing.assert_close(together[:1, 3:], decoder(tokens[:1, 3:]), **EXACT)


def test_arguments_of_the_wrong_length_are_named():
    """Asked of the parts: in these tests the decoder's own annotations stop them first."""
    with pytest.raises(ValueError, match=r"padding of shape \(3,\): should be one number for each of 2 sequences"):
        check_padding(torch.tensor([1, 2, 3]), 2, 7)
    with pytest.raises(ValueError, match=r"positions of shape \(1, 6\): RoPE takes \(2, 7\) for these tokens"):
        shaped(torch.zeros(1, 6, dtype=torch.long), build().position, draw_tokens(seq=7))


def test_without_padding_the_fused_causal_kernel_gets_a_table_for_several_cached_tokens_alone(monkeypatch):
    decoder, tables = build(), []
    fused = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, attn_mask=None, **options):
        tables.append(attn_mask)
        return fused(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    decoder(draw_tokens())
    assert tables == [None] * LAYERS
    decoder(draw_tokens(), cache=(cache := Cache()))
    assert tables == [None] * 2 * LAYERS
    decoder(draw_tokens(seq=1), cache=cache)
    assert tables == [None] * 3 * LAYERS
    decoder(draw_tokens(seq=2), cache=cache)
    assert all(table.shape[-2:] == (2, 10) for table in tables[3 * LAYERS :])


@pytest.mark.parametrize("gradients", [False, True])
def test_a_cache_grows_by_what_it_is_given_and_leaves_what_it_gave(gradients, monkeypatch):
    """Against torch.cat, beyond the room there is, several keys at a time, and from a state that was put in its place."""
    monkeypatch.setattr(Room, "LEAST", 2)
    attention, cache, expected, given = torch.nn.Identity(), Cache(), [torch.empty(2, 3, 0, 5)] * 2, []
    with torch.set_grad_enabled(gradients):
        for n, n_new in enumerate((3, 1, 1, 4, 1, 1, 1)):
            new = [torch.randn(2, 3, n_new, 5, requires_grad=gradients) for _ in "kv"]
            if n == 5:  # as a search that keeps the better sequences would
                cache.states[attention] = tuple(one.flip(0) for one in cache.states[attention])
                expected = [one.flip(0) for one in expected]
            expected = [torch.cat(both, dim=2) for both in zip(expected, new, strict=True)]
            given += zip(cache.extend(attention, *new), expected, strict=True)
    assert all(torch.equal(ours, theirs) and ours.requires_grad is gradients for ours, theirs in given)


def test_the_rotation_is_computed_once_a_forward_pass(monkeypatch):
    decoder, calls = build(pos="rope"), []
    rotation = decoder.position.rotation
    monkeypatch.setattr(decoder.position, "rotation", lambda positions: calls.append(1) or rotation(positions))
    decoder(draw_tokens())
    assert len(calls) == 1 < LAYERS


PLACES = product(
    ("rope", "xpos", "alibi", "rope_2d", "sinusoidal", "learned"),
    ("causal", "prefix", "window", "document"),
    (False, True),
)


@pytest.mark.parametrize(("pos", "mask", "padded"), every_pair_once(list(PLACES)))
@torch.no_grad()
def test_places_that_were_found_for_several_tokens_are_those_of_each(pos, mask, padded, monkeypatch):
    """Two at a time, so that nine tokens need them again and again, also after several tokens at once."""
    monkeypatch.setattr(Ahead, "TOKENS", 2)
    decoder, tokens = build(pos=pos, mask=mask), draw_tokens(seq=SEQ)
    asked = dict(prefix_len=None if padded else prefix_of(decoder), padding=torch.tensor(PADDING) if padded else None)
    expected = decoder(tokens, **asked)
    torch.testing.assert_close(
        in_pieces(decoder, tokens, (PROMPT, 1, 1, 1, 1), **asked)[:, PROMPT:], expected[:, PROMPT:], **EXACT
    )
    torch.testing.assert_close(
        in_pieces(decoder, tokens, (PROMPT, 1, 2, 1), **asked)[:, PROMPT:], expected[:, PROMPT:], **EXACT
    )


@pytest.mark.parametrize(("gradients", "calls"), [(False, 1 + 2), (True, 1 + 4)])
def test_the_rotation_of_tokens_one_at_a_time_is_computed_for_several(gradients, calls, monkeypatch):
    """Gradients need a graph of each forward pass's own."""
    monkeypatch.setattr(Ahead, "TOKENS", 3)
    decoder, asked, cache = build(pos="rope"), [], Cache()
    rotation = decoder.position.rotation
    monkeypatch.setattr(decoder.position, "rotation", lambda positions: asked.append(1) or rotation(positions))
    with torch.set_grad_enabled(gradients):
        for piece in draw_tokens(seq=SEQ).split((PROMPT, 1, 1, 1, 1), dim=1):
            decoder(piece, cache=cache)
    assert len(asked) == calls


def test_logits_have_the_vocabulary_last():
    assert build()(draw_tokens(seq=4), cache=Cache()).shape == (BATCH, 4, VOCAB)
