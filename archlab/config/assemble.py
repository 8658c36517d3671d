"""From a configuration to a model."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.overrides import TorchFunctionMode

from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError
from archlab.config.groups import BLOCKS, locate, option
from archlab.config.plan import IN_LAYERS, Choice, loop_of, plans_of
from archlab.model.decoder import Decoder
from archlab.model.further import FurtherTokens
from archlab.model.layer_parts import LayerParts
from archlab.model.mtp import FORMS

MADE_FROM = "made_from"
"""Where a decoder keeps the configuration it was assembled from, as plain data."""


@contextmanager
def in_the_users_words() -> Iterator[None]:
    """Hydra wraps a constructor's exception in its own; inside this, a UserError is raised unwrapped."""
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def assemble(cfg: DictConfig) -> Decoder:
    """The decoder a settled configuration describes, its weights not yet set."""
    plain = plain_dict(cfg, resolve=True)  # once, for OmegaConf takes longer over it than torch over a small decoder
    embed = plain["embed"]
    with in_the_users_words():
        blocks = {group: maker(group, plain[group]) for group in BLOCKS}
        layers = makers(plain, blocks)
        embedding = {
            "tied": embed["tied"],
            "embed_norm": embed["norm"],
            "embed_scale": embed["scale"],
            "embed_width": embed["width"],
            "embed_types": embed["types"],
            "dropout": plain["dropout"],
            "kernel": plain["kernel"],
            "canon": plain.get("canon"),  # a run's file may be older than it
            "skips": plain.get("skips"),
            **{f"loop_{name}": value for name, value in loop_of(plain).items()},
            "mtp": further_tokens(plain["mtp"]),
        }
        try:
            decoder = Decoder(**plain["size"], **blocks, layers=layers, **embedding)
        except UserError as error:
            raise UserError(by_options(str(error), plain)) from None
    setattr(decoder, MADE_FROM, plain)
    return decoder


def further_tokens(mtp: Mapping[str, Any]) -> Callable[..., FurtherTokens] | None:
    """Makes the heads of the tokens after the next, where more than that one is predicted."""
    if mtp["form"] is None:
        return None
    return partial(FORMS[mtp["form"]], tokens=mtp["tokens"], weight=mtp["weight"])


def by_options(message: str, cfg: Mapping[str, Any]) -> str:
    """A block's error line with each block named by its option, norm=batch, instead of its class, norm=BatchNorm."""
    for group in BLOCKS:
        name = cfg[group]["_target_"].rpartition(".")[2]
        message = re.sub(rf"(?<![\w.]){group}={name}\b", f"{group}={option(cfg, group)}", message)
    return message


def makers(cfg: Mapping[str, Any], blocks: Mapping[str, Any]) -> list[LayerParts]:
    """The parts of each layer; layers with the same choice get the same constructor, those of the model's choice its `blocks`."""
    plans = plans_of(cfg)
    made = {Choice.of(group, option(cfg, group), cfg[group]): blocks[group] for group in IN_LAYERS}
    for plan in plans:
        for choice in (getattr(plan, group) for group in IN_LAYERS):
            if choice not in made:
                made[choice] = maker(choice.group, choice.node)
    return [
        LayerParts(
            **{group: made[getattr(plan, group)] for group in IN_LAYERS}, d_ff=plan.d_ff, n_kv_heads=plan.n_kv_heads
        )
        for plan in plans
    ]


def maker(group: str, node: Mapping[str, Any]) -> Any:
    """The constructor that an option names, with its options.

    Hydra takes a third of the time in which a decoder is assembled, so it is asked once for equal options of the same
    classes.
    """
    within = list(mappings_within(node))
    if not all("_target_" in one and one.get("_partial_") for one in within):  # a block is made here, each time anew
        return plainly(instantiate(node))
    return _maker(tuple(locate(group, one["_target_"]) for one in (node, *within)), json.dumps(node))


def mappings_within(value: Any) -> Iterator[Mapping[str, Any]]:
    """The mappings among an option's fields, however deep: constructors, with `_partial_`, or what is made with the option."""
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        if isinstance(one, Mapping):
            yield one
        yield from mappings_within(one)


