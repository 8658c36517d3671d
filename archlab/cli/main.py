"""The command line: `archlab [verb] name=value ...`, with every mistake answered in one line.

Hydra does the work (`hydra.main`: composing, sweeping, launching, completing); this file is what runs before and after it.
Before, arguments are put into Hydra's spelling; after, errors become one line, `archlab: ...`, and exit status 2.
Nothing here imports torch until a job starts.
"""

import errno
import io
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import archlab
from archlab.base import signals
from archlab.base.errors import NoRoom, UserError, shortened
from archlab.base.files import TOO_LONG, check_folder, kept_out, no_room
from archlab.base.messages import beyond_the_machine, did_you_mean
from archlab.base.words import key_of, sets, value_of
from archlab.cli import models, results
from archlab.cli.arguments import show
from archlab.cli.jobs import Action, Jobs, RunOptions, own_of_job
from archlab.config.compose import plans
from archlab.config.flags import FLAGS, split
from archlab.config.messages import explain
from archlab.config.overrides import conf_dir, groups, normalise, refuse_twice, sets_hydra
from archlab.config.plan import Plan, layer_plans
from archlab.config.whole import by_hydra
from archlab.records.directory import looks_like_a_run, refuse_beside_a_run
from archlab.runs import experiments
from archlab.runs.workers import expect_workers


@dataclass(frozen=True)
class Verb:
    """A verb of the command line: its line of help, and the function that is called with the words after it."""

    help: str
    act: Callable[[list[str]], None]


# ---------------------------------------------------------------- entering and leaving


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point of `archlab` and of `python -m archlab`; raises SystemExit where the status is not 0."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, "")  # unlike python -m, a console script does not find the user's own blocks here
    threading.excepthook = _of_a_thread
    _print_anywhere()
    try:
        try:
            with signals.raising():
                _dispatch(list(sys.argv[1:] if argv is None else argv))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except UserError as error:
        _say(error)
        sys.exit(2)
    except NoRoom as error:
        _say(error)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if (refusal := beyond_the_machine(error)) is None:
            raise
        _say(refusal)
        sys.exit(2)
    except KeyboardInterrupt as error:
        sys.exit(getattr(error, "status", 130))
    except BrokenPipeError:
        # The reader has closed the pipe (`archlab --help | head`); the flush at exit would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _say(UserError(f"{shortened(str(error.filename))}: {TOO_LONG}"))
            sys.exit(2)
        if refused := kept_out(error):
            _say(refused)
            sys.exit(2)
        if (full := no_room(error)) is None:
            raise
        _say(full)
        sys.exit(1)


def _print_anywhere() -> None:
    """Has every terminal print something: a mark for what its encoding lacks, and 80 columns where it is said to have 0."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if os.environ.get("COLUMNS", "1").strip("0") == "":
        del os.environ["COLUMNS"]  # rich would print nothing at all


def _of_a_thread(raised: threading.ExceptHookArgs) -> None:
    """Stays silent where a logger's thread cannot write, since the run itself reports that."""
    error = raised.exc_value
    if error is None or not (isinstance(error, OSError) or no_room(error)):
        threading.__excepthook__(raised)


def _say(error: Exception) -> None:
    print("archlab:", " ".join(str(error).split()), file=sys.stderr)


def _dispatch(arguments: list[str]) -> None:
    if "--version" in arguments or "-V" in arguments:
        print("archlab", archlab.__version__)
        return
    verb, rest = _verb(*split(arguments))
    if verb != "run" and "--help" in rest:
        verb, rest = "run", ["--help"]
    _check_sections(verb, rest)
    VERBS[verb].act(rest)


def _check_sections(verb: str, arguments: list[str]) -> None:
    """Refuses options that only another verb uses."""
    for word in arguments:
        section, dot, _ = key_of(word).partition(".")
        if dot and SECTIONS_OF.get(section, verb) != verb:
            raise UserError(
                f"{word}: {verb} does not use {section}; leave it out, or use archlab {SECTIONS_OF[section]}"
            )


