"""Random configurations of every family that transformers has a class for: the same logits in float64, or one line that names a field.

The fields that are set to something else are drawn from all that a class declares or its model reads, and from what other
families have, whether or not anything here knows them.
"""

import random
import re

import pytest
import torch
from test_hub import InFloat64, angles_of, relative

from archlab import hub
from archlab.base.errors import UserError

transformers = pytest.importorskip("transformers")
from drawn import LENGTH, VOCAB, attributes, drawn  # noqa: E402

KINDS = [kind for kind in hub.FAMILIES if kind in transformers.CONFIG_MAPPING]
PUBLISHED = {"baichuan", "qwen", "chatglm", "chatglm2"}
FEW, MANY = range(1), range(1, 24)
"""Configurations of each family, by seed."""


class Lifted(InFloat64):
    """ALiBi's biases too, which Falcon's class rounds to bfloat16."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.bfloat16:
            return args[0]
        return super().__torch_function__(func, types, args, kwargs)


def how(config):
    """Falcon's eager attention adds ALiBi's biases twice."""
    eager = not (config.model_type == "falcon" and config.alibi)
    return dict(attn_implementation="eager" if eager else "sdpa", experts_implementation="eager")


def buffers_as_they_were(model, held, config):
    for name, tensor in held.items():
        if name.endswith("embed_scale"):
            tensor = torch.tensor(config.hidden_size**0.5, dtype=torch.float64)
        if name in model.state_dict():
            tensor = tensor.double()
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, tensor)


def made(config, seed):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **how(config)).eval()
    held = {name: tensor.clone() for name, tensor in model.named_buffers()}
    for name, tensor in held.items():
        if name.endswith("e_score_correction_bias"):
            held[name] = torch.randn_like(tensor) * 0.3
    model = model.double()
    buffers_as_they_were(model, held, config)
    with torch.no_grad():
        for weight in model.parameters():
            wide = 0.3 if weight.ndim > 1 else 0.5
            weight.copy_((torch.randn_like(weight) * wide + (1.0 if weight.ndim == 1 else 0.0)).float())
    return model


def logits_of(model, ids):
    with torch.no_grad(), angles_of(model), Lifted():
        return model(ids, use_cache=False).logits


def reloaded(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **how(config)).eval()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **how(config)).eval()
    for weight in model.parameters():
        weight.data = weight.data.double()
    buffers_as_they_were(model, {n: t.clone() for n, t in plain.named_buffers() if n not in plain.state_dict()}, config)
    for name, tensor in list(model.named_buffers()):
        if name in model.state_dict():
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, tensor.double())
    return model


def within(config):
    """The error that is allowed: more where float32 rounds otherwise.

    So it does the frequencies of an odd number of rotated features, those that YaRN mixes of two equal ones at a factor of 1,
    and the biases that Falcon's class divides by sqrt(head_dim).
    """
    if config.model_type == "falcon" and config.alibi:
        return 1e-7
    entries = getattr(config, "rope_parameters", None) or {}
    share = entries.get("partial_rotary_factor", 1.0)
    heads = getattr(config, "num_attention_heads", None) or 1
    width = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads
    mixed = entries.get("rope_type") == "yarn" and entries.get("factor") == 1
    return 1e-5 if int(share * width) % 2 or mixed else 1e-9


def tried(kind, seed, folder):
    """(what came of it, the fields that were switched, what there is to say)"""
    draw = random.Random(f"{kind} {seed}")
    for attempt in range(60):
        said, switched = drawn(kind, draw)
        try:
            config = transformers.CONFIG_MAPPING[kind](**said)
            model = made(config, seed)
            ids = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(seed))
            expected = logits_of(model, ids)
            if not torch.isfinite(expected).all():
                continue
            here = folder / f"theirs{attempt}"
            model.save_pretrained(here)
        except Exception:  # each class raises errors of its own
            continue
        break
    else:
        return "undrawn", [], ""
    try:
        decoder = hub.load(here)
    except UserError as error:
        named = any(
            re.search(rf"\b{name}\b", str(error)) for name in {*said, *attributes(kind), "rope_scaling", *inner(said)}
        )
        line = "\n" not in str(error)
        return ("refused" if named and line else "refused without a name"), switched, f"{error} | {said}"
    with torch.no_grad(), angles_of(model):
        ours = decoder(ids)
    if not relative(ours, expected) < within(config):
        expected = logits_of(reloaded(here), ids)  # of what config.json keeps
    if not (error := relative(ours, expected)) < within(config):
        return "unequal", switched, f"{error:.1e} {said}"
    if seed % 5:
        return "equal", switched, ""
    del decoder.hub_origin
    try:
        hub.export(decoder, folder / "out")
    except UserError as refusal:
        return "equal, not exported", switched, str(refusal)
    again = reloaded(folder / "out")
    with angles_of(model):
        back = relative(logits_of(again, ids), expected)
    return ("equal" if back < within(config) else "exported unequal"), switched, f"{back:.1e} {said}"


def inner(said):
    return [key for name in ("rope_parameters", "rope_scaling", "attn_config") for key in (said.get(name) or {})]


SEEDS = [*FEW, *(pytest.param(seed, marks=pytest.mark.slow) for seed in MANY)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_random_configuration_is_the_same_model_or_refused_by_name(kind, seed, tmp_path):
    came, switched, said = tried(kind, seed, tmp_path)
    assert came in ("equal", "equal, not exported", "refused"), f"{came}: {switched}: {said}"
