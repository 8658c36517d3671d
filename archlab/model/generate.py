"""Text from a decoder: one token after the other, each the likeliest or drawn from the likely ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import RLock
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from archlab.base.errors import UserError
from archlab.blocks.cache import Cache
from archlab.model.decoder import Decoder
from archlab.model.layout import laid_out_for, side_by_side

Logits = Float[Tensor, "batch vocab"]

TURNS: WeakKeyDictionary[Decoder, RLock] = WeakKeyDictionary()
"""By decoder, held while it is asked: its mode is another meanwhile, and so is how its weights lie in memory."""


def generate(
    decoder: Decoder,
    tokens: Int[Tensor, "batch seq"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    padding: Int[Tensor, " batch"] | None = None,
    prefix_len: int | Int[Tensor, " batch"] | None = None,
    eos: int | None = None,
    seed: int = 0,
) -> Int[Tensor, "batch seq_with_new"]:
    """The tokens and up to `max_new_tokens` after them, (batch, seq + new), from a cache of keys and values.

    Options:

    temperature  0: each new token is the likeliest; above 0 it is drawn from softmax(logits / temperature)
    top_k        draws from the k likeliest tokens alone
    top_p        draws, after top_k, from the fewest likeliest tokens whose probabilities add up to p at least
    eos          the token that ends a sequence; it is repeated until every sequence has ended
    padding, prefix_len
                 are `Decoder.forward`'s
    seed         the same seed gives the same tokens on the same kind of device

    The decoder is left in the mode, training or evaluation, that it was in. Threads that ask the same one take turns.

    Raises UserError where an option is out of range or changes nothing, or the model can't be decoded from a cache.
    Source: arXiv:1805.04833, sec. 5.4 (top-k); arXiv:1904.09751, sec. 3.1 (top-p).
    """
    check_options(max_new_tokens, temperature, top_k, top_p, eos, seed)
    check_tokens(tokens, eos, decoder.embedding.num_embeddings)
    check_table(decoder, tokens, max_new_tokens, padding)
    generator = torch.Generator(tokens.device).manual_seed(seed)
    with TURNS.setdefault(decoder, RLock()), evaluating(decoder), torch.inference_mode():
        with side_by_side(decoder) as maps:
            first = decoder(tokens, prefix_len, padding=padding, cache=(cache := Cache()))[:, -1]
        with laid_out_for(maps, len(tokens), max_new_tokens):
            said = go_on(
                decoder,
                first,
                cache,
                max_new_tokens,
                partial(choose, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator),
                eos,
            )
    return torch.cat((tokens, *said), dim=1)  # outside of inference mode, so that a model can be trained on them


@contextmanager
def evaluating(decoder: Decoder) -> Iterator[None]:
    """Inside, the decoder is in evaluation mode; afterwards each of its modules is in the mode that it was in."""
    modes = {module: module.training for module in decoder.modules()}
    decoder.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def go_on(
    decoder: Decoder, logits: Logits, cache: Cache, n: int, choose: Callable[[Logits], Tensor], eos: int | None
) -> list[Int[Tensor, "batch 1"]]:
    """Up to n tokens after the cached ones, given the logits of the first."""
    ended, said = torch.zeros(len(logits), dtype=torch.bool, device=logits.device), []
    for step in range(n):
        new, ended = keep_ended(choose(logits), ended, eos)
        said.append(new[:, None])
        if step + 1 == n or (eos is not None and ended.all()):
            break
        logits = decoder(new[:, None], cache=cache)[:, -1]
    return said


def choose(
    logits: Logits, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Int[Tensor, " batch"]:
    """The next token of each sequence."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    likely = keep_top_k(logits.float(), top_k)
    likely = keep_top_p(flattened(likely, temperature), top_p)
    return torch.multinomial(likely.softmax(dim=-1), 1, generator=generator).squeeze(1)


def flattened(logits: Logits, temperature: float) -> Logits:
    """(logits - their maximum) / temperature: near temperature 0 all others go to -inf, and nothing overflows."""
    return (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, torch.finfo(torch.float32).tiny)


def keep_top_k(logits: Logits, top_k: int | None) -> Logits:
    """-inf for all but the k largest; of equal ones those of the lowest ids stay."""
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    order = logits.argsort(descending=True, stable=True)
    return logits.scatter(1, order[:, top_k:], float("-inf"))


def keep_top_p(logits: Logits, top_p: float | None) -> Logits:
    """-inf for all but the fewest, from the likeliest down, whose probabilities add up to p; the likeliest stays.

    Added up in float64: in float32 the sum over a vocabulary of 50,000 reaches 1 before its end.
    """
    if top_p is None or top_p == 1:
        return logits
    order = logits.argsort(descending=True, stable=True)
    probabilities = logits.softmax(dim=-1).gather(1, order).double()
    before = probabilities.cumsum(dim=-1) - probabilities
    enough = before >= top_p * (1 - ROUNDING)
    return logits.masked_fill(enough.scatter(1, order, enough), float("-inf"))


ROUNDING = 2**-21
"""Eight roundings of a float32: by so much a softmax's probabilities may fall short of the p that they add up to."""


def keep_ended(
    new: Int[Tensor, " batch"], ended: Bool[Tensor, " batch"], eos: int | None
) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """The new tokens, `eos` where a sequence had ended before; and which have ended now."""
    if eos is None:
        return new, ended
    new = new.masked_fill(ended, eos)
    return new, new == eos


def check_options(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, eos: int | None, seed: int
) -> None:
    """Raises UserError where an option is out of range, or changes nothing."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: should be at least 1")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature}: should be 0, for the likeliest token, or a number above it")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k}: should be at least 1, the number of tokens to draw from")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}: should be a probability above 0 and at most 1")
    for name, value in (("top_k", top_k), ("top_p", top_p)):
        if value is not None and temperature == 0:
            raise UserError(
                f"{name}={value}: changes nothing at temperature=0, which takes the likeliest token; set a temperature"
                " above 0, such as temperature=1, or leave it out"
            )
    if eos is not None and eos < 0:
        raise UserError(f"eos={eos}: should be a token id, 0 or above")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed={seed}: should be from 0 to 2^63 - 1")


def check_tokens(tokens: Int[Tensor, "batch seq"], eos: int | None, vocab_size: int) -> None:
    """Raises UserError where the prompt is empty, or a token is not in the vocabulary."""
    if tokens.numel() == 0:
        raise UserError("prompt: is empty; give at least one token to go on from")
    if not (0 <= tokens.min() and tokens.max() < vocab_size):
        wrong = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
        raise UserError(f"prompt: has token {int(wrong)}, and the model's vocabulary ends at {vocab_size - 1}")
    if eos is not None and eos >= vocab_size:
        raise UserError(
            f"eos={eos}: is never said, since the model's vocabulary ends at {vocab_size - 1}; leave it out"
        )


def check_table(decoder: Decoder, tokens: Tensor, max_new_tokens: int, padding: Tensor | None) -> None:
    """Raises UserError where a sequence grows beyond a table of positions; its last token needs none."""
    limit = decoder.position.limit
    longest = tokens.shape[1] - (0 if padding is None else int(padding.min()))
    if limit is not None and longest + max_new_tokens - 1 > limit:
        raise UserError(
            f"max_new_tokens={max_new_tokens}: after a prompt of {longest} tokens goes beyond the table of {limit}"
            f" positions; use at most {max(0, limit - longest + 1)}, a shorter prompt, or a scheme without a table"
        )
