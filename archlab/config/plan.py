"""A run as data: what was asked for, what it settled to, and what the model is made of, layer by layer."""

import json
import pydoc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import Any

from omegaconf import DictConfig

from archlab.base.configuration import plain_dict
from archlab.base.words import layers_in
from archlab.model.course import Course, course_of

IN_LAYERS = ("mixer", "ffn", "residual", "pos", "mask")
"""The groups that a rule can choose from for some layers; the other groups apply to the whole model."""

SIZES_IN_LAYERS = ("d_ff", "n_kv_heads")


@dataclass(frozen=True)
class Choice:
    """An option of a group with its own options: a name in conf/, or in a folder of the user's."""

    group: str
    name: str
    key: str
    """Its options as a text, which is the same for equal options."""

    node: Mapping[str, Any] = field(compare=False, repr=False)
    """The same options, as Hydra instantiates them."""

    @classmethod
    def of(cls, group: str, name: str, node: Mapping[str, Any]) -> "Choice":
        return cls(group, name, json.dumps(node, sort_keys=True), node)


@dataclass(frozen=True)
class LayerPlan:
    """One layer: a choice from each group that layers may differ in, and its sizes."""

    mixer: Choice
    ffn: Choice
    residual: Choice
    pos: Choice
    mask: Choice
    d_ff: int
    n_kv_heads: int


@dataclass(frozen=True)
class Plan:
    """One run, before anything of it is built. A sweep is several plans."""

    overrides: tuple[str, ...]
    cfg: DictConfig = field(compare=False, repr=False)
    """The configuration that the overrides settle to."""

    layers: tuple[LayerPlan, ...] = field(repr=False)

    @property
    def program_key(self) -> str:
        """Everything that decides a training step's operations and their shapes, as a text; equal plans have equal keys.

        Plans with one key can be trained as one pack. They may differ in everything else: the seed and with it the
        order of the data, the initial weights, the numbers of `train`, the schedule, the length of training, and what is probed.
        """
        whole = plain_dict(self.cfg)
        model = {group: whole[group] for group in (*OF_THE_MODEL, *OF_ITS_TRAINING, "data", "size")}
        step = {name: whole["train"][name] for name in OF_A_STEP}
        layers = [[getattr(layer, one.name) for one in fields(layer)] for layer in self.layers]
        keyed = [[part.key if isinstance(part, Choice) else part for part in layer] for layer in layers]
        structure = [whole.get("canon"), whole.get("skips"), loop_of(whole), whole["mtp"]]
        drawn = (
            whole.get("random_positions") is not None
        )  # batches then hold positions, in the place of the scheme's own
        return json.dumps([keyed, model, structure, step, drawn], sort_keys=True)


OF_THE_MODEL = ("norm", "head", "embed", "dropout", "prefix", "device", "precision", "kernel", "compile")
OF_ITS_TRAINING = ("optimizer", "average", "loss")
OF_A_STEP = ("train_len", "batch_size", "accumulate", "checkpoint", "deterministic")


