"""A learning rate of its own for every arm, so that no arm is judged at another's best.

Rates are factors of two apart. They are tried around train.lr, and beyond the best so far, until the best has a worse
neighbour on both sides: a grid with its best at the edge says nothing of what lies beyond. A trial is a whole run at
one rate and one of the tuning seeds, scored on the part of the held-out data that nothing else is scored on
(`Source.tuning`). Arms that are tuned together try the same rates, so that none has more trials than another.

With a second axis (`archlab.config.tuning`) an arm is searched at each of its values as if that were an arm of its own: all of
them try the same rates, which fills a rectangle, and the best of all is taken.

Seeds from 1000 on are for tuning and development. What was found is kept beside the runs, every trial of it as soon as it
ended, so that an arm's seeds share one search and an interrupted one goes on. Of a search itself whole rounds are kept: what it
tries next follows from all rates of the last round, so that an interrupted one tries what it would have tried.

Source: why each arm needs its own, arXiv:2103.03098, sec. 2.1; a grid of factor two, arXiv:2509.02046; the best of k trials,
arXiv:1909.03004.
"""

import hashlib
import io
import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from archlab.base.configuration import copied, plain_dict
from archlab.base.errors import UserError
from archlab.base.files import no_room, write_text
from archlab.base.plain import Unreadable, read_json
from archlab.base.signals import Stop, Stopped
from archlab.config.assemble import build
from archlab.config.plan import Plan, layer_plans
from archlab.config.tuning import SecondAxis, second_axis
from archlab.evaluate.length import held_out_tokens
from archlab.evaluate.settings import EvalSettings
from archlab.evaluate.validation import held_out
from archlab.runs.assembled import machine_of, open_source, section, settings_of
from archlab.runs.beside import side_by_side
from archlab.runs.code import code_of
from archlab.runs.corpus import own_corpus
from archlab.runs.expected import seconds_of_a_run
from archlab.runs.packs import PackSize, packs_of
from archlab.runs.workers import default_workers, worth_their_start
from archlab.train.clock import elapsed
from archlab.train.loop import train
from archlab.train.pack import Member, train_together
from archlab.train.runtime import settled_precision

FACTOR = 2.0
"""Between neighbouring rates."""

FARTHEST = 8
"""Places of the grid on either side of train.lr, 256 times as much or as little; beyond, the search gives up."""

DEVELOPMENT = 1000
"""Seeds from here on are never part of a verdict."""

SEEDS = (DEVELOPMENT, DEVELOPMENT + 1)
"""Of the trials of each rate."""

APART = ("seed", "data_seed", "output", "device")
"""What does not make another arm; what `device` decides is the precision."""

Cells = Mapping[int, Sequence[float]]
"""By place in the grid, the loss of each trial, nats per token; infinite where it diverged."""


# ---------------------------------------------------------------- the search


def rate_at(place: int, middle: float) -> float:
    """The rate at a place of the grid, 0 being its middle, to three digits."""
    return float(f"{middle * FACTOR**place:.3g}")


def best_place(cells: Cells) -> int:
    """The place of the lowest mean loss; of several, the lowest rate."""
    return min(sorted(cells), key=lambda place: mean_loss(cells[place]))


def mean_loss(losses: Sequence[float]) -> float:
    """Infinite where a trial diverged: a rate that fails at one seed of two is no rate to use."""
    return math.fsum(losses) / len(losses)


def places_to_try(arms: Sequence[Cells]) -> list[int]:
    """What the search needs next, of arms tuned together; nothing where each arm's best has a worse neighbour on both sides.

    Raises nothing where a search runs off the grid: it ends at its last place, and `edge` of what `found` returns says so.
    """
    wanted = {place for cells in arms for place in around_the_best(cells)}
    tried_by_any = {place for cells in arms for place in cells} | wanted
    return sorted(place for place in tried_by_any if any(place not in cells for cells in arms))


