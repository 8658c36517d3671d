"""The machine that was measured, in the words that a table of timings needs beside it."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")


def machine_of(device: torch.device) -> dict[str, Any]:
    """Processor, cores this process may use, threads torch takes, its vector instructions; of a CUDA device its name and memory."""
    found = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(terse=True),
        "torch": str(torch.__version__),
        "device": str(device),
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": about.name,
            "gpu_bytes": about.total_memory,
            "compute_capability": f"{about.major}.{about.minor}",
            "cuda": torch.version.cuda,
        }
    return found


def processor(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name as Linux has it; elsewhere what Python knows of it."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
