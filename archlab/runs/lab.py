"""A run from its configuration to its last file, and a run that goes on: train, look, score, write down."""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig
from rich.console import Console

import archlab
from archlab.base.configuration import plain_dict
from archlab.base.errors import UserError
from archlab.base.signals import Stop, Stopped, listening
from archlab.config.assemble import build
from archlab.config.groups import leaks, option
from archlab.data.batch import Batch, Source
from archlab.diagram.parts import sketch
from archlab.diagram.saved import write_sketch
from archlab.evaluate.autopsy import autopsy
from archlab.evaluate.length import by_length, held_out_tokens, verdict
from archlab.evaluate.settings import EvalSettings
from archlab.evaluate.stability import stability
from archlab.evaluate.validation import held_out, unigram_entropy
from archlab.model.decoder import Decoder
from archlab.records.checkpoint import Checkpoint, newest
from archlab.records.directory import disk_explained, hold, is_finished
from archlab.records.logbook import Again, Logbook, git_state, versions
from archlab.records.reader import read_run
from archlab.records.summary import AtLength, Stability, Summary
from archlab.runs import tune
from archlab.runs.assembled import assembled, costs, machine_of, open_source, section, settings_of, training_seed
from archlab.runs.bf16 import faster_in_bf16, slower_in_bf16
from archlab.runs.compiling import whether_compiled
from archlab.runs.holds import check_fits
from archlab.runs.load import saved_configuration
from archlab.runs.weights import load_weights
from archlab.train.clock import elapsed
from archlab.train.compiling import programs_of
from archlab.train.loop import Outcome, Record, train
from archlab.train.objective import scored_targets, targets_ahead
from archlab.train.observers import Checkpoints, EveryStep, Observer
from archlab.train.runtime import Runtime
from archlab.train.settings import TrainSettings
from archlab.train.state import TrainState

LAST_STEPS = 20
"""train_loss is the mean over this many last steps."""


def run(
    cfg: DictConfig,
    overrides: Sequence[str] = (),
    started: float | None = None,
    plots: bool = True,
    show_result: bool = True,
) -> Path:
    """Trains and evaluates what a settled configuration describes; returns the run's directory.

    `started` is the time.time() from which the time to the first step counts. A run the user interrupts is written
    down like any other, with the checkpoint it goes on from, before KeyboardInterrupt goes on.
    """
    return carried_out(prepared(cfg, started or time.time()), overrides, plots, show_result=show_result)


def resume(directory: Path, plots: bool = True, own: Path | None = None, show_result: bool = True) -> Path:
    """Finishes a run that was broken off, as it would have gone on; one that is finished is left as it is.

    `own` is the folder of the user's own options, where the run has any.

    Raises UserError where the directory holds no run, another process is writing it, another version of archlab began
    it, or all of its checkpoints are damaged.
    """
    if is_finished(directory):
        read_run(directory)  # whose files say so, or it is not
        print(f"{directory}: is finished; there is nothing left to do")
        return directory
    held = hold(directory)
    try:
        cfg = saved_configuration(directory, own)
        damaged: list[str] = []
        saved = newest(directory, damaged)
        about = saved.about if saved else {}
        check_version(directory, about)
        tell_where(directory, cfg, damaged, about)
        work = prepared(cfg, time.time() - about.get("seconds", 0), about)
    except BaseException:
        os.close(held)
        raise
    return carried_out(work, (), plots, Again(directory, held, about), saved, show_result)


@dataclass(frozen=True)
class Work:
    """What a run is made with, before its first step or before its next."""

    cfg: DictConfig
    where: Runtime
    settings: TrainSettings
    source: Source
    decoder: Decoder
    unigram: float
    price: dict[str, Any]
    tuned: Record | None
    started: float
    """time.time() when it began, had it never stood still."""

    about: Record
    """What a checkpoint says besides the state."""


