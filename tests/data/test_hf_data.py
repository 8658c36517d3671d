"""Hugging Face datasets and tokenizers, on a folder made here: nothing is downloaded."""

import sys

import numpy as np
import pytest

datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")

from archlab.base.errors import UserError  # noqa: E402
from archlab.data import hf  # noqa: E402
from archlab.data.hf import HuggingFace  # noqa: E402

TRAIN = [f"{n} is followed by {n + 1}." for n in range(1700)]
TEST = ["The end is né.", "", "No more."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dataset")
    tables = {"train": {"text": TRAIN, "n": list(range(1700))}, "test": {"text": TEST, "n": [1, 2, 3]}}
    datasets.DatasetDict({name: datasets.Dataset.from_dict(table) for name, table in tables.items()}).save_to_disk(path)
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Byte pairs learned from the training split, with an end-of-text token."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(TRAIN, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    model.save(str(path))
    return str(path)


def test_bytes_are_documents_ended_by_zero(folder):
    source = HuggingFace(folder, valid_split="test")
    assert bytes(source.train_part) == b"".join(text.encode() + b"\0" for text in TRAIN)
    assert bytes(source.valid_part) == "The end is né.\0\0No more.\0".encode()
    assert (source.vocab_size, source.exact) == (256, False)


def test_one_split_is_cut_in_two(folder):
    source = HuggingFace(folder, valid_share=0.25)
    whole = b"".join(text.encode() + b"\0" for text in TRAIN)
    n_valid = len(whole) // 4
    assert bytes(source.train_part) == whole[:-n_valid] and bytes(source.valid_part) == whole[-n_valid:]


def test_tokens_decode_to_the_documents(folder, tokenizer):
    source = HuggingFace(folder, valid_split="test", tokenizer=tokenizer)
    model = tokenizers.Tokenizer.from_file(tokenizer)
    end = model.token_to_id("<|endoftext|>")
    for part, documents in ((source.train_part, TRAIN), (source.valid_part, TEST)):
        ends = np.flatnonzero(part == end)
        cut = [run[run != end] for run in np.split(part, ends + 1)][:-1]
        assert [model.decode(run.tolist()) for run in cut] == documents
    assert source.vocab_size == 300
    assert len(source.train_part) < sum(map(len, TRAIN))
    again = HuggingFace(folder, valid_split="test", tokenizer=tokenizer)
    assert np.array_equal(source.train(0, 0, 5, 13).tokens, again.train(0, 0, 5, 13).tokens)


STORED = {
    "truncation": lambda model: model.enable_truncation(max_length=4),
    "truncation from the left": lambda model: model.enable_truncation(max_length=4, direction="left"),
    "truncation in strides": lambda model: model.enable_truncation(max_length=4, stride=2),
    "padding to the longest": lambda model: model.enable_padding(pad_id=0),
    "padding to a length": lambda model: model.enable_padding(pad_id=0, length=40),
    "padding to a multiple": lambda model: model.enable_padding(pad_id=0, pad_to_multiple_of=32, direction="left"),
    "merges left out at random": lambda model: setattr(model.model, "dropout", 0.9),
}


@pytest.mark.parametrize("stored", STORED)
def test_what_a_tokenizer_stores_for_batches_does_not_touch_documents(folder, tokenizer, tmp_path, stored):
    model = tokenizers.Tokenizer.from_file(tokenizer)
    STORED[stored](model)
    model.save(str(tmp_path / "tokenizer.json"))
    assert (
        tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).to_str()
        != tokenizers.Tokenizer.from_file(tokenizer).to_str()
    )
    plain, source = (
        HuggingFace(folder, valid_split="test", tokenizer=str(file))
        for file in (tokenizer, tmp_path / "tokenizer.json")
    )
    assert source.train_part.tolist() == plain.train_part.tolist() and source.sha256 == plain.sha256


def test_a_tokenizer_without_an_end_joins_documents(folder, tmp_path):
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "No": 2, "more": 5, ".": 7}, unk_token="?"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "words.json"))
    source = HuggingFace(folder, valid_split="test", tokenizer=str(tmp_path / "words.json"))
    assert source.valid_part.tolist() == [0, 0, 0, 0, 7, 2, 5, 7]
    assert source.vocab_size == 8


def test_a_folder_of_files_and_a_dataset_without_splits(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.txt").write_text("one\ntwo\nthree\nfour\n")
    loaded = HuggingFace(str(tmp_path / "files"), valid_share=0.5)
    assert bytes(np.concatenate([loaded.train_part, loaded.valid_part])) == b"one\0two\0three\0four\0"
    datasets.Dataset.from_dict({"body": ["a", "b", "c"]}).save_to_disk(tmp_path / "plain")
    plain = HuggingFace(str(tmp_path / "plain"), column="body", valid_share=0.5)
    assert bytes(plain.train_part) + bytes(plain.valid_part) == b"a\0b\0c\0"


def test_what_cannot_be_is_named(folder, tmp_path):
    for options, message in [
        ({"path": None}, "^data.path=null"),
        ({"path": str(tmp_path / "none")}, "^data.path=.*cannot be loaded"),
        ({"path": folder, "split": "dev"}, "has no split dev; use one of train, test"),
        ({"path": folder, "valid_split": "train"}, "^data.valid_split=train"),
        ({"path": folder, "column": "body"}, "^data.column=body: .*it has text$"),
        ({"path": folder, "column": "n"}, "^data.column=n: "),
        ({"path": folder, "tokenizer": __file__}, "^data.tokenizer=.*cannot be loaded"),
    ]:
        with pytest.raises(UserError, match=message) as raised:
            HuggingFace(**options)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("package", ["datasets", "tokenizers"])
def test_the_missing_extra_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"^data=hf: needs {package}.*pip install 'archlab\[hf\]'"):
        hf.require_extra()
