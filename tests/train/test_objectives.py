"""Masked-LM and blank infilling: what is hidden, what is told, where it stands, and what counts."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import VOCAB, build

from archlab.base.errors import UserError
from archlab.config.compose import compose
from archlab.data.batch import Batch
from archlab.data.blank import END, MASK, REST, START, Blank
from archlab.data.masked import MASK as BERT_MASK
from archlab.data.masked import Masked
from archlab.data.text import Text
from archlab.evaluate.length import by_length
from archlab.evaluate.settings import EvalSettings
from archlab.evaluate.validation import HeldOut
from archlab.model.generate import generate
from archlab.train.objective import token_losses
from archlab.train.runtime import runtime


@pytest.fixture(scope="module")
def text():
    return Text()


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a is not None)


# --- masked-LM ----------------------------------------------------------------------------------


def test_of_the_hidden_tokens_80_percent_are_masked_10_any_and_10_left():
    source, hidden, masked, kept = Masked(), 0, 0, 0
    for step in range(40):
        batch = source.train(1, step, 16, 128)
        assert torch.equal(batch.tokens[~batch.scored], batch.targets[~batch.scored])
        there, right = batch.tokens[batch.scored], batch.targets[batch.scored]
        assert right.max() < 256
        hidden, masked, kept = (
            hidden + len(there),
            masked + int((there == BERT_MASK).sum()),
            kept + int((there == right).sum()),
        )
    n = 40 * 16 * 128
    # Four standard deviations of a binomial share; one byte in 256 drawn at random is the byte that stood there.
    assert abs(hidden / n - 0.15) < 4 * math.sqrt(0.15 * 0.85 / n)
    assert abs(masked / hidden - 0.8) < 4 * math.sqrt(0.8 * 0.2 / hidden)
    assert abs(kept / hidden - (0.1 + 0.1 / 256)) < 4 * math.sqrt(0.1 * 0.9 / hidden)


def test_targets_are_the_text(text):
    batches = list(Masked().validation(50, 600, 5))
    assert torch.cat([batch.targets for batch in batches]).flatten().tolist() == text.valid_part[:600].tolist()
    assert [len(batch.tokens) for batch in batches] == [5, 5, 2]


@pytest.mark.parametrize("seq_len", [16, 64, 128])
def test_every_length_hides_the_same_held_out_tokens(seq_len):
    def hidden(length):
        batches = list(Masked().validation(length, 1024, 3))
        return [torch.cat([getattr(batch, name) for batch in batches]).flatten() for name in ("tokens", "scored")]

    assert all(torch.equal(one, other) for one, other in zip(hidden(seq_len), hidden(1024), strict=True))


@pytest.mark.parametrize("source", [Masked(), Blank(), Blank(rest=0.5)], ids=["masked", "blank", "rest"])
def test_a_batch_depends_on_seed_and_step_alone(source):
    first = source.train(3, 5, 7, 40)
    assert same(first, source.train(3, 5, 7, 40))
    assert not torch.equal(first.tokens, source.train(3, 6, 7, 40).tokens)
    assert not torch.equal(first.tokens, source.train(4, 5, 7, 40).tokens)
    assert same(next(source.validation(40, 400, 4)), next(source.validation(40, 400, 4)))


def test_only_hidden_places_count():
    decoder, batch = build(torch.float32, mask="full", vocab_size=257), Masked(share=0.3).train(0, 0, 2, 7)
    logits = decoder(batch.tokens)
    expected = F.cross_entropy(logits[batch.scored], batch.targets[batch.scored], reduction="sum")
    torch.testing.assert_close(token_losses(decoder, batch).total, expected)


@pytest.fixture
def two_halves(tmp_path):
    """A file whose first nine tenths are bytes below 100 and whose last tenth are bytes from 100 on."""
    rng = np.random.default_rng(0)
    file = tmp_path / "halves.bin"
    file.write_bytes(
        np.concatenate([rng.integers(0, 100, 9000), rng.integers(100, 256, 1000)]).astype(np.uint8).tobytes()
    )
    return str(file)


@pytest.mark.parametrize("objective", [Masked, Blank])
def test_training_and_validation_take_their_own_parts_of_the_users_file(objective, two_halves):
    source = objective(path=two_halves)
    told = [source.train(0, step, 8, 40) for step in range(20)]
    trained = torch.cat([batch.targets[batch.scored] for batch in told])
    held_out = torch.cat([batch.targets[batch.scored] for batch in source.validation(40, 1000, 8)])
    assert trained[trained < 256].max() < 100 <= held_out[held_out < 256].min()
    assert len(trained.unique()) > 90 and len(held_out.unique()) > 60


def test_any_byte_stands_where_a_random_one_does():
    batch = Masked(share=0.9, mask=0.0, random=1.0).train(0, 0, 16, 128)
    drawn = batch.tokens[batch.scored]
    assert len(drawn.unique()) > 250 and abs(float(drawn.double().mean()) - 127.5) < 4 * 74 / len(drawn) ** 0.5


# --- blank infilling ----------------------------------------------------------------------------


def parsed(tokens, targets, prefix_len):
    """Part A and the spans of part B, read from the special tokens alone."""
    part_a, part_b, told = tokens[:prefix_len], tokens[prefix_len:], targets[prefix_len:]
    begins = [i for i, token in enumerate(part_b) if token == START] + [len(part_b)]
    spans = []
    for begin, end in pairwise(begins):
        assert told[end - 1] == END and told[begin : end - 1] == part_b[begin + 1 : end]
        spans.append(part_b[begin + 1 : end])
    return part_a, spans


def sequences_of(batch):
    """Of each sequence: part A, the spans after it, its tokens, the prefix's length, and both axes of its positions."""
    columns = (batch.tokens, batch.targets, batch.prefix_len, batch.positions)
    for tokens, targets, prefix_len, positions in zip(*(column.tolist() for column in columns), strict=True):
        yield *parsed(tokens, targets, prefix_len), tokens, prefix_len, positions