@lru_cache(512)
def _maker(named: tuple[type, ...], node: str) -> Any:
    """What Hydra makes of an option; `named` are the classes that the option names."""
    return plainly(instantiate(json.loads(node)))


def plainly(made: Any) -> Any:
    """A constructor with its options, as a partial of Python's own.

    Each call of Hydra's looks again whether what it calls may be called and what it returns may be returned, which took
    a third of the time of a model of many layers; `locate` has found that it is a block.
    """
    return partial(made.func, *made.args, **made.keywords) if isinstance(made, partial) else made


class NothingDrawn(TorchFunctionMode):
    """Inside, no initial weights are drawn.

    On the meta device there are no numbers to set, yet for a draw torch runs Python code that imports its compiler,
    which takes a second.
    """

    DRAWS = (Tensor.normal_, Tensor.uniform_)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in self.DRAWS or getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def assemble_without_weights(cfg: DictConfig) -> Decoder:
    """The same decoder on the meta device: every module and shape, no memory."""
    try:
        with torch.device("meta"), NothingDrawn():
            return assemble(cfg)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise UserError(
            f"size: a weight of this model would have more bytes than can be counted, at size.d_model={cfg.size.d_model} and"
            f" size.d_ff={cfg.size.d_ff}; use a smaller size"
        ) from None


def build(cfg: DictConfig) -> Decoder:
    """The decoder with its initial weights, which depend on `seed` and on nothing drawn before."""
    decoder = assemble(cfg)
    instantiate(cfg.init)(decoder, cfg.seed)
    return decoder


def settle_size(cfg: DictConfig) -> None:
    """Replaces sizes that are left to a rule by the rule's number."""
    size = cfg.size
    size.n_kv_heads = kv_heads(cfg)
    size.head_dim = head_dim(cfg)
    size.d_ff = d_ff(cfg)


def kv_heads(cfg: DictConfig) -> int:
    return kv_heads_of(cfg.mixer, option(cfg, "mixer"), cfg.size.n_heads, cfg.size.n_kv_heads)


def kv_heads_of(node: Mapping[str, Any], name: str, n_heads: int, asked: int | None) -> int:
    """The requested number of key-value heads, if the mixer admits it; without a request, the mixer's default."""
    default = default_kv_heads(node, n_heads)
    admits = locate("mixer", node["_target_"]).admits
    if asked is not None and not admits(n_heads, asked):
        may = [n for n in range(1, n_heads + 1) if n != default and n_heads % n == 0 and admits(n_heads, n)]
        others = f", or may have {', '.join(map(str, may))}" if may else ""
        raise UserError(
            f"size.n_kv_heads={asked}: mixer={name} with size.n_heads={n_heads} has {default} of them{others};"
            " leave it null, or use mixer=gqa with a divisor of size.n_heads"
        )
    return default if asked is None else asked


def default_kv_heads(node: Mapping[str, Any], n_heads: int) -> int:
    return locate("mixer", node["_target_"]).default_kv_heads(n_heads)


def head_dim(cfg: DictConfig) -> int:
    d_model, n_heads, asked = cfg.size.d_model, cfg.size.n_heads, cfg.size.head_dim
    if asked is None and d_model % n_heads:
        raise UserError(
            f"size.n_heads={n_heads}: does not divide size.d_model={d_model}; use a divisor of it, or set size.head_dim"
        )
    return d_model // n_heads if asked is None else asked


def d_ff(cfg: DictConfig) -> int:
    return default_d_ff(cfg.ffn, cfg.size.d_model) if cfg.size.d_ff == "matched" else cfg.size.d_ff


def default_d_ff(node: Mapping[str, Any], d_model: int) -> int:
    """4 d_model, or for a gated network, which has three matrices instead of two, 2/3 of that rounded up to a multiple of 8.

    Source: arXiv:2002.05202, sec. 2.
    """
    plain = 4 * d_model
    return -(-plain * 2 // 3 // 8) * 8 if locate("ffn", node["_target_"]).has_gate(node) else plain
