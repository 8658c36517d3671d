"""What is said of bfloat16 where it is slower."""

from dataclasses import replace

import pytest
import torch

import archlab
from archlab.runs.bf16 import slower_in_bf16
from archlab.train.runtime import runtime

CFG = archlab.compose("size=nano", "size.d_ff=90", "train.train_len=24", "train.batch_size=6", "train.accumulate=2")
IN_BF16 = runtime("cpu", "bf16")


@pytest.mark.parametrize(
    ("times", "said"), [(14.0, "takes 14 times as long"), (1.25, "takes 1.25 times"), (1.1, None), (0.5, None)]
)
def test_bf16_is_said_to_be_slower_where_it_is(times, said):
    asked = []

    def seconds(product, dtype):
        asked.append(product)
        return times * 3e-3 if dtype == torch.bfloat16 else 3e-3

    line = slower_in_bf16(CFG, IN_BF16, seconds)
    assert set(asked) == {(72, 64, 90)}  # the tokens of a micro-batch, d_model, d_ff
    assert line is None if said is None else said in line and "\n" not in line


@pytest.mark.parametrize("where", [runtime("cpu", "fp32"), replace(IN_BF16, device=torch.device("cuda"))])
def test_elsewhere_nothing_is_timed(where):
    def seconds(product, dtype):
        raise AssertionError("timed")

    assert slower_in_bf16(CFG, where, seconds) is None
