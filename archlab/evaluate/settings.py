"""What can be set about the evaluation."""

from dataclasses import dataclass

from archlab.base.quantities import AtOnce, Count, Counts, Literal


@dataclass(frozen=True)
class EvalSettings:
    """One field for each option of `eval`; conf/config.yaml says what each means."""

    tokens: AtOnce
    lengths: Counts
    protocol: Literal["disjoint", "sliding"]
    stride: Count | None
    random_positions: bool = False
    part: Literal["test", "tuning"] = "test"
    first_token_share: bool = False