def _verb(flags: list[str], words: list[str]) -> tuple[str, list[str]]:
    """The verb, `run` where none is named, and its arguments; flags may stand before it and after it."""
    if not words or "=" in words[0] or words[0].startswith(("+", "~")) or "--shell-completion" in flags:
        return "run", flags + words
    word, *rest = words
    if word in VERBS:
        return word, flags + rest
    if "--info" in flags:  # more likely a misspelt value of --info, whose value may be left out
        return "run", flags + words
    raise UserError(
        f"{word}: no such verb; {did_you_mean(word, VERBS)}verbs: {', '.join(VERBS)}; an override is name=value"
    )


# ---------------------------------------------------------------- verbs that work on one configuration


def _with_configuration(action: Action, arguments: list[str]) -> None:
    """Composes what the words describe and acts on it, or does what a flag asks for instead."""
    flags, words = split(arguments)
    if "--shell-completion" in flags:
        _complete(flags, words)
        return
    _check_flags(flags)
    refuse_twice(words)
    flags, words, experiment = _expanded(flags, words, action)
    options = RunOptions()
    if action is _run:
        words, options = RunOptions.taken_from(words)
        _check_of_sweeps(flags, words, options)
        if "--multirun" in flags and options.workers != 1 and options.pack == "auto":
            expect_workers()
        action = partial(_run, options=options)
    words = normalise(words, _own(flags))
    _check_hydras(flags, words)
    if "--help" in flags:
        print(_page([] if "--multirun" in flags else words, _own(flags)))
        return
    jobs = Jobs(action)
    swept: list[Plan] = []
    if "--multirun" in flags and not any(word.startswith(("hydra/sweeper", "hydra.sweeper.params")) for word in words):
        # Every job of a sweep is checked before the first one starts, and on this machine, wherever it will run.
        here = [word for word in words if not sets_hydra(word)]
        swept = plans(*here, config_dir=_own_folder(flags))
        jobs.total = len(swept)
        if experiment:
            _announce_experiment(experiment, jobs.total)
    try:
        if _is_one_job(flags, words):
            cfg = by_hydra(words, _own(flags))
            HydraConfig.instance().set_config(cfg)
            jobs.run(cfg)
        elif not swept or any(map(sets_hydra, words)):
            _hydra(flags, words, jobs.run)
        elif isinstance(action, partial):
            _warn(swept)
            jobs.sweep(swept, options, _own_folder(flags))
        else:
            jobs.one_by_one(swept)
    finally:
        if "--multirun" in flags and jobs.directories:
            print(*jobs.directories, sep="\n")
    if experiment and jobs.directories:
        results.REPORTS[experiment.report](jobs.directories)
    elif len(jobs.directories) > 1:
        results.compare_sweep(jobs.directories)
    jobs.raise_errors()


def _is_one_job(flags: list[str], words: list[str]) -> bool:
    """Whether Hydra only has to compose, which it would do twice: the first time to find out what to run."""
    return not {flag for flag in flags if flag.startswith("--")} - {"--config-dir"} and not any(map(sets_hydra, words))


def _with_one_model(action: Action, arguments: list[str]) -> None:
    """The same of a model by its name alone: a preset, or a run's directory."""
    flags, words = split(arguments)
    refuse_beside_a_run(words)
    named_alone = len(words) == 1 and ("=" not in words[0] or looks_like_a_run(Path(words[0])))
    if named_alone and flags[::2] in ([], ["--config-dir"]):
        from archlab.runs.named_model import named

        action(named(words[0], _own_folder(flags)).cfg, [])
    else:
        _with_configuration(action, arguments)


