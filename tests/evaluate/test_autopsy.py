"""Autopsies: what is planted is found at its step and layer, and calm is called calm."""

import json
import math

import numpy as np
import pytest
import torch
from oracles import built
from scipy import integrate, special
from training import CPU, Counting, settings

import archlab
from archlab.base.signals import Stop
from archlab.data.batch import Batch
from archlab.evaluate.autopsy import HORIZON, autopsy, threshold
from archlab.evaluate.stability import spike_score
from archlab.probe.look import gradient_norms
from archlab.probe.recorder import AFTER_SPIKE, CAPACITY, Recorder
from archlab.probe.spike import is_spike
from archlab.records import checkpoint
from archlab.report import plots_autopsy, tables
from archlab.runs import lab
from archlab.train.loop import train
from archlab.train.objective import compute
from archlab.train.observers import Checkpoints
from archlab.train.step import backward

LAYERS = 4
SMALL = ("size=nano", "size.d_model=24", "size.n_heads=3", f"size.n_layers={LAYERS}", "size.vocab_size=17")


def calm_run(n_steps=90, seed=0, growth=0.003):
    """Losses and recorded steps of a run in which nothing happens but noise of 5% and a steady growth of 0.3% a step."""
    random = np.random.default_rng(seed)
    losses = list(3 + 0.05 * random.standard_normal(n_steps))
    recorded = []
    for step in range(1, n_steps + 1):
        noise = np.exp(0.05 * random.standard_normal((LAYERS, 2)) + growth * step)
        layers = [{"activation_rms": (depth + 1) * a, "grad_norm": 0.3 * b} for depth, (a, b) in enumerate(noise)]
        recorded.append({"step": step, "loss": losses[step - 1], "layers": layers})
    return losses, recorded


def plant(recorded, step, layer, quantity, factor, until=None):
    for record in recorded:
        if step <= record["step"] < (until or math.inf):
            record["layers"][layer][quantity] *= factor


def spiked(losses, recorded, at=80, by=4.0):
    losses[at - 1 :] = [loss + by for loss in losses[at - 1 :]]
    return autopsy(losses, recorded, diverged=False, first_spike=at)


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize("factor", [3.0, 1 / 3, math.inf, math.nan])
def test_what_moved_before_the_loss_is_named_with_its_lead(factor):
    losses, recorded = calm_run()
    plant(recorded, 73, 2, "grad_norm", factor)
    plant(recorded, 76, 1, "activation_rms", 4)
    found = spiked(losses, recorded)
    assert (found["event"], found["event_step"], found["loss_moved"], found["note"]) == ("spiked", 80, 80, None)
    assert found["first"] == {"step": 73, "layer": 2, "quantity": "grad_norm", "steps_before": 7}
    assert found["next"] == [{"step": 76, "layer": 1, "quantity": "activation_rms", "steps_before": 4}]
    assert found["watched"] == 2 * LAYERS


def test_calm_series_are_not_accused():
    """60 calm runs at a stated false alarm of 1% each: four or more have a chance of 0.3% (Poisson of mean 0.6)."""
    accused = 0
    for seed in range(60):
        found = spiked(*calm_run(seed=seed))
        accused += found["first"] is not None
        assert found["loss_moved"] == 80
    assert accused < 4


def test_a_move_that_is_over_before_the_loss_moves_is_no_cause():
    losses, recorded = calm_run()
    plant(recorded, 60, 0, "grad_norm", 20, until=64)
    found = spiked(losses, recorded)
    assert found["first"] is None and found["next"] == []
    assert found["note"] == "nothing that was watched moved before the loss"


def test_a_move_long_before_the_loss_is_no_cause():
    losses, recorded = calm_run(n_steps=140)
    plant(recorded, 130 - HORIZON - 5, 0, "grad_norm", 20)
    assert spiked(losses, recorded, at=130)["first"] is None


def test_within_a_step_the_forward_pass_comes_first_and_gradients_after_the_loss():
    losses, recorded = calm_run()
    for layer in (3, 2, 1):
        plant(recorded, 80, layer, "activation_rms", 9)
    for layer in range(LAYERS):
        plant(recorded, 80, layer, "grad_norm", 9)
    found = spiked(losses, recorded)
    assert found["first"] == {"step": 80, "layer": 1, "quantity": "activation_rms", "steps_before": 0}
    assert [(move["quantity"], move["layer"]) for move in found["next"]] == [
        ("activation_rms", 2), ("activation_rms", 3), *(("grad_norm", layer) for layer in (3, 2, 1, 0))
    ]  # fmt: skip


def test_gradients_that_move_in_the_step_of_the_loss_moved_after_it():
    losses, recorded = calm_run()
    plant(recorded, 80, 2, "grad_norm", 9)
    found = spiked(losses, recorded)
    assert found["first"] is None and [move["layer"] for move in found["next"]] == [2]


