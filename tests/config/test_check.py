"""What is refused: each refusal names field, value and remedy, and what it proposes is accepted."""

import re

import pytest
import torch
from oracles import every_option

import archlab
from archlab.base.errors import UserError
from archlab.data.batch import Source

# what is asked for, what the message must hold, what it proposes
WRONG_TYPES = [
    (["norm.eps=abc"], ["norm.eps=abc", "valid number"], ["norm.eps=1e-4"]),
    (["norm.eps=0"], ["norm.eps=0", "greater than 0"], ["norm.eps=1e-12"]),
    (
        ["norm=batch", "mask=full", "norm.momentum=0"],
        ["norm.momentum=0", "greater than 0"],
        ["norm=batch", "mask=full"],
    ),
    (
        ["residual=deep", "residual.gains=deepest"],
        ["residual.gains=deepest", "'deepnet'", "'glm'"],
        ["residual=deep", "residual.gains=glm"],
    ),
    (["train.steps=1e3"], ["train.steps=1e3", "should be a valid integer"], ["train.steps=1000"]),
    (["train.lr=-1e-3"], ["train.lr=-1e-3", "greater than 0"], ["train.lr=1e-3"]),
    (["ffn.bias=perhaps"], ["ffn.bias=perhaps", "boolean"], ["ffn.bias=true"]),
    (["ffn.dropout=1.0"], ["ffn.dropout=1.0", "less than 1"], ["ffn.dropout=0.5"]),
    (["pos.layout=thirds"], ["pos.layout=thirds", "'half'", "'interleaved'"], ["pos.layout=interleaved"]),
    (["pos.fraction=1.5"], ["pos.fraction=1.5", "less than or equal to 1"], ["pos.fraction=1.0"]),
    (["pos.base=-1"], ["pos.base=-1", "greater than 0"], ["pos.base=500000"]),
    (["pos=learned", "pos.max_positions=0"], ["pos.max_positions=0", "greater than or equal to 1"], ["pos=learned"]),
    (
        ["mask=window", "mask.window=0"],
        ["mask.window=0", "greater than or equal to 1"],
        ["mask=window", "mask.window=1", "pos=none"],
    ),
    (["mixer.softcap=0"], ["mixer.softcap=0", "greater than 0"], ["mixer.softcap=null"]),
    (["mixer.dropout=-0.1"], ["mixer.dropout=-0.1", "greater than or equal to 0"], ["mixer.dropout=0.0"]),
    (["init=normal", "init.std=0"], ["init.std=0", "greater than 0"], ["init=normal", "init.std=0.01"]),
    (["init.gain=wide"], ["init.gain=wide", "valid number"], ["init.gain=2"]),
    (["size.d_model=0"], ["size.d_model=0", "greater than or equal to 1"], ["size.d_model=64"]),
    (["size.d_model=64.5"], ["size.d_model=64.5", "integer"], ["size.d_model=64"]),
    (["size.d_model=null"], ["size.d_model=null", "integer"], ["size.d_model=64"]),
    (["size.d_ff=wide"], ["size.d_ff=wide", "'matched'"], ["size.d_ff=matched"]),
    (["size.vocab_size=1"], ["size.vocab_size=1", "greater than or equal to 2"], ["size.vocab_size=300"]),
    (["embed.scale=double"], ["embed.scale=double", "'none'", "'sqrt_d_model'"], ["embed.scale=none"]),
    (["embed.scale=0"], ["embed.scale=0", "greater than 0"], ["embed.scale=12"]),
    (["embed.tied=1"], ["embed.tied=1", "boolean"], ["embed.tied=true"]),
    (["seed=-1"], ["seed=-1", "greater than or equal to 0"], ["seed=0"]),
    (["dropout=1"], ["dropout=1", "less than 1"], ["dropout=0.9"]),
    (["precision=fp8"], ["precision=fp8", "'bf16'", "'fp16'"], ["precision=bf16"]),
    (["device=tpu"], ["device=tpu", "'cuda'"], ["device=cpu"]),
    (["train.steps=0"], ["train.steps=0", "greater than or equal to 1"], ["train.steps=1"]),
    (["probe.every=0"], ["probe.every=0", "greater than or equal to 1"], ["probe.every=null"]),
    (["eval.lengths=[]"], ["eval.lengths=[]", "should have at least one item"], ["eval.lengths=[1]"]),
    (["train.lr='3e-3'"], ["train.lr=3e-3", "should be a valid number, and this is a text"], ["train.lr=3e-3"]),
    (
        ["seed=${oc.env:NOT_THERE}"],
        ["seed=${oc.env:NOT_THERE}", "Environment variable 'NOT_THERE' not found"],
        ["seed=1"],
    ),
    (["prefix=[0.5,1.5]"], ["prefix=[0.5, 1.5]", "less than or equal to 1"], ["prefix=[0.5,0.75]"]),
]

