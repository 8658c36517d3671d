"""Whether what describes training and evaluation goes together, and nothing of it is without effect."""

from collections.abc import Collection

from omegaconf import DictConfig, OmegaConf

from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError, shortened
from archlab.config.groups import BLOCKS, has_width, made, option, target
from archlab.config.plan import layer_plans
from archlab.config.types import KINDS
from archlab.model.decoder import Decoder
from archlab.train.optimizer import check_library
from archlab.train.options import TrainOptions

MOST_TOKENS = 2**28
"""The largest number of tokens in one step or in one sequence."""


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


def check_schedule(cfg: DictConfig, explicit: Collection[str]) -> None:
    made(cfg, "schedule").check(TrainOptions(**plain_dict(cfg.train)), explicit)
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


def check_optimizer(cfg: DictConfig) -> None:
    """Raises UserError where the optimizer's library is not installed, or its options do not go together."""
    check_library(target(cfg, "optimizer"), option(cfg, "optimizer"))
    if made(cfg, "optimizer").averages and cfg.precision == "fp16":
        raise UserError(
            f"precision=fp16: skips a step whose gradient overflows, and optimizer={option(cfg, 'optimizer')} would count it in its average"
            " of the weights; use precision=bf16 or fp32, or another optimizer"
        )


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