def test_the_loss_is_followed_back_to_where_it_first_moved():
    losses, recorded = calm_run()
    losses[74:79] = [6.0] * 5
    assert spiked(losses, recorded)["loss_moved"] == 75


def test_a_loss_that_falls_has_not_moved():
    losses, recorded = calm_run()
    losses[70:] = [0.5] * 20
    found = autopsy(losses, recorded, diverged=True, first_spike=None, first_nonfinite={"step": 90})
    assert (found["event"], found["event_step"], found["loss_moved"]) == ("diverged", 90, None)
    assert found["first_nonfinite"] == {"step": 90}


def test_a_gradient_that_breaks_under_a_calm_loss_is_named():
    losses, recorded = calm_run()
    plant(recorded, 90, 3, "grad_norm", math.nan)
    found = autopsy(losses, recorded, diverged=True, first_spike=None)
    assert found["first"] == {"step": 90, "layer": 3, "quantity": "grad_norm", "steps_before": 0}


def test_quantities_of_looks_are_judged_at_their_own_steps():
    losses, recorded = calm_run()
    for record in recorded[1::4]:  # steps 2, 6, .. 78
        for layer in range(LAYERS):
            fallen = layer == 1 and record["step"] >= 70
            record["layers"][layer] |= {"attention_entropy": 0.1 if fallen else 2 + 0.01 * math.sin(record["step"])}
    found = spiked(losses, recorded)
    assert found["first"] == {"step": 70, "layer": 1, "quantity": "attention_entropy", "steps_before": 10}


def test_a_single_value_off_before_the_loss_is_no_move():
    losses, recorded = calm_run()
    for record in recorded[1:80:20]:
        record["layers"][0]["max_score"] = 5.0
    recorded[77]["layers"][0]["grad_norm"] *= 20
    recorded[79]["layers"][0].pop("grad_norm")
    recorded[78]["layers"][0].pop("grad_norm")
    assert spiked(losses, recorded)["first"] is None


def test_a_calm_run_has_no_autopsy():
    assert autopsy(*calm_run(), diverged=False, first_spike=None) is None


def test_too_little_to_judge_by_is_said():
    losses, recorded = calm_run(n_steps=6)
    found = autopsy([*losses[:-1], math.nan], recorded, diverged=True, first_spike=None)
    assert found["first"] is None and "fewer than 8 steps came before" in found["note"]


def test_that_nothing_was_watched_is_said():
    losses, _ = calm_run()
    found = spiked(losses, [])
    assert found["watched"] == 0 and "nothing inside the layers was watched" in found["note"]
    assert found["loss_moved"] == 80


@pytest.mark.parametrize(("n_series", "n_before"), [(1, 32), (8, 8), (60, 32)])
def test_the_threshold_leaves_a_chance_of_one_in_a_hundred_over_all_series(n_series, n_before):
    """Student's density with 0.37 degrees of freedom a value, written out and integrated."""
    limit, nu = threshold(n_series, n_before), 0.37 * n_before
    scale = special.gamma((nu + 1) / 2) / (math.sqrt(nu * math.pi) * special.gamma(nu / 2))
    tail, _ = integrate.quad(lambda t: scale * (1 + t * t / nu) ** (-(nu + 1) / 2), limit, math.inf, epsabs=1e-15)
    assert 2 * tail * n_series * HORIZON == pytest.approx(0.01, rel=1e-3)  # quad's own relative error is 1e-4 out there


# ---------------------------------------------------------------- spikes


def test_a_spike_by_hand():
    before = [1.0, 3.0] * 10  # mean 2, standard deviation 1
    assert is_spike([*before, 8.01]) and not is_spike([*before, 7.99])
    assert is_spike([*before, math.nan])
    assert not is_spike([*before[:15], 100.0])  # too few steps before


def test_the_spike_score_counts_what_is_a_spike():
    losses = [1.0, 3.0] * 80
    losses[150] = 50.0
    assert spike_score(losses) == pytest.approx(1 / (160 - 16))
    assert spike_score(losses[:16]) is None


# ---------------------------------------------------------------- the recorder


def recorded_step(decoder, pieces=1):
    """One step recorded, with what a hook of the test's own saw of the stream."""
    recorder, streams = Recorder(), []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: streams.append(output.detach().double()))
    batch = Batch(torch.randint(0, 17, (6, 13)), None, torch.ones(6, 12, dtype=torch.bool))
    _, seen, *_ = backward(decoder, batch, pieces, CPU, CPU.scaler(), ("activation_rms",))
    seen["grad_norm"] = gradient_norms(list(decoder.layers))
    recorder.step_done(1, [2.5], {name: [float(value) for value in values] for name, values in seen.items()})
    return recorder.kept(diverged=True), streams


