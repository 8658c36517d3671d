"""The checks in the order in which they are made: those that say most come first."""

import os
from collections.abc import Iterator, Sequence

import torch

from archlab.base.errors import UserError
from archlab.benchmark.gpu.agreement import agreement
from archlab.benchmark.gpu.backends import attention_backends
from archlab.benchmark.gpu.check import LIMIT, Check, CheckResult, carried_out
from archlab.benchmark.gpu.contracts import contracts
from archlab.benchmark.gpu.environment import environment
from archlab.benchmark.gpu.first_command import first_command
from archlab.benchmark.gpu.memory import bill, linear_in_length
from archlab.benchmark.gpu.packs import many, members_alone
from archlab.benchmark.gpu.recurrences import recurrences
from archlab.benchmark.gpu.short_runs import overflow, precisions, repeatable
from archlab.benchmark.gpu.speed import compiled, eager, share_of_peak
from archlab.benchmark.gpu.waits import no_waiting

CHECKS: tuple[Check, ...] = (
    environment,
    attention_backends,
    no_waiting,
    agreement,
    contracts,
    eager,
    compiled,
    members_alone,
    many,
    share_of_peak,
    linear_in_length,
    bill,
    repeatable,
    overflow,
    precisions,
    first_command,
    recurrences,  # last, since its kernels are compiled and tried out first, which may take minutes
)


def device_or_refusal() -> torch.device:
    """The CUDA device. Raises UserError where there is none."""
    if not torch.cuda.is_available():
        raise UserError(
            "suite=gpu: checks a CUDA device, and torch can use none here; run it on a machine that has one, or use"
            " suite=speed, which takes the device there is"
        )
    return torch.device("cuda")


def gpu(checks: Sequence[Check] = CHECKS, limit: float = LIMIT) -> Iterator[CheckResult]:
    """Every check's result, as soon as it is there. Raises UserError where there is no CUDA device."""
    device = device_or_refusal()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which cuBLAS has no deterministic products
    yield from carried_out(checks, device, limit)
