"""A training step of each option beside one of the default model, in turns in one process: python experiments/bench/blocks.py.

Writes blocks.csv: by option the median of the paired ratios of seconds, and their smallest and largest.
"""

import csv
import statistics
import sys
import time
from pathlib import Path

import torch

import archlab
from archlab.benchmark.workload import Workload

ROUNDS = 7
OPTIONS = """
mixer=linear pos=none | mixer=retnet | mixer=mamba2 pos=none | mixer=deltanet pos=none | mixer=gdn pos=none | mixer=shortconv pos=none
mixer=gdn layers[3::4].mixer=mha | mixer=mla | mixer=diff | mixer.gate=elementwise | mixer.gate=head | mixer.sinks=true
mixer.weighting=scalable_softmax | mixer.weighting=sigmoid | mixer.forget=true pos=none | mixer.value_residual=true
mixer.conv=4 | mixer.qk_norm=head | mixer.qk_norm=each_head | canon=AC | ffn=experts | ffn=experts size.d_ff=128
ffn=xielu | norm=dyt | norm=l2 | norm=scale_norm | residual=scaled | residual=mix | residual=rezero | residual=layer_scale
residual=hyper | residual=mhc | mask=chunked | mask=document documents=true | mask=window mask.sinks=4 | random_positions=512
optimizer=muon | optimizer=lion | optimizer=sgd | optimizer=schedule_free schedule=constant | average=ema | loss.z=1e-4
loss.label_smoothing=0.1 | init=mup
"""


def seconds(work: Workload) -> float:
    since = time.perf_counter()
    work.step()
    return time.perf_counter() - since


def main(size: str) -> None:
    base = [f"size={size}", "device=cpu", "compile=off"]
    default = Workload(archlab.compose(*base))
    rows = []
    for words in (option.strip() for line in OPTIONS.strip().splitlines() for option in line.split(" | ")):
        work = Workload(archlab.compose(*base, *words.split()))
        pairs = [(seconds(work), seconds(default)) for _ in range(ROUNDS + 2)][2:]
        ratios = [one / other for one, other in pairs]
        rows.append([words, *(round(f(ratios), 2) for f in (statistics.median, min, max))])
        print(*rows[-1], flush=True)
    with (Path(__file__).parent / "blocks.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["option", "times the default", "least", "most"], *rows])


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(sys.argv[1] if len(sys.argv) > 1 else "tiny")
