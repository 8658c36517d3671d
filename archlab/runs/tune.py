"""A learning rate of its own for every arm, found by the same small sweep, so that no arm is judged at another's best.

The sweep runs on a seed that no comparison uses; it scores on the same held-out tokens as the runs themselves, which
favours every arm alike. Its outcome is kept beside the runs, so that an arm's seeds share one sweep.
"""

import hashlib
import json
import math
import signal
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from archlab.base.configuration import plain_dict
from archlab.base.files import write_text
from archlab.base.signals import Stop, Stopped
from archlab.config.assemble import build
from archlab.data.batch import Source
from archlab.evaluate.validation import held_out
from archlab.runs.assembled import settings_of
from archlab.train.loop import train
from archlab.train.runtime import Runtime, settled_precision

MULTIPLES = (1 / 3, 1, 3)
"""Of train.lr."""

SEED = 2**31
"""Of the sweep's weights and data."""

APART = ("seed", "output", "device")
"""What does not make another arm; what `device` decides is the precision."""


def tuned_rate(cfg: DictConfig, source: Source, where: Runtime, rates: Iterable[float]) -> dict[str, object]:
    """The rate with the lowest held-out loss, and the loss at each, nats per token; None where it diverged.

    `edge` says that the best is the smallest or largest that was tried, so that a better one may lie beyond.
    """
    file = Path(cfg.output) / ".tuned" / f"{key(cfg)}.json"
    if file.is_file():
        return json.loads(file.read_text())
    losses = {rate: loss_at(rate, cfg, source, where) for rate in rates}
    best = min(losses, key=lambda rate: losses[rate])
    found = {
        "lr": best,
        "edge": best in (min(losses), max(losses)),
        "losses": [[rate, loss if math.isfinite(loss) else None] for rate, loss in losses.items()],
        "seed": SEED,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(found))
    return found


def rates(cfg: DictConfig) -> list[float]:
    return [float(f"{multiple * cfg.train.lr:.3g}") for multiple in MULTIPLES]


def key(cfg: DictConfig) -> str:
    """The same for all seeds of an arm, and for no two arms."""
    plain = plain_dict(cfg)
    settled = {"precision": settled_precision(cfg.device, cfg.precision)}
    arm = {name: value for name, value in plain.items() if name not in APART} | settled
    return hashlib.sha256(json.dumps(arm, sort_keys=True).encode()).hexdigest()[:16]


def loss_at(rate: float, cfg: DictConfig, source: Source, where: Runtime) -> float:
    trial = cfg.copy()
    trial.train.lr, trial.seed = rate, SEED
    settings = settings_of(trial)
    decoder = build(trial).to(where.device)
    if settings.checkpoint:
        decoder.recompute_activations()

    def validate() -> float:
        loss = held_out(decoder, source, where, settings.train_len, cfg.eval.tokens).loss()
        assert loss is not None
        return loss

    stop = Stop()
    outcome = train(
        decoder, source, settings, where, seed=SEED, validate=validate, report=ignore, tick=ignore, stop=stop
    )
    if outcome.interrupted:
        raise Stopped(stop.asked or signal.SIGINT)
    loss = math.inf if outcome.status == "diverged" else validate()
    return loss if math.isfinite(loss) else math.inf


def ignore(*seen: object) -> None:
    pass