def loop_of(cfg: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """The section `loop`, which a run's file may be older than: how often layers are applied, and which."""
    return {"times": None, "layers": None} | dict(cfg.get("loop") or {})


def course(cfg: DictConfig) -> Course:
    """In which order the layers are applied. Raises UserError where `loop` describes no loop."""
    loop = loop_of(cfg)
    return course_of(cfg.size.n_layers, loop["times"], loop["layers"])


NO_POSITION = Choice.of("pos", "none", {"_target_": "archlab.blocks.position.NoPosition", "_partial_": True})
"""What layers have whose mixer does not honour the model's scheme: conf/pos/none.yaml."""


def layer_plans(cfg: DictConfig) -> list[LayerPlan]:
    """The layers of a settled configuration, one entry each, in order."""
    plain = plain_dict(cfg)
    return plans_of(plain)


def plans_of(cfg: Mapping[str, Any]) -> list[LayerPlan]:
    """The same for a configuration as plain data.

    The model's position scheme acts in the layers whose mixer honours it, and the others have none; where there are no such layers,
    and where a rule names a scheme, it stays, and is refused when the model is built.
    """
    plans = plans_as_asked(cfg)
    of_kind = {pair: honours(*(one.node for one in pair)) for pair in {(plan.mixer, plan.pos) for plan in plans}}
    fitting = [of_kind[plan.mixer, plan.pos] for plan in plans]
    asked = {depth for rule in cfg.get("layers") or [] if "pos" in rule for depth in layers_in(rule["at"], len(plans))}
    if any(fits and depth not in asked for depth, fits in enumerate(fitting)):
        plans = [
            plan if fits or depth in asked else replace(plan, pos=NO_POSITION)
            for depth, (plan, fits) in enumerate(zip(plans, fitting, strict=True))
        ]
    return plans


def positions_act(cfg: Mapping[str, Any]) -> bool:
    """Whether there is a layer whose mixer honours the model's position scheme."""
    asked = [rule["at"] for rule in cfg.get("layers") or [] if "pos" in rule]
    plans = plans_as_asked(cfg)
    ruled = {depth for at in asked for depth in layers_in(at, len(plans))}
    return any(honours(plan.mixer.node, plan.pos.node) for depth, plan in enumerate(plans) if depth not in ruled)


def honours(mixer: Mapping[str, Any], pos: Mapping[str, Any]) -> bool:
    """Whether a mixer honours what a position scheme acts by, both as options; true of what is no block, which is refused elsewhere."""
    mixer_class, pos_class = (pydoc.locate(node["_target_"]) for node in (mixer, pos))
    return getattr(pos_class, "acts_by", frozenset)() <= getattr(mixer_class, "honours", frozenset())


def plans_as_asked(cfg: Mapping[str, Any]) -> list[LayerPlan]:
    """The layers as the model's choices and the rules say, whatever their mixers honour."""
    size, names = cfg["size"], cfg.get("choices", {})
    parts: dict[str, Any] = {group: Choice.of(group, names.get(group, group), cfg[group]) for group in IN_LAYERS}
    base = LayerPlan(**parts, **{name: size[name] for name in SIZES_IN_LAYERS})
    plans = [base] * size["n_layers"]
    for rule in cfg.get("layers") or []:
        for depth in layers_in(rule["at"], len(plans)):
            plans[depth] = replace(plans[depth], **changes_of(rule))
    return plans


def changes_of(rule: Mapping[str, Any]) -> dict[str, Any]:
    """What a settled rule sets in each of its layers."""
    choices = {group: Choice.of(group, rule["choices"][group], rule[group]) for group in IN_LAYERS if group in rule}
    return {**choices, **rule.get("size", {})}


@dataclass(frozen=True)
class KindOfLayer:
    """Layers that are built alike."""

    where: str
    """Which they are, counted from 0, and how many: layers 1::2 (13 of 26)."""

    what: str
    """How they differ from the other layers, as choices and their options."""


def kinds_of_layers(cfg: DictConfig) -> list[KindOfLayer]:
    """Each kind of layer once, ordered by its first layer; a single kind where all layers are alike."""
    plans, depths = layer_plans(cfg), dict[LayerPlan, list[int]]()
    for depth, plan in enumerate(plans):
        depths.setdefault(plan, []).append(depth)
    return [
        KindOfLayer(
            f"layer{'s' * (len(of_kind) > 1)} {numbered(of_kind, len(plans))} ({len(of_kind)} of {len(plans)})",
            apart(plan, list(depths)),
        )
        for plan, of_kind in depths.items()
    ]


def apart(plan: LayerPlan, all_plans: list[LayerPlan]) -> str:
    """The choices and sizes in which the kinds differ; of a choice's options, only those that differ."""
    differing = []
    for group in IN_LAYERS:
        choices = [getattr(one, group) for one in all_plans]
        if len(set(choices)) > 1:
            differing.append(
                " ".join([f"{group}={getattr(plan, group).name}", *options_apart(getattr(plan, group), choices)])
            )
    sizes = (name for name in SIZES_IN_LAYERS if len({getattr(one, name) for one in all_plans}) > 1)
    return ", ".join([*differing, *(f"{name}={getattr(plan, name)}" for name in sizes)])


def options_apart(choice: Choice, choices: list[Choice]) -> Iterator[str]:
    for name, value in choice.node.items():
        alike = all(other.node.get(name) == value for other in choices if other.name == choice.name)
        if not name.startswith("_") and value is not None and not alike:
            yield f"{name}={value}"


def numbered(depths: list[int], n_layers: int) -> str:
    """3::4 where they are evenly spaced to the end; otherwise their numbers, with consecutive ones as 4-6."""
    step = depths[1] - depths[0] if len(depths) > 1 else 1
    if step > 1 and depths == list(range(n_layers))[depths[0] :: step]:
        return f"{depths[0]}::{step}"
    runs = [[depth for _, depth in run] for _, run in groupby(enumerate(depths), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
