"""`tune=lr`: the same search for every arm, before it is compared."""

import contextlib
import io
import json
import math

import pytest

import archlab
from archlab.base.errors import UserError
from archlab.runs import lab, tune

SMALL = (
    "size=nano",
    "train.steps=6",
    "train.train_len=16",
    "train.batch_size=4",
    "eval.tokens=256",
    "eval.lengths=[1]",
    "train.eval_every=null",
)


def composed(tmp_path, *overrides):
    return archlab.compose(*SMALL, f"output={tmp_path}", "tune=lr", *overrides)


def told(monkeypatch, loss_by_rate) -> list:
    """Trials come to these losses; returns the trials as they are made."""
    tried = []

    def losses_of(trials):
        tried.extend((trial.rate, trial.seed) for trial in trials)
        return [loss_by_rate(trial.rate) for trial in trials]

    monkeypatch.setattr(tune, "losses_of", losses_of)
    return tried


def searched(*valleys: float, start: float = 1.0) -> list[list[int]]:
    """The places that arms try together whose losses are |log2(rate / valley)|."""
    cells: list[dict[int, list[float]]] = [{} for _ in valleys]
    while places := tune.places_to_try(cells):
        for arm, valley in zip(cells, valleys, strict=True):
            for place in places:
                loss = abs(math.log2(tune.rate_at(place, start) / valley))
                arm[place] = [loss, loss + 1e-3]
    return [sorted(arm) for arm in cells]


def test_rates_are_factors_of_two_apart():
    assert [tune.rate_at(place, 3e-3) for place in (-2, -1, 0, 1, 2)] == [7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2]


@pytest.mark.parametrize(
    ("valley", "tried"),
    [(1.0, [-1, 0, 1]), (2.1, [-1, 0, 1, 2]), (8.0, [-1, 0, 1, 2, 3, 4]), (1 / 4, [-3, -2, -1, 0, 1])],
)
def test_the_grid_grows_until_the_best_has_a_worse_neighbour_on_both_sides(valley, tried):
    assert searched(valley) == [tried]


def test_arms_that_are_tuned_together_try_the_same_rates():
    assert searched(1 / 4, 4.0) == [[-3, -2, -1, 0, 1, 2, 3]] * 2


def test_a_divergence_is_a_worse_neighbour():
    cells = {-1: [3.0, 3.1], 0: [2.0, 2.0], 1: [math.inf, 1.0]}
    assert tune.places_to_try([cells]) == [] and tune.best_place(cells) == 0


def test_where_all_diverge_lower_rates_are_tried_down_to_the_end_of_the_grid():
    cells: dict[int, list[float]] = {}
    while places := tune.places_to_try([cells]):
        cells |= {place: [math.inf, math.inf] for place in places}
    assert min(cells) == -tune.FARTHEST and tune.at_edge(cells)


def test_equal_losses_are_not_worse():
    cells = {-1: [3.0], 0: [2.0], 1: [2.0]}
    assert tune.best_place(cells) == 0
    assert tune.places_to_try([{-1: [2.0], 0: [2.0], 1: [3.0]}]) == [-2]


def test_each_rate_is_tried_at_both_seeds_and_the_lowest_mean_wins(tmp_path, monkeypatch):
    tried = told(monkeypatch, lambda rate: {1.5e-3: 3.0, 3e-3: 2.0}.get(rate, math.inf))
    cfg = composed(tmp_path)
    found = tune.tuned_rate(cfg)
    assert sorted(tried) == [(rate, seed) for rate in (1.5e-3, 3e-3, 6e-3) for seed in (1000, 1001)]
    assert found == {
        "lr": 3e-3,
        "edge": False,
        "rates": [[1.5e-3, [3.0, 3.0]], [3e-3, [2.0, 2.0]], [6e-3, [None, None]]],
        "seeds": [1000, 1001],
        "expected_best": [
            [1, pytest.approx((2 + 3 + 3) / 3)],
            [2, pytest.approx((5 * 2 + 4 * 3) / 9)],
            [3, pytest.approx((19 * 2 + 8 * 3) / 27)],
        ],
    }


