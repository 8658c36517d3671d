"""Documents in one sequence: where each source says they start, and which targets then count."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import build

from archlab.base.errors import UserError
from archlab.data.corpus import Corpus, split_documents, starts_after, starts_behind
from archlab.data.text import File, StandardLibrary, Text, standard_library
from archlab.train.objective import placed
from archlab.train.step import split

WRITTEN = b"one\n\ntwo two\n\n\n\nthree\n\nfour four four\n\nfive\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "five.txt"
    path.write_bytes(WRITTEN)
    return str(path)


def documents_in(source, part, starts) -> list[bytes]:
    return [bytes(part[one:other]) for one, other in pairwise([*starts, len(part)])]


def test_documents_of_a_file_end_with_their_separators(file):
    source = File(file, valid_share=0.4, documents=True)
    cut = len(WRITTEN) - int(0.4 * len(WRITTEN))
    whole = [b"one\n\n", b"two two\n\n\n\n", b"three\n\n", b"four four four\n\n", b"five\n"]
    assert sum(map(len, whole[:3])) < cut < sum(map(len, whole[:4]))  # the fourth is cut in two
    train = documents_in(source, source.train_part, source.train_documents)
    valid = documents_in(source, source.valid_part, source.valid_documents)
    assert train[:3] == whole[:3] and valid[1:] == whole[4:] and train[3] + valid[0] == whole[3] and len(train) == 4


def test_a_separator_of_ones_own(file):
    source = File(file, valid_share=0.1, documents=True, separator=" ")
    assert documents_in(source, source.train_part, source.train_documents)[:2] == [
        b"one\n\ntwo ",
        b"two\n\n\n\nthree\n\nfour ",
    ]
    lines = File(file, valid_share=0.1, documents=True, separator="\\n")
    assert documents_in(lines, lines.train_part, lines.train_documents)[:3] == [
        b"one\n\n",
        b"two two\n\n\n\n",
        b"three\n\n",
    ]


def test_chapters_and_verses():
    chapters, verses = Text(documents=True), Text(documents=True, separator="\\n")
    parts = bytes(chapters.train_part), bytes(chapters.valid_part)
    assert [len(one) for one in (chapters.train_documents, chapters.valid_documents)] == [
        part.count(b"\n\n") + 1 for part in parts
    ]
    assert len(verses.train_documents) > 20 * len(chapters.train_documents)
    assert len({chapters.sha256, verses.sha256, Text().sha256}) == 3  # other targets count


def test_files_of_the_standard_library():
    source = StandardLibrary(documents=True)
    whole = [path.read_bytes() for path in standard_library()]
    assert documents_in(source, source.train_part, source.train_documents)[:9] == [one for one in whole if one][:9]


def test_documents_of_a_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    from archlab.data.hf import HuggingFace

    texts = ["Abc", "", "de", "éé f"]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path)
    source = HuggingFace(str(tmp_path), valid_share=0.4, documents=True)
    whole = [text.encode() + b"\0" for text in texts]
    seen = documents_in(source, source.train_part, source.train_documents)
    held = documents_in(source, source.valid_part, source.valid_documents)
    assert seen[:3] == whole[:3] and b"".join(seen + held) == b"".join(whole)


def test_where_documents_start():
    assert starts_after([3, 0, 2, 4]).tolist() == [0, 3, 5]
    assert starts_behind(np.frombuffer(b"..a..b.c..", np.uint8), b"..").tolist() == [0, 2, 5]
    train, valid = split_documents(np.array([0, 3, 5, 8]), 5)
    assert (train.tolist(), valid.tolist()) == ([0, 3], [0, 3])
    train, valid = split_documents(np.array([0, 3, 5, 8]), 6)
    assert (train.tolist(), valid.tolist()) == ([0, 3, 5], [0, 2])


def corpus(documents=True) -> Corpus:
    tokens = np.arange(90, dtype=np.uint8)
    starts = np.array([0, 4, 5, 30, 41]), np.array([0, 2, 17, 18])
    made = Corpus(tokens[:60], tokens[60:], 90, None, starts if documents else None)
    made.name = "own"
    return made


def number_of(source, token: int) -> int:
    """The document of a token of `corpus`, whose tokens are their own places."""
    starts, place = (source.train_documents, token) if token < 60 else (source.valid_documents, token - 60)
    return sum(start <= place for start in starts.tolist()) + 100 * (token >= 60)


@pytest.mark.parametrize("kind", ["train", "validation", "sliding"])
def test_no_target_is_of_another_document_than_its_input(kind):
    source, plain = corpus(), corpus(documents=False)

    def batches(of):
        if kind == "train":
            return [of.train(3, step, 4, 11) for step in range(5)]
        return list(of.validation(11, 29, 2, 4 if kind == "sliding" else None))

    crossed = 0
    for batch, other in zip(batches(source), batches(plain), strict=True):
        assert torch.equal(batch.tokens, other.tokens) and other.document_starts is None
        for b, row in enumerate(batch.inputs.tolist()):
            numbers = [number_of(source, token) for token in row]
            assert batch.document_starts[b].tolist() == [numbers.index(number) for number in numbers]
            of_targets = [number_of(source, token) for token in batch.to_predict[b].tolist()]
            same = torch.tensor(numbers) == torch.tensor(of_targets)
            assert torch.equal(batch.scored[b], other.scored[b] & same)
            crossed += int((~same).sum())
    assert crossed > 2


def test_a_model_is_given_the_documents_it_keeps_apart():
    batch = corpus().train(0, 1, 4, 11)
    apart, causal = (build(mask=mask, n_layers=1, vocab_size=90, fresh=True) for mask in ("document", "causal"))
    assert torch.equal(placed(apart, batch).document_starts, batch.document_starts)
    assert placed(causal, batch).document_starts is None
    pieces = split(batch, 2)
    assert torch.equal(torch.cat([piece.document_starts for piece in pieces]), batch.document_starts)
    assert torch.equal(batch.rows(slice(1, 3)).document_starts, batch.document_starts[1:3])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(separator="x"), "data.separator=x.*documents=true"),
        (dict(separator="", documents=True), "data.separator=: is empty"),
        (dict(documents=True, prefix=[0.1, 0.2]), "documents=true: prefix="),
    ],
)
def test_what_changes_nothing_is_refused(options, problem, file):
    with pytest.raises(UserError, match=problem):
        File(file, **options)