def _check_of_sweeps(flags: list[str], words: list[str], options: RunOptions) -> None:
    """Refuses options about the runs of a sweep where they would change nothing."""
    for name in ("workers", "pack"):
        if (value := getattr(options, name)) == getattr(RunOptions, name):
            continue
        if "--multirun" not in flags and not tuned(words):
            raise UserError(f"{name}={value}: a single run has no others beside it; use it with -m, or leave it out")
        if any(map(sets_hydra, words)):
            raise UserError(f"{name}={value}: Hydra's launcher decides how jobs are run; leave one of the two out")


def tuned(words: list[str]) -> bool:
    """Whether even a single run has trials, of which several can go on at a time."""
    return any(sets(word, "tune") and value_of(word) not in ("", "null") for word in words)


def _expanded(
    flags: list[str], words: list[str], action: Action
) -> tuple[list[str], list[str], experiments.Experiment | None]:
    """The flags and words with `experiment=NAME` replaced by those of its sweep."""
    if action is not _run or "--help" in flags:
        return flags, words, None
    words, experiment = experiments.expand(words, _own(flags))
    if experiment is None:
        return flags, words, None
    if shown := [flag for flag in flags if flag in ("--cfg", "--info")]:
        raise UserError(f"{shown[0]}: shows one configuration, but an experiment has several; leave one of them out")
    return [*dict.fromkeys(("--multirun", *flags))], words, experiment


def _announce_experiment(experiment: experiments.Experiment, n_runs: int) -> None:
    from archlab.report.tables import duration

    print(experiment.question)
    estimate = duration(n_runs * experiment.seconds_per_run)
    print(
        f"{n_runs} runs; about {estimate} on one CPU thread if they cost as much as those in conf/experiment",
        flush=True,
    )


def _check_flags(flags: list[str]) -> None:
    asked = [flag for flag in flags if flag in ("--multirun", "--cfg", "--info", "--shell-completion")]
    if len(set(asked)) > 1:
        raise UserError(f"{' '.join(asked)}: only one of these at a time")
    if "--ladder" in flags:
        raise UserError("--ladder: only with two models, as in archlab diff llama_7b chatglm_6b --ladder")
    if "--vs" in flags:
        raise UserError("--vs: only with bench, as in archlab bench norm=rms --vs norm=layer")
    if "--resolve" in flags and "--cfg" not in flags:
        raise UserError("--resolve: only together with --cfg")


def _check_hydras(flags: list[str], words: list[str]) -> None:
    """Refuses settings of sweeps where there is none; what a flag prints has them in any case."""
    of_sweeps = [
        word
        for word in words
        if key_of(word).startswith(("hydra.sweep", "hydra/sweep", "hydra.launch", "hydra/launch"))
    ]
    if of_sweeps and not {"--multirun", "--cfg", "--info"} & set(flags):
        raise UserError(f"{of_sweeps[0]}: changes nothing in one run; add -m, which makes several, or leave it out")


def _own(flags: list[str]) -> list[Path]:
    """The folder of the user's own options; the last one where there are several."""
    return [Path(folder) for flag, folder in pairwise(flags) if flag == "--config-dir"][-1:]


def _own_folder(flags: list[str]) -> Path | None:
    return next(iter(_own(flags)), None)


# ---------------------------------------------------------------- Hydra


def _hydra(flags: list[str], words: list[str], task: Callable[[DictConfig], None]) -> None:
    """Runs `hydra.main` as if the words were the process's arguments; its exceptions are passed on unchanged."""
    _know_tables(_own(flags))
    # --info prints through logging, which would print a traceback when the pipe is closed (`| head`).
    logging.raiseExceptions = "--info" not in flags
    application = hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(task)
    with _sweep_folder(flags, words) as folder, _process(["archlab", *flags, *words, *folder]):
        try:
            application()
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise explain(error) from error


