"""Numbers that nobody means: each typed anywhere is one line, or is computed with."""

import math
from collections.abc import Iterator
from dataclasses import fields
from functools import cache

import pytest
import yaml
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from oracles import CONF, every_option

import archlab
from archlab.base.errors import UserError
from archlab.base.messages import beyond_the_machine
from archlab.cli.arguments import understood
from archlab.cli.main import main
from archlab.cli.models import DiffOptions, DrawOptions
from archlab.cli.results import ClaimsOptions, CompareOptions, GenerateOptions, ReportOptions
from archlab.config import compose as config
from archlab.config.groups import GROUPS
from archlab.config.types import check_types

NUMBERS = (10**11, 10**23, 10**400, 1e11, 1e-320, 1e308, math.inf, -math.inf, math.nan, -1, 0, 2**31 - 1, 2**63)
OTHERS = ("", "x", [10**23], [math.nan], [[1]], {"a": 1}, True, None)

NEEDS = {
    "init=unit": ("train.weight_decay=0",),
    **{f"norm={name}": ("mask=full",) for name in ("batch", "instance", "sequence")},
    "pos=rope_2d": ("mask=prefix",), "pos=learned_2d": ("mask=prefix",), "data=masked": ("mask=full",), "norm=none": ("residual=pre",),
    "optimizer=schedule_free": ("schedule=constant",),
}  # fmt: skip
OPTIONS = [f"{group}={name}" for group, name in every_option(*GROUPS) if group != "size"]


@cache
def composed_once(*words: str) -> DictConfig:
    return archlab.compose("size=nano", *words, *(word for each in words for word in NEEDS.get(each, ())))


def settled(*words: str) -> DictConfig:
    """A copy of one's own, with nothing of it locked."""
    return OmegaConf.create(OmegaConf.to_container(composed_once(*words)))


