"""Whether a configuration can be run: types first, then what goes together.

Every error is one line that names the field, its value, why it is refused and what to use instead.
"""

import inspect
import math
import pydoc
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Annotated, Any, get_type_hints

from annotated_types import Interval, MinLen
from omegaconf import DictConfig, OmegaConf
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError, shortened
from archlab.base.quantities import Count, Depth, Fraction, Literal, Natural, Positive, Probability, Width
from archlab.blocks.contracts import FeedForward, Head, Mask, Mixer, Norm, Position, Residual
from archlab.blocks.flex import LEAST_HEAD_DIM
from archlab.config.plan import course, layer_plans, loop_of
from archlab.cost.estimate import keeps_scores
from archlab.cost.settings import MemorySettings, check_memory
from archlab.data.batch import Source
from archlab.evaluate.settings import EvalSettings
from archlab.initial.settings import PreflightSettings, check_preflight
from archlab.model.decoder import Decoder
from archlab.model.init import Init
from archlab.records.loggers import check_installed
from archlab.train.average import Average
from archlab.train.optimizer import UpdateRule, check_library
from archlab.train.options import LossOptions, TrainOptions
from archlab.train.schedules import Schedule

MOST_TOKENS = 2**28
"""The largest number of tokens in one step or in one sequence."""

BLOCKS = ("norm", "residual", "ffn", "pos", "mask", "mixer", "head")
OF_TRAINING = ("optimizer", "schedule", "average")
GROUPS = (*BLOCKS, "init", "size", "data", *OF_TRAINING)
KINDS: dict[str, type] = {
    "norm": Norm, "residual": Residual, "ffn": FeedForward, "pos": Position, "mask": Mask, "mixer": Mixer, "head": Head, "init": Init, "data": Source,
    "optimizer": UpdateRule, "schedule": Schedule, "average": Average,
}  # fmt: skip


@dataclass(frozen=True)
class TopLevel:
    """The options that belong to no section."""

    seed: Natural
    data_seed: Natural | None
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"]
    kernel: Literal["auto", "dense", "sdpa", "flex", "chunked", "fla"]
    compile: Literal["auto", "on", "off"]
    dropout: Probability
    prefix: list[Fraction] | None
    documents: bool
    sink_token: Natural | None
    random_positions: Count | None
    allow_leak: bool
    canon: str | None
    skips: Literal["unet"] | None
    budget: Literal["chinchilla"] | None
    match: Literal["params", "flops"] | None
    tune: Literal["lr"] | dict[str, Any] | None
    output: Annotated[str, MinLen(1)]
    loggers: list[Literal["wandb", "trackio"]]


@dataclass(frozen=True)
class Size:
    d_model: Width
    n_layers: Depth
    n_heads: Width
    n_kv_heads: Width | None
    head_dim: Width | None
    d_ff: Count | Literal["matched"]
    vocab_size: Annotated[int, Interval(ge=2, lt=2**31)]


@dataclass(frozen=True)
class Embed:
    tied: bool
    norm: bool
    scale: Literal["none", "sqrt_d_model"] | Positive
    width: Width | None
    types: Count | None


@dataclass(frozen=True)
class Loop:
    times: Depth | None
    layers: str | int | None


@dataclass(frozen=True)
class SeveralTokens:
    form: Literal["independent", "chained"] | None
    tokens: Annotated[int, Interval(ge=2, le=64)]
    weight: Positive | None


@dataclass(frozen=True)
class Probe:
    every: Count | None


OF_RECURRENCES = ("chunked", "fla")
"""What `kernel` may be for recurrences alone; softmax attention is then computed as with kernel=auto."""

SECTIONS = {
    "": TopLevel,
    "size": Size,
    "embed": Embed,
    "loop": Loop,
    "mtp": SeveralTokens,
    "train": TrainOptions,
    "loss": LossOptions,
    "probe": Probe,
    "eval": EvalSettings,
    "memory": MemorySettings,
    "preflight": PreflightSettings,
}


def check_types(cfg: DictConfig) -> None:
    """Raises UserError at the first option whose value is not of its type or out of its range."""
    plain = plain_dict(cfg, resolve=True)
    for section, kind in SECTIONS.items():
        check_fields(section, plain[section] if section else plain, {f.name: f.type for f in fields(kind)})
    for group in (*BLOCKS, "init", "data", *OF_TRAINING):
        check_block(group, plain[group])


