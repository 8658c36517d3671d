"""What a configuration is put together from: its data, its costs, and both as they are printed before a run."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Group, RenderableType
from rich.text import Text

from archlab.base.configuration import copied, plain_dict
from archlab.base.errors import UserError
from archlab.blocks.fla import why_not
from archlab.config.assemble import in_the_users_words
from archlab.config.groups import GROUPS, OF_TRAINING
from archlab.config.match import describe_match
from archlab.config.overrides import conf_dir, option_node
from archlab.config.plan import kinds_of_layers
from archlab.cost import describe, measure
from archlab.data.batch import Source
from archlab.data.positions import DrawnPositions
from archlab.data.sink import SinkToken
from archlab.diagram.words import looped_in_words, skips_in_words
from archlab.evaluate.length import held_out_tokens
from archlab.evaluate.settings import EvalSettings
from archlab.model.course import looped_layers, times_of
from archlab.model.decoder import Decoder
from archlab.report import tables
from archlab.train.options import LossOptions
from archlab.train.runtime import Runtime, runtime
from archlab.train.settings import TrainSettings


def open_source(cfg: DictConfig) -> Source:
    """The data, refused where its ids don't fit the model's vocabulary."""
    with in_the_users_words():
        source = instantiate(cfg.data)
    if source.vocab_size > cfg.size.vocab_size:
        raise UserError(
            f"size.vocab_size={cfg.size.vocab_size}: data={cfg.choices.data} has ids up to {source.vocab_size - 1};"
            f" use size.vocab_size={source.vocab_size}"
        )
    if cfg.eval.get("part") == "tuning":
        source = source.tuning()
    if cfg.get("sink_token") is not None:
        source = SinkToken(source, cfg.sink_token)
    if cfg.get("random_positions") is None:
        return source
    return DrawnPositions(source, cfg.random_positions, cfg.eval.random_positions)


def training_seed(cfg: DictConfig) -> int:
    """Of what is drawn in training: batches, positions, what dropout drops. `seed` alone decides the initial weights."""
    return int(cfg.seed if cfg.get("data_seed") is None else cfg.data_seed)


def machine_of(cfg: DictConfig) -> Runtime:
    """The machine that a configuration asks for. Raises UserError where there is no such machine here."""
    where = runtime(cfg.device, cfg.precision, cfg.train.deterministic, cfg.compile)
    if cfg.kernel == "flex" and where.device.type != "cuda":
        raise UserError(
            f"kernel=flex: has its backward pass on CUDA devices alone, and this run is on {where.device.type}; use"
            " kernel=dense, sdpa or auto"
        )
    if cfg.kernel == "fla" and (why := why_not(where.device, where.dtype)):
        raise UserError(f"kernel=fla: {why}")
    return where


def costs(cfg: DictConfig, where: Runtime, decoder: Decoder) -> dict[str, Any]:
    """What the model costs, by its shapes alone; parameters that a token uses where it does not use all. FLOPs count a multiply-add as two, at train_len; the cache is in `dtype`."""
    n_params, active = describe.count_own_parameters(decoder), describe.count_active_parameters(decoder)
    further = describe.count_mtp_parameters(decoder)
    return {
        "n_params": n_params,
        **({"n_mtp_params": further} if further else {}),
        **({"n_active_params": active} if active != n_params else {}),
        **measure.costs(decoder, cfg.train.train_len, where.dtype.itemsize),
        "dtype": str(where.dtype).removeprefix("torch."),
    }


def assembled(cfg: DictConfig, price: Mapping[str, Any], decoder: Decoder) -> RenderableType:
    """The options chosen, what they cost, and the tree of modules."""
    blocks = [(group, chosen(cfg, group), options_of(cfg, group)) for group in GROUPS]
    by_layer = [(kind.where, kind.what) for kind in kinds_of_layers(cfg)] if cfg.layers else []
    by_layer += structure(decoder)
    matched = [Text(f"matched: {describe_match(cfg.matched)}")] if cfg.match else []
    return Group(tables.assembled(blocks, price, by_layer), *matched, Text(describe.tree(decoder)))


def structure(decoder: Decoder) -> Iterator[tuple[str, str]]:
    """What there is besides one layer after the other: a loop, and skips over layers."""
    variants = [layer.residual.variant for layer in decoder.layers]
    if len(set(variants)) > 1:
        counted_by_variant = (f"{variants.count(variant)} {variant}" for variant in dict.fromkeys(variants))
        yield "residual", f"of {len(variants)} layers {', '.join(counted_by_variant)}"
    if looped := looped_layers(decoder.course):
        deep = f"so that {len(decoder.course)} follow each other with the weights of {len(decoder.layers)}"
        yield looped_in_words(looped), f"applied {times_of(decoder.course)} times in turn, {deep}"
    if decoder.skips.ends:
        counted = ", each layer counted as often as it is applied" if looped else ""
        yield "skips", f"{skips_in_words(decoder.skips.ends)}{counted}"


def chosen(cfg: DictConfig, group: str) -> str:
    """The option's name; of a size whose width or depth was set otherwise, as by a preset, none."""
    name = cfg.choices[group]
    named = option_node(group, name, [conf_dir()]) if group == "size" else None
    return "own" if named and any(cfg.size[field] != named[field] for field in ("d_model", "n_layers")) else name


def options_of(cfg: DictConfig, group: str) -> str:
    """A group's options as they were settled, in one line."""
    node = plain_dict(cfg[group])
    return ", ".join(
        f"{name}={value}" for name, value in node.items() if not name.startswith("_") and not isinstance(value, dict)
    )


def settings_of(cfg: DictConfig) -> TrainSettings:
    """All that a configuration says of training: the options of `train`, and the parts that go with them."""
    with in_the_users_words():
        parts = {group: instantiate(cfg[group]) for group in OF_TRAINING}
    return TrainSettings(**plain_dict(cfg.train), **parts, loss=section(cfg, "loss", LossOptions))


def section(cfg: DictConfig, name: str, kind: type) -> Any:
    """A section of the configuration as the dataclass its room knows it by."""
    return kind(**plain_dict(cfg[name]))


def scored_at(cfg: DictConfig, multiples: Collection[int]) -> DictConfig:
    """The configuration with no lengths in `eval` but these; as it is where fewer would change what is scored at each."""
    whole = section(cfg, "eval", EvalSettings)
    some = replace(whole, lengths=[multiple for multiple in whole.lengths if multiple in multiples] or whole.lengths)
    changed = copied(cfg)
    if held_out_tokens(some, cfg.train.train_len) == held_out_tokens(whole, cfg.train.train_len):
        changed.eval.lengths = list(some.lengths)
    return changed