def test_a_search_that_was_broken_off_goes_on(tmp_path, monkeypatch):
    def killed(rate):
        if rate == 6e-3:
            raise KeyboardInterrupt
        return abs(rate - 3e-3)

    told(monkeypatch, killed)
    with pytest.raises(KeyboardInterrupt):
        tune.tuned_rate(composed(tmp_path))
    tried = told(monkeypatch, lambda rate: abs(rate - 3e-3))
    assert tune.tuned_rate(composed(tmp_path))["lr"] == 3e-3
    assert {rate for rate, _ in tried} == {6e-3}


ROUNDS = {3e-3: 2.0, 6e-3: 1.0, 1.2e-2: 4.0}
"""Two rounds: the best of the first three rates is the last of them."""


@pytest.mark.parametrize("trial", range(8))
@pytest.mark.parametrize("beside", [False, True])
def test_wherever_a_search_is_broken_off_it_goes_on_to_the_same_with_no_trial_twice(
    beside, trial, tmp_path, monkeypatch
):
    def search(output):
        cfg = composed(output)
        if beside:
            tune.find_rates([cfg], workers=1)
        return tune.tuned_rate(cfg)

    at_all = told(monkeypatch, lambda rate: ROUNDS.get(rate, 5.0))
    undisturbed = search(tmp_path / "a")

    def killed(rate):
        if len(before) > trial:
            raise KeyboardInterrupt
        return ROUNDS.get(rate, 5.0)

    before = told(monkeypatch, killed)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "b")
    after = told(monkeypatch, lambda rate: ROUNDS.get(rate, 5.0))
    assert search(tmp_path / "b") == undisturbed
    assert before[:trial] + after == at_all


def test_the_loss_of_a_trial_is_that_of_a_run_on_the_tuning_part(tmp_path):
    cfg = composed(tmp_path)
    (found,) = tune.losses_of([tune.Trial(cfg, 1, 1000)])
    alone = archlab.compose(*SMALL, f"output={tmp_path}", "train.lr=6e-3", "seed=1000", "eval.part=tuning")
    with contextlib.redirect_stdout(io.StringIO()):
        directory = lab.run(alone, plots=False)
    assert found == json.loads((directory / "summary.json").read_text())["val_loss"]


def test_seeds_of_an_arm_share_one_search_and_another_arm_has_its_own(tmp_path, monkeypatch):
    tried = told(monkeypatch, lambda rate: abs(rate - 3e-3))
    for overrides in (["seed=0"], ["seed=1"], ["seed=0", "norm=layer"]):
        tune.tuned_rate(composed(tmp_path, *overrides))
    assert len(tried) == 2 * 3 * 2


def test_where_nothing_can_be_kept_no_trial_is_made(tmp_path, monkeypatch):
    """Fault found: a traceback after the first round of trials."""
    (tmp_path / ".tuned").write_text("no folder")
    tried = told(monkeypatch, lambda rate: 2.0)
    with pytest.raises(
        UserError, match=r"\.tuned: nothing that tune finds can be kept there: .*; give another output=FOLDER"
    ):
        tune.find_rates([composed(tmp_path)])
    assert not tried


def test_a_damaged_record_of_a_search_is_made_again(tmp_path, monkeypatch):
    cfg = composed(tmp_path)
    tune.kept_in(cfg).parent.mkdir(parents=True)
    tune.kept_in(cfg).write_text('{"rates": [[0.003, "x"]]}')
    told(monkeypatch, lambda rate: abs(rate - 3e-3))
    assert tune.tuned_rate(cfg)["lr"] == 3e-3


def test_a_tuned_run_trains_with_what_was_found_and_says_so(tmp_path, monkeypatch):
    told(monkeypatch, lambda rate: abs(rate - 0.006))
    with contextlib.redirect_stdout(io.StringIO()):
        directory = lab.run(composed(tmp_path), plots=False)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["tuned"]["lr"] == 0.006
    first, *_ = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    assert first["lr"] == pytest.approx(
        0.006 * (0.1 + 0.9 * (1 + math.cos(math.pi / 6)) / 2)
    )  # the first of six steps of the cosine, no warm-up


