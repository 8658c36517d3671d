"""A learning rate of its own for every arm, found by the same small sweep, so that no arm is judged at another's best.

The sweep runs on a seed that no comparison uses; it scores on the same held-out tokens as the runs themselves, which
favours every arm alike. Its outcome is kept beside the runs, so that an arm's seeds share one sweep.
"""

import hashlib
import io
import json
import math
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from archlab.base.configuration import plain_dict
from archlab.base.files import write_text
from archlab.base.signals import Stop, Stopped
from archlab.config.assemble import build
from archlab.config.plan import Plan, layer_plans
from archlab.data.batch import Source
from archlab.evaluate.validation import held_out
from archlab.model.decoder import Decoder
from archlab.runs.assembled import machine_of, open_source, settings_of
from archlab.runs.beside import side_by_side
from archlab.runs.expected import seconds_of_a_run
from archlab.runs.packs import PackSize, packs_of
from archlab.runs.workers import default_workers, worth_their_start
from archlab.train.loop import train
from archlab.train.pack import Member, train_together
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
    file = kept_in(cfg)
    if file.is_file():
        return json.loads(file.read_text())
    return keep(file, {rate: loss_at(rate, cfg, source, where) for rate in rates})


def keep(file: Path, losses: Mapping[float, float]) -> dict[str, object]:
    """Writes down what the rates came to, and returns it."""
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


def kept_in(cfg: DictConfig) -> Path:
    return Path(cfg.output) / ".tuned" / f"{key(cfg)}.json"


def key(cfg: DictConfig) -> str:
    """The same for all seeds of an arm, and for no two arms."""
    plain = plain_dict(cfg)
    settled = {"precision": settled_precision(cfg.device, cfg.precision)}
    arm = {name: value for name, value in plain.items() if name not in APART} | settled
    return hashlib.sha256(json.dumps(arm, sort_keys=True).encode()).hexdigest()[:16]


def loss_at(rate: float, cfg: DictConfig, source: Source, where: Runtime) -> float:
    trial, stop = Trial(cfg, rate).member(source, where), Stop()
    outcome = train(
        trial.decoder, source, trial.settings, where, seed=SEED, validate=trial.validate, report=ignore, tick=ignore,
        stop=stop,
    )  # fmt: skip
    if outcome.interrupted:
        raise Stopped(stop.asked or signal.SIGINT)
    return finite(math.inf if outcome.status == "diverged" else trial.validate())


def finite(loss: float | None) -> float:
    assert loss is not None
    return loss if math.isfinite(loss) else math.inf


def ignore(*seen: object) -> None:
    pass


# ---------------------------------------------------------------- several at a time


@dataclass(frozen=True)
class Trial:
    """A short run of one arm at one rate."""

    cfg: DictConfig
    rate: float

    @property
    def plan(self) -> Plan:
        """What the trial is, as a run."""
        cfg = self.cfg.copy()
        cfg.train.lr, cfg.seed, cfg.probe.every = self.rate, SEED, None
        return Plan((), cfg, tuple(layer_plans(cfg)))

    def member(self, source: Source, where: Runtime) -> Member:
        cfg = self.plan.cfg
        settings = settings_of(cfg)
        decoder = build(cfg).to(where.device)
        if settings.checkpoint:
            decoder.recompute_activations()
        validate = partial(validated, decoder, source, where, settings.train_len, cfg.eval.tokens)
        return Member(decoder, source, settings, SEED, validate=validate, report=ignore)


def validated(decoder: Decoder, source: Source, where: Runtime, train_len: int, tokens: int) -> float | None:
    return held_out(decoder, source, where, train_len, tokens).loss()


def find_rates(
    cfgs: Sequence[DictConfig], workers: int | None = None, pack: PackSize = "auto", show: bool = False
) -> None:
    """Finds the rate of every arm among configurations with `tune`, several trials at a time where that is faster.

    Where it is not, and for an arm whose trial failed, nothing is done here: its first run finds the rate by itself, or
    fails as the trial did. `workers` and `pack` are those of `archlab.runs.sweep.carry_out`; the rates of an arm make
    a pack. Raises UserError where a pack is asked for that can't be made.
    """
    arms = {file: cfg for cfg in cfgs if cfg.tune and not (file := kept_in(cfg)).is_file()}
    trials = [Trial(cfg, rate) for cfg in arms.values() for rate in rates(cfg)]
    if not trials:
        return
    packs = packs_of([trial.plan for trial in trials], pack)
    seconds = [sum(seconds_of_a_run(trials[number].cfg) for number in places) for places in packs]
    workers = min(workers or worthwhile(seconds), len(packs))
    if workers < 2 and len(packs) == len(trials):
        return
    if show:
        print(f"tune=lr: {len(trials)} trials, {workers} at a time" + told(packs), flush=True)
    losses: dict[Path, dict[float, float]] = {file: {} for file in arms}
    jobs = {number: partial(losses_of, [trials[i] for i in places]) for number, places in enumerate(packs)}
    if workers > 1:
        with closing(side_by_side(jobs, workers, lambda number: "a trial of tune=lr")) as ended:
            results = ((number, result) for number, result, _ in ended)
            note(results, packs, trials, losses)
    else:
        note(jobs.items(), packs, trials, losses)
    for file, found in losses.items():
        if len(found) == len(MULTIPLES):
            keep(file, {rate: found[rate] for rate in rates(arms[file])})


def worthwhile(seconds: Sequence[float]) -> int:
    workers = default_workers()
    return workers if worth_their_start(seconds, workers) else 1


def told(packs: Sequence[Sequence[int]]) -> str:
    most = max(map(len, packs))
    return f", up to {most} of them as one pack" if most > 1 else ""


def note(results: Iterable, packs: Sequence[Sequence[int]], trials: Sequence[Trial], losses: dict) -> None:
    """Notes what trials came to; those of an arm that failed are left out, since its run will say why."""
    for number, result in results:
        with suppress(Exception):  # whatever it is: the run tries again, and is what the error is about
            for i, loss in zip(packs[number], result(), strict=True):
                losses[kept_in(trials[i].cfg)][trials[i].rate] = loss


def losses_of(trials: Sequence[Trial]) -> list[float]:
    """The losses of trials of one program, trained as a pack where they are several."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        first = trials[0].cfg
        where, source = machine_of(first), open_source(first)
        if len(trials) == 1:
            return [loss_at(trials[0].rate, first, source, where)]
        members, stop = [trial.member(source, where) for trial in trials], Stop()
        outcomes = train_together(members, where, tick=ignore, stop=stop)
        if stop.asked is not None:
            raise Stopped(stop.asked)
        for member in members:
            if member.error is not None:
                raise member.error
        return [
            math.inf if outcome.status == "diverged" else finite(member.validate())
            for member, outcome in zip(members, outcomes, strict=True)
        ]
