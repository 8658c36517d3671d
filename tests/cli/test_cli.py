"""The command line: every spelling that should work, and every mistake answered in one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import oracles
import pytest
from commands import Session
from omegaconf import DictConfig

from archlab.base.errors import UserError
from archlab.cli import main as cli
from archlab.cli.main import VERBS, Verb, main
from archlab.config.check import without_effect
from archlab.config.compose import compose
from archlab.config.flags import FLAGS, split
from archlab.config.overrides import conf_dir, groups, normalise
from archlab.runs import lab

ROOT = Path(__file__).parents[2]
archlab = commands.archlab  # the fixture


def shell(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


# ---------------------------------------------------------------- spellings


@pytest.mark.parametrize("spelling", ["norm=layer", "+norm=layer", "++norm=layer", "norm='layer'"])
def test_a_group_is_chosen_in_every_spelling(archlab: Session, spelling: str) -> None:
    assert archlab(spelling).status == 0
    assert archlab.norms == ["layer"]


@pytest.mark.parametrize("spelling", ["norm.eps=1e-3", "+norm.eps=1e-3", "++norm.eps=1e-3", "norm={eps:1e-3}"])
def test_a_field_is_set_in_every_spelling(archlab: Session, spelling: str) -> None:
    assert archlab(spelling).status == 0
    assert archlab.jobs[0][0].norm.eps == 1e-3


def test_a_field_may_be_named_before_its_group(archlab: Session) -> None:
    assert archlab("norm.eps=1e-3", "+norm=layer").status == 0
    cfg, overrides = archlab.jobs[0]
    assert (cfg.choices.norm, cfg.norm.eps) == ("layer", 1e-3)
    assert overrides == ["norm.eps=1e-3", "norm=layer"]


def test_what_is_said_twice_alike_is_said(archlab: Session) -> None:
    words = ["norm=layer", "++norm='layer'", "train.steps=2", "+train.steps=2", "norm.eps=1e-3", "norm={eps:0.001}"]
    assert archlab(*words, "train={steps:2,warmup:0}", "eval.lengths=[1,2]", "eval.lengths=[1, 2]").status == 0
    assert archlab.norms == ["layer"]


def test_a_sweep_is_one_job_for_every_combination(archlab: Session) -> None:
    answer = archlab("-m", "+norm=layer,rms", "seed=0,1")
    assert answer.status == 0
    jobs = [(cfg.choices.norm, cfg.seed) for cfg, _ in archlab.jobs]
    assert jobs == [("layer", 0), ("layer", 1), ("rms", 0), ("rms", 1)]
    assert "[1/4] norm=layer seed=0" in answer.out
    assert answer.out.splitlines()[-4:] == [f"experiments/runs/run-{number}" for number in (1, 2, 3, 4)]


def test_flags_may_stand_anywhere(archlab: Session) -> None:
    assert archlab("pos=alibi", "-m", "norm=layer,rms").status == 0
    assert archlab.norms == ["layer", "rms"]
    assert {cfg.choices.pos for cfg, _ in archlab.jobs} == {"alibi"}


def test_flags_may_stand_before_a_verb_and_after_it(archlab: Session, tmp_path: Path) -> None:
    option = tmp_path / "my" / "norm" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("_target_: archlab.blocks.norm.RMSNorm\n_partial_: true\neps: 0.25\n")
    for words in (["-cd=my", "show"], ["--config-dir", "my", "show"], ["show", "-cd", "my"]):
        assert archlab(*words, "norm=mine").status == 0
    assert archlab("show", "norm=mine", "--config-dir=my").status == 0
    assert archlab("-m", "run", "norm=layer,rms").status == 0
    assert archlab.norms == ["mine"] * 4 + ["layer", "rms"]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("run", "show", "preflight")])
def test_a_flag_before_a_verb_of_names_is_its_own(archlab: Session, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    heard: list[str] = []
    monkeypatch.setitem(VERBS, verb, Verb("", heard.extend))
    assert archlab("--config-dir", "my", verb, "a", "b=1").status == 0
    assert heard == ["--config-dir", "my", "a", "b=1"]


@pytest.mark.parametrize("sweep", ["norm=choice(layer,rms)", "+norm=glob([layer,rms])"])
def test_hydras_own_sweeps_work(archlab: Session, sweep: str) -> None:
    assert archlab("-m", sweep).status == 0
    assert archlab.norms == ["layer", "rms"]


def test_a_users_own_option(archlab: Session, tmp_path: Path) -> None:
    option = tmp_path / "my" / "norm" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("_target_: archlab.blocks.norm.RMSNorm\n_partial_: true\neps: 0.25\n")
    assert archlab("--config-dir", "my", "+norm=mine").status == 0
    assert archlab("norm=mine,rms", "-m", "-cd=my").status == 0
    assert archlab.norms == ["mine", "mine", "rms"]
    assert archlab.jobs[0][0].norm.eps == 0.25


def test_verbs(archlab: Session) -> None:
    assert archlab("show", "+norm=layer").status == 0
    assert archlab("run", "norm=layer").status == 0
    assert archlab().status == 0
    assert archlab.norms == ["layer", "layer", "rms"]


def test_a_new_verb_is_one_entry(archlab: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setitem(VERBS, "echo", Verb("say it again", heard.extend))
    assert archlab("echo", "two", "words").status == 0
    assert heard == ["two", "words"]
    assert "say it again" in archlab("--help").out


def test_hydra_leaves_nothing_behind(archlab: Session, tmp_path: Path) -> None:
    for words in (["seed=1"], ["-m", "seed=1,2"], ["--help"], ["--cfg", "all"]):
        assert archlab(*words).status == 0
    assert list(tmp_path.iterdir()) == []
    assert Path.cwd() == tmp_path


def test_arguments_and_environment_are_put_back(archlab: Session) -> None:
    before = list(sys.argv), dict(os.environ)
    archlab("show")
    archlab("norm.epss=1")
    assert (sys.argv, dict(os.environ)) == before


# ---------------------------------------------------------------- flags that print


def test_help_names_verbs_flags_groups_and_options(archlab: Session, tmp_path: Path) -> None:
    out = archlab("--help").out
    for verb in VERBS.values():
        assert verb.help in out
    for flag in FLAGS:
        assert flag.name in out and flag.help in out
    for group, options in groups().items():
        assert f"{group}: {', '.join(options)}" in out
    assert "claim: " not in out  # of which a run has none
    mine = tmp_path / "my" / "norm" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert "mine, none, rms, " in archlab("--help", "--config-dir", "my").out


def test_cfg_prints_the_configuration(archlab: Session) -> None:
    out = archlab("--cfg", "job", "+norm=layer", "train.steps=7").out
    assert "archlab.blocks.norm.LayerNorm" in out and "steps: 7" in out
    assert archlab("seed=1", "--cfg=job", "--resolve").out.startswith("seed: 1\n")
    assert archlab.jobs == []


def test_version(archlab: Session) -> None:
    import archlab as package

    assert archlab("--version").out == f"archlab {package.__version__}\n"


# ---------------------------------------------------------------- mistakes

NORMS = "options: " + ", ".join(oracles.options("norm"))

LONG = "x" * 300

MISTAKES = {
    "norm=rsm": f"norm=rsm: no such option; did you mean rms? {NORMS}",
    "+norm=rsm": f"norm=rsm: no such option; did you mean rms? {NORMS}",
    "-m norm=layer,rsm": f"norm=layer,rsm: no such option 'rsm'; did you mean rms? {NORMS}",
    "-m seed=0,1 +norm=choice(layer,rsm)": f"no such option 'rsm'; did you mean rms? {NORMS}",
    "-m norm=glob(z*)": f"norm=glob(z*): matches no option; {NORMS}",
    "norm=null": f"norm=null: norm cannot be empty; {NORMS}",
    "norm=": f"norm=: norm cannot be empty; {NORMS}",
    "norm=[layer,rms]": f"norm takes one option, not a list; to run each write -m norm=layer,rms; {NORMS}",
    "~norm": f"~norm: norm cannot be left out, only set; {NORMS}",
    "~norm=rms": "norm cannot be left out",
    "~seed": "~seed: seed cannot be left out, only set; write seed=...",
    "nrom=rms": "nrom=rms: nothing is called nrom; did you mean norm? there are allow_leak, average, budget,",
    "+nrom=rms": "+nrom=rms: nothing is called nrom; did you mean norm?",
    "nrom.eps=1": "nothing is called nrom; did you mean norm?",
    "lr=1e-3": "lr=1e-3: nothing is called lr; did you mean train.lr?",
    "d_model=64": "did you mean size.d_model?",
    "norm@other=rms": "norm@other=rms: nothing is called norm@other; did you mean norm?",
    "=3": "=3: nothing is called that",
    "hydra=3": "hydra=3: nothing is called hydra",
    "train=3": "train=3: train is a section, not a field; set one of train.steps,",
    "norm.epss=1": "norm.epss=1: norm=rms has no field epss; did you mean eps? it has: eps, unit_offset",
    "+norm.epss=1": "norm.epss=1: norm=rms has no field epss; did you mean eps? it has: eps, unit_offset",
    "-m norm.epss=1,2": "norm.epss=1,2: norm=rms has no field epss; did you mean eps? it has: eps",
    "pos=alibi pos.theta=3": "pos.theta=3: pos=alibi has no field theta; it has: scaled\n",
    "pos.base=3 pos=alibi": "pos.base=3: pos=alibi has no field base; it has: scaled; base is a field of pos=rope, pos=rope_2d, pos=sinusoidal, pos=xpos\n",
    "-m pos=rope,alibi pos.base=3": "pos.base=3: pos=alibi has no field base; it has: scaled; base is a field of",
    "preset=bloom_560m pos.base=3": "pos.base=3: pos=alibi has no field base",
    "draw pos=alibi pos.base=3": "pos.base=3: pos=alibi has no field base",
    "train.lr=${eval:1}": "train.lr=${eval:1}: ${eval:...}: nothing is called eval; put a field between the braces,",
    "eval.lengths=[1,${eval:1}]": "eval.lengths.1=${eval:1}: ${eval:...}: nothing is called eval",
    "train={stepz:3}": "train has no option 'stepz'; did you mean steps?",
    "norm.eps.x=1": "norm.eps.x: norm.eps has no options of its own, so no 'x'",
    "eval.lengths.9=1": "eval.lengths[9]: there are 5 items, counted from 0",
    "eval.lengths.x=1": "eval.lengths is a list, whose items have numbers",
    "norm.eps=[": "norm.eps=[: cannot be read; write name=value",
    "norm=a=b": "norm=a=b: cannot be read",
    "seed=${nope}": "${nope} refers to nothing",
    "--cfg job --resolve seed=${nope}": "${nope} refers to nothing",
    "seed=0,1": "seed=0,1: several values mean several runs, which need -m; a list is written seed=[0,1]",
    "norm=layer,rms": "norm=layer,rms: several values mean several runs, which need -m",
    "norm.eps=abc": "norm.eps=abc:",
    "-m hydra/launcher=nope": "hydra/launcher/nope: not found; options: basic",
    "hydra.jub=1": "hydra.jub=1: changes nothing; of Hydra's own settings hydra/launcher,",
    "hydra.run.dir=/x": "hydra.run.dir=/x: changes nothing; of Hydra's own settings",
    "-m hydra.run.dir=x seed=0,1": "hydra.run.dir=x: changes nothing",
    "+hydra.foo=1": "+hydra.foo=1: changes nothing; of Hydra's own settings",
    "show hydra.verbose=true": "hydra.verbose=true: changes nothing",
    "hydra.mode=MULTIRUN": "hydra.mode=MULTIRUN: changes nothing",
    "hydra/job_logging=default": "hydra/job_logging=default: changes nothing",
    "hydra/launcher=basic": "hydra/launcher=basic: changes nothing in one run; add -m, which makes several",
    "hydra.sweep.dir=x": "hydra.sweep.dir=x: changes nothing in one run",
    "draw size=nano hydra.job.env_set.A=1": "hydra.job.env_set.A=1: is about how the command line runs jobs",
    "--config-dir nowhere": "--config-dir nowhere: no such folder",
    "--config-dir": "--config-dir: a value is missing; write -cd, --config-dir FOLDER",
    "--confg-dir my": "--confg-dir: no such flag; did you mean --config-dir?",
    "--cfg jbo": "--cfg jbo: no such choice; did you mean job? choices: job, hydra, all",
    "--info deflts": "deflts: an override is written name=value",
    "-sc": "--shell-completion: write install=SHELL or uninstall=SHELL, where SHELL is bash or fish or zsh",
    "-sc install=tcsh": "--shell-completion: write install=SHELL",
    "--multirun=3": "--multirun takes no value",
    "-m --cfg job": "--multirun --cfg: only one of these at a time",
    "--resolve": "--resolve: only together with --cfg",
    "shwo": "shwo: no such verb; did you mean show? verbs: run, ",
    "norm": "norm: no such verb; verbs: run, ",
    "norm=rms show": "show: an override is written name=value; a verb comes first",
    "--config-dir my shwo": "shwo: no such verb; did you mean show?",
    "-m norm=rms,batch": "norm=batch:",
    # the same thing twice
    "norm=rms +norm=layer": "norm=rms +norm=layer: set norm twice; keep one of the two",
    "train.steps=2 train.steps=3": "train.steps=2 train.steps=3: set train.steps twice; keep one of the two",
    "train.lr=1e-3 seed=1 ++train.lr=1e-2": "train.lr=1e-3 ++train.lr=1e-2: set train.lr twice",
    "norm={eps:1e-3} norm.eps=1e-4": "norm={eps:1e-3} norm.eps=1e-4: set norm.eps twice",
    "train.steps=2 train={steps:3}": "train.steps=2 train={steps:3}: set train.steps twice",
    "eval.lengths=[1,2] eval.lengths.0=2": "eval.lengths=[1,2] eval.lengths.0=2: set eval.lengths twice",
    "eval.lengths.0=2 eval.lengths=[1,2]": "eval.lengths.0=2 eval.lengths=[1,2]: set eval.lengths twice",
    "-m seed=1,2 seed=3": "seed=1,2 seed=3: set seed twice",
    "show size=nano size=tiny": "size=nano size=tiny: set size twice",
    "--config-dir a --config-dir b": "--config-dir a --config-dir b: one at a time; keep one of the two",
    "--cfg job --cfg all": "--cfg job --cfg all: one at a time",
    "experiment=stability_map experiment=other": "set experiment twice",
    "draw size=nano size=tiny": "size=nano size=tiny: set size twice",
    "draw size=nano output=a.svg output=b.svg": "output=a.svg output=b.svg: set output twice",
    "verify norm=rms norm=layer": "norm=rms norm=layer: set norm twice",
    "compare x metric=val_loss metric=train_loss": "metric=val_loss metric=train_loss: set metric twice",
    "--config-dir= show": "--config-dir: a value is missing; write -cd, --config-dir FOLDER",
    "preflight size=nano skips=unet size.n_layers=4 preflight.depths=[1,2]": "preflight.depths=[1, 2]: this model cannot have 1 layers: skips=unet",
    # longer than a file's name can be
    **{
        f"{verb}{LONG}": ""
        for verb in (
            "",
            "show ",
            "show norm=",
            "show preset=",
            "draw ",
            "draw size=nano output=",
            "diff gpt2 ",
            "preflight ",
            "preflight size=nano preflight.plot=",
            "compare ",
            "report ",
            "resume ",
            "generate ",
            "claims ",
            "bench size=nano output=",
            "--config-dir ",
        )
    },
    "diff gpt2 eval.lengths=[" + "1," * 150 + "2]": "eval.lengths",
    # nothing
    "train={}": "train={}: sets nothing; write what it should set, as in train.NAME=VALUE, or leave it out",
    "norm={}": "norm={}: sets nothing; write what it should set, as in norm.NAME=VALUE",
    "+eval={}": "eval={}: sets nothing",
    "probe={every:{}}": "probe={every:{}}: sets nothing; write what it should set, as in probe.every.NAME=VALUE",
    "-m seed=1,2 size.d_model=128,7": "size.d_model=7",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_answered_in_one_line(archlab: Session, words: str, tmp_path: Path) -> None:
    answer = archlab(*words.split())
    assert answer.status == 2
    assert answer.err.startswith("archlab: ") and answer.err.endswith("\n") and answer.err.count("\n") == 1
    assert MISTAKES[words] in answer.err
    assert answer.out == ""
    assert archlab.jobs == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("verb", "word"), [("show", "memory.batch=2"), ("preflight", "preflight.depths=null")])
def test_a_run_is_taken_without_further_words(archlab: Session, verb: str, word: str, tmp_path: Path) -> None:
    """Its directory has the form of an override, as runs' names do."""
    (tmp_path / "norm=rms").mkdir()
    (tmp_path / "norm=rms" / "config.yaml").write_text("")
    answer = archlab(verb, "norm=rms", word)
    told = f"archlab: norm=rms: is a run, which is taken as it was trained; give it without {word}\n"
    assert (answer.status, answer.out, answer.err) == (2, "", told)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_argument_is_said_by_its_place(archlab: Session, verb: str, empty: str, tmp_path: Path) -> None:
    answer = archlab(verb, "a=b", empty)
    assert (answer.status, answer.out) == (2, "")
    assert answer.err == "archlab: argument 3: is empty; write what it is to be, or leave it out\n"
    assert list(tmp_path.iterdir()) == []


