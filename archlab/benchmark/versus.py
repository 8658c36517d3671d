"""Two architectures in one process, in turns: how many times as fast the first is, and whether that is more than noise."""

from collections.abc import Callable
from dataclasses import replace

from archlab.base.errors import UserError
from archlab.base.words import key_of
from archlab.benchmark.ratio import speed_ratio
from archlab.benchmark.speed import Record, memory_of, modes_of, rates, setting, tokens_of
from archlab.benchmark.turns import in_turns
from archlab.benchmark.workload import Workload, machine_timed
from archlab.config.plan import Plan

ROUNDS = 17
"""Whose interval reaches from the 5th to the 13th of the sorted ratios."""


def other_words(words: tuple[str, ...], changes: tuple[str, ...]) -> tuple[str, ...]:
    """The second arm's overrides: the first's, with those of the same name replaced by the changes."""
    changed = {key_of(word) for word in changes}
    return (*(word for word in words if key_of(word) not in changed), *changes)


def check_apart(one: Plan, other: Plan, given: str) -> None:
    """Raises UserError where the two arms compute the same, so that only noise could tell them apart."""
    if timed(one) == timed(other):
        raise UserError(
            f"--vs {given}: changes nothing that is timed: both arms take the same steps; name another option, such as"
            " --vs norm=layer"
        )


def timed(plan: Plan) -> tuple[object, ...]:
    """All that decides which operations are timed; without it are seeds, rates, and what happens after training."""
    machine, cfg = machine_timed(plan.cfg), plan.cfg.copy()
    cfg.device, cfg.precision = str(machine.device), str(machine.dtype)  # which auto may come to as well
    cfg.compile = "on" if cfg.compile == "on" else "off"  # as it is timed
    return replace(plan, cfg=cfg).program_key, machine.tf32, machine.deterministic, plan.cfg.probe.every is None


def versus(
    one: Plan, other: Plan, names: tuple[str, str], rounds: int = ROUNDS, tick: Callable[[], None] = lambda: None
) -> Record:
    """Both arms in every mode that both have; a ratio above 1 says that the first is faster, token for token."""
    arms = [Workload(plan.cfg) for plan in (one, other)]
    calls = [modes_of(work) for work in arms]
    both = [mode for mode in calls[0] if mode in calls[1]]
    seconds = in_turns({f"{mode} {arm}": calls[arm][mode] for mode in both for arm in (0, 1)}, rounds, tick)
    modes = {}
    for mode in both:
        per_token = [[s / tokens_of(work, mode) for s in seconds[f"{mode} {arm}"]] for arm, work in enumerate(arms)]
        modes[mode] = {
            **speed_ratio(*per_token).to_record(),
            "arms": [rates(work, mode, seconds[f"{mode} {arm}"]) for arm, work in enumerate(arms)],
        }
    return {
        "names": list(names),
        "rounds": rounds,
        "arms": [{**setting(work), "memory": memory_of(work)} for work in arms],
        "modes": modes,
        "machine": setting(arms[0])["machine"],
    }
