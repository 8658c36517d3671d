"""All promises of the blocks in question."""

from collections.abc import Iterator, Sequence

import torch
from omegaconf import DictConfig

from archlab.contract.decoder import CHECKS
from archlab.contract.finding import Finding, findings
from archlab.contract.kinds import OF_KIND
from archlab.contract.subject import Subject


def verify(cfg: DictConfig, groups: Sequence[str]) -> Iterator[Finding]:
    """First each block by itself, then the decoder they are in. The generator of random numbers is left as it was."""
    subject = Subject(cfg)
    with torch.random.fork_rng(devices=[]):
        for group in groups:
            yield from findings(OF_KIND[group], subject)
        yield from findings(CHECKS, subject)