OWN = {
    "norm/rms.yaml": "norm/rms.yaml has the name of archlab's own norm=rms, so the name is ambiguous; rename yours, for example to norm/my_rms.yaml",
    "preset/gpt2.yaml": "preset/gpt2.yaml has the name of archlab's own preset=gpt2",
    "experiment/stability_map.yaml": "experiment/stability_map.yaml has the name of archlab's own experiment=stability_map",
    "claim/alibi_holds.yaml": "claim/alibi_holds.yaml has the name of archlab's own claim=alibi_holds",
    "config.yaml": "its config.yaml would not be read, since archlab has its own; remove it",
}


@pytest.mark.parametrize(
    "words",
    [
        "norm=rms",
        "show",
        "-m norm=rms,layer",
        "experiment=stability_map",
        "diff gpt2 llama_7b",
        "draw preset=gpt2",
        "verify norm=rms",
        "claims alibi_holds",
    ],
)
@pytest.mark.parametrize("name", OWN)
def test_an_own_option_of_a_name_that_archlab_has_is_refused(
    archlab: Session, tmp_path: Path, name: str, words: str
) -> None:
    file = tmp_path / "my" / name
    file.parent.mkdir(parents=True)
    file.write_text("seed: 1\n")
    answer = archlab("--config-dir", "my", *words.split())
    assert (answer.status, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert answer.err.startswith(f"archlab: --config-dir my: {OWN[name]}")
    assert archlab.jobs == [] and list(tmp_path.iterdir()) == [tmp_path / "my"]


def test_a_file_is_no_folder_of_options(archlab: Session, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    assert archlab("--config-dir", "mine.yaml", "show").err.startswith(
        "archlab: --config-dir mine.yaml: is a file; give a folder "
    )


def test_a_copy_of_archlabs_own_options_is_no_second_thing(archlab: Session, tmp_path: Path) -> None:
    shutil.copytree(conf_dir(), tmp_path / "my")
    assert archlab("--config-dir", "my", "norm=layer").status == 0
    assert archlab.norms == ["layer"]


def masks_nothing(window: int, longest: int) -> str:
    return (
        f"mask.window={window}: masks nothing in this run, whose longest sequences have {longest} tokens;"
        " use a smaller window, or longer eval.lengths"
    )


def test_a_window_that_masks_nothing_is_said_to_who_trains(archlab: Session) -> None:
    answer = archlab("mask=window", "mask.window=2048")
    assert (answer.status, answer.err) == (0, f"archlab: {masks_nothing(2048, 2048)}\n")
    assert archlab("show", "mask=window", "mask.window=2048").err == ""  # which trains on nothing


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("mask=local_global mask.window=9999", [masks_nothing(9999, 2048)]),
        ("preset=mistral_7b size=nano", [masks_nothing(4096, 2048)]),
        ("mask=window eval.lengths=[1]", [masks_nothing(128, 128)]),  # the default, train_len
        ("mask=window mask.window=33 train.train_len=16 eval.lengths=[1,2]", [masks_nothing(33, 32)]),
        ("mask=window", []),
        ("mask=window mask.window=2047", []),
        ("mask=local_global", []),
        ("mask=causal", []),
    ],
)
def test_a_window_that_masks_nothing_is_without_effect(words: str, said: list[str]) -> None:
    assert [*without_effect(compose(*words.split()))] == said