def prepared(
    cfg: DictConfig, started: float, about: Mapping[str, Any] = {}, shown: bool = True, packed: bool = False
) -> Work:
    """Assembles the model, once, and prints what it is; nothing is written yet. `about` is a checkpoint's."""
    since = time.time()
    tuned = (about.get("tuned") or tune.tuned_rate(cfg)) if cfg.tune else None
    started += elapsed(since)  # a search belongs to all runs of its arm
    asked, cfg = cfg, tune.as_found(cfg, tuned)
    where, settings, source = machine_of(cfg), settings_of(cfg), open_source(cfg)
    # Both also refuse, before anything is written, a train_len that the data can't serve.
    first = source.train(training_seed(cfg), 1, settings.batch_size, settings.train_len)
    unigram = unigram_entropy(source, settings.train_len, cfg.eval.tokens)
    check_fits(cfg, where.device)
    decoder = build(cfg)
    check_further_tokens(cfg, decoder, first)
    price = costs(cfg, where, decoder)
    compile, why = whether_compiled(cfg, where, programs_of(decoder), about, packed)
    where = replace(where, compile=compile)
    if shown:
        Console().print(assembled(cfg, price, decoder))
        print(why)
        if said := slower_in_bf16(cfg, where, decoder) or faster_in_bf16(cfg, where, decoder):
            print(said)
    if tuned:
        settings = replace(settings, lr=tuned["lr"])
    if settings.checkpoint:
        decoder.recompute_activations()
    made_by = {"archlab": archlab.__version__, "made_with": {"versions": versions(), "git": git_state()}}
    known = {**made_by, "began": started, "tuned": tuned, "compile": compile, **about}
    return Work(asked, where, settings, source, decoder.to(where.device), unigram, price, tuned, started, known)


def check_further_tokens(cfg: DictConfig, decoder: Decoder, batch: Batch) -> None:
    """Raises UserError where several tokens are to be predicted at each position, and the data has none that could be."""
    form, tokens, data = cfg.mtp.form, cfg.mtp.tokens, option(cfg, "data")
    if form is None:
        return
    if batch.targets is not None:
        raise UserError(
            f"mtp.form={form}: data={data} says what is to be predicted at each position, and that is not the next token, so there"
            " are no tokens after it; leave it out, or use data of next tokens such as data=text"
        )
    scored = scored_targets(decoder, batch)
    none_left = (by for by in range(tokens) if not targets_ahead(batch.to_predict, scored, by)[1].any())
    most = next(none_left, tokens)
    if most < tokens:
        fewer = f"use at most mtp.tokens={most}, or" if most > 1 else "leave mtp.form out, or use"
        raise UserError(
            f"mtp.tokens={tokens}: of data={data} no more than {most} target{'s' * (most != 1)} in a row count, so that some heads"
            f" would have nothing to predict; {fewer} other data"
        )


def carried_out(
    work: Work,
    overrides: Sequence[str],
    plots: bool,
    again: Again | None = None,
    saved: Checkpoint | None = None,
    show_result: bool = True,
) -> Path:
    """From the first step, or the one after the checkpoint, to the run's last file."""
    with (
        listening() as stop,
        Logbook(work.cfg.output, work.cfg, overrides, again) as logbook,
        disk_explained(logbook.directory),
    ):
        outcome = trained(work, logbook, stop, saved)
        summary = written_down(work, logbook, outcome, stop, plots)
    from archlab.report import tables

    if show_result or outcome.interrupted:
        Console().print(tables.result(summary))
        print(logbook.directory)
    if outcome.interrupted:
        raise Stopped(stop.asked or signal.SIGINT)
    return logbook.directory


