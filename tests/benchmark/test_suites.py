"""Two arms, other libraries, sizes: what they measure is what they say, and what cannot be measured is one line."""

import json

import pytest
import torch
import torch.nn.functional as F

from archlab.base.errors import UserError
from archlab.benchmark import peers, scaling, versus
from archlab.benchmark.workload import PackedWorkload, Workload
from archlab.config.compose import compose, plans
from archlab.cost.describe import count_parameters

NANO = ("size=nano", "train.train_len=16", "train.batch_size=2")


def plan(*words):
    return plans(*NANO, *words)[0]


@pytest.mark.parametrize(
    ("words", "changes", "second"),
    [
        (("norm=rms", "pos=alibi"), ("norm=layer",), ("pos=alibi", "norm=layer")),
        (("+norm=rms",), ("norm=layer", "pos=t5"), ("norm=layer", "pos=t5")),
        ((), ("train.batch_size=4",), ("train.batch_size=4",)),
    ],
)
def test_the_second_arm_is_the_first_with_its_changes(words, changes, second):
    assert versus.other_words(words, changes) == second


@pytest.mark.parametrize("words", [("norm=rms",), ("seed=3",), ("train.lr=1e-4",), ("device=cpu", "precision=fp32")])
def test_an_arm_that_is_the_same_is_refused(words):
    with pytest.raises(
        UserError, match="--vs .*: changes nothing that is timed: both arms take the same steps; name another"
    ):
        versus.check_apart(plan("device=cpu"), plan(*words), " ".join(words))


@pytest.mark.parametrize("words", [("norm=layer",), ("train.batch_size=4",), ("probe.every=null",), ("precision=bf16",), ("layers[0].pos=none",)])  # fmt: skip
def test_an_arm_that_takes_other_steps_is_not(words):
    versus.check_apart(plan(), plan(*words), " ".join(words))


