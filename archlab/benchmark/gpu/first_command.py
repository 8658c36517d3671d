"""The README's first command, from its words to its verdict."""

import json
import tempfile
from contextlib import redirect_stdout
from io import StringIO

import torch

from archlab.benchmark.gpu.check import Observed
from archlab.config.compose import compose
from archlab.runs import lab

WORDS = ("norm=rms", "pos=alibi")
LOSS, WITHIN, VERDICT = 1.6324, 0.03, "holds"
"""The validation loss (nats per token) and the verdict that README.md shows, of a CPU in float32; and how far off another
precision may be."""


def first_command(
    device: torch.device,
    words: tuple[str, ...] = WORDS,
    loss: float = LOSS,
    within: float = WITHIN,
    verdict: str = VERDICT,
) -> Observed:
    """README's first command.

    It completes, with the validation loss of the README to 0.03 nats per token, and with the same verdict on length.
    """
    with tempfile.TemporaryDirectory(prefix="archlab-") as folder:
        cfg = compose(*words, f"device={device.type}", f"output={folder}")
        with redirect_stdout(StringIO()):  # a run prints its model first
            directory = lab.run(cfg, words, plots=False, show_result=False)
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    found, said = summary["val_loss"], (summary["length_verdict"] or {}).get("verdict")
    passed = summary["status"] == "completed" and abs(found - loss) <= within and said == verdict
    figure = f"{summary['status']}, loss {found:.4f}, length {said}, {summary['tokens_per_second']:.0f} tokens/s"
    return Observed(figure, f"{loss:g} to within {within:g}, {verdict}", passed)