def test_an_unreadable_option_of_the_users_own(archlab: Session, tmp_path: Path) -> None:
    option = tmp_path / "my" / "norm" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("eps: [1\n")
    answer = archlab("--config-dir", "my", "norm=mine")
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert "mine.yaml" in answer.err


def test_what_a_job_refuses_is_one_line_too(archlab: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(cfg: DictConfig, overrides: list[str], started: float | None = None, **options: object) -> Path:
        if cfg.seed:
            raise UserError(f"seed={cfg.seed}: not today")
        return Path("a-run")

    monkeypatch.setattr(lab, "run", refuse)
    assert archlab("seed=1").err == "archlab: seed=1: not today\n"
    answer = archlab("-m", "seed=1,0,2")
    assert (answer.status, answer.err) == (2, "archlab: seed=1: not today (2 jobs failed; this is the first)\n")
    assert answer.out.splitlines()[-1] == "a-run"


def test_a_sweep_with_a_job_that_fails_compares_the_others(archlab: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(cfg: DictConfig, overrides: list[str], started: float | None = None, **options: object) -> Path:
        if cfg.seed == 1:
            raise UserError("seed=1: not today")
        return Path(f"run-{cfg.seed}")

    compared: list[list[Path]] = []
    monkeypatch.setattr(lab, "run", refuse)
    monkeypatch.setattr(cli.results, "compare_sweep", lambda directories: compared.append(list(directories)))
    answer = archlab("-m", "seed=0,1,2")
    assert (answer.status, answer.err) == (2, "archlab: seed=1: not today\n")
    assert compared == [[Path("run-0"), Path("run-2")]]


def test_a_fault_of_ours_keeps_its_traceback(archlab: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(cfg: DictConfig, overrides: list[str], started: float | None = None, **options: object) -> Path:
        return cfg.no_such_field

    monkeypatch.setattr(lab, "run", stumble)
    with pytest.raises(RuntimeError, match="read wrongly"):
        archlab("seed=1")


def test_interrupted(archlab: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(cfg: DictConfig, overrides: list[str], started: float | None = None, **options: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(lab, "run", interrupt)
    answer = archlab("-m", "seed=1,2")
    assert (answer.status, answer.err) == (130, "")


# ---------------------------------------------------------------- the parts


def test_normalise_moves_flags_forward_and_spells_them_out() -> None:
    words = ["+norm=rms", "-m", "pos=alibi,rope", "-c", "job", "--info"]
    assert normalise(words) == ["--multirun", "--cfg", "job", "--info", "all", "norm=rms", "pos=alibi,rope"]


def test_normalise_adds_the_plus_that_hydra_wants(tmp_path: Path) -> None:
    (tmp_path / "style").mkdir()
    (tmp_path / "style" / "modern.yaml").write_text("# @package _global_\nseed: 3\n")
    for spelling in ("style=modern", "+style=modern", "++style=modern"):
        assert normalise([spelling], [tmp_path]) == ["+style=modern"]
    with pytest.raises(UserError, match=r"style=modren: no such option; did you mean modern\? options: modern"):
        normalise(["style=modren"], [tmp_path])


def test_normalise_leaves_hydras_own_names_alone() -> None:
    words = ["hydra/launcher=joblib", "+hydra.job.env_set.A=1", "~hydra.callbacks.x", "hydra.launcher.n_jobs=2"]
    assert normalise(words) == words


def test_a_group_is_a_folder_and_an_option_a_file() -> None:
    assert set(groups()) == {folder.name for folder in conf_dir().iterdir() if folder.is_dir()} - {
        "claim"
    }  # which is no choice
    assert groups()["norm"] == oracles.options("norm") and "rms" in oracles.options("norm")


def test_split_reads_a_flags_value() -> None:
    assert split(["-cd", "my", "a=1"]) == split(["a=1", "--config-dir=my"]) == (["--config-dir", "my"], ["a=1"])
    assert split(["-i", "defaults", "a=1"]) == (["--info", "defaults"], ["a=1"])
    assert split(["-i", "a=1"]) == (["--info", "all"], ["a=1"])


# ---------------------------------------------------------------- completion

COMPLETIONS = {
    "archlab norm=": " ".join(f"norm={name}" for name in oracles.options("norm")),
    "archlab +no": "+norm=",
    "archlab show norm=r": "norm=rms",
    "archlab sh": "show",
    "archlab --mul": "--multirun",
    "archlab +pos=alibi -m norm=layer,rms see": "seed=",
    "archlab norm=rsm pos=al": "pos=alibi",
    "archlab norm.e": "norm.eps=",
    "archlab --config-dir nowhere norm=": "",
}


@pytest.mark.parametrize("line", COMPLETIONS)
def test_completion(archlab: Session, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    answer = archlab("-sc", "query=bash")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.split() == COMPLETIONS[line].split()


def test_completion_in_a_shell(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    script = tmp_path / "archlab"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m archlab "$@"\n')
    script.chmod(0o755)
    ask = 'eval "$(archlab -sc install=bash)"; COMP_LINE="archlab +norm=la" COMP_CWORD=1; hydra_bash_completion'
    path = f"{tmp_path}:{os.environ['PATH']}"
    answer = shell(bash, "-c", f'{ask}; echo "${{COMPREPLY[@]}}"', cwd=tmp_path, PATH=path)
    assert answer.stdout.split() == ["+norm=layer"]


# ---------------------------------------------------------------- real processes


def test_what_needs_no_model_does_not_import_torch(tmp_path: Path) -> None:
    commands = [
        "--help",
        "--version",
        "--cfg job",
        "--info defaults +norm=layer",
        "shwo",
        "nrom=rms",
        "-m norm=layer,rsm",
        "norm.epss=1",
        "-sc install=bash",
        "-sc query=bash",
    ]
    program = f"""
import sys
from archlab.cli.main import main
for words in {commands}:
    try:
        main(words.split())
    except SystemExit:
        pass
    assert "torch" not in sys.modules, words
"""
    answer = shell(sys.executable, "-c", program, cwd=tmp_path, COMP_LINE="archlab norm=")
    assert answer.returncode == 0, answer.stderr
    assert "| norm/layer" in answer.stdout


def test_a_mistake_in_a_real_process(tmp_path: Path) -> None:
    answer = shell(sys.executable, "-m", "archlab", "+norm=rsm", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr == f"archlab: {MISTAKES['norm=rsm']}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"COLUMNS": "0"}, {"COLUMNS": ""}])
def test_any_terminal_is_printed_to(environment: dict[str, str], tmp_path: Path) -> None:
    """Faults found: a tick that the encoding lacks was a traceback after all the work, and at 0 columns nothing was printed."""
    words = [sys.executable, "-m", "archlab", "show", "size=nano"]
    source = {"PYTHONPATH": str(Path(lab.__file__).parents[2])}
    done = subprocess.run(words, capture_output=True, cwd=tmp_path, env=os.environ | source | environment)
    assert done.returncode == 0 and not done.stderr and b"133k" in done.stdout, done.stderr[-300:]


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    for flags in (["--help"], ["--info", "all"]):
        process = subprocess.Popen(
            [sys.executable, "-m", "archlab", *flags],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        process.wait(timeout=60)
        process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        (">&-", 0, ""),
        (">/dev/full", 1, "archlab: what is printed: cannot be written: no space left on device; make room, then do it again\n"),
    ],
)  # fmt: skip
def test_output_that_goes_nowhere_is_no_traceback(tmp_path: Path, where: str, status: int, said: str) -> None:
    """Fault found: with standard output closed every command ended in a traceback once its work was done."""
    done = shell("sh", "-c", f"{sys.executable} -m archlab show size=nano {where}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (status, said)


def test_a_file_that_may_not_be_written_is_one_line(archlab: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(cfg: DictConfig, *rest: object, **options: object) -> Path:
        raise OSError(30, "Read-only file system", "runs/lock")

    monkeypatch.setattr(lab, "run", refused)
    for words in (["seed=0"], ["-m", "seed=0,1"]):
        done = archlab(*words)
        assert done.status == 2 and done.err.startswith(
            "archlab: runs/lock: cannot be written or read: read-only file system; give it the rights that it needs"
        )
        assert done.err.count("\n") == 1


def test_one_name_for_the_module_and_the_script() -> None:
    assert cli.main is main


@pytest.mark.parametrize("verb", VERBS)
def test_help_after_any_verb_is_the_page(verb, capsys):
    main([verb, "--help"])  # which leaves the process only where the status is not 0
    assert "verbs" in capsys.readouterr().out.lower()


def test_help_on_a_sweep_is_the_page_and_no_sweep(archlab: Session) -> None:
    """Fault found: the sweep was carried out."""
    page = archlab("--help").out
    assert archlab("-m", "seed=1,2", "--help").out == page and archlab.jobs == []


@pytest.mark.parametrize("words", ["norm=rms,layer", "train.lr.x=3", "loggers=[a,b"])
def test_a_mistake_beside_help_is_named(archlab: Session, words: str) -> None:
    answer = archlab(words, "--help")
    assert (answer.status, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert answer.err.startswith(f"archlab: {words.partition('=')[0]}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compare", "x", "--config-dir", "nosuch"], "--config-dir nosuch: no such folder"),
        (["stability_map", "x", "y=1"], "stability_map has no option y; it has none of its own"),
        (["draw", "gpt2", "output=.svg"], "output=.svg: names no file"),
        (["show", "resume=true"], "resume=true: only the verb run takes it"),
    ],
)
def test_what_changes_nothing_is_refused_with_its_reason(words, says, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["train.steps=1e3"], ["show", "train.steps=1e3"], ["-m", "train.steps=1e3,20"]], ids=" ".join
)
def test_a_number_is_answered_as_it_was_typed(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert capsys.readouterr().err.endswith("archlab: train.steps=1e3: should be a valid integer\n")


def test_a_number_of_some_layers_too(capsys):
    with pytest.raises(SystemExit):
        main(["layers[0::2].size.d_ff=1e1"])
    assert capsys.readouterr().err == "archlab: layers[0::2].size.d_ff=1e1: should be a whole number, 1 or more\n"
