"""What the block tests share: sizes that all differ, every option of conf/, and formulas written a second way.

Nothing here asks archlab what to expect: the formulas are plain loops in float64 over indices.
"""

import inspect
import math
import random
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import archlab
from archlab.blocks.context import AttentionContext
from archlab.blocks.kernel import explicit_scores, fused_kernel
from archlab.blocks.token_positions import at_the_start
from archlab.config.compose import in_turn
from archlab.model.decoder import Decoder

CONF = Path(__file__).parents[1] / "conf"
BLOCKS = ("norm", "residual", "ffn", "pos", "mask", "mixer", "head")

BATCH, SEQ, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 2, 7, 6, 3, 10, 4
D_MODEL, D_FF, VOCAB = 48, 88, 61
WINDOW = 4

SIZES = dict(d_model=D_MODEL, n_layers=LAYERS, n_heads=HEADS, head_dim=HEAD_DIM, d_ff=D_FF, vocab_size=VOCAB)
PLAIN = dict(norm="rms", residual="pre", ffn="swiglu", pos="rope", mask="causal", mixer="mha", head="linear")


# --- options of conf/ ---------------------------------------------------------------------------


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def attentions() -> list[str]:
    """The mixers with softmax scores; another's numbers are held to an oracle in a test file of its own."""
    return [name for name in options("mixer") if hasattr(block_and_options("mixer", name)[0], "queries_and_keys")]


def admits(pos: str, mask: str, mixer: str) -> bool:
    """Whether a position scheme and a mask have an effect on a mixer: others are refused."""
    honours = block_and_options("mixer", mixer)[0].honours
    return block_and_options("pos", pos)[0].acts_by() <= honours and (mask == "causal" or "mask" in honours)


@cache
def joins(residual: str, ffn: str) -> bool:
    """Whether a scheme joins the branches that a layer with this network has: two, or the mixer alone."""
    scheme, network = block_and_options("residual", residual)[0], block_and_options("ffn", ffn)[0]
    return network.acts or "branches" in inspect.signature(scheme).parameters


def every_option(*groups: str) -> list[tuple[str, str]]:
    return [(group, name) for group in groups for name in options(group)]


def every_pair_once(rows: list[tuple]) -> list:
    """The rows as parameters of a test, all slow but few that hold every pair of values that any of them holds.

    Two values that are wrong together are told by these; chosen are first the rows all of whose pairs are new.
    """
    pairs = {row: set(combinations(enumerate(row), 2)) for row in rows}
    seen, chosen = set(), set()
    for new in range(max(map(len, pairs.values())), 0, -1):
        for row in rows:
            if len(pairs[row] - seen) >= new:
                chosen.add(row)
                seen |= pairs[row]
    return [row if row in chosen else pytest.param(*row, marks=pytest.mark.slow) for row in rows]


def every_three(
    columns: dict[str, list[str]], completed: Callable[[dict[str, str], random.Random], dict[str, str] | None]
) -> list[dict[str, str]]:
    """Choices of an option of each group which hold every three options that some choice holds: all there are would take hours.

    `completed` gives a choice that holds the wanted options, or None where there is none; it is asked for the threes that
    no choice so far holds.
    """
    draw, seen, chosen = random.Random(0), set(), []
    for groups in combinations(columns, 3):
        for three in product(*(columns[group] for group in groups)):
            wanted = dict(zip(groups, three, strict=True))
            if tuple(wanted.items()) not in seen and (choice := completed(wanted, draw)):
                seen |= set(combinations(choice.items(), 3))
                chosen.append(choice)
    return chosen


@cache
def read(group: str, name: str) -> DictConfig:
    loaded = OmegaConf.load(CONF / group / f"{name}.yaml")
    own = loaded[group] if group in loaded else loaded  # an option that speaks of the whole configuration
    whole = OmegaConf.create({"dropout": 0.0, "documents": False, "train": {"train_len": WINDOW}, group: own})
    OmegaConf.resolve(whole)
    return whole[group]


def node(group: str, name: str) -> DictConfig:
    """An option's yaml with what it refers to filled in: no dropout, a window shorter than a sequence."""
    return deepcopy(read(group, name))


@cache
def block_and_options(group: str, name: str) -> tuple[type, dict]:
    own = OmegaConf.to_container(read(group, name))
    block = get_class(own.pop("_target_"))
    assert own.pop("_partial_"), f"conf/{group}/{name}.yaml: each layer makes an instance of its own"
    return block, instantiate(own, _convert_="all")


def make(group: str, name: str, **changes) -> partial:
    """What the Decoder is given for an option: it makes a block each time it is called."""
    block, own = block_and_options(group, name)
    return partial(block, **{**deepcopy(own), **changes})


# --- configurations -------------------------------------------------------------------------------


@cache
def composed_once(words: tuple[str, ...]) -> DictConfig:
    return in_turn(*words)


def composed(*words: str) -> DictConfig:
    """What archlab makes of these words, a later one in the place of an earlier, once a process; who asks again has a copy."""
    return deepcopy(composed_once(words))


def built(*words: str) -> Decoder:
    """What archlab.build makes of these words; only the configuration is shared."""
    return archlab.build(composed(*words))


# --- blocks with random weights -----------------------------------------------------------------


def randomise(module: nn.Module) -> nn.Module:
    """Weights that keep a signal's size, gains around one and biases around zero, so that each of them counts."""
    for name, weight in module.named_parameters():
        with torch.no_grad():
            weight.normal_().mul_(0.3 if weight.dim() == 1 else weight.shape[-1] ** -0.5)
            if weight.dim() == 1 and not name.endswith(("bias", "shift")):
                weight.add_(1)
    return module


