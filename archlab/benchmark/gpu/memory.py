"""Memory on the device: how it grows with the length, and whether it is what `show` says."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from archlab.benchmark.gpu.check import Observed
from archlab.benchmark.memory import peak_bytes, peak_of_training
from archlab.benchmark.scaling import power
from archlab.config.assemble import assemble_without_weights, build
from archlab.config.compose import compose
from archlab.config.groups import memory_settings
from archlab.cost.estimate import estimate
from archlab.train.runtime import Runtime, runtime

LENGTHS = (2048, 4096, 8192, 16384)
LINEAR = 1.1
KINDS = ((), ("pos=alibi",), ("mask=window", "mask.window=128"), ("mask=prefix",))


def linear_in_length(
    device: torch.device, words: Sequence[tuple[str, ...]] = KINDS, lengths: Sequence[int] = LENGTHS
) -> Observed:
    """Memory is linear in length.

    The fullest moment of a forward pass without gradients, batch 1, at 2k to 16k tokens: an exponent of at most 1.1,
    where a table of all queries and keys would have 2.
    """
    exponents = {}
    for combination in words:
        cfg = compose("size=nano", *combination)
        decoder, machine = build(cfg).to(device).eval(), runtime(str(device), cfg.precision)

        def forward(seq_len: int, decoder: torch.nn.Module = decoder, machine: Runtime = machine) -> None:
            with machine.in_force(), torch.no_grad(), machine.autocast():
                decoder(torch.zeros(1, seq_len, dtype=torch.long, device=device))

        forward(lengths[0])  # what is made once, such as a workspace, is there afterwards
        bytes_ = [peak_bytes(lambda n=n: forward(n), device) for n in lengths]  # type: ignore[misc]
        exponents[" ".join(combination) or "default"] = power(lengths, bytes_).exponent
    figure = ", ".join(f"{name} {exponent:.2f}" for name, exponent in exponents.items())
    return Observed(
        f"bytes ~ length^p: {figure}", f"p at most {LINEAR:g}", max(exponents.values()) <= LINEAR, exponents
    )


WITHIN = 0.1


def bill(
    device: torch.device, words: tuple[str, ...] = ("size=small", "train.train_len=512", "train.batch_size=16")
) -> Observed:
    """Peak memory is what `show` says.

    Two training steps in float32, in which the bill's assumptions are the program's own, beside the bill with fused
    attention.
    """
    cfg = compose(*words)
    settings = replace(memory_settings(cfg), batch=cfg.train.batch_size, weights="fp32", attention="flash")
    said = estimate(assemble_without_weights(cfg), settings, cfg.train.train_len).total
    measured = peak_of_training(cfg, Runtime(device, torch.float32))
    off = measured / said - 1
    figure = f"{measured / 1e6:.0f} MB measured, {said / 1e6:.0f} MB said: {off:+.0%}"
    return Observed(figure, f"within {WITHIN:.0%}", abs(off) <= WITHIN, {"measured": measured, "said": said})
