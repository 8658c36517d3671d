"""Whether blocks keep their contract, alone and in a small model."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from archlab.base.arguments import checked
from archlab.base.errors import UserError
from archlab.base.words import key_of, rule_of, sets
from archlab.config.compose import in_turn
from archlab.config.groups import BLOCKS
from archlab.config.overrides import normalise, refuse_twice
from archlab.contract.finding import Finding
from archlab.contract.subject import SMALL
from archlab.contract.verify import verify as findings_of
from archlab.report import verify as tables
from archlab.verbs.shown import Shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Verification(Shown):
    """What was found about the blocks, promise by promise."""

    title: str
    findings: list[Finding]

    def __bool__(self) -> bool:
        """Whether no promise is broken."""
        return not any(finding.verdict == "broken" for finding in self.findings)

    def to_pandas(self) -> "pd.DataFrame":
        """One row per promise: the promise, its verdict, and what was seen."""
        import pandas as pd

        return pd.DataFrame([asdict(finding) for finding in self.findings])

    def __rich__(self) -> RenderableType:
        return tables.findings(self.title, [asdict(finding) for finding in self.findings])


@checked
def verify(*words: str, config_dir: str | Path | None = None) -> Verification:
    """Checks the blocks that overrides name, as in verify("norm=rms"). Raises UserError where they name none."""
    groups = named_blocks(words, config_dir)
    refuse_twice(list(words))
    cfg = in_turn(*SMALL, *words, config_dir=config_dir)
    title = " ".join(f"{group}={cfg.choices[group]}" for group in groups)
    return Verification(title, list(findings_of(cfg, groups)))


def named_blocks(words: tuple[str, ...], config_dir: str | Path | None = None) -> list[str]:
    """The groups that overrides choose a block for. Raises UserError where there are none."""
    for word in words:
        if word.startswith("output="):
            raise UserError(f"{word}: verify writes nothing; leave it out")
        if "=" not in word:
            raise UserError(f"{word}: verify takes overrides, name=value, as in archlab verify norm=rms")
        if sets(word, "preset"):
            raise UserError(f"{word}: verify checks blocks in a small model; name them, as in archlab verify norm=rms")
    ruled = {rule[1].partition(".")[0]: word for word in words if (rule := rule_of(key_of(word)))}
    chosen = [group for group in BLOCKS if group in map(key_of, words)]
    if not chosen:
        normalise(words, [Path(config_dir)] if config_dir else [])  # which explains a misspelt word better
        for group, word in ruled.items():
            raise UserError(
                f"{word}: is a rule for some layers, and verify checks a block in all of them; write {group}=..."
            )
        raise UserError(f"verify: no block is named; give one of {', '.join(BLOCKS)}, as in archlab verify norm=rms")
    return chosen
