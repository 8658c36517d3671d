"""Held-out loss and length extrapolation, against a plain loop; the verdict, by hand-made figures."""

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import built
from torch.utils._python_dispatch import TorchDispatchMode

from archlab.data.batch import Batch, Source, TooLong
from archlab.data.corpus import Corpus
from archlab.evaluate.length import against, by_length, context_gain, stride, verdict
from archlab.evaluate.settings import EvalSettings
from archlab.evaluate.stability import spike_score
from archlab.evaluate.validation import HeldOut, Longer, held_out, unigram_entropy
from archlab.train.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)
SIZE = ("size=nano", "size.d_model=24", "size.n_heads=3", "size.vocab_size=23")


class Tape(Source):
    """One held-out tape of 200 tokens in disjoint windows; every third target does not count; a length limit."""

    name, vocab_size, sha256, exact = "tape", 23, "1" * 64, False
    longest = 60

    def __init__(self):
        self.tape = torch.randint(0, 23, (200,), generator=torch.Generator().manual_seed(8))

    def train(self, seed, step, batch_size, seq_len):
        raise AssertionError("evaluation draws no training batch")

    def validation(self, seq_len, n_tokens, batch_size, stride=None):
        if seq_len > self.longest:
            raise TooLong("too long", self.longest)
        starts = range(0, min(n_tokens, 199) - seq_len + 1, seq_len)
        for i in range(0, len(starts), batch_size):
            tokens = torch.stack([self.tape[s : s + seq_len + 1] for s in starts[i : i + batch_size]])
            scored = (torch.arange(seq_len) % 3 != 0).expand(len(tokens), -1)
            yield Batch(tokens, None, scored)


def settings(**changed):
    return EvalSettings(**(dict(tokens=150, lengths=[1, 2], protocol="disjoint", stride=None) | changed))


def losses_written_out(decoder, source, seq_len, n_tokens):
    rows = []
    for batch in source.validation(seq_len, n_tokens, 1):
        logits = decoder(batch.tokens[:, :-1])[0]
        rows.append([float(F.cross_entropy(logits[t : t + 1], batch.tokens[0, t + 1 : t + 2])) for t in range(seq_len)])
    return torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def test_losses_against_a_plain_loop():
    decoder, source = built(*SIZE).eval(), Tape()
    expected = losses_written_out(decoder, source, 20, 150)
    seen = held_out(decoder, source, CPU, 20, 150)
    counts = torch.arange(20) % 3 != 0
    assert len(seen.nats) == 7
    assert seen.loss() == pytest.approx(float(expected[:, counts].mean()), rel=1e-6)
    assert seen.loss(last=5) == pytest.approx(float(expected[:, 15:][:, counts[15:]].mean()), rel=1e-6)


