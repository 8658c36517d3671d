"""Runs sorted into arms: what was compared, under names the user would give them, and whether it can be compared."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from archlab.base.errors import UserError
from archlab.base.nested import leaves, options_alone
from archlab.base.words import RENAMED, SLICE, key_of, layers_in, value_of
from archlab.records.reader import COMPARED, Record, Run, find, read_run

NOT_THE_ARM = frozenset({"seed", "output", "device"})
"""What may differ between two runs of one arm.

Not data_seed: runs that cross it with `seed` share initial weights or data with each other, so they are no independent
replicates, which a verdict counts; by themselves runs of one data_seed and several seeds are an arm.
"""

DEEPEST = 1000
"""Layers that a model may have (`archlab.base.quantities.Depth`); a file may say more."""

UNSAID: Mapping[str, Any] = {
    "kernel": "auto", "compile": "auto", "train.deterministic": False,
    "choices.optimizer": "adamw", "choices.schedule": "cosine", "choices.average": "none",
    "loss.z": 0.0, "loss.label_smoothing": 0.0, "init.zero": "none",
    "eval.part": "test", "eval.first_token_share": False, "sink_token": None, "optimizer.independent_decay": None,
}  # fmt: skip
"""What older runs, which do not say it, did."""


@dataclass
class Arm:
    """Runs that differ in nothing but their seed; one for each seed."""

    label: str
    by_seed: dict[int, Run] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return sorted(self.by_seed)

    @property
    def runs(self) -> list[Run]:
        """In the order of their seeds."""
        return [self.by_seed[seed] for seed in self.seeds]

    @property
    def overrides(self) -> list[str]:
        """What was asked for, but for the seed, the folder and the device."""
        return [word for word in self.runs[0].overrides if key_of(word) not in NOT_THE_ARM]


def read_all(patterns: Sequence[str | Path], needs: Collection[str] = COMPARED) -> tuple[list[Run], list[str]]:
    """The runs that paths and globs name, and a line for each that cannot be read; `needs` as in `read_run`.

    Raises UserError where none can.
    """
    runs, complaints = [], []
    for directory in find(patterns):
        try:
            runs.append(read_run(directory, needs))
        except UserError as error:
            complaints.append(str(error).removesuffix("; leave it out") + "; left out")
    if not runs:
        raise UserError(complaints[0].removesuffix("; left out") + "; give finished runs")
    return runs, complaints


def sort_into_arms(runs: Iterable[Run], *, mix: bool = False) -> tuple[list[Arm], list[str]]:
    """Arms in the order of their first run, and what there is to say about it, a line each.

    Two runs belong to one arm where their configurations agree in everything but seed, output folder and device. An
    arm is named by what distinguishes it from the others; where there is only one, by what was asked for. Of two runs
    with the same arm and seed the newer counts. An interrupted run, which has no validation loss, is left out.
    Raises UserError where nothing is left, or where runs cannot be compared and `mix` is false.
    """
    notes: list[str] = []
    finished = [run for run in runs if not _interrupted(run, notes)]
    if not finished:
        raise UserError("nothing to compare: " + (notes[0] if notes else "there are no runs"))
    if not mix:
        refuse_to_mix(finished)
    groups: dict[str, list[Run]] = {}
    for run in finished:
        groups.setdefault(identity(run), []).append(run)
    labels = name_arms([group[0] for group in groups.values()])
    arms = [Arm(label, _newest(label, group, notes)) for label, group in zip(labels, groups.values(), strict=True)]
    return arms, notes


def identity(run: Run) -> str:
    """The part of the configuration that makes the arm. An option that is null is as good as one not there yet."""
    return _key({name: value for name, value in options(run).items() if value is not None})


def options(run: Run) -> Record:
    """The configuration under dotted names, without what may differ within an arm."""
    asked = {key: value for key, value in run.config.items() if key not in (*NOT_THE_ARM, "layers")}
    flat = dict(leaves(options_alone(asked)))  # only older runs wrote the classes beside the options
    named = {renamed(name): value for name, value in flat.items()}
    rules = run.config.get("layers") or []
    return {**UNSAID, **named} | dict(of_layers(rules)) | in_order(rules, run.config["size"].get("n_layers"))


def of_layers(rules: Sequence[Record]) -> Iterator[tuple[str, Any]]:
    """What rules set in some layers, named as they are typed: layers[1::2].mixer. Raises UserError where they are none."""
    if not isinstance(rules, list | tuple) or not all(map(is_rule, rules)):
        raise UserError(f"layers: {spelt(rules)} in a run's config.yaml are no rules for layers; leave the run out")
    if wrong := [rule for rule in rules if not SLICE.fullmatch(str(rule.get("at")))]:
        raise UserError(
            f"layers: at: {spelt(wrong[0].get('at'))} in a run's config.yaml is no slice of layers; leave the run out"
        )
    for rule in rules:
        for group, option in rule.get("choices", {}).items():
            yield f"layers[{rule.get('at')}].{group}", option
        rest = {name: value for name, value in rule.items() if name not in ("at", "choices")}
        yield from ((f"layers[{rule.get('at')}].{name}", value) for name, value in leaves(options_alone(rest)))


def in_order(rules: Sequence[Record], n_layers: int | None) -> Record:
    """Under `layers`, the order of rules that set the same in some layer, where the later one counts; nothing where none do."""
    most = None if n_layers is None else min(n_layers, DEEPEST)
    meeting = [
        f"{a['at']} then {b['at']}"
        for a, b in combinations(rules, 2)
        if set_by(a) & set_by(b)
        and (most is None or {*layers_in(str(a["at"]), most)} & {*layers_in(str(b["at"]), most)})
    ]
    return {"layers": "; ".join(meeting)} if meeting else {}


def is_rule(rule: object) -> bool:
    """Whether it names a slice of the layers, and what it sets there."""
    return (
        isinstance(rule, Mapping)
        and SLICE.fullmatch(str(rule.get("at"))) is not None
        and all(isinstance(rule.get(name, {}), Mapping) for name in ("choices", "size"))
    )


def set_by(rule: Record) -> set[str]:
    """Groups and sizes."""
    groups = {name for name in rule if name not in ("at", "choices", "size")} | {*rule.get("choices", {})}
    return groups | {f"size.{name}" for name in rule.get("size", {})}


def renamed(name: str) -> str:
    """With today's names of groups, so that older runs are still of one arm with newer ones."""
    return ".".join(RENAMED.get(part, part) for part in name.split("."))