def written_down(
    work: Work, logbook: Logbook, outcome: Outcome, stop: Stop, plots: bool, pack: int | None = None
) -> Record:
    """Evaluates what was trained, alone or with others in a `pack`, and writes the run's last files; returns its summary."""
    val_loss, lengths, positions = evaluated(work, outcome, stop)
    findings = findings_of(outcome)
    summary = summary_of(work, outcome, logbook, val_loss, lengths, findings)
    summary["pack"] = pack
    if findings:
        logbook.autopsy({**findings, "recorded": outcome.recorded})
    if plots:
        plotted(logbook, summary, positions, findings, outcome, stop)
    if outcome.interrupted:
        summary["status"] = "stopped"
    summary["wall_seconds"] = elapsed(work.started)
    with suppress(UserError):  # a block that cannot be run on the meta device is not drawn
        write_sketch(logbook.directory, sketch(work.decoder, ""))
    logbook.close(summary, positions, work.decoder, to_be_continued=outcome.interrupted)
    return summary


def trained(work: Work, logbook: Logbook, stop: Stop, saved: Checkpoint | None) -> Outcome:
    from archlab.report.progress import TrainingProgress

    start = saved.state["step"] if saved else 0
    with TrainingProgress(work.settings.steps, start) as progress:
        return train(
            work.decoder,
            work.source,
            work.settings,
            work.where,
            seed=training_seed(work.cfg),
            probe_every=work.cfg.probe.every,
            validate=partial(validated, work),
            report=logbook.step,
            tick=progress.advance,
            observers=watching(work, logbook, stop),
            stop=stop,
            saved=saved and (saved.tensors, saved.state),
        )


def watching(work: Work, logbook: Logbook, stop: Stop) -> list[Observer]:
    """Who writes down each step, and who saves the state."""

    def save(state: TrainState) -> None:
        logbook.save(state, {**work.about, "seconds": elapsed(work.started)})

    return [EveryStep(logbook.steps), Checkpoints(work.settings.save_every, stop, save)]


def validated(work: Work) -> float | None:
    return validation_loss(work.cfg, work.decoder, work.source, work.where)


def validation_loss(cfg: DictConfig, decoder: Decoder, source: Source, where: Runtime) -> float | None:
    return held_out(decoder, source, where, cfg.train.train_len, cfg.eval.tokens).loss()


def evaluated(work: Work, outcome: Outcome, stop: Stop) -> tuple[float | None, list[Record], list[Record]]:
    """The validation loss, and what is known by length and by position; nothing of a run that broke or was stopped."""
    if outcome.status == "diverged" or outcome.interrupted:
        return None, [], []
    try:
        with stop.raising():
            lengths, positions = evaluate(work.cfg, work.decoder, work.source, work.where)
            known = same_as_validation(work.cfg, lengths)
            return validated(work) if known is None else known["loss"], lengths, positions
    except KeyboardInterrupt:
        outcome.interrupted = True
        return None, [], []


def same_as_validation(cfg: DictConfig, lengths: list[Record]) -> Record | None:
    """The record of train_len, where it is of the very windows that the validation loss is of."""
    settings, train_len = section(cfg, "eval", EvalSettings), cfg.train.train_len
    of_lengths = held_out_tokens(settings, train_len)
    if settings.protocol != "disjoint" or of_lengths // train_len != settings.tokens // train_len:
        return None
    return next((one for one in lengths if one["eval_len"] == train_len and one["loss"] is not None), None)


def findings_of(outcome: Outcome) -> Record | None:
    return autopsy(
        outcome.losses,
        outcome.recorded,
        diverged=outcome.status == "diverged",
        first_spike=outcome.first_spike,
        first_nonfinite=asdict(outcome.first_nonfinite) if outcome.first_nonfinite else None,
    )