DO_NOT_GO_TOGETHER = [
    # norms
    (
        ["norm=batch"],
        ["norm=batch", "batch and seq", "mask=causal", "mask=full", "allow_leak=true"],
        ["norm=batch", "allow_leak=true"],
    ),
    (
        ["norm=instance", "mask=window"],
        ["norm=instance", "seq", "mask=window", "mask=full"],
        ["norm=instance", "mask=full"],
    ),
    (["norm=sequence", "mask=prefix"], ["norm=sequence", "mask=prefix"], ["norm=layer", "mask=prefix"]),
    (["norm=none", "residual=post"], ["residual=post", "norm=none", "residual=pre"], ["norm=none", "residual=pre"]),
    (
        ["norm=none", "residual=sandwich"],
        ["residual=sandwich", "norm=none", "or a norm"],
        ["norm=rms", "residual=sandwich"],
    ),
    (["norm=none", "residual=branch_norm"], ["residual=branch_norm", "norm=none"], ["norm=none", "residual=deep"]),
    (
        ["residual=mix", "residual.share=1"],
        ["residual.share=1", "size.n_layers=4", "residual=post", "0.75"],
        ["residual=mix", "residual.share=0.75"],
    ),
    (
        ["layers[0].mask=prefix"],
        ["prefix=null", "mask=prefix needs a prefix"],
        ["layers[0].mask=prefix", "prefix=[0.25,0.75]"],
    ),
    (
        ["mask=document", "documents=true", "data=text", "pos.scaling=dynamic", "pos.factor=2", "pos.trained_len=8"],
        ["mask=document", "pos.scaling=dynamic rotates by how long the whole sequence is", "another mask"],
        ["mask=document", "documents=true", "data=text"],
    ),
    (
        ["layers[1::2].mask=document", "documents=true", "data=text", "pos.scaling=dynamic_qwen", "pos.trained_len=8"],
        ["mask=document", "pos.scaling=dynamic_qwen rotates by how long the whole sequence is", "another mask"],
        ["layers[1::2].mask=document", "documents=true", "data=text"],
    ),
    (
        ["mask=document", "documents=true", "data=text", "mask.reset_positions=true", "pos=rope"],
        ["mask.reset_positions=true", "pos=rope goes by distances", "leave it out"],
        ["mask=document", "documents=true", "data=text", "mask.reset_positions=true", "pos.logn=8"],
    ),
    (
        ["mask=document", "documents=true", "data=text", "mask.reset_positions=true", "pos=alibi"],
        ["mask.reset_positions=true", "pos=alibi goes by distances", "leave it out"],
        ["mask=document", "documents=true", "data=text", "mask.reset_positions=true", "pos=fire"],
    ),
    (
        ["mask=document", "documents=true", "data=text", "mask.reset_positions=true", "pos=xpos"],
        ["mask.reset_positions=true", "pos=xpos goes by distances", "leave it out"],
        ["mask=document", "documents=true", "data=text", "mask.reset_positions=true", "pos=xpos", "pos.scale_base=0.3"],
    ),
    *(
        (
            [*asked, f"pos={pos}"],
            [f"pos={pos}", f"under {said} every token attends to itself alone", "use pos=none"],
            [*asked, f"pos={instead}"],
        )
        for pos, instead in (
            ("rope", "none"),
            ("xpos", "learned"),
            ("alibi", "none"),
            ("t5", "sinusoidal"),
            ("kerple", "none"),
            ("fire", "none"),
        )
        for asked, said in (
            (["mask=window", "mask.window=1"], "mask.window=1"),
            (["mask=document", "documents=true", "data=text", "mask.chunk=1"], "mask.chunk=1"),
        )
    ),
    (
        ["mask=window", "mask.window=1", "mixer.sinks=true"],
        ["pos=rope", "under mask.window=1", "at distance 0"],
        ["mask=window", "mask.window=1", "mixer.sinks=true", "pos=t5"],
    ),
    (
        ["layers[0::2].mask=window", "layers[0::2].mask.window=1", "layers[0::2].pos=alibi"],
        ["pos=alibi", "under mask.window=1"],
        [
            "layers[0::2].mask=window",
            "layers[0::2].mask.window=1",
            "layers[0::2].mask.sinks=1",
            "layers[0::2].pos=alibi",
        ],
    ),
    (
        ["mask=document", "mask.reset_positions=true", "pos=none"],
        ["mask.reset_positions=true", "pos=none", "leave it out"],
        ["mask=document", "mask.reset_positions=true", "pos=learned"],
    ),
    (
        ["documents=true", "data=copy"],
        ["documents=true", "data=copy does not say where documents start; leave it out, or use data=text"],
        ["data=copy"],
    ),
    (
        ["ffn=experts", "ffn.n_experts=4", "ffn.top_k=4", "ffn.balance_loss=0.5"],
        ["ffn.balance_loss=0.5", "ffn.top_k=4, where every token gets every expert", "a smaller top_k"],
        ["ffn=experts", "ffn.n_experts=4", "ffn.top_k=4"],
    ),
    (
        ["ffn=experts", "ffn.top_groups=2"],
        ["ffn.top_groups=2", "ffn.groups=1", "ffn.groups=4"],
        ["ffn=experts", "ffn.top_groups=2", "ffn.groups=4", "ffn.top_k=2"],
    ),
    (
        ["mixer=diff", "size.n_kv_heads=1"],
        ["size.n_kv_heads=1", "has 4 of them, or may have 2"],
        ["mixer=diff", "size.n_kv_heads=2"],
    ),
    *(
        (
            ["embed.scale=3.0", "embed.norm=true", *norm],
            ["embed.scale=3.0", "embed.norm=true", "leave one of the two out"],
            ["embed.scale=3.0", "embed.norm=true", *norm, beside],
        )
        for norm, beside in (
            (["norm=rms"], "embed.tied=true"),
            (["norm=layer"], "pos=learned"),
            (["norm=l2"], "embed.types=2"),
            ([], "norm=dyt"),
            (["norm=rms"], "init=mup"),
        )
    ),
    (["norm=none", "embed.norm=true"], ["embed.norm=true", "norm=none", "leave it out"], ["norm=none"]),
    (
        ["norm=layer", "norm.affine=false", "norm.shift=true"],
        ["norm.shift=True", "norm.affine=false", "leave one of them out"],
        ["norm=layer", "norm.affine=false"],
    ),
    (["norm.unit_offset=1"], ["norm.unit_offset=1", "boolean"], ["norm.unit_offset=true"]),
    # norms on queries and keys
    (["mixer.qk_norm=true"], ["mixer.qk_norm=True", "'none'", "'head'", "'width'"], ["mixer.qk_norm=head"]),
    (["mixer.qk_norm=false"], ["mixer.qk_norm=False", "'none'", "'head'", "'width'"], ["mixer.qk_norm=none"]),
    (
        ["mixer.qk_norm=head", "norm=none"],
        ["mixer.qk_norm=head", "norm=none", "d_model alone"],
        ["mixer.qk_norm=head", "norm=layer"],
    ),
    (
        ["mixer.qk_norm=width", "norm=batch", "mask=full"],
        ["mixer.qk_norm=width", "norm=batch", "mixer.qk_norm=none"],
        ["mixer.qk_norm=none", "norm=batch", "mask=full"],
    ),
    (["mixer.scale=0"], ["mixer.scale=0", "greater than 0"], ["mixer.scale=0.0625"]),
    (["residual=sub", "norm=none"], ["residual=sub", "norm=none", "residual=pre"], ["residual=sub"]),
    (
        ["residual=parallel", "residual.norms=3"],
        ["residual.norms=3", "1 or 2"],
        ["residual=parallel", "residual.norms=2"],
    ),
    *(
        (
            ["residual=parallel", "residual.norms=2", *norm],
            ["residual.norms=2", "without weights", "residual.norms=1"],
            ["residual=parallel", "residual.norms=1", *norm],
        )
        for norm in (["norm=layer", "norm.affine=false"], ["norm=rms", "norm.affine=false"], ["norm=l2"], ["norm=none"])
    ),
    # embedding and head
    (["embed.scale=1"], ["embed.scale=1", "changes nothing"], ["embed.scale=12"]),
    (["embed.width=128"], ["embed.width=128", "size.d_model", "leave it out"], ["embed.width=64"]),
    (["embed.types=0"], ["embed.types=0", "greater than or equal to 1"], ["embed.types=2"]),
    (["head.softcap=0"], ["head.softcap=0", "greater than 0"], ["head.softcap=30"]),
    (["head.scale=-1"], ["head.scale=-1", "greater than 0"], ["head.scale=0.0625"]),
    (["head.bias=1"], ["head.bias=1", "boolean"], ["head.bias=true"]),
    # sizes
    (
        ["size.n_heads=7"],
        ["size.n_heads=7", "size.d_model=128", "size.head_dim"],
        ["size.n_heads=7", "size.head_dim=12"],
    ),
    (
        ["mixer=mha", "size.n_kv_heads=2"],
        ["size.n_kv_heads=2", "mixer=gqa", "null"],
        ["mixer=gqa", "size.n_kv_heads=2"],
    ),
    (["mixer=mqa", "size.n_kv_heads=2"], ["size.n_kv_heads=2", "mixer=gqa"], ["mixer=mqa", "size.n_kv_heads=null"]),
    (
        ["mixer=gqa", "size.n_kv_heads=3"],
        ["size.n_kv_heads=3", "divisor", "size.n_heads=4"],
        ["mixer=gqa", "size.n_kv_heads=4"],
    ),
    # positions
    (
        ["size.head_dim=7", "pos.fraction=1"],  # of which no fraction leaves all
        ["pos.fraction=1", "rotates 7 of the 7", "such as 0.285714"],
        ["size.head_dim=7", "pos.fraction=0.285714"],
    ),
    (["pos.fraction=0.01"], ["pos.fraction=0.01", "pairs", "0.0625"], ["pos.fraction=0.0625"]),
    (
        ["pos=learned", "train.train_len=600"],
        ["train.train_len=600", "512", "pos.max_positions"],
        ["pos=learned", "train.train_len=600", "pos.max_positions=600"],
    ),
    (
        ["pos.scaling=yarnn"],
        ["pos.scaling=yarnn", "'yarn'", "'dynamic_qwen'"],
        ["pos.scaling=yarn", "pos.factor=4", "pos.trained_len=64"],
    ),
    (
        ["pos.scaling=linear"],
        ["pos.factor=null", "pos.scaling=linear needs it", "pos.factor=4"],
        ["pos.scaling=linear", "pos.factor=4"],
    ),
    (["pos.factor=4"], ["pos.factor=4", "pos.scaling=none", "leave it out"], ["pos.base=40000"]),
    (
        ["pos.scaling=dynamic_qwen", "pos.trained_len=64", "pos.factor=2"],
        ["pos.factor=2", "pos.scaling=dynamic_qwen, which takes trained_len", "leave it out"],
        ["pos.scaling=dynamic_qwen", "pos.trained_len=64"],
    ),
    (["pos.logn=1"], ["pos.logn=1", "trained length"], ["pos.logn=128"]),
    (
        ["pos=t5", "pos.bidirectional=true"],
        ["pos.bidirectional=true", "mask=causal", "mask=prefix or full"],
        ["pos=t5", "pos.bidirectional=true", "mask=full"],
    ),
    (["pos=t5", "pos.buckets=5"], ["pos.buckets=5", "multiple of 2"], ["pos=t5", "pos.buckets=32"]),
    (["pos=kerple", "pos.fall=steep"], ["pos.fall=steep", "'log'", "'power'"], ["pos=kerple", "pos.fall=power"]),
    (["pos=rope_2d", "size.head_dim=7"], ["size.head_dim=7", "even number"], ["pos=rope_2d", "size.head_dim=8"]),
    (
        ["pos=rope_2d", "pos.anchor=first"],
        ["pos.anchor=first", "'last'", "'next'"],
        ["pos=rope_2d", "pos.anchor=next", "mask=prefix"],
    ),
    (
        ["pos=rope_2d", "pos.anchor=next"],
        ["pos.anchor=next", "mask=causal", "no prefix"],
        ["pos=rope_2d", "pos.anchor=next", "mask=prefix"],
    ),
    (
        ["pos=learned_2d", "pos.anchor=next", "mask=full"],
        ["pos.anchor=next", "mask=full", "no prefix"],
        ["pos=learned_2d", "mask=full"],
    ),
    (
        ["pos=learned_2d", "train.train_len=600"],
        ["train.train_len=600", "512", "pos.max_positions"],
        ["pos=learned_2d", "train.train_len=600", "pos.max_positions=600"],
    ),
    (
        ["pos=learned", "pos.offset=-1"],
        ["pos.offset=-1", "greater than or equal to 0"],
        ["pos=learned", "pos.offset=2"],
    ),
    # prefix
    (["data=copy", "prefix=[0.25,0.5]"], ["prefix=[0.25, 0.5]", "data=copy", "leave it out"], ["data=copy"]),
    (
        ["mask=prefix", "prefix=null"],
        ["prefix=null", "mask=prefix", "[0.25,0.75]"],
        ["mask=prefix", "prefix=[0.25,0.75]"],
    ),
    (["prefix=[0.5,0.25]"], ["prefix=[0.5, 0.25]", "low <= high < 1"], ["prefix=[0.25,0.5]"]),
    (["prefix=[0.5,1.0]"], ["prefix=[0.5, 1.0]", "low <= high < 1"], ["prefix=[0.5,0.9]"]),
    (["prefix=[0.5]"], ["prefix=[0.5]", "two shares"], ["prefix=[0.5,0.5]"]),
    (["mask=full", "prefix=[0.25,0.5]"], ["prefix=[0.25, 0.5]", "mask=full", "leave it out"], ["mask=full"]),
    # length of the run
    (["train.steps=10", "train.tokens=5000"], ["train.tokens=5000", "train.steps", "keep one"], ["train.tokens=5000"]),
    (["train.steps=10", "budget=chinchilla"], ["budget=chinchilla", "train.steps", "keep one"], ["budget=chinchilla"]),
    (
        ["train.tokens=5000", "budget=chinchilla"],
        ["budget=chinchilla", "train.tokens", "keep one"],
        ["train.tokens=5000"],
    ),
    # training
    (["train.accumulate=3"], ["train.accumulate=3", "train.batch_size=16", "divisor"], ["train.accumulate=4"]),
    (["train.warmup=400"], ["train.warmup=400", "all steps", "schedule=cosine"], ["train.warmup=399"]),
    (["train.warmup=500"], ["train.warmup=500", "400 steps", "fewer"], ["train.warmup=399"]),
    (["train.patience=2"], ["train.patience=2", "train.eval_every=50"], ["train.patience=2", "train.eval_every=50"]),
    # evaluation
    (["eval.stride=8"], ["eval.stride=8", "eval.protocol=sliding"], ["eval.stride=8", "eval.protocol=sliding"]),
    (
        ["eval.protocol=sliding", "eval.stride=129"],
        ["eval.stride=129", "128"],
        ["eval.protocol=sliding", "eval.stride=128"],
    ),
    (
        ["eval.protocol=sliding", "data=copy"],
        ["eval.protocol=sliding", "data=copy", "disjoint"],
        ["eval.protocol=disjoint", "data=copy"],
    ),
]


