"""As few configurations as hold every option of conf/: what is asked of all options at some cost is asked of these."""

import random
from functools import cache
from itertools import cycle, islice, product

from oracles import admits, attentions, block_and_options, every_three, joins, options

BASE = ("size=nano", "allow_leak=true")
GROUPS = ("norm", "residual", "pos", "mask", "mixer", "ffn", "head")


def words_of(choice: dict[str, str]) -> list[str]:
    """Without dropout, whose draws no two ways of computing share."""
    needs = ["prefix=[0.25,0.75]"] * (choice["mask"] == "prefix") + ["ffn.dropout=0"] * (choice.get("ffn") == "glm")
    return [f"{group}={name}" for group, name in choice.items()] + needs


def goes_together(choice: dict[str, str]) -> bool:
    """Whether check admits them, by what the blocks say: to ask check itself would be two seconds of collecting the tests.

    tests/test_cover.py holds that check says the same.
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


def choice_of(words: list[str]) -> dict[str, str]:
    """By group, the options that such a combination chooses."""
    named = (word.split("=") for word in words)
    return {group: name for group, name in named if group in GROUPS}


STEP = ("norm", "residual", "mask", "mixer", "pos")
"""The groups whose options meet in a training step, all of which are packed."""


def completed(wanted: dict[str, str], draw: random.Random) -> dict[str, str] | None:
    """An option of each of these groups, the wanted ones among them, that go together; None where there are none."""
    rest = list(product(*(options(group) for group in STEP if group not in wanted)))
    for others in draw.sample(rest, k=len(rest)):
        left = iter(others)
        choice = {group: wanted.get(group) or next(left) for group in STEP}
        if goes_together(choice | {"ffn": "swiglu"}):
            return choice
    return None


@cache
def packed() -> dict[str, list[list[str]]]:
    """Words, by residual scheme, which hold every three of these options that can be had together."""
    chosen: dict[str, list[list[str]]] = {scheme: [] for scheme in options("residual")}
    for choice in every_three({group: options(group) for group in STEP}, completed):
        chosen[choice["residual"]].append(words_of(choice))
    return chosen