@pytest.mark.parametrize(("rest", "mark"), [(0.0, MASK), (1.0, REST)])
@pytest.mark.parametrize("seq_len", [8, 13, 40, 257])
def test_spans_put_back_into_their_blanks_are_the_text(text, seq_len, rest, mark):
    source, rows = Blank(rest=rest), 0
    for batch in source.validation(seq_len, 20 * seq_len, 6):
        assert batch.tokens.shape == batch.targets.shape == batch.scored.shape == (len(batch.tokens), seq_len)
        for part_a, spans, _tokens, prefix_len, positions in sequences_of(batch):
            blanks = [i for i, token in enumerate(part_a) if token == mark]
            assert len(blanks) == len(spans) and not {MASK, REST} - {mark} & set(part_a)
            # Which blank a span belongs to is what its first position says.
            at = prefix_len
            first, second = positions
            assert first[:prefix_len] == list(range(prefix_len)) and second[:prefix_len] == [0] * prefix_len
            filled = {}
            for span in spans:
                here = slice(at, at + len(span) + 1)
                assert set(first[here]) == {first[at]} and second[here] == list(range(1, len(span) + 2))
                filled[first[at]] = span
                at += len(span) + 1
            assert sorted(filled) == blanks
            whole = [token for i, token in enumerate(part_a) for token in filled.get(i, [token])]
            start = rows * seq_len
            assert whole == text.valid_part[start : start + len(whole)].tolist()
            assert len(whole) == seq_len - 2 * len(spans)
            rows += 1
    assert rows == 20


def test_spans_cover_their_share_do_not_touch_and_are_shuffled():
    source, lengths, orders = Blank(), [], set()
    for step in range(30):
        batch = source.train(0, step, 8, 200)
        for part_a, spans, tokens, prefix_len, positions in sequences_of(batch):
            blanks = [i for i, token in enumerate(part_a) if token == MASK]
            assert min(np.diff(blanks), default=2) > 1
            lengths += [len(span) for span in spans]
            share = sum(map(len, spans)) / (200 - 2 * len(spans))
            assert 0.15 <= share < 0.15 + 12 / 150  # the last span may go beyond by its own length
            order = [positions[0][i] for i in range(prefix_len, 200) if tokens[i] == START]
            orders.add(order == sorted(order))
    assert orders == {True, False} or orders == {False}
    # Poisson(3) with 0 taken as 1 has mean 3 + e^-3; four standard deviations of the mean.
    assert abs(np.mean(lengths) - (3 + math.exp(-3))) < 4 * 1.75 / math.sqrt(len(lengths))


