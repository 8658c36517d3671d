"""archlab beside other libraries that train the same model: the LLaMA shape, at one size, on one batch, in turns.

All of them train eagerly, in the same precision, by the same step: forward pass, cross-entropy, backward pass, clipping,
fused AdamW. archlab's is the step of its runs, with probing off; the others', which bring no training loop of their own,
is that list in plain PyTorch.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError
from archlab.benchmark.ratio import speed_ratio
from archlab.benchmark.speed import Record, rates, setting
from archlab.benchmark.turns import Work, in_turns
from archlab.benchmark.workload import Workload
from archlab.config.overrides import conf_dir, option_node
from archlab.cost.describe import count_parameters
from archlab.train.runtime import products_in_tf32

ROUNDS = 9
SHAPE = {"norm": "rms", "residual": "pre", "ffn": "swiglu", "mask": "causal", "mixer": "mha", "head": "linear"}
"""The choices that all peers share; the position scheme is RoPE, or ALiBi where a peer has it."""

Made = tuple[nn.Module, Callable[[Tensor], Tensor]]
"""A peer's model, and its call: tokens (batch, seq) -> logits (batch, seq, vocab)."""


def transformers(cfg: DictConfig) -> Made:
    """Hugging Face's LLaMA."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = cfg.size
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocab_size,
            hidden_size=size.d_model,
            intermediate_size=size.d_ff,
            num_hidden_layers=size.n_layers,
            num_attention_heads=size.n_heads,
            head_dim=size.head_dim,
            max_position_embeddings=cfg.train.train_len,
            use_cache=False,
        )
    )
    return model, lambda tokens: model(input_ids=tokens, use_cache=False).logits


def x_transformers(cfg: DictConfig) -> Made:
    """x-transformers' decoder with the LLaMA options it documents; it has RoPE and ALiBi."""
    from x_transformers import Decoder, TransformerWrapper

    size = cfg.size
    position = {"rope": {"rotary_pos_emb": True}, "alibi": {"alibi_pos_bias": True}}[cfg.choices.pos]
    layers = Decoder(
        dim=size.d_model,
        depth=size.n_layers,
        heads=size.n_heads,
        attn_dim_head=size.head_dim,
        use_rmsnorm=True,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        ff_mult=size.d_ff / size.d_model,
        attn_flash=True,
        **position,
    )
    model = TransformerWrapper(
        num_tokens=size.vocab_size, max_seq_len=cfg.train.train_len, use_abs_pos_emb=False, attn_layers=layers
    )
    return model, model


def litgpt(cfg: DictConfig) -> Made:
    """LitGPT's GPT, configured as its LLaMA models are."""
    from litgpt import GPT, Config

    size = cfg.size
    model = GPT(
        Config(
            name="bench",
            block_size=cfg.train.train_len,
            vocab_size=size.vocab_size,
            padded_vocab_size=size.vocab_size,
            n_layer=size.n_layers,
            n_head=size.n_heads,
            n_embd=size.d_model,
            head_size=size.head_dim,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            intermediate_size=size.d_ff,
        )
    )
    return model, model


PEERS: dict[str, tuple[Callable[[DictConfig], Made], tuple[str, ...]]] = {
    "transformers": (transformers, ("rope",)),
    "x-transformers": (x_transformers, ("rope", "alibi")),
    "litgpt": (litgpt, ("rope",)),
}
"""By the name it is installed by: what makes its model, and the position schemes of archlab's that it has."""


def installed(name: str) -> bool:
    return find_spec(name.replace("-", "_")) is not None


