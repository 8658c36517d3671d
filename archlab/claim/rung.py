"""The rungs of a ladder: a claim's models wider, and trained longer, by factors of two, and on more than one corpus.

A rung multiplies the width at a constant head_dim: size.d_model and size.n_heads, and what else is given as a number that
belongs to the width (size.n_kv_heads, size.d_ff, embed.width). The horizon is multiplied in train.steps, or in train.tokens
where that is what a claim gives. `ladder=1x1xtext+python` makes every rung on each of these texts. All else stays as the
claim has it: depth, batch, the grid's first rate, a warm-up in steps.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from archlab.base.errors import UserError
from archlab.base.words import key_of
from archlab.config.compose import composed

Words = tuple[str, ...]

MOST = 4
"""Sizes, and horizons, of a ladder."""

OF_WIDTH = ("size.d_model", "size.n_heads", "size.n_kv_heads", "size.d_ff", "embed.width")
OF_HORIZON = ("train.steps", "train.tokens")

CORPORA = ("text", "python")
"""The texts that come with archlab, as options of data."""

FORM = re.compile(r"([1-9]\d*)x([1-9]\d*)(?:x([a-z_]+(?:\+[a-z_]+)*))?")


@dataclass(frozen=True)
class ClaimRung:
    """How many times as wide, and as long in training, as the claim says."""

    width: int = 1
    steps: int = 1
    corpus: str | None = None
    """None: the claim's own data."""

    @property
    def label(self) -> str:
        on = "" if self.corpus is None else f", {self.corpus}"
        return f"width x{self.width}, steps x{self.steps}{on}"

    def words(self, asked: Words, own: Path | None) -> Words:
        """Overrides that follow those that were asked for. Raises UserError where these leave nothing to multiply."""
        if self.corpus is None:
            return multiplied(self.width, self.steps, asked, own)
        if given := next((word for word in asked if key_of(word).partition(".")[0] == "data"), None):
            raise UserError(
                f"{given} says what the claim is about, so that there are no other corpora; use ladder=NxN alone"
            )
        return (f"data={self.corpus}", *multiplied(self.width, self.steps, asked, own))


AS_CLAIMED = ClaimRung()


@cache
def multiplied(width: int, steps: int, asked: Words, own: Path | None) -> Words:
    if width == steps == 1:  # the claim's own sizes and steps, for which nothing has to be composed
        return ()
    whole, _ = composed(asked, own)
    words = []
    if width > 1:
        if rule := next((word for word in asked if word.lstrip("+").startswith("layers[") and ".size." in word), None):
            raise UserError(
                f"{rule} sets the size of some layers alone, which a ladder does not multiply; use ladder=1xN"
            )
        sizes = {name: whole[name.partition(".")[0]][name.partition(".")[2]] for name in OF_WIDTH}
        words += [f"{name}={value * width}" for name, value in sizes.items() if isinstance(value, int)]
    if steps > 1:
        if whole.budget is not None:
            raise UserError(
                f"budget={whole.budget} says how long a model of each size is trained, so that there are no other horizons; use"
                " ladder=Nx1"
            )
        given = "steps" if whole.train.tokens is None else "tokens"
        words.append(f"train.{given}={whole.train[given] * steps}")
    return tuple(words)


def rungs_of(ladder: str | None) -> tuple[ClaimRung, ...]:
    """Of "3x2": three widths at two horizons each; the claim itself where there is no ladder. Raises UserError."""
    if ladder is None:
        return (AS_CLAIMED,)
    found = FORM.fullmatch(ladder)
    if not found:
        raise UserError(
            f"ladder={ladder}: is not sizes x horizons; write it as ladder=3x2, each at most {MOST}, or with corpora as"
            f" ladder=3x2x{'+'.join(CORPORA)}"
        )
    widths, horizons = int(found[1]), int(found[2])
    corpora = found[3].split("+") if found[3] else [None]
    if max(widths, horizons) > MOST:
        raise UserError(f"ladder={ladder}: is above {MOST}x{MOST}, 8 times the width and the steps; use less")
    if found[3] and (len(corpora) < 2 or len(set(corpora)) < len(corpora) or not set(corpora) <= set(CORPORA)):
        raise UserError(f"ladder={ladder}: {found[3]} is not two corpora or more; corpora: {', '.join(CORPORA)}")
    if widths == horizons == len(corpora) == 1:
        raise UserError("ladder=1x1: is each claim as it stands, so it would change nothing; leave it out")
    return tuple(ClaimRung(2**i, 2**j, corpus) for corpus in corpora for i in range(widths) for j in range(horizons))
