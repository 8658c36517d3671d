"""How often the rule of verdicts (archlab.comparison.judge) is wrong where nothing is there, and how often it finds what is.

    python experiments/aa/bench.py

Every study is looked at from 6 pairs to 24 and stops at the first verdict. The arithmetic is that of `judge`, over arrays of
studies at once (`e_value`, `half_width` and `majority_e` are its own); tests/comparison/test_aa.py holds it to `judge`.
"""

import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from scipy import stats

from archlab.comparison.many import survivors
from archlab.comparison.rates import sensitivity, stable_up_to
from archlab.comparison.rule import ALPHA, LOOKS, PRIOR_SCALE
from archlab.comparison.sequence import bounded_e, e_value, half_width, majority_e

STUDIES = 20_000
CAP = LOOKS[-1]
HERE = Path(__file__).parent

rng = np.random.default_rng(0)

Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Values of two arms, (studies, pairs); nan where a run failed."""


@cache
def failure_evidence() -> np.ndarray:
    """majority_e by both counts, up to the cap."""
    return np.array([[majority_e(more, less) for less in range(CAP + 1)] for more in range(CAP + 1)])


def verdicts_at(
    a: np.ndarray, b: np.ndarray, margin: float, alpha: float = ALPHA, largest: float | None = None
) -> dict[str, np.ndarray]:
    """Of every study, whether a or b wins or they tie, as `judge` with better="lower" has it; with `largest` no run fails."""
    lost_a, lost_b = np.isnan(a), np.isnan(b)
    only_a, only_b = (lost_a & ~lost_b).sum(axis=1), (lost_b & ~lost_a).sum(axis=1)
    d = a - b
    there = ~np.isnan(d)
    n = there.sum(axis=1)
    total = np.where(there, d, 0.0)
    mean = total.sum(axis=1) / np.maximum(n, 1)
    squares = np.where(there, (d - mean[:, None]) ** 2, 0.0).sum(axis=1)
    sd = np.sqrt(squares / np.maximum(n - 1, 1))
    width = np.array([half_width(k, alpha) for k in range(a.shape[1] + 1)])[n]
    half = np.where(n > 1, width * np.where(sd > 1e-12, sd, 1.0), np.inf)
    low, high = mean - half, mean + half
    above, below = low >= margin, high <= -margin
    inside = (low > -margin) & (high < margin)
    same = (n > 1) & (sd <= 1e-12)  # no spread: signs
    if same.any():
        enough = failure_evidence()[np.minimum(n, CAP), 0] >= 1 / alpha
        above, below = (
            np.where(same, enough & side, of) for side, of in ((mean > margin, above), (mean < -margin, below))
        )
        inside = np.where(same, enough & (np.abs(mean) < margin), inside)
    if largest is not None:
        above &= bounded_e(d, margin, largest) >= 1 / alpha
        below &= bounded_e(-d, margin, largest) >= 1 / alpha
        inside &= np.minimum(bounded_e(d, -margin, largest), bounded_e(-d, -margin, largest)) >= 1 / alpha
    e = failure_evidence()
    a_loses, b_loses = e[only_a, only_b] >= 1 / alpha, e[only_b, only_a] >= 1 / alpha
    return {
        "a": ~a_loses & (b_loses | (below & (only_a <= only_b))),
        "b": a_loses | (~b_loses & above & (only_b <= only_a)),
        "tie": ~a_loses & ~b_loses & inside & (only_a + only_b == 0),
    }


def studied(
    draw: Draw, margin: float, studies: int = STUDIES, largest: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of each study, the verdict at which it stopped ("" where none) and at how many pairs."""
    a, b = draw(studies)
    verdict, at = np.full(studies, "", dtype=object), np.full(studies, CAP)
    for n in LOOKS:
        found = verdicts_at(a[:, :n], b[:, :n], margin, largest=largest)
        for name, of in found.items():
            new = of & (verdict == "")
            verdict[new], at[new] = name, n
    return verdict, at


def upper(k: int, n: int) -> float:
    """The 95% bound of a share (Clopper and Pearson), one-sided."""
    return float(stats.beta.ppf(0.95, k + 1, n - k)) if k < n else 1.0


# ---------------------------------------------------------------- data


def normal(sd: float = 1.0, fails: tuple[float, float] = (0.0, 0.0)) -> Draw:
    """Independent normal noise, the worst case for pairs, which then gain nothing; each arm fails as often as `fails` says."""

    def draw(studies: int) -> tuple[np.ndarray, np.ndarray]:
        a, b = rng.normal(0.0, sd, (2, studies, CAP))
        return tuple(np.where(rng.random(x.shape) < p, np.nan, x) for x, p in zip((a, b), fails, strict=True))  # type: ignore[return-value]

    return draw