def named(row) -> str:
    return " ".join(row[0])


@pytest.mark.parametrize(
    ("asked", "told", "proposed"), WRONG_TYPES + DO_NOT_GO_TOGETHER, ids=map(named, WRONG_TYPES + DO_NOT_GO_TOGETHER)
)
def test_is_refused_in_one_line_that_names_field_value_and_remedy(asked, told, proposed):
    with pytest.raises(UserError) as refused:
        archlab.compose(*asked)
    message = str(refused.value)
    assert message.startswith(told[0] + ":") and "\n" not in message
    for words in told:
        assert words in message
    archlab.compose(*proposed)


@pytest.mark.parametrize("asked", [row[0] for row in WRONG_TYPES[:1] + DO_NOT_GO_TOGETHER[:1]], ids=" ".join)
def test_building_refuses_what_composing_does(asked):
    with pytest.raises(UserError, match=re.escape(asked[0])):
        archlab.build(*asked)


@pytest.mark.parametrize(
    ("group", "name"), every_option("norm", "residual", "ffn", "pos", "mask", "mixer", "head", "init", "size")
)
def test_every_option_is_accepted_beside_the_defaults(group, name):
    beside = {"batch": "allow_leak=true", "instance": "allow_leak=true", "sequence": "allow_leak=true"}
    beside["unit"] = "train.weight_decay=0"  # weights that are held at length 1 are not shortened
    cfg = archlab.compose(f"{group}={name}", *([beside[name]] if name in beside else []))
    assert cfg.choices[group] == name