def _interrupted(run: Run, notes: list[str]) -> bool:
    interrupted = run.summary["status"] == "stopped" and run.summary["val_loss"] is None
    if interrupted:
        notes.append(f"{run.directory}: was interrupted and never validated; left out")
    return interrupted


def _newest(label: str, runs: list[Run], notes: list[str]) -> dict[int, Run]:
    by_seed: dict[int, Run] = {}
    for run in sorted(runs, key=_age):
        if (older := by_seed.get(run.seed)) is not None:
            notes.append(
                f"{label}: seed {run.seed} was run more than once; the newest counts, {older.directory} does not"
            )
        by_seed[run.seed] = run
    return by_seed


def _age(run: Run) -> tuple[str, float]:
    """When it was started, as its directory's name says to the second, then when it was finished."""
    return run.directory.name[:15], (run.directory / "summary.json").stat().st_mtime


# ---------------------------------------------------------------- what cannot be mixed


def _tokens(run: Run) -> int:
    train = run.config["train"]
    return train["steps"] * train["batch_size"] * train["train_len"]


def _scored(run: Run) -> str:
    """Which targets count, as far as the configuration decides it."""
    if run.config.get("choices", {}).get("mask") == "full":
        return "the last target alone"
    prefix = run.config.get("prefix")
    return f"what follows a prefix of {spelt(prefix)}" if prefix else "every target the data scores"


SAME: Mapping[str, Callable[[Run], Any]] = {
    "corpus_sha256": lambda run: run.summary["corpus_sha256"],
    "train.train_len": lambda run: run.config["train"]["train_len"],
    "tokens (train.steps x batch_size x train_len)": _tokens,
    "size.vocab_size": lambda run: run.config["size"]["vocab_size"],
    "dtype": lambda run: run.summary.get("dtype"),
    "precision=tf32": lambda run: run.summary.get("tf32", False),
    "eval.protocol": lambda run: run.config["eval"]["protocol"],
    "eval.lengths": lambda run: run.config["eval"]["lengths"],
    "eval.stride": lambda run: run.config["eval"]["stride"],
    "eval.part": lambda run: run.config["eval"].get("part", "test"),
    "eval.tokens": lambda run: run.config["eval"]["tokens"],
    "scored": _scored,
    "leaking": lambda run: run.summary.get("leaking", False),
}
"""What all compared runs must share: corpus, budget, protocol, vocabulary, precision, targets, and sight."""


def refuse_to_mix(runs: Sequence[Run]) -> None:
    """Raises UserError at the first thing that must be shared and is not."""
    first = runs[0]
    for name, get in SAME.items():
        for run in runs[1:]:
            if get(run) != get(first):
                raise UserError(
                    f"{name}: {spelt(get(first))} in {first.directory.name} and {spelt(get(run))} in"
                    f" {run.directory.name}, so their results do not compare; leave some out, or add mix=true"
                )


# ---------------------------------------------------------------- names


def name_arms(runs: Sequence[Run]) -> list[str]:
    """What distinguishes each run's arm from the others', in the user's spelling; `runs` holds one of each arm.

    First the groups' options that differ, then what was asked for in other words or in some arms only, then
    whatever else it takes to tell the arms apart. A value that merely follows from these, such as the d_ff that
    size.d_ff=matched gives another ffn, is left out.
    """
    flat = [options(run) for run in runs]
    asked = [{key_of(word): value_of(word) for word in run.overrides} for run in runs]
    if len(runs) == 1:
        return [" ".join(f"{name}={value}" for name, value in asked[0].items() if name not in NOT_THE_ARM) or "default"]
    names = dict.fromkeys(name for values in flat for name in values)
    differing = [name for name in names if len({_key(values.get(name)) for values in flat}) > 1]
    choices = [name for name in differing if name.startswith("choices.")]
    others = [name for name in differing if not name.startswith("choices.")]
    shown = choices + [name for name in others if len({words.get(name) for words in asked}) > 1]
    for name in others:
        if _varies(name, shown, flat):
            shown.append(name)
    return [
        " ".join(_spell(name, values, words) for name in shown if name in values) or "default"
        for values, words in zip(flat, asked, strict=True)
    ]


def _varies(name: str, given: Sequence[str], flat: Sequence[Record]) -> bool:
    """Whether arms that agree in what is given still differ in `name`."""
    seen: dict[str, str] = {}
    for values in flat:
        where, value = json.dumps([values.get(key) for key in given]), _key(values.get(name))
        if seen.setdefault(where, value) != value:
            return True
    return False


def _spell(name: str, values: Record, asked: Mapping[str, str]) -> str:
    bare = name.removeprefix("choices.")
    return f"{bare}={asked.get(bare) or spelt(values[name])}"


def spelt(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
