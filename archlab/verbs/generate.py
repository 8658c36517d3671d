"""How a run's model continues a prompt."""

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import RenderableType
from rich.text import Text

from archlab.base.arguments import checked
from archlab.base.errors import UserError, printable
from archlab.base.quantities import Count, Natural
from archlab.model.generate import generate as tokens_after
from archlab.runs.load import load_run
from archlab.verbs.shown import Shown


@dataclass(frozen=True, repr=False)
class GeneratedText(Shown):
    """The prompt and what came after it; bytes that are not UTF-8 are written as U+FFFD."""

    text: str
    prompt: str

    @property
    def new(self) -> str:
        """What came after the prompt."""
        return self.text.removeprefix(self.prompt)

    def __rich__(self) -> RenderableType:
        return Text(printable(self.text))  # control characters in the text would act on a terminal


@checked
def generate(
    run: str | Path,
    prompt: str,
    *,
    max_new_tokens: Count = 200,
    temperature: float = 0.0,
    top_k: Count | None = None,
    top_p: float | None = None,
    seed: Natural = 0,
    config_dir: str | Path | None = None,
) -> GeneratedText:
    """Continues a prompt with the model of a run's directory; under a prefix mask the prompt is the prefix.

    A model that was trained with a sink token is given it before the prompt. `archlab.model.generate.generate` says what the
    settings mean. Raises UserError where the run has no text model.
    """
    if not prompt:
        raise UserError("prompt: is empty; give the text to continue, as in prompt='In the beginning'")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # as of bytes on the command line that are not UTF-8
        raise UserError(
            f"prompt={prompt!a}: has no letter at place {error.start + 1}, but a byte that is not UTF-8; give text"
        ) from None
    cfg, decoder = load_run(run, config_dir=config_dir)
    check_bytes(str(run), cfg)
    head = [] if cfg.get("sink_token") is None else [cfg.sink_token]
    tokens = torch.tensor([[*head, *prompt.encode()]])
    out = tokens_after(
        decoder,
        tokens,
        prefix_len=tokens.shape[1] if decoder.mask.uses_prefix else None,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    return GeneratedText(bytes(out[0, len(head) :].tolist()).decode(errors="replace"), prompt)


def check_bytes(run: str, cfg: DictConfig) -> None:
    """Raises UserError where the model's tokens are not bytes of text."""
    if cfg.choices.data not in ("text", "python", "file", "hf") or cfg.data.get("tokenizer"):
        raise UserError(
            f"{run}: was trained on data={cfg.choices.data}, whose tokens are not bytes of text; give a run of data=text, python"
            " or file"
        )