def test_what_a_size_leaves_open_is_settled():
    size = archlab.compose("mixer=gqa", "ffn=gelu", "size.d_model=96", "size.n_heads=6").size
    assert (size.n_kv_heads, size.head_dim, size.d_ff) == (3, 16, 384)
    size = archlab.compose("mixer=mqa", "ffn=swiglu", "size.d_model=96", "size.n_heads=6", "size.head_dim=24").size
    assert (size.n_kv_heads, size.head_dim, size.d_ff) == (1, 24, 256)


def test_positions_that_reset_for_nothing_are_refused_whoever_says_where_documents_start(monkeypatch):
    monkeypatch.setattr(Source, "marks_documents", True)
    with pytest.raises(UserError, match="mask.reset_positions=true: pos=alibi goes by distances"):
        archlab.compose("mask=document", "mask.reset_positions=true", "pos=alibi")


def test_a_configuration_builds_what_its_overrides_build():
    small = ("size=nano", "pos=alibi", "residual=deep", "seed=7")
    tokens = torch.arange(12).view(1, -1)
    assert torch.equal(archlab.build(archlab.compose(*small))(tokens), archlab.build(*small)(tokens))


def test_a_folder_of_ones_own_may_have_any_name(tmp_path):
    folder = tmp_path / "a=b, it's [mine]"
    (folder / "size").mkdir(parents=True)
    (folder / "size" / "mine.yaml").write_text("defaults: [nano]\nn_layers: 7\n")
    assert archlab.compose("size=mine", config_dir=str(folder)).size.n_layers == 7


def test_a_users_block_without_partial_is_told_what_is_missing(tmp_path):
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").write_text("_target_: archlab.blocks.norm.RMSNorm\n")
    with pytest.raises(UserError, match="norm._partial_: should be true"):
        archlab.compose("norm=mine", config_dir=str(tmp_path))


def test_a_users_block_whose_types_are_there_for_a_type_checker_alone_is_told(tmp_path, monkeypatch):
    """Fault found: a NameError's traceback."""
    (tmp_path / "typed_apart.py").write_text(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nfrom archlab.blocks.contracts import Norm\n"
        "if TYPE_CHECKING:\n    from collections.abc import Sequence\n\n"
        "class Mine(Norm):\n    def __init__(self, d_model: int, shape: Sequence[int] | None = None): ...\n"
    )
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").write_text("_target_: typed_apart.Mine\n_partial_: true\nshape: null\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        UserError, match="norm: Mine says of an option's type .*'Sequence' is not defined; import it where"
    ):
        archlab.compose("norm=mine", config_dir=str(tmp_path))