def check_block(group: str, node: Any) -> None:
    """Checks a block's class against its kind, and its options against the class's constructor."""
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise UserError(
            f"{group}: the yaml of an option needs a _target_, the class to make, such as _target_: mine.Mine"
        )
    if group in BLOCKS and node.get("_partial_") is not True:
        raise UserError(
            f"{group}._partial_: should be true, since every layer makes a block of its own; add _partial_: true"
        )
    kind, block = KINDS[group], locate(group, node["_target_"])
    if not (inspect.isclass(block) and issubclass(block, kind)):
        raise UserError(
            f"{group}._target_={node['_target_']}: is not a {kind.__name__}; derive it from {kind.__module__}.{kind.__name__}"
        )
    check_options(group, node, block)


def check_options(path: str, node: Mapping[str, Any], block: Callable[..., Any]) -> None:
    """Checks options against the class's constructor, and those of blocks within it against theirs."""
    try:
        takes, hints = constructor(block)
    except NameError as error:  # in a type written as text, as with names imported for a type checker alone
        raise UserError(
            f"{path}: {block.__name__} says of an option's type what is not there when it runs: {error}; import it where the"
            " module runs, not under TYPE_CHECKING"
        ) from None
    for name in node:
        if name not in takes and not name.startswith("_"):
            raise UserError(f"{path}.{name}: {block.__name__} takes no such option; it takes {', '.join(takes)}")
    check_fields(path, node, {name: hint for name, hint in hints.items() if name in node})
    for name, value in node.items():
        if isinstance(value, dict) and inspect.isclass(inner := locate(f"{path}.{name}", value.get("_target_", ""))):
            check_options(f"{path}.{name}", value, inner)


@lru_cache(1024)
def constructor(block: Callable[..., Any]) -> tuple[Mapping[str, inspect.Parameter], Mapping[str, Any]]:
    """What a class takes, and of which types."""
    return inspect.signature(block).parameters, get_type_hints(block.__init__, include_extras=True)


def locate(group: str, path: str) -> Any:
    module, _, name = path.rpartition(".")
    if (found := getattr(sys.modules.get(module), name, None)) is not None:  # as all but the first time
        return found
    try:
        found = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"{group}._target_={path}: its module cannot be imported: {error.value}") from None
    if found is None:
        raise UserError(
            f"{group}._target_={path}: not found; name a class by its module, as in mine.Mine, in the folder you run from"
        )
    return found


