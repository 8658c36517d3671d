"""Which runs of a sweep are trained as one pack, and how many at once."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from archlab.base.errors import UserError
from archlab.config.assemble import assemble_without_weights
from archlab.config.groups import made, memory_settings
from archlab.config.plan import Plan
from archlab.cost.estimate import estimate
from archlab.runs.holds import all_bytes
from archlab.train.runtime import runtime

MOST = 256
"""Members of a pack that is sized here: by then even a GPU has enough to do."""

SHARE = 0.8
"""Of the memory that is free, what a pack may fill by its estimate; kernels and the evaluation need some of it too."""

PackSize = Literal["auto", "off"] | int


def packs_of(plans: Sequence[Plan], asked: PackSize) -> list[list[int]]:
    """The places of the plans by pack, in the sweep's order; a plan that shares its program with no other stands alone.

    With `auto` runs are packed on a GPU, as many as its memory holds. On a CPU they are not: a pack of small models
    gains nothing there that a process for each core does not gain. Raises UserError where a number is asked for
    that memory cannot hold, or a plan cannot be packed.
    """
    if asked == "off" or (asked == "auto" and not on_a_gpu(plans)):
        return [[number] for number in range(len(plans))]
    packs: list[list[int]] = []
    for numbers in by_program(plans).values():
        plan = plans[numbers[0]]
        why = refusal(plan)
        if why and asked != "auto":
            raise UserError(f"pack={asked}: {why}; use pack=off, or leave that out")
        size = (
            1 if why or len(numbers) < 2 else most_members(plan) if asked == "auto" else checked_size(plan, int(asked))
        )
        packs += [numbers[first : first + size] for first in range(0, len(numbers), size)]
    return sorted(packs)


def why_not(plans: Sequence[Plan], asked: PackSize) -> list[str]:
    """With `auto`, where runs are packed: a line for each program that runs share and that is not, with the reason."""
    if asked != "auto" or not on_a_gpu(plans):
        return []
    shared = [[plans[number] for number in numbers] for numbers in by_program(plans).values() if len(numbers) > 1]
    found = [(len(same), refusal(same[0])) for same in shared]
    return [f"{n} runs of one architecture are not trained as one pack: {why}" for n, why in found if why]


def on_a_gpu(plans: Sequence[Plan]) -> bool:
    return all(runtime(plan.cfg.device, "fp32").device.type == "cuda" for plan in plans)


def by_program(plans: Sequence[Plan]) -> dict[str, list[int]]:
    """The places of the plans by the program that trains them."""
    found: dict[str, list[int]] = {}
    for number, plan in enumerate(plans):
        found.setdefault(plan.program_key, []).append(number)
    return found


def refusal(plan: Plan) -> str | None:
    """Why runs of this kind are not packed, with the option that is the cause; None where they can be."""
    cfg, decoder = plan.cfg, assemble_without_weights(plan.cfg)
    if any(getattr(module, "p", 0) for module in decoder.modules()):
        return "dropout draws otherwise in a pack than in a run of its own"
    if not made(cfg, "optimizer").packed:
        return f"optimizer={cfg.choices.optimizer} moves one run's weights at a time; a pack is trained by adamw"
    if not made(cfg, "average").packed:
        return f"average={cfg.choices.average} is kept of one run's weights, which a pack does not"
    if cfg.train.checkpoint:
        return "train.checkpoint=true computes layers again, which a pack does not"
    if runtime(cfg.device, cfg.precision).dtype == torch.float16:
        return "precision=fp16 scales each run's loss by itself, which a pack does not"
    learned = {name for name, _ in decoder.named_parameters(remove_duplicate=False)}
    kept = decoder.state_dict().keys() - learned
    if any(".ffn." in name for name in kept):
        return f"ffn={cfg.choices.ffn} keeps what it counted in earlier steps, which a pack does not"
    if kept:
        return f"norm={cfg.choices.norm} keeps running statistics, which a pack does not"
    return None


def bytes_each(plan: Plan) -> float:
    """Of memory that a member takes: weights, their copies, gradients, the optimizer's states and what the backward pass needs.

    Attention is counted as unfused, which is the most that it takes: its weights for every query and key. So are numbers of
    bf16 on a CPU as float32 ones: its streams and norms are, and so is what fused attention keeps there
    (`archlab.blocks.kernel.torchs_own`).
    """
    cfg = plan.cfg
    where = runtime(cfg.device, cfg.precision)
    wide = where.dtype == torch.float32 or where.device.type == "cpu"
    numbers: Literal["fp32", "bf16"] = "fp32" if wide else "bf16"
    batch = cfg.train.batch_size // cfg.train.accumulate
    settings = replace(memory_settings(cfg), batch=batch, weights=numbers, attention="unfused")
    return estimate(assemble_without_weights(cfg), settings, cfg.train.train_len).total


def free_bytes(plan: Plan) -> float:
    """Of the device that the plan runs on."""
    device = runtime(plan.cfg.device, "fp32").device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def memory_of(plan: Plan) -> float:
    """All there is of the device that the plan runs on, whoever holds it."""
    return all_bytes(runtime(plan.cfg.device, "fp32").device)


def most_members(plan: Plan) -> int:
    """As many as memory holds, up to MOST."""
    return max(1, min(MOST, int(SHARE * free_bytes(plan) / bytes_each(plan))))


def checked_size(plan: Plan, asked: int) -> int:
    """The number asked for. Raises UserError where memory cannot hold so many."""
    each, free = bytes_each(plan), free_bytes(plan)
    if asked * each > free:
        raise UserError(
            f"pack={asked}: needs about {asked * each / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; use at most"
            f" pack={max(1, int(SHARE * free / each))}, or pack=auto"
        )
    return asked