@torch.no_grad()
def test_records_and_curves_by_length():
    decoder, source = built(*SIZE).eval(), Tape()
    lengths, curves = by_length(decoder, source, CPU, settings(), 10, [1, 2, 16])
    assert [r["eval_len"] for r in lengths] == [10, 20, 160]
    assert all(r["protocol"] == "disjoint" for r in lengths)
    assert lengths[2]["loss"] is None and lengths[2]["note"] == "the data has nothing longer than 60"
    expected = losses_written_out(decoder, source, 20, 150)
    assert curves[1]["position"] == [t for t in range(20) if t % 3]
    assert curves[1]["loss"] == pytest.approx([float(expected[:, t].mean()) for t in range(20) if t % 3], rel=1e-6)
    assert curves[1]["windows"] == pytest.approx(
        [float(row[torch.arange(20) % 3 != 0].mean()) for row in expected], rel=1e-6
    )
    last = [t for t in range(15, 20) if t % 3]  # half of train_len
    assert lengths[1]["loss_last"] == pytest.approx(float(expected[:, last].mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("tokens", "multiples", "scored"),
    [(199, [1, 2, 4], 160), (160, [1, 2, 4], 160), (399, [1, 3, 4], 360), (7, [1, 2, 4], 40), (199, [1], 190)],
)
def test_every_length_is_scored_on_the_same_tokens(tokens, multiples, scored):
    """Of 199 tokens windows of 10 held 190 and windows of 40 held 160, and their losses stood side by side."""
    tape = torch.arange(500).numpy() % 23
    asked = settings(tokens=tokens, lengths=multiples)
    lengths, _ = by_length(built(*SIZE).eval(), Corpus(tape, tape, 23, None), CPU, asked, 10, multiples[::-1])
    assert [one["n_sequences"] * one["eval_len"] for one in lengths] == [scored] * len(multiples)


def test_a_learned_table_ends_in_a_note_and_no_crash():
    decoder = built(*SIZE, "pos=learned", "pos.max_positions=20", "train.train_len=10")
    lengths, _ = by_length(decoder, Tape(), CPU, settings(), 10, [1, 2, 4])
    assert [r.get("note") for r in lengths] == [None, None, "not defined beyond 20"]
    assert lengths[2]["loss"] is None and math.isfinite(lengths[1]["loss"])


def test_evaluation_leaves_the_model_in_its_mode_and_without_gradients():
    decoder = built(*SIZE, "dropout=0.5").train()
    first, second = (held_out(decoder, Tape(), CPU, 10, 150).loss() for _ in range(2))
    assert decoder.training and first == second
    assert all(p.grad is None for p in decoder.parameters())


class Called(TorchDispatchMode):
    """The names of torch's operations that were called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("exact", [True, False])
def test_the_likeliest_token_is_looked_for_where_there_are_exact_answers_alone(exact):
    decoder, source = built(*SIZE).eval(), Tape()
    source.exact = exact
    with Called() as called:
        seen = held_out(decoder, source, CPU, 20, 150, longer=Longer())
    assert ("argmax" in called.names) == exact
    if not exact:
        assert seen.right is None
        return
    for window, batch in enumerate(source.validation(20, 150, 1)):
        likeliest = [max(range(23), key=row.tolist().__getitem__) for row in decoder(batch.tokens[:, :-1])[0]]
        expected = [ours == theirs for ours, theirs in zip(likeliest, batch.tokens[0, 1:].tolist(), strict=True)]
        assert seen.right[window].tolist() == expected


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize(
    ("pos", "mask"),
    [
        pytest.param(
            pos, mask, marks=[pytest.mark.slow] * (mask != {"rope": "window", "alibi": "prefix"}.get(pos, "causal"))
        )
        for pos, mask in product(("rope", "alibi", "none", "sinusoidal"), ("causal", "window", "prefix"))
    ],
)
def test_memory_is_linear_in_length(pos, mask):
    """The largest tensor of a forward pass doubles when the length does; a table of pairs would quadruple."""
    decoder = built(*SIZE, f"pos={pos}", f"mask={mask}").eval()
    largest = []
    for seq_len in (2048, 4096):
        with torch.no_grad(), LargestTensor() as seen:
            decoder(torch.zeros(1, seq_len, dtype=torch.long))
        largest.append(seen.numel)
    assert largest[1] <= 2 * largest[0]


# ---------------------------------------------------------------- windows that a longer one begins with

APART = {
    "norm=instance": "allow_leak=true", "norm=batch": "allow_leak=true", "mask=full": "", "mask=prefix": "", "pos.scaling=dynamic": "pos.factor=2 pos.trained_len=10",
    "mask=full pos=alibi": "",
}  # fmt: skip
ALIKE = {
    "pos=rope": "", "pos=t5": "mixer=mqa", "pos.logn=10": "", "mask=window": "mask.window=7 residual=deep",
    "norm=layer": "pos=sinusoidal", "pos.scaling=yarn": "pos.factor=2 pos.trained_len=10",
}  # fmt: skip


class Counting:
    """A decoder's `compute`, and the tokens that went through it."""

    def __init__(self, decoder):
        self.compute, self.tokens = decoder.compute, 0

    def __call__(self, tokens, *rest):
        self.tokens += tokens.numel()
        return self.compute(tokens, *rest)


@torch.no_grad()
@pytest.mark.parametrize("row", [*ALIKE, *APART])
def test_blocks_say_whether_a_sequence_begins_as_a_longer_one_does(row):
    """In float64, against the decoder itself: a sequence alone, and as the beginning of one twice as long."""
    decoder = built(*SIZE, *row.split(), *(ALIKE | APART)[row].split()).double().train("norm=batch" in row)
    tokens = torch.randint(0, 23, (2, 24), generator=torch.Generator().manual_seed(5))
    prefix = {"prefix_len": 9} if decoder.mask.uses_prefix else {}
    longer = decoder(tokens, **({"prefix_len": 18} if prefix else {}))[:, :12]
    away = float((longer - decoder(tokens[:, :12], **prefix)).abs().max())
    assert decoder.begins_alike == (row in ALIKE)
    assert away < 1e-12 if row in ALIKE else away > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("protocol", ["disjoint", "sliding"])
@pytest.mark.parametrize("row", ["pos=rope", "norm=instance allow_leak=true"])
def test_windows_that_a_longer_one_begins_with_are_computed_once(row, protocol):
    """The figures are those of each length by itself. Disjoint: half of the windows of each length but the longest remain."""
    decoder, tape = built(*SIZE, *row.split()).double().eval(), Tape().tape.numpy()
    corpus, asked = Corpus(tape, tape, 23, None), settings(tokens=160, protocol=protocol)
    decoder.compute = counting = Counting(decoder)
    expected = by_length(decoder, corpus, CPU, asked, 10, [1, 2, 4])
    every, counting.tokens = counting.tokens, 0
    for records, theirs in zip(by_length(decoder, corpus, CPU, asked, 10, [4, 2, 1]), expected, strict=True):
        for ours, its in zip(records, theirs, strict=True):
            assert ours.pop("protocol", "") == its.pop("protocol", "")
            assert ours == {name: pytest.approx(value, rel=1e-6) for name, value in its.items()}
    apart = "instance" in row
    assert counting.tokens == (
        every if apart else 160 + 80 + 80 if protocol == "disjoint" else 25 * 40 + 4 * 20 + 2 * 10
    )


# ---------------------------------------------------------------- verdicts


def text(*losses, train_len=64, base=2.0):
    return [
        {
            "eval_len": train_len * 2**i,
            "loss": loss,
            "loss_last": loss,
            "late_ratio": None if loss is None else loss / base,
            "protocol": "disjoint",
        }
        for i, loss in enumerate(losses)
    ]


@pytest.mark.parametrize(
    ("losses", "word", "ratio"),
    [
        ((2.0, 1.95, 1.9), "improves", 0.95),
        ((2.0, 3.5, 2.02), "holds", 1.01),
        ((2.0, 2.1, 2.6), "degrades", 1.3),
        ((2.0, 2.1, 4.36), "collapses", 2.18),
        ((2.0, 2.2, None), "degrades", 1.1),
    ],
)
def test_the_verdict_is_the_ratio_at_the_longest_defined_length(losses, word, ratio):
    said = verdict(text(*losses), 64, exact=False, unigram=5.0)
    assert said["verdict"] == word and said["ratio"] == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize(
    ("losses", "multiple"), [((2.0, 1.95), 2), ((2.0, 3.5, 2.02), 4), ((2.0, 2.2, None, 3.1), 8), ((2.0, 2.2, None), 2)]
)
def test_the_verdict_names_the_length_that_decided_it(losses, multiple):
    assert f" at {multiple}x train_len, " in verdict(text(*losses), 64, exact=False, unigram=5.0)["reason"]
    matched = [record | {"exact_match": 0.9} for record in text(*losses)]
    assert f" at {multiple}x train_len against 0.90 at 1x" in verdict(matched, 64, exact=True, unigram=5.0)["reason"]


@torch.no_grad()
@pytest.mark.parametrize("multiples", [[1, 2], [1, 3], [2]])
@pytest.mark.parametrize("changed", [[], ["mask=window", "mask.window=3"]])
def test_the_ratio_compares_the_same_tokens(multiples, changed):
    """Late targets of the longer windows, against those very tokens in windows of train_len, one token at a time.

    Where the weights are looked at under another mask, against their loss under the mask they were trained with.
    """
    trained, source, train_len = built(*SIZE, "pos=sinusoidal").eval(), Tape(), 10
    decoder = built(*SIZE, "pos=sinusoidal", *changed).eval()
    decoder.load_state_dict(trained.state_dict())
    as_trained = trained if changed else None
    lengths, _ = by_length(decoder, source, CPU, settings(tokens=199), train_len, multiples, as_trained)
    multiple = multiples[-1]
    eval_len, before, after = multiple * train_len, [], []
    short, long = (
        losses_written_out(trained, source, train_len, 199),
        losses_written_out(decoder, source, eval_len, 199),
    )
    for window in range(len(long)):
        for position in range(eval_len - train_len // 2, eval_len):
            token = window * eval_len + position
            if position % 3 and token % train_len % 3:
                after.append(float(long[window, position]))
                before.append(float(short[token // train_len, token % train_len]))
    if multiples == [2] and not changed:
        assert "late_ratio" not in lengths[0]  # there is nothing to set it against
        return
    assert lengths[-1]["late_ratio"] == pytest.approx(sum(after) / sum(before), rel=1e-6)
    if not changed:
        assert lengths[0]["late_ratio"] == 1


@torch.no_grad()
def test_sliding_windows_are_laid_out_by_their_stride():
    nats = torch.tensor([[1.0, 2, 3, 4], [0, 0, 5, 6], [0, 0, 7, 8]])
    scored = torch.tensor([[True] * 4, [False, False, True, True], [False, False, True, True]])
    seen = HeldOut(nats, scored, scored, step=2)
    assert seen.along_the_tokens(scored)[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert HeldOut(nats, scored & (nats != 5) & (nats != 6), scored, step=2).by_window() == [2.5, None, 7.5]


@torch.no_grad()
def test_windows_that_overlap_are_no_pieces_of_text():
    _, curves = by_length(built(*SIZE).eval(), Tape(), CPU, settings(protocol="sliding"), 10, [1])
    assert "windows" not in curves[0]


@pytest.mark.parametrize("step", range(1, 13))
@pytest.mark.parametrize("n_windows", [1, 2, 5])
def test_sliding_scores_each_token_once_and_at_its_place(step, n_windows):
    """Whatever the stride: the held-out part counts up, so a target says itself where it belongs."""
    seq_len, held_out_part = 12, np.arange(70)
    corpus = Corpus(np.arange(70), held_out_part, 70, None)
    batches = list(corpus.validation(seq_len, n_windows * seq_len, 3, step))
    targets, scored = (torch.cat(column) for column in zip(*((b.to_predict, b.scored) for b in batches), strict=True))
    assert targets[scored].tolist() == list(range(1, n_windows * seq_len + 1))
    seen = HeldOut(targets.float(), scored, scored, step=step)
    laid_out, there = seen.along_the_tokens(scored)
    assert there.tolist() == laid_out.isfinite().tolist()
    assert laid_out.tolist() == list(range(1, n_windows * seq_len + 1))


@torch.no_grad()
@pytest.mark.parametrize("step", [3, 4, 5, 7, 10])
@pytest.mark.parametrize("multiple", [2, 3])
def test_the_ratio_compares_the_same_tokens_when_windows_slide(multiple, step):
    """Each late target of the longer windows, against that very token, one token at a time; the stride may not divide."""
    decoder, train_len, held_out_part = built(*SIZE, "pos=sinusoidal").eval(), 10, Tape().tape.numpy()
    corpus = Corpus(held_out_part, held_out_part, 23, None)
    sliding = settings(tokens=120, protocol="sliding", stride=step)
    lengths, _ = by_length(decoder, corpus, CPU, sliding, train_len, [1, multiple])

    def by_token(eval_len, late):
        """The loss of every token that a window is the first to hold, and its place in that window."""
        start, last, end, losses = 0, 120 - eval_len, 0, {}
        while True:
            window = torch.from_numpy(held_out_part[start : start + eval_len + 1])
            nats = F.cross_entropy(decoder(window[None, :-1])[0], window[1:], reduction="none")
            losses |= {start + i: float(nats[i]) for i in range(end - start, eval_len) if i >= eval_len - late}
            end = start + eval_len
            if start == last:
                return losses
            start = min(start + step, last)

    after, before = by_token(multiple * train_len, late=train_len // 2), by_token(train_len, late=train_len)
    expected = sum(after.values()) / sum(before[token] for token in after)
    assert lengths[1]["late_ratio"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("train_len", "expected"), [(10, 5), (11, 5), (128, 64)])
def test_windows_slide_by_half_of_train_len_where_nothing_is_said(train_len, expected):
    assert stride(settings(protocol="sliding"), train_len) == expected
    assert stride(settings(protocol="sliding", stride=3), train_len) == 3
    assert stride(settings(protocol="disjoint"), train_len) is None


@pytest.mark.parametrize(
    ("exact_match", "word"),
    [((0.9, 0.88), "holds"), ((0.9, 0.5), "degrades"), ((0.9, 0.1), "collapses"), ((0.05, 0.05), "undecided")],
)
def test_the_verdict_on_a_task_goes_by_exact_match(exact_match, word):
    lengths = [r | {"exact_match": e} for r, e in zip(text(0.1, 0.1), exact_match, strict=True)]
    assert verdict(lengths, 64, exact=True, unigram=5.0)["verdict"] == word


@pytest.mark.parametrize("lengths", [[], text(2.0), text(None, 2.0), text(2.0, None)])
def test_without_two_figures_there_is_no_verdict(lengths):
    said = verdict(lengths, 64, exact=False, unigram=5.0)
    assert said["verdict"] == "undecided" and said["ratio"] is None and said["reason"]


# ---------------------------------------------------------------- what context is worth


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_left_in_the_mode_that_it_was_in(training):
    decoder = built(*SIZE).train(training)
    held_out(decoder, Tape(), CPU, 20, 40)
    assert decoder.training is training


def test_exact_match_and_token_accuracy_by_hand():
    """Of three windows one is right wherever it is scored; of seven scored targets five are."""
    scored = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1]]).bool()
    right = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [1, 0, 1, 1]]).bool()
    seen = HeldOut(torch.zeros(3, 4), scored, right, step=4)
    assert (seen.exact_match, seen.token_accuracy) == (pytest.approx(1 / 3), pytest.approx(5 / 7))


def scored_as(nats: torch.Tensor, scored: torch.Tensor | None = None) -> HeldOut:
    scored = torch.ones(nats.shape, dtype=torch.bool) if scored is None else scored
    return HeldOut(nats, scored, torch.zeros_like(scored), nats.shape[1])


def test_a_loss_that_is_no_number_is_no_late_target_left_out():
    """Three of four long windows broke, and the one that did not made the ratio 1: the length held."""
    long = torch.full((4, 32), 2.0)
    long[:3, 20:] = torch.nan
    at_train_len, seen = scored_as(torch.full((16, 8), 2.0)), scored_as(long)
    assert math.isnan(against(at_train_len, seen, 8)["late_ratio"])
    lengths = [
        {"eval_len": 8, "loss": 2.0, "loss_last": 2.0, "late_ratio": 1.0},
        {"eval_len": 32, "loss": seen.loss(), "loss_last": seen.loss(last=4)} | against(at_train_len, seen, 8),
    ]
    assert verdict(lengths, 8, exact=False, unigram=5.0)["verdict"] == "collapses"


def test_a_model_that_is_broken_at_its_training_length_does_not_collapse_beyond_it():
    """Its last update broke it, and it said that prediction breaks down on sequences longer than those of training."""
    said = verdict(text(math.nan, math.nan, math.nan), 64, exact=False, unigram=5.0)
    assert (said["verdict"], said["ratio"], said["reason"]) == (
        "undecided",
        None,
        "the loss at train_len is not finite",
    )


def test_a_bigram_model_has_no_context_gain_however_good_it_is():
    """Each of 23 tokens stands once before every place of the windows, so that a loss of it alone is the same at all places."""
    given = (torch.arange(23)[:, None] + torch.arange(20)) % 23
    for level in (0.3, 4.0):
        nats = level * (1 + torch.randn(23, generator=torch.Generator().manual_seed(5)).abs())
        assert nats.std() > 0.1
        assert context_gain(scored_as(nats[given])) == pytest.approx(0, abs=1e-6 * level)


def test_the_context_gain_is_that_of_the_first_four_targets_less_the_last_quarter():
    nats = torch.tensor([[7.0, 5.0, 4.0, 4.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0]])
    assert context_gain(scored_as(nats)) == 5.0 - 2.0
    assert context_gain(scored_as(nats.flip(1))) == 3.75 - 16 / 3, "worse for its context"
    some = torch.ones(1, 12, dtype=torch.bool)
    some[0, [0, 11]] = False  # what is not scored does not count
    assert context_gain(scored_as(nats, some)) == pytest.approx(13 / 3 - 1.5)
    for unscored in (slice(0, 4), slice(9, 12)):
        part = torch.ones(1, 12, dtype=torch.bool)
        part[:, unscored] = False
        assert context_gain(scored_as(nats, part)) is None


# ---------------------------------------------------------------- spikes


def test_a_spike_is_counted_once_and_a_falling_loss_is_none():
    falling = [5 * 0.99**i + 0.01 * (-1) ** i for i in range(100)]
    assert spike_score(falling) == 0
    assert spike_score([*falling[:60], 9.0, *falling[61:]]) == pytest.approx(1 / 84)  # 100 steps, 16 of history
    assert spike_score([*falling[:99], math.nan]) == pytest.approx(1 / 84)
    assert spike_score(falling[:10]) is None


def test_a_model_that_knows_frequencies_alone_gets_no_verdict():
    said = verdict(text(2.0, 2.0), 64, exact=False, unigram=2.04)
    assert said["verdict"] == "undecided" and said["reason"].startswith("not learned: loss 2.000")
    assert verdict(text(2.0, 2.0), 64, exact=False, unigram=2.06)["verdict"] == "holds"


def test_unigram_entropy_by_hand():
    class Coin(Tape):
        def validation(self, seq_len, n_tokens, batch_size, stride=None):
            yield Batch(torch.tensor([[9, 1, 1, 1, 2, 5]]), None, torch.tensor([[True, True, True, True, False]]))

    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))  # three ones and a two; the five does not count
    assert unigram_entropy(Coin(), 5, 5) == pytest.approx(expected)
