"""As few configurations as hold every option of conf/: what is asked of all options at some cost is asked of these."""

from itertools import cycle, islice

from oracles import admits, attentions, options

import archlab
from archlab.base.errors import UserError

GROUPS = ("norm", "residual", "pos", "mask", "mixer", "ffn", "head")


def admitted(words: list[str]) -> bool:
    try:
        archlab.compose("size=nano", "allow_leak=true", *words)
    except UserError:
        return False
    return True


def words_of(choice: dict[str, str]) -> list[str]:
    """Without dropout, whose draws no two ways of computing share."""
    needs = ["prefix=[0.25,0.75]"] * (choice["mask"] == "prefix") + ["ffn.dropout=0"] * (choice.get("ffn") == "glm")
    return [f"{group}={name}" for group, name in choice.items()] + needs


def every_option_once() -> list[list[str]]:
    """As few combinations as hold every option of every group; an option that check refuses there gets one of its own."""
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
        if not set(choice.items()) <= seen and admitted(words_of(choice)):
            seen |= set(choice.items())
            chosen.append(words_of(choice))
    assert seen >= {(group, name) for group in GROUPS for name in columns[group]}
    return chosen


COVER = every_option_once()