def test_blanks_stand_anywhere_in_the_text():
    """Their places, as shares of part A, are uniform: mean 1/2, deviation 12^-1/2."""
    token_positions = []
    for step in range(20):
        batch = Blank().train(1, step, 8, 200)
        for tokens, prefix_len in zip(batch.tokens, batch.prefix_len.tolist(), strict=True):
            token_positions += [float(place) / (prefix_len - 1) for place in (tokens[:prefix_len] == MASK).nonzero()]
    assert (
        abs(np.mean(token_positions) - 0.5) < 4 * 12**-0.5 / len(token_positions) ** 0.5
        and min(token_positions) < 0.02
        and max(token_positions) > 0.98
    )


def test_lengths_are_not_compared_over_other_blanks():
    decoder = build(torch.float32, fresh=True, mask="prefix", vocab_size=260)
    settings = EvalSettings(tokens=512, lengths=[1, 2], protocol="disjoint", stride=None)
    lengths, _ = by_length(decoder, Blank(), runtime("cpu", "fp32"), settings, 32, settings.lengths)
    assert [record["late_ratio"] for record in lengths] == [None, None] and all(
        record["loss"] > 0 for record in lengths
    )
    lengths, _ = by_length(
        build(torch.float32, fresh=True, mask="full", vocab_size=257),
        Masked(),
        runtime("cpu", "fp32"),
        settings,
        32,
        settings.lengths,
    )
    assert lengths[0]["late_ratio"] == 1.0 and lengths[1]["late_ratio"] > 0


def test_the_rest_of_the_text_is_half_of_it_or_more():
    shares = []
    for step in range(20):
        batch = Blank(rest=1.0).train(0, step, 8, 102)
        shares += [(101 - int(prefix_len)) / 100 for prefix_len in batch.prefix_len]  # part A is the text and one blank
    assert min(shares) >= 0.5 and max(shares) <= 1.0 and max(shares) > 0.9 and min(shares) < 0.6


def test_a_mixture_holds_both_kinds():
    batch = Blank(rest=0.4).train(0, 0, 200, 40)
    rest = (batch.tokens == REST).any(dim=1)
    assert abs(float(rest.float().mean()) - 0.4) < 4 * math.sqrt(0.24 / 200)
    assert torch.equal((batch.tokens == MASK).any(dim=1), ~rest)


def test_two_positions_go_to_a_scheme_of_two_and_to_no_other():
    batch = Blank().train(0, 0, 2, 12)
    two, one = (build(torch.float64, pos=pos, mask="prefix", vocab_size=260).eval() for pos in ("rope_2d", "rope"))

    def nats(decoder, positions):
        logits = decoder(batch.tokens, batch.prefix_len, positions=positions)
        return F.cross_entropy(logits.float()[batch.scored], batch.targets[batch.scored], reduction="sum")

    torch.testing.assert_close(token_losses(two, batch).total, nats(two, batch.positions))
    torch.testing.assert_close(token_losses(one, batch).total, nats(one, None))
    assert not torch.isclose(nats(two, batch.positions), nats(two, None))


# --- the configuration --------------------------------------------------------------------------