@pytest.mark.parametrize("pieces", [1, 2])
def test_what_is_recorded_is_the_stream_of_the_first_micro_batch_and_the_whole_gradient(pieces):
    decoder = built(*SMALL)
    (record,), streams = recorded_step(decoder, pieces)
    assert (record["step"], record["loss"]) == (1, 2.5)
    for depth, (seen, layer) in enumerate(zip(record["layers"], decoder.layers, strict=True)):
        rms = float(streams[depth].square().mean().sqrt())
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in layer.parameters()))
        assert seen == pytest.approx({"activation_rms": rms, "grad_norm": norm}, rel=1e-5)  # float32 sums


def test_layers_that_are_recomputed_are_recorded_once():
    plain, again = built(*SMALL), built(*SMALL)
    again.recompute_activations()
    torch.manual_seed(1)
    (first,), _ = recorded_step(plain)
    torch.manual_seed(1)
    (second,), _ = recorded_step(again)
    for one, other in zip(first["layers"], second["layers"], strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_a_recorder_leaves_no_hook_behind():
    decoder = built(*SMALL)
    tokens = torch.full((2, 5), 17)  # an id that is not in the vocabulary
    with pytest.raises(IndexError):
        compute(decoder, Batch(tokens, None, torch.ones(2, 4, dtype=torch.bool)), CPU, decoder.taps)
    assert not any(module._forward_hooks for module in decoder.modules())


def feed(n_steps, spike_at=None):
    """A recorder after so many steps of one layer, whose activation RMS is the step's number."""
    recorder, losses = Recorder(), []
    for step in range(1, n_steps + 1):
        losses.append(9.0 if step == spike_at else 2.0 + 0.01 * (step % 2))
        recorder.step_done(step, losses, {"activation_rms": [float(step)], "grad_norm": [1.0]})
    return recorder


def test_the_last_steps_are_kept_when_a_run_diverges():
    steps = [record["step"] for record in feed(CAPACITY + 44).kept(diverged=True)]
    assert steps == list(range(45, CAPACITY + 45))


def test_the_stretch_around_the_first_spike_is_kept():
    recorder = feed(2 * CAPACITY, spike_at=100)
    records = recorder.kept(diverged=False)
    assert recorder.first_spike == 100
    assert [record["layers"][0]["activation_rms"] for record in records] == list(range(1, 100 + AFTER_SPIKE + 1))
    assert feed(110, spike_at=100).kept(diverged=False)[-1]["step"] == 110
    assert feed(110).kept(diverged=False) == []


# ---------------------------------------------------------------- planted in a real run


def train_small(decoder, tick, probe_every=20, **more):
    plan = settings(steps=180, lr=3e-3, batch_size=16)
    return train(
        decoder, Counting(), plan, CPU, seed=3, probe_every=probe_every, validate=lambda: 1.0,
        report=lambda record: None, tick=tick, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The state after 149 steps, more than the window of the spike score, in which every run below is the same."""
    folder = tmp_path_factory.mktemp("calm")

    def enough(step, *_):
        if step == 149:
            raise KeyboardInterrupt

    keeper = Checkpoints(149, Stop(), lambda state: checkpoint.save(folder, *state.state_dict(), {"lengths": {}}))
    train_small(built(*SMALL), enough, observers=[keeper])
    return folder


def trained(disturb, calm=None, layers=LAYERS, **changed):
    """A run whose loss has been calm for longer than the window of the spike score by the time it is disturbed."""
    decoder = built(*SMALL, f"size.n_layers={layers}")
    saved = calm and checkpoint.newest(calm, [])[:2]
    outcome = train_small(decoder, lambda step, *_: disturb(decoder, step), saved=saved, **changed)
    diverged = outcome.status == "diverged"
    return autopsy(outcome.losses, outcome.recorded, diverged=diverged, first_spike=outcome.first_spike), outcome


@torch.no_grad()
def scale(decoder, layer, factor):
    """Called after a step's update, so that the next step is the first to feel it."""
    decoder.layers[layer].ffn.down_proj.weight.mul_(factor)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_layer_whose_weight_is_scaled_is_named_at_that_step(layer, calm):
    found, _ = trained(lambda decoder, step: scale(decoder, layer, 50 if step == 169 else 1), calm)
    assert found["loss_moved"] == 170
    assert found["first"] == {"step": 170, "layer": layer, "quantity": "activation_rms", "steps_before": 0}


def test_a_weight_that_overflows_ends_the_run_with_its_layer_named(calm):
    found, outcome = trained(lambda decoder, step: scale(decoder, 1, 1e39 if step == 169 else 1), calm)
    assert (outcome.status, found["event"], found["event_step"]) == ("diverged", "diverged", 170)
    assert (found["first"]["layer"], found["first"]["step"]) == (1, 170)
    assert outcome.recorded[-1]["step"] == 170


def test_a_layer_that_drifts_is_named_before_the_loss_moves(calm):
    """Its weight grows by a half a step from step 150 on, which a norm behind it hides from the loss, and breaks at 170."""
    found, _ = trained(lambda decoder, step: scale(decoder, 1, 1.5 if step < 169 else 1e39), calm)
    assert (found["event"], found["event_step"]) == ("diverged", 170)
    assert found["first"]["layer"] == 1 and found["first"]["quantity"] == "activation_rms"
    assert 151 <= found["first"]["step"] <= 158 and found["first"]["steps_before"] > 0
    assert found["loss_moved"] is None or found["first"]["step"] < found["loss_moved"]


def test_without_probes_nothing_is_recorded_but_the_loss_is_followed():
    """From its first step, since no state of a run with probes is one of a run without; of two layers, which is enough."""
    found, outcome = trained(
        lambda decoder, step: scale(decoder, 1, 50 if step == 169 else 1), layers=2, probe_every=None
    )
    assert outcome.recorded == [] and outcome.first_spike == 170
    assert found["loss_moved"] == 170 and "probe.every=null" in found["note"]


# ---------------------------------------------------------------- what a run writes and says

NANO = ("size=nano", "train.batch_size=4", "train.train_len=16", "eval.tokens=128", "eval.lengths=[1,2]")
WILD = ("train.lr=1e30", "train.clip=null", "norm=none", "train.warmup=0", "train.steps=6")


def run(tmp_path, *overrides, plots=True):
    words = [*NANO, *overrides, f"output={tmp_path}/runs"]
    directory = lab.run(archlab.compose(*words), words, plots=plots)
    return directory, json.loads((directory / "summary.json").read_text())


def test_a_diverged_run_writes_its_autopsy_and_prints_a_line(tmp_path, capsys):
    directory, summary = run(tmp_path, *WILD)
    written = json.loads((directory / "autopsy.json").read_text())
    recorded = written.pop("recorded")
    assert written == summary["autopsy"] and written["event"] == "diverged"
    assert written["first_nonfinite"] == summary["stability"]["first_nonfinite"]
    assert [record["step"] for record in recorded] == list(range(1, summary["steps"] + 1))
    assert (directory / "autopsy.png").stat().st_size > 5000
    assert "Autopsy: diverged at step" in capsys.readouterr().out


def test_a_diverged_run_without_probes_says_that_nothing_was_watched(tmp_path, capsys):
    directory, _summary = run(tmp_path, *WILD, "probe.every=null")
    assert json.loads((directory / "autopsy.json").read_text())["recorded"] == []
    assert not (directory / "autopsy.png").exists()
    assert "nothing inside the layers was watched" in " ".join(capsys.readouterr().out.split())


def test_a_calm_run_writes_no_autopsy(tmp_path, capsys):
    directory, summary = run(tmp_path, "train.steps=4")
    assert summary["autopsy"] is None and not list(directory.glob("autopsy*"))
    assert "Autopsy" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, "spiked at step 80, the loss moved at step 78; gradient norm of layer 2 (counted from 0) moved first, at step 73, 5 steps before the loss"),
        ({"loss_moved": None}, "spiked at step 80, the loss had not moved; gradient norm of layer 2 (counted from 0) moved first, at step 73, 5 steps before the end"),
        ({"first": None, "note": "nothing moved"}, "spiked at step 80, the loss moved at step 78; nothing moved"),
    ],
)  # fmt: skip
def test_findings_in_words(changed, says):
    first = {"step": 73, "layer": 2, "quantity": "grad_norm", "steps_before": 5}
    found = {"event": "spiked", "event_step": 80, "loss_moved": 78, "first": first, "note": None}
    assert tables.autopsy(found | changed) == says


def test_the_plot_marks_what_was_found_and_draws_every_layer():
    losses, recorded = calm_run()
    plant(recorded, 73, 2, "grad_norm", 5)
    plant(recorded, 85, 0, "grad_norm", math.nan)
    for record in recorded[::20]:
        record["layers"][0]["max_score"] = 3.0
        for layer in record["layers"][1:]:
            layer["max_score"] = 2.0
    figure = plots_autopsy.autopsy_figure(spiked(losses, recorded), recorded)
    loss, _rms, norm, _score = figure.axes
    assert "layer 2" in figure.get_suptitle() and "73" in figure.get_suptitle()
    widths = [line.get_linewidth() for line in norm.lines if len(line.get_xdata()) == len(recorded)]
    assert len(widths) == LAYERS and widths.index(max(widths)) == 2
    assert {line.get_xdata()[0] for line in loss.lines if len(line.get_xdata()) == 2} == {73, 80}
    assert plots_autopsy.autopsy_figure(spiked(*calm_run()), []) is None