def names(node: dict, prefix: str = "") -> Iterator[str]:
    """Of all that can be set."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from names(value, f"{prefix}{name}.")
        elif not str(name).startswith("_"):
            yield f"{prefix}{name}"


def check(cfg: DictConfig, field: str, values: tuple = (*NUMBERS, *OTHERS)) -> None:
    around, _, last = field.rpartition(".")
    inside = OmegaConf.select(cfg, around) if around else cfg
    before = inside[last]
    for value in values:
        inside[last] = value
        line = answer(cfg, field)
        assert line is None or ("\n" not in line and len(line) < 600), (field, value)
        if isinstance(value, float) and not math.isfinite(value) and not isinstance(value, str):
            assert line is not None, f"{field}={value} is computed with"
            assert line.startswith(f"{field}="), line
        if value == 10**400:
            assert line is not None and len(line) < 600, field
    inside[last] = before


def answer(cfg: DictConfig, field: str) -> str | None:
    """What is said of a configuration in which a field was set; None where nothing is.

    Types, which are the first that `finish` checks, are checked before it: most values are refused there, in a third of
    the time.
    """
    try:
        check_types(cfg)
        config.finish(cfg, cfg.choices, {field})
    except UserError as error:
        return str(error)
    return None


SECTIONS = ("embed", "train", "loss", "probe", "eval", "memory", "preflight", "size")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_a_section(section):
    cfg = settled()
    for field in names(OmegaConf.to_container(cfg[section]), f"{section}."):
        if field != "preflight.plot":  # a name, of which any will do
            check(cfg, field)


def test_every_field_of_the_top():
    cfg = settled()
    for field in (
        "seed",
        "device",
        "precision",
        "compile",
        "dropout",
        "prefix",
        "allow_leak",
        "budget",
        "match",
        "tune",
        "loggers",
    ):
        check(cfg, field)


def first_of_each_kind() -> list:
    """Options of one group whose fields have the same names and types have the same bounds: the others are slow."""
    seen, rows = set(), []
    for option in OPTIONS:
        group, _, name = option.partition("=")
        file = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
        block = file.get(group, file)  # a file may speak of the whole configuration
        types = getattr(get_class(block["_target_"]).__init__, "__annotations__", {})
        kind = (group, *sorted((name, str(types.get(name))) for name in block if not name.startswith("_")))
        if len(kind) > 1:
            rows.append(pytest.param(option, marks=[pytest.mark.slow] * (kind in seen)))
        seen.add(kind)
    return rows


@pytest.mark.parametrize("option", first_of_each_kind())
def test_every_field_of_an_option(option):
    group = option.partition("=")[0]
    cfg = settled(option)
    for field in names(OmegaConf.to_container(cfg[group]), f"{group}."):
        if field.rpartition(".")[2] not in ("path", "tokenizer", "split", "valid_split", "column"):
            check(cfg, field, (10**400, 1e308, math.inf, math.nan, 2**31 - 1, [10**23]))


VERBS = (CompareOptions, ClaimsOptions, ReportOptions, GenerateOptions, DiffOptions, DrawOptions)
TYPED = ("1e11", "9" * 23, "9" * 400, "9" * 5000, "1e400", "1e-320", "inf", "-inf", "nan", "-1", "", "x", "null")


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.__name__)
def test_every_option_of_a_verb(kind):
    for field in fields(kind):
        for value in TYPED:
            try:
                _, options, _ = understood("verb", [f"{field.name}={value}"], kind)
            except UserError as error:
                assert str(error).startswith(f"{field.name}=") and "\n" not in str(error) and len(str(error)) < 300
            else:
                given = getattr(options, field.name)
                if isinstance(given, float) and field.name != "top_p":  # which generate() bounds itself
                    assert math.isfinite(given)
                assert given != "" or field.name == "prompt"  # of which generate says more
                assert not isinstance(given, int) or given < 2**63


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train.batch_size=1e11"], "train.batch_size=1e11: should be a valid integer"),
        (["train.batch_size=100000000000"], "train.batch_size=100000000000: should be less than 2147483648"),
        (["train.batch_size=4000000"], "train.batch_size=4000000: sequences of train.train_len=128 tokens are more than a step can hold; use at most 2097152"),
        (["eval.lengths=[1,4000000]"], "eval.lengths=[1, 4000000]: times train.train_len=128 are more tokens than a sequence can have; use at most 2097152"),
        (["size.d_model=1000000000"], "size.d_model=1000000000: should be less than or equal to 1048576"),
        (["size.n_layers=100000"], "size.n_layers=100000: should be less than or equal to 1000"),
        (["preflight.depths=[2,100000]"], "preflight.depths=[2, 100000]: should be less than or equal to 1000"),
        (["seed=99999999999999999999999"], "seed=99999999999999999999999: should be less than 9223372036854775808"),
        ([f"seed={'9' * 5000}"], f"seed={'9' * 75}... (5005 characters): has a number with too many digits to be read; use a smaller one"),
        (["dropout=nan"], "dropout=nan: should be a finite number"),
        (["train.lr=1e400"], "train.lr=1e400: should be a finite number"),
        (["prefix=[nan,0.5]"], "prefix=[nan, 0.5]: should be a finite number"),
        (["loggers=[wandb,wandb]"], "loggers=['wandb', 'wandb']: names one twice; name each once"),
        (["size.d_model=7", "size.n_heads=7"], "size.head_dim=1: RoPE rotates features in pairs; use 2 or more, so fewer heads, or another pos"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_the_line_says_why(words, line):
    with pytest.raises(UserError) as refusal:
        archlab.compose("size=nano", *words)
    assert str(refusal.value) == line


@pytest.mark.parametrize("words", [[], ["preflight"], ["bench"]], ids=["run", "preflight", "bench"])
def test_a_model_beyond_the_memory_is_refused_before_its_weights_are_made(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("archlab.runs.holds.all_bytes", lambda device: 2e6)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        main([*words, "size=nano"])
    error = capsys.readouterr().err
    assert leaving.value.code == 2 and error.count("\n") == 1 and not list(tmp_path.iterdir())
    assert error.startswith(
        "archlab: memory: 133k parameters, their gradients and what optimizer=adamw keeps take 0.00214 GB"
    )


def test_an_average_of_the_weights_is_held_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("archlab.runs.holds.all_bytes", lambda device: 2.2e6)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["size=nano", "average=ema"])
    said = "and what optimizer=adamw and average=ema keep take 0.00267 GB"
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_the_machine_cannot_hold_is_one_line():
    said = [
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 65536 bytes. Error code 12",
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 4 GiB",
    ]
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {})
    assert str(beyond_the_machine(RuntimeError(said[0]))).startswith(
        "memory: this machine has not enough; 65536 bytes more were asked for;"
    )
    assert "20.00 GiB more" in str(beyond_the_machine(out_of_memory(said[1])))
    assert "memory:" in str(beyond_the_machine(MemoryError()))
    assert "2 bytes" not in str(
        beyond_the_machine(RuntimeError("Storage size calculation overflowed with sizes=[1, 2]"))
    )
    assert beyond_the_machine(RuntimeError("shapes do not fit")) is None
