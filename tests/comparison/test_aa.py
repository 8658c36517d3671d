"""experiments/aa counts verdicts over arrays of studies; study by study they are those of `judge`."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from archlab.comparison.judge import judge

FILE = Path(__file__).parents[2] / "experiments" / "aa" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("aa_bench", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("margin", "effect", "fails"), [(0.0, 1.5, 0.0), (1.2, 0.0, 0.0), (0.5, 1.0, 0.3), (0.0, 0.0, 0.9)]
)
@pytest.mark.parametrize("n", [6, 10])
def test_arrays_of_studies_are_judged_as_one_is(bench, margin, effect, fails, n):
    draws = np.random.default_rng(n)
    a, b = draws.normal(size=(2, 40, n))
    a = np.where(draws.random(a.shape) < fails, np.nan, a - effect)
    a[0], b[0] = 1.0, 0.5  # no spread at all
    found = bench.verdicts_at(a, b, margin)
    for i in range(len(a)):
        one = judge(a[i].tolist(), b[i].tolist(), better="lower", margin=margin)
        assert {name for name in ("a", "b", "tie") if found[name][i]} == ({one.reading} & {"a", "b", "tie"})


@pytest.mark.parametrize(("chance", "margin"), [(0.3, 0.1), (1.0, 0.1), (0.9, 0.0)])
@pytest.mark.parametrize("n", [6, 12, 24])
def test_shares_are_judged_in_arrays_as_one_by_one(bench, chance, margin, n):
    a, b = bench.rarely(chance)(30)
    found = bench.verdicts_at(a[:, :n], b[:, :n], margin, largest=1.0)
    for i in range(len(a)):
        one = judge(a[i, :n].tolist(), b[i, :n].tolist(), better="lower", margin=margin, largest=1.0)
        assert {name for name in ("a", "b", "tie") if found[name][i]} == ({one.reading} & {"a", "b", "tie"})


def test_a_study_ends_at_its_first_verdict(bench):
    def draw(studies):
        return np.tile(np.linspace(0.0, 0.1, bench.CAP), (studies, 1)) - 1.0, np.zeros((studies, bench.CAP))

    verdict, at = bench.studied(draw, 0.0, studies=3)
    assert verdict.tolist() == ["a"] * 3 and at.tolist() == [6] * 3


def test_the_bound_is_that_of_clopper_and_pearson(bench):
    assert bench.upper(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))  # none of 59: the rule of three, exactly
    assert bench.upper(59, 59) == 1
