"""Whether what describes a model goes together, and nothing of it is without effect."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from omegaconf import DictConfig

from archlab.base.errors import UserError
from archlab.blocks.contracts import Mask, Norm, Position
from archlab.blocks.flex import LEAST_HEAD_DIM
from archlab.config.groups import leaks, option, target
from archlab.config.plan import course, layer_plans
from archlab.data.corpus import check_prefix as check_shares
from archlab.model.decoder import Decoder


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


def check_share(cfg: DictConfig) -> None:
    """Refuses a share of the layers that is all of them."""
    share, layers = cfg.residual.get("share"), len(course(cfg))
    if isinstance(share, float | int) and share * layers > layers - 1 > 0:
        raise UserError(
            f"residual.share={share}: of size.n_layers={cfg.size.n_layers} is every layer; use residual=post, or at most"
            f" {math.floor(1000 * (layers - 1) / layers) / 1000}"
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


def check_alone(cfg: DictConfig, decoder: Decoder) -> None:
    """Refuses positions that queries, keys or scores go by in layers alone where every token attends to itself and to no other."""
    longest = cfg.train.train_len * max(cfg.eval.lengths)
    layers = [(plan, *decoder.pairs[pair]) for plan, pair in zip(layer_plans(cfg), decoder.pair_of_layer, strict=True)]
    for plan, position, _ in layers:
        sharing = [layer for layer in layers if layer[1] is position]
        if position.embeds or not acts(position) or not all(attends_to_itself_alone(each) for _, _, each in sharing):
            continue
        turns_alike = position.rotates and position.goes_by_distance(longest)
        if not turns_alike and any(weighs_one_key(each.mixer.node) for each, _, _ in sharing):
            continue
        named = next(
            (f".{name}=1" for name in ("window", "chunk") if plan.mask.node.get(name) == 1), f"={plan.mask.name}"
        )
        raise UserError(
            f"pos={plan.pos.name}: under mask{named} every token attends to itself alone, at distance 0, so positions would change"
            f" nothing; use pos=none, or a mask that lets it attend to more"
        )


def attends_to_itself_alone(mask: Mask) -> bool:
    """Whether this is so of each of a few tokens."""
    index = torch.arange(FEW)
    attended = mask.can_attend(index[None, :, None], index[None, None, :], torch.full((1, 1, 1), 2))
    return bool(attended.expand(1, FEW, FEW).sum(dim=-1).eq(1).all())


FEW = 256
"""Tokens, more than there are between two that some mask lets attend to each other."""


def weighs_one_key(mixer: Mapping[str, Any]) -> bool:
    """Whether the weight of the one key there is depends on its score; a softmax's is 1."""
    return bool(mixer.get("sinks")) or mixer.get("weighting") == "sigmoid"


def check_ahead(cfg: DictConfig, decoder: Decoder) -> None:
    if any(position.looks_ahead and not (mask.bidirectional or mask.uses_prefix) for position, mask in decoder.pairs):
        raise UserError(
            f"pos.bidirectional=true: under mask={option(cfg, 'mask')} no query attends to a key ahead of it, so the weights for"
            " such keys would never be used; leave it out, or use mask=prefix or full"
        )


def check_anchor(cfg: DictConfig, decoder: Decoder) -> None:
    """Refuses another place for what follows the prefix where there is no prefix: it then stands at 0 under either."""
    anchored = next((plan for plan in layer_plans(cfg) if plan.pos.node.get("anchor", "last") != "last"), None)
    if anchored and not decoder.mask.uses_prefix:
        raise UserError(
            f"pos.anchor={anchored.pos.node['anchor']}: says where tokens after the prefix stand, and mask={option(cfg, 'mask')} has"
            " no prefix, so it would change nothing; leave it out, or use mask=prefix"
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
    check_shares(cfg.prefix)
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


OF_RECURRENCES = ("chunked", "fla")
"""What `kernel` may be for recurrences alone; softmax attention is then computed as with kernel=auto."""


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