def test_the_options_bring_their_ids():
    assert compose("data=masked", "mask=full").size.vocab_size == 257
    assert compose("data=blank").size.vocab_size == 260
    assert compose("data=blank", "size.vocab_size=300").size.vocab_size == 300
    assert compose("data=text").size.vocab_size == 256
    assert compose("data=blank", "data.rest=1").data.rest == 1
    assert compose("preset=bert_base").data["_target_"] == "archlab.data.masked.Masked"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("data=masked mask=prefix", "mask=prefix: data=masked has no prefix"),
        ("data=masked prefix=[0.1,0.2]", "data=masked marks its own prefix"),
        ("data=blank data.rest=1 data.share=0.2", "data.share=0.2: changes nothing under data.rest=1"),
        ("data=blank data.mean_span=0", "data.mean_span=0: should be greater than or equal to 1"),
        ("data=masked mask=full data.random=1.5", "data.random=1.5: should be less than or equal to 1"),
        ("data=blank eval.protocol=sliding", "eval.protocol=sliding: data=blank generates whole sequences"),
    ],
)
def test_what_makes_no_sense_is_refused(words, told):
    with pytest.raises(UserError) as error:
        compose(*words.split())
    assert str(error.value).startswith(told) or told in str(error.value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Masked(share=1.0), "data.share=1.0: hides nothing or everything"),
        (lambda: Masked(mask=0.9, random=0.2), "should be shares that add up to at most 1"),
        (lambda: Blank(share=0.5), "data.share=0.5: should be a share"),
        (lambda: Blank(mean_span=0.5), "data.mean_span=0.5: should be 1 token or more"),
        (lambda: Blank().train(0, 0, 2, 7), "train.train_len=7: leaves data=blank no room"),
        (lambda: Masked(path="nowhere.txt"), "data.path=nowhere.txt: does not exist"),
        (lambda: next(Masked().validation(10**6, 10, 1)), "data=masked has"),
    ],
)
def test_options_out_of_range_are_refused(make, told):
    with pytest.raises(UserError, match=".*") as error:
        make()
    assert told in str(error.value)


# --- the next token ------------------------------------------------------------------------------


def by_hand(decoder, tokens, prefix_len=None):
    """Losses and likeliest tokens, one target at a time."""
    logits = decoder(tokens[:, :-1], prefix_len).float()
    nats = torch.tensor(
        [
            [-float(row[t].log_softmax(-1)[target]) for t, target in enumerate(targets)]
            for row, targets in zip(logits, tokens[:, 1:], strict=True)
        ]
    )
    likeliest = torch.tensor(
        [[max(range(row.shape[-1]), key=row[t].tolist().__getitem__) for t in range(row.shape[0])] for row in logits]
    )
    return nats, likeliest


@pytest.mark.parametrize("mask", ["causal", "window", "prefix"])
@torch.no_grad()
def test_a_batch_with_a_prefix_under_every_mask(mask):
    """A mask without one reads it as it reads all else, and what is scored stays what the data scores."""
    decoder, tokens = build(mask=mask).eval(), torch.randint(VOCAB, (3, 8))
    prefix_len = torch.tensor([2, 5, 1])
    scored = torch.arange(1, 8) >= prefix_len[:, None]
    losses = token_losses(decoder, Batch(tokens, prefix_len, scored))
    nats, likeliest = by_hand(decoder, tokens, prefix_len if mask == "prefix" else None)
    torch.testing.assert_close(losses.nats, nats, rtol=1e-5, atol=1e-6)  # float32 losses of float64 logits
    assert torch.equal(losses.scored, scored)  # what follows a prefix is seen by nobody before it
    assert torch.equal(losses.right, likeliest == tokens[:, 1:])


@torch.no_grad()
def test_a_target_is_right_where_it_is_the_likeliest_token():
    """Tokens that the model itself finds likeliest, but for some."""
    decoder = build().eval()
    tokens = generate(decoder, torch.randint(VOCAB, (3, 1)), max_new_tokens=9)
    wrong = torch.zeros(3, 9, dtype=torch.bool)
    wrong[0, 8] = wrong[2, 8] = True  # the last ones, which no other token goes by
    tokens[:, 1:][wrong] = (tokens[:, 1:][wrong] + 1) % VOCAB
    losses = token_losses(decoder, Batch(tokens, None, torch.ones(3, 9, dtype=torch.bool)))
    assert torch.equal(losses.right, ~wrong)
    assert HeldOut(*losses, step=9).exact_match == pytest.approx(1 / 3)
    assert HeldOut(*losses, step=9).token_accuracy == pytest.approx(25 / 27)