def chosen(cfg: DictConfig, there: Callable[[str], bool] | None = None) -> list[str]:
    """The peers to be measured. Raises UserError where the model is not one that they have, or none is installed."""
    there = there or installed
    for group, name in SHAPE.items():
        if cfg.choices[group] != name:
            raise UserError(
                f"{group}={cfg.choices[group]}: suite=peers measures the model that all peers have, with {group}={name};"
                " leave it out"
            )
    able = [name for name, (_, schemes) in PEERS.items() if cfg.choices.pos in schemes]
    if not able:
        raise UserError(f"pos={cfg.choices.pos}: no peer has it; suite=peers takes pos=rope or pos=alibi")
    for option, given, wanted in (
        ("embed.tied", cfg.embed.tied, False),
        ("layers", bool(cfg.layers), False),
        ("canon", cfg.canon, None),
        ("skips", cfg.skips, None),
        ("loop.times", cfg.loop.times, None),
        ("mtp.form", cfg.mtp.form, None),
        ("size.n_kv_heads", cfg.size.n_kv_heads, cfg.size.n_heads),
        ("train.accumulate", cfg.train.accumulate, 1),
        ("dropout", cfg.dropout, 0),
        ("embed.norm", cfg.embed.norm, False),
        ("embed.width", cfg.embed.width, None),
        ("embed.types", cfg.embed.types, None),
        ("random_positions", cfg.random_positions, None),
        *options_of_blocks(cfg),
    ):
        if given != wanted:
            raise UserError(f"{option}={given}: suite=peers measures the plain LLaMA shape; leave it out")
    for option, given, wanted in (
        ("optimizer", cfg.choices.optimizer, "adamw"),
        ("optimizer.independent_decay", cfg.optimizer.get("independent_decay"), None),
        ("average", cfg.choices.average, "none"),
        ("loss.z", cfg.loss.z, 0),
        ("loss.label_smoothing", cfg.loss.label_smoothing, 0),
    ):
        if given != wanted:
            raise UserError(
                f"{option}={given}: suite=peers trains all peers by AdamW on cross-entropy alone; leave it out"
            )
    if not any(there(name) for name in able):
        raise UserError(
            f"suite=peers: none of {', '.join(able)} is installed; install one, as by pip install {able[0]}"
        )
    return [name for name in able if there(name)]


NUMBERS = ("eps", "base")
"""Options of blocks that change no operation."""


def options_of_blocks(cfg: DictConfig) -> Iterator[tuple[str, Any, Any]]:
    """Every option of a block that changes what is computed: its name, what it is, and what it is by itself."""
    for group in (*SHAPE, "pos"):
        node = option_node(group, cfg.choices[group], [conf_dir()])
        plain = {**(plain_dict(node) if node else {}), "dropout": 0}  # whose file refers to that of the whole model
        for name, given in plain_dict(cfg[group]).items():
            if name not in NUMBERS:
                yield f"{group}.{name}", given, plain.get(name)


def peers(cfg: DictConfig, rounds: int = ROUNDS, tick: Callable[[], None] = lambda: None) -> Record:
    """archlab's training step and each peer's, in turns; ratios above 1 say that archlab is faster."""
    names = chosen(cfg)
    work = Workload(cfg)
    calls: dict[str, Work] = {"archlab": work.step}
    sizes, failed = {"archlab": count_parameters(work.decoder)}, {}
    for name in names:
        try:
            model, logits = PEERS[name][0](cfg)
            calls[name], sizes[name] = step_of(model, logits, work), count_parameters(model)
            calls[name]()
        except Exception as error:  # another library's: a peer that fails is reported, and takes the others not with it
            calls.pop(name, None)
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    if len(calls) == 1:
        raise UserError(
            f"suite=peers: {', '.join(failed)} could not be run: {next(iter(failed.values()))}; install it anew, or another peer"
        )
    seconds = in_turns(calls, rounds, tick)
    rows = {
        name: {
            "version": version_of(name),
            "n_params": sizes[name],
            **rates(work, "step", seconds[name]),
            **({} if name == "archlab" else {"archlab": speed_ratio(seconds["archlab"], seconds[name]).to_record()}),
        }
        for name in calls
    }
    missing = [name for name in PEERS if not installed(name)]
    return {**setting(work), "rounds": rounds, "peers": rows, "failed": failed, "not_installed": missing}


def version_of(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def step_of(model: nn.Module, logits: Callable[[Tensor], Tensor], work: Workload) -> Work:
    """A training step of another library's model, on the workload's batch and in its precision."""
    settings, machine = work.settings, work.machine
    model.to(machine.device).train()
    tokens, targets = (x.to(machine.device) for x in (work.batch.inputs, work.batch.to_predict))
    decay: dict[str, Any] = {"weight_decay": settings.weight_decay, "betas": (settings.beta1, settings.beta2)}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr / max(1, settings.warmup_steps), fused=True, **decay
    )
    scaler = machine.scaler()

    @products_in_tf32(machine.tf32)
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with machine.autocast():
            loss = F.cross_entropy(logits(tokens).float().flatten(0, 1), targets.flatten())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        scaler.step(optimizer)
        scaler.update()

    return step