def of_runs(values: np.ndarray) -> Draw:
    """Both arms drawn with replacement from the runs of one configuration."""

    def draw(studies: int) -> tuple[np.ndarray, np.ndarray]:
        a, b = rng.choice(values, (2, studies, CAP))
        return a, b

    return draw


def planted(draw: Draw, effect: float) -> Draw:
    """a is better by `effect` deviations of what is drawn."""
    sd = float(np.nanstd(draw(2_000)[1], ddof=1))

    def better(studies: int) -> tuple[np.ndarray, np.ndarray]:
        a, b = draw(studies)
        return a - effect * sd, b

    return better


# ---------------------------------------------------------------- tables


def false_verdicts(name: str, draw: Draw, margin: float, largest: float | None = None) -> None:
    """Arms that are alike: a winner is wrong; with a margin of 0 there is no tie to be named."""
    verdict, _ = studied(draw, margin, largest=largest)
    wrong = int(np.isin(verdict, ("a", "b")).sum())
    print(f"| {name} | {wrong / STUDIES:.2%} | {upper(wrong, STUDIES):.2%} |", flush=True)


def at_the_margin(name: str, draw: Draw, margin: float) -> None:
    """a is better by exactly the margin: that it wins, or that they tie, are both wrong."""
    verdict, _ = studied(draw, margin)
    wrong = int((verdict != "").sum())
    print(f"| {name} | {wrong / STUDIES:.2%} | {upper(wrong, STUDIES):.2%} |", flush=True)


def power(name: str, draws: dict[str, Draw], margin: float, wanted: str = "a", largest: float | None = None) -> None:
    """By number of pairs, the share of studies that have found it; then the mean number of pairs at which they stopped."""
    for size, draw in draws.items():
        verdict, at = studied(draw, margin, largest=largest)
        found = [((verdict == wanted) & (at <= n)).mean() for n in LOOKS]
        shares = " | ".join(f"{share:.0%}" for share in found)
        print(f"| {name} | {size} | {shares} | {at.mean():.1f} |", flush=True)


def scales() -> None:
    """What the scale of the prior buys: see archlab.comparison.rule.PRIOR_SCALE."""
    noise = rng.normal(0.0, np.sqrt(2), (STUDIES, CAP))
    for g in (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 8.0, 16.0):
        cells = []
        for effect in (0.0, 1.0, 2.0, 3.0):
            open_, at = np.ones(STUDIES, dtype=bool), np.full(STUDIES, CAP)
            for n in LOOKS:
                d = noise[:, :n] + effect
                now = open_ & (np.abs(d.mean(axis=1)) >= half_width(n, ALPHA, g) * d.std(axis=1, ddof=1))
                at[now] = n
                open_ &= ~now
            cells.append(f"{1 - open_.mean():.2%}" if not effect else f"{1 - open_.mean():.0%}, {at.mean():.1f} pairs")
        print(f"| {g:g}{' (used)' * (g == PRIOR_SCALE)} | {' | '.join(cells)} |", flush=True)


def by_t(looks: tuple[int, ...]) -> float:
    """What a paired t interval at 5% does under the same looks, of arms that are alike."""
    d = rng.normal(size=(STUDIES, CAP))
    wrong = np.zeros(STUDIES, dtype=bool)
    for n in looks:
        half = stats.t.ppf(1 - ALPHA / 2, n - 1) * d[:, :n].std(axis=1, ddof=1) / np.sqrt(n)
        wrong |= np.abs(d[:, :n].mean(axis=1)) > half
    return float(wrong.mean())


def sweeps_of_five(n: int, studies: int = 2_000) -> tuple[float, float]:
    """Five alike arms at n seeds, four of them against the first, e-BH: how often any winner is named; one-sided bound."""
    hits = 0
    for _ in range(studies):
        base, *others = rng.normal(size=(5, n))
        hits += any(survivors([one_e(other - base) for other in others]))
    return hits / studies, upper(hits, studies)


def one_e(d: np.ndarray) -> float:
    return float(e_value(d.mean(), d.std(ddof=1), len(d)))


