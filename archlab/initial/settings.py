"""What can be set about a preflight."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import MinLen

from archlab.base.errors import UserError
from archlab.base.quantities import AtOnce, Count, Depth, Positive

PICTURES = (".png", ".svg", ".pdf")
ENDINGS = f"{', '.join(PICTURES[:-1])} or {PICTURES[-1]}"
"""How a plot's file ends."""


@dataclass(frozen=True)
class PreflightSettings:
    """One field for each option of `preflight`; conf/config.yaml says what each means."""

    batch_size: Count = 8
    seq_len: AtOnce | None = None
    steps: Count = 5
    lr: Positive = 1e-5
    depths: Annotated[list[Depth], MinLen(1)] | None = None
    plot: str | None = None


def check_preflight(settings: PreflightSettings) -> None:
    """Raises UserError where no exponent could be fitted."""
    if settings.depths is not None and settings.depths != sorted(set(settings.depths)):
        rising = ",".join(map(str, sorted(set(settings.depths))))
        raise UserError(f"preflight.depths={settings.depths}: should rise from one to the next; use [{rising}]")
    if settings.depths is not None and len(settings.depths) < 2:
        raise UserError(
            f"preflight.depths={settings.depths}: an exponent takes two depths or more, such as"
            f" [{settings.depths[0]},{4 * settings.depths[0]}]; or null, for none"
        )
    if settings.plot is not None and not settings.plot.endswith(PICTURES):
        raise UserError(f"preflight.plot={settings.plot}: should end in {ENDINGS}")
