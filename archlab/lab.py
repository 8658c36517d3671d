"""What the verbs do: assemble and describe a model; train it, look at it, and write down what was seen."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from archlab import depths, describe, measure, tune
from archlab.assemble import assemble_without_weights, build, in_the_users_words
from archlab.check import GROUPS, leaks
from archlab.data.batch import Source
from archlab.errors import UserError
from archlab.evaluate.autopsy import autopsy
from archlab.evaluate.length import by_length, verdict
from archlab.evaluate.settings import EvalSettings
from archlab.evaluate.stability import stability
from archlab.evaluate.validation import held_out, unigram_entropy
from archlab.match import describe_match
from archlab.memory import bill
from archlab.memory.estimate import estimate
from archlab.memory.settings import MemorySettings
from archlab.model import Decoder
from archlab.overrides import conf_dir, option_node
from archlab.plan import kinds_of_layers
from archlab.preflight.measure import look_at_start, update_size
from archlab.preflight.settings import PreflightSettings
from archlab.preflight.warn import warnings
from archlab.report import bills
from archlab.saved import load_weights
from archlab.train.budget import TOKENS_PER_PARAMETER
from archlab.train.loop import Record, train
from archlab.train.precision import Machine, machine
from archlab.train.settings import TrainSettings

LAST_STEPS = 20
"""train_loss is the mean over this many last steps."""


def show(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Prints what a settled configuration assembles and what training it takes, without training it."""
    console, decoder = Console(), assemble_without_weights(cfg)
    price = costs(cfg, machine(cfg.device, cfg.precision))
    print_assembled(console, cfg, price)
    console.print("", bills.parts(describe.parameters_by_part(decoder)), "", sep="\n")
    console.print(bills.memory(memory_bill(cfg, decoder)))
    tokens = TOKENS_PER_PARAMETER * price["n_params"]
    console.print(bills.token_budget(tokens, TOKENS_PER_PARAMETER, tokens * price["train_flops_per_token"]))


def memory_bill(cfg: DictConfig, decoder: Decoder) -> bills.Bill:
    """What training takes in memory, ready to be told."""
    settings, seq_len = section(cfg, "memory", MemorySettings), cfg.train.train_len
    return bills.Bill(
        rows=bill.rows(estimate(decoder, settings, seq_len)),
        assumptions=list(bill.assumptions(decoder, settings, seq_len)),
        growth=bill.otherwise(decoder, settings, seq_len),
        answer=bill.answer(decoder, settings, seq_len),
    )


