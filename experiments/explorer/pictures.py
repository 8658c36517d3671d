"""The pictures of docs/looking.md: what the explorer's verbs print and draw, taken from the verbs themselves.

python experiments/explorer/pictures.py
"""

import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
WIDTH = 92
FORMAT = """<svg viewBox="0 0 {terminal_width} {terminal_height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
{styles}</style>
<defs>{lines}</defs>
<rect width="{terminal_width}" height="{terminal_height}" fill="#0c0c0c"/>
<g transform="translate(8, 8)"><g class="{unique_id}-matrix">{backgrounds}{matrix}</g></g>
</svg>
"""
PRINTED = {
    "show": ["show", "preset=chatglm_6b", "dropout=0.1", "train.train_len=2048", "memory.budget=192GB"],
    "diff": ["diff", "llama_7b", "chatglm_6b", "seq_len=2048"],
    "ladder": ["diff", "norm=rms", "norm=layer residual=deep pos=alibi", "--ladder"],
    "verify": ["verify", "pos=alibi"],
}
DRAWN = {
    "draw.svg": ["draw", "gemma2_2b", "output=draw.svg"],
    "side_by_side.svg": ["diff", "llama_7b", "chatglm_6b", "output=side_by_side.svg"],
    "bias.svg": ["draw", "pos=alibi", "mask=prefix", "output=bias.svg"],
}


def told(words: list[str]) -> str:
    environment = os.environ | {"COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, "-m", "archlab", *words]
    return subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=True).stdout


def main() -> None:
    for name, words in PRINTED.items():
        console = Console(record=True, width=WIDTH, file=io.StringIO())
        console.print(Text(f"$ archlab {' '.join(w if ' ' not in w else repr(w) for w in words)}", "bold"))
        console.print(Text.from_ansi(told(words)), soft_wrap=False)
        console.save_svg(str(HERE / f"{name}.svg"), code_format=FORMAT, unique_id=name)
    for words in DRAWN.values():
        told(words)


if __name__ == "__main__":
    main()