def going_on(enough: float) -> None:
    """What the e-value against "no better" comes to where one stops at the verdict, and where one goes on to `enough`."""
    noise = np.random.default_rng(1).normal(size=(STUDIES, CAP))
    for effect in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        d = noise + effect
        e = np.stack([e_value(np.maximum(d[:, :n].mean(axis=1), 0), d[:, :n].std(axis=1, ddof=1), n) for n in LOOKS])
        cells = []
        for least in (1 / ALPHA, enough):
            stop = np.where((e >= least).any(axis=0), (e >= least).argmax(axis=0), len(LOOKS) - 1)
            at_stop = e[stop, np.arange(STUDIES)]
            told = f"{(at_stop >= 1 / ALPHA).mean():.2%} | {(at_stop >= enough).mean():.2%}"
            cells.append(f"{told} | {np.array(LOOKS)[stop].mean():.1f}")
        gone = ((e >= 1 / ALPHA).any(axis=0) & (at_stop < 1 / ALPHA)).mean()
        print(f"| {effect:g} sd | {' | '.join(cells)} | {gone:.2%} |", flush=True)


def rarely(chance: float, found: float = 0.95, else_: float = 0.03, against: float = 0.03) -> Draw:
    """Exact match of 64 answers: a's by runs that find a rule with this chance, b's by runs that are all alike; more is better."""

    def draw(studies: int) -> tuple[np.ndarray, np.ndarray]:
        right = np.where(rng.random((studies, CAP)) < chance, found, else_)
        return -rng.binomial(64, right) / 64, -rng.binomial(64, against, (studies, CAP)) / 64

    return draw


def rare_rules(margin: float = 0.1) -> None:
    """What was not seen is not so rare: a rule that some runs find, in shares, against a margin of a tenth."""
    print(
        "\n| a finds a rule, b never | a - b in truth | a tie, or b wins, by spread alone | by the rule of shares |\n|---|---|---|---|"
    )
    for chance in (0.15, 0.2, 0.3):
        draw = rarely(chance)
        shares = [np.isin(studied(draw, margin, largest=of)[0], ("b", "tie")).mean() for of in (None, 1.0)]
        print(f"| {chance:.0%} | {chance * 0.92:+.3f} | {shares[0]:.1%} | {shares[1]:.1%} |", flush=True)
    print(
        "\n| a is sure of 30%, b finds the rule | a - b in truth | a wins, by spread alone | by the rule of shares |\n|---|---|---|---|"
    )
    for chance in (0.2, 0.25, 0.35, 0.5):
        draw = rarely(chance, against=0.3)
        shares = [(studied(draw, margin, largest=of)[0] == "b").mean() for of in (None, 1.0)]
        print(f"| {chance:.0%} | {0.27 - chance * 0.92:+.3f} | {shares[0]:.1%} | {shares[1]:.1%} |", flush=True)


# ---------------------------------------------------------------- what is looked at


def column(file: str, name: str) -> np.ndarray:
    with (HERE / file).open() as lines:
        return np.array([float(row[name]) for row in csv.DictReader(lines)])


def answers(share_a: float = 0.5, share_b: float = 0.5) -> Draw:
    """Exact match of 64 answers, by runs that have found the rule (0.95 right) or have not (0.10); shares of those that have."""

    def draw(studies: int) -> tuple[np.ndarray, np.ndarray]:
        found = rng.random((2, studies, CAP)) < np.array([share_a, share_b])[:, None, None]
        a, b = -rng.binomial(64, np.where(found, 0.95, 0.10)) / 64  # more is better
        return a, b

    return draw