def around_the_best(cells: Cells) -> list[int]:
    if not cells:
        return [-1, 0, 1]
    best = best_place(cells)
    wanted = [place for place in (best - 1, best, best + 1) if abs(place) <= FARTHEST]
    if not math.isfinite(mean_loss(cells[best])):  # all diverged: only lower rates can do better
        wanted = [max(min(cells) - 1, -FARTHEST)]
    return [place for place in wanted if place not in cells]


def at_edge(cells: Cells) -> bool:
    """Whether the best is the first or last that was tried, so that a better one may lie beyond."""
    return best_place(cells) in (min(cells), max(cells))


def found(cells: Cells, middle: float) -> dict[str, Any]:
    """The record of a search: the rate, whether it lies at the edge, and every trial; None where one diverged."""
    return {
        "lr": rate_at(best_place(cells), middle),
        "edge": at_edge(cells),
        "rates": [[rate_at(place, middle), [finite_or_none(loss) for loss in cells[place]]] for place in sorted(cells)],
        "seeds": list(SEEDS),
        "expected_best": expected_best(list(map(mean_loss, cells.values()))),
    }


def best_line(lines: Sequence[Cells]) -> int:
    """Of the values of a second axis, the place of the one whose best rate has the lowest mean loss; of several, the first."""
    return min(range(len(lines)), key=lambda i: mean_loss(lines[i][best_place(lines[i])]))


def found_beside(lines: Sequence[Cells], middle: float, axis: SecondAxis | None) -> dict[str, Any]:
    """The record of a search with its second axis, if it has one: `found` of the value that was taken, and every cell.

    `second` holds the field, the value, whether that is the lowest or highest that was tried, and the trials at each value.
    """
    if axis is None:
        return found(lines[0], middle)
    taken = best_line(lines)
    value = axis.values[taken]
    losses = [mean_loss(of) for cells in lines for of in cells.values()]
    return found(lines[taken], middle) | {
        "expected_best": expected_best(losses),
        "second": {
            "field": axis.field,
            "value": value,
            "edge": value in (min(axis.values), max(axis.values)),
            "rates": [[one, found(cells, middle)["rates"]] for one, cells in zip(axis.values, lines, strict=True)],
        },
    }


def expected_best(losses: Sequence[float]) -> list[list[float]]:
    """By number of trials k, 1, 2, 4 and so on up to all n: the lowest loss that k of these cells come to on average.

    The cells are drawn with replacement: with l_1 <= ... <= l_n, the sum of l_i (((n-i+1)/n)^k - ((n-i)/n)^k). A cell that
    diverged counts as the worst that did not; nothing where all did.

    Source: the expected validation performance of arXiv:1909.03004 (expected_max_performance.py of the authors'
    show_your_work), with the lowest in place of the highest; for few cells it is biased towards the worse, arXiv:2004.13705.
    """
    there = [loss for loss in losses if math.isfinite(loss)]
    if not there:
        return []
    n, ranked = len(losses), sorted(min(loss, max(there)) for loss in losses)
    ks = [*(2**i for i in range(n.bit_length()) if 2**i < n), n]
    return [
        [k, math.fsum(loss * (((n - i) / n) ** k - ((n - i - 1) / n) ** k) for i, loss in enumerate(ranked))]
        for k in ks
    ]