def check_fields(path: str, given: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    for name, hint in hints.items():
        value = given[name]
        if isinstance(value, dict) and "_target_" in value:
            continue
        try:
            validator(hint).validate_python(value, strict=True)
        except PydanticUserError:
            continue  # the type of an object such as a tensor, which no configuration file can hold
        except ValidationError as error:
            where, shown = f"{path}.{name}" if path else name, "null" if value is None else shortened(str(value))
            raise UserError(f"{where}={shown}: {wanted(value, error)}") from None


def validator(hint: Any) -> TypeAdapter[Any]:
    """Made once for each hint, since to make it takes longer than all else that is asked of an option."""
    try:
        return _validator(hint)
    except TypeError:  # a hint that has no hash, as one with a list among its annotations
        return TypeAdapter(hint)


_validator = lru_cache(1024)(TypeAdapter)


def wanted(value: Any, error: ValidationError) -> str:
    """What a value should have been; a NaN or an infinity should be finite, whatever its bounds."""
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        return "should be a finite number"
    found = {
        e["msg"].removeprefix("Input ").removeprefix("String ").lower()
        for e in error.errors()
        if e["type"] != "none_required"
    }
    return " or ".join(sorted(found))


def check_together(cfg: DictConfig, decoder: Decoder, explicit: Collection[str]) -> None:
    """Raises UserError where options are valid alone but not together, or one leaves another without effect.

    `explicit` holds the dotted names of the options that were set, as opposed to defaults.
    """
    check_leaks(cfg)
    check_norms(cfg, explicit)
    check_share(cfg)
    check_balance(cfg, explicit)
    check_embedding(cfg, decoder)
    check_position(cfg, decoder.position.limit)
    check_ahead(cfg, decoder)
    check_prefix(cfg, decoder, explicit)
    check_documents(cfg, decoder)
    check_apart(cfg, decoder)
    check_reset_positions(cfg, decoder)
    check_sink_token(cfg)
    check_random_positions(cfg, decoder)
    check_blanks(cfg, explicit)
    check_mtp(cfg, decoder, explicit)
    check_budget(cfg, explicit)
    check_training(cfg)
    check_numbers_used(cfg, explicit)
    check_schedule(cfg)
    check_averages(cfg, decoder)
    check_init(cfg, decoder, explicit)
    check_evaluation(cfg, decoder)
    check_memory(MemorySettings(**plain_dict(cfg.memory)), decoder, explicit)
    check_scores(cfg, decoder, explicit)
    check_kernel(cfg, decoder)
    check_compile(cfg)
    check_loggers(cfg)
    check_preflight(PreflightSettings(**plain_dict(cfg.preflight)))
    check_depths(cfg, explicit)


def check_scores(cfg: DictConfig, decoder: Decoder, explicit: Collection[str]) -> None:
    """Refuses options about how scores are kept in memory where no mixer has scores."""
    about_scores = (("attention", "flash"), ("checkpointing", "selective"))
    asked = [
        f"{name}={value}" for name, value in about_scores if f"memory.{name}" in explicit and cfg.memory[name] == value
    ]
    if asked and not keeps_scores(decoder, MemorySettings(**plain_dict(cfg.memory)), cfg.train.train_len):
        raise UserError(
            f"memory.{asked[0]}: mixer={cfg.choices.mixer} keeps nothing for each query and key, so it would change nothing;"
            " leave it out"
        )


def check_kernel(cfg: DictConfig, decoder: Decoder) -> None:
    """Refuses a kernel for what no mixer has, and one that cannot compute what is asked."""
    if cfg.kernel in OF_RECURRENCES and not decoder.has_recurrence:
        raise UserError(
            f"kernel={cfg.kernel}: is how recurrences are computed, and mixer={option(cfg, 'mixer')} has none, so it would"
            " change nothing; leave it out"
        )
    if cfg.kernel not in ("auto", *OF_RECURRENCES) and not decoder.has_scores:
        raise UserError(
            f"kernel={cfg.kernel}: is how softmax attention is computed, and mixer={option(cfg, 'mixer')} has none, so it would"
            " change nothing; leave it out"
        )
    if cfg.kernel != "flex":
        return
    if cfg.size.head_dim < LEAST_HEAD_DIM:
        raise UserError(
            f"kernel=flex: takes heads of {LEAST_HEAD_DIM} features or more, and size.head_dim={cfg.size.head_dim}; use"
            " kernel=dense, sdpa or auto, or fewer heads"
        )
    dropped = [plan.mixer.node["dropout"] for plan in layer_plans(cfg) if plan.mixer.node.get("dropout")]
    if dropped:
        raise UserError(
            f"kernel=flex: drops no attention weights, and mixer.dropout={dropped[0]}; use kernel=dense, sdpa or auto, or"
            " mixer.dropout=0"
        )


def check_compile(cfg: DictConfig) -> None:
    """Refuses to compile layers that are run twice.

    The first layer makes what all share, such as the mask's table, and finds it made when it is run again: another program,
    which saves other tensors, and torch's checkpointing refuses those.
    """
    if cfg.compile == "on" and cfg.train.checkpoint:
        raise UserError(
            "compile=on: a layer that train.checkpoint=true computes again would be another program than at first; use"
            " compile=off, or train.checkpoint=false"
        )


def without_effect(cfg: DictConfig) -> Iterator[str]:
    """Options without effect in this run that are not a mistake: a preset's window is meant for longer texts."""
    longest = cfg.train.train_len * max(cfg.eval.lengths)
    for name in ("window", "chunk"):
        width = cfg.mask.get(name)
        if isinstance(width, int) and name == "window" and width < longest <= width + cfg.mask.get("sinks", 0):
            yield (
                f"mask.sinks={cfg.mask.sinks}: with mask.window={width} masks nothing in this run, whose longest sequences have"
                f" {longest} tokens; use fewer sinks, a smaller window, or longer eval.lengths"
            )
        if isinstance(width, int) and width >= longest:
            yield (
                f"mask.{name}={width}: masks nothing in this run, whose longest sequences have {longest} tokens; use a smaller"
                f" {name}, or longer eval.lengths"
            )


def target(cfg: DictConfig, group: str) -> Any:
    return locate(group, cfg[group]["_target_"])


def option(cfg: Mapping[str, Any] | DictConfig, group: str) -> str:
    """The name of the option chosen for a group."""
    return cfg.get("choices", {}).get(group, cfg[group]["_target_"])


def leaks(cfg: DictConfig) -> bool:
    """Whether a position can see its own target through the norm."""
    sees_future = bool({"batch", "seq"} & set(target(cfg, "norm").reduces))
    return sees_future and not target(cfg, "mask").bidirectional


def check_leaks(cfg: DictConfig) -> None:
    if leaks(cfg) and not cfg.allow_leak:
        reduces = " and ".join(target(cfg, "norm").reduces)
        raise UserError(
            f"norm={option(cfg, 'norm')}: its statistics run over {reduces}, so under mask={option(cfg, 'mask')} a position"
            " sees what comes later; use a norm over d_model alone, mask=full, or allow_leak=true to see the leak"
        )


def check_norms(cfg: DictConfig, explicit: Collection[str]) -> None:
    if "norm.shift" in explicit and cfg.norm.get("affine") is False:
        raise UserError(
            f"norm.shift={cfg.norm.shift}: changes nothing under norm.affine=false, which has no shift; leave one of them out"
        )
    if target(cfg, "norm").acts:
        return
    if target(cfg, "residual").told_apart_by_norms:
        raise UserError(
            f"residual={option(cfg, 'residual')}: differs from residual=pre only in where its norms sit, and norm={option(cfg, 'norm')} has"
            " none; use residual=pre, or a norm"
        )
    if cfg.embed.norm:
        raise UserError(
            f"embed.norm=true: changes nothing under norm={option(cfg, 'norm')}; leave it out, or use a norm"
        )


def has_width(ffn: Mapping[str, Any]) -> bool:
    """Whether there is a feed-forward network with these options, whose width is d_ff."""
    return locate("ffn", ffn["_target_"]).acts


def grows_by_layers(cfg: DictConfig) -> bool:
    """Whether what is proved of the last feed-forward network's gradient by depth is about models such as this, made deeper.

    Every layer has such a network, and weights of its own.
    """
    return loop_of(cfg)["times"] is None and all(has_width(plan.ffn.node) for plan in layer_plans(cfg))


def check_depths(cfg: DictConfig, explicit: Collection[str]) -> None:
    """Refuses depths that were typed for a model of which none are compared."""
    if "preflight.depths" in explicit and cfg.preflight.depths and not grows_by_layers(cfg):
        without = (
            "are layers without one" if loop_of(cfg)["times"] is None else "are looped layers, whose gradients are sums"
        )
        raise UserError(
            f"preflight.depths={list(cfg.preflight.depths)}: compares gradients of the last layer's feed-forward network, and there"
            f" {without}; leave it out, or use one in every layer, each applied once"
        )


def check_share(cfg: DictConfig) -> None:
    """Refuses a share of the layers that is all of them."""
    share, layers = cfg.residual.get("share"), len(course(cfg))
    if isinstance(share, float | int) and share * layers > layers - 1 > 0:
        raise UserError(
            f"residual.share={share}: of size.n_layers={cfg.size.n_layers} is every layer; use residual=post, or at most"
            f" {math.floor(1000 * (layers - 1) / layers) / 1000}"
        )


def check_embedding(cfg: DictConfig, decoder: Decoder) -> None:
    if cfg.embed.scale == 1:
        raise UserError("embed.scale=1: changes nothing; use embed.scale=none, or another number")
    if not isinstance(cfg.embed.scale, str) and undone_by_norm(cfg, decoder):
        raise UserError(
            f"embed.scale={cfg.embed.scale}: embed.norm=true divides the embeddings by their own size, and with it by this"
            " factor, so it would change nothing; leave one of the two out"
        )
    if cfg.embed.width == cfg.size.d_model:
        raise UserError(
            f"embed.width={cfg.embed.width}: is size.d_model, so there is nothing to project; leave it out, or use another"
        )


def undone_by_norm(cfg: DictConfig, decoder: Decoder) -> bool:
    """Whether a norm follows on the factor on the embeddings at once, and no initial weight or learning rate goes by it."""
    added_between = decoder.position.embeds or cfg.embed.types is not None
    goes_by_it = cfg.embed.tied or target(cfg, "init").scales_rates
    return cfg.embed.norm and bool(target(cfg, "norm").reduces) and not added_between and not goes_by_it


def check_position(cfg: DictConfig, limit: int | None) -> None:
    if limit is not None and cfg.train.train_len > limit:
        raise UserError(
            f"train.train_len={cfg.train.train_len}: pos={option(cfg, 'pos')} is a table of {limit} positions; use at most"
            " that many, or a larger pos.max_positions"
        )


def check_ahead(cfg: DictConfig, decoder: Decoder) -> None:
    if any(position.looks_ahead and not (mask.bidirectional or mask.uses_prefix) for position, mask in decoder.pairs):
        raise UserError(
            f"pos.bidirectional=true: under mask={option(cfg, 'mask')} no query attends to a key ahead of it, so the weights for"
            " such keys would never be used; leave it out, or use mask=prefix or full"
        )


def check_prefix(cfg: DictConfig, decoder: Decoder, explicit: Collection[str]) -> None:
    marks_its_own = "prefix" not in cfg.data
    if decoder.mask.uses_prefix and not target(cfg, "data").marks_prefix:
        raise UserError(
            f"mask=prefix: data={option(cfg, 'data')} has no prefix to attend to in both directions; use mask=full"
            " or causal"
        )
    if target(cfg, "mask").bidirectional and cfg.data.get("varied"):
        raise UserError(
            "data.varied=true: mask=full scores only the last target, which is mostly padding where problems vary in"
            " size; use data.varied=false, or another mask"
        )
    if marks_its_own:
        if "prefix" in explicit and cfg.prefix is not None:
            raise UserError(f"prefix={list(cfg.prefix)}: data={option(cfg, 'data')} marks its own prefix; leave it out")
        return
    if cfg.prefix is None:
        if decoder.mask.uses_prefix:
            raise UserError(
                "prefix=null: mask=prefix needs a prefix to attend to in both directions; give two shares, such as [0.25,0.75]"
            )
        return
    if len(cfg.prefix) != 2 or not 0 <= cfg.prefix[0] <= cfg.prefix[1] < 1:
        raise UserError(f"prefix={list(cfg.prefix)}: should be two shares [low,high] with 0 <= low <= high < 1")
    if target(cfg, "mask").bidirectional:
        raise UserError(
            f"prefix={list(cfg.prefix)}: changes nothing under mask=full, which scores only the last target; leave it out"
        )


def check_documents(cfg: DictConfig, decoder: Decoder) -> None:
    """Refuses documents that the data does not have, and a mask that keeps documents apart where there are none."""
    if target(cfg, "data").marks_documents:
        return
    if cfg.documents and "documents" not in cfg.data:
        asks = decoder.mask.uses_documents
        who, instead = (f", and mask={option(cfg, 'mask')} asks for them", "") if asks else ("", "leave it out, or ")
        raise UserError(
            f"documents=true: data={option(cfg, 'data')} does not say where documents start{who}; {instead}use data=text, python,"
            " file or hf"
        )
    if decoder.mask.uses_documents and not cfg.documents:
        raise UserError(
            "documents=false: a mask that keeps documents apart would change nothing without them; use documents=true, or"
            " another mask than mask=document"
        )


def check_apart(cfg: DictConfig, decoder: Decoder) -> None:
    """Refuses a mask that keeps documents apart where positions go by the length of the whole sequence."""
    for plan, pair in zip(layer_plans(cfg), decoder.pair_of_layer, strict=True):
        position, mask = decoder.pairs[pair]
        if position.uses_length and mask.uses_documents:
            by = f"pos.scaling={plan.pos.node['scaling']}" if "scaling" in plan.pos.node else f"pos={plan.pos.name}"
            raise UserError(
                f"mask={plan.mask.name}: {by} rotates by how long the whole sequence is, so a document would be changed by those"
                " beside it; use another scaling, or another mask"
            )


def check_reset_positions(cfg: DictConfig, decoder: Decoder) -> None:
    """Refuses positions that are counted from each document's start where the model goes by none, or by their distances."""
    if not decoder.mask.resets_positions:
        return
    if not goes_by_positions(decoder):
        raise UserError(
            f"mask.reset_positions=true: pos={option(cfg, 'pos')} does not go by positions, so it would change nothing; leave it"
            " out, or use another pos"
        )
    longest = cfg.train.train_len * max(cfg.eval.lengths)
    if all(position.goes_by_distance(longest) for position, _ in decoder.pairs if acts(position)):
        raise UserError(
            f"mask.reset_positions=true: pos={option(cfg, 'pos')} goes by distances, which are the same within a document, so it"
            " would change nothing; leave it out, or use another pos"
        )


def check_balance(cfg: DictConfig, explicit: Collection[str]) -> None:
    """Refuses a loss of the load of experts where every token gets every one of them."""
    ffn, top_k = cfg.ffn, cfg.ffn.get("top_k")
    if (
        "ffn.balance_loss" in explicit
        and ffn.get("balance_loss")
        and top_k is not None
        and top_k == ffn.get("n_experts")
    ):
        raise UserError(
            f"ffn.balance_loss={ffn.balance_loss}: is a constant at ffn.top_k={ffn.top_k}, where every token gets every expert;"
            " leave it out, or use a smaller top_k"
        )


def check_sink_token(cfg: DictConfig) -> None:
    """Refuses a sink token that the model has no row for, or where a sequence's first token is not like any other."""
    token = cfg.sink_token
    if token is None:
        return
    if token >= cfg.size.vocab_size:
        raise UserError(
            f"sink_token={token}: size.vocab_size={cfg.size.vocab_size} has ids up to {cfg.size.vocab_size - 1}; use one of them,"
            " or a larger size.vocab_size"
        )
    if not target(cfg, "data").cuts_windows:
        raise UserError(
            f"sink_token={token}: data={option(cfg, 'data')} makes whole sequences, and the first token of each means something;"
            " leave it out, or use data=text, python, file or hf"
        )
    if cfg.documents:
        raise UserError(
            f"sink_token={token}: stands at the head of a sequence, and documents=true puts several documents in one; leave one of"
            " the two out"
        )


def check_random_positions(cfg: DictConfig, decoder: Decoder) -> None:
    """Refuses drawn positions that the model would not go by, or that could not be drawn."""
    upto, name = cfg.random_positions, option(cfg, "pos")
    if upto is None:
        if cfg.eval.random_positions:
            raise UserError(
                "eval.random_positions=true: draws as training does, and random_positions=null draws none; set that too, such as"
                f" random_positions={2 * cfg.train.train_len}, or leave it out"
            )
        return
    if upto <= cfg.train.train_len:
        raise UserError(
            f"random_positions={upto}: train.train_len={cfg.train.train_len} positions are drawn, each once, so that they would"
            " be 0, 1, 2, ..; use a larger number, as large as the longest sequence is to be"
        )
    if not goes_by_positions(decoder):
        raise UserError(
            f"random_positions={upto}: pos={name} does not go by positions, so it would change nothing; leave it out"
        )
    if decoder.position.axes > 1:
        raise UserError(
            f"random_positions={upto}: pos={name} has {decoder.position.axes} positions for each token; use one with one"
        )
    if decoder.position.limit is not None and upto > decoder.position.limit:
        raise UserError(
            f"random_positions={upto}: pos={name} is a table of {decoder.position.limit} positions; use at most that many, or a"
            " larger pos.max_positions"
        )
    if decoder.mask.resets_positions:
        raise UserError(
            f"random_positions={upto}: mask.reset_positions=true counts positions from each document's start; use one of the two"
        )


def goes_by_positions(decoder: Decoder) -> bool:
    return any(acts(position) for position, _ in decoder.pairs)


def acts(position: Position) -> bool:
    """Whether it does anything with positions."""
    return position.embeds or position.rotates or position.biases_scores


def check_mtp(cfg: DictConfig, decoder: Decoder, explicit: Collection[str]) -> None:
    """Refuses options about further tokens where none are predicted, and further tokens that a position attends to."""
    form = cfg.mtp.form
    for name in ("tokens", "weight"):
        if form is None and f"mtp.{name}" in explicit:
            raise UserError(
                f"mtp.{name}={cfg.mtp[name]}: changes nothing under mtp.form=null, which predicts the next token alone; leave it"
                " out, or use mtp.form=independent or chained"
            )
    if form is not None and any(mask.bidirectional for _, mask in decoder.pairs):
        raise UserError(
            f"mtp.form={form}: under mask=full a position attends to all tokens after it, so there is none further on to"
            " predict; leave it out, or use mask=causal, prefix or window"
        )
    if form is not None and (
        leaking := next((norm for norm in decoder.modules() if isinstance(norm, Norm) and norm.sees_future), None)
    ):
        raise UserError(
            f"mtp.form={form}: norm={option(cfg, 'norm')} takes statistics over {' and '.join(leaking.reduces)}, and so over the"
            " tokens to be predicted; leave it out, or use a norm over d_model alone"
        )


def check_blanks(cfg: DictConfig, explicit: Collection[str]) -> None:
    for name in ("data.share", "data.mean_span"):
        if cfg.data.get("rest") == 1 and name in explicit:
            raise UserError(
                f"{name}={OmegaConf.select(cfg, name)}: changes nothing under data.rest=1, where the one blank is the rest of"
                " the text; leave it out, or use a smaller data.rest"
            )


def check_budget(cfg: DictConfig, explicit: Collection[str]) -> None:
    asked = [
        name
        for name, is_set in {
            "train.steps": "train.steps" in explicit,
            "train.tokens": cfg.train.tokens is not None,
            "budget": cfg.budget is not None,
        }.items()
        if is_set
    ]
    if len(asked) > 1:
        raise UserError(
            f"{asked[-1]}={OmegaConf.select(cfg, asked[-1])}: {asked[0]} sets the length of the run too; keep one of them"
        )


def check_loggers(cfg: DictConfig) -> None:
    if len(set(cfg.loggers)) < len(cfg.loggers):
        raise UserError(f"loggers={list(cfg.loggers)}: names one twice; name each once")
    check_installed(cfg.loggers)


def check_match(cfg: DictConfig, explicit: Collection[str]) -> None:
    if "size.d_ff" in explicit:
        raise UserError(f"match={cfg.match}: sets size.d_ff={cfg.size.d_ff} to another number; keep one of the two")
    if not any(has_width(plan.ffn.node) and plan.d_ff == cfg.size.d_ff for plan in layer_plans(cfg)):
        raise UserError(
            f"match={cfg.match}: sets size.d_ff, which is the width of no layer under ffn={option(cfg, 'ffn')}; leave it out, or use"
            " a feed-forward network for the whole model, and rules for the layers without one"
        )


def check_training(cfg: DictConfig) -> None:
    train = cfg.train
    if train.batch_size * train.train_len > MOST_TOKENS:
        raise UserError(
            f"train.batch_size={train.batch_size}: sequences of train.train_len={train.train_len} tokens are more than a step can"
            f" hold; use at most {MOST_TOKENS // train.train_len}"
        )
    if train.batch_size % train.accumulate:
        raise UserError(
            f"train.accumulate={train.accumulate}: does not divide train.batch_size={train.batch_size} into equal"
            " micro-batches; use a divisor of it"
        )
    if train.warmup is not None and train.warmup > train.steps:
        raise UserError(f"train.warmup={train.warmup}: the run has only {train.steps} steps; use fewer than that")
    if train.warmup == train.steps > 1:
        raise UserError(
            f"train.warmup={train.warmup}: takes all steps there are, so schedule={option(cfg, 'schedule')} would change nothing; use"
            f" at most {train.steps - 1}"
        )
    for name in ("eval_every", "save_every"):
        if train[name] is not None and train[name] > train.steps:
            raise UserError(
                f"train.{name}={train[name]}: the run has only {train.steps} steps, so it would change nothing;"
                " use at most that many, or leave it out"
            )
    if train.patience is not None and train.eval_every is None:
        raise UserError(
            f"train.patience={train.patience}: counts validations, and there are none while training;"
            " set train.eval_every, such as train.eval_every=50"
        )


def check_numbers_used(cfg: DictConfig, explicit: Collection[str]) -> None:
    """Refuses numbers of `train` that the optimizer or the schedule never looks at."""
    for group, numbers in (("optimizer", ("beta1", "beta2")), ("schedule", ("min_lr",))):
        for name in numbers:
            if f"train.{name}" in explicit and name not in target(cfg, group).uses:
                instead = f"set {group}.{name}" if name in cfg[group] else "leave it out"
                raise UserError(
                    f"train.{name}={cfg.train[name]}: {group}={option(cfg, group)} does not use it, so it would change nothing;"
                    f" {instead}"
                )
    independent = cfg.optimizer.get("independent_decay")
    if independent is not None and "train.weight_decay" in explicit:
        raise UserError(
            f"train.weight_decay={cfg.train.weight_decay}: changes nothing under optimizer.independent_decay={independent}, which"
            " is all that decays; leave one of the two out"
        )


def check_schedule(cfg: DictConfig) -> None:
    made(cfg, "schedule").check(TrainOptions(**plain_dict(cfg.train)))
    if target(cfg, "optimizer").constant_schedule and not target(cfg, "schedule").stays:
        raise UserError(
            f"optimizer={option(cfg, 'optimizer')}: is for a learning rate that stays as it is, and schedule={option(cfg, 'schedule')}"
            " lowers it; add schedule=constant"
        )


def check_averages(cfg: DictConfig, decoder: Decoder) -> None:
    """Refuses two averages of the weights, and one where statistics are kept of the weights that are averaged."""
    by_rule, by_average = target(cfg, "optimizer").averages, target(cfg, "average").averages
    asked = f"average={option(cfg, 'average')}" if by_average else f"optimizer={option(cfg, 'optimizer')}"
    if by_rule and by_average:
        raise UserError(
            f"{asked}: optimizer={option(cfg, 'optimizer')} evaluates an average of the weights already; use average=none, or"
            " another optimizer"
        )
    if (by_rule or by_average) and (group := keeps_statistics(decoder)):
        raise UserError(
            f"{asked}: {group}={option(cfg, group)} keeps running statistics of weights that are not those evaluated; use another"
            f" {group}, or one whose options keep none, or no average"
        )
    if by_average:
        made(cfg, "average").check(cfg.train.steps)


def keeps_statistics(decoder: Decoder) -> str | None:
    """The kind of a block that keeps more than its weights."""
    for group in BLOCKS:
        for block in (module for module in decoder.modules() if isinstance(module, KINDS[group])):
            if block.state_dict().keys() - {name for name, _ in block.named_parameters(remove_duplicate=False)}:
                return group
    return None


def check_init(cfg: DictConfig, decoder: Decoder, explicit: Collection[str]) -> None:
    made(cfg, "init").check(decoder)
    if target(cfg, "init").scales_rates and not target(cfg, "optimizer").by_entry:
        raise UserError(
            f"init={option(cfg, 'init')}: its learning rates by width are for optimizers that move each number of a weight by"
            f" itself, as Adam does, and optimizer={option(cfg, 'optimizer')} does not; use optimizer=adamw, or another init"
        )
    check_held(cfg)
    if cfg.init.get("zero") in ("branches", "all") and any(
        layer.residual.drops_zero_branches for layer in decoder.layers
    ):
        raise UserError(
            f"init.zero={cfg.init.zero}: under residual={option(cfg, 'residual')} no gradient would ever reach a branch that"
            " starts at zero; use init.zero=none or head, or another residual"
        )
    of_projections = {f"init.{name}": cfg.init.get(name) for name in ("depth_scaled", "wang")}
    of_projections["residual.scaled_outputs"] = cfg.residual.get("scaled_outputs")
    for name, value in of_projections.items():
        if name in explicit and (value or name.startswith("residual.")) and cfg.init.get("zero") in ("branches", "all"):
            raise UserError(
                f"{name}={str(value).lower()}: is about projections that init.zero={cfg.init.zero} sets to zero, so it would change nothing;"
                " leave it out"
            )


def check_held(cfg: DictConfig) -> None:
    """Refuses what acts on the length of weights that are held at length 1."""
    if not made(cfg, "init").holds:
        return
    independent = cfg.optimizer.get("independent_decay")
    if independent is not None:
        raise UserError(
            f"optimizer.independent_decay={independent}: shortens weights that init={option(cfg, 'init')} sets back to length 1"
            " after every step; leave it out, or use init.hold=false or another init"
        )
    if cfg.train.weight_decay:
        raise UserError(
            f"train.weight_decay={cfg.train.weight_decay}: shortens weights that init={option(cfg, 'init')} sets back to length 1"
            " after every step; use train.weight_decay=0, init.hold=false, or another init"
        )
    if target(cfg, "optimizer").averages:
        raise UserError(
            f"optimizer={option(cfg, 'optimizer')}: trains and evaluates means of weights that init={option(cfg, 'init')} holds at"
            " length 1, and means of such are shorter; use another optimizer, or init.hold=false"
        )


def made(cfg: DictConfig, group: str) -> Any:
    """The part of training that a group's option makes."""
    node = plain_dict(cfg[group])
    return target(cfg, group)(**{name: value for name, value in node.items() if not name.startswith("_")})


def memory_settings(cfg: DictConfig) -> MemorySettings:
    """The section `memory`, in which the optimizer is the configuration's own unless another is named."""
    asked = MemorySettings(**plain_dict(cfg.memory))
    return asked if asked.optimizer else replace(asked, optimizer=made(cfg, "optimizer").keeps)


def check_optimizer(cfg: DictConfig) -> None:
    """Raises UserError where the optimizer's library is not installed, or its options do not go together."""
    check_library(target(cfg, "optimizer"), option(cfg, "optimizer"))
    made(cfg, "optimizer")


def check_evaluation(cfg: DictConfig, decoder: Decoder) -> None:
    evaluation = cfg.eval
    if evaluation.first_token_share and "first_token_share" not in decoder.taps_on_request:
        raise UserError(
            f"eval.first_token_share=true: mixer={option(cfg, 'mixer')} weighs no tokens, so there is no such share; leave it out"
        )
    if list(evaluation.lengths) != sorted(set(evaluation.lengths)):
        rising = ",".join(map(str, sorted(set(evaluation.lengths))))
        raise UserError(f"eval.lengths={list(evaluation.lengths)}: should rise from one to the next; use [{rising}]")
    if cfg.train.train_len * max(evaluation.lengths) > MOST_TOKENS:
        raise UserError(
            f"eval.lengths={shortened(str(list(evaluation.lengths)))}: times train.train_len={cfg.train.train_len} are more"
            f" tokens than a sequence can have; use at most {MOST_TOKENS // cfg.train.train_len}"
        )
    if evaluation.stride is not None and evaluation.protocol != "sliding":
        raise UserError(
            f"eval.stride={evaluation.stride}: windows slide only under eval.protocol=sliding; add that, or leave it out"
        )
    if evaluation.stride is not None and evaluation.stride > cfg.train.train_len * min(evaluation.lengths):
        raise UserError(
            f"eval.stride={evaluation.stride}: leaves tokens out between windows of"
            f" {cfg.train.train_len * min(evaluation.lengths)}; use at most that"
        )
    if evaluation.protocol == "sliding" and "prefix" not in cfg.data:
        raise UserError(
            f"eval.protocol=sliding: data={option(cfg, 'data')} generates whole sequences, so there is nothing to slide"
            " over; use disjoint"
        )
    if evaluation.protocol == "sliding" and cfg.prefix is not None:
        raise UserError(
            f"eval.protocol=sliding: prefix={list(cfg.prefix)} leaves targets out by window, so overlapping windows would"
            " score some twice and some never; use disjoint"
        )