def preflight(cfg: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Measures a model at its initial weights, and placements at several depths, without training; prints both."""
    from archlab.report import preflight as told
    from archlab.report.progress import track

    settings, where, source = (
        section(cfg, "preflight", PreflightSettings),
        machine(cfg.device, cfg.precision),
        open_source(cfg),
    )
    size = {"batch_size": settings.batch_size, "seq_len": settings.seq_len or cfg.train.train_len}
    console, decoder = Console(), build(cfg).to(where.device)
    with where.autocast():
        start = look_at_start(decoder, source, cfg.seed, **size)
        update = update_size(decoder, source, settings.steps, settings.lr, cfg.seed, **size)
        comparison = depths.across_depths(cfg, source, settings, where.device) if settings.depths else ()
        rows = [row.told() for row in track(comparison, "depths", len(depths.placements(cfg)))]
    seen = start.told() | {"update": update, "steps": settings.steps, "lr": settings.lr}
    console.print(told.start(seen, list(warnings(start, update))))
    if rows:
        console.print(told.depths(rows))
    if settings.plot:
        print(told.draw(seen, Path(settings.plot)))


def run(cfg: DictConfig, overrides: Sequence[str] = (), started: float | None = None, plots: bool = True) -> Path:
    """Trains and evaluates what a settled configuration describes; returns the run's directory.

    `started` is the time.time() from which the time to the first step counts. A run the user interrupts is written
    down like any other before KeyboardInterrupt goes on.
    """
    from archlab.logbook import Logbook, git_state, versions
    from archlab.report import tables
    from archlab.report.progress import TrainingProgress

    started, provenance = started or time.time(), {"versions": versions(), "git": git_state()}
    console = Console()
    where, settings = machine(cfg.device, cfg.precision), section(cfg, "train", TrainSettings)
    source = open_source(cfg)
    # Both also refuse, before anything is written, a train_len that the data can't serve.
    source.train(cfg.seed, 1, settings.batch_size, settings.train_len)
    unigram = unigram_entropy(source, settings.train_len, cfg.eval.tokens)
    price = costs(cfg, where)
    print_assembled(console, cfg, price)
    tuned = find_rate(cfg, source, where) if cfg.tune else None
    if tuned:
        settings = replace(settings, lr=tuned["lr"])

    decoder = build(cfg).to(where.device)
    if settings.checkpoint:
        decoder.recompute_activations()
    validation = partial(held_out, decoder, source, where, settings.train_len, cfg.eval.tokens)
    logbook = Logbook(cfg.output, cfg, overrides)
    with TrainingProgress(settings.steps) as progress:
        outcome = train(
            decoder,
            source,
            settings,
            where,
            seed=cfg.seed,
            probe_every=cfg.probe.every,
            validate=lambda: validation().loss(),
            report=logbook.step,
            tick=progress.advance,
        )
    broken = outcome.status == "diverged" or outcome.interrupted
    val_loss = None if broken else validation().loss()
    lengths, positions = ([], []) if broken else evaluate(cfg, decoder, source, where)
    findings = autopsy(
        outcome.losses,
        outcome.recorded,
        diverged=outcome.status == "diverged",
        first_spike=outcome.first_spike,
        first_nonfinite=outcome.first_nonfinite and asdict(outcome.first_nonfinite),
    )
    summary = {
        "status": outcome.status,
        "leaking": leaks(cfg),
        "choices": dict(cfg.choices),
        **price,
        "train_loss": mean(outcome.losses[-LAST_STEPS:]),
        "val_loss": val_loss,
        "unigram_loss": unigram,
        "best_step": outcome.best_step,
        "matched": OmegaConf.to_container(cfg.matched) if cfg.match else None,
        "tuned": tuned,
        "length": lengths,
        "length_verdict": verdict(lengths, settings.train_len, source.exact, unigram),
        "stability": stability(outcome, logbook.metrics, settings.clip),
        "autopsy": findings,
        "tokens_per_second": outcome.tokens_per_second,
        "first_step_seconds": outcome.first_step_at and outcome.first_step_at - started,
        "seed": cfg.seed,
        "device": str(where.device),
        "train_len": settings.train_len,
        "steps": len(outcome.losses),
        "tokens": len(outcome.losses) * settings.tokens_per_step,
        "corpus_sha256": source.sha256,
        "threads": torch.get_num_threads(),
        **provenance,
        "wall_seconds": time.time() - started,
    }
    if findings:
        logbook.autopsy({**findings, "recorded": outcome.recorded})
    if plots:
        from archlab.report.plots import draw_all  # here, so that training need not wait for matplotlib
        from archlab.report.plots_autopsy import draw_autopsy

        draw_all(logbook.directory, logbook.metrics, summary, positions)
        if findings:
            draw_autopsy(findings, outcome.recorded, logbook.directory / "autopsy.png")
    summary["wall_seconds"] = time.time() - started
    logbook.close(summary, positions, decoder)
    console.print(tables.result(summary))
    print(logbook.directory)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return logbook.directory


def open_source(cfg: DictConfig) -> Source:
    """The data, refused where its ids don't fit the model's vocabulary."""
    with in_the_users_words():
        source = instantiate(cfg.data)
    if source.vocab_size > cfg.size.vocab_size:
        raise UserError(
            f"size.vocab_size={cfg.size.vocab_size}: data={cfg.choices.data} has ids up to {source.vocab_size - 1};"
            f" use size.vocab_size={source.vocab_size}"
        )
    return source


def evaluate(cfg: DictConfig, decoder: Decoder, source: Source, where: Machine) -> tuple[list[Record], list[Record]]:
    from archlab.report.progress import track

    settings = section(cfg, "eval", EvalSettings)
    multiples = track(settings.lengths, "evaluate", len(settings.lengths))
    return by_length(decoder, source, where, settings, cfg.train.train_len, multiples)


def evaluate_again(directory: Path, cfg: DictConfig) -> Record:
    """What a run's weights come to under a configuration other than the one they were trained with."""
    since, where, source = time.time(), machine(cfg.device, cfg.precision), open_source(cfg)
    decoder = load_weights(directory, cfg).to(where.device)
    lengths, _ = evaluate(cfg, decoder, source, where)
    return {
        "val_loss": held_out(decoder, source, where, cfg.train.train_len, cfg.eval.tokens).loss(),
        "length": lengths,
        "seconds": time.time() - since,
    }


def find_rate(cfg: DictConfig, source: Source, where: Machine) -> Record:
    from archlab.report.progress import track

    rates = tune.rates(cfg)
    return tune.tuned_rate(cfg, source, where, track(rates, "tune lr", len(rates)))


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def costs(cfg: DictConfig, where: Machine) -> dict[str, Any]:
    """What the model costs, by its shapes alone. FLOPs count a multiply-add as two, at train_len; the cache is in `dtype`."""
    on_meta = assemble_without_weights(cfg)
    return {
        "n_params": describe.count_parameters(on_meta),
        **measure.costs(on_meta, cfg.train.train_len, where.dtype.itemsize),
        "dtype": str(where.dtype).removeprefix("torch."),
    }


def print_assembled(console: Console, cfg: DictConfig, price: Mapping[str, Any]) -> None:
    from archlab.report import tables

    blocks = [(group, chosen(cfg, group), options_of(cfg, group)) for group in GROUPS]
    by_layer = [(kind.where, kind.what) for kind in kinds_of_layers(cfg)] if cfg.layers else []
    console.print(tables.assembled(blocks, price, by_layer))
    if cfg.match:
        console.print(f"matched: {describe_match(cfg.matched)}", highlight=False)
    console.print(describe.tree(assemble_without_weights(cfg)), markup=False, highlight=False)


def chosen(cfg: DictConfig, group: str) -> str:
    """The option's name; of a size whose width or depth was set otherwise, as by a preset, none."""
    name = cfg.choices[group]
    named = option_node(group, name, [conf_dir()]) if group == "size" else None
    return "own" if named and any(cfg.size[field] != named[field] for field in ("d_model", "n_layers")) else name


def options_of(cfg: DictConfig, group: str) -> str:
    """A group's options as they were settled, in one line."""
    node = OmegaConf.to_container(cfg[group])
    return ", ".join(
        f"{name}={value}" for name, value in node.items() if not name.startswith("_") and not isinstance(value, dict)
    )


def section(cfg: DictConfig, name: str, kind: type) -> Any:
    return kind(**OmegaConf.to_container(cfg[name]))
