"""Whether blocks keep their contract on the device, where indices, masks and caches are made anew."""

from collections.abc import Iterable

import torch

from archlab.benchmark.gpu.check import Observed, named
from archlab.config.compose import compose
from archlab.contract import decoder as promises
from archlab.contract.finding import findings
from archlab.contract.subject import SMALL, Subject

ASKED = (promises.future, promises.strangers, promises.decoding, promises.padded)
SUBJECTS = (
    (), ("pos=alibi",), ("pos=t5",), ("pos=none",), ("mask=prefix",), ("mask=window",), ("mask=prefix", "pos=learned_2d"),
    ("mixer=gqa",), ("mixer.softcap=30",),
)  # fmt: skip


def contracts(device: torch.device, words: Iterable[tuple[str, ...]] = SUBJECTS) -> Observed:
    """Contracts on the device.

    In float64: no leak from the future, also under a prefix; sequences apart; decoding from a cache and left padding
    equal a forward pass.
    """
    broken, n_held = [], 0
    for combination in words:
        subject = Subject(compose(*SMALL, *combination), device)
        for finding in findings(ASKED, subject):
            n_held += finding.verdict == "holds"
            if finding.verdict == "broken":
                broken.append(f"{' '.join(combination) or 'default'}: {finding.sentence}")
    return Observed(
        f"{len(broken)} broken: {named(broken, 1)}" if broken else f"{n_held} hold", "none broken", not broken
    )
