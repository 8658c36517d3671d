"""As few configurations as hold every option of conf/: what is asked of all options at some cost is asked of these."""

import random
from functools import cache
from itertools import combinations, cycle, islice, product

from omegaconf import OmegaConf, open_dict
from oracles import CONF, admits, attentions, block_and_options, joins, options

import archlab
from archlab.base.errors import UserError
from archlab.config.compose import composed, finish

BASE = ("size=nano", "allow_leak=true")
GROUPS = ("norm", "residual", "pos", "mask", "mixer", "ffn", "head")


def admitted(words: list[str]) -> bool:
    """Whether check admits them, without Hydra where each names an option's file that speaks of its group alone.

    To compose each of these combinations would be the longest part of collecting the tests.
    """
    names = dict(word.split("=") for word in words)
    groups = {group: name for group, name in names.items() if group in GROUPS}
    whole, blocks = (
        composed(BASE)[0],
        {group: OmegaConf.load(CONF / group / f"{name}.yaml") for group, name in groups.items()},
    )
    try:
        if len(names) > len(groups) or not all("_target_" in block for block in blocks.values()):
            archlab.compose(*BASE, *words)
        else:
            with open_dict(whole):
                whole.update(blocks)
            finish(whole, {**whole.hydra.runtime.choices, **groups}, names)
    except UserError:
        return False
    return True


def words_of(choice: dict[str, str]) -> list[str]:
    """Without dropout, whose draws no two ways of computing share."""
    needs = ["prefix=[0.25,0.75]"] * (choice["mask"] == "prefix") + ["ffn.dropout=0"] * (choice.get("ffn") == "glm")
    return [f"{group}={name}" for group, name in choice.items()] + needs


def goes_together(choice: dict[str, str]) -> bool:
    """Whether check admits them, by what the blocks say: to ask check itself would be two seconds of collecting the tests.

    Whoever is given a combination composes it, so one that check refuses is told.
    """
    norm, residual = (block_and_options(group, choice[group])[0] for group in ("norm", "residual"))
    return (
        admits(choice["pos"], choice["mask"], choice["mixer"])
        and joins(choice["residual"], choice["ffn"])
        and (norm.acts or not residual.told_apart_by_norms)
    )


def every_option_once() -> list[list[str]]:
    """As few combinations as hold every option of every group; an option that is refused there gets one of its own."""
    columns = {group: options(group) for group in GROUPS}
    others, columns["mixer"] = [name for name in columns["mixer"] if name not in attentions()], attentions()
    rows = max(map(len, columns.values()))
    table = [
        dict(zip(GROUPS, row, strict=True))
        for row in zip(*(islice(cycle(columns[group]), rows) for group in GROUPS), strict=True)
    ]
    chosen, seen = [], set()
    plain = dict(norm="rms", residual="pre", pos="rope", mask="causal", mixer="mha", ffn="swiglu", head="linear")
    alone = [plain | {group: name} for group in GROUPS for name in columns[group]]
    columns["mixer"] += others
    alone += [plain | {"mixer": name, "pos": "rope" if admits("rope", "causal", name) else "none"} for name in others]
    for choice in (*table, *alone):
        if not set(choice.items()) <= seen and goes_together(choice):
            seen |= set(choice.items())
            chosen.append(words_of(choice))
    assert seen >= {(group, name) for group in GROUPS for name in columns[group]}
    return chosen


COVER = every_option_once()


STEP = ("norm", "residual", "mask", "mixer", "pos")
"""The groups whose options meet in a training step, all of which are packed."""

PLAIN = dict(norm="rms", residual="pre", mask="causal", mixer="mha", pos="none")


@cache
def admitted_beside_plain(choice: tuple[tuple[str, str], ...]) -> bool:
    return admitted(words_of(PLAIN | dict(choice)))


def may_meet(choice: dict[str, str]) -> bool:
    """Whether check admits them, as it does where it admits the norms' side and the scores' side, each beside plain options."""
    return all(
        admitted_beside_plain(tuple((group, choice[group]) for group in side))
        for side in (("norm", "residual", "mask"), ("mask", "mixer", "pos"))
    )


@cache
def every_three() -> dict[str, list[list[str]]]:
    """Words, by residual scheme, which hold every three of these options that can be had together.

    Where none yet holds the next three, the first admitted one of all that do, in an order that is drawn.
    """
    draw, columns = random.Random(0), {group: options(group) for group in STEP}
    seen, chosen = set(), {scheme: [] for scheme in columns["residual"]}
    for groups in combinations(STEP, 3):
        for three in product(*(columns[group] for group in groups)):
            wanted = dict(zip(groups, three, strict=True))
            rest = list(product(*(columns[group] for group in STEP if group not in wanted)))
            if tuple(wanted.items()) not in seen:
                for others in draw.sample(rest, k=len(rest)):
                    left = iter(others)
                    choice = {group: wanted.get(group) or next(left) for group in STEP}
                    if may_meet(choice):
                        seen |= set(combinations(choice.items(), 3))
                        chosen[choice["residual"]].append(words_of(choice))
                        break
    return chosen
