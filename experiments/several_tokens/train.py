"""All runs of the study: python experiments/several_tokens/train.py FOLDER

FOLDER/DATA/next has the models that predict the next token alone, FOLDER/DATA/steps those that predict several for as
many steps, FOLDER/DATA/flops those that predict several for as many FLOPs and so for fewer steps.
"""

import sys
from pathlib import Path

import archlab

COMMON = (
    "seed=0,1,2", "size=nano", "train.lr=1e-2", "train.batch_size=8", "train.train_len=32", "eval.lengths=[1]", "eval.tokens=8192",
    "probe.every=null",
)  # fmt: skip
STEPS = {"text": 150, "copy": 300}
ARMS = [(f"mtp.form={form}", f"mtp.tokens={tokens}") for form in ("independent", "chained") for tokens in (2, 4)]


def flops(*words: str) -> float:
    """Of a training step, per token."""
    return archlab.show("size=nano", "train.train_len=32", *words).costs["train_flops_per_token"]


def main(folder: Path) -> None:
    def trained(data: str, steps: int, kind: str, *words: str) -> None:
        where = f"output={folder / data / kind}"
        archlab.sweep(f"data={data}", f"train.steps={steps}", *words, *COMMON, where, workers=1, pack=3)

    for data, steps in STEPS.items():
        trained(data, steps, "next")
        for arm in ARMS:
            trained(data, steps, "steps", *arm)
    for data, steps in reversed(STEPS.items()):
        for arm in ARMS:
            trained(data, round(steps * flops() / flops(*arm)), "flops", *arm)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