def summary_of(
    work: Work,
    outcome: Outcome,
    logbook: Logbook,
    val_loss: float | None,
    lengths: list[Record],
    findings: Record | None,
) -> dict[str, Any]:
    cfg, settings, source = work.cfg, work.settings, work.source
    made_with: Record = {"versions": versions(), "git": git_state()}
    return Summary(
        status="stopped" if outcome.interrupted else outcome.status,
        val_loss=val_loss,
        corpus_sha256=source.sha256,
        train_loss=mean(outcome.losses[-LAST_STEPS:]),
        unigram_loss=work.unigram,
        best_step=outcome.best_step,
        length=cast(list[AtLength], lengths),
        length_verdict=verdict(lengths, settings.train_len, source.exact, work.unigram),
        stability=cast(Stability, stability(outcome, logbook.metrics, settings.clip)),
        autopsy=findings,
        choices=dict(cfg.choices),
        leaking=leaks(cfg),
        matched=plain_dict(cfg.matched) if cfg.match else None,
        tuned=work.tuned,
        seed=cfg.seed,
        train_len=settings.train_len,
        steps=len(outcome.losses),
        tokens=len(outcome.losses) * settings.tokens_per_step,
        **work.price,
        tokens_per_second=outcome.tokens_per_second,
        first_step_seconds=outcome.first_step_at and elapsed(work.about["began"], outcome.first_step_at),
        wall_seconds=elapsed(work.started),
        tf32=work.where.tf32,
        compiled=outcome.compiled,
        attention=work.where.attention,
        device=str(work.where.device),
        threads=torch.get_num_threads(),
        versions=made_with["versions"],
        git=made_with["git"],
        # Where other code or other libraries began the run, its weights are of both.
        begun_with=work.about["made_with"] if work.about["made_with"] != made_with else None,
    ).to_record()


def plotted(
    logbook: Logbook,
    summary: dict[str, Any],
    positions: list[Record],
    findings: Record | None,
    outcome: Outcome,
    stop: Stop,
) -> None:
    from archlab.report.plots import draw_all  # here, so that training need not wait for matplotlib
    from archlab.report.plots_autopsy import draw_autopsy

    try:
        # Who has asked to stop already gets the plots of what there is; who asks now does not wait for them.
        with nullcontext() if stop.asked else stop.raising():
            draw_all(logbook.directory, logbook.metrics, summary, positions)
            if findings:
                draw_autopsy(findings, outcome.recorded, logbook.directory / "autopsy.png")
    except KeyboardInterrupt:
        outcome.interrupted = True


# ---------------------------------------------------------------- going on


def check_version(directory: Path, about: Mapping[str, Any]) -> None:
    if about and about["archlab"] != archlab.__version__:
        raise UserError(
            f"{directory}: was begun by archlab {about['archlab']}, and this is {archlab.__version__};"
            " finish it with the version that began it"
        )


def tell_where(directory: Path, cfg: DictConfig, damaged: Sequence[str], about: Mapping[str, Any]) -> None:
    for line in damaged:
        print(f"archlab: note: {directory}: {line}; going on from the one before", file=sys.stderr)
    after = (
        f"goes on after step {about['step']} of {cfg.train.steps}" if about else "has no checkpoint, so it begins anew"
    )
    print(f"archlab: {directory}: {after}", file=sys.stderr)


# ---------------------------------------------------------------- parts of a run


def evaluate(
    cfg: DictConfig, decoder: Decoder, source: Source, where: Runtime, as_trained: Decoder | None = None
) -> tuple[list[Record], list[Record]]:
    from archlab.report.progress import track

    settings = section(cfg, "eval", EvalSettings)
    multiples = track(settings.lengths[::-1], "evaluate", len(settings.lengths))
    return by_length(decoder, source, where, settings, cfg.train.train_len, multiples, as_trained)


def evaluate_again(directory: Path, cfg: DictConfig, trained: DictConfig) -> Record:
    """What a run's weights come to under a configuration other than the one they were trained with."""
    since, where, source = time.time(), machine_of(cfg), open_source(cfg)
    decoder = load_weights(directory, cfg).to(where.device)
    as_trained = load_weights(directory, trained).to(where.device)
    lengths, _ = evaluate(cfg, decoder, source, where, as_trained)
    known = same_as_validation(cfg, lengths)
    return {
        "val_loss": known["loss"] if known else validation_loss(cfg, decoder, source, where),
        "length": lengths,
        "seconds": elapsed(since),
    }


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