@contextmanager
def _process(argv: list[str], **environment: str) -> Iterator[None]:
    """Sets the arguments and the environment of the process, and restores them afterwards."""
    before = sys.argv, dict(os.environ)
    sys.argv = argv
    os.environ.update(environment, HYDRA_FULL_ERROR="1")
    try:
        yield
    finally:
        sys.argv = before[0]
        for name in ("HYDRA_FULL_ERROR", *environment):
            os.environ.pop(name, None)
            if name in before[1]:
                os.environ[name] = before[1][name]


@contextmanager
def _sweep_folder(flags: list[str], words: list[str]) -> Iterator[list[str]]:
    """A temporary folder for the multirun.yaml of Hydra's sweeper, which nobody needs: each run records itself.

    A launcher may keep its jobs' files there, so with a launcher the folder stays where config.yaml puts it.
    """
    if "--multirun" not in flags or any(word.startswith(("hydra/launcher", "hydra.sweep.")) for word in words):
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="archlab-") as folder:
        yield [f"hydra.sweep.dir='{folder}'"]


def _page(words: list[str], own: list[Path]) -> str:
    """The page of --help. Hydra's own way to it lists every group twice, which takes most of a second, for a page that asks for none."""
    _know_tables(own)
    if words:
        by_hydra(words, own)  # which says what is wrong with them
    return str(OmegaConf.load(conf_dir() / "config.yaml").hydra.help.template)


def _know_tables(own: list[Path]) -> None:
    """Lets config.yaml refer to them, as ${archlab:verbs}."""
    OmegaConf.register_new_resolver("archlab", partial(_help_on, own), replace=True)


def _help_on(own: list[Path], what: str) -> str:
    """The parts of --help that are made of tables in the code."""
    lines = {
        "verbs": [f"  {name:26} {verb.help}" for name, verb in VERBS.items()],
        "flags": [f"  {flag.usage:26} {flag.help}" for flag in FLAGS],
        "groups": [f"{group}: {', '.join(options)}" for group, options in groups(own).items()],
    }
    return "\n".join(lines[what])


# ---------------------------------------------------------------- completion


SHELLS = ("bash", "fish", "zsh")


def _complete(flags: list[str], words: list[str]) -> None:
    """`-sc install=bash` prints the shell's script, which asks `-sc query=bash` with COMP_LINE set."""
    command, _, shell = words[0].partition("=") if len(words) == 1 else ("", "", "")
    if command not in ("install", "uninstall", "query") or shell not in SHELLS:
        shells = " or ".join(SHELLS)
        raise UserError(f"--shell-completion: write install=SHELL or uninstall=SHELL, where SHELL is {shells}")
    if command != "query":
        _hydra(flags, words, _no_job)
        return
    line = os.environ.get("COMP_LINE", "")
    typed = line.split()[1:]
    last = typed.pop() if typed and not line.endswith(" ") else ""
    with suppress(UserError):  # a flag that still waits for its value
        if not split(typed)[1]:
            print(*(verb for verb in VERBS if verb.startswith(last)))
    if last.startswith("-"):
        print(*(flag.name for flag in FLAGS if flag.name.startswith(last)))
        return
    sensible, own = _understood(typed)
    # An unfinished command line may be wrong, and completion cannot show an error.
    with _process(sys.argv, COMP_LINE=" ".join(["archlab", *sensible, last])), suppress(UserError):
        _hydra([*flags, *own], words, _no_job)


def _understood(typed: list[str]) -> tuple[list[str], list[str]]:
    """The words before the cursor that make sense, and the flag that names the user's own options."""
    try:
        flags, words = split(typed)
    except UserError:
        return [], []
    sensible = ["-m"] if "--multirun" in flags else []
    for word in words[1:] if words and words[0] in VERBS else words:
        with suppress(UserError):
            sensible += normalise([word], _own(flags))
    return sensible, [word for folder in _own(flags) for word in ("--config-dir", str(folder))]


def _no_job(cfg: DictConfig) -> None:
    raise AssertionError("completion runs nothing")


# ---------------------------------------------------------------- the verbs


