"""What a run will not have measured, as far as its configuration says: a claim about it is refused before anything runs."""

from omegaconf import DictConfig

from archlab.claim.store import LENGTH
from archlab.config.assemble import assemble_without_weights
from archlab.config.groups import locate
from archlab.cost.describe import count_active_parameters, count_mtp_parameters, count_own_parameters
from archlab.probe.spike import SPIKE_HISTORY
from archlab.records.summary import ASKED_FOR

OF_TASKS = ("exact_match", "token_accuracy")

PROBED = {
    "stability.max_activation_rms": None,
    "stability.max_update_ratio": None,
    "stability.min_attention_entropy": "attention_entropy",
    "stability.max_attention_score": "max_score",
}
"""Numbers of the probed steps, and the tap of a mixer that they come from where that is not one of every layer."""


def why_unmeasured(measure: str, cfg: DictConfig, looked_at: bool = False) -> str | None:
    """What stands against it in an arm's configuration, and what can be done; None where nothing is known to.

    `looked_at` where trained weights are evaluated once more under this configuration.
    """
    if at := LENGTH.fullmatch(measure):
        return why_not_at(at[1], int(at[2]), cfg, looked_at)
    if looked_at and measure != "val_loss":
        return "whose `then` only evaluates what was trained; use val_loss or a number of a length, such as loss@1"
    if measure in PROBED:
        return why_not_probed(measure, cfg)
    match measure:
        case "stability.clipped_share" if cfg.train.clip is None:
            return "whose train.clip is null; add train.clip=1"
        case "stability.loss_spike_score" if cfg.train.steps <= SPIKE_HISTORY:
            return f"whose train.steps is {cfg.train.steps}; give more than {SPIKE_HISTORY}, or another measure"
        case "n_mtp_params" if not count_mtp_parameters(assemble_without_weights(cfg)):
            return "which predicts no further tokens; add mtp.form, or use n_params"
        case "n_active_params" if uses_all(cfg):
            return "of which a token uses all parameters; use n_params"
    return None


def why_not_at(name: str, multiple: int, cfg: DictConfig, looked_at: bool) -> str | None:
    data, lengths = locate("data", cfg.data._target_), list(cfg.eval.lengths)
    is_exact = getattr(data, "exact", None)  # which a class of one's own may say of each source by itself
    if multiple not in lengths:
        return f"whose eval.lengths are {lengths}; add {multiple} to them"
    if name in ASKED_FOR and not cfg.eval[name]:
        return f"whose eval.{name} is false; add eval.{name}=true"
    if name in OF_TASKS and is_exact is False:
        return f"whose data={cfg.choices.data} has no one right answer; use loss@{multiple}, or data of a task such as data=copy"
    if name == "late_ratio" and is_exact:
        return f"whose data={cfg.choices.data} is a task, of other problems at each length; use exact_match@{multiple}"
    if name == "late_ratio" and not getattr(data, "same_targets", True):
        return f"whose data={cfg.choices.data} has other targets at each length; use loss@{multiple}"
    if name == "late_ratio" and 1 not in lengths and not looked_at:
        return f"whose eval.lengths are {lengths}; add 1 to them, which it is against"
    return None


def why_not_probed(measure: str, cfg: DictConfig) -> str | None:
    if cfg.probe.every is None:
        return "whose probe.every is null; add probe.every=10"
    tap = PROBED[measure]
    if tap is not None and tap not in assemble_without_weights(cfg).taps:
        what = "softmax over scores" if tap == "attention_entropy" else "scores"
        return f"whose mixer={cfg.choices.mixer} has no {what}; use another mixer or measure"
    return None


def uses_all(cfg: DictConfig) -> bool:
    decoder = assemble_without_weights(cfg)
    return count_active_parameters(decoder) == count_own_parameters(decoder)
