"""What can be asked about memory, and which questions make no sense."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from archlab.base.errors import UserError
from archlab.base.quantities import AtOnce, Count, Literal
from archlab.model.decoder import Decoder

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class MemorySettings:
    """One field for each option of `memory`; conf/config.yaml says what each means."""

    batch: Count = 1
    seq_len: AtOnce | None = None
    weights: Literal["fp32", "bf16", "fp16"] = "bf16"
    optimizer: Literal["adam", "momentum", "sgd", "muon"] | None = "adam"
    attention: Literal["unfused", "flash"] = "unfused"
    checkpointing: Literal["none", "selective", "full"] = "none"
    dropout: bool | None = None
    lora: Count | None = None
    lora_targets: Sequence[str] = ("q_proj", "v_proj")
    zero: Literal[0, 1, 2, 3] = 0
    gpus: Count = 1
    budget: str | int | None = None

    @property
    def bytes_per_number(self) -> int:
        return BYTES[self.weights]

    @property
    def budget_bytes(self) -> int | None:
        return None if self.budget is None else bytes_of(self.budget)


def bytes_of(written: str | int) -> int:
    """24GB is 24e9 bytes, 24GiB is 24 * 2^30. Raises UserError."""
    found = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})", str(written).strip())
    if found is None or float(found[1]) == 0:
        raise UserError(f"memory.budget={written}: should be a size with its unit, such as 24GB or 16GiB")
    return int(float(found[1]) * UNITS[found[2]])


def check_memory(settings: MemorySettings, decoder: Decoder, explicit: Collection[str]) -> None:
    """Raises UserError where an option changes nothing or cannot be."""
    settings.budget_bytes  # noqa: B018 (raises where it is no size)
    check_length(settings, decoder)
    check_sharding(settings)
    check_lora(settings, decoder, explicit)
    if settings.checkpointing == "selective" and settings.attention == "flash":
        raise UserError(
            "memory.checkpointing=selective: recomputes scores and weights, and memory.attention=flash keeps none;"
            " use none, full, or memory.attention=unfused"
        )


def check_length(settings: MemorySettings, decoder: Decoder) -> None:
    limit = decoder.position.limit
    if limit is not None and settings.seq_len is not None and settings.seq_len > limit:
        raise UserError(
            f"memory.seq_len={settings.seq_len}: pos.max_positions={limit} is as far as the position table goes;"
            " use at most that many, or a larger table"
        )


def check_sharding(settings: MemorySettings) -> None:
    if settings.gpus > 1 and settings.zero == 0:
        raise UserError(
            f"memory.gpus={settings.gpus}: changes nothing under memory.zero=0, where each holds everything;"
            " use memory.zero=1, 2 or 3"
        )
    if settings.zero and settings.gpus == 1:
        raise UserError(
            f"memory.zero={settings.zero}: shares states among GPUs, and memory.gpus=1; use more, such as memory.gpus=8"
        )


def check_lora(settings: MemorySettings, decoder: Decoder, explicit: Collection[str]) -> None:
    if settings.lora is None:
        if "memory.lora_targets" in explicit:
            raise UserError(
                f"memory.lora_targets={list(settings.lora_targets)}: changes nothing without adapters; set memory.lora, such"
                " as memory.lora=8"
            )
        return
    names = sorted({name.rpartition(".")[2] for name, _ in linears(decoder)})
    unknown = [name for name in settings.lora_targets if name not in names]
    if unknown or not settings.lora_targets:
        raise UserError(
            f"memory.lora_targets={list(settings.lora_targets)}: {unknown[0] if unknown else 'nothing'} is no matrix of a"
            f" layer; there are {', '.join(names)}"
        )
    smallest = min(min(linear.weight.shape) for _, linear in adapted(decoder, settings))
    if settings.lora > smallest:
        raise UserError(
            f"memory.lora={settings.lora}: a rank above the {smallest} rows or columns of a matrix; use at most that"
        )


def linears(decoder: Decoder) -> list[tuple[str, nn.Linear]]:
    """The matrices of the layers, by name."""
    return [
        (name, module)
        for name, module in nn.ModuleList(decoder.layers).named_modules()
        if isinstance(module, nn.Linear)
    ]


def adapted(decoder: Decoder, settings: MemorySettings) -> list[tuple[str, nn.Linear]]:
    """Those that LoRA adapts."""
    return [(name, linear) for name, linear in linears(decoder) if name.rpartition(".")[2] in settings.lora_targets]
