"""Which machine computes, and in which numbers."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from archlab.base.errors import UserError
from archlab.base.freed_memory import keep_freed_memory
from archlab.train.compiling import Compile, why_not_compiled

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

ATTENTION = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
)
"""On CUDA, torch's implementations of attention in the order in which they are tried; each refuses what it cannot do.

cuDNN's, which torch tries first on some devices, makes a plan for each new shape: every length that is evaluated and
every decoded token would wait for one.
"""


@dataclass(frozen=True)
class Runtime:
    """A device and the dtype that matrix products run in; weights, norms and losses stay in float32."""

    device: torch.device
    dtype: torch.dtype
    tf32: bool = False
    """Whether float32 matrix products round what they multiply to 10 bits, as the tensor cores of a CUDA device do."""

    deterministic: bool = False
    """Whether torch may take only algorithms that add in the same order each time."""

    compile: Compile = "off"
    """How a training step calls its layers: on, compiled; auto, compiled where torch can; off, eagerly."""

    def autocast(self) -> AbstractContextManager:
        """Mixed precision: matrix products in `dtype`, what needs the range or the digits in float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales losses up where gradients would otherwise underflow; does nothing outside float16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @property
    def attention(self) -> tuple[str, ...] | None:
        """Torch's implementations of attention in the order in which they are tried; None where there is no choice."""
        return tuple(backend.name.lower() for backend in ATTENTION) if self.device.type == "cuda" else None

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Inside, what torch keeps for the whole process is as this runtime has it: entered once, around many steps.

        On a CPU the process keeps what it frees, after that too: `keep_freed_memory`.
        """
        with ExitStack() as stack:
            if self.device.type == "cpu":
                keep_freed_memory()
            if self.device.type == "cuda":
                stack.enter_context(sdpa_kernel(list(ATTENTION), set_priority=True))
                stack.enter_context(products_in_tf32(self.tf32))
            if self.deterministic:
                stack.enter_context(deterministic_algorithms())
            yield


@contextmanager
def products_in_tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 matrix products may be in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Algorithms that give the same numbers each time; one that torch has not so raises its error."""
    # cuBLAS reads it where its first product is computed, and torch refuses products without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def runtime(device: str, precision: str, deterministic: bool = False, compile: Compile = "off") -> Runtime:
    """The machine these options ask for; raises UserError where there is no such machine here.

    With compile=auto it compiles nothing: whether that pays is for those to say who know how long it would train.
    """
    found = find_device(device)
    if deterministic and found.type != "cuda":
        raise UserError(
            f"train.deterministic=true: is for a CUDA device, and on {found.type} it would change nothing; leave it out"
        )
    if compile == "on" and (why := why_not_compiled(found)):
        raise UserError(f"compile=on: {why}")
    settled: Compile = "on" if compile == "on" else "off"
    return Runtime(found, find_dtype(precision, found), precision == "tf32", deterministic, settled)


def settled_precision(device: str, precision: str) -> str:
    """What `precision` comes to on this machine: fp32, tf32, bf16 or fp16. Raises UserError where there is no such device."""
    if precision != "auto":
        return precision
    dtype = find_dtype(precision, find_device(device))
    return next(name for name, its in DTYPES.items() if its == dtype)


def find_device(device: str) -> torch.device:
    """The device that `device` names."""
    available = ["cpu"]
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    elif torch.backends.mps.is_available():
        available.insert(0, "mps")
    if device == "auto":
        # Apple's GPU is taken only where it is asked for by name: nothing here has been run on one.
        return torch.device("cuda" if "cuda" in available else "cpu")
    if device not in available:
        raise UserError(
            f"device={device}: this machine has none that torch can use; use {' or '.join(available)}, or auto"
        )
    return torch.device(device)


def find_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype that `precision` names."""
    if precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"precision=fp16: needs the loss scaling of a CUDA device, and this run is on {device.type}; use bf16 or fp32"
        )
    if precision == "tf32" and device.type != "cuda":
        raise UserError(
            f"precision=tf32: is what a CUDA device multiplies float32 in, and this run is on {device.type}; use fp32"
        )
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return DTYPES[precision]
