"""How often `archlab.comparison.paired` names a winner where there is none, and how often it finds one that is there.

    python experiments/aa/bench.py

Simulated: arms of independent normal noise, the worst case for a paired test, since pairing then gains nothing.
Real: both arms' values are drawn without replacement from the losses of results.csv, one configuration at 80 seeds, so
that an arm meets itself. A planted effect lowers one arm's losses by three times the standard deviation over seeds.
"""

import csv
from functools import partial
from pathlib import Path

import numpy as np

from archlab.comparison.comparison import holm
from archlab.comparison.paired import paired

REPETITIONS = 2_000
PLANTED = 3.0
"""Noise deviations."""

SMALLEST = 0.01
"""The default smallest effect of interest for losses, nats per token."""

rng = np.random.default_rng(0)


def simulated(n_seeds: int, effect: float, sd: float) -> tuple[np.ndarray, np.ndarray]:
    a, b = rng.normal(2.5, sd, (2, n_seeds))
    return a - effect * sd, b


def resampled(losses: np.ndarray, n_seeds: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    drawn = rng.choice(losses, 2 * n_seeds, replace=False)
    return drawn[:n_seeds] - effect * losses.std(ddof=1), drawn[n_seeds:]


def named(draw, smallest_effect: float, wanted: tuple[str, ...], repetitions: int = REPETITIONS) -> float:
    """Share of the repetitions with one of the wanted verdicts."""
    verdicts = (
        paired(list(a), list(b), smallest_effect=smallest_effect).verdict
        for a, b in (draw() for _ in range(repetitions))
    )
    return sum(verdict in wanted for verdict in verdicts) / repetitions


def any_named(n_seeds: int, n_arms: int, sd: float, repetitions: int = REPETITIONS) -> float:
    """Share of sweeps of identical arms in which Holm's procedure names a winner against the baseline at all."""
    hits = 0
    for _ in range(repetitions):
        base, *others = rng.normal(2.5, sd, (n_arms, n_seeds))
        p = [paired(list(other), list(base)).p for other in others]
        levels = [level for level, _ in holm(p, 0.05)]
        hits += any(p_value <= level for p_value, level in zip(p, levels, strict=True))
    return hits / repetitions


def main() -> None:
    rows = list(csv.DictReader((Path(__file__).parent / "results.csv").open()))
    losses = np.array([float(row["val_loss"]) for row in rows])
    sd = losses.std(ddof=1)
    print(f"{len(losses)} real runs: mean {losses.mean():.4f}, noise deviation {sd:.4f} nats per token\n")
    print("| data | seeds | smallest effect | A/A: a winner is named | planted effect found |\n|---|---|---|---|---|")
    for n_seeds, smallest in ((3, SMALLEST), (5, SMALLEST), (6, SMALLEST), (6, 0.0)):
        for name, draw in (
            ("simulated", lambda effect, n=n_seeds: simulated(n, effect, sd)),
            ("real", lambda effect, n=n_seeds: resampled(losses, n, effect)),
        ):
            false = named(partial(draw, 0.0), smallest, ("a", "b"))
            found = named(partial(draw, PLANTED), smallest, ("a",))
            print(f"| {name} | {n_seeds} | {smallest:g} | {false:.2%} | {found:.1%} |", flush=True)
    share = any_named(6, 5, sd, 1000)
    print(
        f"\nFive identical simulated arms at 6 seeds, Holm over 4 comparisons: any winner named in {share:.1%} of 1,000 sweeps"
    )


if __name__ == "__main__":
    main()
