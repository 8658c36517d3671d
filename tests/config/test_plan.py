"""Runs as data: what a command line stands for, and which of its runs are one program."""

import pytest
from omegaconf import OmegaConf

import archlab.config.assemble
from archlab.base.errors import UserError
from archlab.config.compose import plans

SMALL = (
    "size.d_model=24",
    "size.n_layers=2",
    "size.n_heads=4",
    "size.head_dim=8",
    "size.d_ff=20",
    "size.vocab_size=256",
)


@pytest.fixture(scope="module")
def one():
    (plan,) = plans(*SMALL)
    return plan


def test_a_sweep_is_a_plan_for_every_combination_in_the_order_of_the_words():
    asked = plans(*SMALL[:1], "norm=rms,layer", "attn=gqa", "seed=range(2)")
    assert [plan.overrides for plan in asked] == [
        (*SMALL[:1], f"norm={norm}", "mixer=gqa", f"seed={seed}") for norm in ("rms", "layer") for seed in (0, 1)
    ]
    assert [plan.cfg.choices.norm for plan in asked] == ["rms", "rms", "layer", "layer"]
    assert [plan.cfg.seed for plan in asked] == [0, 1, 0, 1]
    assert asked[1].cfg == archlab.compose(SMALL[0], "norm=rms", "mixer=gqa", "seed=1")


def test_a_plan_spells_true_and_false_as_they_are_typed():
    asked = plans(*SMALL[:1], "mixer.sinks=true", "train.checkpoint=false,true", "mixer.out_bias=True")
    assert [plan.overrides[1:] for plan in asked] == [
        ("mixer.sinks=true", f"train.checkpoint={checkpoint}", "mixer.out_bias=true")
        for checkpoint in ("false", "true")
    ]


def test_what_is_settled_refers_to_nothing():
    """Else what is written down of a run would change with what it refers to."""
    (plan,) = plans(*SMALL[:-1], "size.vocab_size=${size.d_model}", "eval.lengths=[1,${size.n_layers}]")
    OmegaConf.update(plan.cfg, "size.d_model", 48)
    OmegaConf.update(plan.cfg, "size.n_layers", 4)
    assert (plan.cfg.size.vocab_size, list(plan.cfg.eval.lengths)) == (24, [1, 2])
    assert "${" not in OmegaConf.to_yaml(plan.cfg)


def test_what_is_asked_once_is_one_plan_with_an_entry_for_each_layer():
    (plan,) = plans(*SMALL, "layers[1:].pos=none")
    assert [layer.pos.name for layer in plan.layers] == ["rope", "none"]


def test_a_sweep_with_a_job_that_cannot_be_run_is_refused_whole():
    with pytest.raises(UserError, match="rotates 7 of the 7 features of a head"):
        plans(*SMALL, "pos=rope,none", "size.head_dim=8,7")


def test_a_sweep_over_all_options_finds_the_users_own(tmp_path):
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").write_text("_target_: archlab.blocks.norm.RMSNorm\n_partial_: true\n")
    asked = plans(*SMALL, "norm=glob(m*)", config_dir=tmp_path)
    assert [plan.cfg.choices.norm for plan in asked] == ["mine"]


@pytest.mark.parametrize(
    "word", ["seed=5", "train.lr=1e-4", "train.weight_decay=0", "train.clip=null", "train.beta2=0.9", "train.steps=7", "init=normal",
             "train.warmup=3", "probe.every=null", "eval.tokens=1024", "train.log_every=1", "sink_token=0"],
)  # fmt: skip
def test_what_changes_numbers_alone_leaves_the_program_as_it_is(word, one):
    (other,) = plans(*SMALL, word)
    assert one.program_key == other.program_key and one != other
    models = [archlab.config.assemble.assemble_without_weights(plan.cfg) for plan in (one, other)]
    assert str(models[0]) == str(models[1])
    assert [weight.shape for weight in models[0].parameters()] == [weight.shape for weight in models[1].parameters()]


@pytest.mark.parametrize(
    "word", ["norm=layer", "residual=post", "ffn=gelu", "pos=alibi", "mask=prefix", "mixer=mqa", "head.softcap=30", "embed.tied=true",
             "size.d_ff=24", "size.n_layers=3", "layers[1].pos=none", "layers[1].size.d_ff=8", "train.batch_size=3",
             "train.train_len=64", "train.checkpoint=true", "train.accumulate=2", "data=masked", "dropout=0.1", "precision=bf16",
             "mixer.softcap=50", "pos.base=500", "random_positions=256"],
)  # fmt: skip
def test_what_changes_an_operation_or_a_shape_is_another_program(word, one):
    (other,) = plans(*SMALL, word)
    assert one.program_key != other.program_key


@pytest.mark.parametrize(
    "words",
    [
        ["seed=0,0"],
        ["pos.base=1e4,10000.0"],
        ["norm=rms,layer", "pos=rope,alibi,rope"],
        ["residual=mix", "size.n_layers=2", "residual.share=0.25,0.5"],
        ["average=tail", "train.steps=30", "average.share=0.2,0.21"],
    ],
)
def test_the_same_run_twice_in_a_sweep_is_refused(words):
    with pytest.raises(UserError, match="the same run twice in one sweep"):
        plans(*SMALL[:1], *words)


def test_shares_of_other_numbers_of_layers_or_steps_are_other_runs():
    assert len(plans(*SMALL[:1], "residual=mix", "size.n_layers=4", "residual.share=0.25,0.5")) == 2
    assert len(plans(*SMALL[:1], "average=tail", "train.steps=30", "average.share=0.2,0.25")) == 2