def test_a_tuning_seed_is_that_of_the_data_too_and_data_seeds_share_a_search(tmp_path):
    arm, other = (composed(tmp_path, *words) for words in ([], ["data_seed=3"]))
    assert tune.kept_in(arm) == tune.kept_in(other)
    assert tune.Trial(other, 0, 1000).cfg.data_seed is None and tune.Trial(other, 0, 1000).cfg.seed == 1000


@pytest.mark.parametrize("seed", tune.SEEDS)
def test_a_seed_at_which_the_rate_is_chosen_is_refused_before_anything_runs(tmp_path, seed):
    """Its run is one of the trials, the best of them by its noise too, and it was an arm's seed like any other."""
    with pytest.raises(
        UserError, match=rf"^seed={seed}: tune chooses the rate at seeds 1000 and 1001, .*; use another seed"
    ):
        archlab.sweep(*SMALL, "tune=lr", f"seed=0,{seed}", f"output={tmp_path}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", ["file", "blank", "masked"])
def test_a_run_that_would_be_scored_on_what_its_rate_is_chosen_by_is_refused(data, tmp_path, monkeypatch):
    """Of a file of 20 kB all 2000 bytes held out were scored, the 500 among them by which the rate had been chosen."""
    tried = told(monkeypatch, lambda rate: abs(math.log2(rate / 3e-3)))
    (tmp_path / "own.txt").write_bytes(bytes(range(32, 112)) * 250)
    own = (f"data={data}", f"data.path={tmp_path}/own.txt")
    own += ("mask=full", "head=mlm") if data == "masked" else ("mask=prefix",) if data == "blank" else ()
    wrong = "tune: the rate is chosen by the last quarter of what .* scored on 1501 tokens, of which 1500 stand before it; use at most eval.tokens=1500, or"
    for search in (tune.tuned_rate, lambda cfg: tune.find_rates([cfg])):
        with pytest.raises(UserError, match=wrong):
            search(
                archlab.compose(
                    *SMALL[:-3], f"output={tmp_path}", "tune=lr", "eval.tokens=1501", "eval.lengths=[1]", *own
                )
            )
    assert tried == []
    with pytest.raises(UserError, match="use at most eval.tokens=1500 and eval.lengths of at most 93, or"):
        tune.tuned_rate(archlab.compose(*SMALL[:-3], f"output={tmp_path}", "tune=lr", "eval.lengths=[1,100]", *own))
    found = tune.tuned_rate(
        archlab.compose(*SMALL[:-3], f"output={tmp_path}", "tune=lr", "eval.tokens=1500", "eval.lengths=[1]", *own)
    )
    assert found["lr"] == 3e-3


def test_an_arm_that_joins_later_tries_all_that_the_others_tried():
    """Its own best has a worse neighbour on both sides, and the other's search went further."""
    before = {place: [float(abs(place + 2))] * 2 for place in (-3, -2, -1, 0, 1)}
    joins = {place: [float(abs(place))] * 2 for place in (-1, 0, 1)}
    assert tune.places_to_try([before, {}]) == [-3, -2, -1, 0, 1]
    assert tune.places_to_try([before, joins]) == [-3, -2] and tune.places_to_try([joins]) == []


def test_a_search_is_no_part_of_a_runs_time(tmp_path, monkeypatch):
    """All runs of an arm share it. The search here only takes 0.3 s of a clock that moves by itself nowhere else."""
    now = [100.0]
    monkeypatch.setattr(tune.time, "time", lambda: now[0])

    def losses_of(trials):
        now[0] += 0.3 * len(trials)
        return [abs(math.log2(trial.rate / 3e-3)) for trial in trials]

    monkeypatch.setattr(tune, "losses_of", losses_of)
    cfg = composed(tmp_path, "train.lr=3e-3")
    assert tune.find_rates([cfg], workers=1) == pytest.approx(0.3 * 6)  # three rates at two seeds
    assert tune.find_rates([cfg], workers=1) == 0.0
    again = composed(tmp_path / "another", "train.lr=3e-3")
    began = now[0]
    assert lab.prepared(again, began, shown=False).started == pytest.approx(began + 0.3 * 6)
    assert lab.prepared(again, began, shown=False).started == began
