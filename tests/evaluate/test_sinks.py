"""The share of attention's weights that the first token has: weights written out, by layer, head, query and sequence."""

import json

import pytest
import torch
from oracles import composed, randomise
from training import CPU, Counting

import archlab
from archlab.base.errors import UserError
from archlab.blocks import context as contexts
from archlab.evaluate import sinks
from archlab.evaluate.length import by_length
from archlab.evaluate.settings import EvalSettings
from archlab.evaluate.sinks import first_token_share, first_token_shares
from archlab.train.runtime import runtime

SIZES = ("size.d_model=24", "size.n_layers=3", "size.n_heads=4", "size.head_dim=6", "size.vocab_size=17", "pos=none")
SEQ, SEQUENCES = 11, 5
EXACT = dict(rel=1e-6, abs=1e-8)  # a mean of float32 numbers


class Sequences(Counting):
    """Some held-out sequences, as many at a time as are asked for."""

    def validation(self, seq_len, n_tokens, batch_size, stride=None):
        whole = self.train(999, 1, max(1, n_tokens // seq_len), seq_len)
        for start in range(0, len(whole.tokens), batch_size):
            yield whole.rows(slice(start, start + batch_size))


def weights_by_hand(scores, n, weighting, sink):
    """(..., query, key) scores of a causal sequence -> weights, as their papers write them."""
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    if weighting == "sigmoid":  # sigmoid(z - log n) = 1 / (1 + n exp(-z)); then over what they add up to
        made = 1 / (1 + torch.arange(1, n + 1)[:, None] * (-scores).exp())
        made = made * causal
        return made / made.sum(-1, keepdim=True)
    exponentials = scores.exp() * causal
    return exponentials / (exponentials.sum(-1, keepdim=True) + sink.exp().view(-1, 1, 1))


@pytest.mark.parametrize(
    "words", [(), ("mixer.sinks=true",), ("mixer.weighting=sigmoid",), ("layers[0].mixer=linear",)]
)
def test_it_is_the_mean_weight_of_the_first_key(words):
    decoder = randomise(archlab.build(*SIZES, *words)).double()
    inputs: dict[int, torch.Tensor] = {}
    for depth, layer in enumerate(decoder.layers):
        layer.mixer.register_forward_pre_hook(lambda _, given, depth=depth: inputs.update({depth: given[0].detach()}))
    tokens = next(Sequences().validation(SEQ, SEQUENCES * SEQ, SEQUENCES)).inputs
    decoder.eval()(tokens)
    expected = []
    for depth, layer in enumerate(decoder.layers):
        mixer, x = layer.mixer, inputs[depth]
        if depth == 0 and "layers[0].mixer=linear" in words:
            expected.append(None)
            continue
        q, k = (torch.einsum("bsd,hfd->bhsf", x, w.weight.view(4, 6, 24)) for w in (mixer.q_proj, mixer.k_proj))
        scores = torch.einsum("bhqf,bhkf->bhqk", q, k) / 6**0.5
        sink = mixer.weigh.sinks.detach() if "mixer.sinks=true" in words else torch.full((4,), -torch.inf)
        weights = weights_by_hand(scores, SEQ, "sigmoid" if "mixer.weighting=sigmoid" in words else "softmax", sink)
        expected.append(weights[..., 0].mean().item())
    seen = first_token_shares(decoder.train(), Sequences(), CPU, SEQ, SEQUENCES * SEQ)
    assert decoder.training and [share is None for share in seen] == [share is None for share in expected]
    of_layers = [share for share in expected if share is not None]
    assert [share for share in seen if share is not None] == pytest.approx(of_layers, **EXACT)
    of_model = first_token_share(decoder, Sequences(), CPU, SEQ, SEQUENCES * SEQ)
    assert of_model == pytest.approx(sum(of_layers) / len(of_layers), **EXACT)


def test_a_layer_whose_windows_have_left_the_first_token_behind_counts_with_a_share_of_0(monkeypatch):
    """As where a sequence is longer than 512 and a window: none of the queries that are looked at attends to the first token."""
    monkeypatch.setattr(contexts, "QUERY_BLOCK", 4)
    decoder = randomise(archlab.build(*SIZES, "layers[0].mask=window", "layers[0].mask.window=3")).double()
    of_layers = first_token_shares(decoder, Sequences(), CPU, SEQ, 2 * SEQ)
    assert of_layers[0] == 0.0 and of_layers[1] > 0 and of_layers[2] > 0
    of_model = first_token_share(decoder, Sequences(), CPU, SEQ, 2 * SEQ)
    assert of_model == pytest.approx((of_layers[1] + of_layers[2]) / 3, rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_dropped_and_the_model_goes_on_in_the_mode_it_was_in(training):
    decoder, dropping = (randomise(archlab.build(*SIZES, word)) for word in ("dropout=0.0", "dropout=0.5"))
    dropping.load_state_dict(decoder.state_dict())
    expected = first_token_shares(decoder, Sequences(), CPU, SEQ, 2 * SEQ)
    assert first_token_shares(dropping.train(training), Sequences(), CPU, SEQ, 2 * SEQ) == expected
    assert dropping.training is training


def test_products_are_of_the_precision_that_a_run_has():
    decoder, seen = randomise(archlab.build(*SIZES)), set()
    decoder.layers[0].mixer.q_proj.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    first_token_share(decoder, Sequences(), runtime("cpu", "bf16"), SEQ, SEQ)
    assert seen == {torch.bfloat16}


def test_no_more_sequences_are_looked_at_than_it_says(monkeypatch):
    decoder = randomise(archlab.build(*SIZES)).double()
    monkeypatch.setattr(sinks, "SEQUENCES", 2)
    calls: list[int] = []
    decoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    first_token_share(decoder, Sequences(), CPU, SEQ, 50 * SEQ)
    assert len(calls) == 2


@pytest.mark.parametrize("word", ["mixer=mha", "mixer.weighting=sigmoid", "mixer=gqa", "mixer=mla", "mixer=diff"])
def test_weights_that_are_even_give_it_what_the_docstring_says(word):
    decoder = randomise(archlab.build(*SIZES, word)).double()
    with torch.no_grad():
        for layer in decoder.layers:
            layer.mixer.q_proj.weight.zero_()
    even = sum(1 / n for n in range(1, 65)) / 64
    assert first_token_share(decoder, Sequences(), CPU, 64, 128) == pytest.approx(even, rel=1e-9)
    assert round(even, 3) == 0.074 and "0.074" in first_token_shares.__doc__


def test_of_each_length_it_is_that_of_sequences_of_this_length():
    """Even weights, whose mean of 1 / n over n = 1 .. length is written out."""
    decoder = randomise(archlab.build(*SIZES)).double()
    with torch.no_grad():
        for layer in decoder.layers:
            layer.mixer.q_proj.weight.zero_()
    settings = EvalSettings(4 * SEQ, [1, 2], "disjoint", None, first_token_share=True)
    records, _ = by_length(decoder, Sequences(), CPU, settings, SEQ, [2, 1])
    for record, length in zip(records, (SEQ, 2 * SEQ), strict=True):
        even = sum(1 / n for n in range(1, length + 1)) / length
        assert record["eval_len"] == length and record["first_token_share"] == pytest.approx(even, rel=1e-9)


def test_a_run_writes_it_for_each_length_where_it_is_asked_for(tmp_path):
    words = (
        "size=nano",
        "train.steps=2",
        "train.train_len=16",
        "train.batch_size=2",
        "eval.lengths=[1,2]",
        "eval.tokens=64",
    )
    for asked in ((), ("eval.first_token_share=true",)):
        run = archlab.run(*words, *asked, f"output={tmp_path}")
        lengths = json.loads((run.directory / "summary.json").read_text())["length"]
        shares = [record.get("first_token_share") for record in lengths]
        assert all(0 < share < 1 for share in shares) if asked else shares == [None, None]


@pytest.mark.parametrize("mixer", ["gdn", "shortconv"])
def test_a_model_without_weights_has_no_such_share(mixer):
    with pytest.raises(UserError) as refusal:
        composed("size=nano", f"mixer={mixer}", "eval.first_token_share=true")
    told = f"eval.first_token_share=true: mixer={mixer} weighs no tokens, so there is no such share; leave it out"
    assert str(refusal.value) == told