def build(dtype=torch.float64, fresh: bool = False, **choices) -> Decoder:
    """A decoder of the sizes above; a block is an option's name or what `make` returns, anything else a size.

    Its weights are random in every place, unless it is to be `fresh`.
    """
    chosen = {**PLAIN, **choices}
    if isinstance(chosen["mixer"], str) and "pos" not in choices:
        honours = block_and_options("mixer", chosen["mixer"])[0].honours
        chosen |= {} if "rotation" in honours else {"pos": "none"}
    parts = {
        group: make(group, part) if isinstance(part, str) else part for group, part in chosen.items() if group in BLOCKS
    }
    sizes = {**SIZES, **{key: value for key, value in chosen.items() if key not in BLOCKS}}
    sizes.setdefault("n_kv_heads", parts["mixer"].func.default_kv_heads(sizes["n_heads"]))
    decoder = Decoder(**sizes, **parts)
    return (decoder if fresh else randomise(decoder)).to(dtype)


def make_scheme(name: str, norm, n_layers: int = LAYERS, **options) -> nn.Module:
    """A residual scheme, as it is in the second layer."""
    part, place = make("residual", name, **options), {"d_model": D_MODEL, "layer": 1}
    takes = inspect.signature(part.func).parameters
    return part(norm=norm, n_layers=n_layers, **{key: value for key, value in place.items() if key in takes})


def make_reading(
    pos: str | partial, mask: str | partial, seq_len: int, prefix_len=0, n_heads: int = HEADS
) -> AttentionContext:
    pos = make("pos", pos) if isinstance(pos, str) else pos
    mask = make("mask", mask) if isinstance(mask, str) else mask
    position = pos(d_model=D_MODEL, n_heads=n_heads, head_dim=HEAD_DIM)
    prefix_len = torch.as_tensor(prefix_len).view(-1)
    token_positions = at_the_start(torch.zeros(len(prefix_len), seq_len, dtype=torch.long), position, prefix_len)
    return AttentionContext(position, mask(), token_positions)


def make_attention(name: str, pos="none", mask="causal", n_heads=HEADS, d_model=D_MODEL, head_dim=HEAD_DIM, **changes):
    part = make("mixer", name, **changes)
    pos = make("pos", pos)(d_model=d_model, n_heads=n_heads, head_dim=head_dim)
    kernel = fused_kernel(pos, make("mask", mask)())
    sizes = dict(d_model=d_model, n_heads=n_heads, n_kv_heads=part.func.default_kv_heads(n_heads), head_dim=head_dim)
    takes = inspect.signature(part.func).parameters
    return randomise(part(**{name: value for name, value in (sizes | {"kernel": kernel}).items() if name in takes}))


def draw_tokens(batch: int = BATCH, seq: int = SEQ, vocab: int = VOCAB) -> Tensor:
    return torch.randint(vocab, (batch, seq))


def embeddings_of(decoder: Decoder) -> list[Tensor]:
    """Fills, at the next forward pass, with the token embeddings, which then keep their gradient."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    decoder.embedding.register_forward_hook(keep)
    return kept


# --- formulas, a second time --------------------------------------------------------------------

MAY_READ: dict[str, Callable[[int, int, int], bool]] = {
    "causal": lambda query, key, prefix: key <= query,
    "prefix": lambda query, key, prefix: key <= query or key < prefix,
    "window": lambda query, key, prefix: 0 <= query - key <= WINDOW - 1,
    "full": lambda query, key, prefix: True,
    "chunked": lambda query, key, prefix: any(
        start <= key <= query < start + WINDOW for start in range(0, query + 1, WINDOW)
    ),
    "document": lambda query, key, prefix: key <= query,  # of a sequence that is one document
}
"""The masks that are the same in every layer."""

LOG2_SLOPES = {
    6: [-2, -4, -6, -8, -1, -3],
    12: [-1, -2, -3, -4, -5, -6, -7, -8, -0.5, -1.5, -2.5, -3.5],
    40: [-0.25 * h for h in range(1, 33)] + [-0.125 - 0.25 * h for h in range(8)],
}

BIAS: dict[str, Callable[[int, int, int], float]] = {
    "none": lambda head, query, key: 0.0,
    "alibi": lambda head, query, key: -(2.0 ** LOG2_SLOPES[HEADS][head]) * abs(query - key),
}


def attend(q: Tensor, k: Tensor, v: Tensor, can_attend, bias, softcap: float | None = None) -> Tensor:
    """Attention query by query, over the keys it may read and no others; query head h reads kv head h // group.

    q, k, v are (batch, heads, seq, head_dim); can_attend(sequence, query, key); bias(head, query, key).
    """
    batch, heads, seq, head_dim = q.shape
    group = heads // k.shape[1]
    read = torch.zeros(batch, heads, seq, head_dim, dtype=torch.float64)
    for b, h, i in product(range(batch), range(heads), range(seq)):
        keys = [j for j in range(seq) if can_attend(b, i, j)]
        scores = k[b, h // group, keys].double() @ q[b, h, i].double() / math.sqrt(head_dim)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores + torch.tensor([bias(h, i, j) for j in keys], dtype=torch.float64)
        weights = torch.exp(scores - scores.max().detach())
        read[b, h, i] = (weights / weights.sum()) @ v[b, h // group, keys].double()
    return read


def gradients(output: Tensor, inputs, seed: int = 5) -> tuple[Tensor, ...]:
    """Of a random direction of the output, the same one for every output of one shape."""
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad((output * direction.to(output.dtype)).sum(), list(inputs))


def scores_of(attention, x, context, block):
    """The scores of a block of queries, biases included, before they become weights; float32, -inf where a key is masked."""
    q, k = attention.queries_and_keys(x, context)
    return explicit_scores(q, k, attention.own_bias(x, context).of(block), attention.cap)
