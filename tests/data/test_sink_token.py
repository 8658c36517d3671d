"""A sink token: one id at the head of every sequence, and nothing else of the data changed."""

import numpy as np
import pytest
import torch
from oracles import composed

import archlab
from archlab.base.errors import UserError
from archlab.data.batch import Batch
from archlab.data.corpus import Corpus
from archlab.data.positions import DrawnPositions
from archlab.data.sink import SinkToken
from archlab.data.text import Text
from archlab.evaluate.validation import unigram_entropy
from archlab.model.generate import generate as tokens_after
from archlab.runs.assembled import open_source
from archlab.runs.load import load_run

TOKENS = np.arange(90, dtype=np.uint8) % 53
SINK = 57


def corpus(prefix=None) -> Corpus:
    made = Corpus(TOKENS[:50], TOKENS[50:], 61, prefix)
    made.name = "own"
    return made


def headed(plain: Batch) -> Batch:
    """The batch by its definition."""
    rest = plain.tokens[:, 1:]
    return plain._replace(tokens=torch.cat((torch.full((len(rest), 1), SINK), rest), dim=1))


def assert_same(batch: Batch, expected: Batch) -> None:
    for one, other in zip(batch, expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("prefix", [None, [0.2, 0.6]])
def test_the_first_token_of_every_sequence_is_the_sink_and_what_is_scored_stays(prefix):
    ours, plain = SinkToken(corpus(prefix), SINK), corpus(prefix)
    before = plain.train(3, 7, 4, 11)
    assert_same(ours.train(3, 7, 4, 11), headed(before))
    assert torch.equal(ours.train(3, 7, 4, 11).to_predict, before.to_predict)
    for seq_len, stride in ((6, None), (12, None), *(((12, 5),) if prefix is None else ())):
        pairs = zip(ours.validation(seq_len, 36, 2, stride), plain.validation(seq_len, 36, 2, stride), strict=True)
        for batch, its_own in pairs:
            assert_same(batch, headed(its_own))
    assert unigram_entropy(ours, 6, 36) == unigram_entropy(plain, 6, 36)


def test_it_is_the_same_source_in_all_else():
    ours, plain = SinkToken(corpus(), SINK), corpus()
    assert (ours.name, ours.sha256, ours.exact) == (plain.name, plain.sha256, plain.exact)
    assert (ours.vocab_size, SinkToken(plain, 70).vocab_size) == (61, 71)
    tuning = zip(ours.tuning().validation(4, 8, 2), plain.tuning().validation(4, 8, 2), strict=True)
    assert all(torch.equal(one.tokens, headed(other).tokens) for one, other in tuning)


def test_batches_that_a_source_keeps_stay_as_they_are():
    """As views of a text of the user's own are, where one window's first token is another window's fourth."""

    class Views(Corpus):
        name = "own"

        def train(self, seed, step, batch_size, seq_len):
            windows = text.unfold(0, seq_len + 1, 4)
            return Batch(windows, None, torch.ones(len(windows), seq_len, dtype=torch.bool))

        def validation(self, seq_len, n_tokens, batch_size, stride=None):
            yield self.train(0, 0, 0, seq_len)

    text = torch.arange(20)
    ours = SinkToken(Views(TOKENS[:50], TOKENS[50:], 61, None), SINK)
    for batch in (ours.train(0, 1, 3, 8), *ours.validation(8, 24, 3)):
        assert batch.tokens.tolist() == [[SINK, *range(4 * n + 1, 4 * n + 9)] for n in range(3)]
    assert text.tolist() == list(range(20))


def test_the_text_has_no_byte_0_and_a_run_opens_it_with_positions_drawn_beside():
    opened = open_source(composed("size=nano", "sink_token=0", "random_positions=300"))
    assert isinstance(opened, DrawnPositions) and opened.cuts_windows
    batch, plain = opened.train(0, 1, 3, 9), Text().train(0, 1, 3, 9)
    assert (batch.tokens == 0).sum(dim=1).tolist() == [1, 1, 1] and batch.positions is not None
    assert torch.equal(batch.tokens[:, 1:], plain.tokens[:, 1:])


def test_a_model_trained_with_it_is_given_it_before_a_prompt(tmp_path):
    words = (
        "size=nano",
        "train.steps=2",
        "train.train_len=16",
        "train.batch_size=2",
        "eval.lengths=[1]",
        "eval.tokens=16",
    )
    run = archlab.run(*words, "sink_token=0", f"output={tmp_path}")
    _, decoder = load_run(run.directory)
    expected = tokens_after(decoder, torch.tensor([[0, *b"ab"]]), max_new_tokens=5)[0, 1:]
    assert archlab.generate(run.directory, "ab", max_new_tokens=5).text == bytes(expected.tolist()).decode(
        errors="replace"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("sink_token=256", "sink_token=256: size.vocab_size=256 has ids up to 255; use one of them"),
        ("sink_token=-1", "sink_token=-1: should be greater than or equal to 0"),
        ("sink_token=0 data=copy", "sink_token=0: data=copy makes whole sequences"),
        ("sink_token=0 data=masked mask=full", "sink_token=0: data=masked makes whole sequences"),
        ("sink_token=0 documents=true", "sink_token=0: stands at the head of a sequence, and documents=true"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words, told):
    with pytest.raises(UserError) as refusal:
        composed("size=nano", *words.split())
    assert str(refusal.value).startswith(told) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "change", [lambda source: SinkToken(source, 7), lambda source: DrawnPositions(source, 99, False)]
)
def test_a_changed_source_says_of_itself_what_its_source_says(change):
    """Each of these is unlike what a source says by default, and unlike what another would."""
    source = corpus()
    source.sha256, source.exact, source.marks_documents, source.marks_prefix = "5e", True, True, False
    source.same_targets, source.cuts_windows = False, False
    changed = change(source)
    said = (changed.name, changed.vocab_size, changed.sha256, changed.exact)
    assert said == ("own", 61, "5e", True)
    assert (changed.marks_documents, changed.marks_prefix) == (True, False)
    assert (changed.same_targets, changed.cuts_windows) == (False, False)