def finite_or_none(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


# ---------------------------------------------------------------- what is kept of it


def kept_in(cfg: DictConfig) -> Path:
    return Path(cfg.output) / ".tuned" / f"{key(cfg)}.json"


def key(cfg: DictConfig) -> str:
    """The same for all seeds of an arm, and for no two arms, nor for two corpora, two versions of the code or of torch."""
    plain = plain_dict(cfg)
    settled = {"precision": settled_precision(cfg.device, cfg.precision)}
    arm = {name: value for name, value in plain.items() if name not in APART} | settled | own_corpus(cfg)
    return hashlib.sha256(json.dumps([code_of(plain), arm], sort_keys=True).encode()).hexdigest()[:16]


def kept(cfg: DictConfig) -> dict[int, list[float]]:
    """The trials of an arm that were made before; none where the file is not there, or is no such record."""
    try:
        record = read_json(kept_in(cfg))
        by_rate = {
            rate: [math.inf if loss is None else float(loss) for loss in losses] for rate, losses in record["rates"]
        }
    except (Unreadable, FileNotFoundError, KeyError, TypeError, ValueError):
        return {}
    places = {rate_at(place, cfg.train.lr): place for place in range(-FARTHEST, FARTHEST + 1)}
    return {places[rate]: losses for rate, losses in by_rate.items() if rate in places and len(losses) == len(SEEDS)}


def keep(cfg: DictConfig, cells: Cells) -> None:
    """Raises UserError where it cannot be written."""
    with searchable(kept_in(cfg)):
        write_text(kept_in(cfg), json.dumps(found(cells, cfg.train.lr)))


@contextmanager
def searchable(file: Path) -> Iterator[None]:
    """Makes the folder of a file in which a search keeps something. Raises UserError where it cannot, here or inside."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise no_room(error, file.parent) or UserError(
            f"{file.parent}: nothing that tune finds can be kept there: {error.strerror}; give another output=FOLDER"
        ) from None


# ---------------------------------------------------------------- trials


@dataclass(frozen=True)
class Trial:
    """A run of one arm at one rate and one tuning seed."""

    arm: DictConfig
    place: int
    seed: int

    @property
    def cfg(self) -> DictConfig:
        """What the trial is, as a run."""
        cfg = copied(self.arm)
        for name, value in self.changes:
            OmegaConf.update(cfg, name, value)
        return cfg

    @property
    def changes(self) -> tuple[tuple[str, Any], ...]:
        """What is otherwise than in the arm, by field. A tuning seed is that of the data too."""
        seeds = (("seed", self.seed), ("data_seed", None))
        return (("train.lr", self.rate), *seeds, ("probe.every", None), ("eval.part", "tuning"))

    @property
    def rate(self) -> float:
        return rate_at(self.place, self.arm.train.lr)

    @property
    def plan(self) -> Plan:
        cfg = self.cfg
        return Plan((), cfg, tuple(layer_plans(cfg)))

    def member(self) -> Member:
        cfg = self.cfg
        where, source, settings = machine_of(cfg), open_source(cfg), settings_of(cfg)
        decoder = build(cfg).to(where.device)
        if settings.checkpoint:
            decoder.recompute_activations()

        def validate() -> float | None:
            return held_out(decoder, source, where, settings.train_len, cfg.eval.tokens).loss()

        return Member(decoder, source, settings, self.seed, validate=validate, report=ignore)


def loss_of(trial: Trial) -> float:
    """Nats per token of the tuning part; infinite where the trial diverged."""
    member, stop = trial.member(), Stop()
    outcome = train(
        member.decoder, member.source, member.settings, machine_of(trial.cfg), seed=trial.seed, validate=member.validate,
        report=ignore, tick=ignore, stop=stop,
    )  # fmt: skip
    if outcome.interrupted:
        raise Stopped(stop.asked or signal.SIGINT)
    return math.inf if outcome.status == "diverged" else finite(member.validate())


def losses_of(trials: Sequence[Trial]) -> list[float]:
    """The losses of trials of one program, trained as a pack where they are several."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        if len(trials) == 1:
            return [loss_of(trials[0])]
        members, stop = [trial.member() for trial in trials], Stop()
        outcomes = train_together(members, machine_of(trials[0].cfg), tick=ignore, stop=stop)
        if stop.asked is not None:
            raise Stopped(stop.asked)
        for member in members:
            if member.error is not None:
                raise member.error
        return [
            math.inf if outcome.status == "diverged" else finite(member.validate())
            for member, outcome in zip(members, outcomes, strict=True)
        ]


def finite(loss: float | None) -> float:
    assert loss is not None
    return loss if math.isfinite(loss) else math.inf


def ignore(*seen: object) -> None:
    pass


# ---------------------------------------------------------------- trials that are kept


def loss_kept_in(trial: Trial) -> Path:
    arm = kept_in(trial.arm)
    return arm.parent / "trials" / f"{arm.stem}.{trial.place}.{trial.seed}.json"


def loss_kept(trial: Trial) -> float | None:
    """What a trial came to that was made before; None where there is none, or it cannot be read."""
    try:
        loss = read_json(loss_kept_in(trial))["loss"]
        return math.inf if loss is None else float(loss)
    except (Unreadable, FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def keep_loss(trial: Trial, loss: float) -> None:
    """Raises UserError where it cannot be written."""
    with searchable(loss_kept_in(trial)):
        write_text(loss_kept_in(trial), json.dumps({"loss": finite_or_none(loss)}))


def made(trial: Trial) -> float:
    """What a trial comes to; one that was made before is not made again."""
    loss = loss_kept(trial)
    if loss is None:
        loss = losses_of([trial])[0]
        keep_loss(trial, loss)
    return loss


# ---------------------------------------------------------------- searches


def lines_of(cfg: DictConfig) -> list[DictConfig]:
    """What is searched of an arm: itself, or the arm at each value of its second axis, with a record of its own."""
    axis = second_axis(cfg.tune)
    return [cfg] if axis is None else [axis.at(cfg, value) for value in axis.values]


def tuned_rate(cfg: DictConfig, tick: Callable[[Trial], None] = ignore) -> dict[str, Any]:
    """The record of an arm's search, which is made here as far as it was not; `tick` is told of each trial that ended."""
    check_parts_apart(cfg)
    lines = lines_of(cfg)
    cells = [kept(line) for line in lines]
    while places := places_to_try(cells):
        for line, tried in zip(lines, cells, strict=True):
            for place in (place for place in places if place not in tried):
                tried[place] = []
                for trial in [Trial(line, place, seed) for seed in SEEDS]:
                    tried[place].append(made(trial))
                    tick(trial)
        for line, tried in zip(lines, cells, strict=True):
            keep(line, tried)
    return found_beside(cells, cfg.train.lr, second_axis(cfg.tune))


def as_found(cfg: DictConfig, tuned: Mapping[str, Any] | None) -> DictConfig:
    """The configuration with what was found of its second axis; the same where it has none."""
    axis, second = second_axis(cfg.tune), (tuned or {}).get("second")
    return axis.at(cfg, second["value"]) if axis and second else cfg


def find_rates(
    cfgs: Sequence[DictConfig], workers: int | None = None, pack: PackSize = "auto", show: bool = False
) -> float:
    """Finds the rate of every arm among configurations with `tune`, several trials at a time where that is faster.

    Returns the seconds that it took, which belong to no single run.

    The arms try the same places of the grid. An arm whose trial failed is left alone: its first run fails as the trial
    did. `workers` and `pack` are those of `archlab.runs.sweep.carry_out`; trials of one program make a pack.
    Raises UserError where a pack is asked for that can't be made, or a run has a seed, or would be scored on text, by which its
    own rate is chosen.
    """
    since = time.time()
    for cfg in cfgs:
        if cfg.tune and cfg.seed in SEEDS:
            raise UserError(
                f"seed={cfg.seed}: tune chooses the rate at seeds {' and '.join(map(str, SEEDS))}, so that a run at one of them"
                " would be among the trials that it was chosen by; use another seed, such as 0"
            )
    for cfg in {repr((cfg.data, cfg.eval, cfg.train.train_len)): cfg for cfg in cfgs if cfg.tune}.values():
        check_parts_apart(cfg)
    arms = {kept_in(line): line for cfg in cfgs if cfg.tune for line in lines_of(cfg)}
    for file in arms:
        with searchable(file):
            pass
    cells = {file: kept(cfg) for file, cfg in arms.items()}
    if show:
        for told in dict.fromkeys(budget_of(axis) for cfg in cfgs if (axis := second_axis(cfg.tune))):
            print(told, flush=True)
    while arms and (places := places_to_try([cells[file] for file in arms])):
        missing = [(file, place) for file in arms for place in places if place not in cells[file]]
        trials = [Trial(arms[file], place, seed) for file, place in missing for seed in SEEDS]
        losses: dict[tuple[Path, int], dict[int, float]] = {}
        for trial, loss in outcomes(trials, workers, pack, show):
            losses.setdefault((kept_in(trial.arm), trial.place), {})[trial.seed] = loss
        for file, place in missing:
            of = losses.get((file, place), {})
            if len(of) == len(SEEDS):
                cells[file][place] = [of[seed] for seed in SEEDS]
            else:
                arms.pop(file, None)
        for file, cfg in arms.items():
            keep(cfg, cells[file])
    return elapsed(since)


def check_parts_apart(cfg: DictConfig, where: str = "") -> None:
    """Raises UserError, which begins with `where`, where a run would be scored on held-out text that its own rate is chosen by."""
    source, settings = open_source(cfg), section(cfg, "eval", EvalSettings)
    apart, scored = source.n_before_tuning, max(settings.tokens, held_out_tokens(settings, cfg.train.train_len))
    if settings.part == "tuning" or apart is None or scored <= apart:
        return
    longest = cfg.train.train_len * max(settings.lengths)
    raise UserError(
        f"{where}tune: the rate is chosen by the last quarter of what data={source.name} holds out, and a run would be scored on {scored}"
        f" tokens, of which {apart} stand before it; use at most eval.tokens={apart}"
        + (f" and eval.lengths of at most {apart // cfg.train.train_len}" if longest > apart else "")
        + ", or hold out more"
    )


def budget_of(axis: SecondAxis) -> str:
    """How many trials an arm has at least, in words."""
    n = len(axis.values)
    return (
        f"tune: the rate is searched at {n} values of {axis.field} ({', '.join(f'{value:g}' for value in axis.values)}): at"
        f" least {3 * n * len(SEEDS)} trials for each arm, and {n * len(SEEDS)} more for each rate beyond the first three"
    )


def outcomes(trials: Sequence[Trial], workers: int | None, pack: PackSize, show: bool) -> Iterator[tuple[Trial, float]]:
    """Each trial that came to a loss, with it, those first that were made before; each of the others is kept when it ends."""
    left = []
    for trial in trials:
        if (loss := loss_kept(trial)) is None:
            left.append(trial)
        else:
            yield trial, loss
    for trial, loss in carried_out(left, workers, pack, show) if left else ():
        keep_loss(trial, loss)
        yield trial, loss


def carried_out(
    trials: Sequence[Trial], workers: int | None, pack: PackSize, show: bool
) -> Iterator[tuple[Trial, float]]:
    """Each trial that came to a loss, with it."""
    packs = packs_of([trial.plan for trial in trials], pack)
    seconds = [sum(seconds_of_a_run(trials[number].cfg) for number in places) for places in packs]
    workers = min(workers or worthwhile(seconds), len(packs))
    if show:
        rates = sorted({trial.rate for trial in trials})
        print(f"tune=lr: {len(trials)} trials at {', '.join(f'{rate:g}' for rate in rates)}, {workers} at a time" + told(packs), flush=True)  # fmt: skip
    jobs = {number: partial(losses_of, [trials[i] for i in places]) for number, places in enumerate(packs)}
    if workers > 1:
        with closing(side_by_side(jobs, workers, lambda number: "a trial of tune=lr")) as ended:
            yield from results(((number, result) for number, result, _ in ended), packs, trials)
    else:
        yield from results(jobs.items(), packs, trials)


def worthwhile(seconds: Sequence[float]) -> int:
    workers = default_workers()
    return workers if worth_their_start(seconds, workers) else 1


def told(packs: Sequence[Sequence[int]]) -> str:
    most = max(map(len, packs))
    return f", up to {most} of them as one pack" if most > 1 else ""


def results(
    ended: Iterable[tuple[int, Callable[[], list[float]]]], packs: Sequence[Sequence[int]], trials: Sequence[Trial]
) -> Iterator[tuple[Trial, float]]:
    """What trials came to; those that failed are left out, since their arm's run will say why."""
    for number, result in ended:
        with suppress(Exception):  # whatever it is: the run tries again, and is what the error is about
            yield from zip([trials[i] for i in packs[number]], result(), strict=True)
