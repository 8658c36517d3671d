"""Golden records: the losses of 30 steps, eager, float32, one thread, as they were before the engine was rebuilt.

Every placement, position, mask, mixer, norm, network, head, init and objective has one, and some presets at a small
size. They were written once, at commit 787574b, by `python tests/test_golden.py`, and hold to 1e-6 of the last loss:
sums in another order move a loss by less after 30 steps, another model by more.
"""

import json
import signal
from pathlib import Path

import pytest
import torch

from archlab.base.signals import Stop
from archlab.config.assemble import build
from archlab.config.compose import in_turn
from archlab.runs import lab
from archlab.runs.assembled import machine_of, open_source, settings_of, training_seed
from archlab.train.loop import train

RECORDS = Path(__file__).with_name("golden.json")

SMALL = (
    "size.d_model=36", "size.n_layers=3", "size.n_heads=6", "size.head_dim=8", "size.d_ff=40", "train.train_len=22",
    "train.batch_size=3", "train.steps=30", "train.log_every=1", "probe.every=null", "eval.tokens=44", "eval.lengths=[1]",
    "device=cpu", "precision=fp32", "allow_leak=true",
)  # fmt: skip

CASES = {
    "default": "",
    **{f"norm={name}": "" for name in ("layer", "batch", "instance", "sequence")},
    # Without norms it starts at a loss of 140 and is chaos, in which processors differ by 5e-4; not so from smaller weights.
    "norm=none": "init.gain=0.3 train.lr=1e-3",
    "norm.unit_offset=true": "",
    "norm=layer norm.affine=false": "",
    **{f"residual={name}": "" for name in ("post", "deep", "deep_glm", "sandwich", "branch_norm", "parallel", "sub", "none")},
    "residual=parallel residual.norms=2": "",
    **{f"ffn={name}": "" for name in ("geglu", "geglu_tanh", "reglu", "glu", "bilinear", "relu", "gelu", "gelu_tanh", "silu", "relu2", "glm")},
    **{f"pos={name}": "" for name in ("xpos", "alibi", "t5", "kerple", "kerple_power", "fire", "learned", "sinusoidal", "local_global", "none")},
    **{f"pos={name}": "mask=prefix prefix=[0.25,0.75]" for name in ("rope_2d", "learned_2d")},
    "pos.scaling=yarn pos.factor=4 pos.trained_len=11": "",
    "pos.scaling=dynamic pos.factor=2 pos.trained_len=11": "",
    "pos.layout=interleaved pos.fraction=0.5": "",
    "pos.logn=11": "",
    "mask=window mask.window=7": "",
    "mask=local_global mask.window=7": "",
    "mask=local_global mask.window=7 mask.first=global pos=local_global pos.first=global": "",
    "mask=prefix": "prefix=[0.25,0.75]",
    "mask=prefix pos=alibi": "prefix=[0.25,0.75]",
    "mask=full": "train.batch_size=12",
    **{f"attn={name}": "" for name in ("gqa", "mqa")},
    "attn.qk_norm=head attn.qkv_bias=true attn.out_bias=true": "",
    "attn.qk_norm=width attn.softcap=20 attn.scale=0.2": "",
    "pos=alibi attn.softcap=20": "",
    **{f"head={name}": "" for name in ("norm_head", "mlm")},
    "head.softcap=5 head.scale=0.5 head.bias=true": "",
    "init=normal": "",
    "embed.tied=true embed.scale=none": "init=normal",
    "embed.norm=true embed.types=2 embed.width=20": "",
    "data=masked": "mask=full head=mlm",
    "data=blank": "mask=prefix pos=learned_2d",
    **{f"data={name}": "" for name in ("copy", "reverse", "recall", "modadd", "parity", "dyck", "odd_one_out")},
    "train.accumulate=3 dropout=0.1": "",
    "train.checkpoint=true pos=t5": "",
    "train.clip=0.3 train.weight_decay=0.5 train.warmup=9": "",
}  # fmt: skip
"""What is told apart, and what else it needs."""

INIT_THEN = ("init=normal", "init.std=0.02", "init.depth_scaled=true")
"""Of every preset but those of DeepNorm; by now each starts as its release or its class does (tests/hub/test_preset_init.py)."""

PRESETS = {
    name: (f"preset={name}", "size=nano", "data=text", "mask.window=9" if "gemma" in name else "seed=1")
    + (INIT_THEN if name != "chatglm_6b" else ())
    for name in (
        "bert_base",
        "chatglm_6b",
        "gemma2_2b",
        "gemma3_1b",
        "gpt_neox_20b",
        "olmo2_7b",
        "qwen_7b",
        "bloom_560m",
        "opt_350m",
    )
}


def words_of(case: str) -> tuple[str, ...]:
    if case in PRESETS:
        own = [word for word in SMALL if not word.startswith("size.")]
        prefix = ["prefix=[0.25,0.75]"] if case == "chatglm_6b" else []
        return (*PRESETS[case], *own, *prefix)
    return (*SMALL, *CASES[case].split(), *case.removeprefix("default").split())


def losses(case: str, folder: Path) -> list[float]:
    """Of all 30 steps of a run."""
    directory = lab.run(in_turn(*words_of(case), f"output={folder}"), plots=False)
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def first_losses(case: str, steps: int) -> list[float]:
    """Of a run that is stopped after so many steps, and leaves no files."""
    cfg, stop = in_turn(*words_of(case)), Stop()
    settings, decoder = settings_of(cfg), build(cfg)
    if settings.checkpoint:
        decoder.recompute_activations()

    def tick(step: int, *_: float | None) -> None:
        if step == steps:
            stop.hear(signal.SIGINT, None)

    return train(
        decoder, open_source(cfg), settings, machine_of(cfg), seed=training_seed(cfg), stop=stop, tick=tick,
        validate=lambda: None, report=lambda record: None,
    ).losses  # fmt: skip


WHOLE = {"default", "mask=prefix", "chatglm_6b", "data=masked", "train.accumulate=3 dropout=0.1"}
"""Whole runs that are made always; the others' first four steps are, and all 30 are slow."""

LIKE_ANOTHER = {f"ffn={name}" for name in ("geglu_tanh", "reglu", "glu", "bilinear", "gelu_tanh", "silu", "relu2")}
"""Of one class with another, but for the activation, which tests/blocks holds to its formula."""


def agree(seen: list[float], expected: list[float]) -> None:
    # Nothing in the first loss has been through an update, so only the order of sums can move it.
    assert seen == pytest.approx(expected, rel=1e-6)


def others():
    rows = (case for case in (*CASES, *PRESETS) if case not in WHOLE)
    return [pytest.param(case, marks=[pytest.mark.slow] * (case in LIKE_ANOTHER)) for case in rows]


@pytest.mark.parametrize("case", others())
def test_the_first_losses_are_those_of_before(case):
    agree(first_losses(case, 4), json.loads(RECORDS.read_text())[case][:4])


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case not in WHOLE)) for case in (*CASES, *PRESETS)]
)
def test_the_losses_are_those_of_before(case, tmp_path):
    expected = json.loads(RECORDS.read_text())[case]
    seen = losses(case, tmp_path)
    assert len(seen) == len(expected) == 30
    agree([seen[0], seen[-1]], [expected[0], expected[-1]])


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        RECORDS.write_text(
            json.dumps({case: losses(case, Path(folder)) for case in (*CASES, *PRESETS)}, indent=0) + "\n"
        )