@pytest.mark.parametrize("words", [("precision=tf32",), ("train.deterministic=true",)])
def test_on_a_gpu_its_own_choices_are_other_steps(words, monkeypatch):
    """Though the program and the dtype are the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    versus.check_apart(plan("precision=fp32"), plan("precision=fp32", *words), " ".join(words))


@pytest.mark.slow
def test_two_arms_have_ratios_token_for_token():
    found = versus.versus(plan(), plan("train.batch_size=4"), ("two", "four"), rounds=6)
    assert list(found["modes"]) == ["forward", "forward_backward", "step", "decode"]
    step = found["modes"]["step"]
    assert [arm["tokens"] for arm in step["arms"]] == [32, 64]
    one, other = (arm["seconds"] for arm in step["arms"])
    ratios = sorted(b / 64 / (a / 32) for a, b in zip(one, other, strict=True))
    assert step["ratio"] == pytest.approx((ratios[2] + ratios[3]) / 2)
    assert step["low"] == pytest.approx(ratios[0]) and step["high"] == pytest.approx(ratios[-1])
    assert [arm["batch_size"] for arm in found["arms"]] == [2, 4]
    json.dumps(found)


# ---------------------------------------------------------------- sizes


def test_each_size_is_halved_kept_doubled_and_doubled_again():
    cfg = compose(*NANO)
    assert {name: scaling.values_of(cfg, option) for name, option in scaling.SWEPT.items()} == {
        "seq_len": [8, 16, 32, 64],
        "d_model": [32, 64, 128, 256],
        "n_layers": [1, 2, 4, 8],
    }
    assert scaling.values_of(compose(*NANO, "size.n_layers=1"), "size.n_layers") == [1, 2, 4]


def test_memory_grows_with_depth_and_the_fit_is_of_what_was_measured():
    sized = {"n_layers": {n: compose(*NANO, f"size.n_layers={n}") for n in (2, 4, 8)}}
    found = scaling.scaling(sized, rounds=1)["swept"]["n_layers"]
    assert found["values"] == [2, 4, 8] and len(found["seconds"]) == 3
    bytes_ = found["bytes"]
    # Layers are alike, so bytes are a + b n: the step from 4 to 8 is twice that from 2 to 4.
    assert bytes_[2] - bytes_[1] == pytest.approx(2 * (bytes_[1] - bytes_[0]), rel=0.05)
    assert 0 < found["memory"]["exponent"] < 1 and found["time"]["error"] >= 0


# ---------------------------------------------------------------- packs


def test_a_step_of_a_pack_is_a_step_of_each_of_its_runs():
    words = (*NANO, "train.lr=1e-2", "train.warmup=0", "seed=5")
    pack = PackedWorkload(compose(*words), 3)
    alone = [Workload(compose(*words[:-1], f"seed={seed}")) for seed in (5, 6, 7)]
    assert pack.step().number == alone[0].step().number == 2 and not pack.pack.pending
    pack, alone = PackedWorkload(pack.cfg, 3), [Workload(work.cfg) for work in alone]
    for before in range(2):  # steps 1 and 2, as a run takes them
        for work in (pack, *alone):
            work._before = before
        together, one_by_one = pack.step(), [work.step() for work in alone]
        # Sums of 64 numbers in another order, through two layers and a step: some roundings of float32.
        assert together.loss.tolist() == pytest.approx([float(step.loss) for step in one_by_one], rel=1e-5)
    for member, work in zip(pack.pack.following, alone, strict=True):
        for own, other in zip(member.member.decoder.parameters(), work.decoder.parameters(), strict=True):
            # AdamW divides by the root of what it averages, so that a gradient near 0 counts as much as a large one.
            torch.testing.assert_close(own, other, rtol=0, atol=1e-3)


def planted(monkeypatch, seconds):
    """`seconds` of a step at every round, by how many runs are packed; at 0 of a run by itself."""
    named = {"alone": [seconds[0]] * 6, **{str(size): [seconds[size]] * 6 for size in seconds if size}}
    monkeypatch.setattr(scaling, "in_turns", lambda calls, rounds, tick: {name: named[name] for name in calls})


@pytest.mark.parametrize(
    ("seconds", "exponent", "times"),
    [
        pytest.param({0: 0.5, 1: 0.5, 2: 0.5, 4: 0.5, 8: 0.5}, 0.0, 8.0, marks=pytest.mark.slow),  # as one run
        pytest.param({0: 0.5, 1: 0.5, 2: 1.0, 4: 2.0, 8: 4.0}, 1.0, 1.0, marks=pytest.mark.slow),  # one after the other
        ({0: 0.6, 1: 0.5, 2: 0.5 * 2**0.5, 4: 1.0, 8: 0.5 * 8**0.5}, 0.5, 8 * 0.6 / (0.5 * 8**0.5)),
    ],
)
def test_the_exponent_of_packs_says_what_packing_costs(seconds, exponent, times, monkeypatch):
    planted(monkeypatch, seconds)
    monkeypatch.setattr(scaling, "peak_of_pack", lambda cfg, size, machine: 1000 * size)
    found = scaling.of_packs(plan("device=cpu"), rounds=6, tick=lambda: None)
    assert found["values"] == [1, 2, 4, 8] and found["time"]["exponent"] == pytest.approx(exponent, abs=1e-9)
    assert found["memory"]["exponent"] == pytest.approx(1) and found["times_alone"]["ratio"] == pytest.approx(times)
    assert found["alone"] == seconds[0]
    json.dumps(found)


@pytest.mark.slow
def test_each_run_of_a_pack_takes_as_much_memory_as_the_last(monkeypatch):
    monkeypatch.setitem(scaling.SIZES, "cpu", (1, 2, 4))
    found = scaling.of_packs(plan("device=cpu"), rounds=1, tick=lambda: None)
    one, two, four = found["bytes"]
    assert four - two == pytest.approx(2 * (two - one), rel=0.05)
    n_params = count_parameters(Workload(plan().cfg).decoder)
    assert two - one > 16 * n_params  # weights, gradients, two states, float32
    assert 0.8 < found["memory"]["exponent"] <= 1.01


def test_packs_are_no_larger_than_memory_holds(monkeypatch):
    monkeypatch.setattr(scaling, "most_members", lambda plan: 5)
    assert scaling.sizes_of(plan(), "cpu") == [1, 2, 4] and scaling.sizes_of(plan(), "cuda") == [1]
    monkeypatch.setattr(scaling, "most_members", lambda plan: 1)
    planted(monkeypatch, {0: 0.5, 1: 0.5})
    found = scaling.of_packs(plan("device=cpu"), rounds=6, tick=lambda: None)
    assert found["time"] is found["memory"] is None  # no line through one point


@pytest.mark.parametrize(
    ("words", "why"), [(("average=ema",), "average=ema is kept of"), (("norm=batch", "allow_leak=true"), "norm=batch keeps running statistics")]
)  # fmt: skip
def test_where_runs_are_not_packed_a_line_says_why_and_the_rest_is_measured(words, why):
    packed = plan(*words)
    found = scaling.scaling({"n_layers": {1: compose(*NANO, *words, "size.n_layers=1")}}, rounds=1, packed=packed)
    assert list(found["swept"]) == ["n_layers"] and why in found["not_packed"] and "\n" not in found["not_packed"]
    assert found["swept"]["n_layers"]["seconds"][0] > 0


# ---------------------------------------------------------------- peers


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("norm=layer",),
            "norm=layer: suite=peers measures the model that all peers have, with norm=rms; leave it out",
        ),
        (("pos=t5",), "pos=t5: no peer has it; suite=peers takes pos=rope or pos=alibi"),
        *(
            ((word,), f"{said}: suite=peers measures the plain LLaMA shape; leave it out")
            for word, said in (
                ("embed.tied=true", "embed.tied=True"),
                ("embed.norm=true", "embed.norm=True"),
                ("dropout=0.1", "dropout=0.1"),
                ("mixer.dropout=0.1", "mixer.dropout=0.1"),
                ("mixer.qk_norm=head", "mixer.qk_norm=head"),
                ("pos.fraction=0.5", "pos.fraction=0.5"),
                ("head.softcap=30", "head.softcap=30"),
                ("random_positions=256", "random_positions=256"),
            )
        ),
    ],
)
def test_peers_are_asked_for_what_they_have(words, said):
    with pytest.raises(UserError) as refused:
        peers.chosen(compose(*NANO, *words))
    assert str(refused.value) == said


def test_peers_that_are_missing_are_named():
    with pytest.raises(
        UserError, match="suite=peers: none of transformers, x-transformers, litgpt is installed; install one"
    ):
        peers.chosen(compose(*NANO), there=lambda name: False)
    assert peers.chosen(compose(*NANO), there=lambda name: name == "litgpt") == ["litgpt"]
    assert peers.chosen(compose(*NANO, "pos=alibi"), there=lambda name: True) == ["x-transformers"]
    assert peers.chosen(compose(*NANO, "norm.eps=1e-5", "pos.base=500"), there=lambda name: True)
    assert not peers.installed("no-such-library")


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_has_the_same_size_and_learns(name):
    pytest.importorskip(name.replace("-", "_"))
    work = Workload(compose(*NANO, "train.lr=1e-2", "train.warmup=0"))
    model, logits = peers.PEERS[name][0](work.cfg)
    assert count_parameters(model) == pytest.approx(count_parameters(work.decoder), rel=0.01)
    step, inputs, targets = peers.step_of(model, logits, work), work.batch.inputs, work.batch.to_predict

    def loss() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(logits(inputs).flatten(0, 1), targets.flatten()))

    before = loss()
    for _ in range(10):
        step()
    assert loss() < before - 0.1


def test_a_peer_that_fails_takes_the_others_not_with_it(monkeypatch):
    def broken(cfg):
        raise ImportError("its own library is missing")

    def small(cfg):
        model = torch.nn.Sequential(torch.nn.Embedding(256, 8), torch.nn.Linear(8, 256))
        return model, model

    monkeypatch.setattr(peers, "installed", lambda name: name != "litgpt")
    monkeypatch.setattr(peers, "version_of", lambda name: "1.0")
    monkeypatch.setitem(peers.PEERS, "transformers", (broken, ("rope",)))
    monkeypatch.setitem(peers.PEERS, "x-transformers", (small, ("rope",)))
    found = peers.peers(compose(*NANO), rounds=6)
    assert list(found["peers"]) == ["archlab", "x-transformers"]
    assert found["failed"] == {"transformers": "ImportError: its own library is missing"}
    assert found["peers"]["x-transformers"]["n_params"] == 256 * 8 + 8 * 256 + 256
    assert found["peers"]["x-transformers"]["archlab"]["rounds"] == 6 and found["not_installed"] == ["litgpt"]
    monkeypatch.setitem(peers.PEERS, "x-transformers", (broken, ("rope",)))
    with pytest.raises(UserError, match="transformers, x-transformers could not be run: ImportError"):
        peers.peers(compose(*NANO), rounds=6)
