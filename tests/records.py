"""Records of runs that never ran, for tests of what is made of records."""

import json
from pathlib import Path

import yaml


def write_run(
    folder: Path,
    *asked: str,
    seed: int = 0,
    val_loss: float | None = 2.0,
    name: str | None = None,
    config=None,
    **summary,
) -> Path:
    """A run's directory as the logbook leaves it; `asked` are overrides, dotted keys of `config` replace defaults."""
    settings = {
        "seed": seed,
        "device": "auto",
        "output": str(folder),
        "prefix": None,
        "train": {"steps": 40, "batch_size": 3, "train_len": 32, "lr": 0.003},
        "eval": {"tokens": 640, "lengths": [1, 2, 4], "protocol": "disjoint", "stride": None},
        "norm": {"_target_": "archlab.blocks.norm.RMSNorm", "eps": 1e-6},
        "ffn": {"_target_": "archlab.blocks.ffn.Gated"},
        "size": {"d_model": 24, "d_ff": 64, "vocab_size": 256},
        "choices": {"norm": "rms", "ffn": "swiglu", "pos": "rope", "mask": "causal"},
    }
    for word in asked:
        key, _, value = word.partition("=")
        put(settings, f"choices.{key}" if key in settings["choices"] else key, yaml.safe_load(value))
    if settings["choices"]["norm"] == "layer":
        settings["norm"] |= {"_target_": "archlab.blocks.norm.LayerNorm", "eps": 1e-5}
    for key, value in (config or {}).items():
        put(settings, key, value)
    record = {
        "status": "completed" if val_loss is not None else "diverged",
        "val_loss": val_loss,
        "train_loss": 1.5,
        "corpus_sha256": "aa11",
        "dtype": "float32",
        "leaking": False,
        "n_params": 1234,
        "train_flops_per_token": 600.0,
        "tokens_per_second": 100.0,
        "stability": {"max_grad_norm": 3.5},
        "device": "cpu",
        "seed": seed,
    } | summary
    directory = folder / (name or f"20261101-0000{len(list(folder.glob('*'))):02}-{'_'.join([*asked, f'seed={seed}'])}")
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(settings))
    (directory / "overrides.yaml").write_text(yaml.safe_dump([*asked, f"seed={seed}", f"output={folder}"]))
    (directory / "summary.json").write_text(json.dumps(record))
    steps = [1, 10, 20, 30, 40]
    lines = [{"step": step, "tokens": 96 * step, "loss": 4.0 - step / 20 + (val_loss or 0)} for step in steps]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def put(settings: dict, key: str, value) -> None:
    *path, last = key.split(".")
    for part in path:
        settings = settings.setdefault(part, {})
    settings[last] = value
