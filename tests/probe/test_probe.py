"""Probes: what they report is what a plain computation beside the model gives."""

import math

import pytest
import torch
from oracles import built

from archlab.probe.look import Update, by_layer, columns, gradient_norms
from archlab.probe.spike import is_spike

SIZE = ("size=nano", "size.d_model=24", "size.n_heads=3", "size.n_layers=3", "size.vocab_size=19")
BATCH, SEQ = 4, 13


def probed(decoder, prefix_len=None):
    """What one step of plain gradient descent shows of each layer; and the tokens it was taken on."""
    tokens = torch.randint(0, 19, (BATCH, SEQ), generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.SGD(decoder.parameters(), lr=0.5)
    output = decoder.compute(tokens, decoder.read(tokens, prefix_len), decoder.taps)
    output.logits.square().mean().backward()
    seen = columns(output.taps) | {"grad_norm": gradient_norms(decoder.layers)}
    update = Update(decoder.layers)
    optimizer.step()
    seen["update_ratio"] = update.ratios()
    return by_layer({name: [float(value) for value in values] for name, values in seen.items()}), tokens


def test_activation_rms_is_that_of_the_stream_after_each_layer():
    decoder = built(*SIZE)
    streams = []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: streams.append(output.detach().double()))
    seen, _ = probed(decoder)
    expected = [float((x.pow(2).sum() / x.numel()).sqrt()) for x in streams]
    assert [layer["activation_rms"] for layer in seen] == pytest.approx(expected, rel=1e-5)  # float32 sums


def test_attention_that_reads_evenly_has_the_entropy_of_a_uniform_choice():
    decoder = built(*SIZE)
    for layer in decoder.layers:
        torch.nn.init.zeros_(layer.mixer.q_proj.weight)
    seen, _ = probed(decoder)
    uniform = sum(math.log(n) for n in range(1, SEQ + 1)) / SEQ  # position i reads i + 1 tokens
    for layer in seen:
        assert layer["attention_entropy"] == pytest.approx(uniform, rel=1e-5)
        assert layer["max_score"] == 0


@pytest.mark.parametrize(
    "overrides", [("pos=rope",), ("pos=alibi",), ("mixer=gqa", "mixer.qk_norm=head"), ("mixer.softcap=2",)]
)
def test_scores_and_entropy_against_attention_written_out(overrides):
    decoder = built(*SIZE, *overrides)
    for layer in decoder.layers:
        layer.mixer.q_proj.weight.data *= 5
    before = built(*SIZE, *overrides)
    before.load_state_dict(decoder.state_dict())
    seen, tokens = probed(decoder)
    attention, captured = before.layers[0].mixer, {}
    attention.register_forward_pre_hook(lambda module, inputs: captured.update(x=inputs[0], context=inputs[1]))
    before(tokens[:1])
    with torch.no_grad():
        q, k = attention.queries_and_keys(captured["x"], captured["context"])
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    largest, entropies = -math.inf, []
    for head in range(3):
        for i in range(SEQ):
            scores = [float(q[0, head, i] @ k[0, head, j]) / math.sqrt(8) for j in range(i + 1)]
            if "mixer.softcap=2" in overrides:
                scores = [2 * math.tanh(s / 2) for s in scores]
            if "pos=alibi" in overrides:
                slope = [2**-4, 2**-8, 2**-2][head]  # three heads: two of the power below, one from between
                scores = [s - slope * (i - j) for j, s in enumerate(scores)]
            total = sum(math.exp(s) for s in scores)
            weights = [math.exp(s) / total for s in scores]
            entropies.append(-sum(w * math.log(w) for w in weights if w > 0))
            largest = max(largest, *scores)
    assert seen[0]["max_score"] == pytest.approx(largest, rel=1e-4)  # float32 against float64 sums
    assert seen[0]["attention_entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)


def test_the_probe_sees_the_prefix_of_its_sequence():
    decoder = built(*SIZE, "mask=prefix")
    for layer in decoder.layers:
        torch.nn.init.zeros_(layer.mixer.q_proj.weight)
    seen, _ = probed(decoder, prefix_len=torch.tensor([6, 2, 3, 4]))
    readable = [6] * 6 + list(range(7, SEQ + 1))
    assert seen[0]["attention_entropy"] == pytest.approx(sum(math.log(n) for n in readable) / SEQ, rel=1e-5)


def test_gradient_norms_and_update_ratios_by_layer():
    decoder = built(*SIZE)
    before = {name: p.detach().clone().double() for name, p in decoder.named_parameters()}
    seen, _ = probed(decoder)
    for depth, layer in enumerate(seen):
        names = [name for name in before if name.startswith(f"layers.{depth}.")]
        parameters = dict(decoder.named_parameters())
        gradient = math.sqrt(sum(float(parameters[name].grad.double().square().sum()) for name in names))
        change = math.sqrt(sum(float((parameters[name].double() - before[name]).square().sum()) for name in names))
        weights = math.sqrt(sum(float(before[name].square().sum()) for name in names))
        assert layer["grad_norm"] == pytest.approx(gradient, rel=1e-5)
        assert layer["update_ratio"] == pytest.approx(
            change / weights, rel=1e-3
        )  # a small difference of float32 numbers


def test_what_nobody_asked_for_is_not_computed():
    decoder = built(*SIZE)
    for layer in decoder.layers:
        layer.mixer.look = lambda *given: pytest.fail("nobody asked for it")
    tokens = torch.zeros(1, SEQ, dtype=torch.long)
    output = decoder.compute(tokens, decoder.read(tokens), ("activation_rms",))
    assert [set(seen) for seen in output.taps] == [{"activation_rms"}] * 3
    assert [set(seen) for seen in decoder.compute(tokens, decoder.read(tokens)).taps] == [set()] * 3


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_entropy_and_score_are_those_of_the_batchs_first_sequence(first):
    """Whatever else is beside it, and however many others there are."""
    decoder = built(*SIZE, "pos=alibi")
    for layer in decoder.layers:
        layer.mixer.q_proj.weight.data *= 5
    tokens = torch.randint(0, 19, (BATCH, SEQ), generator=torch.Generator().manual_seed(5))

    def seen(rows):
        with torch.no_grad():
            taps = decoder.compute(tokens[rows], decoder.read(tokens[rows]), decoder.taps).taps
        return {name: torch.stack([layer[name] for layer in taps]) for name in ("attention_entropy", "max_score")}

    among = seen([first, *(row for row in range(BATCH) if row != first)])
    alone = {row: seen([row]) for row in range(BATCH)}
    for name, values in among.items():
        torch.testing.assert_close(values, alone[first][name])
        assert all((values - alone[other][name]).abs().max() > 1e-3 for other in range(BATCH) if other != first)


def test_a_spike_is_measured_by_the_losses_before_it_alone():
    """Of 16 losses of mean 2 and deviation 1; with the last one among them 9 would lie within six deviations."""
    before = [1.0, 3.0] * 8
    assert not is_spike([*before, 7.99]) and is_spike([*before, 8.01]) and is_spike([*before, 9.0])
    long_ago = [50.0, *[1.0, 3.0] * 64]  # 128 steps are looked at, and this one was before them
    assert not is_spike([*long_ago[:128], 8.01])  # 128 steps before, it is still one of them
    assert is_spike([*long_ago, 8.01]) and not is_spike([*long_ago[1:], 50.0, 8.01])
