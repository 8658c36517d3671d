"""The trials of `tune=lr` as a pack and side by side, and what of it is refused."""

import commands
import pytest

import archlab
from archlab.base.errors import UserError
from archlab.config.compose import plans
from archlab.runs import sweep, tune
from archlab.runs.beside import Ended
from archlab.runs.packs import by_program

command = commands.archlab  # the fixture

SMALL = (
    "size=nano", "size.d_model=24", "size.n_heads=3", "size.d_ff=40", "size.n_layers=1", "train.steps=4",
    "train.batch_size=2", "train.train_len=14", "eval.tokens=56", "eval.lengths=[1]", "tune=lr",
)  # fmt: skip


def composed(output, *words):
    return archlab.compose(*SMALL, f"output={output}", *words)


def one_by_one(cfg) -> dict:
    return tune.tuned_rate(cfg)


def beside(jobs, workers, words):
    """In this process, the last first, as processes may end."""
    for number in reversed(list(jobs)):
        yield Ended(number, jobs[number], True)


@pytest.mark.parametrize(
    ("workers", "pack", "exactly"), [pytest.param(2, "auto", True, marks=pytest.mark.slow), (2, 2, False)]
)
def test_however_the_trials_are_made_the_arms_get_what_they_get_one_by_one(
    tmp_path, monkeypatch, workers, pack, exactly
):
    monkeypatch.setattr(tune, "side_by_side", beside)
    monkeypatch.setattr(tune, "FARTHEST", 1)  # six trials for each arm
    words = [("norm=rms", "seed=0"), ("norm=rms", "seed=1"), ("norm=layer", "seed=0")]
    alone = [one_by_one(composed(tmp_path / "a", *arm)) for arm in words]
    cfgs = [composed(tmp_path / "b", *arm) for arm in words]
    tune.find_rates(cfgs, workers, pack)
    monkeypatch.setattr(tune, "losses_of", None)  # whatever is read below was there
    for cfg, expected in zip(cfgs, alone, strict=True):
        found = one_by_one(cfg)
        assert (found["lr"], found["edge"], found["seeds"]) == (expected["lr"], expected["edge"], [1000, 1001])
        tolerance = 0 if exactly else 1e-5  # a pack adds in another order, in float32
        for (rate, losses), (same, others) in zip(found["rates"], expected["rates"], strict=True):
            assert rate == same and losses == pytest.approx(others, rel=tolerance, abs=0)
    assert len(list((tmp_path / "b" / ".tuned").glob("*.json"))) == 2  # the seeds of an arm share one


def test_an_arm_whose_trial_fails_is_left_to_its_run(tmp_path, monkeypatch):
    def fails(trials):
        if trials[0].arm.choices.norm == "layer" and trials[0].rate == 0.003:
            raise UserError("no such data")
        return [abs(trial.rate - 0.003) for trial in trials]

    monkeypatch.setattr(tune, "losses_of", fails)
    tune.find_rates([composed(tmp_path, "norm=layer"), composed(tmp_path, "norm=rms")])
    (kept,) = (tmp_path / ".tuned").glob("*.json")
    assert kept == tune.kept_in(composed(tmp_path, "norm=rms"))


def test_trials_that_cannot_be_packed_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="pack=3: dropout draws otherwise in a pack"):
        tune.find_rates([composed(tmp_path, "dropout=0.1")], pack=3)


def test_a_single_run_takes_workers_and_pack_for_its_trials(command, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "FARTHEST", 1)
    done = command(*SMALL, "pack=3", f"output={tmp_path}", "plots=false")
    assert done.status == 0, done.err
    assert "tune=lr: 6 trials at 0.0015, 0.003, 0.006, 1 at a time, up to 3 of them as one pack" in done.out
    assert len(list((tmp_path / ".tuned").glob("*.json"))) == 1


def test_an_experiment_is_carried_out_as_a_sweep_is(command, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        sweep, "carry_out", lambda jobs, workers, pack, started: asked.append((jobs, workers, pack)) or ()
    )
    done = command("experiment=stability_map", "train.lr=1e-3,1e-2,1e-1", "workers=2", "pack=3", f"output={tmp_path}")
    assert done.status == 0, done.err
    ((jobs, workers, pack),) = asked
    programs = by_program([job.plan for job in jobs])
    assert (workers, pack) == (2, 3) and {len(places) % 3 for places in programs.values()} == {0}


def began_at(monkeypatch) -> list:
    """From when each run counts its time to the first step, where the search for rates took 50 s."""
    seen: list = []
    monkeypatch.setattr(tune, "find_rates", lambda *_, **__: 50.0)
    monkeypatch.setattr(sweep.Job, "do", lambda self, started=None, show_result=True: seen.append(started))
    return seen


def test_a_search_is_no_part_of_the_time_of_a_sweeps_first_run(monkeypatch, tmp_path):
    seen = began_at(monkeypatch)
    jobs = [sweep.Job(plan) for plan in plans(*SMALL, "norm=rms,layer", f"output={tmp_path}")]
    for ended in sweep.carry_out(jobs, 1, "off", started=1000.0, show_result=False):
        ended.result()
    assert seen == [1050.0, None]


def test_nor_is_it_of_a_commands_single_run(command, monkeypatch, tmp_path):
    seen = began_at(monkeypatch)
    done = command(*SMALL, f"output={tmp_path}")
    assert done.status == 0, done.err
    assert seen == [archlab.STARTED + 50.0]