def _run(cfg: DictConfig, overrides: list[str], options: RunOptions = RunOptions()) -> Path | None:  # noqa: B008
    from archlab.runs import tune
    from archlab.runs.sweep import Job

    _warn_of(cfg)
    first = cast(DictConfig, HydraConfig.get().job).get("num", 0) == 0
    one = HydraConfig.get().mode != RunMode.MULTIRUN
    plan = Plan(tuple(overrides), cfg, tuple(layer_plans(cfg)))
    job = Job(plan, own_of_job(), one if options.plots is None else options.plots, options.resume)
    searched = tune.find_rates([cfg], options.workers, options.pack, show=True) if one and job.existing is None else 0.0
    return job.do(archlab.STARTED + searched if first else None)


def _warn(swept: Sequence[Plan]) -> None:
    for plan in swept:
        _warn_of(plan.cfg)


def _warn_of(cfg: DictConfig) -> None:
    """Says which options of a configuration have no effect there."""
    from archlab.config.check import without_effect

    for line in without_effect(cfg):
        print("archlab:", line, file=sys.stderr)


def _resume(arguments: list[str]) -> None:
    flags, words = split(arguments)
    if flags and flags[0] != "--config-dir":
        raise UserError(f"{flags[0]}: resume takes no such flag; it takes --config-dir")
    if not words:
        raise UserError("resume: takes a run's directory, as a run prints it")
    if options := [word for word in words if "=" in word and "/" not in word and not Path(word).exists()]:
        raise UserError(
            f"{options[0]}: a run continues with the options it began with; resume takes only its directory"
        )
    from archlab.runs import lab

    for directory in words:
        lab.resume(Path(directory), own=_own_folder(flags))


def _show(cfg: DictConfig, overrides: list[str]) -> Path | None:
    from archlab.verbs.describe import show as described

    show(described(cfg))
    return None


def _preflight(cfg: DictConfig, overrides: list[str]) -> Path | None:
    from archlab.verbs.preflight import start_of

    if cfg.preflight.plot:
        check_folder("preflight.plot", Path(cfg.preflight.plot))  # before it is measured
    found = start_of(cfg, any(sets(word, "preflight.depths") for word in overrides))
    show(found)
    if cfg.preflight.plot:
        print(found.save(cfg.preflight.plot))
    return None


VERBS = {
    "run": Verb("train a model and measure it; the verb when none is given", partial(_with_configuration, _run)),
    "resume": Verb("finish a RUN that was broken off, as if it had not been", _resume),
    "show": Verb("build a model and print what it is made of, without training", partial(_with_one_model, _show)),
    "compare": Verb(
        "which arms of these RUNS differ, and whether the difference is real; metric=, baseline=", results.compare
    ),
    "claims": Verb("decide claims: supported, refuted or inconclusive; NAMES, budget=quick|full", results.claims),
    "stability_map": Verb("map the largest stable learning rate by depth, from RUNS", results.stability_map),
    "report": Verb("one HTML page of RUNS and CLAIMS; output=FILE.html, metric=...", results.report),
    "generate": Verb("let a RUN's model continue prompt=TEXT; max_new_tokens=, temperature=", results.generate),
    "diff": Verb("how two models differ: presets, RUNS or quoted overrides; seq_len=, output=FILE", models.diff),
    "draw": Verb("the block diagram of a model, as SVG and PNG; output=FILE", models.draw),
    "verify": Verb("whether a block keeps its contract, as in verify norm=mine --config-dir my", models.verify),
    "bench": Verb(
        "how fast a model is here; --vs OVERRIDES, suite=speed|peers|scaling|gpu, output=FOLDER", models.bench
    ),
    "preflight": Verb(
        "look at a model before training: activations, gradients, depth", partial(_with_one_model, _preflight)
    ),
}

SECTIONS_OF = {"memory": "show", "preflight": "preflight"}
"""Sections that only one verb uses, and that verb."""