def skewed(studies: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal, as a maximum over a run is (deviation of the logarithm 0.5)."""
    a, b = rng.lognormal(0.0, 0.5, (2, studies, CAP))
    return a, b


def heavy(studies: int) -> tuple[np.ndarray, np.ndarray]:
    """Student's t with three degrees of freedom."""
    a, b = rng.standard_t(3, (2, studies, CAP))
    return a, b


RATES = np.array([1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2])
UNIGRAM = 3.04


def swept(reduce: Callable[[list[float]], float], seeds: int = 4_000) -> Draw:
    """A statistic of sweeps of six rates: a valley of losses, noise of 0.02, and a cliff whose place scatters over seeds."""
    x = np.log2(RATES / 4e-3)
    losses = 2.45 + 0.03 * x**2 + rng.normal(0.0, 0.02, (seeds, len(x)))
    cliff = 2.2 + rng.normal(0.0, 0.6, (seeds, 1))
    losses = np.where(x > cliff, np.inf, losses)
    values = np.array([reduce(row.tolist()) for row in losses])

    def draw(studies: int) -> tuple[np.ndarray, np.ndarray]:
        a, b = rng.choice(values, (2, studies, CAP))
        return a, b

    return draw


REDUCED: dict[str, Callable[[list[float]], float]] = {
    "best loss": min,
    "sensitivity": lambda losses: sensitivity(losses, UNIGRAM, UNIGRAM),
    "log10 of the stable rate": lambda losses: float(np.log10(stable_up_to(RATES.tolist(), losses, UNIGRAM))),
    "the same among the rates swept": lambda losses: float(np.log10(max(r for r, loss in zip(RATES, losses, strict=True) if loss < 2.8))),
}  # fmt: skip


def main() -> None:
    losses, ratios = column("results.csv", "val_loss"), column("lengths.csv", "late_ratio")
    sd = float(losses.std(ddof=1))
    print(f"{len(losses)} runs: val_loss {losses.mean():.4f}, deviation {sd:.4f}; {len(ratios)}: late_ratio@4 {ratios.mean():.4f}, deviation {ratios.std(ddof=1):.4f}\n")  # fmt: skip

    print("| arms that are alike | a winner is named | 95% bound |\n|---|---|---|")
    for name, draw, margin, *largest in (
        ("normal, margin 0", normal(), 0.0),
        ("normal, margin half a deviation", normal(), 0.5),
        ("val_loss of runs, margin 0", of_runs(losses), 0.0),
        ("val_loss of runs, margin 0.01", of_runs(losses), 0.01),
        ("late_ratio@4 of runs, margin 0", of_runs(ratios), 0.0),
        ("exact_match, two kinds of runs, margin 0", answers(), 0.0, 1.0),
        ("skewed, margin 0", skewed, 0.0),
        ("heavy tails, margin 0", heavy, 0.0),
        *((f"{name} of sweeps, margin 0", swept(reduce), 0.0) for name, reduce in REDUCED.items()),
        *((f"normal, both fail {rate:.0%}, margin 0", normal(fails=(rate, rate)), 0.0) for rate in (0.1, 0.3, 0.5, 0.8)),
    ):  # fmt: skip
        false_verdicts(name, draw, margin, *largest)

    print("\n| one better by exactly the margin | it wins, or they tie | 95% bound |\n|---|---|---|")
    at_the_margin("normal, margin one deviation", planted(normal(), 1.0), 1.0)
    at_the_margin("val_loss of runs, margin 0.02", planted(of_runs(losses), 0.02 / sd), 0.02)

    heads = " | ".join(map(str, LOOKS))
    print(f"\n| found by n pairs | effect | {heads} | pairs |\n|---|---|{'---|' * len(LOOKS)}---|")
    for name, draw, margin in (
        ("normal, margin 0", normal(), 0.0),
        ("val_loss of runs, margin 0", of_runs(losses), 0.0),
        ("val_loss of runs, margin 0.01", of_runs(losses), 0.01),
        ("late_ratio@4 of runs, margin 0", of_runs(ratios), 0.0),
        ("skewed, margin 0", skewed, 0.0),
        *((f"{name} of sweeps, margin 0", swept(reduce), 0.0) for name, reduce in REDUCED.items()),
    ):
        power(name, {f"{effect:g} sd": planted(draw, effect) for effect in (1.0, 2.0, 3.0)}, margin)
    power(
        "exact_match, rule found by",
        {f"{share:.0%}, 50%": answers(share) for share in (0.8, 0.95, 1.0)},
        0.0,
        largest=1.0,
    )
    power(
        "exact_match, a rule found by",
        {f"{share:.0%}, none": answers(share, 0.0) for share in (0.5, 0.8, 1.0)},
        0.1,
        largest=1.0,
    )
    power("a tie, margin 1 to 3 sd", {f"0 sd, {s:g}": normal(1 / s) for s in (1.0, 2.0, 3.0)}, 1.0, "tie")

    print(f"\n| one arm fails, losses alike, margin 2 sd | | {heads} | pairs |\n|---|---|{'---|' * len(LOOKS)}---|")
    for rate in (0.1, 0.3, 0.5, 1.0):
        for wanted, says in (("b", "loses"), ("tie", "ties (wrong)"), ("a", "wins (wrong)")):
            power(f"fails {rate:.0%}", {says: normal(fails=(rate, 0.0))}, 2.0, wanted)

    print("\n| scale g | alike | 1 sd | 2 sd | 3 sd |\n|---|---|---|---|---|")
    scales()
    print(
        f"\nA paired t interval at 5%, looked at as often, names a winner in {by_t(LOOKS):.1%} of arms that are alike."
    )
    share, bound = sweeps_of_five(8)
    print(
        f"Five alike arms at 8 seeds, four comparisons, e-BH: any winner in {share:.2%} of 2,000 sweeps (bound {bound:.2%})."
    )
    rare_rules()

    said = "verdict | e of 100 | pairs"
    print(f"\n| effect | {said} | {said} | verdict gone |\n|---|---|---|---|---|---|---|---|")
    going_on(100.0)


if __name__ == "__main__":
    main()
