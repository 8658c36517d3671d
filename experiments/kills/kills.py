"""Kills real runs at random moments, finishes each, and compares it with the run that nobody touched.

python experiments/kills/kills.py [--seed N] [--kills N]     prints the table of experiments/kills/README.md
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = (
    "size=nano", "train.steps=150", "train.train_len=32", "train.batch_size=8", "train.save_every=7", "train.eval_every=25",
    "train.patience=9", "probe.every=10", "dropout=0.1", "eval.tokens=16384", "device=cpu",
)  # fmt: skip
TIMES = {"tokens_per_second", "first_step_seconds", "wall_seconds"}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def archlab(*words: str, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "archlab", *words]
    return subprocess.Popen(
        command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def outcome(directory: Path) -> dict:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((directory / "summary.json").read_text())
    return {
        "weights": (directory / "model.safetensors").read_bytes(),
        "metrics": [{name: value for name, value in line.items() if name not in TIMES} for line in lines],
        "steps": (directory / "steps.jsonl").read_bytes(),
        "positions": (directory / "positions.json").read_bytes(),
        "summary": {name: value for name, value in summary.items() if name not in TIMES},
    }


def moment(directory: Path | None) -> str:
    """Where the run was, by what it had written."""
    if directory is None or not (directory / "config.yaml").exists():
        return "before it began"
    names = {file.name for file in directory.iterdir()}
    if any(".part" in name for name in names):
        return (
            "while " + re.sub(r"^\.|\.\d+\.part", "", next(name for name in names if ".part" in name)) + " was written"
        )
    if "positions.json" in names:
        return "while the end was written"
    if any(name.endswith(".png") for name in names):
        return "plotting"
    if "metrics.jsonl" in names and '"step": 150' in (directory / "metrics.jsonl").read_text():
        return "evaluating"
    return "training"


def written(place: Path) -> int:
    """Steps whose losses are on the disk; -1 before the run has a directory."""
    return max((reached(file.parent) for file in place.glob("*/config.yaml")), default=-1)


def reached(directory: Path) -> int:
    file = directory / "steps.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kills", type=int, default=20)
    asked = options.parse_args()
    draw = random.Random(asked.seed)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # what is started in the background ignores it, children too
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        home = Path(folder)
        archlab(*WORDS, "output=whole", cwd=home).communicate()
        (whole,) = (home / "whole").iterdir()
        expected = outcome(whole)
        tail = (whole / "summary.json").stat().st_mtime - (whole / "steps.jsonl").stat().st_mtime
        print("| kill | signal | moment | steps written | resumed | bitwise equal |\n|---|---|---|---|---|---|")
        equal = 0
        for kill in range(1, asked.kills + 1):
            place = home / f"cut-{kill}"
            number = draw.choice([signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGINT])
            process = archlab(*WORDS, f"output={place}", cwd=home)
            # Training and what follows it get kills alike, though training takes longer.
            step, later = (draw.randrange(150), 0.02) if draw.random() < 0.6 else (150, tail)
            while process.poll() is None and written(place) < step:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, later))
            (directory,) = place.iterdir()
            if process.poll() is None:
                process.send_signal(signal.SIGSTOP)  # so that what is seen is what is killed
                where, steps = moment(directory), reached(directory)
                process.send_signal(number)
                process.send_signal(signal.SIGCONT)
            else:
                where, steps = "after its end", reached(directory)
            process.communicate()
            again = archlab("resume", str(directory), cwd=home)
            said = again.communicate()[1]
            after = re.search(r"goes on after step (\d+)", said)
            resumed = (
                f"after step {after[1]}"
                if after
                else "begun anew"
                if "begins anew" in said
                else "nothing was left to do"
            )
            same = again.returncode == 0 and outcome(directory) == expected
            equal += same
            name = signal.Signals(number).name
            print(f"| {kill} | {name} | {where} | {steps} of 150 | {resumed} | {'yes' if same else 'NO'} |", flush=True)
        print(f"\n{equal} of {asked.kills} are the run that nobody touched, bitwise.")


if __name__ == "__main__":
    main()
